"""One prior for all contrasts, or one tuned for each?

`python -m dpmtrain.experiments.per_target --start MODEL --data PREPARED --images DATA --run RUN --out FOLDER`

The start learns all contrasts (`capacity` leaves out FLAIR). From the network that comes of it, and with equal numbers
of further images, one is trained on all contrasts further, and one each on FLAIR, T1, SWI and DWI alone. All are scored
on all four contrasts, of patient09 where it has them and of the held-out label map, at R = 4, as in `imperfect`: error
of the denoised image, NRMSE, painted lesions (not of SWI); each at the noise factor that is best for it. Goes on after
a stop.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from dpmrecon.contrasts import LABELS
from dpmrecon.prior.checkpoint import load_checkpoint
from matplotlib.figure import Figure
from tqdm import tqdm

from ..arguments import at_least, exit_code, module_parser
from ..data.dataset import read_manifest
from ..evaluate.metrics import paired_difference
from ..evaluate.references import CPU
from ..evaluate.score_lines import ScoreLines
from ..evaluate.scoring import Undersampled
from ..evaluate.tables import write_tables
from ..files import save_figure
from ..train.crop_pool import CropPool
from ..train.keeper import read_start
from .capacity import SIGMAS, batch_of
from .imperfect_scores import KEPT, Scores, ranged, scores_of
from .scans import held_out
from .tuned import TRAIN, tuned

TARGETS = ("flair", "t1", "swi", "dwi")
ARMS = ("before", "all", *TARGETS)  # what the networks were trained on last
CROPS = {"batch": 32, "crop": 64, "pool": 1024, "real_fraction": 0.5, "label_dropout": 0.1}
FACTORS = (0.57, 0.75)
SNR = 15.0  # of the scans with lesions
WITHOUT_LESIONS = "swi"
Found = dict[tuple[str, int, str], Scores]  # by arm, seed and contrast


def trained(data: Path, start: Path, run: Path, name: str, steps: int, seed: int) -> Path:
    """The start, trained further on one contrast, or on any."""
    path = run / f"{name}_{steps}_{seed}.safetensors"
    if not path.with_suffix(".json").exists():
        settings = {**TRAIN, **CROPS, "steps": steps, "seed": seed}
        volumes = [v["file"] for v in read_manifest(data)["volumes"] if name not in TARGETS or v["contrast"] == name]
        chosen = {**settings, "volumes": [file.removesuffix(".npy") for file in volumes]}
        pool = CropPool(data, chosen, LABELS, CPU, 0, f"{name} {seed}")
        tuned(read_start(start), settings, partial(batch_of, pool, settings=settings), path)
    return path


def networks(data: Path, start: Path, run: Path, steps: int, seeds: int) -> dict[tuple[str, int], Path]:
    before = trained(data, start, run, "before", 2 * steps, 0)
    found = {("before", 0): before}
    for seed in range(seeds):
        for arm in ARMS[1:]:
            found[arm, seed] = trained(data, before, run, arm, steps, seed)
    return found


def scored(
    paths: dict[tuple[str, int], Path], cases: dict[str, list[Undersampled]], images: Path, run: Path, draws: int
) -> Found:
    """cases: of each contrast."""
    found = {}
    for (arm, seed), path in tqdm(paths.items(), desc="scores", mininterval=10):
        checkpoint = load_checkpoint(path)
        for contrast in TARGETS:
            lines = ScoreLines(run / f"scores_{contrast}.jsonl")
            pairs = [(images, contrast, SNR, draw) for draw in range(draws) if contrast != WITHOUT_LESIONS]
            found[arm, seed, contrast] = scores_of(checkpoint, cases[contrast], pairs, lines, FACTORS)
    return found


def report(found: Found, out: Path) -> None:
    """table.csv, with all FACTORS; table.md, with the best one for each network; per_target.png."""
    heads = ["contrast", "trained last on", "noise_factor", "NRMSE", "of each slice, less that of all (95 %)",
             *(f"error at {sigma:g}" for sigma in SIGMAS), *(f"lesions: {name}" for name in KEPT)]  # fmt: skip
    lines, chosen = [heads], [heads]
    for contrast in TARGETS:
        of_all = best_errors(found, "all", contrast).mean(0)
        for arm in ARMS:
            several = of(found, arm, contrast)
            errors = np.array([scores.nrmse for scores in several])  # (seeds, factors, slices)
            best = int(errors.mean((0, 2)).argmin())
            levels = np.array([scores.denoising for scores in several])
            for number, factor in enumerate(FACTORS):
                kept = [[scores.lesions[number].get(name, math.nan) for name in KEPT] for scores in several]
                gap = paired_difference(errors[:, number].mean(0), of_all)
                cells = [
                    contrast,
                    arm,
                    f"{factor:g}",
                    ranged(errors[:, number].mean(1), ".4f"),
                    "{:+.4f} ({:+.4f} to {:+.4f})".format(*gap),
                    *(ranged(level, ".3f") for level in levels.T),
                    *(ranged(value, ".3g") if contrast != WITHOUT_LESIONS else "" for value in np.array(kept).T),
                ]
                lines.append(cells)
                if number == best:
                    chosen.append(cells)
    write_tables(out, lines, chosen)
    picture(found, out / "per_target.png")


def of(found: Found, arm: str, contrast: str) -> Sequence[Scores]:
    """Of all seeds."""
    return [scores for (name, _, on), scores in found.items() if (name, on) == (arm, contrast)]


def best_errors(found: Found, arm: str, contrast: str) -> np.ndarray:
    """(seeds, slices) NRMSE at the arm's best factor."""
    errors = np.array([scores.nrmse for scores in of(found, arm, contrast)])
    return errors[:, int(errors.mean((0, 2)).argmin())]


def picture(found: Found, path: Path) -> None:
    """Denoising error of the networks of a target on it, over that of all; NRMSE over that of all, by both."""
    figure = Figure((10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    ratios = np.empty((len(ARMS), len(TARGETS)))
    for column, contrast in enumerate(TARGETS):
        of_all = np.mean([scores.denoising for scores in of(found, "all", contrast)], 0)
        own = np.mean([scores.denoising for scores in of(found, contrast, contrast)], 0)
        left.plot(SIGMAS, own / of_all, "o-", label=contrast)
        means = [best_errors(found, arm, contrast).mean() for arm in ARMS]
        ratios[:, column] = np.array(means) / means[ARMS.index("all")]
    left.axhline(1, color="grey", lw=0.8)
    left.set(xscale="log", xlabel="sigma", ylabel="tuned on it, over all", title="denoising error")
    left.set_xticks(SIGMAS, [f"{sigma:g}" for sigma in SIGMAS])
    left.minorticks_off()
    left.legend(fontsize="small")
    most = max(0.02, float(np.abs(ratios - 1).max()))
    right.imshow(ratios, cmap="coolwarm", vmin=1 - most, vmax=1 + most, aspect="auto")
    for (row, column), ratio in np.ndenumerate(ratios):
        right.text(column, row, f"{ratio:.3f}", ha="center", va="center")
    right.set_xticks(range(len(TARGETS)), TARGETS)
    right.set_yticks(range(len(ARMS)), ARMS)
    right.set(xlabel="scored on", ylabel="trained last on", title="NRMSE over that of all")
    save_figure(path, figure, 110)


def main() -> None:
    parser = module_parser(__doc__, "data", "images")
    parser.add_argument("--start", type=Path, required=True, help="model such as `capacity` makes")
    parser.add_argument("--run", type=Path, required=True, help="networks and scores; gone on with if there")
    parser.add_argument("--out", type=Path, required=True, help="folder for table and plot")
    parser.add_argument("--steps", type=int, default=320, help=f"of {CROPS['batch']} crops (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each (default: 2)")
    parser.add_argument("--slices", type=int, default=3, help="of each held-out volume (default: 3)")
    parser.add_argument("--draws", type=int, default=4, help="of noise, with 12 lesions each (default: 4)")
    args = parser.parse_args()
    at_least(args, steps=1, seeds=1, slices=1, draws=2)
    torch.set_num_threads(1)
    # what is missing is said before hours of training
    cases = {contrast: held_out(args.images, args.slices, contrast) for contrast in TARGETS}
    args.run.mkdir(parents=True, exist_ok=True)
    paths = networks(args.data, args.start, args.run, args.steps, args.seeds)
    report(scored(paths, cases, args.images, args.run, args.draws), args.out)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
