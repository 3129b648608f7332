"""Masks of every family that the one-step network is to know, drawn at random."""

import math

import numpy as np
from dpmrecon.simulation.sampling import Pattern

FAMILIES = ("regular", "random", "gaussian", "lattice", "gaussian 2D", "jittered 2D")
SHARES = (0.35, 0.1, 0.1, 0.25, 0.1, 0.1)
R = (2.0, 15.0)  # nominal, log-uniform; regular ones up to 8, as calibration lines come on top
LARGEST_REGULAR = 8
CALIBRATION = (12, 32)  # lines or a block's side, of masks that have any
WITHOUT_CALIBRATION = 0.15
WIDTHS = (0.15, 0.35)  # of Gaussian densities, over the matrix


def drawn_mask(side: int, rng: np.random.Generator) -> np.ndarray:
    """(side, side) bool, the centre at index side//2. 1D masks leave out rows; of 2D ones both axes are phase-encoding
    directions, as in a plane of a volume across its readout."""
    family = FAMILIES[rng.choice(len(FAMILIES), p=SHARES)]
    acceleration = math.exp(rng.uniform(math.log(R[0]), math.log(R[1])))
    calibration = 0 if rng.random() < WITHOUT_CALIBRATION else int(rng.integers(*CALIBRATION))
    around = np.abs(np.arange(side) - side // 2)
    centre = around <= calibration // 2 if calibration else around < 2
    if family in ("regular", "random", "gaussian"):
        rows = _rows(family, side, acceleration, rng)
        return np.repeat((rows | centre)[:, None], side, 1)
    return _plane(family, side, acceleration, rng) | (centre[:, None] & centre)


def _rows(family: str, side: int, acceleration: float, rng: np.random.Generator) -> np.ndarray:
    place = np.arange(side) - side // 2
    if family == "regular":
        step = min(round(acceleration), LARGEST_REGULAR)
        return (place - rng.integers(step)) % step == 0
    # density that falls from the centre: by a power, or as a Gaussian
    width = rng.uniform(*WIDTHS)
    density = gaussian((side,), width) if family == "gaussian" else (1.02 - np.abs(place) / (side / 2)) ** 3
    drawn = rng.choice(side, max(4, round(side / acceleration)), replace=False, p=density / density.sum())
    return np.isin(np.arange(side), drawn)


def _plane(family: str, side: int, acceleration: float, rng: np.random.Generator) -> np.ndarray:
    if family == "lattice":
        pairs = [(a, b) for a in range(1, 5) for b in range(1, 5) if 2 <= a * b <= 12]
        nearest = min(abs(math.log(a * b / acceleration)) for a, b in pairs)
        pairs = [(a, b) for a, b in pairs if abs(math.log(a * b / acceleration)) < nearest + 0.01]
        factors = pairs[rng.integers(len(pairs))]
        return Pattern((side, side), factors, (0, 0), bool(rng.integers(2))).regular(int(rng.integers(factors[0])))
    if family == "jittered 2D":  # one in each cell: near to a Poisson disc, in no time
        height = max(1, round(math.sqrt(acceleration) * rng.uniform(0.7, 1.4)))
        width = max(2 if height == 1 else 1, round(acceleration / height))
        tops, lefts = np.meshgrid(np.arange(0, side, height), np.arange(0, side, width), indexing="ij")
        rows, cols = tops + rng.integers(height, size=tops.shape), lefts + rng.integers(width, size=tops.shape)
        chosen = np.zeros((side, side), bool)
        chosen[rows.clip(max=side - 1), cols.clip(max=side - 1)] = True
        return chosen
    return drawn_by_density(gaussian((side, side), rng.uniform(*WIDTHS)), acceleration, rng)


def gaussian(shape: tuple[int, ...], width: float) -> np.ndarray:
    """A density that falls from the centre of k-space, 1 there; width: its standard deviation over the matrix."""
    axes = np.ogrid[tuple(slice(-(size // 2), size - size // 2) for size in shape)]
    squares = [(axis / (width * size)) ** 2 for axis, size in zip(axes, shape)]
    return np.exp(-0.5 * sum(squares, np.zeros(())))


def drawn_by_density(density: np.ndarray, acceleration: float, rng: np.random.Generator) -> np.ndarray:
    """Bool, like `density`: places drawn with probabilities in proportion to it, 1 at most, so that R is net."""
    low, high = 0.0, 1e4  # the factor of the density that leaves as many as the acceleration says
    for _ in range(20):
        factor = (low + high) / 2
        low, high = (low, factor) if np.minimum(1, factor * density).mean() > 1 / acceleration else (factor, high)
    return rng.random(density.shape) < np.minimum(1, factor * density)
