"""Which counter tells the weightings of a diffusion scan: that of its lines, and that of its images.

MRD lets lines count weightings by their segment or a user counter, which images do not have. A counter with one
announced value then takes its place.
"""

import re
from typing import Any

import numpy as np

from ..errors import BadInputError
from .header import Header, is_epi, word

# counters that may carry the weighting, and MRD's names of them
COUNTERS = ("average", "contrast", "phase", "repetition", "set")
STAND_INS = ("contrast", "set", "phase", "repetition")  # in the order in which they are tried
LOW = 10  # s/mm^2: motion hardly changes the phase of images up to it


def lines_counter(header: Header) -> str | None:
    """By the header's name; None where it says nothing, or what is no counter."""
    dimension = getattr(header.sequenceParameters, "diffusionDimension", None)
    name = word(dimension)
    return name if name in COUNTERS or re.fullmatch("segment|user_[0-7]", name) else None


def images_counter(header: Header) -> str | None:
    """The same, or what takes its place; None where there is none. Segments of EPI tell shots and directions of lines:
    they cannot be meant."""
    name, limits = lines_counter(header), header.encoding[0].encodingLimits
    if name is None or name in COUNTERS:
        return name
    if name == "segment" and is_epi(header):
        return None
    announced = {other: getattr(limits, other, None) for other in STAND_INS}
    return next((other for other, limit in announced.items() if limit is None or limit.maximum == limit.minimum), None)


def counted_elsewhere(header: Header) -> str | None:
    """Another counter that is announced with as many values as there are weightings, where theirs is with one: the
    header contradicts itself, and does not tell which image has which. None where it does not."""
    limits, count = header.encoding[0].encodingLimits, len(weightings_of(header))
    announced = {name: getattr(limits, name, None) for name in COUNTERS}
    values = {name: limit.maximum - limit.minimum + 1 for name, limit in announced.items() if limit is not None}
    if count < 2 or values.get(str(lines_counter(header))) != 1:
        return None
    return next((name for name in COUNTERS if values.get(name) == count), None)


def weightings_of(header: Header) -> list[Any]:
    """The entries that the header lists."""
    return getattr(header.sequenceParameters, "diffusion", None) or []


def first_value(header: Header, counter: str | None, count: int) -> int:
    """Of the counter, to which the first of `count` weightings belongs: the announced minimum, where a list from 0 on
    would not reach the maximum."""
    limit = getattr(header.encoding[0].encodingLimits, str(counter), None)
    return limit.minimum if limit is not None and limit.maximum - limit.minimum < count <= limit.maximum else 0


def counted_for_images(counters: Any, header: Header) -> None:
    """Put the weighting into the images' counter, in place; again, it changes nothing.

    counters: `idx` of a line, or of several as a structured array. Raises BadInputError where lines use that counter
    for something else.
    """
    source, target = lines_counter(header), images_counter(header)
    if source is None or target is None or source == target or not weightings_of(header):
        return
    several = isinstance(counters, np.ndarray)
    name, _, place = source.partition("_")
    value = counters[name] if several else getattr(counters, name)
    if place:
        value = value[..., int(place)] if several else value[int(place)]
    own = counters[target] if several else getattr(counters, target)
    if np.any((own != 0) & (own != value)):
        raise BadInputError(
            f"the header counts diffusion weightings by {source}, which images do not have: {target} was to take its "
            f"place, and lines count something else by it: announce that, so that another one is taken (--set "
            f"encoding.encodingLimits.{target}.maximum=N)"
        )
    if several:
        counters[target] = value
    else:
        setattr(counters, target, value)
