"""From the lines of a slice or a volume to its k-space: whole, placed, whitened, freed of readout oversampling.

What cannot be made of them ends in LostError, whose message is the reason.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from ..data import ESTIMATED, MEASURED, LostSlice, Slice, SliceKey, Volume
from ..errors import BadInputError
from ..physics.noise import estimated_sigma, estimated_volume_sigma
from .averages import may_be_weighted
from .completeness import FEWEST_CALIBRATION_LINES, central_block, completeness, within
from .epi import Readouts, ghost_remarks, weighted_shots
from .header import Header, Limits, acceleration, encoded_grid, line_limits, n_partitions, partition_limits, voxel_mm
from .lines import Layout, Lines, LostError, line_name, places_of
from .noise_lines import NoiseLines, whitened
from .receiving import Receiving
from .record import check_repeats, offsets, placed, placed_in_volume
from .scan_log import ScanLog
from .volumes import central_box, fills_its_lattice, on_matrix, volume_completeness

# A noise measurement that is louder than the quietest part of k-space by more than this is not this scan's
TOO_LOUD = 1.5
NO_NOISE = (
    "no noise measurement came: the noise is estimated from k-space, without whitening (--noise names a file with one)"
)


class Maker:
    """Makes the slices of a scan. readouts: those of EPI; averaged: lines of one number are averages, which are
    added up."""

    def __init__(
        self,
        header: Header,
        noise: NoiseLines,
        receiving: Receiving,
        log: ScanLog,
        readouts: Readouts | None = None,
        *,
        averaged: bool,
    ) -> None:
        self.header, self.readouts, self.noise, self.receiving, self.log = header, readouts, noise, receiving, log
        self.rows, self.cols = encoded_grid(header)
        self.partitions = n_partitions(header)
        self.limits, self.partition_limits = line_limits(header), partition_limits(header)
        self.acceleration = acceleration(header)
        self.repeats = "averages" if averaged else "lines of one label"
        self.noise_is_checked = False

    def is_whole(self, numbers: set[int], *, last: bool) -> bool:
        """Whether a volume has the lines that it needs; last: its repetition ends here, else none may be left out."""
        shape = self.partitions, self.rows
        limits = within(self.partition_limits, shape[0]), within(self.limits, shape[1])
        acquired = on_matrix(places_of(numbers) + offsets(limits, shape), shape)
        if last:
            return volume_completeness(acquired, limits, self.acceleration)[2] is None
        return fills_its_lattice(acquired, limits, self.acceleration)

    def made(self, key: SliceKey, image: Lines, calibration: Lines | None) -> Slice | LostSlice:
        """The slice or volume of the lines; those of a volume are no longer in `image` then."""
        try:
            return (self._volume if self.partitions > 1 else self._slice)(key, image, calibration)
        except LostError as lost:
            return LostSlice(key, str(lost))

    def _slice(self, key: SliceKey, lines: Lines, calibration: Lines | None) -> Slice:
        remarks: list[str] = []
        lines = lines.of_channels(self._alive(lines, remarks))
        lines, limits = placed(lines, self.limits, self.rows, remarks)
        _check(lines, "")
        numbers, announced = np.array(sorted(lines.sums)), self.acceleration
        factor, needed, gap = completeness(numbers, limits, announced)
        if gap is not None and lines.zeros:  # lines of zeros were never acquired: the others tell R
            factor, needed, gap = completeness(numbers, limits, None)
            remarks.append(f"R = {announced} is announced, and lines of zeros among the others tell R = {factor}")
        if gap is not None:
            raise LostError(gap)
        assert lines.layout is not None and lines.header is not None
        dwell = lines.header.sample_time_us
        check_repeats(lines, self._noise_energy(lines), self.repeats)
        grid = self._readout_grid(lines.layout)
        data, columns = lines.mean(grid, self.cols)
        rows = torch.tensor(list(lines.sums)) + (self.rows // 2 - limits.center)
        whitener, sigma_n = self._noise(lines, dwell, grid)
        remarks += ghost_remarks(lines, "shots")
        shots = None
        if lines.shots and may_be_weighted(self.header, key):
            shots = weighted_shots(
                {row: lines.shots[number] for row, number in zip(rows.tolist(), lines.sums)}, self.rows
            )
        if calibration is not None:
            remarks += ghost_remarks(calibration, "calibration shots")
        kspace = data.new_zeros((data.shape[1], self.rows, self.cols))
        kspace[:, rows] = whitened(data, whitener)
        mask = torch.zeros(self.rows, self.cols)
        mask[rows] = columns.float()
        measured = None if whitener is None else sigma_n
        sigma_n = self._noise_level(measured, lines, estimated_sigma, kspace, mask)
        return Slice(
            key=key,
            kspace=kspace,
            mask=mask,
            calibration=self._calibration_block(lines, limits, kspace, calibration, grid, whitener),
            sigma_n=sigma_n,
            noise_source=ESTIMATED if whitener is None else MEASURED,
            acceleration=float(factor),
            n_lines_got=len(lines.sums),
            n_lines_needed=needed,
            seed_key=key.seed_key,
            remarks=tuple(remarks),
            shots=shots,
            ghost=max(((ghost.after, ghost.before) for ghost in lines.ghosts), default=None),
            channels=lines.numbers,
        )

    def _volume(self, key: SliceKey, image: Lines, calibration: Lines | None) -> Volume:
        """As `_slice`; the lines leave `image`, so that memory holds them or their k-space."""
        remarks: list[str] = []
        shape = self.partitions, self.rows
        _check(image, "")
        lines = image.of_channels(self._alive(image, remarks))
        lines, limits = placed_in_volume(lines, (self.partition_limits, self.limits), shape, remarks)
        if lines is not image:
            image.sums.clear()
        places = places_of(lines.sums) + offsets(limits, shape)
        acquired, announced = on_matrix(places, shape), self.acceleration
        factor, needed, gap = volume_completeness(acquired, limits, announced)
        if gap is not None and lines.zeros:
            factor, needed, gap = volume_completeness(acquired, limits, None)
            remarks.append(f"R = {announced} is announced, and lines of zeros among the others tell R = {factor}")
        if gap is not None:
            raise LostError(gap)
        assert lines.layout is not None and lines.header is not None
        check_repeats(lines, self._noise_energy(lines), self.repeats)
        grid = self._readout_grid(lines.layout)
        whitener, sigma_n = self._noise(lines, lines.header.sample_time_us, grid)
        # pages of memory come as they are written
        kspace = torch.from_numpy(np.zeros((len(lines.numbers), *shape, self.cols), np.complex64))
        columns = lines.echo(grid).columns(grid, self.cols)
        for numbers, data in lines.emptied(grid, self.cols):
            partitions, rows = torch.from_numpy(places_of(numbers) + offsets(limits, shape)).T
            kspace[:, partitions, rows] = whitened(data, whitener)
        mask = torch.from_numpy(acquired)[..., None] * columns.float()
        measured = None if whitener is None else sigma_n
        sigma_n = self._noise_level(measured, lines, estimated_volume_sigma, kspace, mask)
        return Volume(
            key=key,
            kspace=kspace,
            mask=mask,
            calibration=self._calibration_of_volume(lines, limits, acquired, kspace, calibration, grid, whitener),
            sigma_n=sigma_n,
            noise_source=ESTIMATED if whitener is None else MEASURED,
            acceleration=float(factor),
            n_lines_got=int(acquired.sum()),
            n_lines_needed=needed,
            seed_key=key.seed_key,
            remarks=tuple(remarks),
            channels=lines.numbers,
            voxel_mm=voxel_mm(self.header),
        )

    def _alive(self, lines: Lines, remarks: list[str]) -> list[int]:
        """Places of the channels that are used: those that are asked for, and that carry something."""
        n_coils = len(lines.numbers)
        asked = self.receiving.coils
        if asked is not None and not set(asked) <= set(range(n_coils)):
            told = ", ".join(map(str, asked))
            raise BadInputError(
                f"coils {told} are asked for and the scan has {n_coils}: give numbers from 0 to {n_coils - 1}"
            )
        silent = [place for place in range(n_coils) if not any(data[place].any() for data in lines.sums.values())]
        dead = sorted({*silent, *self.noise.dead(lines.numbers)} if len(silent) < n_coils else set())
        if dead and len(dead) < n_coils:
            remarks.append(f"channel {', '.join(map(str, dead))} of {n_coils} is dead and left out")
        kept = [place for place in (range(n_coils) if asked is None else asked) if place not in dead]
        if asked is not None and not kept and len(dead) < n_coils:
            raise LostError(f"the coils that are asked for ({', '.join(map(str, asked))}) are dead")
        return kept or list(range(n_coils))

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

    def _noise(self, lines: Lines, dwell: float, grid: int) -> tuple[torch.Tensor | None, float]:
        """Whitening matrix and noise level of single lines; (None, 0) without a noise measurement of these channels."""
        if self.readouts is not None:
            grid = max(grid, self.readouts.of(0).noise_grid)
        found = self.noise.whitener(lines.numbers, dwell, grid, self.cols)
        if found is None and not self.noise.lines:
            self.log.remark(NO_NOISE)
        elif found is None:
            others = sorted({len(numbers) for numbers, _, _ in self.noise.lines})
            self.log.remark(
                f"the noise measurement has {' and '.join(map(str, others))} channels and lacks some of the image's "
                f"{len(lines.numbers)}: the noise is estimated from k-space, without whitening"
            )
        return found or (None, 0.0)

    def _noise_energy(self, lines: Lines) -> float | None:
        """Expected |.|^2 of the noise of one line; None where it is not known."""
        assert lines.layout is not None and lines.header is not None
        energy = self.noise.energy(lines.numbers, lines.header.sample_time_us)
        return None if energy is None else energy * lines.layout.n_samples

    def _noise_level(
        self,
        measured: float | None,
        lines: Lines,
        estimate: Callable[..., float],
        kspace: torch.Tensor,
        mask: torch.Tensor,
    ) -> float:
        """Of the k-space: as it was measured for single lines, else as it is estimated."""
        if measured is None:
            return estimate(kspace, mask)
        # the variance of a mean of n lines is 1/n of one line's
        sigma_n = measured * math.sqrt(np.mean([1 / count for count in lines.counts.values()]))
        self._check_noise(sigma_n, estimate, kspace, mask)
        return sigma_n

    def _check_noise(
        self, sigma_n: float, estimate: Callable[..., float], kspace: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """Once a scan: signal only adds to the noise of k-space, so that it is never quieter than the measurement."""
        if self.noise_is_checked:
            return
        self.noise_is_checked = True
        quiet = estimate(kspace, mask)
        if sigma_n > TOO_LOUD * quiet:
            self.log.remark(
                f"the noise measurement is {sigma_n / quiet:.1f} times as loud as the quietest part of k-space: it is "
                "of another scan, or its dwell time is wrong (--noise names another file)"
            )

    def _calibration_block(
        self,
        lines: Lines,
        limits: Limits,
        kspace: torch.Tensor,
        calibration: Lines | None,
        grid: int,
        whitener: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """(n_coils, rows_cal, cols) of the separate calibration, else of the image's own centre, else None."""
        if calibration is not None:
            calibration = self._checked(calibration, lines)
            block = central_block(calibration.sums, limits.center)
            if len(block) >= FEWEST_CALIBRATION_LINES:
                data = self._beside(calibration, lines, grid)
                index = {number: place for place, number in enumerate(calibration.sums)}
                return whitened(data[[index[number] for number in block]], whitener)
        center = self.rows // 2
        block = central_block((number + center - limits.center for number in lines.sums), center)
        return kspace[:, block.start : block.stop] if len(block) >= FEWEST_CALIBRATION_LINES else None

    def _calibration_of_volume(
        self,
        lines: Lines,
        limits: tuple[Limits, Limits],
        acquired: np.ndarray,
        kspace: torch.Tensor,
        calibration: Lines | None,
        grid: int,
        whitener: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """(n_coils, partitions_cal, rows_cal, cols), as `_calibration_block`."""
        if calibration is not None:
            calibration = self._checked(calibration, lines)
            places = places_of(calibration.sums) + offsets(limits, acquired.shape)
            box = central_box(on_matrix(places, acquired.shape))
            if box is not None:
                data = whitened(self._beside(calibration, lines, grid), whitener)
                first, end = (np.array([getattr(part, name) for part in box]) for name in ("start", "stop"))
                inside = ((places >= first) & (places < end)).all(1)
                partitions, rows = torch.from_numpy((places - first)[inside]).T
                block = data.new_zeros((len(data), *(end - first), self.cols))
                block[:, partitions, rows] = data[:, torch.from_numpy(inside)]
                return block
        box = central_box(acquired)
        return None if box is None else kspace[:, box[0], box[1]]

    def _checked(self, calibration: Lines, lines: Lines) -> Lines:
        """A separate calibration, of the image lines' channels alone."""
        assert calibration.layout is not None and lines.layout is not None
        if not set(lines.numbers) <= set(calibration.numbers):
            raise LostError(
                f"its calibration has {calibration.layout.n_coils} channels, its image lines have "
                f"{lines.layout.n_coils}"
            )
        calibration = calibration.of_channels([calibration.numbers.index(number) for number in lines.numbers])
        check_repeats(calibration, self._noise_energy(calibration), "calibration lines of one label")
        _check(calibration, "calibration ")
        return calibration

    def _beside(self, calibration: Lines, lines: Lines, grid: int) -> torch.Tensor:
        """(n_lines, n_coils, cols) of a separate calibration on the grid of the image lines."""
        assert calibration.layout is not None and calibration.header is not None
        if self.readouts is not None:  # it may be a gradient echo, which has its own readout
            space = calibration.header.encoding_space
            grid = self.readouts.grid(calibration.layout, space) if space else self._readout_grid(calibration.layout)
        if not calibration.layout.fits(grid):
            raise LostError(f"its calibration lines have {calibration.layout}, its image lines {lines.layout}")
        return calibration.mean(grid, self.cols)[0]


def _check(lines: Lines, kind: str) -> None:
    """Lines that do not fit together, or hold no numbers, lose the slice."""
    if lines.lost is not None:
        raise LostError(f"its {kind}lines {lines.lost}")
    if lines.fault is not None:
        raise LostError(f"its {kind}lines differ: {lines.fault}")
    if not any(map(np.any, lines.sums.values())):
        raise LostError(f"all samples of its {kind}lines are zero")
    for number, data in lines.sums.items():
        if not np.isfinite(data).all():
            raise LostError(f"{kind}{line_name(number)} holds NaN or infinite values")
