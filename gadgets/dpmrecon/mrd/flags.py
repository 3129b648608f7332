"""Flags of ISMRMRD lines, as bit masks."""

import ismrmrd


def flags(*names: int) -> int:
    """The bit mask of ISMRMRD acquisition flags, which count from 1."""
    return sum(1 << (name - 1) for name in names)


NOISE = flags(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
CALIBRATION = flags(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
CALIBRATION_AND_IMAGE = flags(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
LAST_IN_SLICE = flags(ismrmrd.ACQ_LAST_IN_SLICE)
GHOST_CORRECTION = flags(ismrmrd.ACQ_IS_PHASECORR_DATA, ismrmrd.ACQ_IS_REVERSE)
# lines that are neither image, calibration nor noise
IGNORED = flags(
    ismrmrd.ACQ_IS_NAVIGATION_DATA,
    ismrmrd.ACQ_IS_HPFEEDBACK_DATA,
    ismrmrd.ACQ_IS_RTFEEDBACK_DATA,
    ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
    ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,
    ismrmrd.ACQ_IS_PHASE_STABILIZATION_REFERENCE,
    ismrmrd.ACQ_IS_PHASE_STABILIZATION,
)
