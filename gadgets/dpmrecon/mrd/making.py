"""From the lines of a slice or a volume to its k-space: whole, placed, whitened, freed of readout oversampling.

What cannot be made of them ends in LostError, whose message is the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import ESTIMATED, MEASURED, Slice, SliceKey, Volume
from ..physics.covariance import quiet_covariance
from .averages import may_be_weighted
from .epi import ghost_remarks, weighted_shots
from .header import Limits, voxel_mm
from .lines import Lines, LostError, places_of
from .noise_lines import whitened
from .record import offsets
from .settling import Settled, Settler

if TYPE_CHECKING:
    import torch

# A noise measurement so much louder than quiet k-space is another scan's
TOO_LOUD = 1.5
# Without one: times the median channel's level in the outermost OUTER of the lines and of their samples; how much
# larger noise is further in, by chance
LOUD, OUTER, MOST_LINES, FLAT = 2.0, 0.15, 512, 1.3
# Without one channels are whitened where their noise correlates more, root mean square, or two powers differ more: less
# may be chance
CORRELATED, UNLIKE = 0.08, 1.5
# And a noise measurement is not that of the scan where they do so by more once it has whitened them
MISFIT_CORRELATED, MISFIT_UNLIKE = 0.15, 2.0


class Maker(Settler):
    """Makes the slices of a scan."""

    noise_is_checked = False

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        # by the channels' numbers, where no noise is measured
        self.whiteners: dict[tuple[int, ...], np.ndarray | None] = {}
        self.levels_of_channels: dict[tuple[int, ...], np.ndarray] = {}
        self.first_echoes: dict[int, torch.Tensor] = {}  # the centres of their k-space, by slice number
        # and where it is: whether it is another scan's
        self.contradicted: dict[tuple[int, ...], bool] = {}

    def made(self, key: SliceKey, found: Settled) -> Slice:
        """The slice or volume; the lines of a volume are let go."""
        made = (self._volume if self.partitions > 1 else self._slice)(key, found)
        return made if self.readouts is not None else self._turned(made, found)

    def _turned(self, data: Slice, found: Settled) -> Slice:
        """As it is, or along the readout like the first echo of its slice, whose mirror image it is."""
        from ..physics.mirrored import centre_of, is_mirrored, turned

        if data.key.contrast == 0:
            self.first_echoes.setdefault(data.key.slice, centre_of(data.kspace))
        first = self.first_echoes.get(data.key.slice)
        if first is None or not is_mirrored(data.kspace, first):
            return data
        calibration = data.calibration
        if calibration is not None and (found.calibration is None or is_mirrored(calibration, first)):
            calibration = turned(calibration)
        remark = (
            "its readouts run the other way than those of the first echo and are turned: see whether the flag REVERSE "
            "is right, and left is left"
        )
        return replace(
            data,
            kspace=turned(data.kspace),
            mask=turned(data.mask),
            calibration=calibration,
            remarks=(*data.remarks, remark),
        )

    def _slice(self, key: SliceKey, found: Settled) -> Slice:
        import torch

        from ..physics.noise import estimated_sigma

        lines, remarks = found.lines, list(found.remarks)
        data, columns = lines.mean(found.grid, self.cols)
        rows = torch.tensor(list(lines.sums)) + (self.rows // 2 - found.limits[1].center)
        remarks += ghost_remarks(lines, "shots")
        shots = None
        if lines.shots and may_be_weighted(self.header, key):
            shots = weighted_shots(
                {row: lines.shots[number] for row, number in zip(rows.tolist(), lines.sums)}, self.rows
            )
        if found.calibration is not None:
            remarks += ghost_remarks(found.calibration, "calibration shots")
        whitener, measured = self._noise(lines, found.limits, found.grid, remarks)
        kspace = data.new_zeros((data.shape[1], self.rows, self.cols))
        kspace[:, rows] = whitened(data, whitener)
        mask = torch.zeros(self.rows, self.cols)
        mask[rows] = columns.float()
        sigma_n = self._noise_level(measured, lines, estimated_sigma, kspace, mask)
        return Slice(
            key=key,
            kspace=kspace,
            mask=mask,
            calibration=self._calibration_block(found, kspace, whitener),
            sigma_n=sigma_n,
            noise_source=ESTIMATED if measured is None else MEASURED,
            acceleration=float(found.acceleration),
            n_lines_got=len(lines.sums),
            n_lines_needed=found.n_needed,
            seed_key=key.seed_key,
            remarks=tuple(remarks),
            shots=shots,
            ghost=max(((ghost.after, ghost.before) for ghost in lines.ghosts), default=None),
            channels=lines.numbers,
        )

    def _volume(self, key: SliceKey, found: Settled) -> Volume:
        """As `_slice`; the lines are let go, so that memory holds them or their k-space."""
        import torch

        from ..physics.noise import estimated_volume_sigma

        lines, grid, shape = found.lines, found.grid, (self.partitions, self.rows)
        remarks = list(found.remarks)
        whitener, measured = self._noise(lines, found.limits, grid, remarks)
        # pages of memory come as they are written
        kspace = torch.from_numpy(np.zeros((len(lines.numbers), *shape, self.cols), np.complex64))
        columns = lines.echo(grid).columns(grid, self.cols)
        for numbers, data in lines.emptied(grid, self.cols):
            partitions, rows = torch.from_numpy(places_of(numbers) + offsets(found.limits, shape)).T
            kspace[:, partitions, rows] = whitened(data, whitener)
        mask = torch.from_numpy(found.acquired)[..., None] * columns.float()
        sigma_n = self._noise_level(measured, lines, estimated_volume_sigma, kspace, mask)
        return Volume(
            key=key,
            kspace=kspace,
            mask=mask,
            calibration=self._calibration_of_volume(found, kspace, whitener),
            sigma_n=sigma_n,
            noise_source=ESTIMATED if measured is None else MEASURED,
            acceleration=float(found.acceleration),
            n_lines_got=int(found.acquired.sum()),
            n_lines_needed=found.n_needed,
            seed_key=key.seed_key,
            remarks=tuple(remarks),
            channels=lines.numbers,
            voxel_mm=voxel_mm(self.header),
        )

    def _noise(
        self, lines: Lines, limits: tuple[Limits, Limits], grid: int, remarks: list[str]
    ) -> tuple[torch.Tensor | None, float | None]:
        """Whitening matrix and noise level of single lines; without a noise measurement of these channels, or
        with another scan's, that of `_whitener` and None."""
        assert lines.header is not None
        if self.readouts is not None:
            grid = max(grid, self.readouts.of(0).noise_grid)
        measured = self.noise.whitener(lines.numbers, lines.header.sample_time_us, grid, self.cols)
        if measured is None or self._contradicted(measured[0].numpy(), lines, limits):
            return self._whitener(lines, limits, remarks), None
        return measured

    def _contradicted(self, whitener: np.ndarray, lines: Lines, limits: tuple[Limits, Limits]) -> bool:
        """Whether the noise measurement leaves the noise beside the head, in the first slice, far from white."""
        if lines.numbers not in self.contradicted:
            covariance = quiet_covariance(whitener @ _outward(lines, limits))
            self.contradicted[lines.numbers] = False
            if covariance is not None:
                correlations, powers = _correlations(covariance)
                if _typical(correlations) > MISFIT_CORRELATED or powers > MISFIT_UNLIKE:
                    self.contradicted[lines.numbers] = True
                    self.log.remark(
                        "the noise measurement is left out: beside the head channels that it has whitened correlate by "
                        f"up to {correlations.max(initial=0):.2f}, and the loudest has {powers:.1f} times the power of "
                        "the quietest; see whether it has spikes or signal, or gains or channels were others"
                    )
        return self.contradicted[lines.numbers]

    def _whitener(self, lines: Lines, limits: tuple[Limits, Limits], remarks: list[str]) -> torch.Tensor | None:
        """Without a noise measurement, in its place: what whitens the noise that the readouts of the first slice hold
        beside the head; where that cannot be told the matrix of `_balanced`."""
        import torch

        if lines.numbers not in self.whiteners:
            covariance = quiet_covariance(_outward(lines, limits))
            self.whiteners[lines.numbers] = None if covariance is None else self._whitening(covariance)
        found = self.whiteners[lines.numbers]
        return self._balanced(lines, limits, remarks) if found is None else torch.from_numpy(found)

    def _whitening(self, covariance: np.ndarray) -> np.ndarray | None:
        """(n_coils, n_coils) complex64, which keeps the mean power; None where the channels are alike as they are."""
        correlations, powers = _correlations(covariance)
        if _typical(correlations) <= CORRELATED and powers <= UNLIKE:
            return None
        self.log.remark(
            "the noise of the channels, where readouts hold no head, correlates by up to "
            f"{correlations.max(initial=0):.2f}, and the loudest has {powers:.1f} times the power of the quietest: "
            "they are whitened by that"
        )
        mean = covariance.diagonal().real.mean()
        return np.linalg.inv(np.linalg.cholesky(covariance / mean)).astype(np.complex64)

    def _balanced(self, lines: Lines, limits: tuple[Limits, Limits], remarks: list[str]) -> torch.Tensor | None:
        """The matrix that scales loud channels to the level of the others; None where none is. It is that of the
        first slice for all, so that slices keep their brightness."""
        import torch

        if lines.numbers not in self.levels_of_channels:
            self.levels_of_channels[lines.numbers] = _outer_levels(lines, limits)
        levels = self.levels_of_channels[lines.numbers]
        ratios = levels / (np.median(levels) or 1.0)
        loud = np.flatnonzero(ratios > LOUD)
        if not len(loud):
            return None
        told = ", ".join(str(lines.numbers[place]) for place in loud)
        remarks.append(
            f"channel {told} is {ratios[loud].max():.3g} times as loud as the others where k-space is quiet: it is "
            "scaled to them; a noise measurement would tell (--noise names a file with one)"
        )
        ratios[ratios <= LOUD] = 1.0
        return torch.diag(torch.from_numpy(1 / ratios).to(torch.complex64))

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
        self, found: Settled, kspace: torch.Tensor, whitener: torch.Tensor | None
    ) -> torch.Tensor | None:
        """(n_coils, rows_cal, cols) of the separate calibration, else of the image's centre, or None."""
        if found.block is None:
            return None
        _, rows = found.block
        if found.calibration is None:
            return kspace[:, rows]
        data = self._beside(found.calibration, found.lines, found.grid)
        index = {number: place for place, number in enumerate(found.calibration.sums)}
        first = found.limits[1].center - self.rows // 2
        return whitened(data[[index[first + row] for row in range(rows.start, rows.stop)]], whitener)

    def _calibration_of_volume(
        self, found: Settled, kspace: torch.Tensor, whitener: torch.Tensor | None
    ) -> torch.Tensor | None:
        """(n_coils, partitions_cal, rows_cal, cols), as `_calibration_block`."""
        import torch

        if found.block is None:
            return None
        if found.calibration is None:
            return kspace[:, found.block[0], found.block[1]]
        places = places_of(found.calibration.sums) + offsets(found.limits, (self.partitions, self.rows))
        data = whitened(self._beside(found.calibration, found.lines, found.grid), whitener)
        first, end = (np.array([getattr(part, name) for part in found.block]) for name in ("start", "stop"))
        inside = ((places >= first) & (places < end)).all(1)
        partitions, rows = torch.from_numpy((places - first)[inside]).T
        block = data.new_zeros((len(data), *(end - first), self.cols))
        block[:, partitions, rows] = data[:, torch.from_numpy(inside)]
        return block

    def _beside(self, calibration: Lines, lines: Lines, grid: int) -> torch.Tensor:
        """(n_lines, n_coils, cols) of a separate calibration on the grid of the image lines."""
        assert calibration.header is not None
        if self.readouts is not None:  # it may be a gradient echo, which has its own readout
            space = calibration.header.encoding_space
            grid = self.readouts.grid(calibration.layout, space) if space else self.readout_grid(calibration.layout)
        if not calibration.layout.fits(grid):
            raise LostError(f"its calibration lines have {calibration.layout}, its image lines {lines.layout}")
        return calibration.mean(grid, self.cols)[0]


def _correlations(covariance: np.ndarray) -> tuple[np.ndarray, float]:
    """Moduli of the correlations of two channels each, and the largest power over the smallest."""
    power = covariance.diagonal().real
    correlation = np.abs(covariance) / np.sqrt(np.outer(power, power))
    return correlation[~np.eye(len(power), dtype=bool)], float(power.max() / power.min())


def _typical(correlations: np.ndarray) -> float:
    """Their root mean square."""
    return float(np.sqrt(np.square(correlations).mean())) if len(correlations) else 0.0


def _outer_levels(lines: Lines, limits: tuple[Limits, Limits]) -> np.ndarray:
    """(n_coils,): the median size of a sample in the outermost lines and at the ends of them; all alike where those
    further in are larger: that is signal, as in scans without noise."""
    samples = np.arange(lines.layout.first, lines.layout.end)
    ends = samples[np.argsort(-np.abs(samples - lines.layout.center), kind="stable")]
    numbers = _numbers_outward(lines, limits)

    def level(first: float, last: float) -> np.ndarray:
        """Of these shares of lines and samples, from the outermost on."""
        some, columns = (part[round(first * len(part)) : max(1, round(last * len(part)))] for part in (numbers, ends))
        some = some[:: max(1, len(some) // MOST_LINES)].tolist()
        found = [np.abs(lines.sums[number][:, columns]) / lines.counts[number] ** 0.5 for number in some]
        return np.median(np.concatenate(found, 1), 1)

    outer, further_in = level(0, OUTER), level(OUTER, 2 * OUTER)
    return outer if np.median(further_in / np.maximum(outer, 1e-30)) <= FLAT else np.ones(len(outer))


def _numbers_outward(lines: Lines, limits: tuple[Limits, Limits]) -> np.ndarray:
    """The numbers of the lines, the outermost first."""
    apart = places_of(lines.sums) - np.array([limit.center for limit in limits])
    return np.array(list(lines.sums))[np.argsort(-np.hypot(*apart.T), kind="stable")]


def _outward(lines: Lines, limits: tuple[Limits, Limits]) -> np.ndarray:
    """(n_lines, n_coils, n_samples) complex64: lines, or some of many, the outermost first, with one line's noise."""
    numbers = _numbers_outward(lines, limits)
    some = numbers[:: max(1, len(numbers) // MOST_LINES)].tolist()
    where = slice(lines.layout.first, lines.layout.end)
    return np.stack([lines.sums[number][:, where] / np.float32(lines.counts[number] ** 0.5) for number in some])
