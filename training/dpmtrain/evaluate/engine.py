"""The engine of every comparison: methods on cases, a results file, rows.

A case (`scoring.Undersampled`) is a slice or volume in one condition, with coil maps that all methods share. A method
makes an image of a case; `compare` scores each image once, with its seconds and memory, and writes the score to the
results file (`score_lines`). A run that was stopped goes on from there. The scores of a method in a condition are a
row (`scoring.Row`); `tables` writes rows. `Tuner` finds weights on validation data, through the same file.

`evaluate`, `kit`, `sweep` and `bench` differ in cases, methods and what their reports say, and in nothing else.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from dpmrecon.errors import BadInputError
from tqdm import tqdm

from ..hardware import PeakMemory, device_name
from . import baselines
from .plan import Condition
from .references import ReferenceSlice
from .score_lines import ScoreLines
from .scoring import Row, Undersampled


@dataclass(frozen=True)
class Made:
    """image: complex, in the units of its k-space; draws: its samples, along the first axis; facts: what else the
    score holds; network: seconds of forward passes."""

    image: torch.Tensor
    draws: torch.Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    network: float = 0.0


@dataclass(frozen=True)
class Method:
    """name: in the table; setting: all that changes its scores; before: the stages that it needs, of "maps" and
    "start" (scale and CG-SENSE); only: the slices (scan, number) it has, None for all; timed: False for images that
    another machine made."""

    name: str
    setting: str
    run: Callable[[Undersampled], Made]
    before: tuple[str, ...] = ("maps", "start")
    only: frozenset[tuple[str, int]] | None = None
    timed: bool = True

    def score(self, here: Undersampled) -> dict[str, Any]:
        """What the image is worth, and what it took: seconds by stage, peak memory."""
        mapped = here.mapped  # the same for all methods
        memory, started = PeakMemory(here.device), time.perf_counter()
        made = self.run(here)
        seconds, peak = time.perf_counter() - started, memory.read()
        n_samples = 1 if made.draws is None else len(made.draws)
        score = {**here.score(made.image, made.draws), "samples": n_samples, "evaluations": 0, **made.facts}
        if self.timed:
            stages = {"maps": mapped.seconds.get("maps", 0.0), "start": mapped.seconds["conventional"]}
            score["seconds"] = {name: stages[name] for name in self.before}
            score["seconds"] |= {"network": made.network, "rest": seconds - made.network}
            score |= {"device": device_name(here.device), "memory_mb": None if peak is None else peak / 2**20}
        return score


Group = tuple[Iterable[Undersampled], Sequence[Method]]  # cases of one contrast and condition


def compare(groups: Iterable[Group], lines: ScoreLines, total: int | None = None) -> list[Row]:
    """The rows of each group's methods, in order. total: of the images, for the bar."""
    rows = []
    with tqdm(total=total, unit="image", smoothing=0.05) as bar:
        for cases, methods in groups:
            found: list[Row] = []
            for here in cases:
                full, condition = here.full, here.condition
                found = found or [Row(full.contrast, condition, each.name, each.setting) for each in methods]
                for method, row in zip(methods, found):
                    if method.only is None or full.place in method.only:
                        bar.set_description(f"{full.contrast} {condition.mask} R={condition.R} {method.name}")
                        key = {**full.key, "contrast": full.contrast, **asdict(condition)}
                        key |= {"method": method.name, "setting": method.setting}
                        row.slices.append(full.place)
                        row.subjects.append(full.subject or full.scan)
                        row.scores.append(lines.get(key, partial(method.score, here)))
                        bar.update()
            rows += found
    return rows


Weighted = Callable[[Undersampled, float], Made]


class Tuner:
    """A method's best weight on fully sampled validation slices, undersampled likewise.

    validation: a contrast's slices, none of those that are scored; n_slices: of them at most.
    """

    def __init__(
        self,
        validation: Callable[[str], Sequence[ReferenceSlice]],
        n_slices: int,
        lines: ScoreLines,
        device: torch.device,
    ):
        self.validation, self.n_slices, self.lines, self.device = validation, n_slices, lines, device
        self.found: dict[tuple[str, Condition, str], float] = {}  # by contrast, condition and method

    def best(
        self,
        name: str,
        contrast: str,
        condition: Condition,
        run: Weighted,
        start: Sequence[float],
        settings: str = "",
    ) -> float:
        """settings: all else that the method depends on, the model too; empty for conventional methods. A weight that
        the results file holds serves where it was found on the same data."""
        condition = replace(condition, scan_R=1)
        slices = self._slices(contrast, condition)
        key = {"tuned": name, "contrast": contrast, "data": [full.digest for full in slices], **asdict(condition)}
        key |= {"settings": settings} if settings else {}

        def make() -> dict[str, Any]:
            cases = [Undersampled(full, condition, self.device) for full in slices]

            def error(weight: float) -> float:
                row = Row(contrast, condition, name, "")
                for case in cases:
                    row.slices.append(case.full.place)
                    row.scores.append(case.score(run(case, weight).image))
                return float(np.mean(row.nrmse))

            weight, tried = baselines.tuned_weight(error, start)
            tried_by_text = {f"{each:g}": tried[each] for each in sorted(tried)}
            return {"weight": weight, "tried": tried_by_text, "on": [list(case.full.place) for case in cases]}

        weight = self.lines.get(key, make)["weight"]
        self.found[contrast, condition, name] = weight
        return weight

    def _slices(self, contrast: str, condition: Condition) -> list[ReferenceSlice]:
        volume = condition.is_volume
        fitting = [full for full in self.validation(contrast) if full.is_volume == volume][: self.n_slices]
        if not fitting:
            raise BadInputError(
                f"no validation scan of {contrast} is {'3D' if volume else '2D'}, on which weights could be tuned: "
                "leave the conventional methods out, or add such a scan"
            )
        return fitting
