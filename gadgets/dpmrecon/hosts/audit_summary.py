"""`dpmrecon audit`: the audit lines by protocol and week, so that a site sees drift.

A protocol is a contrast and a way of acquisition: the hash of the header's parts that name nobody, see `audit.py`.
"""

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import BadInputError
from ..files import from_json

CERTAIN = 2.0  # standard deviations of a week's share above that of earlier weeks
MOVED = 0.1  # by which a median is, of what it was
FIRST = '{"time": '  # how each line begins
HEAD = ("protocol", "week", "scans", "slices", "fallback", "caution", "not trusted", "missing", "errors", "residual",
        "seconds a slice")  # fmt: skip


@dataclass
class Week:
    """What became of the scans of a protocol in a week. seconds: of each scan, for a slice."""

    protocol: str
    week: str
    scans: int = 0
    slices: int = 0
    fallbacks: int = 0
    cautions: int = 0
    not_trusted: int = 0
    missing: int = 0
    errors: int = 0
    residuals: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, record: dict[str, Any]) -> None:
        """One audit line; what an older version did not write counts as nothing."""
        verdicts, slices = record.get("verdicts", {}), record.get("slices", 0)
        self.scans += 1
        self.slices += slices
        self.fallbacks += record.get("fallbacks", 0)
        self.cautions += verdicts.get("caution", 0)
        self.not_trusted += verdicts.get("not trusted", 0)
        self.missing += record.get("missing", 0)
        self.errors += record.get("error") is not None
        self.residuals += [value for value in record.get("residuals", []) if value is not None]
        total = record.get("seconds", {}).get("total")
        if slices and total is not None:
            self.seconds.append(total / slices)

    @property
    def flagged(self) -> int:
        """Slices of which something is said, each once at most: a fallback may be a caution too."""
        return min(self.slices, max(self.fallbacks, self.cautions + self.not_trusted)) + self.missing

    def as_json(self) -> dict[str, Any]:
        """Counts, and medians in the place of the lists."""
        found = {**asdict(self), "residual": _median(self.residuals), "seconds a slice": _median(self.seconds)}
        return {name: value for name, value in found.items() if name not in ("residuals", "seconds")}

    def cells(self) -> list[str]:
        """In the order of HEAD."""
        counts = (self.scans, self.slices, self.fallbacks, self.cautions, self.not_trusted, self.missing, self.errors)
        medians = (_median(self.residuals), _median(self.seconds))
        return [self.protocol, self.week, *map(str, counts), *("-" if v is None else f"{v:.2f}" for v in medians)]


def weeks_of(paths: Iterable[Path], remark: Callable[[str], object] = lambda text: None) -> list[Week]:
    """By protocol and week, in that order. remark: called with a sentence for each line that was cut off, which is left
    out. Raises BadInputError for what is no audit log."""
    found: dict[tuple[str, str], Week] = {}
    for record in _records(paths, remark):
        header = record.get("header") or {}
        fold, digest = header.get("R"), str(header.get("sha256", ""))[:8]
        protocol = f"{record.get('contrast') or 'unlabelled'}, R {'-' if fold is None else fold}, {digest or '-'}"
        year, number, _ = datetime.fromisoformat(record["time"].replace("Z", "+00:00")).isocalendar()
        key = (protocol, f"{year}-W{number:02}")
        found.setdefault(key, Week(*key)).add(record)
    return [found[key] for key in sorted(found)]


def _records(paths: Iterable[Path], remark: Callable[[str], object]) -> Iterator[dict[str, Any]]:
    """The lines of logs, and of the files that they have put aside, each file once: a shell's log* names both. What a
    process that was killed, or a power failure, left of a line is passed over; a record that follows in it is read."""
    parts: dict[Path, Path] = {}
    for path in paths:
        for part in (*sorted(path.parent.glob(f"{path.name}.[0-9]*")), path):
            parts.setdefault(part.resolve(), part)
    for part in parts.values():
        try:
            lines = part.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(f"audit log {part} cannot be read ({error}): name the file that --audit has") from error
        for number, line in enumerate(lines, 1):
            for text in filter(None, re.split(f"(?={FIRST})", line.strip("\0"))):  # zeros: of a power failure
                try:
                    record = from_json(text)
                    datetime.fromisoformat(record["time"].replace("Z", "+00:00"))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    if isinstance(error, json.JSONDecodeError) and text[: len(FIRST)] == FIRST[: len(text)]:
                        remark(f"{part}: line {number} was cut off when it was written: its scan is not counted")
                        continue
                    raise BadInputError(
                        f"{part}: line {number} is no audit line ({error!r}): name the file that --audit has"
                    ) from error
                yield record


def drifts(weeks: list[Week]) -> list[str]:
    """What a protocol's last week has more of than earlier weeks, in sentences."""
    found = []
    for name in dict.fromkeys(week.protocol for week in weeks):
        *before, last = [week for week in weeks if week.protocol == name]
        slices, flagged = sum(week.slices for week in before), sum(week.flagged for week in before)
        if not slices or not last.slices:
            continue
        usual, now = flagged / slices, last.flagged / last.slices
        even = (flagged + last.flagged + 1) / (slices + last.slices + 2)
        spread = math.sqrt(even * (1 - even) * (1 / slices + 1 / last.slices))
        if now - usual > CERTAIN * spread:
            found.append(f"{name}: {now:.0%} of the slices of {last.week} are flagged or missing, {usual:.0%} before")
        for what, past, own in (
            ("residual", [v for week in before for v in week.residuals], last.residuals),
            ("seconds a slice", [v for week in before for v in week.seconds], last.seconds),
        ):
            old, new = _median(past), _median(own)
            if old and new and abs(new / old - 1) > MOVED:
                found.append(f"{name}: the median {what} of {last.week} is {new:.2f}, {old:.2f} before")
    return found


def told(weeks: list[Week]) -> str:
    """The table, and what has drifted."""
    rows = [list(HEAD), *(week.cells() for week in weeks)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"drift: {text}" for text in drifts(weeks))])


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
