"""Flags of ISMRMRD lines: bit masks, and their names."""

from typing import Any

import ismrmrd

from ..errors import BadInputError


def flags(*names: int) -> int:
    """The bit mask of ISMRMRD acquisition flags, which count from 1."""
    return sum(1 << (name - 1) for name in names)


# by name, as NOISE_MEASUREMENT or NAVIGATION_DATA
FLAGS = {
    name.removeprefix("ACQ_").removeprefix("IS_"): flags(number)
    for name, number in vars(ismrmrd).items()
    if name.startswith("ACQ_") and isinstance(number, int) and 0 < number <= 64
}
NOISE = flags(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
CALIBRATION = flags(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
CALIBRATION_AND_IMAGE = flags(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
LAST_IN_SLICE = flags(ismrmrd.ACQ_LAST_IN_SLICE)
LAST_OF_ALL = flags(ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT)
PHASE_CORRECTION = flags(ismrmrd.ACQ_IS_PHASECORR_DATA)
REVERSED = flags(ismrmrd.ACQ_IS_REVERSE)
GHOST_CORRECTION = PHASE_CORRECTION | REVERSED
# some converters map another flag onto it, which then all lines bear
SURFACE_COIL = flags(ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA)
# lines that are neither image, calibration nor noise
IGNORED = flags(
    ismrmrd.ACQ_IS_NAVIGATION_DATA,
    ismrmrd.ACQ_IS_HPFEEDBACK_DATA,
    ismrmrd.ACQ_IS_RTFEEDBACK_DATA,
    ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
    ismrmrd.ACQ_IS_PHASE_STABILIZATION_REFERENCE,
    ismrmrd.ACQ_IS_PHASE_STABILIZATION,
)


def calibrates_alone(mask: Any) -> Any:
    """Whether a line with these flags, or each of an array, is no image's. Lines that bear both marks are, as readers
    of Siemens data have it (mapVBVD)."""
    return (mask & CALIBRATION != 0) & (mask & CALIBRATION_AND_IMAGE == 0)


def names_of(mask: int) -> list[str]:
    """The flags of a line in words, such as "navigation data"."""
    return [name.lower().replace("_", " ") for name, bit in FLAGS.items() if mask & bit]


def mask_of(names: str) -> int:
    """NAME,NAME to a bit mask; "none" is no flag. Raises BadInputError for a name that no flag has."""
    mask = 0
    for name in filter(
        None, (text.strip().upper().removeprefix("ACQ_").removeprefix("IS_") for text in names.split(","))
    ):
        if name == "NONE":
            continue
        if name not in FLAGS:
            raise BadInputError(f"flag '{name}' is unknown: valid ones are {', '.join(FLAGS)}, or none")
        mask |= FLAGS[name]
    return mask
