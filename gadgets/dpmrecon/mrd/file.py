"""ISMRMRD (MRD) raw files: opened once, each line's samples read once."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import h5py
import ismrmrd
import numpy as np

from ..errors import BadInputError, first_line
from ..read_ahead import ReadAhead
from .flags import CALIBRATION, IGNORED, LAST_IN_SLICE, NOISE, PHASE_CORRECTION, names_of
from .header import Header, calibration_is_separate, overridden, read_header
from .scan_log import ScanLog

LINES = 64  # that are read at once
DIGEST_BYTES = 1 << 22  # that are hashed at once
COUNTERS = ("average", "slice", "repetition", "set", "phase", "contrast")  # the last sorts first


@dataclass
class Scan:
    """An open scan. xml: its header as it stands in the file; header: the same, read; heads: every acquisition's head
    as a structured array.

    groups: one index array per slice key (contrast, phase, set, repetition, slice, average), in that order; log: what
    became of the lines so far.
    """

    path: Path
    xml: bytes
    header: Header
    heads: np.ndarray
    groups: list[np.ndarray]
    _lines: h5py.Dataset
    log: ScanLog = field(default_factory=ScanLog)
    _ahead: ReadAhead | None = None
    _taken: bool = False  # somebody has the lines that are read ahead
    _closing: bool = False  # nobody wants more of them

    @property
    def n_slices(self) -> int:
        """Slices in the file, each contrast, phase, set, repetition and average counted."""
        return sum(bool(np.any(self._of_image(group))) for group in self.groups)

    @property
    def n_coils(self) -> int:
        """Channels of the line that has the most."""
        return int(self.heads["active_channels"].max())

    def n_images(self, combine_averages: bool) -> int:
        """Slices that are reconstructed: those of the file, or one for all of its averages."""
        averages = int(self.heads["idx"]["average"].max()) + 1 if combine_averages else 1
        return -(-self.n_slices // averages)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file, hex. Read front to back through the open file, so that the disk gives it once: what
        HDF5 asks for afterwards is in memory."""
        digest, place = hashlib.sha256(), 0
        file = self._lines.file.id.get_vfd_handle()
        while block := os.pread(file, DIGEST_BYTES, place):
            digest.update(block)
            place += len(block)
        return digest.hexdigest()

    def _of_image(self, index: np.ndarray) -> np.ndarray:
        """Whether lines are neither phase correction nor a calibration of its own."""
        others = PHASE_CORRECTION | (CALIBRATION if calibration_is_separate(self.header) else 0)
        return self.heads["flags"][index] & np.uint64(others) == 0

    def read_ahead(self) -> None:
        """Read the first lines now, in a thread, while whoever takes them gets ready."""
        self._ahead = ReadAhead(self._acquisitions(), LINES)

    def close(self) -> None:
        """End the reading ahead."""
        self._closing = True
        if self._ahead is not None:
            self._ahead.close()

    def acquisitions(self) -> Iterator[ismrmrd.Acquisition]:
        """The lines: noise measurements first, then slice by slice, each slice's last one flagged LAST_IN_SLICE.

        A few lines are read at a time, so that memory grows with what the receiver keeps. Lines that are neither
        noise, calibration nor image are left out. Raises BadInputError when a line cannot be read.
        """
        if self._ahead is None or self._taken:
            return self._acquisitions()
        self._taken = True
        return iter(self._ahead)

    def _acquisitions(self) -> Iterator[ismrmrd.Acquisition]:
        yield from self.noise()
        # slices that hold nothing but calibration serve others, which may come anywhere
        for group in sorted(self.groups, key=lambda group: bool(np.any(self._of_image(group)))):
            for index, samples in self._samples(group):
                acquisition = self._acquisition(index, samples)
                acquisition.flags &= ~LAST_IN_SLICE
                if index == group[-1]:
                    acquisition.flags |= LAST_IN_SLICE
                yield acquisition

    def noise(self) -> Iterator[ismrmrd.Acquisition]:
        """The noise measurement's lines."""
        for index, samples in self._samples(np.flatnonzero(self.heads["flags"] & np.uint64(NOISE))):
            yield self._acquisition(index, samples)

    def _samples(self, group: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(index, samples) of lines; neighbours in the file are read together, which is faster."""
        lines = self._lines.fields("data")
        for run in np.split(group, 1 + np.flatnonzero(np.diff(group) != 1)):
            for first in range(0, len(run), LINES):
                part = run[first : first + LINES]
                try:
                    found = lines[part[0] : part[-1] + 1]
                except (OSError, RuntimeError):  # one of them: those before it are whole
                    found = (self._one(index) for index in part)
                yield from zip(map(int, part), found)
                if self._closing:
                    return

    def _one(self, index: int) -> np.ndarray:
        try:
            return self._lines.fields("data")[index]
        except (OSError, RuntimeError) as error:
            raise BadInputError(
                f"{self.path}: line {index + 1} of {len(self.heads)} cannot be read, the file is damaged; copy it again"
            ) from error

    def _acquisition(self, index: int, samples: np.ndarray) -> ismrmrd.Acquisition:
        # bytes, because ctypes takes no strided buffer
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(self.heads[index].tobytes())
        shape = (head.active_channels, head.number_of_samples)
        data = np.ascontiguousarray(samples, np.float32)
        if data.size != 2 * shape[0] * shape[1]:
            raise BadInputError(
                f"{self.path}: line {index + 1} holds {data.size // 2} samples where its header announces "
                f"{shape[0]} channels of {shape[1]}; the file is damaged, convert the scan again"
            )
        return ismrmrd.Acquisition(head, data.view(np.complex64).reshape(shape))


@contextmanager
def open_scan(
    path: str | os.PathLike,
    *,
    group: str | None = None,
    changes: str | None = None,
    ignored: int = IGNORED,
    noise_alone: bool = False,
) -> Iterator[Scan]:
    """Open an ISMRMRD HDF5 file for reading and read its header and all acquisition heads (340 bytes a line).

    group: of the file, None for the one that holds a scan; changes: header values in place of its own, see
    `header.overridden`; ignored: mask of flags whose lines are left out; noise_alone: a noise measurement is enough.
    Raises BadInputError, in one sentence, for anything that is not a readable scan.
    """
    path = Path(path)
    with _open_hdf5(path) as file:
        measurement = _group(file, path, group, noise_alone)
        if "xml" not in measurement:
            raise BadInputError(
                f"{path}: the group '{measurement.name[1:]}' has no 'xml' header; convert the scan again"
            )
        lines = measurement["data"]
        try:
            xml = np.ravel(measurement["xml"][()])[0]
            heads = _heads(lines).astype(ismrmrd.hdf5.acquisition_header_dtype)
        except (OSError, RuntimeError, KeyError, IndexError, ValueError, TypeError) as error:
            raise BadInputError(
                f"{path}: the header or the lines' heads cannot be read as ISMRMRD ({first_line(error)}); the file is "
                "damaged or of another format"
            ) from error
        xml = xml.encode() if isinstance(xml, str) else bytes(xml)
        log = ScanLog()
        try:
            xml = overridden(xml, changes)
            header = read_header(xml)
        except BadInputError as error:
            raise BadInputError(f"{path}: {error}") from error.__cause__
        _correct(header, heads, ignored, log)
        scan = Scan(path, xml, header, heads, _grouped(heads, ignored), lines, log)
        for mask in np.unique(heads["flags"][heads["flags"] & np.uint64(ignored) != 0]):
            count = int((heads["flags"] == mask).sum())
            log.count(f"left out: {names_of(int(mask) & ignored)[0]}", int(mask), count)
        try:
            yield scan
        finally:
            scan.close()


def _group(file: h5py.File, path: Path, name: str | None, noise_alone: bool) -> h5py.Group:
    """The group of the scan: the one that is asked for, else `dataset`, else the only one with lines of an image."""
    found = {
        key: item
        for key, item in file.items()
        if isinstance(item, h5py.Group) and isinstance(item.get("data"), h5py.Dataset) and item["data"].size
    }
    if name is not None:
        if name not in found:
            raise BadInputError(f"{path} has no group '{name}' with lines: it has {', '.join(found) or 'none'}")
        return found[name]
    if "dataset" in found:
        return found["dataset"]
    if not found:
        if isinstance(file.get("dataset"), h5py.Group):
            raise BadInputError(
                f"{path}: the scan holds no acquisitions ('dataset/data' is empty or missing); raw k-space is needed"
            )
        raise BadInputError(
            f"{path}: an ISMRMRD scan has a group 'dataset', this file holds: {', '.join(file) or 'nothing'}"
        )
    scans = [key for key in found if noise_alone or _holds_image(found[key]["data"])]
    if len(scans) != 1:
        told = ", ".join(f"{key} ({len(found[key]['data'])} lines)" for key in found)
        raise BadInputError(f"{path} holds several measurements: {told}; choose one with --group")
    return found[scans[0]]


def _holds_image(lines: h5py.Dataset) -> bool:
    """Whether there are other lines than a noise measurement's. Raises nothing: a damaged group is found later."""
    try:
        return bool(np.any(_heads(lines)["flags"] & np.uint64(NOISE) == 0))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return True


def _heads(lines: h5py.Dataset) -> np.ndarray:
    """The heads of all lines. Asked for them alone, HDF5 reads the samples as well and never frees them (h5py issue
    1721), so the records are taken as they lie on the disk, where each only points at its samples."""
    if (
        lines.chunks is None or lines.id.get_create_plist().get_nfilters()
    ):  # HDF5 alone unpacks them: whole, some at once
        parts = [lines[first : first + LINES]["head"].copy() for first in range(0, len(lines), LINES)]
        return np.concatenate(parts)
    record = lines.id.get_type()
    member = record.get_member_index(b"head")
    layout = np.dtype(
        {
            "names": ["head"],
            "formats": [record.get_member_type(member).dtype],
            "offsets": [record.get_member_offset(member)],
            "itemsize": record.get_size(),
        }
    )
    (chunk,) = lines.chunks
    parts = [
        np.frombuffer(lines.id.read_direct_chunk((first,))[1], layout)["head"] for first in range(0, len(lines), chunk)
    ]
    return np.concatenate(parts)[: len(lines)]


def _open_hdf5(path: Path) -> h5py.File:
    if not path.exists():
        raise BadInputError(f"{path} does not exist; give the path of an ISMRMRD (.h5) scan")
    if path.is_dir():
        raise BadInputError(f"{path} is a folder; give the path of an ISMRMRD (.h5) scan")
    try:
        return h5py.File(path, "r")
    except BlockingIOError as error:
        raise BadInputError(f"{path} is open for writing in another program; wait for it or close it there") from error
    except PermissionError as error:
        raise BadInputError(f"{path} may not be read by this user; change its permissions") from error
    except OSError as error:
        if path.stat().st_size == 0:
            raise BadInputError(f"{path} is empty; copy the scan again") from error
        if h5py.is_hdf5(path):
            raise BadInputError(
                f"{path} is a truncated or damaged HDF5 file ({first_line(error)}); copy the scan again"
            ) from error
        raise BadInputError(f"{path} is not an HDF5 file; an ISMRMRD (.h5) scan is needed") from error


def _correct(header: Header, heads: np.ndarray, ignored: int, log: ScanLog) -> None:
    """Headers are wrong about averages and partitions; the image lines of a file know them."""
    encoding = header.encoding[0]
    image = heads["flags"] & np.uint64(NOISE | ignored | CALIBRATION | PHASE_CORRECTION) == 0
    if not image.any():
        return
    partitions, limits = encoding.encodedSpace.matrixSize.z, encoding.encodingLimits
    if partitions > 1 and not heads["idx"]["kspace_encode_step_2"][image].any():
        log.remark(f"the header announces {partitions} partitions and every line is of the first: the scan is 2D")
        encoding.encodedSpace.matrixSize.z = 1
        if limits is not None and limits.kspace_encoding_step_2 is not None:
            limits.kspace_encoding_step_2 = ismrmrd.xsd.limitType(minimum=0, maximum=0, center=0)
    if limits is not None:
        limits.average = ismrmrd.xsd.limitType(minimum=0, maximum=int(heads["idx"]["average"][image].max()), center=0)


def _grouped(heads: np.ndarray, ignored: int) -> list[np.ndarray]:
    """Indices of the lines of each slice key in the order they were acquired, sorted by key."""
    wanted = np.flatnonzero((heads["flags"] & np.uint64(NOISE | ignored)) == 0)
    counters = heads["idx"][wanted]
    order = np.lexsort([counters[name] for name in COUNTERS])  # stable
    columns = np.stack([counters[name] for name in COUNTERS], 1)[order]
    starts = 1 + np.flatnonzero(np.any(columns[1:] != columns[:-1], 1))
    return [group for group in np.split(wanted[order], starts) if len(group)]
