"""Scores as the reading page exports them, and as a table with the arms from the key."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dpmrecon.errors import BadInputError
from dpmrecon.files import from_json

from .design import Key
from .questions import ARMS, QUESTIONS, SCORES

COLUMNS = ["seal", "reader", "set", *QUESTIONS, "notes"]


@dataclass(frozen=True)
class Readings:
    """Scores with their arms, NaN where missing.

    first: (readers, subjects, arms, questions) float; again: pairs of first and repeated scores of each reader,
    (readers, repeats, 2, questions), of the subjects that `repeated` names; subjects, readers: names along the axes.
    """

    readers: list[str]
    subjects: list[str]
    first: np.ndarray
    again: np.ndarray
    repeated: list[str]

    def missing(self) -> dict[str, int]:
        """How many scores each reader left out, of all sets."""
        return {
            reader: int(np.isnan(self.first[row]).sum() + np.isnan(self.again[row, :, 1]).sum())
            for row, reader in enumerate(self.readers)
        }


def read_scores(paths: Sequence[Path], key: Key, seal: str) -> Readings:
    """One or several exports of each reader, JSON or CSV. Raises BadInputError for a file that is no export, for scores
    of another study, for unknown sets, for scores that are not 1 to 5, and where two files differ."""
    held: dict[tuple[str, int, str], int] = {}
    for path in paths:
        for row in _rows(path):
            if row.get("seal") != seal:
                raise BadInputError(
                    f"{path} belongs to a study with the seal {str(row.get('seal'))[:12]}, the key has {seal[:12]}: it "
                    "was changed or is of another study; give the key that was sealed"
                )
            reader, number = str(row.get("reader") or "").strip(), _whole(row.get("set"))
            if not reader or number not in key.design.sets:
                raise BadInputError(f"{path} has a row of reader '{reader}' and set {row.get('set')}, which is none")
            for question in QUESTIONS:
                text = row.get(question)
                if text in (None, ""):
                    continue
                score = _whole(text)
                if score not in SCORES:
                    raise BadInputError(
                        f"{path}: reader {reader} scores {question} of set {number} with {text}: 1 to 5 is needed"
                    )
                if held.setdefault((reader, number, question), score) != score:
                    raise BadInputError(
                        f"{path}: reader {reader} has two scores for {question} of set {number}: give the last export"
                    )
    return _tabled(held, key)


def _tabled(held: dict[tuple[str, int, str], int], key: Key) -> Readings:
    readers = sorted({reader for reader, _, _ in held})
    if not readers:
        raise BadInputError("the files hold no scores: give what the reading page exports")
    sets = key.design.sets
    firsts = {(one.subject, one.arm): number for number, one in sets.items() if one.repeat_of is None}
    subjects = sorted({subject for subject, _ in firsts})
    repeats = [(one.repeat_of, number) for number, one in sets.items() if one.repeat_of is not None]

    def of(reader: str, number: int) -> list[float]:
        return [held.get((reader, number, question), np.nan) for question in QUESTIONS]

    first = np.array([[[of(r, firsts[s, arm]) for arm in ARMS] for s in subjects] for r in readers], float)
    again = np.array([[[of(r, number) for number in pair] for pair in repeats] for r in readers], float)
    again = again.reshape(len(readers), len(repeats), 2, len(QUESTIONS))
    return Readings(readers, subjects, first, again, [sets[number].subject for _, number in repeats])


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix.lower() == ".json":
            told = from_json(path.read_text(encoding="utf-8-sig"))
            return [
                {"seal": told["seal"], "reader": told["reader"], "set": number, **scores}
                for number, scores in told["scores"].items()
            ]
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{path} cannot be read as scores ({error}): give what the reading page exports") from error
    if not rows or not set(COLUMNS[:-1]) <= set(rows[0]):
        raise BadInputError(f"{path} lacks rows or the columns {', '.join(COLUMNS[:-1])}: give the page's export")
    return rows


def _whole(value: Any) -> int:
    """The whole number that a cell says, -1 for anything else."""
    try:
        return int(value) if float(value) == int(float(value)) else -1
    except (TypeError, ValueError):
        return -1


def write_scores(path: Path, seal: str, reader: str, scores: dict[int, dict[str, Any]]) -> None:
    """A CSV like the page's. scores: question or "notes" -> value, by set."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for number, given in scores.items():
            writer.writerow({"seal": seal, "reader": reader, "set": number, **given})
