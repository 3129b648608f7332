"""The noise measurement: which of its lines and channels serve image lines, in what scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import ismrmrd
import numpy as np

from ..physics.covariance import noise_covariance

if TYPE_CHECKING:
    import torch


def channel_numbers(head: ismrmrd.AcquisitionHeader) -> tuple[int, ...]:
    """The receiver's number of each channel of a line: from its channel mask, else they are counted."""
    bits = [64 * word + bit for word, mask in enumerate(head.channel_mask[:]) for bit in range(64) if mask >> bit & 1]
    return tuple(bits) if len(bits) == head.active_channels else tuple(range(head.active_channels))


@dataclass
class NoiseLines:
    """Noise lines of measurements, each with its channels' numbers and dwell time."""

    lines: list[tuple[tuple[int, ...], float, np.ndarray]] = field(default_factory=list)
    _made: dict[tuple, tuple[torch.Tensor, float]] = field(default_factory=dict)

    def add(self, line: ismrmrd.Acquisition) -> None:
        """Keep a line; one of zeros is none."""
        if line.data.any():
            self.lines.append((channel_numbers(line.getHead()), float(line.sample_time_us), line.data))

    def fitting(self, numbers: tuple[int, ...]) -> list[tuple[float, np.ndarray]]:
        """(dwell time, samples of these channels) of the lines that have all of them; those of these channels alone
        come before those of more."""
        for same in (True, False):
            found = [
                (dwell, data if own == numbers else data[[own.index(number) for number in numbers]])
                for own, dwell, data in self.lines
                if (own == numbers if same else set(numbers) <= set(own))
            ]
            if found:
                return found
        return []

    def dead(self, numbers: tuple[int, ...]) -> list[int]:
        """Places among these channels that carry no noise."""
        lines = self.fitting(numbers)
        return [place for place in range(len(numbers)) if lines and not any(data[place].any() for _, data in lines)]

    def energy(self, numbers: tuple[int, ...], dwell: float) -> float | None:
        """Mean |n|^2 of an image line's sample of this dwell time, over these channels; None if not known."""
        lines = self.fitting(numbers)
        if not lines:
            return None
        energies = [_ratio(own, dwell) * float(np.square(np.abs(data)).sum(0).mean()) for own, data in lines]
        return float(np.mean(energies))

    def powers(self, numbers: tuple[int, ...], dwell: float) -> np.ndarray:
        """(n_coils,) mean |n|^2 of a sample of image lines of this dwell time; ones where it is not measured."""
        lines = self.fitting(numbers)
        if not lines:
            return np.ones(len(numbers))
        return np.mean([_ratio(own, dwell) * np.square(np.abs(data)).mean(1) for own, data in lines], 0)

    def covariance(self, numbers: tuple[int, ...]) -> np.ndarray | None:
        """(n_coils, n_coils) complex128 of these channels; None where it is not measured. Raises BadInputError."""
        lines = self.fitting(numbers)
        return noise_covariance([data for _, data in lines]) if lines else None

    def whitener(
        self, numbers: tuple[int, ...], dwell: float, grid: int, cols: int
    ) -> tuple[torch.Tensor, float] | None:
        """Whitening matrix and noise level of single image lines of this dwell time, whose readouts of `grid` samples
        keep `cols`; None without a measurement that has these channels."""
        place = (numbers, dwell, grid)
        if place not in self._made:
            lines = self.fitting(numbers)
            if not lines:
                return None
            self._made[place] = _whitener(lines, dwell, grid, cols)
        return self._made[place]


def _ratio(noise_dwell: float, dwell: float) -> float:
    """Scale of the noise's variance, because the bandwidth is 1 / dwell time; 1 where one is not told."""
    return noise_dwell / dwell if 0 < dwell < math.inf and 0 < noise_dwell < math.inf else 1.0


def _whitener(lines: list[tuple[float, np.ndarray]], dwell: float, grid: int, cols: int) -> tuple[torch.Tensor, float]:
    import torch

    from ..physics.fourier import without_oversampling
    from ..physics.noise import whitening

    ratio = 1.0
    if len({own for own, _ in lines}) == 1:
        ratio, samples = _ratio(lines[0][0], dwell), [data for _, data in lines]
    else:
        samples = [np.complex64(math.sqrt(_ratio(own, dwell))) * data for own, data in lines]
    matrix = whitening(samples, ratio)
    # Measured on what image lines pass too: filters leave the kept columns more noise
    energy, count = 0.0, 0
    for n_samples in {noise.shape[1] for noise in samples}:
        data = torch.from_numpy(np.stack([noise for noise in samples if noise.shape[1] == n_samples]))
        if grid != cols:
            data = without_oversampling(data, round(n_samples * cols / grid))
        energy += float(torch.view_as_real(whitened(data, matrix)).square().sum())
        count += 2 * data.numel()
    return matrix, math.sqrt(ratio * energy / count)


def whitened(data: torch.Tensor, whitener: torch.Tensor | None) -> torch.Tensor:
    """(n_lines, n_coils, cols) to (n_coils, n_lines, cols), whitened."""
    data = data.transpose(0, 1)
    if whitener is None:
        return data
    import torch

    return torch.tensordot(whitener, data, dims=1)
