"""Every method on every slice or volume in every way of undersampling it, resumable; for `dpmtrain evaluate` and `kit`.

Methods share coil maps, scale and noise level. Weights of the conventional ones are the best on validation data; a
model's settings are those of its card.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from dpmrecon.errors import BadInputError
from dpmrecon.prior.checkpoint import Checkpoint
from tqdm import tqdm

from .methods import Weights, own_methods, score_of
from .plan import Condition, Plan
from .references import ReferenceSlice
from .report import write_report
from .score_lines import ScoreLines
from .scoring import Row, Undersampled


def evaluate(
    slices: Sequence[ReferenceSlice],
    tuning: Callable[[str], list[ReferenceSlice]],
    checkpoints: Sequence[Checkpoint],
    plan: Plan,
    out: Path,
    device: torch.device,
) -> list[Row]:
    """Score the slices and volumes, but for those that `out`/scores.jsonl holds, and write the report to `out`.

    tuning: a contrast's validation slices, none of those that are scored.
    """
    lines = ScoreLines(out / "scores.jsonl")
    weights = Weights(tuning, plan, lines, device, [tuple(full.data.mask.shape) for full in slices])
    if len({checkpoint.model_id for checkpoint in checkpoints}) < len(checkpoints):
        raise BadInputError("two of the models are the same: name each once")
    asked = [
        (full, condition)
        for full in slices
        for condition in plan.conditions(round(full.data.acceleration), full.is_volume)
    ]
    if not asked:
        raise BadInputError(
            "nothing is left to evaluate: accelerated scans need R in multiples of theirs, and 1D masks"
        )
    found: dict[tuple[str, Condition, str], list[tuple[ReferenceSlice, dict, str]]] = {}
    count = len(plan.conventional) + len(checkpoints) * len(plan.samplers)
    with tqdm(total=len(asked) * count, unit="image", smoothing=0.05) as bar:
        for full, condition in asked:
            here = Undersampled(full, condition, device)
            for method in [*weights.methods(full.contrast, condition), *own_methods(checkpoints, plan, here)]:
                bar.set_description(f"{full.contrast} {condition.mask} R={condition.R} {method.name}")
                score = score_of(method, here, lines)
                place = (full.contrast, condition, method.name)
                found.setdefault(place, []).append((full, score, method.setting))
                bar.update()
    rows = [Row.of(*place, scores) for place, scores in found.items()]
    write_report(out, rows, [checkpoint.model_id for checkpoint in checkpoints], weights.tuned)
    return rows
