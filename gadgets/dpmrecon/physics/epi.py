"""EPI readouts: where the samples of a trapezoid lie, their way onto the Cartesian grid, and the N/2 ghost.

A line is k-space along the readout, positions are in cycles per field of view of the images.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .fourier import to_image, to_kspace

# Of the signal's variance: below it a direction of the data is noise. A white object loses this share alike everywhere
REGULARIZATION = 1e-3
FINER = 16  # steps of the search for the shift between lines, a sample
REFINEMENTS = 3


@dataclass(frozen=True)
class Trapezoid:
    """A readout gradient and its sampling, in microseconds: the first dwell time begins `delay` after the gradient."""

    ramp_up: float
    flat_top: float
    ramp_down: float
    delay: float
    dwell: float
    n_samples: int

    @property
    def total(self) -> float:
        """Duration of the gradient."""
        return self.ramp_up + self.flat_top + self.ramp_down

    @property
    def is_uniform(self) -> bool:
        """Whether every sample is of the flat top, to a dwell time's rounding."""
        last, slack = self.delay + self.dwell * self.n_samples, 1e-3 * self.dwell
        return self.delay >= self.ramp_up - slack and last <= self.ramp_up + self.flat_top + slack

    def area(self, time: np.ndarray | float) -> np.ndarray:
        """Of the gradient up to a time, its flat top being 1."""
        time = np.clip(time, 0, self.total)
        up, down = np.minimum(time, self.ramp_up), np.minimum(self.total - time, self.ramp_down)
        area = time - up + (0.5 * up**2 / self.ramp_up if self.ramp_up else 0)
        if not self.ramp_down:
            return area
        return area - (self.ramp_down - down) + 0.5 * (self.ramp_down**2 - down**2) / self.ramp_down

    def positions(self, cycles: float) -> tuple[np.ndarray, np.ndarray]:
        """(n_samples,) of forward lines, and of reversed ones that are turned: the whole readout has `cycles`.

        k = 0 halves the gradient's area, and a sample is where its dwell time ends: as the MRD reference reader of such
        descriptions has it (Gadgetron, EPIReconXObjectTrapezoid.h).
        """
        ends = self.delay + self.dwell * np.arange(1, self.n_samples + 1)
        scale = cycles / (self.area(ends[-1]) - self.area(self.delay))
        forward = scale * (self.area(ends) - 0.5 * self.area(self.total))
        return forward, -forward[::-1]


def regridding(positions: np.ndarray, cols: int) -> tuple[np.ndarray, float]:
    """(cols, n_samples) float32, which makes of a line's samples those of the Cartesian grid, and the readout
    oversampling of the densest field of view that the samples hold.

    The best linear estimate for an object that is white over the field of view that the sampling holds, of which the
    images' is kept: least squares, with no grid between. Positions beyond the samples are left zero. White noise keeps
    its level in the mean over the grid. positions: (n_samples,), increasing.
    """
    held = max(1.0, 1 / float(np.diff(positions).max()))
    grid = np.arange(cols) - cols // 2
    among = held * np.sinc(held * (positions[:, None] - positions))
    towards = np.sinc(grid[:, None] - positions)
    matrix = np.linalg.solve(among + REGULARIZATION * held * np.eye(len(positions)), towards.T).T
    matrix[(grid < positions[0] - 1) | (grid > positions[-1] + 1)] = 0
    covered = np.any(matrix, axis=1)
    matrix /= np.sqrt(np.square(matrix[covered]).sum(1).mean())
    return matrix.astype(np.float32), held


@dataclass(frozen=True)
class Ghost:
    """What reversed lines have over forward ones: the phase constant + slope * x in rad, x in samples of the line's
    image from its centre; before, after: amplitude of the N/2 ghost over the signal's without and with correction."""

    constant: float
    slope: float
    before: float = 0.0
    after: float = 0.0

    def removed(self, line: torch.Tensor, *, backwards: bool) -> torch.Tensor:
        """The line (..., n_samples) without its half of the phase; backwards: it is a reversed one, turned."""
        return to_kspace(to_image(line, axes=(-1,)) * self._half(line.shape[-1], backwards), axes=(-1,))

    def _half(self, n_samples: int, backwards: bool) -> torch.Tensor:
        place = torch.arange(n_samples) - n_samples // 2
        angle = (0.5 if not backwards else -0.5) * (self.constant + self.slope * place)
        return torch.polar(torch.ones_like(angle), angle)


def ghost_of(forward: torch.Tensor, reverse: torch.Tensor) -> Ghost:
    """Of navigators (n_coils, n_samples) complex64, the reversed one turned.

    All channels together, weighted by the signal. The slope is where the lines' correlation has its peak, so that no
    phase is unwrapped; least squares on what phase is left refine it.
    """
    product = (to_image(reverse, axes=(-1,)) * to_image(forward, axes=(-1,)).conj()).sum(0).to(torch.complex128)
    n = len(product)
    place = torch.arange(n, dtype=torch.float64) - n // 2
    spectrum = torch.fft.fft(product, FINER * n).abs()  # its peak alone is of use: no centre
    peak = int(spectrum.argmax())
    slope = 2 * torch.pi * ((peak + FINER * n // 2) % (FINER * n) - FINER * n // 2) / (FINER * n)
    constant, weight = 0.0, product.abs()
    for _ in range(REFINEMENTS):
        level = product * torch.polar(torch.ones_like(place), -slope * place)
        constant = float(level.sum().angle())
        left = (level * complex(np.exp(-1j * constant))).angle()
        centre = (weight * place).sum() / weight.sum()
        lever = place - centre
        step = float((weight * lever * left).sum() / (weight * lever.square()).sum())
        slope += step
        constant += float((weight * left).sum() / weight.sum()) - step * float(centre)
    ghost = Ghost(float(np.angle(np.exp(1j * constant))), slope)
    cleaned = ghost.removed(forward, backwards=False), ghost.removed(reverse, backwards=True)
    return Ghost(ghost.constant, ghost.slope, ghost_level(forward, reverse), ghost_level(*cleaned))


def ghost_level(forward: torch.Tensor, reverse: torch.Tensor) -> float:
    """Amplitude of the N/2 ghost over the signal's that the two lines make when every other line is as one of them,
    the noise taken off."""
    difference, total = (forward - reverse).abs().square(), (forward + reverse).abs().square()
    noise = float(difference.median()) / np.log(2)  # of an exponential distribution: most samples hold noise alone
    signal = max(float(total.mean()) - noise, 1e-30)
    return float(np.sqrt(max(float(difference.mean()) - noise, 0.0) / signal))
