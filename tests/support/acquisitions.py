"""The lines of a scan as in its file; all at once, because ismrmrd's reader and writer take ten times longer."""

from collections.abc import Iterable
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
from ismrmrd.hdf5 import acquisition_dtype, acquisition_header_dtype

NOISE = ismrmrd.ACQ_IS_NOISE_MEASUREMENT
CALIBRATION = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION
BOTH = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING


def read(path):
    """(header, acquisitions) of a scan."""
    xml, acquisitions = read_lines(path)
    return ismrmrd.xsd.CreateFromDocument(xml), acquisitions


def read_lines(path) -> tuple[bytes, list[ismrmrd.Acquisition]]:
    """(XML header, acquisitions) of a scan without trajectories."""
    with h5py.File(path, "r") as file:
        xml, records = file["dataset/xml"][0], file["dataset/data"][()]
    acquisitions = []
    for head, samples in zip(records["head"], records["data"]):
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(head.tobytes())
        data = samples.view(np.complex64).reshape(head.active_channels, head.number_of_samples)
        acquisitions.append(ismrmrd.Acquisition(head, data))
    return xml, acquisitions


def write_lines(path, xml: str | bytes, lines: Iterable[ismrmrd.Acquisition], group: str = "dataset") -> Path:
    """Write a scan without trajectories, or add a group to a file that is there."""
    lines = list(lines)
    records = np.empty(len(lines), acquisition_dtype)
    records["head"] = np.frombuffer(b"".join(bytes(line.getHead()) for line in lines), acquisition_header_dtype)
    for number, line in enumerate(lines):
        records["data"][number] = line.data.view(np.float32).ravel()
        records["traj"][number] = np.empty(0, np.float32)
    with h5py.File(path, "a") as file:
        file.create_dataset(f"{group}/xml", data=[xml], dtype=h5py.special_dtype(vlen=bytes))
        file.create_dataset(f"{group}/data", data=records, maxshape=(None,))
    return Path(path)
