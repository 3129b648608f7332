"""EPI readouts: where the samples of a trapezoid lie, their way onto the Cartesian grid, and the N/2 ghost.

A line is k-space along the readout, positions are in cycles per field of view of the images.
"""

import cmath
import math
from dataclasses import dataclass

import numpy as np
import torch

from .fourier import to_image, to_kspace

# noise over a white object's signal; below .01 the outermost columns' noise grows
REGULARIZATION = 0.02
BEYOND = 0.5  # columns that the outermost sample still tells
FINER = 16  # steps of the search for the shift between lines, a sample
REFINEMENTS = 3
AIR = 0.25  # quantile of the energies along a readout that air has
ALIKE = 5.0  # standard deviations of the correlation of noise
CERTAIN = 3.0  # standard deviations
MIRRORED = 1.25  # simulated lines fit their navigators 1.05 times as well as turned, or more: most of them 1.4
SHADOW = 3  # rows beside it, into which it rings
FEWEST_PIXELS = 20


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


def beside_flat(positions: np.ndarray) -> np.ndarray:
    """(n_samples,): how far samples lie from where they would if the gradient had the height of its top all the time,
    k = 0 staying in its place."""
    place = np.arange(len(positions))
    return positions - np.diff(positions).max() * (place - np.interp(0.0, positions, place))


def regridding(positions: tuple[np.ndarray, ...], cols: int) -> tuple[np.ndarray, float]:
    """(directions, cols, n_samples) float32, which make of a line's samples those of the Cartesian grid, and the
    readout oversampling: the field of view that the samples hold over the images'.

    The best linear estimate for an object that is white over the field of view that the samples hold, of which the
    images' part is kept: least squares, with no grid between. Columns beyond the samples of any direction are zero.
    White noise keeps its level in the mean over the others. positions: of each direction, (n_samples,), increasing.
    """
    held = max(1.0, 1 / max(float(np.diff(places).max()) for places in positions))
    grid = np.arange(cols) - cols // 2
    outside = np.zeros(cols, bool)
    matrices = []
    for places in positions:
        among = held * (np.sinc(held * (places[:, None] - places)) + REGULARIZATION * np.eye(len(places)))
        towards = np.sinc(grid[:, None] - places)
        matrices.append(np.linalg.solve(among, towards.T).T)
        outside |= (grid < places[0] - BEYOND) | (grid > places[-1] + BEYOND)
    found = np.stack(matrices)
    found[:, outside] = 0
    found /= np.sqrt(np.square(found[:, ~outside]).sum(2).mean())
    return found.astype(np.float32), held


@dataclass(frozen=True)
class Ghost:
    """What reversed lines have over forward ones: the phase constant + slope * x in rad, x in samples of the line's
    image from its centre; before: amplitude of the N/2 ghost over the signal's that it makes; after: what is left
    without it, `ghost_level`."""

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


def ghost_of(forward: torch.Tensor, reverse: torch.Tensor) -> Ghost | None:
    """Of navigators (n_coils, n_samples) complex64, the reversed one turned; None where they are noise.

    All channels together, weighted by the signal and, so that air adds no noise, by the signal's share of the energy.
    The slope is at the peak of the lines' correlation: no phase is unwrapped; Newton's steps refine it. The error is
    about what noise allows at best.
    """
    images = torch.stack([to_image(line, axes=(-1,)) for line in (forward, reverse)])
    product = (images[1] * images[0].conj()).sum(0).to(torch.complex128)
    energy = images.abs().square().sum((0, 1)).double()
    air = energy.quantile(AIR)
    certain = product * ((energy - air).clamp(min=0) / energy.clamp(min=1e-30))
    n = len(product)
    place = torch.arange(n, dtype=torch.float64) - n // 2
    spectrum = torch.fft.fft(certain, FINER * n).abs()  # its peak alone is of use: no centre
    peak = int(spectrum.argmax())
    slope = 2 * torch.pi * ((peak + FINER * n // 2) % (FINER * n) - FINER * n // 2) / (FINER * n)
    constant = 0.0
    for _ in range(REFINEMENTS):
        level = certain * torch.polar(torch.ones_like(place), -slope * place)
        constant = float(level.sum().angle())
        level = level * torch.polar(torch.ones_like(place), torch.full_like(place, -constant))
        centre = (level.real * place).sum() / level.real.sum()
        lever = place - centre
        slope += float((level.imag * lever).sum() / (level.real * lever.square()).sum().clamp(min=1e-30))
    level = product * torch.polar(torch.ones_like(place), -slope * place)
    constant = float((certain * torch.polar(torch.ones_like(place), -slope * place)).sum().angle())
    likeness = float(level.sum().abs() / (forward.norm() * reverse.norm()))
    if not likeness > ALIKE / math.sqrt(forward.numel()):
        return None
    ghost = Ghost(constant, slope)
    cleaned = ghost.removed(forward, backwards=False), ghost.removed(reverse, backwards=True)
    half = 0.5 * (ghost.constant + slope * place)
    signal = (level * cmath.exp(-1j * ghost.constant)).real
    lost, kept = float((signal * half.sin().square()).sum()), float((signal * half.cos().square()).sum())
    before = math.sqrt(max(lost, 0.0) / max(kept, 1e-30))
    return Ghost(ghost.constant, ghost.slope, before, ghost_level(*cleaned))


def is_mirrored(line: torch.Tensor, navigator: torch.Tensor) -> bool:
    """Whether a line through the centre of k-space, or beside it, fits a navigator of its direction better when it is
    turned; both (n_coils, n_samples). Channels tell left from right; one that sees both alike does not."""
    as_it_is, turned = _likeness(line, navigator), _likeness(line.flip(-1), navigator)
    return turned > max(MIRRORED * as_it_is, ALIKE / math.sqrt(line.numel()))


def _likeness(one: torch.Tensor, other: torch.Tensor) -> float:
    """Correlation of two lines, whenever their echoes come."""
    product = (to_image(one, axes=(-1,)) * to_image(other, axes=(-1,)).conj()).sum(0)
    highest = torch.fft.fft(product, FINER * len(product)).abs().max()  # its peak alone is of use: no centre
    return float(highest / (one.norm() * other.norm()).clamp(min=1e-30))


def ghost_level(forward: torch.Tensor, reverse: torch.Tensor) -> float:
    """Amplitude of the N/2 ghost over the signal's that the two lines make when every other line is as one of them:
    what is certain of it, three standard deviations of energy taken off."""
    difference, total = (forward - reverse).abs().square(), (forward + reverse).abs().square()
    noise = difference.median(-1, keepdim=True).values / math.log(2)  # exponential: most samples hold noise alone
    ghost = (difference - (1 + CERTAIN / math.sqrt(difference.shape[-1])) * noise).sum()
    return math.sqrt(max(float(ghost), 0.0) / max(float((total - noise).sum()), 1e-30))


def ghost_outside(
    kspace: torch.Tensor, mask: torch.Tensor, factor: int, head: torch.Tensor, sigma_n: float
) -> float | None:
    """Energy of the N/2 ghost over that of the signal it is of, by what of it lies where no signal does; None where
    there is no such place or the rows are not regular.

    Lines `factor` apart fold the head every rows/factor, and its ghost lies half of that beside it: columns in which
    the head is short show it. There the image is compared with the one whose every other line has the other sign, which
    is the ghost's shape. Its factor is linear along the readout; what noise adds in the mean is taken off. kspace:
    (n_coils, rows, cols); mask: (rows, cols); head: (rows, cols) bool, where signal may lie; sigma_n: standard
    deviation of the noise of a real channel.
    """
    rows, cols = mask.shape
    acquired = torch.nonzero(mask.any(1)).flatten()
    # calibration lines may lie between
    acquired = acquired[acquired % factor == torch.mode(acquired % factor).values]
    if bool((acquired.diff() != factor).any()) or rows < 4 * SHADOW * factor:
        return None
    folded = torch.stack([head.roll(round(rows * n / factor), 0) for n in range(factor)]).any(0)
    near = torch.stack([folded.roll(n, 0) for n in range(-SHADOW, SHADOW + 1)]).any(0)
    place = folded.roll(round(rows / (2 * factor)), 0) & ~near
    if place.sum() < FEWEST_PIXELS:
        return None
    lines, sign = torch.zeros_like(kspace), torch.ones(len(acquired))
    sign[1::2] = -1
    lines[:, acquired] = kspace[:, acquired]
    turned = torch.zeros_like(kspace)
    turned[:, acquired] = kspace[:, acquired] * sign[:, None]
    found, shape = to_image(lines)[:, place].flatten(), to_image(turned)[:, place]
    along = (torch.arange(cols) / cols - 0.5).expand(rows, cols)[place]
    basis = torch.stack([shape.flatten(), (shape * along).flatten()], 1)
    fit = basis @ torch.linalg.lstsq(basis, found[:, None]).solution
    noise = basis.shape[1] * 2 * sigma_n**2 * len(acquired) / rows
    return max(0.0, float((fit.abs().square().sum() - noise) / shape.abs().square().sum()))
