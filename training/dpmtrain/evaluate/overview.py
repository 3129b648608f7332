"""The picture of README.md: `python -m dpmtrain.evaluate.overview --images DATA --out docs/flair_r4.png`.

A FLAIR slice of patient12, simulated as validation slices are, R = 4: zero-filled, CG-SENSE, the model that ships and
the truth; their errors, and the spread of the samples of mode uncertainty, GAIN times brighter. NRMSE in the titles.
"""

from pathlib import Path

import numpy as np
from dpmrecon.api import load_model

from ..arguments import exit_code, module_parser
from ..files import save_figure
from .methods import by_card
from .metrics import Moments, nrmse, scan_factor
from .pictures import Shown, panels
from .plan import Condition
from .references import CPU
from .scoring import Undersampled
from .validation import volume_slices

VOLUME, SLICE = "open_ms/patient12/study1_FLAIR.nii.gz", 25
GAIN = 5
WHITE = 0.7  # of the truth's largest value, which is fat


def main() -> None:
    args = module_parser(__doc__, "images", "out").parse_args()
    out: Path = args.out
    (full,) = volume_slices(args.images / VOLUME, [SLICE])
    mapped = Undersampled(full, Condition("regular", 4), CPU).mapped
    found = by_card(mapped, load_model(None, "cpu"), full.contrast, mode="uncertainty")
    made = {
        "zero-filled": mapped.model.combined(mapped.zero_filled),
        "CG-SENSE": mapped.model.combined(mapped.conventional),
        "dpmrecon": found.image,
    }
    assert found.spread is not None
    everywhere, white = np.ones(full.truth.shape, bool), WHITE * float(full.truth.max())
    images: list[Shown] = []
    below: list[Shown] = []
    factor = 1.0
    for name, image in made.items():
        shown = full.picture(image)
        factor = scan_factor([Moments.of(shown, full.truth, everywhere)])
        images.append((f"{name}, NRMSE {nrmse(shown, full.truth):.3f}", factor * shown, 0.0, white))
        below.append((f"error x {GAIN}", abs(factor * shown - full.truth), 0.0, white / GAIN))
    images.append(("truth", full.truth, 0.0, white))
    below.append((f"spread x {GAIN}", factor * full.picture(found.spread), 0.0, white / GAIN))
    save_figure(out, panels([images, below], 2.2), 100)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
