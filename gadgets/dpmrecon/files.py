"""Files that are written whole or not at all, and JSON that others wrote."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end; where that fails, the old one stays.

    A device or a pipe is written to as it is. Raises OSError.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """The whole text as UTF-8, with the line ends that it has. Bytes of file names that are no text are spelled out.

    Raises OSError.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def from_json(text: str | bytes) -> Any:
    """The value of a text that others wrote. Raises ValueError where it is no JSON, or brackets in brackets without
    end."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
