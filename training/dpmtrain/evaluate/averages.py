"""How averages with a phase of their own are combined best: `python -m dpmtrain.evaluate.averages --images DATA`.

Prints a table of simulated DWI slices with small foci: b = 1000, the held-out label map, R = 2. Averages have a random
smooth phase each. SNR: median signal of the head over a real channel's noise; one average, fully sampled. Combinations:
the mean of k-space lines; each average sampled alone, magnitudes averaged; all in one problem, each with its own smooth
phase in the coil maps (`recon/phases.py`); the same with the true phases.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.data import Slice
from dpmrecon.physics.fourier import to_kspace
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.recon.types import MappedSlice

from ..arguments import exit_code, module_parser
from ..data.dataset import random_phase
from .methods import by_card
from .metrics import nrmse, on_scale
from .plan import CALIBRATION_LINES
from .references import CPU
from .tables import show
from .undersampling import regular, with_maps
from .validation import validation_scan

R = 2
SNRS, COUNTS = (5.0, 10.0), (2, 4)
FOCI, RADIUS, HEIGHT = 12, 1.5, 0.8  # number, pixels, of the tissue's signal
HEAD, DARK = 0.1, 0.35  # of the scale: what is head, and what of it is dark
HEADS = ["SNR", "averages", "combination", "NRMSE", "foci: mean", "foci: lowest", "bias where dark", "residual"]
Images = Callable[[], tuple[torch.Tensor, float]]


class Case:
    """A slice with foci and its averages; truth: (rows, cols) magnitude of scale about 1."""

    def __init__(self, images: Path, number: int, snr: float, count: int):
        generator = torch.Generator().manual_seed(1000 * number + count)
        full = validation_scan(images, "dwi")[number]
        coil_images = full.coil_images
        assert coil_images is not None  # of simulated slices they are kept
        tissue = torch.from_numpy(full.truth)
        self.foci = foci_in(full.truth, np.random.default_rng(number))
        raised = raised_by(self.foci, full.truth)
        self.truth = full.truth * raised
        level = float(np.median(self.truth[self.truth > HEAD])) / snr
        self.phases = [random_phase(tissue.shape, 1.0, generator) for _ in range(count)]
        self.averages: list[Slice] = []
        for phase in self.phases:
            kspace = to_kspace(coil_images * torch.from_numpy(raised) * phase)
            kspace = kspace + level * complex_noise(kspace.shape, generator)
            data = replace(full.data, kspace=kspace, calibration=kspace, sigma_n=level)
            self.averages.append(regular(data, R, CALIBRATION_LINES))

    def mean_of_lines(self) -> Slice:
        count = len(self.averages)
        kspace = torch.stack([data.kspace for data in self.averages]).mean(0)
        calibration = torch.stack([data.calibration for data in self.averages if data.calibration is not None]).mean(0)
        sigma_n = self.averages[0].sigma_n / count**0.5
        return replace(self.averages[0], kspace=kspace, calibration=calibration, sigma_n=sigma_n)

    def joint(self) -> Slice:
        return replace(self.averages[0], others=tuple(self.averages[1:]))

    def with_true_phases(self) -> MappedSlice:
        """As `joint`, each average's phase known but for the slice's own."""
        maps = mapped(self.averages[0])
        own = maps.model.coil_maps
        share = len(self.averages) ** -0.5
        relative = [phase * self.phases[0].conj() for phase in self.phases]
        kspace = share * torch.cat([data.kspace for data in self.averages])
        data = replace(self.averages[0], kspace=kspace, sigma_n=share * self.averages[0].sigma_n)
        return with_maps(data, CPU, share * torch.cat([own * phase for phase in relative]))


def foci_in(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(FOCI, 2) rows and columns inside the head, 12 pixels apart at least, where it is not dark."""
    inside = np.argwhere(truth > DARK)
    found: list[np.ndarray] = []
    middle = inside.mean(0)
    for place in rng.permutation(inside):
        near = np.abs(place - middle).max() < min(truth.shape) / 4
        if near and all(np.linalg.norm(place - other) > 12 for other in found):
            found.append(place)
        if len(found) == FOCI:
            break
    return np.array(found)


def distances(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.asarray(np.linalg.norm(grid - places[:, None, None], axis=-1))


def raised_by(places: np.ndarray, truth: np.ndarray) -> np.ndarray:
    inside = (distances(places, truth.shape) <= RADIUS).any(0)
    return np.where(inside, 1 + HEIGHT, 1).astype(np.float32)


def contrasts(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Of every focus: mean within RADIUS less the median of the ring 3 to 5 pixels away."""
    return np.array(
        [image[d <= RADIUS].mean() - np.median(image[(d >= 3) & (d <= 5)]) for d in distances(places, image.shape)]
    )


def mapped(data: Slice) -> MappedSlice:
    return with_maps(data, CPU)


def combinations(case: Case, checkpoint: Checkpoint) -> dict[str, Images]:
    def one(found: MappedSlice) -> tuple[torch.Tensor, float]:
        item = by_card(found, checkpoint, "dwi")
        return item.image.abs(), item.residual

    def apart() -> tuple[torch.Tensor, float]:
        parts = [one(mapped(data)) for data in case.averages]
        return torch.stack([image for image, _ in parts]).mean(0), parts[0][1]

    def sense_apart() -> tuple[torch.Tensor, float]:
        return torch.stack([mapped(data).conventional.abs() for data in case.averages]).mean(0), float("nan")

    return {
        "one average alone": lambda: one(mapped(case.averages[0])),
        "mean of lines": lambda: one(mapped(case.mean_of_lines())),
        "magnitudes of each": apart,
        "joint, own phases": lambda: one(mapped(case.joint())),
        "joint, true phases": lambda: one(case.with_true_phases()),
        "CG-SENSE, magnitudes of each": sense_apart,
        "CG-SENSE, joint": lambda: (mapped(case.joint()).conventional.abs(), float("nan")),
    }


def scores(image: np.ndarray, case: Case) -> list[float]:
    truth = case.truth
    image = on_scale(image, truth)
    ratio = contrasts(image, case.foci) / contrasts(truth, case.foci)
    dark = (truth > 0.02) & (truth < HEAD)
    bias = float((image - truth)[dark].mean() / np.median(truth[truth > HEAD]))
    return [nrmse(image, truth), float(ratio.mean()), float(ratio.min()), bias]


def main() -> None:
    parser = module_parser(__doc__, "images", "model")
    parser.add_argument("--snr", type=float, nargs="+", default=SNRS, help="of one average")
    parser.add_argument("--slices", type=int, default=2, help="validation slices, 3 at most")
    args = parser.parse_args()
    checkpoint = load_model(args.model, "cpu")

    def rows():
        for snr in args.snr:
            for count in COUNTS:
                cases = [Case(args.images, number, snr, count) for number in range(args.slices)]
                for name in combinations(cases[0], checkpoint):
                    found = [(case, *combinations(case, checkpoint)[name]()) for case in cases]
                    values = np.mean([[*scores(image.numpy(), case), residual] for case, image, residual in found], 0)
                    digits = (4, 2, 2, 3, 2)
                    yield [f"{snr:g}", str(count), name, *(f"{v:.{d}f}" for v, d in zip(values, digits))]

    print(f"# Averages of DWI with a phase each, R = {R}, {args.slices} slices, {checkpoint.model_id}\n")
    show(HEADS, rows())


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
