"""Checkpoints side by side: `python -m dpmtrain.evaluate.checkpoints --images DATA --checkpoint OTHER`.

NRMSE of validation slices, and in brackets the coherent gain beyond 3/4 of Nyquist, by contrast, R and noise: of the
model that ships as its card says, and of others by their cards with each --set of changes. The change of the NRMSE is
against the model that ships. Nothing is chosen: lesions, volumes and the spread are other commands.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from dpmrecon.api import load_model
from dpmrecon.prior.checkpoint import Checkpoint

from ..arguments import changes_from, exit_code, module_parser, words
from . import validation
from .methods import by_card
from .plan import Condition
from .references import CPU, ReferenceSlice
from .scoring import Undersampled
from .tables import show
from .trust import mean_scores, scores

Variant = tuple[Checkpoint, Mapping[str, float | int]]


def error_and_gain(
    full: ReferenceSlice, contrast: str, acceleration: int, variants: list[Variant]
) -> list[tuple[float, np.ndarray]]:
    """`scores` of one slice by each variant."""
    mapped = Undersampled(full, Condition("regular", acceleration), CPU).mapped
    return [scores(full.truth, by_card(mapped, model, contrast, changes).image) for model, changes in variants]


def cells(scored: list[list[tuple[float, np.ndarray]]]) -> Iterator[str]:
    """Of each variant the mean over slices; scored: by slice, then by variant."""
    means = [mean_scores(several) for several in zip(*scored)]
    for number, (error, gain) in enumerate(means):
        change = f" {100 * (error / means[0][0] - 1):+.1f} %" if number else ""
        yield f"{error:.4f}{change} ({gain:.2f})"


def main() -> None:
    parser = module_parser(__doc__, "images")
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True, help="compared with the one that ships")
    parser.add_argument("--set", nargs="+", default=["{}"], help="changes to the cards' samples and settings, in JSON")
    parser.add_argument("--contrasts", default="flair,t1,t2,dwi,swi")
    parser.add_argument("--R", type=int, nargs="+", default=(4, 8))
    parser.add_argument("--sigma", type=float, nargs="+", default=(0.0075, 0.021, 0.04), help="over the scale")
    parser.add_argument("--slices", type=int, nargs="+", choices=range(3), default=(0, 2), help="of the three")
    args = parser.parse_args()
    contrasts = words("--contrasts", args.contrasts, tuple(validation.SIGMA_N))
    changes_of = {text: changes_from(text) for text in args.set}
    shipped = load_model(None, "cpu")
    variants: list[Variant] = [(shipped, {})]
    names = [shipped.model_id]
    for checkpoint in (load_model(path, "cpu") for path in args.checkpoint):
        for text, changes in changes_of.items():
            variants.append((checkpoint, changes))
            names.append(checkpoint.model_id if text == "{}" else f"{checkpoint.model_id} {text}")

    def rows() -> Iterator[list[str]]:
        for sigma in args.sigma:
            for contrast in contrasts:
                slices = validation.validation_scan(args.images, contrast, sigma)
                for acceleration in args.R:
                    scored = [error_and_gain(slices[n], contrast, acceleration, variants) for n in args.slices]
                    yield [contrast, f"{acceleration}", f"{sigma:g}", *cells(scored)]

    show(["contrast", "R", "sigma_n", *names], rows())


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
