"""Small infarcts on noisy DWI: `python -m dpmtrain.evaluate.foci --scans FOLDER --out OUT`.

FOLDER holds NAME.h5, one slice each, with NAME_truth.npy; foci.npy: a row, column and radius in pixels for each focus;
mask.npy: where to score. Contrast of a focus: mean within its radius less the median of the ring 3 to 5 pixels away,
over the truth's. CG-SENSE, the model that ships and others, each by its card. Within 3 spreads, with --spread: foci
at whose centre pixel the truth is. A picture of all. For testing alone: nothing is chosen on such scans.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from dpmrecon.api import load_model, reconstruct_scan
from dpmrecon.errors import BadInputError
from dpmrecon.prior.checkpoint import Checkpoint

from ..arguments import exit_code, module_parser
from ..files import save_figure
from .metrics import Moments, nrmse, scan_factor
from .pictures import Shown, panels
from .tables import show

RING = (3.0, 5.0)  # pixels from the centre
HEADS = ["scan", "image", "NRMSE", "contrast: mean", "lowest", "highest", "within 3 spreads"]
SPREADS = 3


def contrasts(image: np.ndarray, foci: np.ndarray) -> np.ndarray:
    """(foci,) of a magnitude (rows, cols)."""
    down, along = np.indices(image.shape)

    def one(row: float, col: float, radius: float) -> float:
        away = np.hypot(down - row, along - col)
        return float(image[away <= radius].mean() - np.median(image[(away >= RING[0]) & (away <= RING[1])]))

    return np.array([one(*focus) for focus in foci])


def read(path: Path) -> np.ndarray:
    """Raises BadInputError where there is no array."""
    try:
        return np.squeeze(np.load(path))
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"{path} cannot be read ({error}): --scans is a folder of NAME.h5, NAME_truth.npy, foci.npy and mask.npy"
        ) from error


class Image(NamedTuple):
    """Magnitude and, of mode uncertainty, its spread: (rows, cols)."""

    name: str
    magnitude: np.ndarray
    spread: np.ndarray | None = None


def images_of(path: Path, checkpoints: list[Checkpoint], mode: str) -> Iterator[Image]:
    """CG-SENSE, then of each model."""
    for number, checkpoint in enumerate(checkpoints):
        (found,) = reconstruct_scan(path, model=checkpoint, mode=mode, gate="off", fallback=False)
        if found.missing is not None:
            raise BadInputError(f"{path}: its slice has no image ({found.missing})")
        if number == 0:
            yield Image("CG-SENSE", np.abs(found.conventional))
        yield Image(checkpoint.model_id, np.abs(found.image), found.std)


def covered(image: np.ndarray, spread: np.ndarray, truth: np.ndarray, foci: np.ndarray) -> int:
    """Foci at whose centre pixel the truth lies within SPREADS spreads; all on one scale."""
    rows, cols = np.rint(foci[:, :2]).astype(int).T
    return int((np.abs(image - truth)[rows, cols] <= SPREADS * spread[rows, cols]).sum())


def main() -> None:
    parser = module_parser(__doc__, "out")
    parser.add_argument("--scans", type=Path, required=True, help="folder of scans, truths, foci.npy and mask.npy")
    parser.add_argument("--checkpoint", type=Path, nargs="*", default=[], help="compared with the one that ships")
    parser.add_argument("--spread", action="store_true", help="mode uncertainty, which takes 17 times as long")
    args = parser.parse_args()
    foci, mask = np.atleast_2d(read(args.scans / "foci.npy")), read(args.scans / "mask.npy") > 0
    paths = sorted(args.scans.glob("*.h5"))
    if not paths:
        raise BadInputError(f"{args.scans} has no scan NAME.h5: give the folder of such scans as --scans")
    checkpoints = [load_model(path, "cpu") for path in (None, *args.checkpoint)]
    pictures: list[list[Shown]] = []

    def rows() -> Iterator[list[str]]:
        for path in paths:
            truth = read(path.with_name(f"{path.stem}_truth.npy")).astype(np.float32)
            whole = contrasts(truth, foci)
            pictures.append([(f"{path.stem}: truth", truth, 0.0, float(truth.max()))])
            for name, image, spread in images_of(path, checkpoints, "uncertainty" if args.spread else "fast"):
                factor = np.float32(scan_factor([Moments.of(image, truth, mask)]))
                found = factor * image
                kept = contrasts(found, foci) / whole
                pictures[-1].append((name, found, 0.0, float(truth.max())))
                figures = [f"{value:.3f}" for value in (kept.mean(), kept.min(), kept.max())]
                inside = ""
                if spread is not None:
                    inside = f"{covered(found, factor * spread, truth, foci)} of {len(foci)}"
                yield [path.stem, name, f"{nrmse(found[mask], truth[mask]):.4f}", *figures, inside]

    show(HEADS, rows())
    save_figure(args.out / "foci.png", panels(pictures), 100)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
