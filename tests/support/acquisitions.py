"""The lines of a scan as they lie in its file."""

import h5py
import ismrmrd
import numpy as np

NOISE = ismrmrd.ACQ_IS_NOISE_MEASUREMENT
CALIBRATION = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION
BOTH = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING


def read(path):
    """(header, acquisitions) of a scan; all lines at once, because ismrmrd's reader takes ten times longer."""
    with h5py.File(path, "r") as file:
        header = ismrmrd.xsd.CreateFromDocument(file["dataset/xml"][0])
        records = file["dataset/data"][()]
    acquisitions = []
    for record in records:
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(record["head"].tobytes())
        data = record["data"].view(np.complex64).reshape(head.active_channels, head.number_of_samples)
        acquisitions.append(ismrmrd.Acquisition(head, data))
    return header, acquisitions
