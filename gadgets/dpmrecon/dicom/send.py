"""`dpmrecon send`: DICOM files to an archive (C-STORE): progress, retries, a report of refusals."""

import argparse
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import BadInputError, DpmreconError

RETRIES = 3
PAUSE_SECONDS = 2.0
TIMEOUT_SECONDS = 30.0
# C-STORE statuses by their first digits (DICOM PS3.4 table B.2-1, PS3.7 annex C)
_REASONS = (
    (r"0122", "the archive takes no images of this SOP class"),
    (r"0124", "not authorized"),
    (r"A7..", "out of resources"),
    (r"A9..", "data set does not match its SOP class"),
    (r"C...", "cannot understand the data set"),
    (r"01..", "processing failure"),
)
# worth another try: the archive is short of something now
_TEMPORARY = r"A7.."


class SendError(DpmreconError):
    """The archive cannot be reached or does not speak with us. permanent: another try would end the same way."""

    def __init__(self, message: str, *, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


@dataclass(frozen=True)
class Archive:
    """An archive: application entity title, host and port."""

    title: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


@dataclass
class Report:
    """What became of the files: stored (with a warning, some of them), or refused for a reason.

    temporary: those of the refused that another try may bring through.
    """

    stored: int = 0
    warnings: dict[Path, str] = field(default_factory=dict)
    refused: dict[Path, str] = field(default_factory=dict)
    temporary: set[Path] = field(default_factory=set)


def archive_from_text(text: str) -> Archive:
    """AET@host:port; a title is printable ASCII without backslash. Raises BadInputError."""
    match = re.fullmatch(r"([ -?A-\[\]-~]{1,16})@(\[[0-9A-Fa-f:.]+\]|[^@:\s]+):(\d{1,5})", text)
    if not match or not match[1].strip() or not 0 < int(match[3]) < 65536:
        raise BadInputError(
            f"archive '{text}' is not usable: give AET@host:port, as in ORTHANC@localhost:4242, with 1 to 16 ASCII "
            "characters before the @"
        )
    return Archive(match[1].strip(), match[2].strip("[]"), int(match[3]))


def dicom_files(folder: Path) -> list[Path]:
    """All .dcm files under a folder, in order of name. Raises BadInputError where there are none."""
    files = sorted(folder.rglob("*.dcm")) if folder.is_dir() else []
    if not files:
        raise BadInputError(f"{folder} holds no .dcm files: give the folder that a replay wrote")
    return files


def send(
    files: list[Path],
    archive: Archive,
    title: str = "DPMRECON",
    *,
    retries: int = RETRIES,
    pause: float = PAUSE_SECONDS,
    sleep: Callable[[float], object] = time.sleep,
    quiet: bool = False,
) -> Report:
    """Send files to an archive one by one, so that memory holds one.

    A connection that breaks, or an archive that is short of resources, is tried again `retries` times, `pause`
    seconds apart. quiet: without a bar. Raises SendError where no association can be made.
    """
    report = Report()
    left = dict.fromkeys(files, "")
    with tqdm(total=len(files), unit="image", disable=quiet) as bar:
        for attempt in range(retries + 1):
            if attempt:
                sleep(pause)
            try:
                with _association(archive, title) as association:
                    left = _send_once(association, left, report, bar)
            except SendError as error:
                if error.permanent or (attempt == retries and not report.stored):
                    raise
                left = {path: reason or "the archive is gone" for path, reason in left.items()}
            if not left:
                break
    report.refused |= {path: f"{reason}, {retries + 1} times" for path, reason in left.items()}
    report.temporary = set(left)
    return report


def _send_once(association: Any, files: dict[Path, str], report: Report, bar: Any) -> dict[Path, str]:
    """Send all files over one association; returns those worth another try, with the reason."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    again: dict[Path, str] = {}
    for path in files:
        try:
            file = dcmread(path)
        except (InvalidDicomError, OSError) as error:
            report.refused[path] = f"not a readable DICOM file ({error})"
            bar.update()
            continue
        status = _store(association, file)
        reason = _reason(status)
        if reason is not None and (not status or re.fullmatch(_TEMPORARY, f"{status.Status:04X}")):
            again[path] = reason
            continue
        if reason is not None:
            report.refused[path] = reason
        else:
            report.stored += 1
            if status.Status:
                report.warnings[path] = f"status 0x{status.Status:04X}"
        bar.update()
    return again


@contextmanager
def _association(archive: Archive, title: str) -> Iterator[Any]:
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage
    from pynetdicom import AE, evt

    entity = AE(ae_title=title)
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = TIMEOUT_SECONDS
    entity.add_requested_context(MRImageStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    association = entity.associate(
        archive.host, archive.port, ae_title=archive.title, evt_handlers=[(evt.EVT_CONN_OPEN, _at_once)]
    )
    if not association.is_established:
        answer: Any = association.acceptor.primitive
        permanent = answer is not None
        if association.is_rejected:
            permanent = answer.result == 1
            why = f"it refuses the association ({answer.reason_str}): check both application entity titles there"
        elif answer is not None:
            why = "it takes no MR images (SOP class or transfer syntax): allow MR Image Storage there"
        else:
            why = "no answer: check host and port, and that the archive runs"
        raise SendError(f"archive {archive} cannot be used, {why}", permanent=permanent)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _at_once(event: Any) -> None:
    """Small packets do not wait for the archive's answer to those before, which it delays by 40 ms."""
    connection = event.assoc.dul.socket.socket
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _store(association: Any, file: Any) -> Any:
    """The status of one C-STORE; an empty one where the connection broke."""
    from pydicom.dataset import Dataset

    if not association.is_established:
        return Dataset()
    try:
        status = association.send_c_store(file)
        if not status:
            association.kill()  # it would notice an end when the next image times out
        return status
    except RuntimeError:  # the association ended between two images
        return Dataset()
    except ValueError as error:  # another SOP class than agreed, or a data set that cannot be encoded
        status = Dataset()
        status.Status, status.ErrorComment = 0x0122, str(error)[:64]
        return status


def _reason(status: Any) -> str | None:
    """Why an image was refused, None where it was stored."""
    if not status:
        return "the connection broke"
    code = f"{status.Status:04X}"
    if code == "0000" or code.startswith("B"):
        return None
    text = next((reason for pattern, reason in _REASONS if re.fullmatch(pattern, code)), "refused")
    comment = str(getattr(status, "ErrorComment", "") or "")
    return f"{text} (status 0x{code}{f', {comment}' if comment else ''})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dpmrecon send`."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder with .dcm files, subfolders included")
    parser.add_argument("--to", required=True, metavar="AET@host:port", help="the archive")
    parser.add_argument("--as", dest="title", default="DPMRECON", metavar="AET", help="our title (default: DPMRECON)")
    parser.add_argument("--retries", type=int, default=RETRIES, help=f"further tries (default: {RETRIES})")


def run(args: argparse.Namespace) -> int:
    """`dpmrecon send`: 0 where all is stored, 1 where something was refused. Raises BadInputError, SendError."""
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", args.title) or args.retries < 0:
        raise BadInputError(
            f"--as is '{args.title}' and --retries {args.retries}: give 1 to 16 characters, and 0 or more"
        )
    archive, files = archive_from_text(args.to), dicom_files(args.folder)
    report = send(files, archive, args.title, retries=args.retries)
    for path, reason in report.warnings.items():
        print(f"stored with a warning: {path.relative_to(args.folder)}: {reason}", file=sys.stderr)
    for path, reason in report.refused.items():
        print(f"refused: {path.relative_to(args.folder)}: {reason}", file=sys.stderr)
    print(f"{report.stored} of {len(files)} images stored at {archive}, {len(report.refused)} refused")
    return 1 if report.refused else 0
