"""A patient's lesions as each method shows them: `python -m dpmtrain.evaluate.patient --images DATA --out OUT`.

One slice of every FLAIR volume of a patient of open_ms, simulated as validation slices are. OUT/patient.png shows a
window of each: the truth, CG-SENSE, L1-wavelet with the weight that is best for the slice, the model that ships and
others, each by its card. Printed: NRMSE of the whole slices. For testing alone: nothing is chosen on patient12.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from dpmrecon.api import load_model
from dpmrecon.errors import BadInputError
from dpmrecon.prior.checkpoint import Checkpoint

from ..arguments import exit_code, module_parser
from ..files import save_figure
from . import validation
from .baselines import wavelet_tool
from .methods import by_card
from .metrics import nrmse, on_scale
from .pictures import Shown, panels
from .plan import Condition
from .references import CPU, ReferenceSlice
from .scoring import Undersampled
from .tables import show

WEIGHTS = (0.0025, 0.005, 0.01, 0.02, 0.04)  # of L1-wavelet
WHITE = 0.9  # of the brightest of the window


def images_of(full: ReferenceSlice, acceleration: int, models: list[Checkpoint]) -> Iterator[np.ndarray]:
    """Magnitudes (rows, cols) on the truth's scale of CG-SENSE, L1-wavelet and the models."""
    mapped = Undersampled(full, Condition("regular", acceleration), CPU).mapped
    made = [mapped.model.combined(mapped.conventional)]
    _, wavelet = wavelet_tool([full.truth.shape])
    made.append(min((wavelet(mapped, w) for w in WEIGHTS), key=lambda image: nrmse(full.picture(image), full.truth)))
    made += [by_card(mapped, model, full.contrast).image for model in models]
    return (on_scale(full.picture(image), full.truth) for image in made)


def main() -> None:
    parser = module_parser(__doc__, "images", "out")
    parser.add_argument("--checkpoint", type=Path, nargs="*", default=[], help="compared with the one that ships")
    parser.add_argument("--subject", default="patient12")
    parser.add_argument("--slice", type=int, default=32, help="in its volume")
    parser.add_argument("--R", type=int, nargs="+", default=(4, 8))
    parser.add_argument(
        "--window", type=int, nargs=4, default=(85, 195, 60, 190), metavar="N", help="of 256 rows, then of 256 columns"
    )
    args = parser.parse_args()
    first, last, left, right = args.window
    if not (0 <= first < last <= validation.MATRIX[0] and 0 <= left < right <= validation.MATRIX[1]):
        raise BadInputError(f"--window is {args.window}: give a first and a last row, then column, of the 256 x 256")
    window = np.s_[first:last, left:right]
    models = [load_model(path, "cpu") for path in (None, *args.checkpoint)]
    slices = [
        full
        for path in validation.volumes_of(args.images, args.subject)
        if path.name.endswith("_FLAIR.nii.gz")
        for full in validation.volume_slices(path, [args.slice])
    ]
    if not slices:
        raise BadInputError(f"{args.subject} has no FLAIR volume: name another subject")
    names = ["CG-SENSE", wavelet_tool([validation.MATRIX])[0], *(model.model_id for model in models)]
    pictures: list[list[Shown]] = []

    def rows() -> Iterator[list[str]]:
        for full in slices:
            white = WHITE * float(full.truth[window].max())
            for acceleration in args.R:
                made = list(images_of(full, acceleration, models))
                titles = [full.scan, *(f"R = {acceleration}: {name}" for name in names)]
                pictures.append([(t, image[window], 0.0, white) for t, image in zip(titles, [full.truth, *made])])
                yield [full.scan, f"{acceleration}", *(f"{nrmse(image, full.truth):.4f}" for image in made)]

    show(["slice", "R", *names], rows())
    save_figure(args.out / "patient.png", panels(pictures, 3.0), 100)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
