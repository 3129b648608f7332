"""From ISMRMRD lines to slices: hand-made scans whose answer is known, the shared scans, and every refusal."""

import functools
import math
import tracemalloc
import weakref
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError, UnsupportedScanError
from dpmrecon.mrd import header as mrd
from dpmrecon.mrd.collect import LostSlice, SliceKey, announced_lines, central_block, slices
from dpmrecon.physics.fourier import to_image, to_kspace
from dpmrecon.physics.noise import estimated_sigma, whitening

from support.paths import shared

COILS = np.array([1.0, 0.5 - 0.5j, -0.3j])


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
    space += "<fieldOfView_mm><x>{}</x><y>165</y><z>3</z></fieldOfView_mm>"
    return f"""<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">{measurement}{conditions}<encoding>
    <encodedSpace>{space.format(x, rows, z, fov_x)}</encodedSpace>
    <reconSpace>{space.format(recon_x, rows, z, recon_fov_x)}</reconSpace>
    <encodingLimits><kspace_encoding_step_1><minimum>{minimum}</minimum><maximum>{maximum}</maximum>
    <center>{center}</center></kspace_encoding_step_1>{extra_limits}</encodingLimits>{trajectory}
    <parallelImaging><accelerationFactor><kspace_encoding_step_1>{acceleration}</kspace_encoding_step_1>
    <kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor><calibrationMode>{mode}</calibrationMode>
    {parallel}</parallelImaging></encoding>{encodings}</ismrmrdHeader>"""


def header(**options):
    return mrd.read_header(header_xml(**options))


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
    layout = {name: options.pop(name) for name in ("center_sample", "pre", "post") if name in options}
    layout["center"] = layout.pop("center_sample", None)
    return [line(n, samples(n - center + rows // 2, y, x, rows=rows, **options), **layout) for n in numbers]


def write_scan(path, lines, xml=None):
    with ismrmrd.Dataset(str(path), "dataset", create_if_needed=True) as dataset:
        dataset.write_xml_header((xml or header_xml()).encode())
        for acquisition in lines:
            dataset.append_acquisition(acquisition)
    return path


def only(stream):
    (item,) = stream
    assert not isinstance(item, LostSlice), item.reason
    return item


def reason(stream):
    (item,) = stream
    assert isinstance(item, LostSlice)
    return item.reason


def assert_point(kspace, y, x, contrast=1e-4):
    """Each coil's image is its sensitivity at one pixel and nothing elsewhere."""
    image = to_image(kspace)
    rows, cols = image.shape[-2:]
    peak = image[:, rows // 2 + y, cols // 2 + x]
    rest = image.clone()
    rest[:, rows // 2 + y, cols // 2 + x] = 0
    assert rest.abs().max() < contrast * peak.abs().max()
    torch.testing.assert_close(peak / peak[0], torch.tensor(COILS, dtype=torch.complex64), rtol=1e-3, atol=1e-3)


OVERSAMPLED = {"x": 52, "fov_x": 260.0}


@pytest.mark.parametrize(
    ("options", "oversampling"),
    [
        ({}, 1),
        (OVERSAMPLED, 2),
        (OVERSAMPLED, 1),  # the header says so, the samples do not
        ({}, 2),  # the samples are, the header does not say so
        ({"x": 52}, 2),  # matrix with, field of view without the oversampling
        ({"x": 52}, 1),
    ],
)
@pytest.mark.parametrize(("y", "x"), [(7, 9), (-11, -4)])
def test_a_point_lands_on_its_pixel(options, oversampling, y, x):
    result = only(slices(point_scan(y, x, oversampling=oversampling), header(**options)))
    assert result.kspace.shape == (3, 33, 26) and result.kspace.dtype == torch.complex64
    assert bool((result.mask == 1).all()) and result.mask.dtype == torch.float32
    assert_point(result.kspace, y, x)


def test_odd_columns_and_other_oversampling():
    # 1.4 times 25 columns
    options = {"x": 35, "fov_x": 175.0, "recon_x": 25, "recon_fov_x": 125.0}
    k = np.arange(-17, 18)
    lines = [
        line(n, COILS[:, None] * np.exp(-2j * np.pi * ((n - 16) * 5 / 33 + k * -8 / 35)), center=17) for n in range(33)
    ]
    result = only(slices(lines, header(**options)))
    assert result.kspace.shape == (3, 33, 25)
    assert_point(result.kspace, 5, -8)


def test_unset_center_sample_is_the_middle():
    assert_point(only(slices(point_scan(3, 4, center_sample=0), header())).kspace, 3, 4)


def test_discarded_samples_are_no_data():
    lines = point_scan(3, 4, oversampling=2)
    padded = [
        line(
            a.idx.kspace_encode_step_1, np.pad(a.data, ((0, 0), (5, 3)), constant_values=1e6), center=31, pre=5, post=3
        )
        for a in lines
    ]
    assert_point(only(slices(padded, header(**OVERSAMPLED))).kspace, 3, 4)


@pytest.mark.parametrize("oversampling", [1, 2])
def test_asymmetric_echo(oversampling):
    # 6 of 26 columns are missing at the start
    missing = 6
    low = -13 * oversampling + missing * oversampling
    options = OVERSAMPLED if oversampling == 2 else {}
    lines = point_scan(4, 3, oversampling=oversampling, low=low, center_sample=-low)
    result = only(slices(lines, header(**options)))
    held = result.mask[0]
    margin = 2 if oversampling == 2 else 0
    assert held.tolist() == [0.0] * (missing + margin) + [1.0] * (26 - missing - margin)
    assert bool((result.kspace[:, result.mask == 0] == 0).all())
    truth = only(slices(point_scan(4, 3, oversampling=oversampling), header(**options))).kspace
    error = (result.kspace - truth)[:, :, held > 0].abs().max() / truth.abs().max()
    assert error < (0.15 if oversampling == 2 else 1e-5)
    peak = to_image(result.kspace)[0].abs().argmax()
    assert divmod(int(peak), 26) == (16 + 4, 13 + 3)


def test_an_echo_filled_up_with_zeros_is_asymmetric_all_the_same():
    lines = point_scan(4, 3, low=-8, center_sample=8)
    filled = [line(n, np.pad(a.data, ((0, 0), (5, 0)))) for n, a in enumerate(lines)]
    one, other = only(slices(lines, header())), only(slices(filled, header()))
    assert one.mask[0].tolist() == [0.0] * 5 + [1.0] * 21
    assert torch.equal(one.mask, other.mask) and torch.equal(one.kspace, other.kspace)


def test_partial_fourier_leaves_the_missing_rows_empty():
    # 24 of 33 rows, numbered from 0; the centre is number 7, which is row 16
    head = header(maximum=23, center=7)
    result = only(slices(point_scan(-6, 5, numbers=range(24), center=7), head))
    assert (result.mask[:, 0] == 1).nonzero().squeeze(1).tolist() == list(range(9, 33))
    truth = only(slices(point_scan(-6, 5), header())).kspace
    torch.testing.assert_close(result.kspace, truth * result.mask, rtol=0, atol=1e-4)
    assert (result.n_lines_got, result.n_lines_needed) == (24, 24)
    assert result.calibration.shape == (3, 15, 26)  # 7 rows on either side of the centre
    torch.testing.assert_close(result.calibration, result.kspace[:, 9:24])


def noisy(rng, n_samples, mixing):
    white = rng.standard_normal((len(mixing), n_samples)) + 1j * rng.standard_normal((len(mixing), n_samples))
    return mixing @ white  # sigma 1 per real channel before mixing


MIXING = np.array([[2.0, 0, 0], [0.8j, 0.5, 0], [0.1, -0.3, 0.05]])


def noise_lines(rng, scale=1.0, dwell=5.0, n=64, n_samples=52):
    flags = (ismrmrd.ACQ_IS_NOISE_MEASUREMENT,)
    return [line(0, scale * noisy(rng, n_samples, MIXING), flags, dwell=dwell) for _ in range(n)]


@pytest.mark.parametrize("dwell", [5.0, 20.0])
def test_whitening_and_measured_noise_level(dwell):
    # image lines are pure noise; noise lines with n times the dwell time have 1/n of the variance
    rng = np.random.default_rng(0)
    lines = noise_lines(rng, scale=math.sqrt(5.0 / dwell), dwell=dwell)
    lines += [line(n, noisy(rng, 52, MIXING)) for n in range(33)]
    result = only(slices(lines, header(**OVERSAMPLED)))
    assert result.noise_source == "noise scan"
    flat = result.kspace.flatten(1)
    covariance = flat @ flat.conj().T / flat.shape[1]
    torch.testing.assert_close(covariance, torch.eye(3, dtype=torch.complex64), rtol=0, atol=0.12)
    measured = torch.view_as_real(flat).square().mean().sqrt()
    assert result.sigma_n == pytest.approx(float(measured), rel=0.04)
    assert result.sigma_n == pytest.approx(math.sqrt(0.5), rel=0.03)


def test_noise_level_follows_the_receiver_filter():
    # the receiver passes the kept half of the band only: all noise power lies in the columns that stay
    rng = np.random.default_rng(1)

    def filtered():
        narrow = torch.from_numpy(noisy(rng, 52, MIXING).astype(np.complex64))
        image = to_image(narrow, axes=(-1,))
        image[:, :13] = 0
        image[:, 39:] = 0
        return to_kspace(image, axes=(-1,)).numpy()

    lines = [line(0, filtered(), (ismrmrd.ACQ_IS_NOISE_MEASUREMENT,)) for _ in range(64)]
    lines += [line(n, filtered()) for n in range(33)]
    result = only(slices(lines, header(**OVERSAMPLED)))
    assert result.sigma_n == pytest.approx(1.0, rel=0.03)  # not sqrt(1/2)
    measured = torch.view_as_real(result.kspace).square().mean().sqrt()
    assert result.sigma_n == pytest.approx(float(measured), rel=0.04)


def test_averages_apart_and_combined(tmp_path):
    rng = np.random.default_rng(2)
    lines = noise_lines(rng)
    for n in range(33):
        lines += [line(n, samples(n, 2, 1, oversampling=2) + noisy(rng, 52, MIXING), average=a) for a in range(4)]
    limits = "<average><minimum>0</minimum><maximum>3</maximum><center>0</center></average>"
    path = write_scan(tmp_path / "scan.h5", lines, header_xml(extra_limits=limits, **OVERSAMPLED))
    with mrd.open_scan(path) as scan:
        assert scan.n_slices == 4
        apart = list(slices(scan.acquisitions(), scan.header))
        combined = only(slices(scan.acquisitions(), scan.header, combine_averages=True))
    assert [item.key.average for item in apart] == [0, 1, 2, 3]
    assert combined.key.average == 0 and combined.n_lines_got == 33
    assert combined.sigma_n == pytest.approx(apart[0].sigma_n / 2)
    torch.testing.assert_close(combined.kspace, sum(item.kspace for item in apart) / 4)
    # a stream whose header announces no averages: they wait for its end
    combined = only(slices(lines, header(**OVERSAMPLED), combine_averages=True))
    assert combined.sigma_n == pytest.approx(apart[0].sigma_n / 2)


def average_limits(maximum):
    return f"<average><minimum>0</minimum><maximum>{maximum}</maximum><center>0</center></average>"


@pytest.mark.parametrize("announced", ["", average_limits(0), average_limits(7)])
def test_a_file_knows_its_averages(tmp_path, announced):
    lines = [
        line(n, (1 + a) * samples(n, 2, 1), slice=s, average=a) for s in (0, 1) for a in (0, 1, 2) for n in range(33)
    ]
    path = write_scan(tmp_path / "scan.h5", lines, header_xml(extra_limits=announced))
    with mrd.open_scan(path) as scan:
        stream = scan.acquisitions()
        items = slices(stream, scan.header, combine_averages=True)
        first = next(items)
        assert next(stream).idx.slice == 1  # the slice left with its last average, not at the end
        assert first.key.slice == 0 and len(list(items)) == 1
    expected = torch.from_numpy((2 * samples(16, 2, 1)).astype(np.complex64))
    torch.testing.assert_close(first.kspace[:, 16], expected)


def test_a_stream_with_more_averages_than_announced_says_so():
    last = (ismrmrd.ACQ_LAST_IN_SLICE,)
    lines = [line(n, samples(n, 2, 1), last if n == 32 else (), average=a) for a in (0, 1) for n in range(33)]
    head = header(extra_limits=average_limits(0))
    image, lost = slices(lines, head, combine_averages=True)
    assert not isinstance(image, LostSlice) and image.key == lost.key
    assert "more averages came than the header announces (1)" in lost.reason
    head = header(extra_limits=average_limits(3))  # fewer than announced: they wait for the end
    assert only(slices(lines, head, combine_averages=True)).n_lines_got == 33


def test_lines_repeated_in_one_slice_are_averaged():
    lines = point_scan(1, 2)
    double = [line(n, 3 * samples(n, 1, 2)) for n in range(33)]
    once = only(slices(lines, header()))
    result = only(slices(lines + double, header()))
    torch.testing.assert_close(result.kspace, 2 * once.kspace)
    assert result.n_lines_got == 33


def smooth_object(rows, cols):
    """An ellipse (rows, cols) that leaves columns beside it empty, in 4 coils: complex64."""
    y, x = np.mgrid[:rows, :cols]
    y, x = (y - rows // 2) / rows, (x - cols // 2) / cols
    image = ((y / 0.42) ** 2 + (x / 0.38) ** 2 < 1) * (1 + 0.5 * np.sin(9 * x + 4 * y) + 0.3 * (y > 0.1))
    coils = [np.exp(-3 * ((y - a) ** 2 + (x - b) ** 2) + 2j * a * x) for a in (-0.4, 0.4) for b in (-0.4, 0.4)]
    return torch.from_numpy((image * np.stack(coils)).astype(np.complex64))


@pytest.mark.parametrize("level", [0.005, 0.03])
@pytest.mark.parametrize("pattern", ["full", "r4", "asymmetric", "partial Fourier"])
def test_noise_level_estimated_without_a_noise_scan(level, pattern):
    kspace = to_kspace(smooth_object(121, 96))
    kspace += level * torch.view_as_complex(torch.randn(*kspace.shape, 2, generator=torch.Generator().manual_seed(3)))
    mask = torch.ones(121, 96)
    if pattern == "r4":
        mask = torch.zeros(121, 96)
        mask[1::4] = 1
        mask[48:72] = 1
    elif pattern == "asymmetric":
        mask[:, :20] = 0
    elif pattern == "partial Fourier":
        mask[:30] = 0
    assert estimated_sigma(kspace * mask, mask) == pytest.approx(level, rel=0.12)


def test_noise_level_has_a_floor():
    kspace, mask = to_kspace(smooth_object(60, 48)), torch.ones(60, 48)
    # three orders of magnitude under the corners' true content there is nothing left to estimate
    kspace[:, :20] = kspace[:, 40:] = 1e-9
    rms = float(kspace.abs().square().mean().sqrt())
    assert estimated_sigma(kspace, mask) == pytest.approx(1e-4 * rms)


CAL, BOTH = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING


def flagged(number, cal=range(12, 21), step=4):
    """Flags as scanners set them: calibration lines that the pattern needs too are both."""
    return () if number not in cal else (BOTH,) if number % step == 0 else (CAL,)


def test_embedded_calibration_is_image_too():
    numbers = sorted({*range(0, 33, 4), *range(12, 21)})
    lines = [line(n, samples(n, 2, 3), flagged(n)) for n in numbers]
    result = only(slices(lines, header(acceleration=4)))
    assert result.mask[:, 0].nonzero().squeeze(1).tolist() == numbers
    torch.testing.assert_close(result.calibration, result.kspace[:, 12:21])  # row 16, index 4, is the centre
    assert (result.n_lines_got, result.n_lines_needed) == (15, 9)
    assert result.acceleration == 4


def test_separate_calibration_serves_later_repetitions(tmp_path):
    lines = [line(n, 7 * samples(n, 2, 3), (CAL,), slice=s) for s in (1, 0) for n in range(12, 21)]
    lines += [
        line(n, (1 + r) * samples(n, 2, 3), (), slice=s, repetition=r)
        for r in (0, 1)
        for s in (1, 0)
        for n in range(0, 33, 4)
    ]
    xml = header_xml(acceleration=4, mode="separate")
    with mrd.open_scan(write_scan(tmp_path / "scan.h5", lines, xml)) as scan:
        from_file = list(slices(scan.acquisitions(), scan.header))
    from_stream = list(slices(lines, mrd.read_header(xml)))
    assert len(from_stream) == 4
    assert [(item.key.repetition, item.key.slice) for item in from_file] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for item in from_file + from_stream:
        assert item.mask[:, 0].nonzero().squeeze(1).tolist() == list(range(0, 33, 4))  # calibration is no image
        assert item.calibration.shape == (3, 9, 26)
        expected = torch.from_numpy((7 * samples(16, 2, 3)).astype(np.complex64))
        torch.testing.assert_close(item.calibration[:, 4], expected)


@pytest.mark.parametrize("mode", ["embedded", "other", ""])
@pytest.mark.parametrize("order", ["calibration first", "image first", "interleaved"])
def test_separate_calibration_that_the_header_does_not_announce(tmp_path, mode, order):
    # another gain and sign: a mean of the two would be no row of either
    calibration = [line(n, -7 * samples(n, 2, 3), (CAL,)) for n in range(12, 21)]
    image = [line(n, samples(n, 2, 3)) for n in range(0, 33, 4)]
    lines = image + calibration if order == "image first" else calibration + image
    if order == "interleaved":
        lines.sort(key=lambda one: one.idx.kspace_encode_step_1)
    xml = header_xml(acceleration=4, mode=mode)
    xml = xml if mode else xml.replace("<calibrationMode></calibrationMode>", "")
    with mrd.open_scan(write_scan(tmp_path / "scan.h5", lines, xml)) as scan:
        results = [only(slices(scan.acquisitions(), scan.header)), only(slices(lines, mrd.read_header(xml)))]
    for result in results:
        assert result.mask[:, 0].nonzero().squeeze(1).tolist() == list(range(0, 33, 4))
        expected = torch.from_numpy(samples(16, 2, 3).astype(np.complex64))
        torch.testing.assert_close(result.kspace[:, 16], expected)
        torch.testing.assert_close(result.calibration, -7 * point_calibration(2, 3))


def point_calibration(y, x):
    return torch.from_numpy(np.stack([samples(n, y, x) for n in range(12, 21)], 1).astype(np.complex64))


def test_embedded_calibration_of_interleaved_contrasts_stays_with_its_own():
    numbers = sorted({*range(0, 33, 4), *range(12, 21)})
    lines = [line(n, (1 + c) * samples(n, 2, 3), flagged(n), contrast=c) for n in numbers for c in (0, 1)]
    items = list(slices(lines, header(acceleration=4)))
    assert [item.n_lines_got for item in items] == [15, 15]
    for item, factor in zip(items, (1, 2)):
        torch.testing.assert_close(item.calibration, factor * point_calibration(2, 3))


def test_embedded_calibration_of_another_layout_loses_the_slice():
    numbers = sorted({*range(0, 33, 4), *range(12, 21)})
    lines = [line(n, samples(n, 2, 3)[: 2 if flagged(n) == (CAL,) else 3], flagged(n)) for n in numbers]
    assert "calibration lines have 2 channels" in reason(slices(lines, header(acceleration=4)))


def test_separate_calibration_of_another_encoding_space():
    # the same geometry with limits of its own
    xml = header_xml(acceleration=4, mode="separate")
    encoding = xml[xml.index("<encoding>") : xml.index("</ismrmrdHeader>")]
    second = encoding.replace("<center>16</center>", "<center>5</center>").replace("<maximum>32<", "<maximum>9<")
    calibration = [line(n, samples(n + 11, 2, 3), (CAL,), space=1) for n in range(10)]
    lines = calibration + [line(n, samples(n, 2, 3)) for n in range(0, 33, 4)]
    same = mrd.read_header(xml.replace("</ismrmrdHeader>", second + "</ismrmrdHeader>"))
    result = only(slices(lines, same))
    expected = torch.from_numpy(samples(16, 2, 3).astype(np.complex64))
    torch.testing.assert_close(result.calibration[:, result.calibration.shape[1] // 2], expected)

    other = mrd.read_header(xml.replace("</ismrmrdHeader>", second.replace("<x>26", "<x>30") + "</ismrmrdHeader>"))
    with pytest.raises(UnsupportedScanError, match="encoding space 1"):
        list(slices(lines, other))
    with pytest.raises(UnsupportedScanError, match="encoding space 1"):
        list(slices([line(0, samples(0, 2, 3), space=1)], same))
    with pytest.raises(BadInputError, match="encoding space 2"):
        list(slices([line(0, samples(0, 2, 3), space=2)], same))


def test_calibration_from_the_centre_or_none():
    def scan(calibration):
        return point_scan(1, 1, numbers=sorted({*range(0, 33, 4), *calibration}))

    head = header(acceleration=4)
    assert only(slices(scan(range(13, 21)), head)).calibration.shape[1] == 9  # 12 belongs to the pattern
    assert only(slices(scan(range(14, 18)), head)).calibration is None
    assert only(slices(scan([]), head)).calibration is None


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (range(4, 12), range(4, 12)),  # as the centre of 8 rows lies at index 4
        (range(4, 13), range(4, 13)),
        (range(6, 14), range(6, 11)),
        (range(2, 10), range(6, 10)),
        (range(9, 14), range(0)),
        (range(8, 14), range(8, 9)),
    ],
)
def test_central_block_has_its_centre_in_the_middle(rows, expected):
    block = central_block(rows, 8)
    assert list(block) == list(expected)
    assert not block or block[len(block) // 2] == 8


def test_other_lines_are_ignored():
    kinds = [
        ismrmrd.ACQ_IS_NAVIGATION_DATA,
        ismrmrd.ACQ_IS_RTFEEDBACK_DATA,
        ismrmrd.ACQ_IS_HPFEEDBACK_DATA,
        ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
        ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,
    ]
    lines = [line(5, np.full((3, 26), 1e6), (kind,)) for kind in kinds] + point_scan(3, 4)
    assert_point(only(slices(lines, header())).kspace, 3, 4)
    with pytest.raises(BadInputError, match="no image lines"):
        list(slices(lines[: len(kinds)], header()))


@pytest.mark.parametrize("kind", [ismrmrd.ACQ_IS_PHASECORR_DATA, ismrmrd.ACQ_IS_REVERSE])
def test_lines_that_need_ghost_correction_are_refused(kind):
    with pytest.raises(UnsupportedScanError, match="ghost correction"):
        list(slices([line(5, samples(5, 0, 0), (kind,))], header()))


def test_a_stream_gives_each_slice_as_soon_as_its_last_line_came():
    consumed = []

    def stream():
        for s in (1, 0):
            for acquisition in point_scan(2, 2):
                acquisition.idx.slice = s
                if acquisition.idx.kspace_encode_step_1 == 32:
                    acquisition.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
                consumed.append(s)
                yield acquisition

    result = slices(stream(), header())
    first = next(result)
    assert first.key == SliceKey(1, 0, 0, 0, 0, 0) and len(consumed) == 33
    assert first.header.idx.kspace_encode_step_1 == 16
    assert [item.key.slice for item in result] == [0]


def peak_memory(path, n_slices):
    """Peak of numpy's memory in bytes while a scan with interleaved slices is read; slices given out are released."""
    write_scan(
        path,
        [line(n, samples(n, 1, 1, cols=500), slice=s) for n in range(33) for s in range(n_slices)],
        header_xml(x=500, fov_x=250, recon_x=500, recon_fov_x=250),
    )
    alive = []
    with mrd.open_scan(path) as scan:
        tracemalloc.start()
        for item in slices(scan.acquisitions(), scan.header):
            assert not any(one() for one in alive)  # earlier slices are gone
            alive.append(weakref.ref(item))
            del item
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert len(alive) == n_slices
    return peak


def test_memory_grows_with_a_slice_and_not_with_the_scan(tmp_path):
    short, long = peak_memory(tmp_path / "short.h5", 2), peak_memory(tmp_path / "long.h5", 5)
    one_slice = 33 * 3 * 500 * 8
    assert long < short + 0.5 * one_slice


def test_the_file_is_read_slice_by_slice(tmp_path):
    last = (ismrmrd.ACQ_LAST_IN_SLICE,)
    # every flag wrong: lines interleaved over slices and contrasts, LAST_IN_SLICE on the first line, noise at the end
    lines = [
        line(n, samples(n, 1, 1), last if n == 0 else (), slice=s, contrast=c)
        for n in range(33)
        for s in (1, 0)
        for c in (0, 1)
    ]
    lines += noise_lines(np.random.default_rng(0), n=2, n_samples=26)
    with mrd.open_scan(write_scan(tmp_path / "scan.h5", lines)) as scan:
        read = list(scan.acquisitions())
        assert scan.n_slices == 4
        items = list(slices(scan.acquisitions(), scan.header))
    assert [bool(a.flags & mrd.NOISE) for a in read[:3]] == [True, True, False]
    keys = [(a.idx.contrast, a.idx.slice) for a in read[2:]]
    assert keys == [key for key in [(0, 0), (0, 1), (1, 0), (1, 1)] for _ in range(33)]
    assert [n for n, a in enumerate(read[2:]) if a.flags & mrd.LAST_IN_SLICE] == [32, 65, 98, 131]
    np.testing.assert_array_equal(read[2 + 33 + 7].data, lines[0].data * 0 + samples(7, 1, 1).astype(np.complex64))
    assert [(item.key.contrast, item.key.slice) for item in items] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def limits(minimum, maximum, center):
    return mrd.Limits(minimum, maximum, center)


@pytest.mark.parametrize(
    ("numbers", "bounds", "acceleration", "expected"),
    [
        (range(40), limits(0, 39, 20), 1, (40, 40)),
        (range(20), limits(0, 39, 20), 1, (20, 40)),
        ({*range(3, 40, 4), *range(16, 24)}, limits(0, 39, 20), 4, (10, 10)),
        ({*range(3, 20, 4), *range(16, 20)}, limits(0, 39, 20), 4, (5, 10)),  # half of it
        ({*range(3, 40, 4), *range(16, 24)} - {31}, limits(0, 39, 20), 4, (9, 10)),
        (range(2, 30, 3), limits(0, 29, 8), 3, (10, 10)),  # partial Fourier
        (range(16, 24), limits(0, 39, 20), 4, (2, 10)),  # nothing but calibration
        (range(20), limits(0, 39, 20), 4, (5, 10)),  # half of a full scan that announces R = 4
        (range(40), limits(0, 39, 20), 4, (10, 10)),
        ({*range(18, 23), 1, 4, 7, 11, 30, 36}, limits(0, 39, 20), 4, (11, 10)),  # random
        ({*range(18, 23), 1, 4, 7}, limits(0, 39, 20), 4, (8, 10)),
    ],
)
def test_announced_lines(numbers, bounds, acceleration, expected):
    assert announced_lines(np.array(sorted(numbers)), bounds, acceleration) == expected


def without_parallel_imaging(**options):
    xml = header_xml(**options)
    end = "</parallelImaging>"
    return mrd.read_header(xml[: xml.index("<parallelImaging>")] + xml[xml.index(end) + len(end) :])


def test_acceleration_that_no_header_announces():
    head = without_parallel_imaging()
    assert mrd.acceleration(head) is None

    def scan(numbers):
        return slices(point_scan(1, 1, numbers=sorted(numbers)), head)

    result = only(scan({*range(0, 33, 4), *range(12, 21)}))
    assert (result.acceleration, result.n_lines_needed, result.n_lines_got) == (4, 9, 15)
    assert only(scan(range(33))).acceleration == 1
    for lost in (range(17), range(0, 33, 4), set(range(33)) - {26, 28, 30}, {*range(12, 21), 1, 5, 24, 29, 31}):
        assert "the header announces no R" in reason(scan(lost))
    # a line of the pattern is missing
    text = "incomplete: 8 of the 9 lines came that the limits (0 to 32) give at R = 4, and the header announces no R"
    assert reason(scan({*range(0, 33, 4), *range(12, 21)} - {4})) == text
    # a header that says R = 1 is believed
    numbers = sorted({*range(0, 33, 4), *range(12, 21)})
    assert "R = 1 announce" in reason(slices(point_scan(1, 1, numbers=numbers), header()))


def test_half_a_slice_is_lost_and_the_others_come_out():
    lines = [line(n, samples(n, 1, 1), slice=s) for s in range(3) for n in range(0, 33 if s != 1 else 17, 4)]
    items = list(slices(lines, header(acceleration=4)))
    assert [isinstance(item, LostSlice) for item in items] == [False, True, False]
    assert items[1].reason == "incomplete: 5 of the 9 lines came that the limits (0 to 32) and R = 4 announce"
    assert items[1].key.slice == 1 and items[1].header.idx.slice == 1


def test_what_loses_a_slice():
    good = point_scan(1, 1)

    def with_line(acquisition):
        return [acquisition if a.idx.kspace_encode_step_1 == 20 else a for a in good]

    bad = np.array(samples(20, 1, 1))
    bad[1, 5] = np.nan
    assert reason(slices(with_line(line(20, bad)), header())) == "line 20 holds NaN or infinite values"
    bad[1, 5] = np.inf
    assert "line 20 holds NaN or infinite" in reason(slices(with_line(line(20, bad)), header()))
    two = reason(slices(with_line(line(20, samples(20, 1, 1)[:2])), header()))
    assert "line 20 has 2 channels of 26 samples" in two
    assert "24 samples" in reason(slices(with_line(line(20, samples(20, 1, 1)[:, :24], center=13)), header()))
    assert (
        reason(slices([line(n, np.zeros((3, 26))) for n in range(33)], header())) == "all samples of its lines are zero"
    )

    separate = header(acceleration=4, mode="separate")
    image = point_scan(1, 1, numbers=range(0, 33, 4))
    calibration = [line(n, samples(n, 1, 1), (CAL,)) for n in range(12, 21)]
    assert "only its calibration" in reason(slices(calibration, separate))
    assert "calibration has 2 channels" in reason(
        slices([line(n, samples(n, 1, 1)[:2], (CAL,)) for n in range(12, 21)] + image, separate)
    )
    assert "calibration line 20 holds NaN" in reason(
        slices(calibration[:-1] + [line(20, np.full((3, 26), np.nan), (CAL,))] + image, separate)
    )


def noise_scan(change):
    lines = noise_lines(np.random.default_rng(0), n=8)
    for acquisition in lines:
        change(acquisition.data)
    return lines


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (noise_scan(lambda data: data[1].fill(0)), "singular: channel 1 of 3"),
        (noise_scan(lambda data: data.__setitem__(2, data[0])), "singular: a channel is a combination"),
        (noise_scan(lambda data: data.fill(np.nan)), "noise measurement holds NaN"),
        ([line(0, np.ones((3, 4)), (ismrmrd.ACQ_IS_NOISE_MEASUREMENT,))], "4 samples for 3 channels"),
        ([line(0, np.eye(2, 40), (ismrmrd.ACQ_IS_NOISE_MEASUREMENT,))], "2 channels, the image lines have 3"),
        (
            [line(0, np.ones((n, 40)), (ismrmrd.ACQ_IS_NOISE_MEASUREMENT,)) for n in (3, 2)],
            "noise lines have 3 and 2 channels",
        ),
        ([line(40, samples(0, 0, 0))], "line 40 with centre line 16 lies outside the encoded matrix of 33 lines"),
    ],
)
def test_what_refuses_the_scan(lines, text):
    with pytest.raises(BadInputError, match=text) as caught:
        list(slices(lines + point_scan(1, 1), header()))
    assert "\n" not in str(caught.value)


def test_samples_that_fit_no_grid():
    with pytest.raises(BadInputError, match="60 samples, centre 30"):
        list(slices([line(n, np.ones((3, 60))) for n in range(33)], header()))


@pytest.mark.parametrize("off", [-1, 1])
@pytest.mark.parametrize(("options", "oversampling"), [({}, 1), (OVERSAMPLED, 2), (OVERSAMPLED, 1), ({}, 2)])
def test_a_full_readout_whose_centre_is_one_sample_off(options, oversampling, off):
    lines = point_scan(3, 4, oversampling=oversampling, center_sample=13 * oversampling + off)
    result = only(slices(lines, header(**options)))
    assert bool((result.mask == 1).all())
    assert_point(result.kspace, 3, 4)
    with pytest.raises(BadInputError, match="which fits neither"):
        far = point_scan(3, 4, oversampling=2, center_sample=26 + 2 * off)
        list(slices(far, header(**options)))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the process's memory is read from /proc")
def test_opening_a_scan_keeps_none_of_its_samples(simulated_scan):
    def resident() -> int:
        (line,) = [text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmRSS")]
        return 1024 * int(line.split()[1])

    path = simulated_scan(matrix=(128, 128), n_slices=4, n_coils=16)
    sizes = []
    for _ in range(12):
        with mrd.open_scan(path):
            pass
        sizes.append(resident())
    assert sizes[-1] - sizes[1] < 2 * path.stat().st_size  # of ten that were opened


def test_weak_channels_are_not_singular():
    rng = np.random.default_rng(0)
    noise = noisy(rng, 400, np.diag([1.0, 1e-5, 1.0]))
    matrix = whitening([noise.astype(np.complex64)], 1.0)
    assert float(matrix[1, 1].abs()) == pytest.approx(1e5 / math.sqrt(2), rel=0.1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"z": 8}, "3D .8 partitions"),
        (
            {
                "extra_limits": "<kspace_encoding_step_2><minimum>0</minimum><maximum>15</maximum><center>8</center>"
                "</kspace_encoding_step_2>"
            },
            "3D .16 partitions",
        ),
        ({"trajectory": "<trajectory>radial</trajectory>"}, "trajectory is 'radial'"),
        ({"trajectory": "<trajectory>epi</trajectory>"}, "ghost correction"),
        (
            {
                "parallel": "<multiband><spacing><dZ>1</dZ></spacing><deltaKz>1</deltaKz><multiband_factor>3"
                "</multiband_factor><calibration>full3D</calibration><calibration_encoding>0</calibration_encoding>"
                "</multiband>"
            },
            "multiband .factor 3",
        ),
    ],
)
def test_unsupported_scans_are_refused(options, text):
    with pytest.raises(UnsupportedScanError, match=text):
        list(slices(point_scan(1, 1), header(**options)))


def test_lines_that_belie_the_header_are_refused():
    acquisition = line(3, samples(3, 1, 1))
    acquisition.idx.kspace_encode_step_2 = 2
    with pytest.raises(UnsupportedScanError, match="3D"):
        list(slices([acquisition], header()))
    spiral = ismrmrd.Acquisition.from_array(np.ones((3, 26), np.complex64), np.zeros((26, 2), np.float32))
    with pytest.raises(UnsupportedScanError, match="trajectory"):
        list(slices([spiral], header(trajectory="")))


def test_headers_without_optional_parts_are_read():
    bare = header(trajectory="", measurement="<measurementInformation/>", conditions="")
    assert bare.measurementInformation.patientPosition is None and bare.encoding[0].trajectory is None
    assert mrd.contrast_label(bare) is None and mrd.contrast_label(header(measurement="")) is None
    assert_point(only(slices(point_scan(3, 4), bare)).kspace, 3, 4)
    flat = mrd.read_header(header_xml().replace("<z>1</z>", "").replace("<z>3</z>", ""))
    for space in (flat.encoding[0].encodedSpace, flat.encoding[0].reconSpace):
        assert (space.matrixSize.z, space.fieldOfView_mm.z) == (1, 0.0)
    assert_point(only(slices(point_scan(3, 4), flat)).kspace, 3, 4)
    unknown = mrd.read_header(header_xml().replace("<encoding>", "<vendor><a>1</a></vendor><encoding>"))
    assert mrd.encoded_grid(unknown) == (33, 26)
    xml = header_xml()
    start, end = xml.index("<parallelImaging>"), xml.index("</parallelImaging>")
    plain = mrd.read_header(xml[:start] + xml[end + len("</parallelImaging>") :])
    assert mrd.acceleration(plain) is None and not mrd.calibration_is_separate(plain)
    start, end = xml.index("<encodingLimits>"), xml.index("</encodingLimits>")
    assert mrd.line_limits(mrd.read_header(xml[:start] + xml[end + 17 :])) == mrd.Limits(0, 32, 16)


@pytest.mark.parametrize(
    ("xml", "text"),
    [
        ("", "XML header cannot be read"),
        ("not xml", "XML header cannot be read"),
        (header_xml()[:300], "XML header cannot be read"),
        ("<other/>", "XML header cannot be read|encodedSpace.matrixSize.x as None"),
        (header_xml(x=0), "encodedSpace.matrixSize.x as 0"),
        (header_xml(recon_fov_x="wide"), "reconSpace.fieldOfView_mm.x as wide"),
        (header_xml(z="one"), "encodedSpace.matrixSize.z as one"),
        (header_xml().replace("<z>3<", "<z>thin<"), "encodedSpace.fieldOfView_mm.z as thin"),
        (header_xml().replace("<z>3<", "<z>NaN<"), "encodedSpace.fieldOfView_mm.z as nan"),
        (header_xml(maximum="many"), "kspace_encoding_step_1"),
    ],
)
def test_bad_headers_are_refused(xml, text):
    with pytest.raises(BadInputError, match=text) as caught:
        mrd.read_header(xml)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("T2_FLAIR", "flair"),
        ("t2_tirm_tra_dark-fluid", "flair"),
        ("T1_MPRAGE", "t1"),
        ("t1_mprage_sag_p2", "t1"),
        ("AX T1 FLAIR", "t1"),
        ("T2_TSE", "t2"),
        ("AxT2 FRFSE", "t2"),
        ("DWI_b1000", "dwi"),
        ("ep2d_diff_3scan_trace", "dwi"),
        ("SWI_Images", "swi"),
        ("T2_star", None),
        ("test1", None),
        ("localizer", None),
    ],
)
def test_contrast_label(name, label):
    def measured(element):
        names = f"<{element}>{name}</{element}>"
        return header(measurement=f"<measurementInformation>{names}</measurementInformation>")

    assert mrd.contrast_label(measured("protocolName")) == label
    assert mrd.contrast_label(measured("sequenceName")) == label


def refused(path):
    with pytest.raises(BadInputError) as caught, mrd.open_scan(path) as scan:
        list(slices(scan.acquisitions(), scan.header))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_files_that_are_no_scans(tmp_path):
    assert "does not exist" in refused(tmp_path / "no.h5")
    assert "is a folder" in refused(tmp_path)
    (tmp_path / "empty.h5").write_bytes(b"")
    assert "is empty" in refused(tmp_path / "empty.h5")
    (tmp_path / "text.h5").write_text("k-space\n" * 100)
    assert "not an HDF5 file" in refused(tmp_path / "text.h5")

    scan = write_scan(tmp_path / "scan.h5", point_scan(1, 1))
    cut = tmp_path / "cut.h5"
    cut.write_bytes(scan.read_bytes()[:-4000])
    assert "truncated" in refused(cut)

    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["measurements"] = 1
    assert "this file holds: measurements" in refused(tmp_path / "other.h5")
    with h5py.File(tmp_path / "headless.h5", "w") as file:
        file.create_group("dataset")
    assert "no 'xml' header" in refused(tmp_path / "headless.h5")
    assert "no acquisitions" in refused(write_scan(tmp_path / "lineless.h5", []))
    assert "XML header cannot be read" in refused(write_scan(tmp_path / "xml.h5", point_scan(1, 1), "<a>"))
    with ismrmrd.Dataset(str(tmp_path / "numbers.h5"), "dataset", create_if_needed=True) as dataset:
        dataset.write_xml_header(header_xml().encode())
        dataset._dataset["data"] = np.ones(4)
    assert "of another format" in refused(tmp_path / "numbers.h5")

    with h5py.File(scan, "r+") as file:  # a line that lost half of its samples
        broken = file["dataset/data"][3]
        broken["data"] = broken["data"][:60]
        file["dataset/data"][3] = broken
    assert "line 4 holds 30 samples where its header announces 3 channels of 26" in refused(scan)


def test_reading_leaves_the_file_alone(tmp_path):
    path = write_scan(tmp_path / "scan.h5", point_scan(3, 4))
    before = path.read_bytes()
    path.chmod(0o444)
    with mrd.open_scan(path) as scan:
        assert_point(only(slices(scan.acquisitions(), scan.header)).kspace, 3, 4)
    assert path.read_bytes() == before


@functools.lru_cache(maxsize=2)
def shared_slices(name, first=0):
    with mrd.open_scan(shared(f"ismrmrd/{name}")) as scan:
        scan.groups = scan.groups[first:]
        return scan.header, list(slices(scan.acquisitions(), scan.header))


def test_shared_t1_without_noise_scan():
    head, (item,) = shared_slices("t1_brain_r4.h5")
    assert mrd.contrast_label(head) == "t1"
    assert item.kspace.shape == (8, 180, 230) and item.n_lines_got == 63 and item.mask[:, 0].sum() == 63
    assert item.noise_source == "k-space periphery" and item.calibration.shape[1] >= 24
    truth = torch.from_numpy(np.load(shared("ismrmrd/t1_brain_truth_coil_images.npy")))[0]
    torch.testing.assert_close(item.kspace, to_kspace(truth) * item.mask, rtol=1e-3, atol=1.0)


def test_shared_flair_patterns_and_noise():
    head, embedded = shared_slices("flair_3slices_r4.h5")
    _, separate = shared_slices("flair_3slices_r4_separate_acs.h5")
    assert mrd.contrast_label(head) == "flair"
    assert [item.key.slice for item in embedded] == [item.key.slice for item in separate] == [0, 1, 2]
    for one, other in zip(embedded, separate):
        rows, pattern = one.mask[:, 0], other.mask[:, 0]
        assert rows.sum() == 82 and pattern.sum() == 64 and one.n_lines_needed == other.n_lines_needed == 64
        assert bool((pattern <= rows).all()) and rows[116:140].sum() == 24
        assert other.calibration.shape == (8, 24, 256)
        center = one.calibration.shape[1] // 2
        torch.testing.assert_close(one.calibration[:, center], one.kspace[:, 128])
        # the same signal at the k-space centre, with other noise
        assert (other.calibration[:, 12] - one.kspace[:, 128]).norm() < 0.1 * one.kspace[:, 128].norm()
        assert one.noise_source == "noise scan"
        assert estimated_sigma(one.kspace, one.mask) == pytest.approx(one.sigma_n, rel=0.1)


def test_shared_flair_noise_level_without_its_noise_scan():
    _, (_, _, whitened) = shared_slices("flair_3slices_r4.h5")
    with mrd.open_scan(shared("ismrmrd/flair_3slices_r4.h5")) as scan:
        scan.groups = scan.groups[2:]
        lines = list(scan.acquisitions())
    noise = torch.from_numpy(np.stack([a.data for a in lines if a.flags & mrd.NOISE]))
    item = only(slices((a for a in lines if not a.flags & mrd.NOISE), scan.header))
    assert item.noise_source == "k-space periphery"
    assert item.sigma_n == pytest.approx(float(torch.view_as_real(noise).square().mean().sqrt()), rel=0.1)
    assert not torch.allclose(item.kspace, whitened.kspace)


def test_shared_full_scan_gives_the_truth_upright():
    _, items = shared_slices("flair_3slices_full.h5", first=1)
    truth = torch.from_numpy(np.load(shared("ismrmrd/flair_3slices_truth.npy")))[1:]
    # sum |s|^2 = 1 on the head makes the root sum of squares the SENSE magnitude, up to noise
    images = torch.stack([(to_image(item.kspace).abs().square().sum(0)).sqrt() for item in items])
    noise = 2 * items[0].kspace.shape[0] * items[0].sigma_n ** 2
    images = (images.square() - noise).clamp_min(0).sqrt()

    def error(image):
        factor = (image * truth).sum() / image.square().sum()
        return float((factor * image - truth).norm() / truth.norm())

    flipped = [images.flip(-1), images.flip(-2), images.flip(-1, -2), images.flip(0)]
    assert error(images) < 0.08
    assert all(error(image) > 3 * error(images) for image in flipped)
    assert all(error(images.roll(1, axis)) > 1.5 * error(images) for axis in (-1, -2))
