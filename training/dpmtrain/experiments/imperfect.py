"""Learning from imperfect data.

`python -m dpmtrain.experiments.imperfect --start MODEL --data PREPARED --images DATA --run RUN --out FOLDER`

A hospital has FLAIR scans of some R and noise, and nothing better (`scans.py`). A network that never saw FLAIR is tuned
with equal numbers of images, from the same start: on full images without noise, which nobody has; on CG-SENSE images;
on posterior samples of the start, one of each scan (a round of expectation maximisation, Rozet et al., NeurIPS 2024);
on the images that the product makes with it, as `dpmtrain kit` does; on the least-squares images by a loss that knows
their noise (`noise_aware.py`); by that loss above the noise and on the samples below it, where the loss says nothing.

Scored on FLAIR of patient09 and of the held-out label map at R = 4 with the same noise: denoising error, NRMSE of
reconstructions by the shipped card with several noise factors, one sample each, and lesions painted into patient09 as
in `evaluate/lesions.py`; and by what the hospital can see: NRMSE against its own images, and what a reconstruction
misses of the lines that it was not given. Goes on after a stop.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import torch
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.prior.denoiser import Denoiser, complex_noise
from dpmrecon.prior.samplers.diffusion import turned, turned_back

from ..arguments import at_least, exit_code, module_parser, words
from ..train.batches import Batch
from ..train.keeper import Start, read_start
from ..train.train import Trainer
from .imperfect_scores import all_scores, report
from .noise_aware import Modes
from .scans import CONTRAST, Scans, Site, held_out
from .tuned import TRAIN, MakeBatch, tuned

LEVELS = NormalDist(TRAIN["p_mean"], TRAIN["p_std"])  # of the logarithm of sigma


class NoisyBatch(NamedTuple):
    """What the noise-aware loss is of. noisy: (batch, rows, cols) complex64, s', and in the modes noisier; turn: of 8
    orientations."""

    modes: Modes
    noisy: torch.Tensor
    noisier: torch.Tensor
    sigma: torch.Tensor
    label: torch.Tensor
    turn: int


class NoiseAwareTrainer(Trainer):
    def loss(self, batch: Batch | NoisyBatch) -> torch.Tensor:
        if isinstance(batch, Batch):
            return super().loss(batch)
        weight = (batch.sigma.square() + self.model.sigma_data**2) / (batch.sigma * self.model.sigma_data).square()
        found = self.parallel(turned(batch.noisy, batch.turn).contiguous(), batch.sigma, batch.label)
        return (weight * batch.modes.error(turned_back(found, batch.turn), batch.noisier, batch.sigma)).mean()


def denoising(images: torch.Tensor, generator: torch.Generator, below: float = math.inf) -> Batch:
    """Some of the images (slices, rows, cols), which stand for the truth; below: where the levels end."""
    which, turn, quantile = drawn(len(images), generator)
    sigma = levels(quantile, torch.zeros(len(which)), below)
    clean = turned(images[which], turn).contiguous()
    noisy = clean + sigma[:, None, None] * complex_noise(tuple(clean.shape), generator)
    return Batch(clean, torch.ones(clean.shape), noisy, sigma, torch.empty(0))


def noise_aware(modes: Modes, generator: torch.Generator) -> NoisyBatch:
    """Some of the slices, at levels above their noise."""
    which, turn, quantile = drawn(len(modes.image), generator)
    chosen = Modes(modes.vectors[which], modes.variance[which], modes.image[which])
    sigma = levels(quantile, chosen.lowest_level())
    noisier = chosen.noisier(sigma, generator)
    return NoisyBatch(chosen, chosen.to_image(noisier), noisier, sigma, torch.empty(0), turn)


def both(found: Scans, generator: torch.Generator) -> Batch | NoisyBatch:
    """The noise-aware loss above the noise; below it the posterior samples."""
    lowest = float(found.modes.lowest_level().mean())
    if float(torch.rand((), generator=generator)) < LEVELS.cdf(math.log(lowest)):
        return denoising(found.drawn, generator, below=lowest)
    return noise_aware(found.modes, generator)


Make = Callable[[Scans, torch.Generator], Batch | NoisyBatch]
ARMS: dict[str, tuple[str, Make]] = {
    "clean": ("full images without noise", lambda found, generator: denoising(found.clean, generator)),
    "sense": ("CG-SENSE images", lambda found, generator: denoising(found.sense, generator)),
    "modes": ("least squares, noise-aware", lambda found, generator: noise_aware(found.modes, generator)),
    "drawn": ("posterior samples of the start", lambda found, generator: denoising(found.drawn, generator)),
    "mean": ("default images of the start", lambda found, generator: denoising(found.mean, generator)),
    "both": ("noise-aware; posterior samples below the noise", both),
}


def drawn(count: int, generator: torch.Generator) -> tuple[torch.Tensor, int, torch.Tensor]:
    """Which of `count` slices are in a batch, their orientation, and the quantiles of their levels."""
    which = torch.randint(count, (TRAIN["batch"],), generator=generator)
    turn = int(torch.randint(8, (), generator=generator))
    return which, turn, torch.rand(len(which), generator=generator, dtype=torch.float64)


def levels(quantile: torch.Tensor, lowest: torch.Tensor, below: float = math.inf) -> torch.Tensor:
    """Noise levels, log-normal as the recipe says, between `lowest` and `below` alone; quantile, lowest: (batch,)."""
    least = [LEVELS.cdf(math.log(level)) if level > 0 else 0.0 for level in lowest.tolist()]
    most = LEVELS.cdf(math.log(below)) if below < math.inf else 1.0
    places = [low + (most - low) * q for low, q in zip(least, quantile.tolist())]
    return torch.tensor([math.exp(LEVELS.inv_cdf(min(max(place, 1e-6), 1 - 1e-6))) for place in places])


def labelled(make: Callable[[torch.Generator], Batch | NoisyBatch], seed: int, start: Start) -> MakeBatch:
    """The batches, all of FLAIR."""
    labels = Denoiser(start.config).one_hot([CONTRAST] * TRAIN["batch"])
    generator = torch.Generator().manual_seed(seed)
    return lambda step: make(generator)._replace(label=labels)


def candidates(
    start: Start, found: Scans, arms: Sequence[str], run: Path, steps: int, seeds: int
) -> dict[tuple[str, int], Path]:
    """The start, and the arms' networks, made where they are not there: (arm, seed) and its file."""
    paths = {("start", 0): run / "start.safetensors"}
    tuned(start, {**TRAIN, "steps": 0, "seed": 0}, None, paths["start", 0])
    for seed in range(seeds):
        for arm in arms:
            path = paths[arm, seed] = run / f"{arm}_{steps}_{seed}.safetensors"
            settings = {**TRAIN, "steps": steps, "seed": seed}
            tuned(start, settings, labelled(partial(ARMS[arm][1], found), seed, start), path, NoiseAwareTrainer)
    return paths


def main() -> None:
    parser = module_parser(__doc__, "data", "images")
    parser.add_argument(
        "--start", type=Path, required=True, help="model that never saw FLAIR, such as `capacity` makes"
    )
    parser.add_argument("--run", type=Path, required=True, help="networks and scores, by start; gone on with if there")
    parser.add_argument("--out", type=Path, required=True, help="folder for table and plot")
    site = Site()
    parser.add_argument("--R", type=int, default=site.R, help="of the hospital's scans (default: %(default)s)")
    parser.add_argument(
        "--noise", type=float, default=site.sigma_n, help="over the scale, per real channel (default: %(default)s)"
    )
    parser.add_argument("--volumes", help="patterns, with commas between them (default: all FLAIR)")
    parser.add_argument("--arms", default=",".join(ARMS), help="always with sense (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=TRAIN["steps"], help=f"of {TRAIN['batch']} images (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each arm (default: 2)")
    parser.add_argument("--slices", type=int, default=6, help="of each held-out volume (default: 6)")
    parser.add_argument("--draws", type=int, default=6, help="of noise, with 12 lesions each (default: 6)")
    args = parser.parse_args()
    at_least(args, R=1, steps=1, seeds=1, slices=1, draws=2)
    arms = [arm for arm in ARMS if arm in {"sense", *words("--arms", args.arms, list(ARMS))}]
    site = Site(args.R, args.noise, tuple(args.volumes.split(",")) if args.volumes else site.volumes)
    torch.set_num_threads(1)
    cases = held_out(
        args.images, args.slices, CONTRAST, site.sigma_n, site.R
    )  # what is missing is said before hours of training
    start = read_start(args.start)
    run = args.run / start.checksum[:12] / str(site)
    run.mkdir(parents=True, exist_ok=True)
    found = Scans(args.data, site, load_checkpoint(args.start), run)
    paths = candidates(start, found, arms, run, args.steps, args.seeds)
    scored = all_scores(args.images, paths, run / "scores.jsonl", cases, site, args.draws)
    titles = {arm: ARMS[arm][0] for arm in arms}
    report(scored, {"CG-SENSE": "(CG-SENSE)", "start": "not tuned", **titles}, args.out)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
