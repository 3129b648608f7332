"""A bulk run: every scan of an archive through `replay`, with one report. Read `bulk` from top to bottom.

A scan's folder gets its name once it is whole and its row is in it. So the driver may be ended at any moment: the next
run takes the rows that are there and does the rest.
"""

import fcntl
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import UNEXPECTED, WORST, BadInputError
from ..options import Options
from ..output.protocol_report import Row
from ..output.writers import telling
from ..prior.checkpoint import Checkpoint
from ..results import Wanted
from .engines import ATTEMPTS, Engine, Lost, answers
from .job import PARTS, ROW, Job, put, reconstructed, row_in
from .memory import Memory
from .report import write
from .sources import Source


@dataclass(frozen=True)
class Progress:
    """Who watches. before: called with the name of each scan that an earlier run did; row: with the name and row of
    each that is done, or has failed; say: with what else is to be known."""

    before: Callable[[str], object] = lambda name: None
    row: Callable[[str, Row], object] = lambda name, row: None
    say: Callable[[str], object] = print


def bulk(
    sources: Mapping[str, Source],
    out: Path,
    engine: Engine,
    checkpoint: Checkpoint,
    options: Options,
    wanted: Wanted,
    made_by: str,
    *,
    megabytes: float | None = None,
    devices: int = 1,
    progress: Progress = Progress(),  # noqa: B008
) -> int:
    """Reconstruct the scans into the folders DIR/<name>, with bulk.csv and bulk.html.

    made_by: a digest of all that decides the results beside a scan; megabytes, devices: see `Memory.room`. Returns the
    worst exit code of the scans, see WORST. A scan that fails stops no other. Raises BadInputError where nothing can be
    written, or another run writes there.
    """
    with alone(out):
        rows: dict[str, Row | None] = dict.fromkeys(sources)
        jobs = {}
        for name, source in sources.items():
            shown = "the scan" if wanted.outputs.anonymize else source.where
            job = Job(name, source, out, shown, options, wanted, made_by, _earlier(out / name, shown, made_by))
            if job.earlier is not None and job.earlier["stamp"] == source.stamp:
                rows[name] = job.earlier
                progress.before(name)
            else:
                jobs[name] = job
        try:
            memory = Memory({name: sources[name] for name in jobs}, options, checkpoint, engine)
            room = memory.room(megabytes, devices) if engine.workers > 1 else math.inf
            need = memory.need if engine.workers > 1 else lambda name: 0.0
            if memory.remark is not None:
                progress.say(memory.remark)
            calls = {name: (reconstructed, (job,)) for name, job in jobs.items()}
            for name, answer in answers(engine, calls, need, room):
                row = rows[name] = _lost(jobs[name], answer) if isinstance(answer, Lost) else answer
                progress.row(name, row)
            shutil.rmtree(out / PARTS, ignore_errors=True)
        finally:
            progress.say(f"{out}/{', '.join(write(out, rows))}")
    return max((row["exit_code"] for row in rows.values() if row is not None), key=WORST.index)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """The folder `out`, for this driver and no other. Raises BadInputError."""
    with telling(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInputError(
                f"another bulk run writes to {out}: wait for its end or choose another --out"
            ) from error
        shutil.rmtree(out / PARTS, ignore_errors=True)  # of a driver that was ended
        yield


def _earlier(folder: Path, shown: str, made_by: str) -> Row | None:
    """The row of an earlier run that did the same to the scan of that name, if its content is the same. Raises
    BadInputError for a folder that is not ours, which would be replaced."""
    if not folder.exists():
        return None
    if not (folder / ROW).exists():
        raise BadInputError(f"{folder} is there and not of an earlier bulk run: choose another --out")
    row = row_in(folder)
    same = row is not None and row["error"] is None and (row["scan"], row["made_by"]) == (shown, made_by)
    return row if same else None


def _lost(job: Job, answer: Lost) -> Row:
    error = (
        f"the process that reconstructed it ended {ATTEMPTS} times ({answer.reason}): give it a machine with more "
        "memory or another device, or look into the system's log"
    )
    return put(job, job.out / PARTS / f"lost-{job.name}", {**job.row(), "error": error, "exit_code": UNEXPECTED})
