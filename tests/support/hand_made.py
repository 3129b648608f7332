"""Scans made line by line, whose slices are known: a point in three coils, and noise."""

import ismrmrd
import numpy as np
import torch
from dpmrecon.data import LostSlice
from dpmrecon.mrd.header import read_header
from dpmrecon.physics.fourier import to_image

from .acquisitions import write_lines

COILS = np.array([1.0, 0.5 - 0.5j, -0.3j])
MIXING = np.array([[2.0, 0, 0], [0.8j, 0.5, 0], [0.1, -0.3, 0.05]])  # of white noise into the three coils
OVERSAMPLED = {"x": 52, "fov_x": 260.0}
CAL, BOTH = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING


def header_xml(
    rows=33,
    x=26,
    fov_x=130.0,
    recon_x=26,
    recon_fov_x=130.0,
    minimum=0,
    maximum=None,
    center=None,
    acceleration=1,
    acceleration_2=1,
    mode="embedded",
    trajectory="<trajectory>cartesian</trajectory>",
    z=1,
    extra_limits="",
    parallel="",
    encodings="",
    measurement="<measurementInformation><patientPosition>HFS</patientPosition></measurementInformation>",
    conditions="<experimentalConditions><H1resonanceFrequency_Hz>1</H1resonanceFrequency_Hz></experimentalConditions>",
):
    maximum = rows - 1 if maximum is None else maximum
    center = rows // 2 if center is None else center
    space = "<matrixSize><x>{}</x><y>{}</y><z>{}</z></matrixSize>"
    space += "<fieldOfView_mm><x>{}</x><y>165</y><z>{}</z></fieldOfView_mm>"
    return f"""<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">{measurement}{conditions}<encoding>
    <encodedSpace>{space.format(x, rows, z, fov_x, 3 * z)}</encodedSpace>
    <reconSpace>{space.format(recon_x, rows, z, recon_fov_x, 3 * z)}</reconSpace>
    <encodingLimits><kspace_encoding_step_1><minimum>{minimum}</minimum><maximum>{maximum}</maximum>
    <center>{center}</center></kspace_encoding_step_1>{extra_limits}</encodingLimits>{trajectory}
    <parallelImaging><accelerationFactor><kspace_encoding_step_1>{acceleration}</kspace_encoding_step_1>
    <kspace_encoding_step_2>{acceleration_2}</kspace_encoding_step_2></accelerationFactor><calibrationMode>{mode}</calibrationMode>
    {parallel}</parallelImaging></encoding>{encodings}</ismrmrdHeader>"""


def header(**options):
    """header_xml(**options), read."""
    return read_header(header_xml(**options))


def limits(name, maximum, center=0, minimum=0):
    """For extra_limits of the header."""
    return f"<{name}><minimum>{minimum}</minimum><maximum>{maximum}</maximum><center>{center}</center></{name}>"


def average_limits(maximum):
    """For extra_limits of the header: averages 0 to `maximum`."""
    return limits("average", maximum)


def line(number, data, flags=(), center=None, dwell=5.0, space=0, pre=0, post=0, **counters):
    """One acquisition; data: (n_coils, n_samples)."""
    acquisition = ismrmrd.Acquisition.from_array(
        np.asarray(data, np.complex64),
        center_sample=data.shape[1] // 2 if center is None else center,
        sample_time_us=dwell,
        encoding_space_ref=space,
        discard_pre=pre,
        discard_post=post,
    )
    acquisition.idx.kspace_encode_step_1 = number
    for name, value in counters.items():
        setattr(acquisition.idx, name, value)
    for flag in flags:
        acquisition.set_flag(flag)
    return acquisition


def samples(row, y, x, rows=33, cols=26, oversampling=1, low=None, high=None):
    """A readout (n_coils, n_samples) of a point `y` rows and `x` columns from the centre pixel, samples low..high-1."""
    grid = oversampling * cols
    k = np.arange(-(grid // 2) if low is None else low, grid - grid // 2 if high is None else high)
    phase = (row - rows // 2) * y / rows + k * x / grid
    return COILS[:, None] * np.exp(-2j * np.pi * phase)


def point_scan(y, x, numbers=range(33), center=16, rows=33, **options):
    """The lines `numbers` of that point; options: of `samples`, and center_sample, pre and post of the lines."""
    layout = {name: options.pop(name) for name in ("center_sample", "pre", "post") if name in options}
    layout["center"] = layout.pop("center_sample", None)
    return [line(n, samples(n - center + rows // 2, y, x, rows=rows, **options), **layout) for n in numbers]


def volume_scan(z, y, x, places, partitions=13, rows=33, centers=None, **options):
    """Lines of a point in a volume, at the (partition, line) of `places`; centers: numbers of the k-space centre;
    options: of `point_scan`."""
    center_2, center_1 = centers or (partitions // 2, rows // 2)
    lines = []
    for partition, number in places:
        (found,) = point_scan(y, x, [number], center_1, rows, **options)
        found.data[:] *= np.exp(-2j * np.pi * (partition - center_2) * z / partitions)
        found.idx.kspace_encode_step_2 = partition
        lines.append(found)
    return lines


def volume_header(partitions=13, partition_limits=None, **options):
    """`header` of a 3D scan; partition_limits: minimum, maximum and centre."""
    minimum, maximum, center = partition_limits or (0, partitions - 1, partitions // 2)
    own = limits("kspace_encoding_step_2", maximum, center, minimum)
    return header(z=partitions, extra_limits=own + options.pop("extra_limits", ""), **options)


def write_scan(path, lines, xml=None):
    return write_lines(path, xml or header_xml(), lines)


def only(stream):
    """The one slice of a stream, which must not be lost."""
    (item,) = stream
    assert not isinstance(item, LostSlice), item.reason
    return item


def reason(stream):
    """Why the one slice of a stream is lost."""
    (item,) = stream
    assert isinstance(item, LostSlice)
    return item.reason


def assert_point(kspace, *place, contrast=1e-4):
    """Each coil's image is its sensitivity at one pixel, (z,) y, x from the centre, and nothing elsewhere."""
    image = to_image(kspace, tuple(range(-len(place), 0)))
    pixel = (slice(None), *(size // 2 + offset for size, offset in zip(image.shape[1:], place)))
    peak = image[pixel]
    rest = image.clone()
    rest[pixel] = 0
    assert rest.abs().max() < contrast * peak.abs().max()
    torch.testing.assert_close(peak / peak[0], torch.tensor(COILS, dtype=torch.complex64), rtol=1e-3, atol=1e-3)


def noisy(rng, n_samples, mixing):
    white = rng.standard_normal((len(mixing), n_samples)) + 1j * rng.standard_normal((len(mixing), n_samples))
    return mixing @ white  # sigma 1 per real channel before mixing


def noise_lines(rng, scale=1.0, dwell=5.0, n=64, n_samples=52):
    flags = (ismrmrd.ACQ_IS_NOISE_MEASUREMENT,)
    return [line(0, scale * noisy(rng, n_samples, MIXING), flags, dwell=dwell) for _ in range(n)]
