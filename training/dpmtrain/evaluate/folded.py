"""Heads larger than the field of view, and few calibration lines: `python -m dpmtrain.evaluate.folded --images DATA`.

Prints tables in markdown. A phantom folds into fields of view 22, 7 and 3 % too small, or fits: NRMSE of this and of
BART's L1-wavelet with one and two sets of maps. Each weight is the best for that very slice. Then CG-SENSE on
validation slices by the maps of 8 to 24 calibration lines: with a kernel of 6, as chosen, and BART's with a kernel of
4. NRMSE with one least-squares factor a slice, over the whole field of view.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.data import Slice
from dpmrecon.physics.coil_maps import estimate_coil_maps
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.slices import slice_points, the_object

from ..arguments import exit_code, module_parser
from .baselines import WAVELET_WEIGHTS, bart_maps, bart_pics, tuned_weight
from .methods import by_card
from .metrics import nrmse
from .references import CPU, simulated
from .tables import show
from .undersampling import regular, with_maps
from .validation import SIGMA_N, validation_scan

PARTS = (0.78, 0.93, 0.97, 1.15)  # the field of view over the head's extent along the lines
PIXEL_MM = 0.9
FOLDED_HEADS = ["scan", "R", "BART, one map", "BART, two maps", "CG-SENSE", "DPM", "DPM / BART two", "residual", "sets"]


def head_mm(settings: SimulationSettings) -> float:
    """How far the head reaches along the lines."""
    magnitude = the_object(settings).magnitude(slice_points(settings, 0, 1, 1, 0.0), settings.contrast)
    seen = np.flatnonzero((magnitude > 0.05 * magnitude.max()).any(1))
    return float(seen[-1] - seen[0] + 1) * settings.pixel_mm[0]


def folded_scan(contrast: str, acceleration: int, subject: int, part: float) -> tuple[Slice, np.ndarray]:
    """A head of which the field of view along the lines holds `part`."""
    known = SimulationSettings(contrast=contrast, subject=subject, n_slices=1, fov_mm=(256.0, 230.0))
    rows = 2 * round(part * head_mm(known) / PIXEL_MM / 2)
    settings = SimulationSettings(
        contrast=contrast,
        subject=subject,
        n_slices=1,
        matrix=(rows, 256),
        fov_mm=(rows * PIXEL_MM, 256 * PIXEL_MM),
        acceleration=acceleration,
        noise=SIGMA_N[contrast],
        wrap=True,
    )
    (data,), truth = simulated(settings)
    assert isinstance(data, Slice)
    return data, truth[0]


def best_wavelet(data: Slice, truth: np.ndarray, options: str) -> float:
    """NRMSE of L1-wavelet on BART's maps with this slice's best weight."""
    assert data.calibration is not None
    maps = bart_maps(data.calibration, (len(data.mask), data.mask.shape[1]), options)

    def error(weight: float) -> float:
        image = bart_pics(data.kspace, maps, weight).reshape(-1, *data.mask.shape)
        return nrmse(torch.linalg.vector_norm(image, dim=0).numpy(), truth)

    weight, tried = tuned_weight(error, WAVELET_WEIGHTS)
    return tried[weight]


def folded_rows(checkpoint: Checkpoint, part: float) -> Iterator[list[str]]:
    """The first table, row by row."""
    for contrast in ("t1", "t2", "flair"):
        for acceleration in (2, 4):
            for subject in (0, 1):
                data, truth = folded_scan(contrast, acceleration, subject, part)
                item = by_card(with_maps(data, CPU), checkpoint, contrast)
                score = partial(nrmse, truth=truth)
                ours = score(item.image.abs().numpy())
                conventional = score(item.mapped.model.combined(item.mapped.conventional).abs().numpy())
                one, two = (best_wavelet(data, truth, f"-m{n}") for n in (1, 2))
                numbers = (one, two, conventional, ours)
                yield [
                    f"{contrast}, subject {subject}",
                    str(acceleration),
                    *(f"{value:.4f}" for value in numbers),
                    f"{ours / two:.2f}",
                    f"{item.residual:.2f}",
                    str(item.mapped.n_sets),
                ]


def few_lines_rows(images: Path) -> Iterator[list[str]]:
    """The second table, row by row."""
    ways: dict[str, Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]] = {
        "6": partial(estimate_coil_maps, kernel=6),
        "chosen": estimate_coil_maps,
        # BART 0.8 misplaces an odd number of lines: it gets one fewer
        "BART": lambda block, shape: bart_maps(block, shape, f"-m1 -k4 -r24:{block.shape[1] // 2 * 2}:1 -c.9"),
    }
    for acceleration in (2, 4):
        for lines in (8, 9, 10, 11, 12, 13, 14, 16, 20, 24):
            cells = []
            for contrast in ("flair", "t1", "dwi"):
                full = validation_scan(images, contrast)[1]
                data = regular(full.data, acceleration, lines)
                assert data.calibration is not None
                rows, cols = data.mask.shape
                for maps in ways.values():
                    mapped = with_maps(data, CPU, maps(data.calibration, (rows, cols)))
                    cells.append(f"{nrmse(full.picture(mapped.conventional), full.truth):.3f}")
            yield [str(acceleration), str(lines), *cells]


def main() -> None:
    args = module_parser(__doc__, "images", "model").parse_args()
    checkpoint = load_model(args.model, "cpu")
    for part in PARTS:
        print(f"## {f'Field of view {1 - part:.0%} too small' if part < 1 else 'Heads inside the field of view'}\n")
        show(FOLDED_HEADS, folded_rows(checkpoint, part))
        print()
    print("## CG-SENSE by maps of few calibration lines: kernel 6, as chosen, BART -k4\n")
    ways = [f"{contrast} {way}" for contrast in ("FLAIR", "T1", "DWI") for way in ("6", "chosen", "BART")]
    show(["R", "lines", *ways], few_lines_rows(args.images))


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
