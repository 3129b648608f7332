"""Which lines of a volume came and which it needs, in the plane of its two phase encodings.

Arrays are (partitions, rows) bool on the encoded matrix, the k-space centre at n//2; lattices are of its points.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .completeness import FEWEST_CALIBRATION_LINES, FEWEST_PATTERN_LINES, REGULAR_SHARE, central_block
from .header import Limits

# Lines by which a scanner's ellipse may differ from that of the limits
ELLIPSE_MARGIN = 1.5
# Of a pattern by chance, as BART's Poisson discs: the share of the announced lines that come, the share in one half of
# k-space of those in the other, and by how much more it stops short of the limits at one end, times the root of R
CHANCE_SHARE, EVEN_SHARE, END_GAP = 0.95, 0.85, 2.0
# Share of all lines that a pattern by chance has at most
MOST_BY_CHANCE = 2 / 3
# What chance may do: halves differ by as many roots of their lines, and an end lacks as many lines as its opposite has
BY_CHANCE, FEW_AT_END = 3.0, 10


@dataclass(frozen=True)
class Lattice:
    """Every b-th partition has every a-th line, moved by `shift` lines from one of them to the next; R = a b.

    Regular R1 x R2 has (R1, R2, 0); CAIPIRINHA of 2 x 2 may be (2, 2, 1) or (4, 1, 2).
    """

    a: int
    b: int
    shift: int

    def cosets(self, points: np.ndarray) -> np.ndarray:
        """(n,) number, from 0 to R - 1, of the shifted copy of the lattice that holds each point (n, 2)."""
        step, partition = np.divmod(points[:, 0], self.b)
        return partition * self.a + (points[:, 1] - self.shift * step) % self.a


def lattices(acceleration: int) -> Iterator[Lattice]:
    """All lattices of R = `acceleration`."""
    for a in range(1, acceleration + 1):
        if acceleration % a == 0:
            yield from (Lattice(a, acceleration // a, shift) for shift in range(a))


def on_matrix(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`shape` bool: true at the places (n, 2) that lie in it."""
    acquired = np.zeros(shape, bool)
    acquired[tuple(places[((places >= 0) & (places < shape)).all(1)].T)] = True
    return acquired


def central_box(acquired: np.ndarray) -> tuple[slice, slice] | None:
    """The largest fully sampled block of partitions and rows whose own centre, index n//2 on each axis, is the k-space
    centre; None where none has FEWEST_CALIBRATION_LINES on both."""
    partitions, rows = acquired.shape
    best: tuple[int, slice, slice] | None = None
    for size in range(1, partitions + 1):
        first = partitions // 2 - size // 2
        common = np.logical_and.reduce(acquired[first : first + size])
        if first < 0 or first + size > partitions or not common[rows // 2]:
            break
        block = central_block(np.flatnonzero(common).tolist(), rows // 2)
        large_enough = min(size, len(block)) >= FEWEST_CALIBRATION_LINES
        if large_enough and (best is None or size * len(block) > best[0]):
            best = size * len(block), slice(first, first + size), slice(block.start, block.stop)
    return None if best is None else best[1:]


def volume_completeness(
    acquired: np.ndarray, limits: tuple[Limits, Limits], announced: int | None
) -> tuple[int, int, str | None]:
    """(R, lines needed, why the volume is incomplete or None).

    acquired: (partitions, rows); limits: of partitions and lines, within the matrix; announced: the header's R of both
    directions together, None where it names none.

    A regular pattern, CAIPIRINHA among them, is the lattice of R with the copy of it that holds most lines outside the
    calibration; every point of it within the limits is needed. The corners beyond the ellipse that the limits' box
    holds are not needed where no line of them came: an elliptical scan. That is all that tells it from a full one that
    was acquired from the centre outwards and ended before its corners: both have the ellipse's resolution, and count as
    complete, and lines at the ellipse's rim, within ELLIPSE_MARGIN, may be missing. Where no lattice explains the lines
    (random and Poisson patterns), 1/R of the box, or of the ellipse, will do. Each half has about as many, as near to
    each end: a few lost lines of such a pattern are not noticed.
    """
    box, distances = _box(acquired.shape, limits)
    factor = announced or _regular_acceleration(acquired, box)
    corners = box & (distances(ELLIPSE_MARGIN) > 1)
    if corners.any() and not (acquired & corners).any():
        box = box & (distances(-ELLIPSE_MARGIN) <= 1)
    sparse, wanted, regular = _pattern(acquired, box, factor)
    ended_early = False
    if sparse.any() and not regular:
        got, needed = int((acquired & box).sum()), int(CHANCE_SHARE * box.sum() / factor)
        ended_early = _ended_early(acquired, sparse, box, factor)
    else:
        got, needed = int(acquired[tuple(wanted.T)].sum()), len(wanted)
    if got >= needed and not ended_early:
        return factor, needed, None
    (first, last), (low, high) = ((limit.minimum, limit.maximum) for limit in limits)
    ranges = f"(partitions {first} to {last}, lines {low} to {high})"
    if got >= needed:
        return factor, needed, f"incomplete: {got} lines came, and at one end of the limits {ranges} they are missing"
    says = f"incomplete: {got} of the {needed} lines came that the limits {ranges}"
    if announced is None:
        return factor, needed, f"{says} give at R = {factor}, and the header announces no R"
    return factor, needed, f"{says} and R = {announced} announce"


def fills_its_lattice(acquired: np.ndarray, limits: tuple[Limits, Limits], announced: int | None) -> bool:
    """Whether every line is there that limits and R can announce, corners included: nothing can follow. An elliptical
    scan and a pattern by chance never say so. Arguments as of `volume_completeness`."""
    box, _ = _box(acquired.shape, limits)
    factor = announced or _regular_acceleration(acquired, box)
    _, wanted, regular = _pattern(acquired, box, factor)
    return regular and bool(acquired[tuple(wanted.T)].all())


def acceleration_by_chance(acquired: np.ndarray, limits: tuple[Limits, Limits]) -> int:
    """The least R at which a pattern by chance has as many lines as it needs; 1 for a full scan that lost some.
    Arguments as of `volume_completeness`."""
    _, all_of_them, _ = volume_completeness(acquired, limits, 1)
    share = acquired.sum() / all_of_them
    return 1 if share > MOST_BY_CHANCE else math.ceil(CHANCE_SHARE / max(share, 1e-9))


def is_lattice(acquired: np.ndarray, acceleration: int) -> bool:
    """Whether a lattice of R explains the lines outside fully sampled regions: not of a full scan, nor of a pattern by
    chance."""
    sparse, _, regular = _pattern(acquired, np.ones_like(acquired), acceleration)
    return regular and int(sparse.sum()) >= FEWEST_PATTERN_LINES


def _pattern(acquired: np.ndarray, box: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """The lines outside fully sampled regions, (partitions, rows) bool; the points (n, 2) of the box that are of the
    lattice of R which explains most of them; whether it explains enough."""
    sparse = acquired & ~_dense(acquired, box) & box
    points, every = np.argwhere(sparse if sparse.any() else acquired & box), np.argwhere(box)
    lattice, coset, hits = _best_lattice(points, factor)
    return sparse, every[lattice.cosets(every) == coset], hits >= REGULAR_SHARE * len(points)


def _box(shape: tuple[int, ...], limits: tuple[Limits, Limits]) -> tuple[np.ndarray, Callable[[float], np.ndarray]]:
    """The points within the limits, and (margin) -> (partitions, rows) squared distances from the k-space centre in
    units of the ellipse that the limits hold, its half axes longer by `margin`."""
    inside, numbers, halves = [], [], []
    for size, limit in zip(shape, limits):
        number = np.arange(size) - size // 2
        inside.append((number >= limit.minimum - limit.center) & (number <= limit.maximum - limit.center))
        numbers.append(number)
        halves.append(max(limit.center - limit.minimum, limit.maximum - limit.center))

    def distances(margin: float) -> np.ndarray:
        down, along = (np.square(n / max(half + margin, 0.5)) for n, half in zip(numbers, halves))
        return down[:, None] + along

    return np.outer(*inside), distances


def _dense(acquired: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Points in fully sampled regions, as a calibration: those whose neighbours came too, and what is around them."""
    inner = acquired & ~_grown(~acquired & box, 1)
    return _grown(inner, 2)  # two, for the rim of a round one


def _grown(points: np.ndarray, width: int) -> np.ndarray:
    """The points and all within `width` of them, along both axes."""
    for axis in (0, 1):
        padded = np.pad(points, [(width, width) if axis == own else (0, 0) for own in (0, 1)])
        points = np.lib.stride_tricks.sliding_window_view(padded, 2 * width + 1, axis).max(-1)
    return points


def _best_lattice(points: np.ndarray, acceleration: int) -> tuple[Lattice, int, int]:
    """The lattice of this R, and the number of its shifted copy, that hold most of the points; and how many."""
    found = []
    for lattice in lattices(acceleration):
        counts = np.bincount(lattice.cosets(points), minlength=acceleration)
        found.append((int(counts.max()), lattice, int(counts.argmax())))
    hits, lattice, coset = max(found, key=lambda entry: entry[0])
    return lattice, coset, hits


def _regular_acceleration(acquired: np.ndarray, box: np.ndarray) -> int:
    """R of the lattice that all lines around a fully sampled centre lie on; 1 for all else, so that a full scan that
    lost lines is not taken for an accelerated one."""
    points = np.argwhere(acquired & ~_dense(acquired, box) & box)
    centre = np.array(acquired.shape) // 2
    around = [bool((sign * (points - centre)[:, axis] > 0).any()) for axis in (0, 1) for sign in (-1, 1)]
    if central_box(acquired) is None or len(points) < FEWEST_PATTERN_LINES or not all(around):
        return 1
    # the lattice of the differences, by Euclid: (0, a) and (b, shift) span it
    a, b, shift = 0, 0, 0
    for partition, line in (points - points[0]).tolist():
        while partition:
            quotient = b // partition
            b, shift, partition, line = partition, line, b - quotient * partition, shift - quotient * line
        a = math.gcd(a, line)
    return max(1, a * abs(b))


def _ended_early(acquired: np.ndarray, sparse: np.ndarray, box: np.ndarray, acceleration: int) -> bool:
    """Whether lines of a pattern by chance are missing at one end: one half of k-space has far fewer of them than the
    other, where both are within the limits; or they end farther from the limits than at the other end. What chance
    alone may do is no end: patterns of variable density have few lines there."""
    for axis, size in enumerate(box.shape):
        mirrored = np.take(box, (2 * (size // 2) - np.arange(size)) % size, axis)  # the first of an even size is alone
        halves, every = (
            (int(both[: size // 2].sum()), int(both[size // 2 + 1 :].sum()))
            for both in (np.moveaxis(lines & mirrored, axis, 0) for lines in (sparse, acquired & box))
        )
        uneven = abs(every[0] - every[1]) > BY_CHANCE * math.sqrt(sum(every))
        if uneven and min(halves) < EVEN_SHARE * max(halves):
            return True
        counts = (acquired & box).sum(1 - axis)
        within, came = np.flatnonzero(box.any(1 - axis)), np.flatnonzero(counts)
        gaps = came[0] - within[0], within[-1] - came[-1]
        if abs(gaps[0] - gaps[1]) <= END_GAP * math.sqrt(acceleration):
            continue
        end = range(within[0], came[0]) if gaps[0] > gaps[1] else range(came[-1] + 1, within[-1] + 1)
        opposite = 2 * (size // 2) - np.array(end)
        opposite = opposite[opposite < size]
        # partial Fourier has no opposite to tell by
        if not np.isin(opposite, within).all() or counts[opposite].sum() > FEW_AT_END:
            return True
    return False
