"""An open scan: its header, the heads of its lines, and each line's samples read once."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import h5py
import ismrmrd
import numpy as np

from ..data import SliceKey
from ..errors import BadInputError
from ..read_ahead import ReadAhead
from .flags import LAST_IN_SLICE, LAST_OF_ALL, NOISE, PHASE_CORRECTION, calibrates_alone
from .header import Header, calibration_is_separate, n_partitions
from .scan_log import ScanLog

LINES = 64  # that are read at once
PLACE = ("slice", "contrast", "phase", "set", "repetition")  # counters of a slice, but for its average
DIGEST_BYTES = 1 << 22  # that are hashed at once


@dataclass
class Scan:
    """An open scan. xml: its header as it stands in the file; header: the same, read; heads: every acquisition's head
    as a structured array.

    groups: one index array per slice key (contrast, phase, set, repetition, slice, average), in that order, of a volume
    all its partitions; log: what became of the lines so far; noise_elsewhere: the noise measurement of another group,
    where this one has none.
    """

    path: Path
    xml: bytes
    header: Header
    heads: np.ndarray
    groups: list[np.ndarray]
    _lines: h5py.Dataset
    log: ScanLog = field(default_factory=ScanLog)
    noise_elsewhere: "Scan | None" = None
    _ahead: ReadAhead | None = None
    _taken: bool = False  # somebody has the lines that are read ahead
    _closing: bool = False  # nobody wants more of them

    @property
    def n_slices(self) -> int:
        """Slices in the file, or volumes of a 3D scan, each contrast, phase, set, repetition and average counted."""
        return sum(bool(np.any(self._of_image(group))) for group in self.groups)

    @property
    def n_coils(self) -> int:
        """Channels of the line that has the most."""
        return int(self.heads["active_channels"].max())

    def keys(self, combine_averages: bool) -> list[SliceKey]:
        """Of the slices that are reconstructed: those of the file, or one for all of its averages."""
        names = PLACE if combine_averages else (*PLACE, "average")
        counters = self.heads["idx"][self._first_of_images()]
        return list(dict.fromkeys(SliceKey(**{name: int(one[name]) for name in names}) for one in counters))

    def n_images(self, combine_averages: bool) -> int:
        """How many they are."""
        return len(self.keys(combine_averages))

    def last(self, counter: str) -> int:
        """The largest value of a counter that image lines have."""
        return int(self.heads["idx"][counter][self._first_of_images()].max(initial=0))

    def _first_of_images(self) -> list[int]:
        """The first image line of each slice that has some; navigators may count on their own."""
        found = (group[self._of_image(group)] for group in self.groups)
        return [lines[0] for lines in found if len(lines)]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file, hex. Read through the open file, so that the disk gives it once: what HDF5 asks for
        afterwards is in memory."""
        digest, place = hashlib.sha256(), 0
        file = self._lines.file.id.get_vfd_handle()
        while block := os.pread(file, DIGEST_BYTES, place):
            digest.update(block)
            place += len(block)
        return digest.hexdigest()

    def _of_image(self, index: np.ndarray) -> np.ndarray:
        """Whether lines are neither phase correction nor a calibration of its own."""
        flags = self.heads["flags"][index]
        own = calibrates_alone(flags) & calibration_is_separate(self.header)
        return (flags & np.uint64(PHASE_CORRECTION) == 0) & ~own

    def read_ahead(self) -> None:
        """Read the first lines now, in a thread, while whoever takes them gets ready."""
        self._ahead = ReadAhead(self._acquisitions(), LINES)

    def close(self) -> None:
        """End the reading, also ahead."""
        self._closing = True
        if self._ahead is not None:
            self._ahead.close()

    def acquisitions(self) -> Iterator[ismrmrd.Acquisition]:
        """The lines: noise measurements first, then slice by slice, each slice's last one flagged LAST_IN_SLICE.

        A few lines are read at a time: memory grows with what is kept. Lines that are neither noise, calibration nor
        image are left out. Raises BadInputError when a line cannot be read, or the scan was closed.
        """
        self._must_be_open()
        if self._ahead is None or self._taken:
            return self._acquisitions()
        self._taken = True
        return iter(self._ahead)

    def _acquisitions(self) -> Iterator[ismrmrd.Acquisition]:
        yield from self.noise()
        # a volume is known to have ended by its repetition
        last = LAST_IN_SLICE | (LAST_OF_ALL if n_partitions(self.header) > 1 else 0)
        # slices that hold nothing but calibration serve others, which may come anywhere
        for group in sorted(self.groups, key=lambda group: bool(np.any(self._of_image(group)))):
            for index, samples in self._samples(group):
                acquisition = self._acquisition(index, samples)
                acquisition.flags &= ~last
                if index == group[-1]:
                    acquisition.flags |= last
                yield acquisition

    def noise(self) -> Iterator[ismrmrd.Acquisition]:
        """The noise measurement's lines."""
        if self.noise_elsewhere is not None:
            yield from self.noise_elsewhere.noise()
        for index, samples in self._samples(np.flatnonzero(self.heads["flags"] & np.uint64(NOISE))):
            yield self._acquisition(index, samples)

    def _samples(self, group: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(index, samples) of lines, read many at once, wherever they lie in the file."""
        for first in range(0, len(group), LINES):
            part = group[first : first + LINES]
            found: Iterable[np.ndarray]
            self._must_be_open()
            try:
                found = self._at(part)
            except (OSError, RuntimeError):  # one of them: those before it are whole
                found = (self._one(index) for index in part)
            for line in zip(map(int, part), found):
                self._must_be_open()
                yield line

    def _must_be_open(self) -> None:
        if self._closing:
            raise BadInputError("the scan was closed: read its results inside the `with`")

    def _at(self, index: np.ndarray) -> np.ndarray:
        """The samples of lines (n_lines,), an array each. Chosen by points, which HDF5 reads in one call: the slices
        of h5py reach neighbours alone, and their lists of numbers are slower than reading line by line."""
        record = np.dtype([("data", self._lines.dtype["data"])])
        found = np.empty(len(index), record)
        space = self._lines.id.get_space()
        points = np.zeros((len(index), self._lines.ndim), np.uint64)  # some writers have (N, 1) lines
        points[:, 0] = index
        space.select_elements(points)
        self._lines.id.read(h5py.h5s.create_simple((len(index),)), space, found, h5py.h5t.py_create(record))
        return found["data"]

    def _one(self, index: int) -> np.ndarray:
        try:
            return self._at(np.array([index]))[0]
        except (OSError, RuntimeError) as error:
            raise BadInputError(
                f"{self.path}: line {index + 1} of {len(self.heads)} cannot be read, the file is damaged; copy it again"
            ) from error

    def _acquisition(self, index: int, samples: np.ndarray) -> ismrmrd.Acquisition:
        # bytes, because ctypes takes no strided buffer
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(self.heads[index].tobytes())
        shape = (head.active_channels, head.number_of_samples)
        try:
            data = _numbers(samples)
        except (TypeError, ValueError) as error:
            raise BadInputError(
                f"{self.path}: line {index + 1} holds samples of type {samples.dtype}; floating-point numbers are "
                "needed, convert the scan again"
            ) from error
        if data.size != 2 * shape[0] * shape[1]:
            raise BadInputError(
                f"{self.path}: line {index + 1} holds {data.size // 2} samples where its header announces "
                f"{shape[0]} channels of {shape[1]}; the file is damaged, convert the scan again"
            )
        return ismrmrd.Acquisition(head, data.view(np.complex64).reshape(shape))


def _numbers(samples: np.ndarray) -> np.ndarray:
    """Real and imaginary parts in turn, float32, as MRD has them; some writers store complex numbers or pairs.

    Raises TypeError and ValueError for samples that are neither.
    """
    samples = np.ascontiguousarray(samples)
    if samples.dtype.kind == "c":
        samples = samples.view(samples.real.dtype)
    elif samples.dtype.names is not None:
        samples = samples.view(samples.dtype[0])
    return samples.astype(np.float32, copy=False)
