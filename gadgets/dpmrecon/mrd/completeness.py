"""Which lines a slice needs, and whether they came."""

import itertools
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

import numpy as np

from ..data import LostSlice, SliceKey
from ..errors import BadInputError
from .averages import have_phases
from .diffusion import images_counter, lines_counter, weightings_of
from .header import Header, Limits

# Fewer adjacent lines around the centre of k-space give no coil maps
FEWEST_CALIBRATION_LINES = 8
# A regular pattern explains at least this share of the lines outside the calibration
REGULAR_SHARE = 0.7
# Lines from the announced centre to the peak, and share of all lines, at most; how much larger another peak is
NEAR, NEAR_SHARE, STEEP = 6, 1 / 8, 4.0
# Lines from the announced centre to the peak from which on the peak of a steep rise tells more: heads' phases move it
# by one; lines from the peak within which another account of the centre agrees with it
FINER, AGREES = 4, 2
# A neighbour of the k-space centre has at least this share of its energy
ALONE = 0.05
# Limits that announce more images than this are no limits
MOST_SLICES = 100_000
# Of a slice that the limits announce
MISSING = "it is announced and none of its lines came"
# Fewer lines outside the centre show no regular pattern
FEWEST_PATTERN_LINES = 4


def central_block(rows: Iterable[int], center: int) -> range:
    """The adjacent rows around `center` whose own centre, index n//2, it is; empty when that row is missing."""
    present = set(rows)
    first, end = center, center
    while end in present:
        end += 1
    while first - 1 in present and end > center:
        first -= 1
    before, after = center - first, end - center  # the centre row belongs to `after`
    half = min(before, after)
    return range(center - half, center + min(after, half + 1))


def within(limits: Limits, rows: int) -> Limits:
    """The limits as far as they lie in a matrix of `rows` lines with the k-space centre at rows//2."""
    first = limits.center - rows // 2
    return Limits(max(limits.minimum, first), min(limits.maximum, first + rows - 1), limits.center)


def energy_peak(energies: dict[int, float], limits: Limits) -> int | None:
    """The line that holds the k-space centre, where the lines' energies contradict `limits.center`; else None.

    A phase that varies over the object moves the peak by a few lines, and noise has no peak: NEAR lines around the
    announced centre are its own, of a small matrix fewer, and a peak elsewhere must be STEEP times as high as they
    are. So must twice a neighbour be: a single line may be a spike.
    """
    reach = max(1, min(NEAR, round(NEAR_SHARE * (max(energies) - min(energies) + 1))))
    peak = max(energies, key=lambda number: energies[number])
    near = [energy for number, energy in energies.items() if abs(number - limits.center) <= reach]
    if abs(peak - limits.center) <= reach or (near and energies[peak] < STEEP * max(near)):
        return None
    beside = [energy for number, energy in energies.items() if 0 < abs(number - peak) <= reach]
    if not beside or 2 * max(beside) < STEEP * max(near, default=0.0) or max(beside) < ALONE * energies[peak]:
        return None
    return peak


def nearby_centre(
    energies: dict[int, float], limits: Limits, told: int | None, size: int, whole: int = 0
) -> int | None:
    """The k-space centre a few lines from `limits.center`, or None where the announced one stays.

    The energy's peak alone is too vague there, as for `energy_peak`: the lines' own account of the centre must agree
    with it, or the matrix of `size` lines, which holds all that came with one of the two alone, or it must rise
    steeply far enough away. told: centre as the lines say; whole: lines of the images' matrix, which may hold those
    that one of `size` lines does not.
    """
    peak, first, last = max(energies, key=lambda number: energies[number]), min(energies), max(energies)
    # the centres whose matrix holds all lines
    held, held_by_whole = (range(last - (n - n // 2) + 1, first + n // 2 + 1) for n in (size, max(size, whole)))
    away = abs(limits.center - peak)
    if told is not None and abs(told - peak) <= AGREES < away and (told in held or limits.center not in held):
        return told
    if held and limits.center not in held:
        nearest = min(max(peak, held[0]), held[-1])
        return nearest if abs(nearest - peak) <= away else None
    near, beside = (
        [energy for number, energy in energies.items() if 0 <= abs(number - place) - start <= 1]
        for place, start in ((limits.center, 0), (peak, 1))
    )
    steep = near and energies[peak] >= STEEP * max(near) and beside and max(beside) >= ALONE * energies[peak]
    return peak if away >= FINER and peak in held_by_whole and steep else None


def completeness(lines: np.ndarray, limits: Limits, announced: int | None) -> tuple[int, int, str | None]:
    """(R, lines needed, why the slice is incomplete or None).

    lines: different line numbers acquired, sorted; announced: the header's R, None where it names none.
    """
    acceleration = announced or regular_acceleration(lines, limits)
    got, needed = announced_lines(lines, limits, acceleration)
    if got >= needed:
        return acceleration, needed, None
    says = f"incomplete: {got} of the {needed} lines came that the limits ({limits.minimum} to {limits.maximum})"
    if announced is None:
        return acceleration, needed, f"{says} give at R = {acceleration}, and the header announces no R"
    return acceleration, needed, f"{says} and R = {acceleration} announce"


def regular_acceleration(lines: np.ndarray, limits: Limits) -> int:
    """R where every R-th line came on either side of the centre; 1 for all else, so that a full scan that lost lines is
    not taken for an accelerated one."""
    block = central_block(lines.tolist(), limits.center)
    if len(block) < FEWEST_CALIBRATION_LINES:
        return 1
    outside = _outside(lines, limits.center)
    if len(outside) < FEWEST_PATTERN_LINES or not outside[0] < limits.center < outside[-1]:
        return 1
    return int(np.gcd.reduce(np.diff(outside)))


def _outside(lines: np.ndarray, center: int) -> np.ndarray:
    """The lines that are not among the adjacent ones around `center`."""
    around = set(lines.tolist())
    first, end = center, center
    while first - 1 in around:
        first -= 1
    while end in around:
        end += 1
    return lines[(lines < first) | (lines >= end)]


def is_regular(lines: np.ndarray, center: int, acceleration: int) -> bool:
    """Whether every R-th line explains those outside the calibration: not of a full scan, nor of lines by chance."""
    outside = _outside(lines, center)
    if len(outside) < FEWEST_PATTERN_LINES:
        return False
    return bool(np.bincount(outside % acceleration).max() >= REGULAR_SHARE * len(outside))


def announced_lines(lines: np.ndarray, limits: Limits, acceleration: int) -> tuple[int, int]:
    """(got, needed): of the lines that limits and acceleration announce, how many came.

    lines: different line numbers acquired, sorted. A regular pattern is every R-th line from the offset that fits best;
    where no offset explains most lines outside the calibration (random patterns), any 1/R of all lines will do.
    """
    announced = np.arange(limits.minimum, limits.maximum + 1)
    outside = _outside(lines, limits.center)
    pattern = outside if len(outside) else lines
    hits = [np.count_nonzero((pattern - offset) % acceleration == 0) for offset in range(acceleration)]
    offset = int(np.argmax(hits))
    if len(outside) and hits[offset] < REGULAR_SHARE * len(outside):
        return len(lines), len(announced) // acceleration
    wanted = announced[(announced - offset) % acceleration == 0]
    return int(np.isin(wanted, lines).sum()), len(wanted)


def announced_slices(header: Header, *, combine_averages: bool) -> int:
    """Slices that the limits announce, each contrast, phase, set, repetition and average counted."""
    return math.prod(len(numbers) for numbers in _announced(header, combine_averages).values())


def announced_ends(header: Header, *, combine_averages: bool) -> tuple[SliceKey, SliceKey]:
    """The first and the last of them: they differ in the counters in which a scan's images do."""
    limits = _announced(header, combine_averages)
    first, last = ({name: numbers[place] for name, numbers in limits.items()} for place in (0, -1))
    return SliceKey(**first), SliceKey(**last)


def check_announced(header: Header, *, combine_averages: bool) -> None:
    """Raises BadInputError for limits that announce more than any scan has, as those of 65535 that mean nothing."""
    count = announced_slices(header, combine_averages=combine_averages)
    if count > MOST_SLICES:
        raise BadInputError(
            f"the header's limits announce {count} slices, with contrasts, phases, sets, repetitions and averages: "
            "correct encodingLimits (or --set its values)"
        )


def first_slice(header: Header, came: Collection[int]) -> int:
    """The number of a scan's first slice: the announced minimum, the next where as many as announced came from there
    on, and the least of those that `came` where nothing is announced."""
    if getattr(header.encoding[0].encodingLimits, "slice", None) is None:
        return min(came, default=0)
    return _counted(_announced(header, combine_averages=True)["slice"], set(came)).start


def _counted(announced: range, came: set[int]) -> range:
    """The numbers that are announced, or those from the next one on where as many of these came."""
    from_1 = range(announced.start + 1, announced.stop + 1)
    return from_1 if came == set(from_1) else announced


def _missing_keys(header: Header, came: Iterable[SliceKey], *, combine_averages: bool) -> list[SliceKey]:
    """The slices that the limits announce and that are not among `came`, in order.

    Some weightings of diffusion have fewer averages, which limits do not tell: those that no slice has are not
    announced.
    """
    announced, found = _announced(header, combine_averages), set(came)
    for name, numbers in announced.items():
        if name != "contrast":  # the header lists what each contrast is
            announced[name] = _counted(numbers, {getattr(key, name) for key in found})
    first = first_slice(header, {key.slice for key in found})
    announced["slice"] = range(first, first + len(announced["slice"]))
    every = {SliceKey(**dict(zip(announced, numbers))) for numbers in itertools.product(*announced.values())}
    if have_phases(header):
        planned = {replace(key, slice=0) for key in found}
        every = {key for key in every if key.average == 0 or replace(key, slice=0) in planned}
    return sorted(every - found)


def missing_slices(
    header: Header, came: Iterable[SliceKey], *, combine_averages: bool, can_be_set: bool = True
) -> Iterator[LostSlice]:
    """`_missing_keys`, each with its reason. can_be_set: the header's values, by `--set`, so that the reason may name
    it."""
    came = set(came)
    for key in _missing_keys(header, came, combine_averages=combine_averages):
        yield LostSlice(key, _why_missing(header, key, came) if can_be_set else MISSING)


def _why_missing(header: Header, key: SliceKey, came: Collection[SliceKey]) -> str:
    """The reason of one of `_missing_keys`. That limits announce one slice too many, or a second contrast or repetition
    that was not acquired, the lines alone do not tell."""
    reason, numbers = MISSING, {other.slice for other in came}
    limits = header.encoding[0].encodingLimits
    for name in ("contrast", "repetition"):
        limit, there = getattr(limits, name, None), {getattr(other, name) for other in came}
        if limit is not None and limit.maximum - limit.minimum == 1 and len(there) == 1:
            path = f"encoding.encodingLimits.{name}"
            reason += f"; if the scan has one {name}, none is missing (--set {path}.maximum={limit.minimum})"
    limit = getattr(limits, "slice", None)
    if limit is None or len(numbers) != limit.maximum - limit.minimum:
        return reason
    path = "encoding.encodingLimits.slice"
    for number, name, value, what in (
        (limit.minimum, "minimum", limit.minimum + 1, "slices are counted from 1"),
        (limit.maximum, "maximum", limit.maximum - 1, "the limits' maximum is the number of slices"),
    ):
        if key.slice == number and number not in numbers:
            reason += f"; if {what}, it never was (--set {path}.{name}={value})"
    return reason


def _announced(header: Header, combine_averages: bool) -> dict[str, range]:
    """The values of each counter; 0 alone where the header says nothing of it."""
    names = ["slice", "contrast", "phase", "set", "repetition", *([] if combine_averages else ["average"])]
    limits = {name: getattr(header.encoding[0].encodingLimits, name, None) for name in names}
    announced = {
        name: range(1) if limit is None else range(limit.minimum, max(limit.minimum, limit.maximum) + 1)
        for name, limit in limits.items()
    }
    counter = images_counter(header)
    if counter != lines_counter(header) and counter is not None and weightings_of(header):
        announced[counter] = range(len(weightings_of(header)))
    return announced
