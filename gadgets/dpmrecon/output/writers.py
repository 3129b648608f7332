"""Where images go: a list of writers, the same for replays and peers' scans."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import ismrmrd

from ..data import LostSlice
from ..errors import BadInputError
from ..recon.types import Reconstruction

Add = Callable[[Reconstruction | LostSlice, list[ismrmrd.Image]], None]


class Writer(Protocol):
    """Takes each slice with its images, as they come; `close` is called once, at the end of the scan.

    failure: what broke the scan off, None where it came to its end.
    """

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None: ...

    def close(self, failure: BaseException | None) -> None: ...


@contextmanager
def writing(writers: Sequence[Writer]) -> Iterator[Add]:
    """`add` for all of the writers, which are closed at the end, in order, each of them whatever happens.

    The first failure is the one that is raised.
    """

    def add(item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None:
        for writer in writers:
            writer.add(item, images)

    failure: BaseException | None = None
    try:
        yield add
    except BaseException as error:
        failure = error
    for writer in writers:
        try:
            writer.close(failure)
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure


@contextmanager
def telling(folder: Path, advice: str = "choose another --out") -> Iterator[None]:
    """What cannot be written in a folder becomes one sentence, a BadInputError with advice."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise BadInputError(f"cannot write to {folder} ({error}): {advice}") from error
