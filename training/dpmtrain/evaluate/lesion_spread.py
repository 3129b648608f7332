"""Whether a map of lesion scale tells more: `python -m dpmtrain.evaluate.lesion_spread --images DATA --out DIR`.

The uncertainty mode's image and samples of the lesion evaluation's scans, with lesions. Spread of the samples and error
of the image in single pixels, and in local means (a disc of DISC_MM). Compared as forecasts of the local mean's error:
the samples' spread of local means, which a map of its own would show; the local mean of the pixels' spread, which a
reader sees in image_2. V/B: squared spread over squared error, summed over the head. Rank: Spearman's correlation with
the absolute error of the local mean, in the head. Within 3: lesions whose truth lies within three spreads, of the
centre pixel and of the local mean there.
Writes a table in markdown and CSV.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dpmrecon.api import load_model
from dpmrecon.errors import DpmreconError
from dpmrecon.options import Options
from dpmrecon.prior.checkpoint import UNCERTAINTY, Checkpoint
from dpmrecon.recon.plan import sampling_of
from scipy import ndimage, stats

from ..arguments import at_least, exit_code, module_parser, words
from .lesion_scores import Lesion
from .lesions import CONTRASTS, HEAD, PIXEL_MM, Pair, R, pair_of
from .methods import label_for, reconstructed
from .metrics import Moments, scan_factor
from .references import CPU
from .tables import fields_of, write_tables

DISC_MM = 5.0


@dataclass(frozen=True)
class SpreadRow:
    """Of all draws of a condition: V/B of pixels and of local means; rank correlation of both forecasts with the local
    mean's error; the share of lesions within 3 spreads by either."""

    contrast: str
    snr: float
    vb_pixel: float
    vb_local: float
    rank_pixel: float
    rank_local: float
    within_pixel: float
    within_local: float


def local_mean(images: np.ndarray) -> np.ndarray:
    """(..., rows, cols): over a disc of DISC_MM."""
    disc = Lesion(2, 2, DISC_MM / 2 / PIXEL_MM, 1.0).fraction((5, 5))
    kernel = disc / disc.sum()
    return ndimage.correlate(images, kernel[(None,) * (images.ndim - 2)], mode="constant")


def figures(image: np.ndarray, samples: np.ndarray, truth: np.ndarray, lesions: Sequence[Lesion]) -> np.ndarray:
    """One draw's (V and B of pixels, V and B of local means, rank of pixels, of local means, lesions within 3 by
    pixels, by local means).

    image: (rows, cols), samples: (samples, rows, cols), magnitudes on the truth's scale.
    """
    head = truth > HEAD
    spread = samples.std(0, ddof=1)
    local, local_truth = local_mean(samples), local_mean(truth)
    local_spread = local.std(0, ddof=1)
    error, local_error = np.abs(image - truth), np.abs(local_mean(image) - local_truth)
    sums = [np.square(array[head]).sum() for array in (spread, error, local_spread, local_error)]
    ranks = [
        float(stats.spearmanr(forecast[head], local_error[head]).statistic)
        for forecast in (local_mean(spread), local_spread)
    ]
    centres = tuple(np.array([(round(lesion.row), round(lesion.col)) for lesion in lesions]).T)
    within = [
        float(np.mean(apart[centres] <= 3 * by[centres]))
        for apart, by in ((error, spread), (local_error, local_spread))
    ]
    return np.array([*sums, *ranks, *within])


def drawn(pair: Pair, contrast: str, checkpoint: Checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes of the uncertainty mode's image and samples with lesions, on the truth's scale by one factor."""
    options = Options(mode=UNCERTAINTY)
    sampling = sampling_of(options, checkpoint, CPU, label_for(checkpoint, contrast), R, keep_samples=True)
    item = reconstructed(pair.mapped[0], checkpoint, contrast, sampling)
    if item.fallback or item.draws is None:
        raise DpmreconError(f"a slice of {contrast} has no samples: {item.fallback or 'the mode keeps none'}")
    image, truth = item.image.abs().numpy(), pair.truths[0]
    factor = scan_factor([Moments.of(image, truth, np.ones(truth.shape, bool))])
    return factor * image, factor * item.draws.abs().numpy()


def row_of(images: Path, contrast: str, snr: float, draws: int, checkpoint: Checkpoint) -> SpreadRow:
    found = []
    for draw in range(draws):
        pair = pair_of(images, contrast, snr, draw)
        found.append(figures(*drawn(pair, contrast, checkpoint), pair.truths[0], pair.lesions))
    spread, error, local_spread, local_error = np.sum(found, 0)[:4]
    return SpreadRow(contrast, snr, spread / error, local_spread / local_error, *np.mean(found, 0)[4:].tolist())


def main() -> None:
    parser = module_parser(__doc__, "images", "out")
    parser.add_argument("--contrasts", default="dwi,flair,t1", help="labels, with commas between them")
    parser.add_argument("--snr", type=float, nargs="+", default=(5.0, 10.0, 20.0))
    parser.add_argument("--draws", type=int, default=4, help="of the noise: 12 lesions each")
    args = parser.parse_args()
    at_least(args, draws=1)
    checkpoint = load_model(None, "cpu")
    conditions = [(contrast, snr) for contrast in words("--contrasts", args.contrasts, CONTRASTS) for snr in args.snr]
    rows = []
    for contrast, snr in conditions:
        rows.append(row_of(args.images, contrast, snr, args.draws, checkpoint))
        print(rows[-1], flush=True)
    heads = ["contrast", "SNR", "V/B: pixels", "local means", "rank: pixels' spread", "local means' spread"]
    table = [[*heads, "within 3: pixels", "local means"]]
    table += [
        [row.contrast, f"{row.snr:g}", *(f"{value:.2f}" for value in list(vars(row).values())[2:])] for row in rows
    ]
    title = f"# Spread of pixels and of {DISC_MM:g} mm, R = {R}, {args.draws} draws, {checkpoint.model_id}"
    write_tables(args.out, fields_of(SpreadRow, rows, digits=4), title, table)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
