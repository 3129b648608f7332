"""What is left of small lesions: `python -m dpmtrain.evaluate.lesions --images DATA --out FOLDER`.

Validation slices (the held-out label map; FLAIR of patient09) of 128 x 128, 8 coils, R = 4, 24 calibration lines. SNR:
median signal of the head over the noise of a real channel, fully sampled. Lesions of 1 to 10 mm, bright and dark by
HEIGHT of the tissue's signal, one of each in a slice; from draw to draw they change places. Each draw of the noise is
reconstructed with the lesions and without. Weights of CG-SENSE, L1-wavelet and TV: best NRMSE of a draw of its own.

Contrast: what the lesions change within a lesion, less the median of that in the ring around, over the truth's; lowest:
of the twelve of a draw, the mean over draws. AUC: of a matched filter that knows lesion, place and tissue, over the
draws of each kind of lesion, the mean over kinds; over peer: less that of the best of CG-SENSE, L1-wavelet and TV; with
95 % intervals over the draws. Invented: peaks of half HEIGHT or more, seen by a matched filter in
the error of scans without lesions, in all draws. Gain, error: Re<r,t>/<t,t> and NRMSE from 3/4 of Nyquist on, without
lesions.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.errors import BadInputError
from dpmrecon.options import Options
from dpmrecon.physics.scale import image_scale
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.recon.plan import sampling_of
from dpmrecon.recon.types import MappedSlice, Sampling

from ..arguments import at_least, exit_code, module_parser, words
from ..files import save_figure
from . import baselines
from .lesion_scores import Lesion, bands, gain_and_nrmse, half_interval, invented, lesion_scores, order, painted, places
from .methods import label_for, reconstructed
from .metrics import nrmse, on_scale
from .pictures import Shown, panels
from .plan import CALIBRATION_LINES
from .references import CPU, digest_of
from .score_lines import ScoreLines
from .tables import show, write_csv
from .undersampling import with_maps
from .validation import acquire, at_pixel_size, validation_scan

CONTRASTS = ("dwi", "flair", "t1", "t2")
MATRIX, PIXEL_MM, R = (128, 128), 1.8, 4
OWN_PIXEL_MM = {"flair": 0.9}  # of the validation slices, else 1 mm
DIAMETERS_MM = (1, 2, 3, 4, 6, 10)
HEIGHT = 0.6
HEAD = 0.1  # of the scale
TUNING = 10**6  # draw of the weights
UNTUNED = "zero-filled"
HEADS = [
    "contrast",
    "SNR",
    "method",
    "draws",
    "NRMSE",
    "lesions: mean",
    "lowest",
    "AUC",
    "over peer",
    "invented",
    "gain",
    "error",
]
Make = Callable[[MappedSlice], torch.Tensor]


@dataclass(frozen=True)
class Pair:
    """One draw of the noise, with lesions and without."""

    lesions: list[Lesion]
    mapped: tuple[MappedSlice, MappedSlice]
    truths: tuple[np.ndarray, np.ndarray]

    def images(self, make: Make) -> tuple[np.ndarray, np.ndarray]:
        """Magnitudes, each on its truth's scale by one factor."""
        with_lesions, without = (
            on_scale(make(mapped).abs().numpy(), truth) for mapped, truth in zip(self.mapped, self.truths)
        )
        return with_lesions, without


@lru_cache
def tissue_of(images: Path, contrast: str) -> np.ndarray:
    """The slice without lesions, scale 1: that of the three validation slices with room for the most of them."""
    old = OWN_PIXEL_MM.get(contrast, 1.0)
    slices = [at_pixel_size(full.truth, old, PIXEL_MM, MATRIX) for full in validation_scan(images, contrast)]
    return max([(image / image_scale(image)).numpy() for image in slices], key=lambda tissue: len(sites(tissue)))


def data_of(images: Path, contrast: str) -> dict[str, str]:
    """What tells scores and weights from those of other images."""
    return {"contrast": contrast, "data": digest_of(tissue_of(images, contrast))}


def sites(tissue: np.ndarray) -> np.ndarray:
    return places(tissue, 2 * len(DIAMETERS_MM), DIAMETERS_MM[-1] / 2 / PIXEL_MM)


def pair_of(images: Path, contrast: str, snr: float, draw: int) -> Pair:
    """Raises BadInputError where the slice has no room for the lesions."""
    tissue = tissue_of(images, contrast)
    kinds = [(mm, sign) for mm in DIAMETERS_MM for sign in (1, -1)]
    found = sites(tissue)
    if len(found) < len(kinds):
        raise BadInputError(f"the {contrast} slice has room for {len(found)} of {len(kinds)} lesions: leave it out")
    order = np.random.default_rng([draw, zlib.crc32(contrast.encode())]).permutation(len(kinds))
    lesions = [
        Lesion(float(found[place][0]), float(found[place][1]), mm / 2 / PIXEL_MM, sign * HEIGHT)
        for (mm, sign), place in zip(kinds, order)
    ]
    sigma, seed = noise_of(tissue, snr), zlib.crc32(f"{contrast} {draw}".encode())  # phase and noise are equal in both
    scans = [scan_of(image, sigma, seed) for image in (painted(tissue, lesions), tissue)]
    return Pair(lesions, (scans[0][0], scans[1][0]), (scans[0][1], scans[1][1]))


def noise_of(tissue: np.ndarray, snr: float) -> float:
    """Standard deviation of a real channel, fully sampled."""
    return float(np.median(tissue[tissue > HEAD])) / snr


def scan_of(image: np.ndarray, sigma: float, seed: int) -> tuple[MappedSlice, np.ndarray]:
    """An acquisition at R of a magnitude, and its truth; sigma: of the noise, in the image's unit."""
    scale = image_scale(torch.from_numpy(image))
    generator = torch.Generator().manual_seed(seed)
    data, truth = acquire(torch.from_numpy(image), sigma / scale, R, CALIBRATION_LINES, generator)
    return with_maps(data, CPU), truth * np.float32(scale)


def scores(pair: Pair, make: Make) -> dict:
    """Of one draw: JSON values."""
    images = pair.images(make)
    return {
        "nrmse": nrmse(images[0], pair.truths[0]),
        "lesions": lesion_scores(images, pair.truths, pair.lesions),
        "invented": invented(images[1], pair.truths[1], HEIGHT / 2),
        "bands": bands(images[1], pair.truths[1]).tolist(),
    }


def ours(checkpoint: Checkpoint, contrast: str, sampling: Sampling) -> Make:
    def make(mapped: MappedSlice) -> torch.Tensor:
        return reconstructed(mapped, checkpoint, contrast, sampling).image

    return make


def zero_filled(mapped: MappedSlice) -> torch.Tensor:
    return mapped.model.combined(mapped.zero_filled)


def methods(
    images: Path, contrast: str, snr: float, checkpoints: Sequence[Checkpoint], lines: ScoreLines
) -> Iterator[tuple[str, str, Make]]:
    """(name, all that changes its scores, how it makes an image)."""
    yield UNTUNED, "", zero_filled
    wavelet_name, wavelet = baselines.wavelet_tool([MATRIX])
    conventional = {
        "CG-SENSE": (baselines.tuned_cg_sense, baselines.SENSE_WEIGHTS),
        wavelet_name: (wavelet, baselines.WAVELET_WEIGHTS),
        "TV (sigpy)": (baselines.total_variation, baselines.WAVELET_WEIGHTS),
    }
    for name, (run, start) in conventional.items():

        def tuned(run=run, start=start) -> dict:
            pair = pair_of(images, contrast, snr, TUNING)
            weight, _ = baselines.tuned_weight(
                lambda weight: scores(pair, lambda mapped: run(mapped, weight))["nrmse"], start
            )
            return {"weight": weight}

        weight = lines.get({"tuned": name, "snr": snr, **data_of(images, contrast)}, tuned)["weight"]
        yield name, f"weight {weight:g}", baselines.with_weight(run, weight)
    for checkpoint in checkpoints:
        sampling = sampling_of(Options(), checkpoint, CPU, label_for(checkpoint, contrast), R)
        settings = json.dumps(vars(sampling.settings))
        setting = f"{sampling.sampler}, {sampling.samples} samples, {settings}"
        yield checkpoint.model_id, setting, ours(checkpoint, contrast, sampling)


def orders(drawn: Sequence[dict]) -> np.ndarray:
    """(kinds of lesions, draws, draws): `order` of each kind."""
    return np.array(
        [
            order(*([score["lesions"][kind][side] for score in drawn] for side in ("present", "absent")))
            for kind in range(len(drawn[0]["lesions"]))
        ]
    )


def best_peer(drawn: dict[str, list[dict]], own: Sequence[str]) -> np.ndarray:
    """The `orders` of the conventional method with the highest AUC. drawn: by method; own: names of the models."""
    return max((orders(several) for name, several in drawn.items() if name not in (UNTUNED, *own)), key=np.mean)


def over_peer(drawn: Sequence[dict], peer: np.ndarray) -> dict[str, float]:
    """By how much the AUC of one method is over that of `best_peer`."""
    over = (orders(drawn) - peer).mean(0)
    return {"over peer": float(over.mean()), "over peer interval": half_interval(over)}


def summary(drawn: Sequence[dict]) -> dict[str, float]:
    """Over the draws of one method, with the contrast and AUC of each kind of lesion beside."""
    kinds = [f"{sign}{mm} mm" for mm in DIAMETERS_MM for sign in "+-"]
    kept = np.array([[lesion["contrast"] for lesion in score["lesions"]] for score in drawn])
    seen = orders(drawn)
    by_band = gain_and_nrmse(np.sum([score["bands"] for score in drawn], 0))
    return {
        "draws": len(drawn),
        "NRMSE": float(np.mean([score["nrmse"] for score in drawn])),
        "mean": float(kept.mean()),
        "lowest": float(kept.min(1).mean()),
        "AUC": float(seen.mean()),
        "AUC interval": half_interval(seen.mean(0)),
        "invented": sum(score["invented"] for score in drawn),
        **{f"gain {number}": gain for number, (gain, _) in enumerate(by_band)},
        **{f"error {number}": error for number, (_, error) in enumerate(by_band)},
        **{f"contrast {kind}": float(value) for kind, value in zip(kinds, kept.mean(0))},
        **{f"AUC {kind}": float(value) for kind, value in zip(kinds, seen.mean((1, 2)))},
    }


def report(found: Sequence[tuple[str, float, str, dict[str, float]]], out: Path) -> None:
    """table.csv with all figures, lesions.png, and a table that is printed."""
    lines = [[contrast, f"{snr:g}", name, *(f"{v:.4g}" for v in s.values())] for contrast, snr, name, s in found]
    write_csv(out / "table.csv", [["contrast", "SNR", "method", *found[0][3]], *lines])

    def rows() -> Iterator[list[str]]:
        for contrast, snr, name, s in found:
            kept = [f"{s[key]:.2f}" for key in ("mean", "lowest")]
            seen = [
                f"{s['AUC']:.3f} ± {s['AUC interval']:.3f}",
                f"{s['over peer']:+.3f} ± {s['over peer interval']:.3f}",
            ]
            last = [f"{s['invented']:g}", f"{s['gain 3']:.2f}", f"{s['error 3']:.2f}"]
            yield [contrast, f"{snr:g}", name, f"{s['draws']:g}", f"{s['NRMSE']:.4f}", *kept, *seen, *last]

    show(HEADS, rows())


def picture(images: Path, contrasts: Sequence[str], snr: float, found: dict[str, dict[str, Make]], path: Path) -> None:
    """Truth and images of one draw with lesions, a row for each contrast."""
    rows: list[list[Shown]] = []
    for contrast in contrasts:
        pair = pair_of(images, contrast, snr, 0)
        shown = {f"{contrast}: truth": pair.truths[0]}
        shown |= {name: pair.images(make)[0] for name, make in found[contrast].items()}
        rows.append([(title, image, 0.0, 1.3) for title, image in shown.items()])
    save_figure(path, panels(rows), 100)


def main() -> None:
    parser = module_parser(__doc__, "images", "out")
    parser.add_argument("--checkpoint", type=Path, nargs="*", default=[], help="compared with the one that ships")
    parser.add_argument("--contrasts", default="dwi,flair,t1", help="labels, with commas between them")
    parser.add_argument("--snr", type=float, nargs="+", default=(5.0, 10.0, 20.0, 50.0))
    parser.add_argument("--draws", type=int, default=17, help="of the noise: 12 lesions each, there and not there")
    args = parser.parse_args()
    at_least(args, draws=2)
    contrasts = words("--contrasts", args.contrasts, CONTRASTS)
    args.out.mkdir(parents=True, exist_ok=True)
    lines = ScoreLines(args.out / "scores.jsonl")
    checkpoints = [load_model(path, "cpu") for path in (None, *args.checkpoint)]
    conditions = [(contrast, snr) for contrast in contrasts for snr in args.snr]
    drawn: dict[tuple[str, float], dict[str, list[dict]]] = {}
    makes: dict[str, dict[str, Make]] = {}
    for draw in range(args.draws):
        for contrast, snr in conditions:
            pair: Pair | None = None
            for name, setting, make in methods(args.images, contrast, snr, checkpoints, lines):
                if snr == args.snr[len(args.snr) // 2 - 1]:
                    makes.setdefault(contrast, {})[name] = make
                key = {"snr": snr, "draw": draw, "method": name, "setting": setting}
                key |= data_of(args.images, contrast)
                if key not in lines:
                    pair = pair or pair_of(args.images, contrast, snr, draw)
                score = lines.get(key, lambda pair=pair, make=make: scores(pair, make))  # type: ignore[misc]
                drawn.setdefault((contrast, snr), {}).setdefault(name, []).append(score)
    own = [checkpoint.model_id for checkpoint in checkpoints]
    found = []
    for condition, by_method in sorted(drawn.items()):
        peer = best_peer(by_method, own)
        found += [
            (*condition, name, {**summary(several), **over_peer(several, peer)}) for name, several in by_method.items()
        ]
    print(f"# Lesions of {DIAMETERS_MM[0]} to {DIAMETERS_MM[-1]} mm, height {HEIGHT:g}, R = {R}\n")
    report(found, args.out)
    picture(args.images, contrasts, args.snr[len(args.snr) // 2 - 1], makes, args.out / "lesions.png")


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
