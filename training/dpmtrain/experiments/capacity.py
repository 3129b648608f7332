"""Validation error against parameters and images seen.

`python -m dpmtrain.experiments.capacity --data PREPARED --images DATA --run RUN --out FOLDER`

Networks of the shipped one's shape and smaller widths see the same crops, noise and rate, all contrasts but FLAIR (so
that `imperfect` can begin with one of them). At 2,048 images and every doubling the averaged weights are scored: the
rms error per real channel of the denoised image, over sigma, on slices of the held-out label map. The model that ships
is one more point: trained longer, on larger crops, with a rate that falls. Goes on after a stop.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.contrasts import LABELS
from dpmrecon.physics.fourier import crop_or_pad
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint
from dpmrecon.prior.denoiser import Denoiser, complex_noise
from matplotlib.figure import Figure
from scipy.optimize import least_squares
from tqdm import tqdm

from ..arguments import exit_code, module_parser
from ..data.dataset import smooth_field
from ..data.open_sets import HELD_OUT
from ..evaluate.references import CPU
from ..evaluate.score_lines import ScoreLines
from ..evaluate.tables import markdown, write_tables
from ..evaluate.validation import SIGMA_N, validation_scan
from ..files import save_figure
from ..train.batches import Batch
from ..train.crop_pool import CropPool
from ..train.keeper import read_tensors, write_state
from ..train.train import Trainer

WIDTHS = {
    "0.09 M": [6, 10, 16, 20], "0.2 M": [12, 20, 32, 40], "0.66 M": [24, 40, 64, 80], "2.3 M": [48, 80, 128, 160],
}  # fmt: skip
MODEL: dict[str, Any] = {"blocks": [1, 1, 1, 2], "embedding": 128, "labels": [*LABELS], "sigma_data": 0.25}
# constant rate: the average, over about the last tenth of the run, stands for its decay
TRAIN: dict[str, Any] = {
    "seed": 31, "optimizer": "muon", "precision": "bf16", "steps": 4096, "batch": 32, "rate": 1e-3, "warmup": 50,
    "decay_fraction": 0, "clip": 1.0, "ema_half_life": 1e6, "label_dropout": 0.1, "p_mean": -1.8, "p_std": 1.2,
    "volumes": ["*_T1W", "*_T2W", "colin27", "seg3d", *(f"training_seg_*_{kind}_*" for kind in (
        "t1", "t2", "dwi_b0", "dwi_b1000", "dwi", "swi", "mprage", "gre"))],
    "real_fraction": 0.5, "crop": 64, "pool": 8192,
}  # fmt: skip
PAPER = (64_700_000, 6_000_000)  # parameters and images of the source paper, the latter about
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5)
SHORTEST = 64  # steps after which the networks are scored for the first time
FITTING = 4000  # of the law, from each start at most
SIDE = 128  # of the centre of a validation slice


def batch_of(pool: CropPool, step: int, settings: dict) -> Batch:
    """The examples of a step, which all networks see."""
    torch.manual_seed(step)
    clean, classes = pool.draw(settings["batch"])
    kept = torch.rand(len(clean)) >= settings["label_dropout"]
    label = torch.nn.functional.one_hot(classes, len(LABELS) + 1)[:, : len(LABELS)] * kept[:, None]
    sigma = torch.exp(settings["p_mean"] + settings["p_std"] * torch.randn(len(clean)))
    noise = complex_noise(tuple(clean.shape), torch.Generator().manual_seed(step))
    return Batch(clean, torch.ones(clean.shape), clean + sigma[:, None, None] * noise, sigma, label.float())


def trained(data: Path, run: Path) -> None:
    """All networks; their averaged weights at every doubling, as RUN/NAME_IMAGES.safetensors."""
    torch.set_num_threads(1)
    run.mkdir(parents=True, exist_ok=True)
    recipes = {name: {"model": {"widths": widths, **MODEL}, "train": TRAIN} for name, widths in WIDTHS.items()}
    trainers = {name: Trainer(recipe, device="cpu") for name, recipe in recipes.items()}
    first, file = 0, run / "state.pt"
    if file.exists():
        state = read_tensors(file, {"step", *WIDTHS})
        first = state["step"]
        for name, trainer in trainers.items():
            trainer.load_state(state[name])
    if first == TRAIN["steps"]:
        return
    pool = CropPool(data, TRAIN, LABELS, CPU, 0, f"{TRAIN['seed']} {first}")
    for step in tqdm(range(first, TRAIN["steps"]), initial=first, total=TRAIN["steps"], mininterval=10):
        batch = batch_of(pool, step, TRAIN)
        for trainer in trainers.values():
            trainer.step(step, batch)
        done = step + 1
        if done in lengths():
            for name, trainer in trainers.items():
                card = {"recipe": TRAIN, "data": {"excluded": list(HELD_OUT)}}
                save_checkpoint(path_of(run, name, done), trainer.ema, card)
        if done in lengths() or done % 128 == 0:
            write_state(file, {"step": done, **{name: trainer.state() for name, trainer in trainers.items()}})


def lengths() -> list[int]:
    """Steps after which the networks are scored: the last one, a half of it, and so on."""
    halves = [TRAIN["steps"] >> half for half in range(TRAIN["steps"].bit_length())]
    return [steps for steps in halves if steps >= SHORTEST][::-1]


def path_of(run: Path, name: str, steps: int) -> Path:
    return run / f"{name.replace(' ', '')}_{steps * TRAIN['batch']}.safetensors"


def validation(images: Path) -> list[tuple[str, torch.Tensor]]:
    """(contrast, slice) at scale 1, nearly real as after the phase rule, SIDE x SIDE complex64; no FLAIR."""
    full = [case for contrast in SIGMA_N if contrast != "flair" for case in validation_scan(images, contrast)]
    found = []
    for number, case in enumerate(full):
        image = torch.from_numpy(case.truth)
        for axis in (0, 1):
            image = crop_or_pad(image, SIDE, axis)
        phase = smooth_field((SIDE, SIDE), 0.15, torch.Generator().manual_seed(number))
        found.append((case.contrast, torch.polar(image, phase)))
    return found


@torch.no_grad()
def denoising_errors(denoiser: Denoiser, slices: Sequence[tuple[str, torch.Tensor]], sigma: float) -> list[float]:
    """Of each slice: rms of D(x + sigma n; sigma) - x per real channel, over sigma. The noise is the same for all."""
    found = []
    for number, (contrast, image) in enumerate(slices):
        noise = complex_noise((1, *image.shape), torch.Generator().manual_seed(number))
        off = denoiser(image + sigma * noise, torch.tensor([sigma]), denoiser.one_hot([contrast])) - image
        found.append(float(torch.view_as_real(off).square().mean().sqrt()) / sigma)
    return found


def parameters(denoiser: Denoiser) -> int:
    return sum(value.numel() for value in denoiser.parameters())


def scored(slices: Sequence[tuple[str, torch.Tensor]], run: Path) -> list[dict]:
    """A row for each network and number of images: `errors` by sigma, and `all`, their geometric mean."""
    lines, found = ScoreLines(run / "scores.jsonl"), []
    paths = {(name, n): path_of(run, name, n) for n in lengths() for name in WIDTHS}
    for (name, steps), path in {**paths, ("ships", 0): None}.items():
        checkpoint = load_checkpoint(path)

        def score(denoiser=checkpoint.denoiser) -> dict:
            errors = {sigma: denoising_errors(denoiser, slices, sigma) for sigma in SIGMAS}
            return {f"{sigma:g}": math.sqrt(sum(e * e for e in errors[sigma]) / len(slices)) for sigma in SIGMAS}

        errors = lines.get({"model": checkpoint.model_id, "slices": len(slices)}, score)
        images_seen = steps * TRAIN["batch"] or checkpoint.card["history"]["images"]
        whole = math.exp(sum(map(math.log, errors.values())) / len(errors))
        count = parameters(checkpoint.denoiser)
        found.append({"name": name, "parameters": count, "images": images_seen, "errors": errors, "all": whole})
    return found


def law(fit: np.ndarray, parameters: float, images: float) -> float:
    """floor + a parameters^-p + b images^-q, parameters in 1e5 and images in 1e4; fit: the logarithms of the five."""
    floor, a, p, b, q = np.exp(fit)
    return float(floor + a * (parameters / 1e5) ** -p + b * (images / 1e4) ** -q)


def fitted(rows: Sequence[dict]) -> np.ndarray:
    """The law (Hoffmann et al., 2022) with the least squares of the logarithm's errors."""

    def off(fit: np.ndarray) -> list[float]:
        return [math.log(law(fit, row["parameters"], row["images"]) / row["all"]) for row in rows]

    lowest = min(row["all"] for row in rows)
    starts = [np.log([0.8 * lowest, a, p, a, p]) for a in (0.05, 0.2) for p in (0.3, 0.8)]
    return min((least_squares(off, start, max_nfev=FITTING) for start in starts), key=lambda found: found.cost).x


def told(own: Sequence[dict], ships: dict) -> list[list[str]]:
    """What the law says, fitted to the last doublings, of the model that ships, which it was not fitted to, and of the
    source paper's network."""
    longest, last = max(row["images"] for row in own), max(row["parameters"] for row in own)
    lines = [["doublings", "floor", "the model that ships (measured)", f"{last:,} parameters, its images",
              "its parameters, images of the last", f"{PAPER[0]:,} parameters, {PAPER[1]:,} images"]]  # fmt: skip
    for doublings in (3, 4, 5):
        fit = fitted([row for row in own if row["images"] > longest >> doublings])
        places = [(last, ships["images"]), (ships["parameters"], longest), PAPER]
        lines.append(
            [
                f"{doublings}",
                f"{np.exp(fit[0]):.3f}",
                f"{law(fit, ships['parameters'], ships['images']):.3f} ({ships['all']:.3f})",
                *(f"{law(fit, *place):.3f}" for place in places),
            ]
        )
    return lines


def report(rows: Sequence[dict], out: Path) -> None:
    """table.csv, table.md and capacity.png."""
    heads = ["network", "parameters", "images", *(f"sigma {sigma:g}" for sigma in SIGMAS), "all"]
    cells = [
        [row["name"], f"{row['parameters']:,}", f"{row['images']:,}",
         *(f"{error:.4f}" for error in row["errors"].values()), f"{row['all']:.4f}"] for row in rows
    ]  # fmt: skip
    *own, ships = rows
    text = ["Error over sigma; all: geometric mean over the levels.", "", *markdown([heads, *cells]), ""]
    text += ["What the law floor + a parameters^-p + b images^-q says when it is fitted to the last doublings:", ""]
    write_tables(out, [heads, *cells], "\n".join([*text, *markdown(told(own, ships))]))
    picture(own, ships, out / "capacity.png")


def picture(own: Sequence[dict], ships: dict, path: Path) -> None:
    """Error against images, a line for each network; against parameters, a line for each level."""
    figure = Figure((9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in WIDTHS:
        line = [row for row in own if row["name"] == name]
        left.plot([row["images"] for row in line], [row["all"] for row in line], "o-", label=name)
    left.plot(ships["images"], ships["all"], "k*", label="the model that ships")
    left.set(xscale="log", xlabel="images seen", ylabel="error over sigma, all levels")
    longest = max(row["images"] for row in own)
    last = [row for row in own if row["images"] == longest]
    for sigma in SIGMAS:
        errors = [row["errors"][f"{sigma:g}"] for row in last]
        (line,) = right.plot([row["parameters"] for row in last], errors, "o-", label=f"sigma {sigma:g}")
        right.plot(ships["parameters"], ships["errors"][f"{sigma:g}"], "*", color=line.get_color())
    right.set(xscale="log", xlabel=f"parameters, after {longest:,} images (star: ships)", ylabel="error over sigma")
    for axis in (left, right):
        axis.legend(fontsize="small")
        axis.set_ylim(0)
    save_figure(path, figure, 110)


def main() -> None:
    parser = module_parser(__doc__, "data", "images")
    parser.add_argument("--run", type=Path, required=True, help="folder of networks and scores; gone on with if there")
    parser.add_argument("--out", type=Path, required=True, help="folder for table and plot")
    args = parser.parse_args()
    slices = validation(args.images)  # what is missing is said before hours of training
    trained(args.data, args.run)
    report(scored(slices, args.run), args.out)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
