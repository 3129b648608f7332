"""Which lines a slice needs, and whether they came."""

from collections.abc import Iterable

import numpy as np

from .header import Limits

# Fewer adjacent lines around the centre of k-space give no coil maps
FEWEST_CALIBRATION_LINES = 8
# A regular pattern explains at least this share of the lines outside the calibration
REGULAR_SHARE = 0.7
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
    """R where lines on either side of a fully sampled centre are every R-th one; 1 for all else, so that a full scan
    that lost lines is not taken for an accelerated one."""
    block = central_block(lines.tolist(), limits.center)
    if len(block) < FEWEST_CALIBRATION_LINES:
        return 1
    first, end = _run_around(lines, limits.center)
    outside = lines[(lines < first) | (lines >= end)]
    if len(outside) < FEWEST_PATTERN_LINES or not outside[0] < limits.center < outside[-1]:
        return 1
    return int(np.gcd.reduce(np.diff(outside)))


def _run_around(lines: np.ndarray, center: int) -> tuple[int, int]:
    """First and end of the adjacent lines around `center`."""
    around = set(lines.tolist())
    first, end = center, center
    while first - 1 in around:
        first -= 1
    while end in around:
        end += 1
    return first, end


def announced_lines(lines: np.ndarray, limits: Limits, acceleration: int) -> tuple[int, int]:
    """(got, needed): of the lines that limits and acceleration announce, how many came.

    lines: different line numbers acquired, sorted. A regular pattern is every R-th line from the offset that fits best;
    where no offset explains most lines outside the calibration (random patterns), any 1/R of all lines will do.
    """
    announced = np.arange(limits.minimum, limits.maximum + 1)
    first, end = _run_around(lines, limits.center)
    outside = lines[(lines < first) | (lines >= end)]
    pattern = outside if len(outside) else lines
    hits = [np.count_nonzero((pattern - offset) % acceleration == 0) for offset in range(acceleration)]
    offset = int(np.argmax(hits))
    if len(outside) and hits[offset] < REGULAR_SHARE * len(outside):
        return len(lines), len(announced) // acceleration
    wanted = announced[(announced - offset) % acceleration == 0]
    return int(np.isin(wanted, lines).sum()), len(wanted)
