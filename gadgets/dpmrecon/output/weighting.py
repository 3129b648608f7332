"""The diffusion weighting of each image: which counter tells it, its b-value in s/mm^2 and its direction."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..data import SliceKey
from ..errors import BadInputError, UnsupportedScanError
from ..mrd.diffusion import (
    COUNTERS,
    LOW,
    STAND_INS,
    counted_elsewhere,
    first_value,
    images_counter,
    lines_counter,
    weightings_of,
)
from ..mrd.header import Header
from ..options import printable

# keys of an image's meta: MRD names what DICOM has too as DICOM does
B_VALUE = ("DiffusionBValue", "dpmrecon_b_value")
DIRECTIONALITY, DIRECTION = "DiffusionDirectionality", "DiffusionGradientOrientation"
META = (*B_VALUE, DIRECTIONALITY, DIRECTION)
FORM = "COUNTER:B0,B1,... in s/mm^2, one for each value of the counter, with a direction as B@X/Y/Z where it is known"

SAME = 0.03  # of b: between directions, effective b-values of one nominal one differ by less
HIGH = 100  # s/mm^2: b up to LOW is b = 0 where all others are so high or more

Direction = tuple[float, float, float]
NONE: Direction = (0.0, 0.0, 0.0)


def nominal_b_values(b_values: Sequence[float]) -> tuple[float, ...]:
    """What each of a scan's b-values, s/mm^2, counts as in maps: scanners may list effective ones.

    Neighbours within SAME are one weighting, whose b is their mean to four digits; a chain of them that is wider than
    twice that is left as it is. Those up to LOW are 0 where all others are HIGH or more.
    """
    numbers = np.array(b_values, float)
    found, values = numbers.copy(), np.unique(numbers)
    for group in np.split(values, np.flatnonzero(np.diff(values) > SAME * values[1:]) + 1):
        if 0 < group[-1] - group[0] <= 2 * SAME * group[-1]:
            inside = np.isin(numbers, group)
            found[inside] = float(f"{numbers[inside].mean():.4g}")
    if min((b for b in b_values if b > LOW), default=0) >= HIGH:
        found[numbers <= LOW] = 0
    return tuple(found.tolist())


@dataclass(frozen=True)
class Weighted:
    """One weighting: b in s/mm^2; direction: a unit vector in the patient's LPS, NONE with b > 0 is trace-weighted, and
    None is not known."""

    b: float
    direction: Direction | None = None

    @property
    def directionality(self) -> str | None:
        """In DICOM's words; None where it is not known."""
        if self.b == 0:
            return "NONE"
        return None if self.direction is None else "ISOTROPIC" if self.direction == NONE else "DIRECTIONAL"

    @property
    def meta(self) -> dict[str, Any]:
        found: dict[str, Any] = dict.fromkeys(B_VALUE, f"{self.b:g}")
        if self.directionality is not None:
            found[DIRECTIONALITY] = self.directionality
        if self.directionality == "DIRECTIONAL" and self.direction is not None:
            found[DIRECTION] = [f"{part:.6g}" for part in self.direction]
        return found


@dataclass(frozen=True)
class Weighting:
    """Which counter tells the diffusion weighting, that of each of its values from `first` on, and where that is
    from."""

    counter: str
    weighted: tuple[Weighted, ...]
    source: str
    first: int = 0

    def number(self, counters: Any) -> int:
        """The place in `weighted` of an MRD image's header or a slice's key; others lie outside."""
        return int(getattr(counters, self.counter)) - self.first

    def lists(self, number: int) -> bool:
        """Whether there is such a place."""
        return 0 <= number < len(self.weighted)

    @property
    def values(self) -> str:
        """Of the counter, in words."""
        return f"{self.first} to {self.first + len(self.weighted) - 1}"

    @property
    def b_values(self) -> tuple[float, ...]:
        return tuple(one.b for one in self.weighted)

    @cached_property
    def nominal(self) -> tuple[float, ...]:
        """The b-value that each counts as in maps, see `nominal_b_values`."""
        return nominal_b_values(self.b_values)

    @property
    def has_several(self) -> bool:
        """Nominal b-values, so that there is an ADC."""
        return len(set(self.nominal)) > 1

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table, as JSON values: a row for each value of the counter."""
        return [
            {"counter": self.counter, "value": value, **asdict(one), "kind": one.directionality, "source": self.source}
            for value, one in enumerate(self.weighted, self.first)
        ]

    @property
    def text(self) -> str:
        """The table in a line."""
        told = []
        for value, one in enumerate(self.weighted, self.first):
            kind = {"ISOTROPIC": ", trace-weighted", None: ", direction not known"}.get(one.directionality, "")
            along = f" along {', '.join(one.meta[DIRECTION])}" if DIRECTION in one.meta else kind
            told.append(f"{value}: b = {one.b:g}{along}")
        return f"diffusion weighting in s/mm^2 by {self.counter}, from {self.source}: {'; '.join(told)}"

    @property
    def remarks(self) -> list[str]:
        """What to know of it, in words."""
        found, pairs = [], list(zip(self.weighted, self.nominal))
        for nominal in sorted(set(self.nominal)):
            values = sorted({one.b for one, of in pairs if of == nominal})
            if values != [nominal]:
                span = f"{values[0]:g} to {values[-1]:g}" if len(values) > 1 else f"{values[0]:g}"
                found.append(f"b = {span} s/mm^2 counts as b = {nominal:g} in trace and ADC, whose fit takes the mean")
        isotropic = sorted({one.b for one, nominal in pairs if nominal > 0 and one.directionality == "ISOTROPIC"})
        if isotropic:
            told = ", ".join(f"{b:g}" for b in isotropic)
            found.append(f"b = {told} s/mm^2 has the direction (0, 0, 0) by {self.source}: it counts as trace-weighted")
        return found

    def directions_of(self, b: float) -> list[Direction | None]:
        """Of all weightings of a nominal b-value."""
        return [one.direction for one, nominal in zip(self.weighted, self.nominal) if nominal == b]

    def of(self, counters: Any) -> Weighted:
        """That of an MRD image's header or a slice's key. Raises BadInputError where the counter runs past the
        list."""
        number = self.number(counters)
        if not self.lists(number):
            raise BadInputError(
                f"an image has {self.counter} {number + self.first} and b-values are known for {self.values}: give one "
                f"for each, --b-values {self.counter}:B0,B1,..."
            )
        return self.weighted[number]

    def meta_of(self, key: SliceKey) -> dict[str, Any]:
        """b-value and direction in an image's meta, in DICOM's names; empty where they are not known."""
        number = self.number(key)
        return self.weighted[number].meta if self.lists(number) else {}


def weighting_comment(meta: Mapping[str, Any]) -> str:
    """What an image's comment says of the weighting in its meta: a Gadgetron's DICOM has no other place for it."""
    if B_VALUE[0] not in meta:
        return ""
    direction = f" along {', '.join(meta[DIRECTION])}" if DIRECTION in meta else ""
    return f"; b = {meta[B_VALUE[0]]} s/mm2{direction}"


def without_weighting(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The meta of an image of several weightings, from that of one."""
    found = {name: value for name, value in meta.items() if name not in META}
    for name in ("ImageComments", "GADGETRON_ImageComment"):
        if name in found:
            found[name] = str(found[name]).replace(weighting_comment(meta), "")
    return found


def weighting_from_text(text: str) -> Weighting:
    """`contrast:0,500,1000`, or `contrast:0,1000@1/0/0,1000@0/1/0` with directions (LPS), as on the command line.
    Raises BadInputError."""
    counter, _, entries = text.partition(":")
    try:
        weighted = tuple(_stated(entry) for entry in entries.split(","))
    except ValueError:
        weighted = ()
    if counter not in COUNTERS or not weighted or not all(0 <= one.b < np.inf for one in weighted):
        raise BadInputError(
            f"b-values '{printable(text)}' are not usable: give {FORM}; the counter is one of {', '.join(COUNTERS)}"
        )
    return Weighting(counter, weighted, "the user")


def _stated(entry: str) -> Weighted:
    """Raises ValueError."""
    match = re.fullmatch(r"([\d.eE+-]+)(?:@([^/@]+)/([^/@]+)/([^/@]+))?", entry)
    if match is None:
        raise ValueError(entry)
    parts = match.groups()[1:]
    return Weighted(float(match[1]), None if parts[0] is None else _unit([float(part) for part in parts]))


def _unit(direction: list[float]) -> Direction:
    """The same of length 1; NONE for zeros. Raises ValueError for what is not finite."""
    length = float(np.linalg.norm(direction))
    if not np.isfinite(length):
        raise ValueError(direction)
    x, y, z = (float(part) / length + 0.0 for part in direction) if length > 0 else NONE
    return x, y, z


def weighting_of(header: Header, stated: Weighting | None = None) -> Weighting | None:
    """The weighting that the user states, else the header's; None where no b-value is above 0.

    Raises BadInputError where an entry of the header has no usable b-value; UnsupportedScanError where its weighting is
    on a counter that images do not have, and no other can take its place.
    """
    if stated is None:
        entries = weightings_of(header)
        numbers = [entry.bvalue for entry in entries]
        if not all(isinstance(number, int | float) and 0 <= number < np.inf for number in numbers):
            raise BadInputError(
                f"the header lists diffusion weightings with the b-values {', '.join(map(_number, numbers))}, and each "
                "must be a number of s/mm^2: state them, --b-values COUNTER:B0,B1,..."
            )
        weighted = tuple(Weighted(float(entry.bvalue), _direction_of(entry)) for entry in entries)
        if not any(numbers):
            return None
        told = lines_counter(header) or ("contrast" if len(numbers) == 1 else None)
        name = images_counter(header) or told
        if told is None or name not in COUNTERS:
            why = f"; none of {', '.join(STAND_INS)} can take its place" if told else ""
            raise UnsupportedScanError(
                f"the header lists {len(weighted)} diffusion weightings on the counter '{told or 'none'}', and images "
                f"are kept apart by {', '.join(COUNTERS)}{why}: say which of them it is, --b-values COUNTER:B0,B1,..."
            )
        if (other := counted_elsewhere(header)) is not None:
            raise UnsupportedScanError(
                f"the header lists {len(weighted)} diffusion weightings on the counter '{told}', of which it announces "
                f"one value, and {len(weighted)} of '{other}': say which of them it is, --b-values COUNTER:B0,B1,..."
            )
        source = "the header" if name == told else f"the header, which counts them by {told}"
        stated = Weighting(name, weighted, source)
    if not any(stated.b_values):
        return None
    return replace(stated, first=first_value(header, stated.counter, len(stated.weighted)))


def without_b_values(header: Header) -> str:
    """What is said of a diffusion scan whose header lists no b-value above 0. Converters put numbers of the protocol
    into user parameters, which do not tell the images that they are of."""
    parameters = header.userParameters
    found = [
        f"{printable(entry.name)} = {entry.value:g}"
        for name in ("userParameterLong", "userParameterDouble")
        for entry in getattr(parameters, name, None) or []
        if re.search(r"b_?val", entry.name or "", re.IGNORECASE) and isinstance(entry.value, int | float)
    ]
    told = f" (user parameters, {', '.join(found)}, do not say which images they are of)" if found else ""
    return f"the header lists no b-value above 0{told}: state those of all images, --b-values COUNTER:B0,B1,..."


def _direction_of(entry: Any) -> Direction | None:
    """The header's (right to left, front to back, foot to head is LPS) as a unit vector; None where it has none."""
    direction = getattr(entry, "gradientDirection", None)
    parts = [getattr(direction, name, None) for name in ("rl", "ap", "fh")]
    if not all(isinstance(part, int | float) and np.isfinite(part) for part in parts):
        return None
    return _unit([float(part) for part in parts if part is not None])


def _number(value: Any) -> str:
    """A header's number as text; its other texts are nobody's to repeat."""
    return str(value) if value is None or isinstance(value, int | float) else "a text"
