"""Copies of a scan's file in which something is changed."""

import ismrmrd
import numpy as np

from .acquisitions import read_lines, write_lines


def edited(scan, folder, edit) -> str:
    """A copy of the scan whose acquisitions `edit` has seen: (number, acquisition) -> acquisition or None."""
    copy = folder / "edited.h5"
    xml, lines = read_lines(scan)
    changed = (edit(number, line) for number, line in enumerate(lines))
    return str(write_lines(copy, xml, (line for line in changed if line is not None)))


def with_spike(scan, folder, *, calibration: bool = False) -> str:
    """A copy whose line beside the centre of k-space has a bright sample in coil 2."""

    def spoil(number, line):
        only = bool(line.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION))
        noise = line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        if line.idx.kspace_encode_step_1 == 30 and only == calibration and not noise:
            line.data[2, 31] += 40 * np.abs(line.data).max()
        return line

    return edited(scan, folder, spoil)
