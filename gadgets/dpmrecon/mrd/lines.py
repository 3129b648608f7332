"""One slice's lines of one kind, and what its images take from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import ismrmrd
import numpy as np

from ..data import SliceKey
from .noise_lines import channel_numbers

if TYPE_CHECKING:
    import torch

    from ..physics.epi import Ghost
    from .header import Limits

# Columns left out beside an echo's cut edge: removing the oversampling is a convolution along the readout, which
# misses the samples beyond the edge. From the third column on the error is under a fifth of the noise (FLAIR, R = 1).
EDGE_MARGIN = 2
AROUND = 16  # lines, partitions and samples around the k-space centre, which tell where echo and head lie
SLACK = 32  # one part in so many of a readout may be missing at either end


@dataclass(frozen=True)
class LineHeader:
    """Geometry and times of an acquired line, in the units of its header: mm in the patient's LPS, ticks, microseconds.

    The line nearest a slice's k-space centre gives its images theirs.
    """

    measurement_uid: int
    encoding_space: int
    position: tuple[float, float, float]
    read_dir: tuple[float, float, float]
    phase_dir: tuple[float, float, float]
    slice_dir: tuple[float, float, float]
    patient_table_position: tuple[float, float, float]
    acquisition_time_stamp: int
    physiology_time_stamp: tuple[int, int, int]
    sample_time_us: float

    @property
    def place(self) -> tuple[float, ...]:
        """Position, read direction and phase direction."""
        return (*self.position, *self.read_dir, *self.phase_dir)

    def at_the_time_of(self, other: LineHeader) -> LineHeader:
        """The same place at another time."""
        return replace(
            self,
            acquisition_time_stamp=other.acquisition_time_stamp,
            physiology_time_stamp=other.physiology_time_stamp,
        )

    @classmethod
    def of(cls, head: ismrmrd.AcquisitionHeader) -> LineHeader:
        """Of an acquisition's header."""
        vectors = ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position", "physiology_time_stamp")
        return cls(
            measurement_uid=head.measurement_uid,
            encoding_space=head.encoding_space_ref,
            acquisition_time_stamp=head.acquisition_time_stamp,
            sample_time_us=float(head.sample_time_us),
            **{name: tuple(getattr(head, name)[:]) for name in vectors},
        )


STRIDE = 1 << 20  # between the numbers of a line in two neighbouring partitions
BATCH = 256  # lines of a volume that are taken at once
LineHeaders = dict[SliceKey, LineHeader]  # of the slices that have left, beside them


def number_of(line: int, partition: int) -> int:
    """The number of a line: that of its phase-encoding step 1, to which step 2 adds in a volume."""
    return partition * STRIDE + line


def places_of(numbers: Iterable[int]) -> np.ndarray:
    """(n_lines, 2): partition and line of each number."""
    found = np.fromiter(numbers, np.int64)
    partitions = (found + STRIDE // 2) // STRIDE
    return np.stack([partitions, found - STRIDE * partitions], 1)


def line_name(number: int) -> str:
    """A line in words."""
    ((partition, line),) = places_of([number]).tolist()
    return f"line {line} of partition {partition}" if partition else f"line {line}"


class LostError(Exception):
    """Ends the making of a slice; the message becomes the reason of its LostSlice."""


@dataclass(frozen=True)
class Layout:
    """Where the samples of a line lie: those before `first` and from `end` on are no data; `center` is k = 0."""

    n_coils: int
    n_samples: int
    center: int
    first: int
    end: int

    @classmethod
    def of(cls, line: ismrmrd.Acquisition, *, backwards: bool = False) -> Layout:
        """backwards: the line's samples are to be turned."""
        n_samples, center = line.number_of_samples, line.center_sample
        first, end = line.discard_pre, n_samples - line.discard_post
        if center == 0 and n_samples > 1:  # a readout that starts in the centre is not Cartesian
            center = n_samples // 2
        elif backwards:
            center, first, end = n_samples - 1 - center, n_samples - end, n_samples - first
        return cls(line.active_channels, n_samples, center, first, end)

    def fits(self, grid: int) -> bool:
        if self.end - self.first == grid:  # a full readout: some writers round its centre to one sample beside it
            return abs(self.center - self.first - grid // 2) <= 1
        return self.center - self.first <= grid // 2 and self.end - self.center <= grid - grid // 2

    def reaches_an_end(self, grid: int) -> bool:
        """Whether it holds k-space to one end of the grid at least, as full readouts and asymmetric echoes do."""
        slack = grid // SLACK
        return self.center - self.first >= grid // 2 - slack or self.end - self.center >= grid - grid // 2 - slack

    @property
    def is_symmetric(self) -> bool:
        """Whether it holds as much before the centre as behind it, to a sample."""
        return abs(self.center - self.first - (self.end - self.first) // 2) <= 1

    def __str__(self) -> str:
        data = "" if (self.first, self.end) == (0, self.n_samples) else f", data from {self.first} to {self.end - 1}"
        return f"{self.n_coils} channels of {self.n_samples} samples, centre {self.center}{data}"


@dataclass
class Repeat:
    """How far a line lies from the mean of `count` others of its number: |difference|^2, and its own |.|^2, both
    (n_coils,)."""

    number: int
    count: int
    difference: np.ndarray
    energy: np.ndarray


@dataclass
class Lines:
    """Lines of one kind and layout of one slice, by their number; repeated ones are summed."""

    layout: Layout
    sums: dict[int, np.ndarray] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    repeats: list[Repeat] = field(default_factory=list)
    header: LineHeader | None = None
    numbers: tuple[int, ...] = ()  # of the channels
    # idx.user[5] and [6], where converters put the numbers of the centre line and partition
    told_centre: tuple[int | None, int | None] = (None, None)
    zeros: set[int] = field(default_factory=set)  # numbers of lines that came and hold nothing
    nearest: float = 0
    fault: str | None = None
    differing: int = 0  # lines of the slice that have another layout, which `fault` is about
    lost: str | None = None  # why no image can be made of them
    ghosts: list[Ghost] = field(default_factory=list)  # of their shots, which are corrected
    shots: dict[int, set[int]] = field(default_factory=dict)  # of EPI, in which a number came
    copied: bool = False  # whether a line came again, bit by bit

    def add(self, head: ismrmrd.AcquisitionHeader, data: np.ndarray, number: int, distance: float) -> bool:
        """Keep one line; its header stays when no line was nearer to the k-space centre. False for a copy."""
        if self.header is None or distance < self.nearest:
            self.header, self.nearest = LineHeader.of(head), distance
        if not self.numbers:
            self.numbers = channel_numbers(head)
            self.told_centre = head.idx.user[5] or None, head.idx.user[6] or None
        if number in self.sums:
            count = self.counts[number]
            difference = data - self.sums[number] / np.float32(count)
            if not difference.any():
                self.copied = True
                return False
            self.repeats.append(Repeat(number, count, _energy_by_channel(difference), _energy_by_channel(data)))
            self.sums[number] = self.sums[number] + data
            self.counts[number] += 1
        else:
            self.sums[number], self.counts[number] = data, 1
        return True

    def merge(self, other: Lines) -> None:
        """Take in lines of other numbers, unless their layout is another; of their header the time alone, where they
        are nearer to the centre. Their shots follow upon those that are here."""
        self.differing += other.differing
        self.fault = self.fault or other.fault
        if other.layout != self.layout:
            self.differing += len(other.sums)
            self.fault = self.fault or f"its calibration lines have {other.layout}, the others have {self.layout}"
            return
        if self.header is None:
            self.header, self.nearest = other.header, other.nearest
        elif other.header is not None and other.nearest < self.nearest:
            self.header, self.nearest = self.header.at_the_time_of(other.header), other.nearest
        self.lost = self.lost or other.lost
        self.ghosts += other.ghosts
        shots = 1 + max((shot for found in self.shots.values() for shot in found), default=-1)
        self.shots |= {number: {shots + shot for shot in found} for number, found in other.shots.items()}
        self.sums.update(other.sums)
        self.counts.update(other.counts)
        self.repeats += other.repeats

    @property
    def nbytes(self) -> int:
        """That the samples take; one layout has one size."""
        return len(self.sums) * next((data.nbytes for data in self.sums.values()), 0)

    @property
    def n_shots(self) -> int:
        """In how many shots of EPI they came."""
        return len(set().union(*self.shots.values()))

    def energies(self) -> dict[int, float]:
        """|.|^2 of each line, all its samples and channels."""
        return {number: _energy(self.sums[number]) / self.counts[number] ** 2 for number in self.sums}

    def around(self, limits: tuple[Limits, Limits], reach: int) -> list[int]:
        """Numbers of the lines that are `reach` lines and partitions from the k-space centre at most; limits: of
        partitions and of lines."""
        apart = np.abs(places_of(self.sums) - np.array([limit.center for limit in limits])).max(1)
        return [number for number, far in zip(self.sums, apart) if far <= reach]

    def without(self, numbers: set[int]) -> Lines:
        """The same without some of the lines."""
        kept = [number for number in self.sums if number not in numbers]
        return replace(
            self,
            sums={number: self.sums[number] for number in kept},
            counts={number: self.counts[number] for number in kept},
            repeats=[repeat for repeat in self.repeats if repeat.number not in numbers],
        )

    @property
    def noise(self) -> float:
        """Standard deviation of the noise in the lines' means, over that of one line."""
        return math.sqrt(np.mean([1 / count for count in self.counts.values()]))

    def quietest(self) -> float:
        """The smallest |.|^2 of a line before its repeats were added to it."""
        single = [_energy(data) for number, data in self.sums.items() if self.counts[number] == 1]
        return min([*single, *(float(repeat.energy.sum()) for repeat in self.repeats)])

    def of_channels(self, places: list[int]) -> Lines:
        """The same with some of the channels."""
        if len(places) == self.layout.n_coils:
            return self
        return replace(
            self,
            layout=replace(self.layout, n_coils=len(places)),
            sums={number: data[places] for number, data in self.sums.items()},
            numbers=tuple(self.numbers[place] for place in places),
            repeats=[replace(r, difference=r.difference[places], energy=r.energy[places]) for r in self.repeats],
        )

    def mean(self, grid: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The lines (n_lines, n_coils, cols) and the columns (cols,) that they hold, bool."""
        echo = self.echo(grid)
        return self._gridded(list(self.sums), echo, grid, cols), echo.columns(grid, cols)

    def emptied(self, grid: int, cols: int) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Numbers and lines as of `mean`, a few at a time, let go: memory holds them once."""
        echo = self.echo(grid)
        while self.sums:
            numbers = list(itertools.islice(self.sums, BATCH))
            data = self._gridded(numbers, echo, grid, cols)
            for number in numbers:
                del self.sums[number]
            yield numbers, data

    def echo(self, grid: int) -> Echo:
        """The samples that the lines hold. Raises LostError where there are none."""
        layout = self.layout
        # some writers fill a cut echo up with zeros: those are no samples
        samples = np.zeros(layout.n_samples, bool)
        for data in self.sums.values():
            samples |= data.any(0)
        held = np.flatnonzero(samples[layout.first : layout.end])
        if not len(held):
            raise LostError(f"its lines hold nothing between discard_pre and discard_post ({layout})")
        first, end = layout.first + int(held[0]), layout.first + int(held[-1]) + 1
        # a centre that is one sample off costs a phase that all share
        low = min(max(first - layout.center, -(grid // 2)), grid - grid // 2 - (end - first))
        return Echo(first, end, low)

    def _gridded(self, numbers: list[int], echo: Echo, grid: int, cols: int) -> torch.Tensor:
        import torch

        from ..physics.fourier import without_oversampling

        data = torch.from_numpy(np.stack([self.sums[number][:, echo.first : echo.end] for number in numbers]))
        counts = [self.counts[number] for number in numbers]
        if max(counts) > 1:
            data = data / torch.tensor(counts)[:, None, None]
        if data.shape[-1] != grid:
            placed = data.new_zeros((*data.shape[:-1], grid))
            placed[..., grid // 2 + echo.low : grid // 2 + echo.high + 1] = data
            data = placed
        if grid != cols:
            data = without_oversampling(data, cols)
        return data * echo.columns(grid, cols)


@dataclass(frozen=True)
class Echo:
    """Samples first..end-1 of a line are data; `low` is the first, counted from the k-space centre."""

    first: int
    end: int
    low: int

    @property
    def high(self) -> int:
        """The last, counted from the k-space centre."""
        return self.low + self.end - self.first - 1

    def columns(self, grid: int, cols: int) -> torch.Tensor:
        """(cols,) bool: those of the `cols` kept columns that the echo covers on a readout of `grid` samples."""
        import torch

        columns = torch.arange(cols) - cols // 2
        if grid == cols:
            return (columns >= self.low) & (columns <= self.high)
        position = columns * grid / cols
        margin = EDGE_MARGIN * grid / cols
        low_edge = self.low + (margin if self.low > -(grid // 2) else 0)
        high_edge = self.high - (margin if self.high < grid - grid // 2 - 1 else 0)
        return (position >= low_edge) & (position <= high_edge)


def _energy(data: np.ndarray) -> float:
    return float(np.vdot(data, data).real)


def _energy_by_channel(data: np.ndarray) -> np.ndarray:
    return np.square(np.abs(data)).sum(1)
