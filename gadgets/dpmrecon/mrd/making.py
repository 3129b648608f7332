"""From the lines of a slice or a volume to its k-space: whole, placed, whitened, freed of readout oversampling.

What cannot be made of them ends in LostError, whose message is the reason.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import ESTIMATED, MEASURED, Slice, SliceKey, Volume
from .averages import may_be_weighted
from .channel_noise import ChannelNoise
from .epi import UNCALIBRATED, ghost_remarks, weighted_shots
from .header import Limits, voxel_mm
from .lines import Lines, LostError, places_of
from .noise_lines import whitened
from .record import offsets
from .settling import Settled, Settler

if TYPE_CHECKING:
    import torch


class Maker(Settler):
    """Makes the slices of a scan."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.channel_noise = ChannelNoise(self.noise, self.log)
        self.first_echoes: dict[int, torch.Tensor] = {}  # the centres of their k-space, by slice number

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
        if shots is not None and found.block is None and self._block(found.acquired[None]) is not None:
            raise LostError(UNCALIBRATED)
        if found.calibration is not None:
            remarks += ghost_remarks(found.calibration, "calibration shots")
        whitener, measured = self._whitener(lines, found.limits, found.grid, remarks)
        kspace = data.new_zeros((data.shape[1], self.rows, self.cols))
        kspace[:, rows] = whitened(data, whitener)
        mask = torch.zeros(self.rows, self.cols)
        mask[rows] = columns.float()
        sigma_n = self.channel_noise.level(measured, lines, estimated_sigma, kspace, mask)
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
            calibration_noise=_calibration_noise(found),
        )

    def _volume(self, key: SliceKey, found: Settled) -> Volume:
        """As `_slice`; the lines are let go, so that memory holds them or their k-space."""
        import torch

        from ..physics.noise import estimated_volume_sigma

        lines, grid, shape = found.lines, found.grid, (self.partitions, self.rows)
        remarks = list(found.remarks)
        whitener, measured = self._whitener(lines, found.limits, grid, remarks)
        # pages of memory come as they are written
        kspace = torch.from_numpy(np.zeros((len(lines.numbers), *shape, self.cols), np.complex64))
        columns = lines.echo(grid).columns(grid, self.cols)
        for numbers, data in lines.emptied(grid, self.cols):
            partitions, rows = torch.from_numpy(places_of(numbers) + offsets(found.limits, shape)).T
            kspace[:, partitions, rows] = whitened(data, whitener)
        mask = torch.from_numpy(found.acquired)[..., None] * columns.float()
        sigma_n = self.channel_noise.level(measured, lines, estimated_volume_sigma, kspace, mask)
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
            calibration_noise=_calibration_noise(found),
            voxel_mm=voxel_mm(self.header),
        )

    def _whitener(
        self, lines: Lines, limits: tuple[Limits, Limits], grid: int, remarks: list[str]
    ) -> tuple[torch.Tensor | None, float | None]:
        """As `ChannelNoise.whitener`."""
        if self.readouts is not None:
            grid = max(grid, self.readouts.of(0).noise_grid)
        return self.channel_noise.whitener(lines, limits, (grid, self.cols), remarks)

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


def _calibration_noise(found: Settled) -> float:
    """See `Slice`."""
    return 1.0 if found.calibration is None else max(1.0, found.calibration.noise / found.lines.noise)
