"""Scores in a file of JSON lines, so that a killed run goes on where it stopped."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ..files import write_text, writing

Kind = TypeVar("Kind", bound=Any)


class ScoreLines:
    """A file with a line {"key": ..., "value": ...} for every score; a line cut short by a kill does not count.

    Several runs may add to one file at the same time; each sees what was there when it began.
    """

    def __init__(self, path: Path):
        self.path = path
        self.values: dict[str, dict] = {}
        text = path.read_text() if path.exists() else ""
        whole = text.endswith("\n") or not text
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                whole = False
                continue
            self.values[_text(entry["key"])] = entry["value"]
        if not whole:
            write_text(path, "".join(_line(key, value) for key, value in self.values.items()))

    def get(self, key: dict, make: Callable[[], dict]) -> dict:
        """The value of `key`; made by `make` and written down where it is not there."""
        text = _text(key)
        if text not in self.values:
            value = make()
            with writing(self.path), self.path.open("a") as file:
                file.write(_line(text, value))
            self.values[text] = value
        return self.values[text]

    def row(self, kind: type[Kind], key: dict, make: Callable[[], Kind]) -> Kind:
        """The same of a dataclass."""
        return kind(**self.get(key, lambda: asdict(make())))

    def __contains__(self, key: dict) -> bool:
        return _text(key) in self.values


def _text(key: dict) -> str:
    return json.dumps(key, sort_keys=True)


def _line(key: str, value: dict) -> str:
    return f'{{"key": {key}, "value": {json.dumps(value)}}}\n'
