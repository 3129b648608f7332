"""Files of results: made with their folders, and what to do where they cannot be written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
