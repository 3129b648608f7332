"""The card of a model that `dpmtrain kit` made: intended use, limits and what was found. No patient is named in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dpmrecon.prior.denoiser import Denoiser

from ..data.open_sets import KNOWN_SETS
from ..evaluate.plan import Plan
from ..evaluate.scoring import Row
from ..files import writing
from ..train.keeper import Start
from ..train.pretrain import history_of
from .data import PARTS, Split, hardware, n_slices
from .tuning import Best

TUNED_BEFORE = (
    "The model it began with was fine-tuned itself: if on patients of this site, some may be among those that it was "
    "tested on here, and the comparison flatters it."
)


def tuned_before(start: Start) -> bool:
    """Whether the start was fine-tuned, or a model that it went on from."""
    history: Any = start.history
    while isinstance(history, dict):
        if "target" in history:
            return True
        history = history.get("start_history")
    return False


def card(recipe: dict, start: Start, best: Best, split: Split, plan: Plan) -> dict[str, Any]:
    """All that is known before the test patients are looked at. File names and pseudonyms stay in the kit's folder."""
    contrast = recipe["target"]["label"]
    counts = {part: {"patients": len(split.patients[part]), "slices": n_slices(split.volumes[part])} for part in PARTS}
    references = sorted({volume["reference"] for part in PARTS for volume in split.volumes[part]})
    settings = {key: value for key, value in recipe["train"].items() if key != "volumes"}
    length = {**recipe, "train": {**recipe["train"], "steps": best.steps}}
    history = history_of(length, start)
    if not best.steps:
        history["optimizer"] = "none: not fine-tuned"
    seen = hardware([item for part in PARTS for item in split.scans[part]])
    dimensions = " and ".join(sorted({"3D" if matrix.count("x") == 2 else "2D" for matrix in seen["matrices"]}))
    accelerations = ", ".join(str(R) for R in plan.accelerations)
    where = f"scanner {'; '.join(seen['scanners'])}, protocol {'; '.join(seen['protocols'])}, matrix " + "; ".join(
        seen["matrices"]
    )
    return {
        "recipe": {**settings, "steps": best.steps},
        "history": history,
        "sampling": start.sampling,
        "data": {
            "source": "own scans of the site",
            "references": references,
            "trained_on": f"images that {start.model_id} makes of them by default",
            **counts,
            **({"begun_with": [nameless(start.data)]} if start.data else {}),
        },
        "length_by_lines_left_out": {str(steps): round(missed, 5) for steps, missed in best.missed.items()},
        "intended_use": f"Research. Reconstruction of {contrast} scans of the head, {dimensions} Cartesian, about R = "
        f"{accelerations}, as the site acquires them: {where}.",
        "limits": limits(contrast, counts, references, accelerations, tuned=best.steps > 0)
        + [TUNED_BEFORE] * tuned_before(start),
        **({"gate": start.gate} if start.gate is not None and not best.steps else {}),  # measured with these weights
    }


def nameless(data: dict[str, Any]) -> dict[str, Any]:
    """A card's entry `data` without subjects, but for those of open sets."""
    known = set(data.get("sources", ())) <= {known.source for known in KNOWN_SETS.values()}
    found = {name: value for name, value in data.items() if name != "subjects" or known}
    if before := data.get("begun_with"):
        found["begun_with"] = [nameless(each) for each in before]
    return found


def limits(contrast: str, counts: dict, references: list[str], accelerations: str, *, tuned: bool) -> list[str]:
    tested = counts["test"]["patients"]
    begun = f"Fine-tuned on {counts['train']['patients']} patients"
    if not tuned:
        begun = f"The model it began with, which fine-tuning on {counts['train']['patients']} patients made no better"
    found = [
        "Not a medical device, not for diagnosis; every image is to be read beside its conventional reconstruction.",
        f"{begun}; tested on {tested}: what is rare among patients was probably neither learnt nor tested.",
        f"Tested on scans undersampled afterwards to R = {accelerations}, 1D regular: other R, patterns, sequences, "
        "scanners and body parts were not.",
        f"Intervals are of {tested} patients, and too narrow for others where those are few."
        if tested > 1
        else "Intervals are of slices of one patient: they tell nothing of others.",
        f"Other contrasts than {contrast} may be worse than with the model it began with.",
        "Made from patients' images: pass it on only as the rules for such data allow.",
    ]
    if tuned:
        found.append(
            "The gate does not ask whether prior and data agree: its limits are those of the model it began with, and "
            "`dpmtrain gate` sets others."
        )
    if any("SENSE" in reference for reference in references):
        found.append(
            "References were SENSE images of accelerated scans: their noise and residual aliasing count as truth."
        )
    return found


def write(path: Path, denoiser: Denoiser, card: dict[str, Any], device: torch.device) -> Checkpoint:
    """The checkpoint and its card, read back as `dpmrecon replay` and `serve` do."""
    with writing(path):
        save_checkpoint(path, denoiser, card)
    return load_checkpoint(path, device)


def findings(rows: Sequence[Row], checkpoint: Checkpoint, patients: int) -> dict[str, Any]:
    """NRMSE on the test patients against each baseline, in numbers and words. patients: how many they are."""
    table, told = [], []
    of = f"of {patients} patient{'s' * (patients != 1)}"
    for mine in [row for row in rows if row.setting.startswith(checkpoint.model_id)]:
        line: dict[str, Any] = {"R": mine.condition.R, "slices": len(mine.slices), "nrmse": round(_mean(mine), 5)}
        for row in rows:
            if row is not mine and row.condition == mine.condition:
                gap = mine.less(row)
                line[row.method] = {"nrmse": round(_mean(row), 5), "difference": [round(float(v), 5) for v in gap]}
                told.append(f"R = {mine.condition.R}, {len(mine.slices)} slices {of}: {verdict(mine, row, gap)}")
        table.append({**line, "fallbacks": mine.fallbacks})
    return {"evaluation": table, "findings": told}


def verdict(mine: Row, other: Row, gap: tuple[float, float, float]) -> str:
    difference, low, high = gap
    figures = f"{_mean(mine):.4f} against {_mean(other):.4f}, difference {difference:+.4f}"
    if np.isfinite(low):
        figures += f", 95 % {mine.sampled.replace('subject', 'patient')} {low:+.4f} to {high:+.4f}"
    if not mine.enough:
        few = "patients" if mine.n_subjects > 1 else "slices"
        return f"NRMSE {figures} to {other.method}: too few {few} to tell which is better"
    if high < 0:
        return f"better than {other.method} (NRMSE {figures})"
    advice = "use that instead" if low > 0 else "no reason to prefer either"
    return f"{'worse' if low > 0 else 'not clearly better'} than {other.method} (NRMSE {figures}): {advice}"


def _mean(row: Row) -> float:
    return float(np.mean(row.nrmse))
