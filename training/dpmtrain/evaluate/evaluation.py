"""Every method on every slice or volume in every way of undersampling it, resumable; for `dpmtrain evaluate` and `kit`.

Methods share coil maps, scale and noise level. Weights of the conventional ones are the best on validation data; a
model's settings are those of its card.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from dpmrecon.errors import BadInputError
from dpmrecon.prior.checkpoint import Checkpoint

from ..data.open_sets import TUNED_ON
from .engine import Tuner, compare
from .methods import conventional, own_methods
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
    if len({checkpoint.model_id for checkpoint in checkpoints}) < len(checkpoints):
        raise BadInputError("two of the models are the same: name each once")
    places: dict[Any, ReferenceSlice] = {}
    for full in slices:
        same = places.setdefault(full.place if full.header is None else full.content, full)
        if same is not full:
            raise BadInputError(f"slice {full.number} of {full.scan} is that of {same.scan} too: name each scan once")
    asked: dict[tuple[str, Condition], list[ReferenceSlice]] = {}
    for full in slices:
        for condition in plan.conditions(round(full.data.acceleration), full.is_volume):
            asked.setdefault((full.contrast, condition), []).append(full)
    if not asked:
        raise BadInputError(
            "nothing is left to evaluate: accelerated scans need R in multiples of theirs, and 1D masks"
        )
    lines = ScoreLines(out / "scores.jsonl")
    tuner = Tuner(tuning, plan.tuning_slices, lines, device)
    shapes = [tuple(full.data.mask.shape) for full in slices]
    groups = (
        (
            (Undersampled(full, condition, device) for full in here),
            [
                *conventional(plan.conventional, contrast, condition, shapes, tuner),
                *own_methods(checkpoints, plan, contrast, condition, device),
            ],
        )
        for (contrast, condition), here in asked.items()
    )
    n_methods = len(plan.conventional) + len(checkpoints) * len(plan.samplers)
    rows = compare(groups, lines, n_methods * sum(map(len, asked.values())))
    remarks = [text for checkpoint in checkpoints if (text := _seen(checkpoint, slices))]
    if tuned := sorted(set(TUNED_ON) & {full.subject for full in slices}):
        remarks.append(f"Weights and settings are chosen on {', '.join(tuned)}: scores there flatter all methods.")
    write_report(out, rows, [checkpoint.model_id for checkpoint in checkpoints], tuner.found, remarks)
    return rows


def _seen(checkpoint: Checkpoint, slices: Sequence[ReferenceSlice]) -> str:
    """A sentence where a model is scored on subjects that its card names, for it or what it began with; else empty."""
    known = subjects_of(checkpoint.card.get("data", {}))
    seen = sorted(known & {full.subject or full.scan.split("/")[0] for full in slices})
    if not seen:
        return ""
    return f"{checkpoint.model_id} was trained on {', '.join(seen)}: its scores there say nothing of others."


def subjects_of(data: dict) -> set[str]:
    """Whom a model, or one that it began with, was trained on, by its card's entry `data`."""
    return set(data.get("subjects", ())).union(*map(subjects_of, data.get("begun_with", ())))
