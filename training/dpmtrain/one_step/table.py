"""One evaluation against many: `python -m dpmtrain.one_step.table --images DATA [--models FILE ...]`.

Validation slices (FLAIR of patient09, the held-out label map), regular masks, 24 calibration lines: CG-SENSE, the
shipped default, the shipped one-step model with STEPS evaluations, and models of that kind that are named, each with
its card's settings. NRMSE and, behind it, coherent gain beyond 3/4 of Nyquist; V/B of DRAWS samples, complex, where
there is more than one image to draw; seconds of sampling a slice, side by side.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.options import Options
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.prior.kinds import ONE_STEP
from dpmrecon.recon.plan import sampling_of
from dpmrecon.recon.types import Sampling

from ..arguments import exit_code, module_parser, words
from ..evaluate.lesion_scores import gain_and_nrmse
from ..evaluate.methods import label_for, reconstructed
from ..evaluate.plan import Condition
from ..evaluate.references import CPU
from ..evaluate.scoring import Undersampled
from ..evaluate.tables import show
from ..evaluate.trust import scores
from ..evaluate.validation import SIGMA_N, validation_scan

DRAWS = 8
STEPS = (1, 2, 4, 9)
Row = tuple[str, Checkpoint | None, int | None]


def sampling(checkpoint: Checkpoint, contrast: str, acceleration: int, steps: int | None = None) -> Sampling:
    return sampling_of(Options(steps=steps), checkpoint, CPU, label_for(checkpoint, contrast), acceleration)


def variance_ratio(cases: list[Undersampled], checkpoint: Checkpoint, chosen: Sampling) -> float:
    """V/B over the slices, each by the square of its scale; 0 where every seed gives the same image."""
    several = replace(chosen, samples=DRAWS, keep_samples=True)
    sums = np.zeros(2)
    for case in cases:
        found = reconstructed(case.mapped, checkpoint, case.full.contrast, several)
        score = case.score(found.image, found.draws)
        sums += np.array([score["V"], score["B"]]) / case.mapped.scale**2
    return float(sums[0] / sums[1])


def rows(images: Path, contrasts: tuple[str, ...], accelerations: list[int], models: list[Row]) -> Iterator[list[str]]:
    """models: (name, checkpoint or None for CG-SENSE, evaluations or None for the card's)."""
    cases = {
        (contrast, acceleration): [
            Undersampled(full, Condition("regular", acceleration), CPU) for full in validation_scan(images, contrast)
        ]
        for contrast in contrasts
        for acceleration in accelerations
    }
    for name, checkpoint, steps in models:
        cells, seconds, slices, ratio = [], 0.0, 0, ""
        for (contrast, acceleration), group in cases.items():
            found = []
            for case in group:
                mapped = case.mapped
                began = time.perf_counter()
                if checkpoint is None:
                    image = mapped.model.combined(mapped.conventional)
                else:
                    chosen = sampling(checkpoint, contrast, acceleration, steps)
                    image = reconstructed(mapped, checkpoint, contrast, chosen).image
                seconds, slices = seconds + time.perf_counter() - began, slices + 1
                found.append(scores(case.full.truth, image))
            gain, _ = gain_and_nrmse(np.sum([sums for _, sums in found], 0))[3]
            cells.append(f"{np.mean([error for error, _ in found]):.4f} ({gain:.2f})")
        if checkpoint is not None and checkpoint.card.get("kind") == ONE_STEP:
            first = (contrasts[0], accelerations[0])
            ratio = f"{variance_ratio(cases[first], checkpoint, sampling(checkpoint, *first, steps)):.2f}"
        yield [name, *cells, ratio, f"{seconds / slices:.2f}"]


def main() -> None:
    parser = module_parser(__doc__, "images")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="teacher, students ...")
    parser.add_argument("--contrasts", default="flair,t1,dwi")
    parser.add_argument("--R", type=int, nargs="+", default=[4, 8])
    args = parser.parse_args()
    torch.set_num_threads(1)
    contrasts = words("--contrasts", args.contrasts, tuple(SIGMA_N))
    one_step = load_model(ONE_STEP, "cpu")
    models: list[Row] = [("CG-SENSE", None, None), ("default", load_model(None, "cpu"), None)]
    models += [(f"one-step, {steps}", one_step, steps) for steps in STEPS]
    models += [(path.stem, load_model(path, "cpu"), None) for path in args.models]
    heads = [f"{contrast} R = {acceleration}" for contrast in contrasts for acceleration in args.R]
    print("# One evaluation against many, validation slices, one thread\n")
    show(["", *heads, f"V/B, {heads[0]}", "seconds a slice"], rows(args.images, contrasts, args.R, models))


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
