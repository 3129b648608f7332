"""The uncertainty mode of volumes: `python -m dpmtrain.evaluate.volume_spread --images DATA`.

V/B, the variance of its samples over the squared error of its image, of magnitudes in the head, as the card has it and
with each --set of changes to its settings. Volumes are those of `validation_volumes.py`, coarse, and phantoms.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from dpmrecon.api import load_model
from dpmrecon.prior.checkpoint import Checkpoint

from ..arguments import at_least, changes_from, exit_code, module_parser
from .methods import by_card
from .tables import show
from .validation_volumes import COARSE, phantom_volume, slab_with_field, validation_volume
from .volumes import HEAD, Case, head_settings

PHANTOMS = {"flair": 0.0155, "t1": 0.006}  # noise by contrast
FIELD_MM, SUBJECT = 224.0, 2


def cases(images: Path) -> Iterator[Case]:
    for contrast in ("flair", "t1", "t2"):
        yield Case(validation_volume(images, contrast, COARSE[contrast]))
    for contrast, noise in PHANTOMS.items():
        settings = head_settings(contrast, noise, FIELD_MM, wrap=False)
        yield Case(phantom_volume(replace(settings, subject=SUBJECT)))
    yield Case(slab_with_field(SUBJECT))


def spread(case: Case, checkpoint: Checkpoint, samples: int | None, changes: dict[str, float | int]) -> list[str]:
    found = by_card(case.mapped, checkpoint, case.contrast, changes, samples=samples, mode="uncertainty")
    assert found.spread is not None
    image, std = found.image.abs().numpy(), found.spread.numpy()
    head = case.truth > HEAD
    truth = float(np.square(case.truth[head]).mean())
    variance = float(np.square(std[head]).mean()) / truth
    error = float(np.square(image - case.truth)[head].mean()) / truth
    return [f"{variance / error:.2f}", f"{variance**0.5:.4f}", f"{error**0.5:.4f}", f"{case.nrmse(image):.4f}"]


def main() -> None:
    parser = module_parser(__doc__, "images", "model")
    parser.add_argument("--set", nargs="+", default=["{}"], help="changes to the mode's settings, in JSON")
    parser.add_argument("--samples", type=int, help="of each volume (default: the card's)")
    args = parser.parse_args()
    at_least(args, **({} if args.samples is None else {"samples": 2}))
    changes_of = {text: changes_from(text) for text in args.set}
    checkpoint = load_model(args.model, "cpu").of_scan(volume=True)

    def rows() -> Iterator[list[str]]:
        for case in cases(args.images):
            for text, changes in changes_of.items():
                yield [case.name, text, *spread(case, checkpoint, args.samples, changes)]

    show(["volume", "changes", "V/B", "V^.5", "B^.5", "NRMSE of the image"], rows())


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
