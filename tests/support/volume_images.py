"""Volumes made by hand: a header of a 3D scan, a line of it, and what a sampler would leave of it."""

from pathlib import Path

import ismrmrd
import numpy as np
import torch
from dpmrecon.data import MEASURED, SliceKey, Volume
from dpmrecon.mrd.header import Header, read_header
from dpmrecon.mrd.lines import LineHeader
from dpmrecon.output.images_file import store
from dpmrecon.output.mrd_images import mrd_images
from dpmrecon.physics.forward import ForwardModel
from dpmrecon.recon.provenance import Provenance
from dpmrecon.recon.types import MappedSlice, Reconstruction

SAGITTAL = {"read_dir": (0.0, 0.0, -1.0), "phase_dir": (0.0, 1.0, 0.0), "slice_dir": (1.0, 0.0, 0.0)}
PROVENANCE = Provenance("1", "tiny", "c0ffee", None, "prox", "fast", None, "given", 1, 0, None, False)


def volume_xml(
    matrix=(6, 20, 16),
    recon=None,
    fov=(20.0, 40.0, 48.0),
    oversampled=1.0,
    contrasts=1,
    protocol="T1_MPRAGE_sag",
    vendor="SIMULATED",
    echo_times=(3.0,),
) -> bytes:
    """matrix: encoded (partitions, rows, cols); recon: of the images; fov: of these, in mm; oversampled: by which the
    encoded field of view is larger along the partitions."""
    z, y, x = fov

    def space(matrix, depth) -> str:
        sizes = "".join(f"<{axis}>{size}</{axis}>" for axis, size in zip("xyz", reversed(matrix)))
        return f"<matrixSize>{sizes}</matrixSize><fieldOfView_mm><x>{x}</x><y>{y}</y><z>{depth}</z></fieldOfView_mm>"

    def limit(name, size) -> str:
        numbers = f"<minimum>0</minimum><maximum>{size - 1}</maximum><center>{size // 2}</center>"
        return f"<{name}>{numbers}</{name}>"

    times = "".join(f"<TE>{time}</TE>" for time in echo_times)
    return f"""<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
    <measurementInformation><patientPosition>HFS</patientPosition><protocolName>{protocol}</protocolName>
    </measurementInformation>
    <acquisitionSystemInformation><systemVendor>{vendor}</systemVendor></acquisitionSystemInformation>
    <experimentalConditions><H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions>
    <encoding><encodedSpace>{space(matrix, oversampled * z)}</encodedSpace>
    <reconSpace>{space(recon or matrix, z)}</reconSpace>
    <encodingLimits>{limit("kspace_encoding_step_1", matrix[1])}{limit("kspace_encoding_step_2", matrix[0])}
    {limit("contrast", contrasts)}</encodingLimits><trajectory>cartesian</trajectory></encoding>
    <sequenceParameters>{times}</sequenceParameters></ismrmrdHeader>""".encode()


def volume_header(**options) -> Header:
    """volume_xml(**options), read."""
    return read_header(volume_xml(**options))


def volume_line(position=(2.0, -8.0, 5.0), read_dir=None, phase_dir=None, slice_dir=None) -> LineHeader:
    """The line of a volume that gives its images their geometry; sagittal where no directions are given."""
    head = ismrmrd.AcquisitionHeader()
    directions = {"read_dir": read_dir, "phase_dir": phase_dir, "slice_dir": slice_dir}
    for name, values in {"position": position, **{n: v or SAGITTAL[n] for n, v in directions.items()}}.items():
        getattr(head, name)[:] = values
    return LineHeader.of(head)


def volume_of(shape, contrast=0, n_coils=2) -> Volume:
    """A volume (partitions, rows, cols) without k-space worth the name."""
    mask = torch.ones(shape)
    kspace = torch.zeros(n_coils, *shape, dtype=torch.complex64)
    key = SliceKey(0, contrast)
    lines = shape[0] * shape[1]
    return Volume(key, kspace, mask, kspace[:, :2, :2], 0.01, MEASURED, 4.0, lines, lines, key.seed_key)


def reconstructed(
    image: np.ndarray, contrast=0, phase: np.ndarray | None = None, spread=None, fallback=None, scale=None
) -> Reconstruction:
    """As if the volume had been sampled. image: (partitions, rows, cols); phase: its smooth phase, in radians."""
    data = volume_of(image.shape, contrast)
    pixels = torch.as_tensor(image, dtype=torch.complex64)
    smooth = torch.ones_like(pixels) if phase is None else torch.polar(torch.ones(phase.shape), torch.tensor(phase))
    maps = torch.full((2, *image.shape), 0.5**0.5, dtype=torch.complex64)
    scale = float(pixels.abs().max()) if scale is None else scale
    mapped = MappedSlice(data, ForwardModel(maps, data.mask), smooth, scale, pixels, pixels, {})
    return Reconstruction(mapped, pixels, spread, fallback, 1.0, {}, 1, 4, 4)


def write_images(path: Path, xml: bytes, line: LineHeader, items: list[Reconstruction], outputs=("magnitude",)) -> Path:
    """images.h5 as a replay would write it, without what its writers add."""
    header = read_header(xml)
    stream = mrd_images(items, header, {item.key: line for item in items}, PROVENANCE, outputs)
    dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
    dataset.write_xml_header(xml)
    for _, images in stream:
        for image in images:
            store(dataset, image)
    dataset.close()
    return path


def points_of(line: LineHeader, shape, fov) -> np.ndarray:
    """Patient coordinates (partitions, rows, cols, 3) of every voxel, by MRD's convention of the centre alone."""
    steps = [size / count for size, count in zip(fov, shape)]
    points = np.array(line.position)
    for axis, direction in enumerate((line.slice_dir, line.phase_dir, line.read_dir)):
        places = (np.arange(shape[axis]) - shape[axis] // 2) * steps[axis]
        points = points + places.reshape([-1 if other == axis else 1 for other in range(3)] + [1]) * np.array(direction)
    return points
