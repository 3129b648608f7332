"""The result folder of a replay: what may be written there, and how long its last files take."""

import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

import numpy as np

from ..errors import BadInputError
from .images_file import is_ours
from .preview import ROWS, write_preview
from .scores import METHODS
from .writers import telling

log = logging.getLogger("dpmrecon")

# what a replay writes below its folder
_OURS = re.compile(r"dicom/\d+_\w+/IM\d+\.dcm|nifti/\d+_\w+\.nii\.gz", re.ASCII)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The folder, made if missing, for this run and no other: images of one scan are not to become another's DICOM. One
    that was made and stayed empty goes again.

    A file system without locks gives none. Raises BadInputError.
    """
    made = not folder.exists()
    with telling(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInputError(f"another run writes to {folder}: wait for its end or choose another --out") from error
        except OSError as error:
            log.debug("%s cannot be locked: %s", folder, error)
        yield
    finally:
        if made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        os.close(held)


def cleared(folder: Path, scan_file: Path) -> Path:
    """The folder, made if missing, without an earlier replay's files.

    Raises BadInputError where the scan lies there, or what is there is not ours, or it cannot be written. Hidden files,
    as viewers leave them, are nobody's.
    """
    folders, scan = [folder / "dicom", folder / "nifti"], scan_file.resolve()
    if {path.resolve() for path in (folder / "images.h5", *folders)} & {scan, *scan.parents}:
        raise BadInputError(f"the scan {scan_file} lies where the results go: choose another --out")
    if not (folder / "report.json").exists() and not is_ours(folder / "images.h5"):
        raise BadInputError(f"{folder / 'images.h5'} is there and no replay wrote it: choose another --out")
    for found in folders:
        if found.exists() and not (folder / "report.json").exists():
            raise BadInputError(f"{found} is there and not of an earlier replay: choose another --out")
        for path in sorted(found.rglob("*")):
            inside = path.relative_to(folder).as_posix()
            if not (path.is_dir() or path.name.startswith(".") or _OURS.fullmatch(inside)):
                raise BadInputError(
                    f"{found} has files that no replay wrote ({path.relative_to(found)}) and would be replaced: move "
                    "them elsewhere or choose another --out"
                )
    with telling(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for found in folders:
            if found.exists():
                shutil.rmtree(found)
        for name in ("images.h5", "preview.png", "report.json"):  # the last is what says that the folders were ours
            (folder / name).unlink(missing_ok=True)
    return folder


def seconds_to_finish(n_slices: int, *, truth: bool, files: int = 2, rows: int = 1) -> float:
    """About what preview, report, DICOM and NIfTI take after the last slice: measured on a picture of one row.

    files: images of a slice in DICOM and NIfTI; rows: of the preview that a slice, or volume, makes.
    """
    row = {name: np.zeros((256, 256)) for name in (*METHODS, "std of samples x5")}
    write_preview(BytesIO(), [{name: image[:8, :8] for name, image in row.items()}], [""], [1.0])  # what is set up once
    started = time.perf_counter()
    write_preview(BytesIO(), [row], [""], [1.0])
    one = time.perf_counter() - started
    # pictures of something take a fifth more, a file an eighth of a row, loading three rows
    return one * (1.2 * min(n_slices, ROWS) * rows * (2 if truth else 1) + n_slices * files / 8 + 3)
