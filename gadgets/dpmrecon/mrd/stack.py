"""How the slices of a scan lie to one another, and what headers get wrong about it."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ..data import SliceKey

CLOSE, CLOSE_MM = 0.1, 0.3  # of their thickness and at most, within which two slices share a place
THICK = 1.9  # times their distance, from which on slices may bear the thickness of the stack


def close_mm(thickness_mm: float) -> float:
    """The distance within which two slices share a place; the header's thickness may be that of the stack."""
    return min(CLOSE * thickness_mm, CLOSE_MM)


def remark_on_stack(places: Mapping[SliceKey, tuple[float, ...] | None], thickness_mm: float) -> str | None:
    """What to say of parallel slices of one set of counters: that they share a place, or are far thicker than their
    distance.

    places: (position, read direction, phase direction) in LPS mm, where they are known.
    """
    gaps = _gaps(places)
    if not gaps:
        return None
    shared = [pair for gap, pair in gaps if gap <= close_mm(thickness_mm)]
    distance = float(np.median([gap for gap, _ in gaps]))
    if not shared and thickness_mm < THICK * distance:
        return None
    if not shared:
        return (
            f"the header makes slices {thickness_mm:g} mm thick and they lie {distance:.3g} mm apart: unless they "
            "overlap, that is the thickness of their stack; correct reconSpace.fieldOfView_mm.z (or --set "
            "encoding.reconSpace.fieldOfView_mm.z)"
        )
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
