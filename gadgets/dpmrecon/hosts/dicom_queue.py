"""`serve --dicom DIR --send AET@host:port`: the DICOM of each scan, written and sent after its peer has its images.

A scan's images wait in DIR/queue, from before its peer is told CLOSE until the archive has them: a process that is
killed goes on with them at its next start. DIR/NAME/ holds the files, as `replay` has them in dicom/. What the archive
refuses for good is told in DIR/refused/NAME.json, and its files stay; a scan of which no DICOM can be made is told
there too. An archive that cannot be reached is tried again until it can; it may then get an image twice, which it knows
by its UID.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ismrmrd

from ..data import LostSlice
from ..dicom.send import Archive, dicom_files, send
from ..dicom.write import DicomOptions, write_dicom
from ..errors import BadInputError, DpmreconError
from ..files import write_text
from ..mrd.header import Header
from ..mrd.scan_log import ScanLog
from ..options import Options
from ..output.images_file import ImagesFile, Outputs
from ..output.report import Report
from ..output.weighting import Weighting
from ..output.writers import telling
from ..recon.provenance import Provenance
from ..recon.types import Reconstruction

log = logging.getLogger("dpmrecon")

PAUSES = (2.0, 10.0, 60.0, 300.0)
FAILURES = 4  # of one scan's DICOM, for reasons that nobody knows


class DicomJob:
    """A writer of one scan into the queue. xml: its header with the options' changes; digest: called at the scan's end,
    SHA-256 of what the peer sent, hex.

    note: gets a line where no DICOM will come: the peer has its images all the same.
    """

    def __init__(
        self,
        queue: "DicomQueue",
        header: Header,
        xml: bytes,
        options: Options,
        provenance: Provenance,
        weighting: Weighting | None,
        digest: Callable[[], str],
        note: Callable[[str], None],
    ):
        self._queue, self._weighting, self._digest, self._note = queue, weighting, digest, note
        self._report = Report(Path(), None, provenance, ScanLog())  # for what decided the images
        self._options = DicomOptions(reformat=options.reformat)
        self._folder = queue.waiting / f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:8]}.coming"
        self._images: ImagesFile | None = None
        with self._kept():
            with telling(queue.folder):
                queue.waiting.mkdir(mode=0o700, exist_ok=True)  # the folder may have been emptied
                self._folder.mkdir(mode=0o700)
            self._images = ImagesFile(self._folder / "images.h5", header, xml, Outputs(options.outputs))

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """What fails here costs the DICOM, not the scan."""
        try:
            yield
        except BadInputError as error:
            cause = error.__cause__
            self._fail(str(error) if cause is None else f"cannot write to {self._queue.folder} ({cause}): mend that")
        except Exception as error:  # whose text may hold values from the header
            self._fail(f"internal error: {type(error).__name__}")

    def _fail(self, reason: str) -> None:
        self._note(f"no DICOM: {reason}")
        self._queue.not_taken = f"a scan was not taken, {reason}"
        self._drop()

    def _drop(self) -> None:
        if self._images is not None:
            with contextlib.suppress(Exception):
                self._images.close(None)
            self._images = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None:
        self._report.add(item, images)
        with self._kept():
            if self._images is not None:
                self._images.add(item, images)

    def put(self, image: ismrmrd.Image) -> None:
        """Store an image that is of no slice alone, as a map."""
        with self._kept():
            if self._images is not None:
                self._images.put(image)

    def close(self, failure: BaseException | None) -> None:
        """Queue the scan; one that broke off has no DICOM, as with `replay`."""
        if failure is not None or not any("missing" not in entry for entry in self._report.slices):
            self._drop()
            return
        with self._kept():
            if self._images is None:
                return
            self._images.close(None)
            run = self._report.deciding()
            if self._weighting is not None:
                run["weighting"] = asdict(self._weighting)
            job = {"digest": self._digest(), "run": run, "reformat": self._options.reformat}
            job["missing"] = self._report.missing
            with telling(self._queue.folder):
                write_text(self._folder / "job.json", json.dumps(job))
                for path in (*self._folder.iterdir(), self._folder):
                    _on_disk(path)
                os.replace(self._folder, self._folder.with_suffix(""))
                _on_disk(self._queue.waiting)
            self._queue.not_taken = None
            self._queue.wake()


class _NotTakenError(DpmreconError):
    """The archive was there and did not take a scan's images this time: others may fare better."""


class DicomQueue:
    """Works on the scans in DIR/queue, in the order they came, in a thread, from `start` on.

    archive: None sends nothing; pauses: seconds between tries to reach it, the last one stays. not_taken: that the last
    scan could not be queued, and why.

    Raises BadInputError where the folder cannot be written or another service has it.
    """

    def __init__(self, folder: Path, archive: Archive | None, pauses: tuple[float, ...] = PAUSES):
        self.folder, self.waiting, self._refused = folder, folder / "queue", folder / "refused"
        self._archive, self._pauses = archive, pauses
        self._stopping, self._woken = threading.Event(), threading.Event()
        self._failures: Counter[str] = Counter()  # of each scan that waits
        self.not_taken: str | None = None
        self._failure: str | None = None  # of the last round
        self._thread = threading.Thread(target=self._work, daemon=True, name="dicom")
        with telling(folder, "choose another --dicom"):
            self.waiting.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = open(self.waiting / "lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise BadInputError(f"{folder} is another service's: choose another --dicom") from error
        for path in self.waiting.glob("*.coming"):  # its peer was not told CLOSE, and sends it again
            shutil.rmtree(path)

    @property
    def problem(self) -> str | None:
        """What is wrong with the DICOM now, in words; None where nothing is."""
        return "; ".join(filter(None, (self.not_taken, self._failure))) or None

    def jobs(self) -> list[Path]:
        """Scans that wait, in order."""
        return sorted(path for path in self.waiting.iterdir() if path.is_dir() and path.suffix != ".coming")

    def start(self) -> None:
        """Begin with what is there."""
        self._thread.start()

    def wake(self) -> None:
        """A scan has come."""
        self._woken.set()

    def stop(self) -> None:
        """End after the image in hand; what waits stays on disk."""
        self._stopping.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join(60.0)
        self._lock.close()

    def _work(self) -> None:
        tries = 0
        while not self._stopping.is_set():
            self._woken.clear()
            if self._stopping.is_set():  # since the line before the last
                return
            failure, done, left = self._round()
            self._failure = failure
            if failure is None:
                tries = 0
                self._woken.wait()
                continue
            tries = 0 if done else tries
            pause = self._pauses[min(tries, len(self._pauses) - 1)]
            tries += 1
            log.error("%s: tried again in %g s, %d scans wait", failure, pause, left)
            self._woken.wait(pause)

    def _round(self) -> tuple[str | None, int, int]:
        """All scans that wait, one after the other: (what failed, None where nothing did; scans done; scans left)."""
        failure, done = None, 0
        try:
            jobs = self.jobs()
        except OSError as error:
            return f"cannot read {self.waiting} ({error.strerror})", 0, 0
        for job in jobs:
            try:
                self._one(job)
                done += 1
            except _NotTakenError as error:
                failure = f"{job.name}: {error}"
            except DpmreconError as error:  # of the archive or the disk: no other scan would fare better
                return str(error), done, len(jobs) - done
            except Exception as error:  # whose text may hold values from the header
                failure = f"the DICOM of {job.name} failed ({type(error).__name__})"
                self._failures[job.name] += not isinstance(error, OSError)  # the disk may be well again
        return failure, done, len(jobs) - done

    def _one(self, job: Path) -> None:
        """Write a scan's files where they are not there yet, and send them. Raises DpmreconError to be tried again."""
        target = self.folder / job.name
        if self._failures[job.name] >= FAILURES:
            self._give_up(job, {"": f"its DICOM failed {FAILURES} times: the log has the errors' names"})
            return
        try:
            if not target.exists():
                self._write(job, target)
            files = dicom_files(target)
        except BadInputError as error:
            if isinstance(error.__cause__, OSError):  # no room
                raise DpmreconError(f"cannot write to {self.folder} ({error.__cause__}): make room") from error
            self._give_up(job, {"": f"no DICOM: {error}"})
            return
        refused: dict[str, str] = {}
        if self._archive is not None:
            report = send(files, self._archive, retries=0, sleep=self._stopping.wait, quiet=True)
            if report.temporary:
                reason = next(report.refused[path] for path in report.temporary)
                raise _NotTakenError(f"archive {self._archive}: {reason}")
            refused = {str(path.relative_to(target)): reason for path, reason in report.refused.items()}
            log.info("%d images of %s stored at %s", report.stored, job.name, self._archive)
        if refused:
            self._give_up(job, refused)
        else:
            self._remove(job)

    def _write(self, job: Path, target: Path) -> None:
        told: dict[str, Any] = json.loads((job / "job.json").read_text())
        written = job / "dicom"
        shutil.rmtree(written, ignore_errors=True)  # of a process that was killed
        options = DicomOptions(reformat=told["reformat"])
        missing = told.get("missing", "")  # jobs of earlier versions lack it
        files = write_dicom(job / "images.h5", written, told["digest"], told["run"], options, log.warning, missing)
        if not files:
            raise BadInputError("its images are complex alone, which DICOM cannot hold: ask for the magnitude as well")
        for path in (*files, *{file.parent for file in files}, written):
            _on_disk(path)
        os.replace(written, target)
        _on_disk(self.folder)

    def _give_up(self, job: Path, reasons: dict[str, str]) -> None:
        for name, reason in reasons.items():
            log.error("refused: %s %s: %s", job.name, name, reason)
        self._refused.mkdir(exist_ok=True)
        write_text(self._refused / f"{job.name}.json", json.dumps(reasons, indent=1) + "\n")
        self._remove(job)

    def _remove(self, job: Path) -> None:
        aside = job.with_name(f"{job.name}.coming")  # half of it would look like a scan to whoever starts next
        os.replace(job, aside)
        del self._failures[job.name]
        shutil.rmtree(aside)


def _on_disk(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
