"""From acquisitions to slices: lines are collected per slice, whitened, freed of readout oversampling, and checked.

The lines may come from a file (`mrd.open_scan`) or a stream. Rows are phase-encoding lines, columns readout samples.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import ismrmrd
import numpy as np
import torch

from ..errors import BadInputError, UnsupportedScanError
from ..physics.fourier import crop_or_pad, to_image, to_kspace
from ..physics.noise import estimated_sigma, whitening
from . import header as mrd

# Fewer adjacent lines around the centre of k-space give no coil maps
FEWEST_CALIBRATION_LINES = 8
# Two lines of one row differ by noise alone where the variance of their difference is at most this many times expected
AGREEMENT = 1.5
# A regular pattern explains at least this share of the lines outside the calibration
REGULAR_SHARE = 0.7
# Fewer lines outside the centre show no regular pattern
FEWEST_PATTERN_LINES = 4
# Columns left out beside an echo's cut edge: removing the oversampling is a convolution along the readout, which
# misses the samples beyond the edge. From the third column on the error is under a fifth of the noise (FLAIR, R = 1).
EDGE_MARGIN = 2


@dataclass(frozen=True, order=True)
class SliceKey:
    """What tells one slice from another; numbers as the lines' headers count them."""

    slice: int
    contrast: int
    phase: int
    set: int
    repetition: int
    average: int


@dataclass
class Slice:
    """One complete slice on the encoded grid without readout oversampling.

    kspace: (n_coils, rows, cols) complex64, whitened where a noise scan came, zero where not acquired;
    mask: (rows, cols) float32, 1 where acquired;
    calibration: (n_coils, rows_cal, cols) complex64, fully sampled lines with the k-space centre at rows_cal//2, or
    None; sigma_n: standard deviation of the noise in one real channel of `kspace`; noise_source: "noise scan" or
    "k-space periphery"; header: of the image line nearest the k-space centre; acceleration: as announced,
    or as the lines show it where nothing is announced; n_lines_got: different lines acquired; n_lines_needed: lines
    that limits and acceleration announce.
    """

    key: SliceKey
    kspace: torch.Tensor
    mask: torch.Tensor
    calibration: torch.Tensor | None
    sigma_n: float
    noise_source: str
    header: ismrmrd.AcquisitionHeader
    acceleration: float
    n_lines_got: int
    n_lines_needed: int


@dataclass
class LostSlice:
    """A slice that cannot be reconstructed, with the reason as part of a sentence about it."""

    key: SliceKey
    reason: str
    header: ismrmrd.AcquisitionHeader


@dataclass
class _Layout:
    """Where the samples of a line lie: those before `first` and from `end` on are no data; `center` is k = 0."""

    n_coils: int
    n_samples: int
    center: int
    first: int
    end: int

    @classmethod
    def of(cls, line: ismrmrd.Acquisition) -> "_Layout":
        n_samples, center = line.number_of_samples, line.center_sample
        end = n_samples - line.discard_post
        if center == 0 and n_samples > 1:  # a readout that starts in the centre is not Cartesian: it was not filled in
            center = n_samples // 2
        return cls(line.active_channels, n_samples, center, line.discard_pre, end)

    def fits(self, grid: int) -> bool:
        if self.end - self.first == grid:  # a full readout: some writers round its centre to one sample beside it
            return abs(self.center - self.first - grid // 2) <= 1
        return self.center - self.first <= grid // 2 and self.end - self.center <= grid - grid // 2

    def __str__(self) -> str:
        return f"{self.n_coils} channels of {self.n_samples} samples, centre {self.center}"


@dataclass
class _Lines:
    """Lines of one kind of one slice, by row; repeated ones are summed."""

    layout: _Layout | None = None
    sums: dict[int, np.ndarray] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    header: ismrmrd.AcquisitionHeader | None = None
    nearest: int = 0
    fault: str | None = None

    def add(self, line: ismrmrd.Acquisition, row: int, distance: int) -> None:
        """Keep one line of row `row`; its header stays when no line was nearer to the k-space centre."""
        layout = _Layout.of(line)
        if self.header is None or distance < self.nearest:
            self.header, self.nearest = line.getHead(), distance
        if self.layout is None:
            self.layout = layout
        if layout != self.layout:
            number = line.idx.kspace_encode_step_1
            self.fault = self.fault or f"line {number} has {layout}, the lines before it have {self.layout}"
        elif row in self.sums:
            self.sums[row] = self.sums[row] + line.data
            self.counts[row] += 1
        else:
            self.sums[row], self.counts[row] = line.data, 1

    def merge(self, other: "_Lines") -> None:
        """Take in lines of other rows."""
        if self.header is None or (other.header is not None and other.nearest < self.nearest):
            self.header, self.nearest = other.header, other.nearest
        self.layout = self.layout or other.layout
        if other.layout not in (None, self.layout):
            self.fault = self.fault or f"its calibration lines have {other.layout}, the others have {self.layout}"
        self.fault = self.fault or other.fault
        self.sums.update(other.sums)
        self.counts.update(other.counts)

    def mean(self, grid: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The lines (n_lines, n_coils, cols) and the columns (cols,) that they hold, bool."""
        layout = self.layout
        assert layout is not None
        samples = np.stack([self.sums[row][:, layout.first : layout.end] for row in self.sums])
        # some writers fill a cut echo up with zeros: those are no samples
        held = np.flatnonzero(samples.any((0, 1)))
        if not len(held):
            raise _LostError(f"its lines hold nothing between discard_pre and discard_post ({layout})")
        samples = samples[..., held[0] : held[-1] + 1]
        low = layout.first + int(held[0]) - layout.center  # the samples held, counted from the centre
        # a centre that is one sample off costs a linear phase along the readout, which coil maps and image share
        low = min(max(low, -(grid // 2)), grid - grid // 2 - samples.shape[-1])
        high = low + samples.shape[-1] - 1
        data = torch.from_numpy(samples)
        if max(self.counts.values()) > 1:
            data = data / torch.tensor(list(self.counts.values()))[:, None, None]
        if data.shape[-1] != grid:
            placed = data.new_zeros((*data.shape[:-1], grid))
            placed[..., grid // 2 + low : grid // 2 + high + 1] = data
            data = placed
        columns = torch.arange(cols) - cols // 2
        if grid != cols:
            data = without_oversampling(data, cols)
            position = columns * grid / cols
            margin = EDGE_MARGIN * grid / cols
            low_edge = low + (margin if low > -(grid // 2) else 0)
            high_edge = high - (margin if high < grid - grid // 2 - 1 else 0)
            acquired = (position >= low_edge) & (position <= high_edge)
        else:
            acquired = (columns >= low) & (columns <= high)
        return data * acquired, acquired


@dataclass
class _Record:
    """A slice that is being filled; calibration: the lines that are for calibration alone."""

    image: _Lines = field(default_factory=_Lines)
    calibration: _Lines = field(default_factory=_Lines)

    def is_apart(self, announced: bool) -> bool:
        """Whether its calibration is an acquisition of its own. Headers fail to say so, but a row that came once as
        calibration and once as image tells it: averaging both would mix two acquisitions."""
        return announced or bool(self.image.sums.keys() & self.calibration.sums.keys())


def without_oversampling(lines: torch.Tensor, cols: int) -> torch.Tensor:
    """Keep the central `cols` pixels of the readout: (..., n_samples) k-space to (..., cols) k-space."""
    return to_kspace(crop_or_pad(to_image(lines, axes=(-1,)), cols, -1), axes=(-1,))


def slices(
    acquisitions: Iterable[ismrmrd.Acquisition], header: Any, *, combine_averages: bool = False
) -> Iterator[Slice | LostSlice]:
    """Collect lines into slices; each leaves when its line flagged ACQ_LAST_IN_SLICE came, or at the end.

    header: ismrmrd.xsd header. Averages are slices of their own unless `combine_averages`; then their mean is one
    slice that leaves with the last announced average. Memory holds the open slices, the noise lines and one separate
    calibration a slice number, which later repetitions, averages and contrasts use if they bring none. Lines that are
    for calibration alone are image lines too, unless the header or a row that came as both says otherwise.
    Raises UnsupportedScanError and BadInputError, in one sentence, for scans that cannot be used at all.
    """
    mrd.check_supported(header)
    collector = _Collector(header, combine_averages)
    for line in acquisitions:
        key = collector.add(line)
        if key is not None:
            yield from collector.close(key)
    yield from collector.rest()


class _Collector:
    def __init__(self, header: Any, combine_averages: bool) -> None:
        self.header = header
        self.rows, self.cols = mrd.encoded_grid(header)
        self.limits = mrd.line_limits(header)
        self.acceleration = mrd.acceleration(header)
        self.separate = mrd.calibration_is_separate(header)
        self.combine_averages = combine_averages
        limit = getattr(header.encoding[0].encodingLimits, "average", None)
        self.last_average = limit.maximum if limit is not None else None
        self.noise_lines: list[np.ndarray] = []
        self.noise_dwell = 0.0
        self.whitening: dict[tuple[float, int], tuple[torch.Tensor, float]] = {}
        self.open: dict[SliceKey, _Record] = {}
        self.calibration: dict[int, tuple[SliceKey, _Lines]] = {}
        self.seen: set[int] = set()
        self.combined: set[SliceKey] = set()

    def add(self, line: ismrmrd.Acquisition) -> SliceKey | None:
        """Keep a line; returns the slice's key when this was its last line."""
        flags = int(line.flags)
        if flags & mrd.NOISE:
            self._add_noise(line)
            return None
        if flags & mrd.GHOST_CORRECTION:
            raise UnsupportedScanError(
                "the scan has phase-correction or reversed lines (EPI), whose ghost correction is not done here"
            )
        key = self._key(line.idx)
        if not flags & mrd.IGNORED:
            self._add_to(self.open.setdefault(key, _Record()), line, flags)
        if not flags & mrd.LAST_IN_SLICE or key not in self.open:
            return None
        if self.combine_averages and (self.last_average is None or line.idx.average < self.last_average):
            return None
        return key

    def _key(self, counters: ismrmrd.EncodingCounters) -> SliceKey:
        average = 0 if self.combine_averages else counters.average
        return SliceKey(counters.slice, counters.contrast, counters.phase, counters.set, counters.repetition, average)

    def _add_noise(self, line: ismrmrd.Acquisition) -> None:
        if self.noise_lines and line.data.shape[0] != self.noise_lines[0].shape[0]:
            raise BadInputError(
                f"noise lines have {self.noise_lines[0].shape[0]} and {line.data.shape[0]} channels; "
                "all need the channels of the image lines"
            )
        self.noise_lines.append(line.data)
        self.noise_dwell = float(line.sample_time_us)

    def _add_to(self, record: _Record, line: ismrmrd.Acquisition, flags: int) -> None:
        counters = line.idx
        only_calibration = bool(flags & mrd.CALIBRATION)
        limits = self.limits
        if line.encoding_space_ref:
            limits = self._other_space(line.encoding_space_ref, only_calibration and self.separate)
        if line.trajectory_dimensions and self.header.encoding[0].trajectory is None:
            raise UnsupportedScanError(
                "the lines carry a trajectory and the header names none; only Cartesian scans are reconstructed"
            )
        if counters.kspace_encode_step_2:
            raise UnsupportedScanError(
                f"the scan is 3D (a line of partition {counters.kspace_encode_step_2} came); only 2D multi-slice scans "
                "are reconstructed"
            )
        row = counters.kspace_encode_step_1 - limits.center + self.rows // 2
        if not 0 <= row < self.rows:
            raise BadInputError(
                f"line {counters.kspace_encode_step_1} with centre line {limits.center} lies outside the encoded "
                f"matrix of {self.rows} lines; correct matrix size or encoding limits in the scan's header"
            )
        lines = record.calibration if only_calibration else record.image
        lines.add(line, row, abs(row - self.rows // 2))

    def _other_space(self, number: int, separate: bool) -> mrd.Limits:
        """Limits of another encoding space: a calibration of the image's own geometry may use one."""
        encodings = self.header.encoding
        if number >= len(encodings):
            raise BadInputError(
                f"a line refers to encoding space {number}, the header has {len(encodings)}; convert the scan again"
            )
        if not separate or encodings[number].encodedSpace != encodings[0].encodedSpace:
            raise UnsupportedScanError(
                f"lines of encoding space {number} came; only space 0, and separate calibration lines of the same "
                "matrix and field of view, are reconstructed"
            )
        return mrd.line_limits(self.header, number)

    def close(self, key: SliceKey) -> Iterator[Slice | LostSlice]:
        """The slice of `key`; nothing where only its calibration came, which is kept for others."""
        record = self.open.pop(key)
        if record.calibration.header is not None:
            if record.is_apart(self.separate):
                self.calibration[key.slice] = (key, record.calibration)
            else:
                record.image.merge(record.calibration)
        if record.image.header is None:
            return
        self.seen.add(key.slice)
        if key in self.combined:
            # a stream tells its averages by its header alone: two images of one slice would look like two slices
            reason = (
                f"more averages came than the header announces ({(self.last_average or 0) + 1}), its image lacks them"
            )
            yield LostSlice(key, reason, record.image.header)
            return
        if self.combine_averages and self.last_average is not None:
            self.combined.add(key)
        try:
            yield self._slice(key, record.image, self._calibration_of(key.slice))
        except _LostError as lost:
            yield LostSlice(key, str(lost), record.image.header)

    def rest(self) -> Iterator[Slice | LostSlice]:
        """At the end of the stream: the slices still open, complete or not, and calibrations without an image."""
        # first the records without an image: they may calibrate the others
        for key in sorted(self.open, key=lambda key: (self.open[key].image.header is not None, key)):
            yield from self.close(key)
        for number, (key, lines) in self.calibration.items():
            if number not in self.seen and lines.header is not None:
                self.seen.add(number)
                yield LostSlice(key, "only its calibration lines came", lines.header)
        if not self.seen:
            raise BadInputError("no image lines came, only noise measurements, navigators or nothing; send raw k-space")

    def _calibration_of(self, number: int) -> _Lines | None:
        if number in self.calibration:
            return self.calibration[number][1]
        return next(
            (
                record.calibration
                for key, record in self.open.items()
                if key.slice == number and record.calibration.header is not None and record.is_apart(self.separate)
            ),
            None,
        )

    def _slice(self, key: SliceKey, lines: _Lines, calibration: _Lines | None) -> Slice:
        numbers = np.array(sorted(lines.sums)) + self.limits.center - self.rows // 2
        acceleration, needed, gap = completeness(numbers, self.limits, self.acceleration)
        _check(lines, self.limits.center - self.rows // 2, "")
        if gap is not None:
            raise _LostError(gap)
        assert lines.layout is not None and lines.header is not None
        grid = self._readout_grid(lines.layout)
        data, columns = lines.mean(grid, self.cols)
        rows = torch.tensor(list(lines.sums))
        whitener, sigma_n = self._noise(lines, grid)
        kspace = data.new_zeros((data.shape[1], self.rows, self.cols))
        kspace[:, rows] = _whitened(data, whitener)
        mask = torch.zeros(self.rows, self.cols)
        mask[rows] = columns.float()
        if whitener is None:
            sigma_n = estimated_sigma(kspace, mask)
        else:
            # the variance of a mean of n lines is 1/n of one line's
            sigma_n *= math.sqrt(np.mean([1 / count for count in lines.counts.values()]))
        return Slice(
            key=key,
            kspace=kspace,
            mask=mask,
            calibration=self._calibration_block(lines, kspace, calibration, grid, whitener),
            sigma_n=sigma_n,
            noise_source="k-space periphery" if whitener is None else "noise scan",
            header=lines.header,
            acceleration=float(acceleration),
            n_lines_got=len(lines.sums),
            n_lines_needed=needed,
        )

    def _readout_grid(self, layout: _Layout) -> int:
        """Samples of a full readout, which tell whether it is oversampled: the smallest grid that they fit.

        Headers are wrong about it in both directions, so the last candidate is twice what the header says.
        """
        encoded = self.header.encoding[0].encodedSpace.matrixSize.x
        for grid in (self.cols, encoded, 2 * self.cols):
            if layout.fits(grid):
                return grid
        raise BadInputError(
            f"lines have {layout}, which fits neither the encoded matrix of {encoded} columns nor {self.cols} without "
            "oversampling; correct the matrix size or center_sample"
        )

    def _noise(self, lines: _Lines, grid: int) -> tuple[torch.Tensor | None, float]:
        """Whitening matrix and noise level of single lines; (None, 0) without a noise measurement."""
        if not self.noise_lines:
            return None, 0.0
        assert lines.layout is not None and lines.header is not None
        if self.noise_lines[0].shape[0] != lines.layout.n_coils:
            raise BadInputError(
                f"the noise measurement has {self.noise_lines[0].shape[0]} channels, the image lines have "
                f"{lines.layout.n_coils}; both need the same"
            )
        dwell = float(lines.header.sample_time_us)
        if (dwell, grid) not in self.whitening:
            ratio = self.noise_dwell / dwell if dwell > 0 and self.noise_dwell > 0 else 1.0
            matrix = whitening(self.noise_lines, ratio)
            # Measured on what the image lines go through too: the receiver's filter leaves the kept columns more noise
            # than the white noise of all columns would
            energy, count = 0.0, 0
            for n_samples in {noise.shape[1] for noise in self.noise_lines}:
                data = torch.from_numpy(np.stack([n for n in self.noise_lines if n.shape[1] == n_samples]))
                if grid != self.cols:
                    data = without_oversampling(data, round(n_samples * self.cols / grid))
                energy += float(torch.view_as_real(_whitened(data, matrix)).square().sum())
                count += 2 * data.numel()
            self.whitening[dwell, grid] = matrix, math.sqrt(ratio * energy / count)
        return self.whitening[dwell, grid]

    def _calibration_block(
        self, lines: _Lines, kspace: torch.Tensor, calibration: _Lines | None, grid: int, whitener: torch.Tensor | None
    ) -> torch.Tensor | None:
        """(n_coils, rows_cal, cols) of the separate calibration, else of the image's own centre, else None."""
        center = self.rows // 2
        if calibration is not None:
            _check(calibration, self.limits.center - center, "calibration ")
            assert calibration.layout is not None and lines.layout is not None
            if calibration.layout.n_coils != lines.layout.n_coils:
                raise _LostError(
                    f"its calibration has {calibration.layout.n_coils} channels, its image lines have "
                    f"{lines.layout.n_coils}"
                )
            block = central_block(calibration.sums, center)
            if len(block) >= FEWEST_CALIBRATION_LINES:
                if not calibration.layout.fits(grid):
                    raise _LostError(f"its calibration lines have {calibration.layout}, its image lines {lines.layout}")
                data, _ = calibration.mean(grid, self.cols)
                index = {row: number for number, row in enumerate(calibration.sums)}
                return _whitened(data[[index[row] for row in block]], whitener)
        block = central_block(lines.sums, center)
        return kspace[:, block.start : block.stop] if len(block) >= FEWEST_CALIBRATION_LINES else None


def with_calibration_as_data(data: Slice) -> Slice:
    """The slice with its separate calibration lines as image lines too, where they are shown to be the same data.

    A separate calibration may have another contrast. Rows that came both ways tell: their difference is that of
    noise, to AGREEMENT in variance, or the calibration serves the maps alone.
    """
    if data.calibration is None:
        return data
    n_rows = data.calibration.shape[1]
    first = data.kspace.shape[1] // 2 - n_rows // 2
    block = slice(first, first + n_rows)
    columns, acquired = data.mask.amax(0) > 0, data.mask[block].amax(1) > 0
    if bool(acquired.all()) or not bool(acquired.any()):
        return data
    difference = (data.calibration - data.kspace[:, block])[:, acquired][..., columns]
    if float(torch.view_as_real(difference).square().mean()) > AGREEMENT * 2 * data.sigma_n**2:
        return data
    kspace, mask = data.kspace.clone(), data.mask.clone()
    kspace[:, block][:, ~acquired] = data.calibration[:, ~acquired] * columns
    mask[block][~acquired] = columns.float()
    return replace(data, kspace=kspace, mask=mask, n_lines_got=int(mask.amax(1).sum()))


class _LostError(Exception):
    """Ends the making of a slice; the message becomes the reason of its LostSlice."""


def _check(lines: _Lines, offset: int, kind: str) -> None:
    """Lines that do not fit together, or hold no numbers, lose the slice."""
    if lines.fault is not None:
        raise _LostError(f"its {kind}lines differ: {lines.fault}")
    if not any(map(np.any, lines.sums.values())):
        raise _LostError(f"all samples of its {kind}lines are zero")
    for row, data in lines.sums.items():
        if not np.isfinite(data).all():
            raise _LostError(f"{kind}line {row + offset} holds NaN or infinite values")


def _whitened(data: torch.Tensor, whitener: torch.Tensor | None) -> torch.Tensor:
    """(n_lines, n_coils, cols) to (n_coils, n_lines, cols), whitened."""
    data = data.transpose(0, 1)
    return data if whitener is None else torch.tensordot(whitener, data, dims=1)


def central_block(rows: Iterable[int], center: int) -> range:
    """The adjacent rows around `center` whose own centre, index n//2, it is; empty when that row is missing."""
    present = set(rows)
    first, end = center, center
    while end in present:
        end += 1
    while first - 1 in present and end > center:
        first -= 1
    before, after = center - first, end - center  # the centre row belongs to `after`
    half = min(before, after)
    return range(center - half, center + min(after, half + 1))


def completeness(lines: np.ndarray, limits: mrd.Limits, announced: int | None) -> tuple[int, int, str | None]:
    """(R, lines needed, why the slice is incomplete or None).

    lines: different line numbers acquired, sorted; announced: the header's R, None where it names none.
    """
    acceleration = announced or _regular_acceleration(lines, limits)
    got, needed = announced_lines(lines, limits, acceleration)
    if got >= needed:
        return acceleration, needed, None
    says = f"incomplete: {got} of the {needed} lines came that the limits ({limits.minimum} to {limits.maximum})"
    if announced is None:
        return acceleration, needed, f"{says} give at R = {acceleration}, and the header announces no R"
    return acceleration, needed, f"{says} and R = {acceleration} announce"


def _regular_acceleration(lines: np.ndarray, limits: mrd.Limits) -> int:
    """R where lines on either side of a fully sampled centre are every R-th one; 1 for all else, so that a full scan
    that lost lines is not taken for an accelerated one."""
    block = central_block(lines.tolist(), limits.center)
    if len(block) < FEWEST_CALIBRATION_LINES:
        return 1
    first, end = _run_around(lines, limits.center)
    outside = lines[(lines < first) | (lines >= end)]
    if len(outside) < FEWEST_PATTERN_LINES or not outside[0] < limits.center < outside[-1]:
        return 1
    return int(np.gcd.reduce(np.diff(outside)))


def _run_around(lines: np.ndarray, center: int) -> tuple[int, int]:
    """First and end of the adjacent lines around `center`."""
    around = set(lines.tolist())
    first, end = center, center
    while first - 1 in around:
        first -= 1
    while end in around:
        end += 1
    return first, end


def announced_lines(lines: np.ndarray, limits: mrd.Limits, acceleration: int) -> tuple[int, int]:
    """(got, needed): of the lines that limits and acceleration announce, how many came.

    lines: different line numbers acquired, sorted. A regular pattern is every R-th line from the offset that fits best;
    where no offset explains most lines outside the calibration (random patterns), any 1/R of all lines will do.
    """
    announced = np.arange(limits.minimum, limits.maximum + 1)
    first, end = _run_around(lines, limits.center)
    outside = lines[(lines < first) | (lines >= end)]
    pattern = outside if len(outside) else lines
    hits = [np.count_nonzero((pattern - offset) % acceleration == 0) for offset in range(acceleration)]
    offset = int(np.argmax(hits))
    if len(outside) and hits[offset] < REGULAR_SHARE * len(outside):
        return len(lines), len(announced) // acceleration
    wanted = announced[(announced - offset) % acceleration == 0]
    return int(np.isin(wanted, lines).sum()), len(wanted)
