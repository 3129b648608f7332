"""What a worker of a bulk run does with a scan: `replay`, into a folder that gets its name once it is whole."""

import contextlib
import functools
import json
import os
import shutil
import socket
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..device import why_lost
from ..errors import UNEXPECTED, BadInputError, DeviceError, DpmreconError
from ..files import from_json, write_text
from ..mrd.receiving import Receiving, open_as
from ..options import Options
from ..output.mrd_images import recon_shape
from ..output.protocol_report import Row, files_in
from ..output.writers import telling
from ..recon import plan
from ..replay import replay
from ..results import Wanted
from .sources import Source

if TYPE_CHECKING:
    from ..prior.checkpoint import Checkpoint

ROW = "bulk.json"  # in the folder of a scan that is done, or cannot be
PARTS = ".unfinished"  # where folders wait for their names
OURS = {ROW, "dicom", "images.h5", "nifti", "preview.png", "report.json"}


@dataclass(frozen=True)
class Job:
    """A scan to be done. name: of its folder below `out`; shown: how the report calls it; made_by: a digest of all that
    decides the results beside the scan; earlier: the row of an earlier run that did the same, if the content was."""

    name: str
    source: Source
    out: Path
    shown: str
    options: Options
    wanted: Wanted
    made_by: str
    earlier: Row | None = None

    def row(self) -> Row:
        """Before anything is known of the scan."""
        return {
            "name": self.name,
            "scan": self.shown,
            "scan_sha256": None,
            "stamp": self.source.stamp,
            "made_by": self.made_by,
            "protocol": None,
            "contrast": None,
            "matrix": None,
            "error": None,
            "exit_code": 0,
            "files": {},
        }


def reconstructed(job: Job) -> Row:
    """The scan in its folder, and its row, which lies there too; what fails is told by the row."""
    row, path = job.row(), None
    part = job.out / PARTS / f"{socket.gethostname()}-{os.getpid()}-{job.name}"
    try:
        with job.source.local() as path, open_as(path, job.options) as scan:
            row["scan_sha256"] = scan.digest
            if job.earlier is not None and job.earlier["scan_sha256"] == scan.digest:
                row = {**job.earlier, "stamp": job.source.stamp}
                write_row(job.out / job.name, row)
                return row
            _check_ours(job.out / job.name)
            measurement = scan.header.measurementInformation
            row |= {
                "protocol": getattr(measurement, "protocolName", None),
                "matrix": list(recon_shape(scan.header)),
            }
            if scan.n_slices == 0:
                raise BadInputError(f"{path} holds no line of an image: it is no scan to reconstruct")
            checkpoint = _loaded(job.options)
            checkpoint, row["contrast"], sampling = plan.asked(job.options, checkpoint, scan.header)
            report = replay(
                scan,
                part,
                checkpoint,
                row["contrast"],
                sampling,
                checkpoint.model.device,
                wanted=job.wanted,
                receiving=Receiving.of(job.options, scan.header),
                combine_averages=job.options.combine_averages,
            )
            row |= {**report.summary(), "exit_code": report.exit_code, "files": files_in(part)}
    except DpmreconError as error:
        if isinstance(error, DeviceError) and why_lost(_loaded(job.options).model.device) is not None:
            print(f"dpmrecon: {job.name}: {error}", file=sys.stderr, flush=True)
            os._exit(UNEXPECTED)  # the scan is begun again, by a process that has the device
        row |= {"error": _told(error, path, job), "exit_code": error.exit_code}
    except Exception as error:  # the others are not to wait for its repair
        traceback.print_exc()
        row |= {"error": f"unexpected: {_told(error, path, job)}", "exit_code": UNEXPECTED}
    return put(job, part, row)


def put(job: Job, part: Path, row: Row) -> Row:
    """Give the folder `part` its row and its name, in place of an earlier one; a row that cannot be kept says so."""
    folder, old = job.out / job.name, part.with_name(f"{part.name}-old")
    try:
        with telling(job.out, "make room or choose another --out"):
            _check_ours(folder)
            part.mkdir(parents=True, exist_ok=True)
            write_row(part, row)
            if folder.exists():
                os.replace(folder, old)
            os.replace(part, folder)
    except BadInputError as error:
        return {**row, "error": row["error"] or str(error), "exit_code": row["exit_code"] or 2}
    shutil.rmtree(old, ignore_errors=True)
    return row


def write_row(folder: Path, row: Row) -> None:
    """Raises BadInputError."""
    with telling(folder, "make room or choose another --out"):
        write_text(folder / ROW, json.dumps(row, indent=1) + "\n")


def row_in(folder: Path) -> Row | None:
    """The row of an earlier run whose files are all there; None where there is none."""
    row, there = _earlier_row(folder), files_in(folder)
    whole = {"files", "scan", "scan_sha256", "stamp", "made_by", "error"} <= row.keys()
    return row if whole and all(there.get(name, -1) >= count for name, count in row["files"].items()) else None


def _earlier_row(folder: Path) -> Row:
    """Empty where there is none."""
    with contextlib.suppress(OSError, ValueError):
        row = from_json((folder / ROW).read_text())
        return row if isinstance(row, dict) else {}
    return {}


def _check_ours(folder: Path) -> None:
    """Raises BadInputError for the folder of an earlier run to which somebody has added files."""
    told = _earlier_row(folder).get("files", {})
    more = [
        name for name, count in files_in(folder).items() if name not in {*OURS, *told} or count > told.get(name, count)
    ]
    if more:
        raise BadInputError(
            f"{folder} has files that no bulk run wrote ({', '.join(more)}) and would be replaced: move them elsewhere"
        )


@functools.lru_cache(maxsize=1)
def _loaded(options: Options) -> "Checkpoint":
    return plan.load(options, final=True)[0]


def _told(error: Exception, path: Path | None, job: Job) -> str:
    text = str(error) or type(error).__name__
    return text if path is None else text.replace(str(path), job.shown)
