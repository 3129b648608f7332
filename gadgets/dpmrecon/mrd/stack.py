"""How the slices of a scan lie to one another, and what headers get wrong about it."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ..data import SliceKey

CLOSE = 0.1  # of their thickness, within which two slices share a place


def remark_on_places(places: Mapping[SliceKey, tuple[float, ...] | None], thickness_mm: float) -> str | None:
    """What to say of parallel slices, of one set of counters, that share a place; None where there are none.

    places: (position, read direction, phase direction) in LPS mm, where they are known.
    """
    gaps = _gaps(places)
    shared = [pair for gap, pair in gaps if gap <= CLOSE * thickness_mm]
    if not shared:
        return None
    gap, (one, other) = min(gaps)
    several = len({number for pair in shared for number in pair})
    return (
        f"slices {one} and {other} lie {gap:.2g} mm apart and are {thickness_mm:g} mm thick, {several} slices share a "
        "place so: their positions are missing, repeated or not in mm, and viewers cannot put them in order; convert "
        "the scan again with the position of each"
    )


def _gaps(places: Mapping[SliceKey, tuple[float, ...] | None]) -> list[tuple[float, tuple[int, int]]]:
    """Distances in mm along their normal, with the numbers of the two, of parallel slices that are neighbours."""
    stacks: dict[tuple, list[tuple[float, int]]] = {}
    for key, place in places.items():
        normal = np.zeros(3) if place is None else np.cross(place[3:6], place[6:9])
        if place is not None and abs(np.linalg.norm(normal) - 1) < 0.01:
            stack = (replace(key, slice=0), *(np.round(normal, 2) + 0.0).tolist())
            stacks.setdefault(stack, []).append((float(normal @ place[:3]), key.slice))
    return [
        (high - low, (min(one, other), max(one, other)))
        for found in stacks.values()
        for (low, one), (high, other) in pairwise(sorted(found))
    ]
