"""Files of results: made with their folders, and what to do where they cannot be written."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from dpmrecon import files
from dpmrecon.errors import DpmreconError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes the folder of `path`, and gives advice where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DpmreconError(
            f"{path} cannot be written ({error}): what is done stays; make room and run the same command again"
        ) from error


def write_text(path: Path, text: str) -> None:
    """The whole text, or the old file stays."""
    with writing(path):
        files.write_text(path, text)


def save_figure(path: Path, figure: Any, dpi: int) -> None:
    """A matplotlib figure as PNG."""
    with writing(path), files.replacing(path) as part:
        figure.savefig(part, dpi=dpi, format="png")


def kept(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays by name, made and written to `path` (.npz) where it does not hold them yet."""
    if not path.exists():
        found = make()
        with writing(path), files.replacing(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **found)  # type: ignore[arg-type]
    with np.load(path) as held:
        return dict(held)
