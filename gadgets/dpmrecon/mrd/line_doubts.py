"""What lines around the k-space centre show: a clipped receiver, a head across the edge of the field of view or in a
part of it."""

from itertools import count

import numpy as np

from .completeness import FEWEST_CALIBRATION_LINES
from .header import Limits
from .lines import AROUND, Lines, places_of

# Samples of one channel at its largest value: the receiver was overdriven
CLIPPED = 4
BESIDE = 0.1  # of it, by which the other parts of these samples differ at least
# Where the head lies by the phase from each line and sample around the centre to the next, in half fields of view. A
# head in the middle has at most .3, one that folds any at a coherence of .22 at most
ELSEWHERE, COHERENT = 0.75, 0.3
# Of a slab that begins in its middle: how alike planes at its edges are at least, and how much more than in the middle
ALIKE, LESS_ALIKE = 0.5, 0.15
# Share of the brightest column, noise taken off, that columns without a head have at most: .03 in simulated heads whose
# oversampling is there, .35 and more where it is gone
EMPTY = 0.2


def clipping(lines: Lines) -> list[str]:
    """What is said of channels whose largest real or imaginary part comes again and again, beside other parts of all
    sizes: a point's k-space, whose magnitude is the same everywhere, has one size beside it."""
    largest = {number: _parts(data).max((1, 2)) for number, data in lines.sums.items()}
    top = np.max(list(largest.values()), 0)
    counts, least, most = np.zeros(len(top), int), np.full(len(top), np.inf), np.zeros(len(top))
    for number, own in largest.items():
        if np.any(own == top):
            parts = _parts(lines.sums[number])
            at = parts == top[:, None, None]
            counts += at.sum((1, 2))
            least = np.minimum(least, np.where(at.any(2), parts.min(2), np.inf).min(1))
            most = np.maximum(most, np.where(at.any(2), parts.min(2), 0).max(1))
    clipped = np.flatnonzero((counts >= CLIPPED) & (most - least > BESIDE * top))
    if not len(clipped):
        return []
    told = ", ".join(str(lines.numbers[place]) for place in clipped)
    return [
        f"channel {told} is clipped: {counts[clipped].max()} of its samples share the largest value, so that what was "
        "louder is lost; lower the receiver's gain and acquire the scan again"
    ]


def _parts(data: np.ndarray) -> np.ndarray:
    """(n_coils, n_samples, 2): magnitudes of real and imaginary parts."""
    return np.abs(np.ascontiguousarray(data)[..., None].view(np.float32))


def in_the_middle(lines: Lines, limits: tuple[Limits, Limits], share: float) -> bool:
    """Whether the head lies in the middle `share` of the field of view along the readout, by the lines around the
    k-space centre."""
    near = [lines.sums[number][:, lines.layout.first : lines.layout.end] for number in lines.around(limits, AROUND)]
    if not near:
        return False
    # magnitudes alone: where the echo's centre lies makes no difference
    columns = np.mean([np.square(np.abs(np.fft.ifft(data))).mean(0) for data in near], 0)
    columns = np.fft.fftshift(columns - columns.min())
    beside = np.abs(np.arange(len(columns)) - len(columns) // 2) > share / 2 * len(columns)
    return bool(columns[beside].max(initial=0.0) < EMPTY * columns.max())


def halved(lines: Lines, limits: tuple[Limits, Limits], whose: str = "") -> list[str]:
    """What is said of a head that lies across the edge of the field of view: signs that alternate move it there. The
    lines of an undersampled image tell nothing along them; its calibration does."""
    near = lines.around(limits, AROUND)
    columns = slice(max(lines.layout.first, lines.layout.center - AROUND), lines.layout.center + AROUND + 1)
    found = {
        (int(partition), int(row)): lines.sums[number][:, columns]
        for (partition, row), number in zip(places_of(near), near)
    }
    told, centre = [], [own.center for own in limits]
    for axis, name in ((1, "lines"), (0, "partitions")):
        pairs = [(data, found.get((place[0] + (axis == 0), place[1] + axis))) for place, data in found.items()]
        turned = _across_the_edge([(one, other) for one, other in pairs if other is not None])
        if turned or _seamed(found, centre, axis):
            told.append(name)
    if _across_the_edge([(data[:, :-1], data[:, 1:]) for data in found.values()]):
        told.append("samples of a line")
    return [
        f"the head lies across the edge of the field of view{whose} along the {name}, as where their signs alternate: "
        "see the image, and convert the scan again with k-space as it is centred"
        for name in told
    ]


def _seamed(found: dict[tuple[int, int], np.ndarray], centre: list[int], axis: int) -> bool:
    """Whether planes beside each other in the middle of the field of view are less alike than those at its two edges,
    as far as the lines around the k-space centre tell: of a slab whose partitions begin in its middle. In sound heads
    the middle has .77 or more, the edges at least .13 less.

    found: lines (n_coils, n_samples) by (partition, row); axis: which of them counts the planes.
    """
    rows: dict[int, dict[int, np.ndarray]] = {}
    for place, data in found.items():
        rows.setdefault(place[1 - axis], {})[place[axis] - centre[axis]] = data
    reach = {
        row: min(next(n for n in count() if n not in lines), next(n for n in count() if -1 - n not in lines))
        for row, lines in rows.items()
    }
    longest = max(reach.values(), default=0)
    if 2 * longest < FEWEST_CALIBRATION_LINES:
        return False
    whole = [[lines[n] for n in range(-longest, longest)] for row, lines in rows.items() if reach[row] == longest]
    planes = np.fft.ifft(np.fft.ifftshift(np.array(whole), 1), axis=1)  # the first one is in the middle

    def likeness(one: int, other: int) -> float:
        size = float(np.linalg.norm(planes[:, one]) * np.linalg.norm(planes[:, other]))
        return abs(complex(np.vdot(planes[:, one], planes[:, other]))) / max(size, 1e-30)

    return likeness(longest - 1, longest) > max(ALIKE, likeness(-1, 0) + LESS_ALIKE)


def _across_the_edge(pairs: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether the phase from each to the next is about half a turn, and one for all."""
    if not pairs:
        return False
    product = complex(sum(np.vdot(one, other) for one, other in pairs))
    size = sum(float(np.linalg.norm(one) * np.linalg.norm(other)) for one, other in pairs)
    return bool(abs(product) > COHERENT * size and abs(np.angle(product)) > ELSEWHERE * np.pi)
