"""Copies of a scan's file in which something is changed."""

import ismrmrd
import numpy as np


def edited(scan, folder, edit) -> str:
    """A copy of the scan whose acquisitions `edit` has seen: (number, acquisition) -> acquisition or None."""
    copy = folder / "edited.h5"
    source = ismrmrd.Dataset(str(scan), "dataset", create_if_needed=False)
    target = ismrmrd.Dataset(str(copy), "dataset", create_if_needed=True)
    target.write_xml_header(source.read_xml_header())
    for number in range(source.number_of_acquisitions()):
        acquisition = edit(number, source.read_acquisition(number))
        if acquisition is not None:
            target.append_acquisition(acquisition)
    target.close()
    source.close()
    return str(copy)


def with_spike(scan, folder, *, calibration: bool = False) -> str:
    """A copy whose line beside the centre of k-space has a bright sample in coil 2."""

    def spoil(number, line):
        only = bool(line.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION))
        noise = line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        if line.idx.kspace_encode_step_1 == 30 and only == calibration and not noise:
            line.data[2, 31] += 40 * np.abs(line.data).max()
        return line

    return edited(scan, folder, spoil)
