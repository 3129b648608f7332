"""The audit log: one line of JSON for each scan that was taken, without patient data.

What a line holds is gathered by session.py. Lines go into one file, which several processes may share; a full one is
put aside as FILE.1, FILE.2 ... A line that cannot be written costs no scan: it is said in the process's log, where the
same line stands.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import hmac
import json
import logging
import os
import platform
import secrets
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInputError
from ..version import __version__

if TYPE_CHECKING:
    import torch

    from ..mrd.header import Header
    from ..prior.checkpoint import Checkpoint

log = logging.getLogger("dpmrecon")

VARIABLE = "DPMRECON_AUDIT"  # of the environment: the file, where no option names one
LARGEST_BYTES = 16 << 20  # of one file: some 10000 scans
KEPT = 20  # files put aside
KEY_BYTES = 32


class AuditLog:
    """Appends to `path`. The key of the hashes lies beside it, made at the first use: audit.key of audit.jsonl."""

    def __init__(self, path: Path, largest: int = LARGEST_BYTES, kept: int = KEPT):
        self.path = path
        self._problems: dict[str, str] = {}  # with the key, with the lines: as they were at the last use
        self._largest, self._kept = largest, kept
        self._key_path = path.with_suffix(".key")

    @property
    def problem(self) -> str | None:
        """What is wrong with the log now, in words; None where nothing is."""
        return "; ".join(self._problems.values()) or None

    def check(self) -> None:
        """Raises BadInputError where the folder is missing or may not be written. A full disk may be full no more when
        the first scan comes: that is no reason not to start."""
        path = self.path
        closed = [p for p in (path, self._key_path) if p.exists() and not os.access(p, os.W_OK | os.R_OK)]
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK) or closed:
            raise BadInputError(
                f"audit log {path} cannot be written by user {os.getuid()}: give a folder that exists and is theirs"
            )

    def hash(self) -> hmac.HMAC | None:
        """A keyed hash (HMAC-SHA256) of a scan's bytes: without the site's key nobody can try scans against it. None
        where there is no key and none can be stored."""
        try:
            with self._locked():
                key = self._key()
            self._problems.pop("key", None)
            return hmac.new(key, digestmod=hashlib.sha256)
        except OSError as error:
            self._failed("key", "the audit log's key could not be read or stored in", error)
            return None

    def write(self, record: dict[str, Any]) -> None:
        """Append one line. Raises nothing."""
        line = json.dumps(record).encode() + b"\n"
        try:
            with self._locked():
                if self.path.exists() and self.path.stat().st_size + len(line) > self._largest:
                    self._rotate()
                _append(self.path, b"\n" + line if _is_torn(self.path) else line)
            self._problems.pop("line", None)
        except OSError as error:
            self._failed("line", "an audit line could not be written to", error)

    def _failed(self, part: str, what: str, error: OSError) -> None:
        self._problems[part] = f"{what} {self.path.parent} ({error.strerror})"
        log.error("%s: mend that; the scan goes on, and its line stands in this log", self._problems[part])

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _key(self) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            key = self._key_path.read_bytes()
            if len(key) != KEY_BYTES:
                raise OSError(errno.EINVAL, f"{self._key_path.name} holds no key of {KEY_BYTES} bytes")
            return key
        key = secrets.token_bytes(KEY_BYTES)
        try:
            _append(self._key_path, key, mode=0o600)
        except OSError:
            self._key_path.unlink(missing_ok=True)
            raise
        return key

    def _rotate(self) -> None:
        for number in range(self._kept, 0, -1):
            older = self.path if number == 1 else self._aside(number - 1)
            with contextlib.suppress(FileNotFoundError):
                os.replace(older, self._aside(number))

    def _aside(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def origin(checkpoint: "Checkpoint", device: "torch.device") -> dict[str, Any]:
    """What reconstructs: model, device and versions."""
    import torch

    packages = {name: version(name) for name in ("torch", "numpy", "ismrmrd")}
    return {
        "model": checkpoint.model_id,
        "model_sha256": checkpoint.card["checksum_sha256"],
        "device": f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device),
        "versions": {"dpmrecon": __version__, "python": platform.python_version(), **packages},
    }


def header_digest(header: "Header") -> dict[str, Any]:
    """How a scan was acquired, in numbers, and a hash of those parts of its header that name nobody."""
    from ..mrd.header import acceleration

    encodings = [dataclasses.asdict(encoding) for encoding in header.encoding]
    others = [header.sequenceParameters, header.experimentalConditions]
    text = json.dumps([encodings, *(part and dataclasses.asdict(part) for part in others)], default=str)
    return {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "encodedSpace": encodings[0]["encodedSpace"],
        "reconSpace": encodings[0]["reconSpace"],
        "R": acceleration(header),
    }


def _is_torn(path: Path) -> bool:
    """Whether the last line has no end: a process was killed, or the power failed, while it was written."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _append(path: Path, data: bytes, mode: int = 0o640) -> None:
    """All of `data` onto the disk, or nothing: half a line would spoil the next one too."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)
    try:
        before = os.fstat(file).st_size
        try:
            left = data
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        except OSError:
            os.ftruncate(file, before)
            raise
    finally:
        os.close(file)
