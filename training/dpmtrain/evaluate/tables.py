"""The tables of all evaluations: markdown and CSV in a folder, and lines that are printed as they come."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_text
from .metrics import paired_difference


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def rule(heads: Sequence[str]) -> str:
    return "|" + "---|" * len(heads)


def markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    """A table whose first line is its head."""
    return [line(lines[0]), rule(lines[0]), *map(line, lines[1:])]


def show(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, each row when it comes."""
    print(line(heads), rule(heads), sep="\n")
    for row in rows:
        print(line(row), flush=True)


def write_csv(path: Path, lines: Iterable[Iterable[Any]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    write_text(path, text.getvalue())


def joined(*parts: str | Sequence[Sequence[str]]) -> str:
    """Paragraphs in markdown; one that is no text is a table whose first line is its head."""
    return "\n\n".join(part if isinstance(part, str) else "\n".join(markdown(part)) for part in parts)


def write_tables(out: Path, lines: Iterable[Iterable[Any]], *parts: str | Sequence[Sequence[str]]) -> None:
    """table.csv of the lines and table.md of the parts, see `joined`, which is printed too."""
    text = joined(*parts)
    write_csv(out / "table.csv", lines)
    write_text(out / "table.md", text + "\n")
    print(text)


def fields_of(kind: type, rows: Iterable[Any], *, digits: int) -> list[list]:
    """Lines for `write_csv` of dataclasses of one kind, numbers with so many digits."""
    return [
        [field.name for field in fields(kind)],
        *([f"{value:.{digits}g}" if isinstance(value, float) else value for value in astuple(row)] for row in rows),
    ]


def formatted(value: float | None, form: str) -> str:
    """Empty where there is none."""
    return "" if value is None or np.isnan(value) else format(value, form)


def interval(values: Sequence[float], form: str) -> str:
    """Mean, and its 95 % interval behind it where there is one."""
    mean, low, high = paired_difference(values, [0.0] * len(values))
    return format(mean, form) + ("" if np.isnan(low) else f" ({low:{form}} to {high:{form}})")
