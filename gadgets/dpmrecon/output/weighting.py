"""The diffusion weighting of each image: which counter tells it, and its b-value in s/mm^2."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data import SliceKey
from ..errors import BadInputError, UnsupportedScanError
from ..mrd.header import Header

# counters that slices are kept apart by, and MRD's names for what may carry the weighting
COUNTERS = ("average", "contrast", "phase", "repetition", "set")
# keys of an image's meta: MRD names what DICOM has too as DICOM does
B_VALUE = ("DiffusionBValue", "dpmrecon_b_value")


@dataclass(frozen=True)
class Weighting:
    """Which counter tells the diffusion weighting, and the b-value in s/mm^2 of each of its values from 0 on."""

    counter: str
    b_values: tuple[float, ...]

    def of(self, counters: Any) -> float:
        """The b-value of an MRD image's header or a slice's key. Raises BadInputError where the counter runs past the
        list."""
        number = int(getattr(counters, self.counter))
        if number >= len(self.b_values):
            raise BadInputError(
                f"an image has {self.counter} {number} and b-values are known for 0 to {len(self.b_values) - 1}: "
                f"give one for each, --b-values {self.counter}:B0,B1,..."
            )
        return self.b_values[number]

    def meta_of(self, key: SliceKey) -> dict[str, str]:
        """The b-value in an image's meta, `DiffusionBValue` as DICOM names it; empty where it is not known."""
        number = int(getattr(key, self.counter))
        if number >= len(self.b_values):
            return {}
        return dict.fromkeys(B_VALUE, f"{self.b_values[number]:g}")


def b_value_comment(meta: Mapping[str, Any]) -> str:
    """What an image's comment says about the b-value of its meta: a Gadgetron's DICOM has no other place for it."""
    return f"; b = {meta[B_VALUE[0]]} s/mm2" if B_VALUE[0] in meta else ""


def weighting_from_text(text: str) -> Weighting:
    """`contrast:0,500,1000` as on the command line. Raises BadInputError."""
    match = re.fullmatch(r"(\w+):([\d.,eE+-]+)", text)
    try:
        values = tuple(float(value) for value in match[2].split(",")) if match else ()
    except ValueError:
        values = ()
    if not match or match[1] not in COUNTERS or not values or not all(0 <= b < np.inf for b in values):
        raise BadInputError(
            f"b-values '{text}' are not usable: give COUNTER:B0,B1,... in s/mm^2, one for each value of the counter, "
            f"which is one of {', '.join(COUNTERS)}"
        )
    return Weighting(match[1], values)


def weighting_of(header: Header, stated: Weighting | None = None) -> Weighting | None:
    """The weighting that the user states, else the header's; None where there are not several b-values.

    Raises BadInputError where an entry of the header has no usable b-value, UnsupportedScanError where its weighting
    is on a counter that slices are not kept apart by.
    """
    if stated is None:
        sequence = header.sequenceParameters
        entries = getattr(sequence, "diffusion", None) or []
        dimension = getattr(sequence, "diffusionDimension", None)
        numbers = [entry.bvalue for entry in entries]
        if not all(isinstance(number, int | float) and 0 <= number < np.inf for number in numbers):
            raise BadInputError(
                f"the header lists diffusion weightings with the b-values {', '.join(map(_number, numbers))}, and each "
                "must be a number of s/mm^2: state them, --b-values COUNTER:B0,B1,..."
            )
        values = tuple(float(number) for number in numbers)
        if len(set(values)) < 2:
            return None
        name = getattr(dimension, "value", None)
        if name not in COUNTERS:
            raise UnsupportedScanError(
                f"the header lists {len(values)} diffusion weightings on the counter '{name or 'none'}', and images "
                f"are kept apart by {', '.join(COUNTERS)}: say which of them it is, --b-values COUNTER:B0,B1,..."
            )
        stated = Weighting(name, values)
    return stated if len(set(stated.b_values)) > 1 else None


def _number(value: Any) -> str:
    """A header's number as text; its other texts are nobody's to repeat."""
    return str(value) if value is None or isinstance(value, int | float) else "a text"
