"""The scans of a bulk run: files below folders, and below addresses that fsspec knows (s3://, gs://, zip:// ...)."""

import hashlib
import hmac
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import BadInputError, first_line
from ..mrd.file import SUFFIXES

LONGEST = 120  # bytes of a result folder's name


@dataclass(frozen=True)
class Source:
    """A scan that is there. where: its path or address; size: in bytes, and stamp: what the file system tells of its
    content without reading it, size and time of the last change; files: fsspec's file system of an address, which has
    it as `inner`; None for a path of this machine."""

    where: str
    size: int
    stamp: str
    files: Any = None
    inner: str = ""

    @contextmanager
    def local(self) -> Iterator[Path]:
        """Its file on this machine. All of a scan is read, so that of an address is fetched once, and removed. Raises
        BadInputError."""
        if self.files is None:
            yield Path(self.where)
            return
        with tempfile.TemporaryDirectory(prefix="dpmrecon-") as folder:
            path = Path(folder) / PurePosixPath(self.inner).name
            fetch(self.files, self.inner, path)
            yield path


def fetch(files: Any, inner: str, path: Path) -> None:
    """Copy what fsspec's file system `files` has as `inner` to `path`. Raises BadInputError."""
    try:
        files.get_file(inner, str(path))
    except Exception as error:  # each kind of address raises its own
        raise BadInputError(f"{inner} cannot be fetched ({first_line(error)}): look whether it is there") from error


def files_at(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it. Raises BadInputError."""
    if find_spec("fsspec") is None:
        raise BadInputError(f"the address {address} needs fsspec, which is not installed: pip install dpmrecon[bulk]")
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(address)
    except Exception as error:  # each kind of address raises its own
        raise BadInputError(f"{address} cannot be opened ({first_line(error)}): give a folder or an address") from error


def listed(inputs: Sequence[str], out: Path) -> dict[str, Source]:
    """The scans of folders and addresses, subfolders included, and of files, by the names of their result folders.

    out: the folder of the results, which is passed over, as images.h5 of a replay is. A name tells the path below the
    folder that was given, behind that folder's own name where there are several. Raises BadInputError for an input
    without any scan.
    """
    found: dict[str, tuple[str, Source]] = {}
    for given in inputs:
        scans = _at_address(given) if "://" in given else _below(Path(given), out)
        if not scans:
            raise BadInputError(f"{given} holds no scan: give a folder with {', '.join(SUFFIXES)} files, or the files")
        for below, source in scans:
            parts = PurePosixPath(below).with_suffix("").parts
            if len(inputs) > 1 and source.where != _absolute(given):
                parts = (PurePosixPath(given).name, *parts)
            found.setdefault(source.where, ("__".join(parts), source))
    often = Counter(name for name, _ in found.values())
    return {
        name if often[name] == 1 and len(_bytes(name)) <= LONGEST else f"{_cut(name)}-{_short(source.where)}": source
        for name, source in found.values()
    }


def anonymous(sources: Mapping[str, Source], key: bytes) -> dict[str, Source]:
    """The same under names that tell nothing to who has not the key."""
    return {f"scan-{hmac.new(key, _bytes(one.where), 'sha256').hexdigest()[:16]}": one for one in sources.values()}


def _cut(name: str) -> str:
    return _bytes(name)[:LONGEST].decode("utf-8", "ignore")


def _short(text: str) -> str:
    return hashlib.sha256(_bytes(text)).hexdigest()[:8]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)


def _is_scan(name: str) -> bool:
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in SUFFIXES


def _below(given: Path, out: Path) -> list[tuple[str, Source]]:
    """Paths below the folder `given`, or the name of the file, with what is there."""
    if not given.is_dir():
        if not given.exists():
            raise BadInputError(f"{given} does not exist: give a folder of scans, a scan or an address")
        return [(given.name, _at(given))]

    def refuse(error: OSError) -> None:  # rather than to pass over whatever scans it holds
        raise BadInputError(f"the folder {error.filename} cannot be read ({error.strerror})") from error

    passed = {os.path.realpath(given), os.path.realpath(out)}
    found = []
    for folder, folders, names in os.walk(given, onerror=refuse, followlinks=True):
        below = [Path(folder, name) for name in folders if name[0] != "."]
        folders.clear()
        for path in sorted(below, key=lambda path: (path.is_symlink(), path)):
            real = os.path.realpath(path)
            if real not in passed:  # a link may lead back, or to what is listed elsewhere
                folders.append(path.name)
                passed.add(real)
        if {"images.h5", "report.json"} <= set(names) and _of_a_replay(Path(folder, "images.h5")):
            names.remove("images.h5")
        paths = (Path(folder, name) for name in sorted(names) if _is_scan(name))
        # a pipe would be waited for without end
        found += [(path.relative_to(given).as_posix(), _at(path)) for path in paths if not path.is_fifo()]
    return found


def _of_a_replay(images: Path) -> bool:
    from ..output.images_file import is_ours  # it imports torch

    return is_ours(images)


def _at(path: Path) -> Source:
    try:
        there = path.stat()
    except OSError as error:  # its reconstruction tells that it cannot be read
        return Source(_absolute(path), 0, str(error.strerror))
    return Source(_absolute(path), there.st_size, f"{there.st_size} {there.st_mtime_ns}")


def _at_address(address: str) -> list[tuple[str, Source]]:
    """The same below an address. Raises BadInputError."""
    files, top = files_at(address)
    try:
        found = sorted(files.find(top, detail=True).items())
    except Exception as error:  # each kind of address raises its own
        raise BadInputError(f"{address} cannot be listed ({first_line(error)}): look whether it is there") from error
    scans = []
    for inner, told in found:
        below = inner.removeprefix(top).lstrip("/")  # nothing where the address is that of a file
        if _is_scan(PurePosixPath(inner).name) and not any(part[0] == "." for part in PurePosixPath(below).parts):
            where = f"{address.rstrip('/')}/{below}" if below else address
            stamp = hashlib.sha256(_bytes(str(sorted(told.items(), key=str)))).hexdigest()
            scans.append(
                (below or PurePosixPath(inner).name, Source(where, told.get("size") or 0, stamp, files, inner))
            )
    return scans
