"""Every candidate on every validation slice: candidates are settings of a sampler, or checkpoints of a fine-tuning."""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.prior.checkpoint import Checkpoint, sampler_defaults, write_card
from dpmrecon.prior.kinds import Settings, settings_from
from dpmrecon.recon.types import Sampling

from .engine import Method, compare
from .methods import label_for, model_method
from .metrics import paired_difference
from .plan import Condition
from .references import ReferenceSlice
from .score_lines import ScoreLines
from .scoring import Row, Undersampled
from .tables import formatted, write_tables


@dataclass(frozen=True)
class Plan:
    """grid: values of each setting, all combined; within: share of NRMSE that is given for fewer evaluations."""

    sampler: str
    grid: dict[str, list]
    accelerations: tuple[int, ...]
    samples: int = 1
    seed: int = 0
    within: float = 0.01


@dataclass(frozen=True)
class Candidate:
    """A checkpoint with settings; present: those that the card had before."""

    path: Path
    settings: Settings
    title: str
    present: bool


@dataclass
class Choice:
    """The candidates of one contrast and R with their scores, the chosen one first."""

    contrast: str
    condition: Condition
    ranked: list[tuple[Candidate, Row]]

    @property
    def chosen(self) -> tuple[Candidate, Row]:
        return self.ranked[0]


def sweep(
    slices: Sequence[ReferenceSlice],
    checkpoints: Mapping[Path, Checkpoint],
    plan: Plan,
    out: Path,
    device: torch.device,
    *,
    write: bool,
) -> list[Choice]:
    """Score all candidates, choose per contrast and R, write table.csv and table.md to `out`; with `write`, what was
    chosen into the card: sampler settings of one checkpoint, or which of several checkpoints is the best.

    Of several checkpoints the best on average over contrasts and R is chosen.
    """
    for checkpoint in checkpoints.values():
        check_grid(plan.grid, checkpoint.kind.sampler(plan.sampler)[1].settings)
    lines = ScoreLines(out / "scores.jsonl")
    contrasts = list(dict.fromkeys(full.contrast for full in slices))
    places = [(contrast, R) for contrast in contrasts for R in plan.accelerations]
    candidates = {place: candidates_of(checkpoints, plan, *place) for place in places}
    here = {contrast: [full for full in slices if full.contrast == contrast] for contrast in contrasts}
    batch = 4 if device.type == "cpu" else 32  # as the product has it

    def method(each: Candidate) -> Method:
        sampling = Sampling(plan.sampler, each.settings, plan.samples, plan.seed, batch, fallback=True)
        return model_method("sweep", checkpoints[each.path], sampling)

    groups = (
        (
            [Undersampled(full, Condition("regular", R), device) for full in here[contrast]],
            [method(each) for each in candidates[contrast, R]],
        )
        for contrast, R in places
    )
    rows = iter(compare(groups, lines, sum(len(here[place[0]]) * len(candidates[place]) for place in places)))
    choices = []
    for place in places:
        scored = [(each, next(rows)) for each in candidates[place]]
        choices.append(Choice(place[0], scored[0][1].condition, ranked(scored, plan.within)))
    winner = None
    if len(checkpoints) > 1:
        winner = best_model(choices, list(checkpoints))
        for choice in choices:
            choice.ranked.sort(key=lambda pair: pair[0].path != winner)
    report(out, choices, plan, winner)
    if write:
        if winner is None:
            ((path, checkpoint),) = checkpoints.items()
            write_card(path, sampling=with_choices(checkpoint.card.get("sampling", {}), choices, plan))
        else:
            write_card(winner, selection=selection(choices, checkpoints))
    return choices


def check_grid(grid: Mapping[str, list], form: type[Settings]) -> None:
    """Raises BadInputError for settings that a sampler does not have, or values that they cannot have."""
    settings_from(dict.fromkeys(grid), form)
    usual = form()
    for name, values in grid.items():
        kind = type(getattr(usual, name))
        valid = {bool: (bool,), int: (int,)}.get(kind, (int, float))
        least = min(1, getattr(usual, name)) if kind is int else -math.inf
        for value in values:
            if type(value) not in valid or value < least:
                needed = {bool: "true or false", int: f"a whole number of {least} or more"}.get(kind, "a number")
                raise BadInputError(f"--grid has {name}={json.dumps(value)}: give {needed}")


def candidates_of(checkpoints: Mapping[Path, Checkpoint], plan: Plan, contrast: str, R: int) -> list[Candidate]:
    """What the card has at present, and all combinations of the grid; of every checkpoint."""
    found: dict[tuple[Path, str], Candidate] = {}
    for path, checkpoint in checkpoints.items():
        base = sampler_defaults(checkpoint.card, plan.sampler, label_for(checkpoint, contrast), R)[0]
        settings_from = checkpoint.kind.sampler(plan.sampler)[1].settings_from
        present = settings_from(base)
        combined = [dict(zip(plan.grid, values)) for values in itertools.product(*plan.grid.values())]
        for changes in [*combined, {key: getattr(present, key) for key in plan.grid}]:
            settings = settings_from({**base, **changes})
            words = [f"{key}={value:g}" for key, value in changes.items()]
            title = " ".join(words if len(checkpoints) == 1 else [str(path), *words])
            found[path, repr(settings)] = Candidate(path, settings, title, settings == present)
    return list(found.values())


def ranked(scored: list[tuple[Candidate, Row]], within: float) -> list[tuple[Candidate, Row]]:
    """By NRMSE, after the chosen one: of those within that share of the best, the one of fewest evaluations. A
    candidate that CG-SENSE had to replace comes last."""
    ordered = sorted(scored, key=lambda pair: (pair[1].fallbacks, np.mean(pair[1].nrmse)))
    limit = np.mean(ordered[0][1].nrmse) * (1 + within)
    near = [
        pair for pair in ordered if pair[1].fallbacks == ordered[0][1].fallbacks and np.mean(pair[1].nrmse) <= limit
    ]
    chosen = min(near, key=lambda pair: pair[0].settings.steps)
    return [chosen, *(pair for pair in ordered if pair is not chosen)]


def best_model(choices: Sequence[Choice], paths: Sequence[Path]) -> Path:
    """The checkpoint of fewest fallbacks, then of the lowest NRMSE relative to the best of each contrast and R."""

    def cost(path: Path) -> tuple[int, float]:
        fallbacks, relative = 0, []
        for choice in choices:
            rows = [row for candidate, row in choice.ranked if candidate.path == path]
            best = min(np.mean(row.nrmse) for _, row in choice.ranked)
            relative.append(min(np.mean(row.nrmse) for row in rows) / best)
            fallbacks += min(row.fallbacks for row in rows)
        return fallbacks, float(np.mean(relative))

    return min(paths, key=cost)


def with_choices(sampling: dict[str, Any], choices: Sequence[Choice], plan: Plan) -> dict[str, Any]:
    """The card's sampling with the chosen settings in place of what it had for the same sampler, contrast and R.

    An entry holds the keys of the grid and all else that differs from the card's settings for every scan.
    """
    form = type(choices[0].chosen[0].settings)
    everywhere = dataclasses.asdict(settings_from(sampling.get(plan.sampler, {}), form))
    entries = []
    for choice in choices:
        candidate, row = choice.chosen
        n_slices = len(row.slices)
        entries.append(
            {
                "sampler": plan.sampler,
                "contrast": choice.contrast,
                "R": choice.condition.R,
                "settings": {
                    key: value
                    for key, value in dataclasses.asdict(candidate.settings).items()
                    if key in plan.grid or value != everywhere[key]
                },
                "measured": f"NRMSE {np.mean(row.nrmse):.4f} on {n_slices} validation slices, {plan.samples} sample(s)",
            }
        )
    return with_entries(sampling, entries)


def with_entries(sampling: dict[str, Any], entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A card's sampling with settings for a contrast and R in place of its own."""
    place = itemgetter("sampler", "contrast", "R")
    new = {place(entry) for entry in entries}
    kept = [entry for entry in sampling.get("by_contrast_R", []) if place(entry) not in new]
    return {**sampling, "by_contrast_R": sorted([*kept, *entries], key=place)}


def selection(choices: Sequence[Choice], checkpoints: Mapping[Path, Checkpoint]) -> list[dict[str, Any]]:
    """What the winner was chosen from: rate, steps and NRMSE per contrast and R of every checkpoint."""
    found = []
    for path, checkpoint in checkpoints.items():
        recipe = checkpoint.card.get("recipe", {})
        scores = {
            f"{choice.contrast} R={choice.condition.R}": round(float(np.mean(row.nrmse)), 5)
            for choice in choices
            for candidate, row in choice.ranked
            if candidate.path == path
        }
        entry = {"model_id": checkpoint.model_id, "rate": recipe.get("rate"), "steps": recipe.get("steps")}
        found.append({**entry, "validation_nrmse": scores})
    return found


def report(out: Path, choices: Sequence[Choice], plan: Plan, winner: Path | None) -> None:
    """table.csv with every candidate; table.md, printed too: what was chosen, and by how much."""
    head = ["contrast", "R", "candidate", "chosen", "present", "NRMSE", "V/B", "fallbacks", "seconds", "settings"]
    table = [
        [
            choice.contrast,
            str(choice.condition.R),
            candidate.title,
            "chosen" if number == 0 else "",
            "present" if candidate.present else "",
            f"{np.mean(row.nrmse):.5f}",
            formatted(row.variance_ratio, ".3f"),
            str(row.fallbacks),
            f"{row.seconds('network', 'rest'):.2f}",
            json.dumps(dataclasses.asdict(candidate.settings)),
        ]
        for choice in choices
        for number, (candidate, row) in enumerate(choice.ranked)
    ]
    lines = [["contrast", "R", "slices", "chosen", "NRMSE", "compared with", "NRMSE", "gain (95 %)"]]
    lines += [_line(choice) for choice in choices]
    best = [] if winner is None else [f"The best of the checkpoints, on average over contrasts and R: {winner}"]
    write_tables(out, [head, *table], lines, *best)


def _line(choice: Choice) -> list[str]:
    """Against the card's present settings, or the next candidate where those were chosen."""
    (chosen, row), *others = choice.ranked
    present = [pair for pair in others if pair[0].present and not chosen.present]
    cells = [choice.contrast, str(choice.condition.R), str(len(row.slices)), chosen.title, f"{np.mean(row.nrmse):.4f}"]
    if not others:
        return [*cells, "", "", ""]
    other, other_row = (present or others)[0]
    gap, low, high = paired_difference(other_row.nrmse, row.nrmse)
    title = f"{other.title} ({'present' if present else 'next'})"
    interval = "" if np.isnan(low) else f" ({low:+.4f} to {high:+.4f})"
    return [*cells, title, f"{np.mean(other_row.nrmse):.4f}", f"{gap:+.4f}{interval}"]
