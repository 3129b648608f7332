"""What spreads a small lesion's contrast: `python -m dpmtrain.evaluate.lesion_noise --images DATA`.

The noise of the data, or that of the sampler? Bright discs of 1 and 1.5 pixels' radius painted into the slice of the
lesion evaluation, R = 4. Contrast: of the one image, as a reader sees it, over the truth's. Over lesions and draws of
the data's noise: mean; deviation, that is the standard deviation; lowest and highest of a draw's lesions, the mean over
draws. Sampler: standard deviation of a lesion's contrast over samples of the same data. Mean / deviation is what a
change of the contrast's scale alone leaves as it is. The first row of each is the bound: the matched filter of an
observer who knows all but the lesion's height, whose deviation no unbiased one has less of.
"""

import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.recon.types import MappedSlice

from ..arguments import at_least, changes_from, exit_code, module_parser
from .lesion_scores import Lesion, contrast, painted
from .lesions import UNTUNED, R, data_of, methods, noise_of, scan_of, sites, tissue_of
from .methods import by_card
from .metrics import nrmse, on_scale
from .score_lines import ScoreLines
from .tables import show

RADII = (1.0, 1.5)
BOUND = "bound: all but its height known"
HEADS = ["contrast", "SNR", "height", "method", "NRMSE", "mean", "deviation", "lowest", "highest", "sampler",
         "mean / deviation"]  # fmt: skip


def case_of(
    images: Path, label: str, snr: float, height: float, draw: int
) -> tuple[MappedSlice, np.ndarray, list[Lesion]]:
    """(scan, truth, lesions); from draw to draw the radii change places."""
    tissue = tissue_of(images, label)
    order = np.random.default_rng([draw, 7]).permutation(sites(tissue))
    lesions = [Lesion(float(r), float(c), RADII[n % len(RADII)], height) for n, (r, c) in enumerate(order)]
    seed = zlib.crc32(f"{label} {draw} {snr:g}".encode())
    return *scan_of(painted(tissue, lesions), noise_of(tissue, snr), seed), lesions


def kept(image: torch.Tensor, truth: np.ndarray, lesions: list[Lesion]) -> tuple[list[float], float]:
    """The contrast of each lesion over the truth's, and the NRMSE."""
    found = on_scale(image.abs().numpy(), truth)
    return [contrast(found, lesion) / contrast(truth, lesion) for lesion in lesions], nrmse(found, truth)


def with_changes(
    mapped: MappedSlice, checkpoint: Checkpoint, label: str, changes: Mapping[str, float | int]
) -> torch.Tensor:
    """(samples, rows, cols) by the card's samples and settings with these changes."""
    found = by_card(mapped, checkpoint, label, changes, keep_samples=True)
    assert found.draws is not None
    return found.draws


def bound(mapped: MappedSlice, truth: np.ndarray, lesions: list[Lesion]) -> np.ndarray:
    """(lesions,): the least standard deviation of each lesion's contrast, over the truth's, where all else is known
    (Cramer-Rao): sigma_n over the norm of what the lesion adds to the data."""

    def norm(lesion: Lesion) -> float:
        change = lesion.height * lesion.fraction(truth.shape)
        added = torch.from_numpy((truth * change / (1 + change)).astype(np.complex64))
        return float(torch.linalg.vector_norm(mapped.model.forward(added)))

    return mapped.data.sigma_n / np.array([norm(lesion) for lesion in lesions])


def row(drawn: list[dict]) -> list[str]:
    """Of all draws of a method."""
    ratios = np.array([score["kept"] for score in drawn])
    mean, deviation = ratios.mean(), ratios.std()
    samples = np.array([score["samples"] for score in drawn])
    sampler = f"{np.sqrt(samples.var(1, ddof=1).mean()):.3f}" if samples.shape[1] > 1 else "-"
    extremes = (ratios.min(1).mean(), ratios.max(1).mean())
    error = np.mean([score["nrmse"] for score in drawn])
    figures = [f"{value:.2f}" for value in (mean, deviation, *extremes)]
    return [f"{error:.4f}", *figures, sampler, f"{mean / deviation:.2f}"]


def main() -> None:
    parser = module_parser(__doc__, "images")
    parser.add_argument("--contrast", default="dwi", help="label")
    parser.add_argument("--snr", type=float, nargs="+", default=(10.0, 20.0))
    parser.add_argument("--heights", type=float, nargs="+", default=(0.4, 0.8))
    parser.add_argument("--set", nargs="+", default=["{}"], help="changes to the card's samples and settings, in JSON")
    parser.add_argument("--draws", type=int, default=6, help="of the data's noise: 12 lesions each")
    parser.add_argument("--lines", type=Path, required=True, help="file of scores, with which a killed run goes on")
    args = parser.parse_args()
    at_least(args, draws=2)
    lines, checkpoint = ScoreLines(args.lines), load_model(None, "cpu")
    card = f"{zlib.crc32(json.dumps(checkpoint.card['sampling']).encode()):x}"

    changes_of = {text: changes_from(text) for text in args.set}

    def ours(text: str, mapped: MappedSlice) -> torch.Tensor:
        return with_changes(mapped, checkpoint, args.contrast, changes_of[text])

    def all_methods(snr: float) -> Iterator[tuple[str, str, partial]]:
        for name, setting, make in methods(args.images, args.contrast, snr, [], lines):
            if name != UNTUNED:
                yield name, setting, partial(lambda make, mapped: make(mapped)[None], make)
        for text in args.set:
            yield f"{checkpoint.model_id} {text}", card, partial(ours, text)

    def rows() -> Iterator[list[str]]:
        for snr, height in itertools.product(args.snr, args.heights):
            least = np.sqrt(np.mean(np.square(bound(*case_of(args.images, args.contrast, snr, height, 0)))))
            yield [args.contrast, f"{snr:g}", f"{height:g}", BOUND, "-", "1.00", f"{least:.2f}", "-", "-", "-",
                   f"{1 / least:.2f}"]  # fmt: skip
            for name, setting, make in all_methods(snr):
                drawn = []
                for draw in range(args.draws):
                    key = {"snr": snr, "height": height, "draw": draw, "method": name, "setting": setting}
                    key |= data_of(args.images, args.contrast)

                    def scored(snr=snr, height=height, draw=draw, make=make) -> dict:
                        mapped, truth, lesions = case_of(args.images, args.contrast, snr, height, draw)
                        samples = make(mapped)
                        ratios, error = kept(samples.mean(0), truth, lesions)
                        single = [kept(sample, truth, lesions)[0] for sample in samples]
                        return {"kept": ratios, "nrmse": error, "samples": single}

                    drawn.append(lines.get(key, scored))
                yield [args.contrast, f"{snr:g}", f"{height:g}", name, *row(drawn)]

    print(f"# Contrast of single small lesions, R = {R}, {args.draws} draws of the data's noise\n")
    show(HEADS, rows())


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
