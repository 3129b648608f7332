"""How far the prior is trusted: `python -m dpmtrain.evaluate.trust --images DATA`.

The sampler takes the data's noise to be noise_factor * sigma_n + model_error. NRMSE and coherent gain beyond 3/4 of
Nyquist on validation slices, by contrast, R and noise, with pairs of the two; and with the pair that the scan itself
chooses, without a truth: every HELD_BACK-th line outside the calibration is kept back; the pair that tells its samples
best is taken (after Yaman et al., MRM 2020). One sample each.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.recon.held_back import held_back
from dpmrecon.recon.types import MappedSlice

from ..arguments import exit_code, module_parser, words
from . import validation
from .lesion_scores import bands, gain_and_nrmse
from .methods import by_card
from .metrics import nrmse, on_scale
from .plan import CALIBRATION_LINES, Condition
from .scoring import Undersampled
from .tables import show
from .undersampling import with_maps

Pair = tuple[float, float]
HELD_BACK = 5


def image_of(mapped: MappedSlice, checkpoint: Checkpoint, contrast: str, pair: Pair | None):
    """The reconstruction, by one sample; pair: noise_factor and model_error, None for the card's."""
    changes = {} if pair is None else dict(zip(("noise_factor", "model_error"), pair))
    return by_card(mapped, checkpoint, contrast, changes, samples=1)


def lines_kept_back(mapped: MappedSlice) -> list[int]:
    """Of the acquired ones outside the calibration."""
    mask = mapped.model.mask
    rows = torch.nonzero(mask.amax(1)).flatten().tolist()
    away = [row for row in rows if abs(row - len(mask) // 2) > CALIBRATION_LINES // 2]
    return away[HELD_BACK // 2 :: HELD_BACK]


def chosen_pair(mapped: MappedSlice, checkpoint: Checkpoint, contrast: str, pairs: list[Pair]):
    """The pair whose image, made without some lines, is nearest to these lines."""
    data = mapped.data
    held = held_back(mapped, lines_kept_back(mapped))
    left = 1 - held.left_out.mask
    fewer = with_maps(
        replace(data, kspace=data.kspace * left, mask=data.mask * left), mapped.conventional.device, contrast=contrast
    )

    def misfit(pair: Pair) -> float:
        return float(held.missed(image_of(fewer, checkpoint, contrast, pair).image / mapped.scale))

    return min(pairs, key=misfit)


def scores(truth: np.ndarray, image: torch.Tensor) -> tuple[float, np.ndarray]:
    """NRMSE, and the sums of `bands`."""
    found = on_scale(image.abs().cpu().numpy(), truth)
    return nrmse(found, truth), bands(found, truth)


def mean_scores(several: Sequence[tuple[float, np.ndarray]]) -> tuple[float, float]:
    """(NRMSE, gain beyond 3/4 of Nyquist) over slices, of their `scores`."""
    gain, _ = gain_and_nrmse(np.sum([sums for _, sums in several], 0))[3]
    return float(np.mean([error for error, _ in several])), gain


def main() -> None:
    parser = module_parser(__doc__, "images", "model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--contrasts", default="flair,t1,t2,dwi,swi")
    parser.add_argument("--R", type=int, nargs="+", default=(4, 8))
    parser.add_argument("--sigma", type=float, nargs="+", default=(0.006, 0.015, 0.03, 0.06), help="over the scale")
    parser.add_argument("--factors", type=float, nargs="+", default=(0.45, 0.5, 0.6, 0.75))
    parser.add_argument("--errors", type=float, nargs="+", default=(0.0, 0.0025))
    parser.add_argument("--slices", type=int, nargs="+", default=(0, 2), help="of the three validation slices")
    args = parser.parse_args()
    checkpoint = load_model(args.model, args.device)
    pairs = [(factor, error) for error in args.errors for factor in args.factors]
    names = [f"{factor:g}, {error:g}" for factor, error in pairs]

    def rows():
        for contrast in words("--contrasts", args.contrasts, tuple(validation.SIGMA_N)):
            for acceleration in args.R:
                for sigma in args.sigma:
                    slices = validation.validation_scan(args.images, contrast, sigma)
                    found: dict[str, list[tuple[float, np.ndarray]]] = {}
                    for number in args.slices:
                        condition = Condition("regular", acceleration)
                        case = Undersampled(slices[number], condition, torch.device(args.device))
                        mapped, truth = case.mapped, slices[number].truth
                        own = chosen_pair(mapped, checkpoint, contrast, pairs)
                        for name, pair in (("card", None), ("held back", own), *zip(names, pairs)):
                            item = image_of(mapped, checkpoint, contrast, pair)
                            found.setdefault(name, []).append(scores(truth, item.image))
                    cells = (f"{error:.4f} ({gain:.2f})" for error, gain in map(mean_scores, found.values()))
                    yield [contrast, f"{acceleration}", f"{sigma:g}", *cells]

    show(["contrast", "R", "sigma_n", "card", "held back", *names], rows())


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
