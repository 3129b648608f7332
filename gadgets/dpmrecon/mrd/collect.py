"""From acquisitions to slices: lines are collected per slice, whitened, freed of readout oversampling, and checked.

The lines may come from a file (`file.open_scan`) or a stream. Rows are phase-encoding lines, columns readout samples.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import ismrmrd
import numpy as np
import torch

from ..data import LostSlice, Slice, SliceKey
from ..errors import BadInputError, UnsupportedScanError
from ..physics.fourier import without_oversampling
from ..physics.noise import estimated_sigma, whitening
from .completeness import FEWEST_CALIBRATION_LINES, central_block, completeness
from .flags import CALIBRATION, GHOST_CORRECTION, IGNORED, LAST_IN_SLICE, NOISE
from .header import (
    Header,
    Limits,
    acceleration,
    calibration_is_separate,
    check_supported,
    encoded_grid,
    line_limits,
)
from .lines import Layout, LineHeaders, Lines, LostError


@dataclass
class _Record:
    """A slice that is being filled; calibration: the lines that are for calibration alone."""

    image: Lines = field(default_factory=Lines)
    calibration: Lines = field(default_factory=Lines)

    def is_apart(self, announced: bool) -> bool:
        """Whether its calibration is an acquisition of its own. Headers fail to say so, but a row that came once as
        calibration and once as image tells it: averaging both would mix two acquisitions."""
        return announced or bool(self.image.sums.keys() & self.calibration.sums.keys())


def slices(
    acquisitions: Iterable[ismrmrd.Acquisition],
    header: Header,
    line_headers: LineHeaders | None = None,
    *,
    combine_averages: bool = False,
) -> Iterator[Slice | LostSlice]:
    """Collect lines into slices; each leaves when its line flagged ACQ_LAST_IN_SLICE came, or at the end.

    line_headers: gets that of the image line nearest the k-space centre of each slice, before the slice leaves.
    Averages are slices of their own unless `combine_averages`; then their mean is one slice that leaves with the last
    announced average. Memory holds the open slices, the noise lines and one separate
    calibration a slice number, which later repetitions, averages and contrasts use if they bring none. Lines that are
    for calibration alone are image lines too, unless the header or a row that came as both says otherwise.
    Raises UnsupportedScanError and BadInputError, in one sentence, for scans that cannot be used at all.
    """
    check_supported(header)
    collector = _Collector(header, {} if line_headers is None else line_headers, combine_averages)
    for line in acquisitions:
        key = collector.add(line)
        if key is not None:
            yield from collector.close(key)
    yield from collector.rest()


class _Collector:
    def __init__(self, header: Header, line_headers: LineHeaders, combine_averages: bool) -> None:
        self.header, self.line_headers = header, line_headers
        self.rows, self.cols = encoded_grid(header)
        self.limits = line_limits(header)
        self.announced_acceleration = acceleration(header)
        self.separate = calibration_is_separate(header)
        self.combine_averages = combine_averages
        limit = getattr(header.encoding[0].encodingLimits, "average", None)
        self.last_average = limit.maximum if limit is not None else None
        self.noise_lines: list[np.ndarray] = []
        self.noise_dwell = 0.0
        self.whitening: dict[tuple[float, int], tuple[torch.Tensor, float]] = {}
        self.open: dict[SliceKey, _Record] = {}
        self.calibration: dict[int, tuple[SliceKey, Lines]] = {}
        self.seen: set[int] = set()
        self.combined: set[SliceKey] = set()

    def add(self, line: ismrmrd.Acquisition) -> SliceKey | None:
        """Keep a line; returns the slice's key when this was its last line."""
        flags = int(line.flags)
        if flags & NOISE:
            self._add_noise(line)
            return None
        if flags & GHOST_CORRECTION:
            raise UnsupportedScanError(
                "the scan has phase-correction or reversed lines (EPI), whose ghost correction is not done here"
            )
        key = self._key(line.idx)
        if not flags & IGNORED:
            self._add_to(self.open.setdefault(key, _Record()), line, flags)
        if not flags & LAST_IN_SLICE or key not in self.open:
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
        only_calibration = bool(flags & CALIBRATION)
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

    def _other_space(self, number: int, separate: bool) -> Limits:
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
        return line_limits(self.header, number)

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
        self.line_headers[key] = record.image.header
        if key in self.combined:
            # a stream tells its averages by its header alone: two images of one slice would look like two slices
            reason = (
                f"more averages came than the header announces ({(self.last_average or 0) + 1}), its image lacks them"
            )
            yield LostSlice(key, reason)
            return
        if self.combine_averages and self.last_average is not None:
            self.combined.add(key)
        try:
            yield self._slice(key, record.image, self._calibration_of(key.slice))
        except LostError as lost:
            yield LostSlice(key, str(lost))

    def rest(self) -> Iterator[Slice | LostSlice]:
        """At the end of the stream: the slices still open, complete or not, and calibrations without an image."""
        # first the records without an image: they may calibrate the others
        for key in sorted(self.open, key=lambda key: (self.open[key].image.header is not None, key)):
            yield from self.close(key)
        for number, (key, lines) in self.calibration.items():
            if number not in self.seen and lines.header is not None:
                self.seen.add(number)
                yield LostSlice(key, "only its calibration lines came")
        if not self.seen:
            raise BadInputError("no image lines came, only noise measurements, navigators or nothing; send raw k-space")

    def _calibration_of(self, number: int) -> Lines | None:
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

    def _slice(self, key: SliceKey, lines: Lines, calibration: Lines | None) -> Slice:
        numbers = np.array(sorted(lines.sums)) + self.limits.center - self.rows // 2
        factor, needed, gap = completeness(numbers, self.limits, self.announced_acceleration)
        _check(lines, self.limits.center - self.rows // 2, "")
        if gap is not None:
            raise LostError(gap)
        assert lines.layout is not None
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
            acceleration=float(factor),
            n_lines_got=len(lines.sums),
            n_lines_needed=needed,
            seed_key=key.seed_key,
        )

    def _readout_grid(self, layout: Layout) -> int:
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

    def _noise(self, lines: Lines, grid: int) -> tuple[torch.Tensor | None, float]:
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
        self, lines: Lines, kspace: torch.Tensor, calibration: Lines | None, grid: int, whitener: torch.Tensor | None
    ) -> torch.Tensor | None:
        """(n_coils, rows_cal, cols) of the separate calibration, else of the image's own centre, else None."""
        center = self.rows // 2
        if calibration is not None:
            _check(calibration, self.limits.center - center, "calibration ")
            assert calibration.layout is not None and lines.layout is not None
            if calibration.layout.n_coils != lines.layout.n_coils:
                raise LostError(
                    f"its calibration has {calibration.layout.n_coils} channels, its image lines have "
                    f"{lines.layout.n_coils}"
                )
            block = central_block(calibration.sums, center)
            if len(block) >= FEWEST_CALIBRATION_LINES:
                if not calibration.layout.fits(grid):
                    raise LostError(f"its calibration lines have {calibration.layout}, its image lines {lines.layout}")
                data, _ = calibration.mean(grid, self.cols)
                index = {row: number for number, row in enumerate(calibration.sums)}
                return _whitened(data[[index[row] for row in block]], whitener)
        block = central_block(lines.sums, center)
        return kspace[:, block.start : block.stop] if len(block) >= FEWEST_CALIBRATION_LINES else None


def _check(lines: Lines, offset: int, kind: str) -> None:
    """Lines that do not fit together, or hold no numbers, lose the slice."""
    if lines.fault is not None:
        raise LostError(f"its {kind}lines differ: {lines.fault}")
    if not any(map(np.any, lines.sums.values())):
        raise LostError(f"all samples of its {kind}lines are zero")
    for row, data in lines.sums.items():
        if not np.isfinite(data).all():
            raise LostError(f"{kind}line {row + offset} holds NaN or infinite values")


def _whitened(data: torch.Tensor, whitener: torch.Tensor | None) -> torch.Tensor:
    """(n_lines, n_coils, cols) to (n_coils, n_lines, cols), whitened."""
    data = data.transpose(0, 1)
    return data if whitener is None else torch.tensordot(whitener, data, dims=1)
