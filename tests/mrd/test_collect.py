"""From ISMRMRD lines to slices: averages, the order of lines, what loses a slice and what refuses the scan."""

import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.data import ESTIMATED, MEASURED, LostSlice, SliceKey
from dpmrecon.errors import BadInputError, UnsupportedScanError
from dpmrecon.mrd import channel_noise, collect
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.completeness import energy_peak, nearby_centre
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.flags import mask_of
from dpmrecon.mrd.header import Limits
from dpmrecon.mrd.receiving import Receiving
from dpmrecon.mrd.scan_log import ScanLog
from dpmrecon.mrd.settling import NO_NOISE

from support.hand_made import (
    CAL,
    COILS,
    MIXING,
    OVERSAMPLED,
    assert_point,
    average_limits,
    header,
    header_xml,
    limits,
    line,
    noise_lines,
    noisy,
    only,
    point_scan,
    reason,
    samples,
    volume_header,
    volume_scan,
    write_scan,
)


def test_slices_without_an_end_are_refused_once_memory_is_full_of_them(monkeypatch):
    lines = [one for s in range(4) for one in point_scan(2, 1)]
    for place, one in enumerate(lines):
        one.idx.slice = place // 33
    size, seen = lines[0].data.nbytes * 33, []

    def nearly_full(held: float) -> bool:
        seen.append(held)
        return held > 2 * size

    monkeypatch.setattr(collect, "nearly_full_of", nearly_full)
    with pytest.raises(BadInputError, match="full of the lines of 3 slices, none of which ended: flag the last line"):
        list(slices(lines, header()))
    assert seen == [0, size, 2 * size, 3 * size]
    for one in lines[32::33]:
        one.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
    seen.clear()
    assert len(list(slices(lines, header()))) == 4
    assert seen == [0] * 4


def test_averages_apart_and_combined(tmp_path):
    rng = np.random.default_rng(2)
    lines = noise_lines(rng)
    for n in range(33):
        lines += [line(n, samples(n, 2, 1, oversampling=2) + noisy(rng, 52, MIXING), average=a) for a in range(4)]
    limits = "<average><minimum>0</minimum><maximum>3</maximum><center>0</center></average>"
    path = write_scan(tmp_path / "scan.h5", lines, header_xml(extra_limits=limits, **OVERSAMPLED))
    with open_scan(path) as scan:
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


def test_other_lines_are_ignored():
    kinds = [
        ismrmrd.ACQ_IS_NAVIGATION_DATA,
        ismrmrd.ACQ_IS_RTFEEDBACK_DATA,
        ismrmrd.ACQ_IS_HPFEEDBACK_DATA,
        ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
        ismrmrd.ACQ_IS_PHASECORR_DATA,
    ]
    log = ScanLog()
    lines = [line(5, np.full((3, 26), 1e6), (kind,)) for kind in kinds] + point_scan(3, 4)
    assert_point(only(slices(lines, header(), log=log)).kspace, 3, 4)
    assert log.kinds["image"] == 33 and log.kinds["left out: navigation data"] == 1
    assert log.kinds["left out: phase correction"] == log.flags["phasecorr data"] == 1
    with pytest.raises(BadInputError, match="no image lines"):
        list(slices(lines[: len(kinds)], header()))


def test_a_flag_that_every_line_bears_excludes_none_of_them():
    flag = (ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,)
    lines = [line(n, samples(n, 3, 4), flag) for n in range(33)]
    assert_point(only(slices(lines, header())).kspace, 3, 4)
    log = ScanLog()
    others = [line(n, np.full((3, 26), 1e6), flag) for n in range(12, 20)] + point_scan(3, 4)
    assert_point(only(slices(others, header(), log=log)).kspace, 3, 4)
    assert log.remarks == ["8 lines flagged SURFACECOILCORRECTIONSCAN_DATA are left out", NO_NOISE]


def test_which_flags_are_ignored_can_be_chosen():
    flag = (ismrmrd.ACQ_IS_DUMMYSCAN_DATA,)
    lines = [line(n, samples(n, 3, 4), flag) for n in range(33)]
    receiving = Receiving(ignored=mask_of("navigation_data,ACQ_IS_RTFEEDBACK_DATA"))
    assert_point(only(slices(lines, header(), receiving=receiving)).kspace, 3, 4)
    with pytest.raises(BadInputError, match="flag 'NAVIGATOR' is unknown: valid ones are FIRST_IN_ENCODE_STEP1"):
        mask_of("navigator")


def test_lines_read_backwards_are_turned_and_among_others_they_are_epi():
    flag, log = (ismrmrd.ACQ_IS_REVERSE,), ScanLog()
    lines = [line(n, samples(n, 3, 4)[:, ::-1], flag, center=26 - 1 - 13) for n in range(33)]
    assert_point(only(slices(lines, header(), log=log)).kspace, 3, 4)
    assert log.remarks == ["lines that were read backwards are turned (the flag REVERSE)", NO_NOISE]
    with pytest.raises(UnsupportedScanError, match="as EPI has, and the header's trajectory is not 'epi'"):
        list(slices(lines[::2] + point_scan(3, 4)[1::2], header()))


def test_lines_of_zeros_are_no_data():
    acquired = {*range(0, 33, 4), *range(12, 21)}
    lines = [line(n, samples(n, 1, 1) if n in acquired else np.zeros((3, 26))) for n in range(33)]
    for announced in (4, 1):
        log = ScanLog()
        found = only(slices(lines, header(acceleration=announced), log=log))
        assert found.n_lines_got == 15 and found.acceleration == 4
        assert log.kinds["left out: zeros, which are no data"] == 18
    assert found.remarks == ("R = 1 is announced, and lines of zeros among the others tell R = 4",)


@pytest.mark.parametrize("announced", [1, 4])
@pytest.mark.parametrize(("first", "last"), [(4, 28), (0, 24), (8, 32)])
def test_lines_of_zeros_before_and_after_the_others_filled_the_matrix_up(announced, first, last):
    pattern = {*range(0, 33, 4), *range(12, 21)}
    came = range(33) if announced == 1 else sorted(pattern)
    lines = [line(n, samples(n, 1, 1) if first <= n <= last and n in pattern else np.zeros((3, 26))) for n in came]
    found = only(slices(lines, header(acceleration=announced)))
    assert found.acceleration == 4 and found.n_lines_got == found.n_lines_needed + 6
    assert found.remarks[0].startswith(f"lines outside {first} to {last} came as zeros, which are no data: the image")
    rows = np.flatnonzero(found.mask.amax(1).numpy())
    assert (rows[0], rows[-1]) == (first, last)


def test_lines_that_are_missing_beyond_those_of_zeros_are_missed():
    lines = [line(n, samples(n, 1, 1) if n > 7 else np.zeros((3, 26))) for n in range(3, 33)]
    assert "incomplete: 25 of the 33 lines came" in reason(slices(lines, header()))


def test_repeated_lines_with_other_data_are_not_added_up():
    rng = np.random.default_rng(3)
    scan = [peaked(rng, n) for n in range(33)]
    again = [peaked(rng, n) for n in range(33)]
    assert only(slices(scan + again, header())).n_lines_got == 33
    other = [line(20, np.roll(samples(20, 9, 9), 3, 1) * 40 / (1 + abs(20 - 16)))]
    (found,) = slices(scan + other, header())
    assert isinstance(found, LostSlice) and "differ by more than noise (line 20)" in found.reason


@pytest.mark.parametrize("coils", [None, (1, 2)])
@pytest.mark.parametrize("measured", [True, False])
def test_averages_of_much_noise_are_averages(coils, measured):
    rng = np.random.default_rng(4)
    lines = [
        line(n, samples(n, 1, 1, cols=500) + noisy(rng, 500, 3 * MIXING), average=a) for a in (0, 1) for n in range(33)
    ]
    noise = noise_lines(rng, 3) if measured else []
    head = header(x=500, fov_x=250, recon_x=500, recon_fov_x=250)
    found = only(slices(noise + lines, head, combine_averages=True, receiving=Receiving(coils=coils)))
    assert found.n_lines_got == 33 and len(found.kspace) == len(coils or range(3))


def peaked(rng, n):
    """A line of something with a peak in the centre of k-space."""
    noise = 0.3 * (rng.standard_normal((3, 26)) + 1j * rng.standard_normal((3, 26)))
    return line(n, samples(n, 1, 1) * 40 / (1 + abs(n - 16)) + noise)


def test_lines_at_several_positions_are_several_slices():
    lines = point_scan(1, 1) + point_scan(1, 1)
    for acquisition in lines[33:]:
        acquisition.position[2] = 5.0
    with pytest.raises(BadInputError, match="lines of slice 0 lie at 2 positions"):
        list(slices(lines, header()))
    for first, second in ((lines[:33], lines[33:]),):  # a stream that ends each
        first[-1].set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
        with pytest.raises(BadInputError, match="lie at 2 positions"):
            list(slices(first + second, header()))
    moved = point_scan(1, 1)  # the scanner follows the head: no line comes twice
    for acquisition in moved[20:]:
        acquisition.position[2] = 0.6
    log = ScanLog()
    assert_point(only(slices(moved, header(), log=log)).kspace, 1, 1)
    assert log.remarks[0].startswith("lines of one slice lie at several positions")


def test_a_slice_lies_where_its_own_lines_do():
    """Calibration lines in the centre, at another place: the image's lines leave the centre out."""
    heads, log = {}, ScanLog()
    lines = [line(n, samples(n, 1, 2)) for n in range(0, 33, 3)]
    lines += [line(n, samples(n, 1, 2), (CAL,)) for n in range(10, 24) if n % 3]
    for acquisition in lines:
        acquisition.position[2] = 0 if acquisition.is_flag_set(CAL) else 7.0
        acquisition.acquisition_time_stamp = acquisition.idx.kspace_encode_step_1
    (found,) = slices(lines, header(acceleration=3), heads, log=log)
    assert heads[found.key].position == (0, 0, 7.0)
    assert heads[found.key].acquisition_time_stamp == 16  # the centre's
    assert any("elsewhere than their slice" in remark for remark in log.remarks)
    for acquisition in lines:
        acquisition.position[2] = 7.0
    log = ScanLog()
    list(slices(lines, header(acceleration=3), log=log))
    assert not any("elsewhere" in remark for remark in log.remarks)


def of_gains(gains, noise, measured=False):
    """A wide peak in 129 lines of 128 samples, whose channels have these gains, with a noise measurement or without."""
    rng, fall = np.random.default_rng(6), np.hypot((np.arange(129) - 64)[:, None] / 64, (np.arange(128) - 64) / 64)
    lines = [
        line(
            n, gains[:, None] * (COILS[:, None] * 4000 * np.exp(-6 * fall[n] ** 2) + noise * noisy(rng, 128, np.eye(3)))
        )
        for n in range(129)
    ]
    alone = [gains[:, None] * noise * noisy(rng, 128, np.eye(3)) for _ in range(32 if measured else 0)]
    return [line(0, one, (ismrmrd.ACQ_IS_NOISE_MEASUREMENT,)) for one in alone] + lines


@pytest.mark.parametrize("measured", [False, True])
def test_a_loud_channel_is_scaled_to_the_others_where_no_noise_is_measured(measured, monkeypatch):
    """Where the readouts hold the head everywhere, so that only the corners of k-space tell."""
    monkeypatch.setattr(channel_noise, "quiet_covariance", lambda lines: None)
    head = header(rows=129, x=128, recon_x=128, fov_x=130.0)
    usual, loud = (only(slices(of_gains(np.array([1, gain, 1]), 40.0, measured), head)) for gain in (1.0, 10.0))
    assert not any("times as loud" in remark for remark in usual.remarks)
    assert any("channel 1 is" in remark and "times as loud" in remark for remark in loud.remarks) != measured
    size = [part.kspace.abs().square().mean((1, 2)).sqrt() for part in (usual, loud)]
    assert float(size[1][1] / size[0][1]) == pytest.approx(1.0, rel=1e-3 if measured else 0.2)
    assert loud.sigma_n == pytest.approx(usual.sigma_n, rel=1e-3 if measured else 0.2)


@pytest.mark.parametrize("mixing", [MIXING, np.diag([1, 10, 1])], ids=["correlated", "loud"])
def test_channels_are_whitened_by_what_lies_beside_the_head_where_no_noise_is_measured(mixing):
    rng, log, fall = np.random.default_rng(6), ScanLog(), np.hypot(*(np.indices((129, 128)) - 64) / 64)
    lines = [
        line(n, mixing @ (COILS[:, None] * 4000 * np.exp(-60 * fall[n] ** 2) + 9 * noisy(rng, 128, np.eye(3))))
        for n in range(129)
    ]
    found = only(slices(lines, header(rows=129, x=128, recon_x=128, fov_x=130.0), log=log))
    noise = found.kspace[:, :20].flatten(1)
    covariance = noise @ noise.mH / noise.shape[1]
    power = covariance.diagonal().real.mean()
    torch.testing.assert_close(covariance / power, torch.eye(3, dtype=covariance.dtype), rtol=0, atol=0.15)
    assert found.sigma_n**2 == pytest.approx(float(power) / 2, rel=0.1)
    assert sum("they are whitened by that" in remark for remark in log.remarks) == 1


def spiked(noise):
    noise[0][1, 40] = 900


@pytest.mark.parametrize(
    ("mixing", "spoil"),
    [(np.eye(3)[[2, 0, 1]] @ MIXING, None), (np.diag([1, 2, 1]) @ MIXING, None), (MIXING, spiked), (MIXING, None)],
    ids=["another order", "another gain", "spike", "sound"],
)
def test_a_noise_measurement_that_is_not_that_of_the_scan_is_left_out(mixing, spoil):
    """mixing: of the image lines' channels, where that of the noise lines is MIXING."""
    rng, log, fall = np.random.default_rng(6), ScanLog(), np.hypot(*(np.indices((129, 128)) - 64) / 64)
    noise = [9 * noisy(rng, 128, MIXING) for _ in range(16)]
    if spoil is not None:
        spoil(noise)
    lines = [line(0, one, (ismrmrd.ACQ_IS_NOISE_MEASUREMENT,)) for one in noise]
    lines += [
        line(n, COILS[:, None] * 4000 * np.exp(-60 * fall[n] ** 2) + 9 * noisy(rng, 128, mixing)) for n in range(129)
    ]
    found = only(slices(lines, header(rows=129, x=128, recon_x=128, fov_x=130.0), log=log))
    noise = found.kspace[:, :20].flatten(1)
    covariance = noise @ noise.mH / noise.shape[1] / (2 * found.sigma_n**2)
    torch.testing.assert_close(covariance, torch.eye(3, dtype=covariance.dtype), rtol=0, atol=0.15)
    sound = spoil is None and mixing is MIXING
    assert sum("noise measurement is left out" in remark for remark in log.remarks) == 1 - sound
    assert found.noise_source == (MEASURED if sound else ESTIMATED)


def test_channels_that_are_alike_are_left_as_they_are():
    log, head = ScanLog(), header(rows=129, x=128, recon_x=128, fov_x=130.0)
    lines = of_gains(np.ones(3), 40.0)
    found = only(slices(lines, head, log=log))
    torch.testing.assert_close(found.kspace[:, 5], torch.from_numpy(lines[5].data), rtol=1e-5, atol=1e-2)
    assert log.remarks == [NO_NOISE]


def test_channels_without_noise_are_left_as_they_are():
    """Their levels are those of the signal."""
    head = header(rows=129, x=128, recon_x=128, fov_x=130.0)
    found = only(slices(of_gains(np.array([1, 10, 1]), 1e-3), head))
    assert not any("times as loud" in remark for remark in found.remarks)
    assert found.kspace[1].abs().sum() > 5 * found.kspace[0].abs().sum()


@pytest.mark.parametrize("axis", ["lines", "samples of a line", None])
def test_signs_that_alternate_are_said(axis):
    """A wide object in the middle, and what alternating signs make of it."""
    rows, cols = np.indices((33, 26)) - np.array([16, 13])[:, None, None]
    inside = (np.square(rows / 11) + np.square(cols / 8) < 1) * (1 + 0.2 * (rows > 3))
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(inside)))
    if axis is not None:
        kspace = kspace * (-1.0) ** (rows if axis == "lines" else cols)
    lines = [line(n, np.array([1, 0.5j, -0.3])[:, None] * kspace[n]) for n in range(33)]
    said = [remark for remark in only(slices(lines, header())).remarks if "signs alternate" in remark]
    assert [axis in remark for remark in said] == [True] * (axis is not None)


@pytest.mark.parametrize("told", [True, False])
def test_slabs_and_partitions_may_be_counted_from_1(told):
    places = [(partition, n) for partition in range(13) for n in range(33)]
    lines = volume_scan(2, 3, 4, places)
    wanted = only(slices(volume_scan(2, 3, 4, places), volume_header()))
    for item in lines:
        item.idx.slice = 1
    own = {"extra_limits": limits("slice", 1, minimum=1)} if told else {}
    assert only(slices(lines, volume_header(**own))).kspace.equal(wanted.kspace)
    lines[-1].idx.slice = 2
    with pytest.raises(UnsupportedScanError, match="several slabs .lines of slabs 1 and 2"):
        list(slices(lines, volume_header(**own)))
    flat = point_scan(3, 4)
    for item in flat:
        item.idx.kspace_encode_step_2 = 1
    own = {"extra_limits": limits("kspace_encoding_step_2", 1, minimum=1)} if told else {}
    assert_point(only(slices(flat, header(**own))).kspace, 3, 4)
    flat[-1].idx.kspace_encode_step_2 = 0
    with pytest.raises(BadInputError, match="announces a 2D scan"):
        list(slices(flat, header(**own)))


def test_lines_may_be_counted_from_the_centre_on():
    """MRD's counters have no sign."""
    lines = point_scan(3, 4)
    for item in lines:
        item.idx.kspace_encode_step_1 = (item.idx.kspace_encode_step_1 - 16) % 2**16
    assert_point(only(slices(lines, header(minimum=-16, maximum=16, center=0))).kspace, 3, 4)


@pytest.mark.parametrize("told", [True, False])
def test_averages_may_be_counted_from_1(tmp_path, told):
    lines = point_scan(3, 4)
    for item in lines:
        item.idx.average = 1
    xml = header_xml(extra_limits=limits("average", 1, minimum=1) if told else average_limits(0))
    with open_scan(write_scan(tmp_path / "scan.h5", lines, xml)) as scan:
        assert only(slices(scan.acquisitions(), scan.header)).key.average == 1 and not scan.log.remarks


@pytest.mark.parametrize("counter", ["set", "repetition"])
def test_calibration_lines_of_another_counter_are_a_separate_calibration(tmp_path, counter):
    lines = point_scan(3, 4, range(1, 33, 3)) + point_scan(3, 4, range(10, 24))
    for item in lines[11:]:
        item.set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        setattr(item.idx, counter, 1)
    xml = header_xml(acceleration=3, extra_limits=limits(counter, 1))
    with open_scan(write_scan(tmp_path / "scan.h5", lines, xml)) as scan:
        found = only(slices(scan.acquisitions(), scan.header, log=scan.log))
        assert found.calibration.shape[1] == 13 and int(found.mask[:, 0].sum()) == 11
        assert any("taken as a separate calibration" in remark for remark in scan.log.remarks)


@pytest.mark.parametrize(
    ("numbers", "acceleration", "told"),
    [
        (range(10, 33), 1, "kspace_encoding_step_1.minimum=10"),
        (range(24), 1, None),  # the end may be missing
        ([*range(0, 12, 2), *range(12, 22), *range(22, 33, 2)], 1, "accelerationFactor.kspace_encoding_step_1=2"),
        ([*range(12), *range(14, 33)], 1, None),
    ],
)
def test_an_incomplete_slice_tells_what_would_mend_its_header(numbers, acceleration, told):
    (lost,) = slices(point_scan(3, 4, numbers), header(acceleration=acceleration))
    assert "incomplete" in lost.reason and ((told in lost.reason) if told else ("--set" not in lost.reason))


def test_an_acceleration_of_0_is_none():
    numbers = [*range(0, 12, 2), *range(12, 22), *range(22, 33, 2)]
    assert only(slices(point_scan(3, 4, numbers), header(acceleration=0))).acceleration == 2


@pytest.mark.parametrize("sign", [1, -1])
def test_signs_that_alternate_along_the_partitions_of_a_full_slab_are_said(sign):
    """A head that grows from its first partition to the last: no partition is empty."""
    grid = np.indices((14, 33, 26)) - np.array([7, 16, 13])[:, None, None, None]
    width = 0.6 + 0.03 * grid[0]
    inside = np.square(grid[1] / 14) + np.square(grid[2] / 11) < np.square(width)
    kspace = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(inside)))
    lines = [
        line(
            n,
            sign**partition * np.array([1, 0.5j, -0.3])[:, None] * kspace[partition, n],
            kspace_encode_step_2=partition,
        )
        for partition in range(14)
        for n in range(33)
    ]
    said = [remark for remark in only(slices(lines, volume_header(14))).remarks if "along the partitions" in remark]
    assert len(said) == (sign == -1)


@pytest.mark.parametrize("sign", [1, -1])
def test_signs_of_a_separate_calibration_that_alternate_are_said(sign):
    """The lines of an image at R = 3 tell nothing along them."""
    rows, cols = np.indices((33, 26)) - np.array([16, 13])[:, None, None]
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(np.square(rows / 11) + np.square(cols / 8) < 1)))
    data = np.array([1, 0.5j, -0.3])[:, None, None] * kspace
    lines = [line(n, sign**n * data[:, n], (CAL,)) for n in range(10, 24)]
    lines += [line(n, data[:, n]) for n in range(1, 33, 3)]
    found = only(slices(lines, header(acceleration=3, mode="separate")))
    said = [remark for remark in found.remarks if "of its calibration along the lines" in remark]
    assert len(said) == (sign == -1)


def test_copies_of_lines_are_no_averages():
    rng = np.random.default_rng(8)
    lines = [peaked(rng, n) for n in range(33)]
    log = ScanLog()
    once, twice = only(slices(lines, header())), only(slices(lines + lines, header(), log=log))
    assert twice.sigma_n == once.sigma_n and torch.equal(twice.kspace, once.kspace)
    assert any("bit by bit" in remark for remark in log.remarks)


def test_the_centre_of_a_small_matrix_is_put_right_within_fewer_lines():
    energies = {number: 1000 / (1 + (number - 8) ** 2) for number in range(16)}
    assert energy_peak(energies, Limits(0, 15, 4)) == 8
    assert energy_peak(energies, Limits(0, 15, 7)) is None


@pytest.mark.parametrize(
    ("announced", "numbers", "told", "found"),
    [
        (64, range(128), None, None),
        (64, range(128), 62, None),  # no account of the centre: the header is as near
        (66, range(128), None, 64),  # which the matrix tells, and none but it
        (58, range(128), None, 64),
        (69, range(24, 128), None, 65),  # the first lines are missing: both centres fit the matrix
        (67, range(24, 128), None, None),
        (68, range(24, 128), 64, 64),
        (68, range(24, 128), 90, None),
        (66, range(-4, 132), None, None),  # more lines than the matrix has, wherever its centre is
    ],
)
def test_a_centre_nearby_is_believed_where_another_account_agrees_with_the_peak(announced, numbers, told, found):
    energies = {number: 1000 / (1 + (number - 65) ** 2) for number in numbers}
    assert energy_peak(energies, Limits(0, 127, announced)) is None
    assert nearby_centre(energies, Limits(0, 127, announced), told, 128) == found


@pytest.mark.parametrize("first", [False, True])
def test_one_line_of_another_length_is_left_out_where_the_others_are_whole(first):
    whole, cut = point_scan(1, 2), [line(n, samples(n, 1, 2)[:, :9], center=4) for n in (32, 33)]

    def beside(odd, lines):
        return slices([*odd, *lines] if first else [*lines, *odd], header())

    right, found = (only(beside(odd, whole)) for odd in ([], cut[:1]))
    assert torch.equal(found.kspace, right.kspace) and right.remarks == ()
    assert found.remarks[0].endswith("the others have 3 channels of 26 samples, centre 13: it is left out")
    told = reason(beside(cut[:1], whole[:-1]))
    assert told.startswith("incomplete: 32 of the 33 lines") and "line 32 has 3 channels of 9 samples" in told
    assert reason(beside(cut, whole)).startswith("its lines differ: line 32 has")


@pytest.mark.parametrize("flags", [(CAL,), ()])
def test_an_odd_line_before_embedded_calibration_is_left_out(flags):
    """It is flagged as calibration, alone there or not, or as a line of the image."""
    numbers = sorted({*range(0, 33, 4), *range(12, 21)})
    odd = line(10, samples(10, 1, 2)[:, :9], flags, center=4)
    for flag in ((CAL,), ()):
        lines = [line(n, samples(n, 1, 2), flag if n % 4 else ()) for n in numbers]
        right, found = (only(slices(given, header(acceleration=4))) for given in (lines, [odd, *lines]))
        assert torch.equal(found.kspace, right.kspace) and len(found.remarks) == 1


@pytest.mark.parametrize("odd", [{"center": 4}, {"pre": 2}])
def test_an_odd_line_that_comes_first_in_a_volume_is_left_out(odd):
    lines = volume_scan(1, 2, 3, [(z, n) for z in range(13) for n in range(33)])
    first = line(5, samples(5, 2, 3), **odd)
    right, found = (only(slices(given, volume_header())) for given in (lines, [first, *lines]))
    assert torch.equal(found.kspace, right.kspace) and len(found.remarks) == 1


AXIAL = {"read_dir": (1, 0, 0), "phase_dir": (0, 1, 0), "slice_dir": (0, 0, 1)}
SAGITTAL = {"read_dir": (0, 0, -1), "phase_dir": (0, 1, 0), "slice_dir": (1, 0, 0)}


def stack_of(*places, directions=(AXIAL,)):
    """Lines of slices at these z in mm; directions: of them, in turn."""
    found = []
    for number, place in enumerate(places):
        for acquisition in point_scan(1, 1):
            acquisition.idx.slice, acquisition.position[:] = number, (2.0, 0.0, place)
            for name, values in directions[number % len(directions)].items():
                getattr(acquisition, name)[:] = values
            found.append(acquisition)
    return found


@pytest.mark.parametrize(
    ("places", "directions", "told"),
    [
        ((0.0, 5.0, 10.0), (AXIAL,), None),
        ((0.0, 3.2, 1.6), (AXIAL,), None),  # they overlap: each is 3 mm thick
        (
            (0.0, 3.0, 1.5),
            (AXIAL,),
            "the header makes slices 3 mm thick and they lie 1.5 mm apart: unless they overlap",
        ),
        ((7.0, 7.0), (AXIAL, SAGITTAL), None),  # planes through one point
        ((7.0, 12.0, 7.0), (AXIAL,), "slices 0 and 2 lie 0 mm apart and are 3 mm thick, 2 slices share"),
        ((0.0, 0.005, 0.011), (AXIAL,), "slices 0 and 1 lie 0.005 mm apart and are 3 mm thick, 3 slices share"),
    ],
)
def test_slices_that_share_a_place_or_are_too_thick_are_told(places, directions, told):
    log = ScanLog()
    assert len(list(slices(stack_of(*places, directions=directions), header(), log=log))) == len(places)
    found = [remark for remark in log.remarks if "thick" in remark]
    assert len(found) == (told is not None) and all(remark.startswith(told) for remark in found)


def test_the_thickness_of_a_stack_of_many_slices_is_told():
    head, log = header(), ScanLog()
    head.encoding[0].reconSpace.fieldOfView_mm.z = 60.0
    list(slices(stack_of(*range(0, 60, 5)), head, log=log))
    (told,) = (remark for remark in log.remarks if "thick" in remark)
    assert told.startswith("the header makes slices 60 mm thick and they lie 5 mm apart")


def test_a_centre_that_the_lines_contradict_is_put_right():
    rng = np.random.default_rng(5)
    partial = [peaked(rng, n) for n in range(8, 33)]  # the first eight were not acquired, and are not counted
    for acquisition in partial:
        acquisition.idx.kspace_encode_step_1 -= 8
    right = header(extra_limits="").encoding[0]
    head = header()
    head.encoding[0].encodingLimits.kspace_encoding_step_1.maximum = 24
    wrong = only(slices(partial, head))
    assert any("the header's centre line 16 is not the k-space centre: line 8 is taken" in r for r in wrong.remarks)
    assert wrong.mask[:, 0].nonzero().flatten().tolist() == list(range(8, 33))
    assert right is not None


def test_lines_beyond_the_matrix_are_left_out():
    lines = point_scan(1, 1) + [line(40, 5 * samples(0, 0, 0))]
    found = only(slices(lines, header()))
    assert_point(found.kspace, 1, 1)
    assert found.remarks == ("1 lines outside the encoded matrix of 33 lines are left out",)


def test_lines_of_another_receiver_are_left_out():
    body = [line(n, samples(n, 2, 2)[:2]) for n in range(10, 20)]
    log = ScanLog()
    assert_point(only(slices(body + point_scan(3, 4), header(), log=log)).kspace, 3, 4)
    assert log.remarks == ["10 lines of 2 channels are left out: the image's have 3", NO_NOISE]


def test_combined_channels_whose_header_has_those_before_are_told_so():
    system = "<acquisitionSystemInformation><receiverChannels>{}</receiverChannels></acquisitionSystemInformation>"
    scan = {number: header(measurement=system.format(number)) for number in (3, 8)}
    with pytest.raises(BadInputError, match="have 3 channels or fewer, and .* have 8: .* --set .*receiverChannels=3"):
        list(slices(point_scan(3, 4), scan[8]))
    assert_point(only(slices(point_scan(3, 4), scan[3])).kspace, 3, 4)


def test_a_dead_channel_is_left_out():
    lines = point_scan(3, 4)
    for acquisition in lines:
        acquisition.data[1] = 0
    found = only(slices(lines, header()))
    assert len(found.kspace) == 2 and found.remarks == ("channel 1 of 3 is dead and left out",)
    deaf = noise_scan(lambda data: data[1].fill(0))
    found = only(slices(deaf + point_scan(3, 4), header()))
    assert len(found.kspace) == 2 and found.noise_source == "noise scan"
    found = only(slices(point_scan(3, 4), header(), receiving=Receiving(coils=(0, 2))))
    assert len(found.kspace) == 2 and found.remarks == ()
    (lost,) = slices(lines, header(), receiving=Receiving(coils=(1,)))
    assert isinstance(lost, LostSlice) and lost.reason == "the coils that are asked for (1) are dead"
    with pytest.raises(BadInputError, match="coils .* are asked for and the scan has 3"):
        list(slices(point_scan(3, 4), header(), receiving=Receiving(coils=(0, 7))))


def test_conjugated_data_are_those_of_the_other_transform():
    lines = point_scan(3, 4)
    for acquisition in lines:
        acquisition.data[:] = acquisition.data.conj()
    assert_point(only(slices(lines, header(), receiving=Receiving(conjugate=True))).kspace, 3, 4)


def test_what_is_announced_and_never_came_is_named():
    head = header(extra_limits="<slice><minimum>0</minimum><maximum>2</maximum><center>0</center></slice>")
    found = list(slices(point_scan(1, 1), head))
    assert [item.key.slice for item in found] == [0, 1, 2]
    assert all(item.reason == "it is announced and none of its lines came" for item in found[1:])


def test_limits_that_mean_nothing_are_refused():
    limits = "".join(
        f"<{n}><minimum>0</minimum><maximum>65535</maximum><center>0</center></{n}>" for n in ("repetition", "set")
    )
    with pytest.raises(BadInputError, match="the header's limits announce 4294967296 slices"):
        list(slices(point_scan(1, 1), header(extra_limits=limits)))


def test_a_stream_gives_each_slice_as_soon_as_its_last_line_came():
    consumed = []

    def stream():
        for s in (1, 0):
            for acquisition in point_scan(2, 2):
                acquisition.idx.slice = s
                acquisition.acquisition_time_stamp = acquisition.idx.kspace_encode_step_1
                if acquisition.idx.kspace_encode_step_1 == 32:
                    acquisition.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
                consumed.append(s)
                yield acquisition

    heads = {}
    result = slices(stream(), header(), heads)
    first = next(result)
    assert first.key == SliceKey(1, 0, 0, 0, 0, 0) and len(consumed) == 33
    assert heads[first.key].acquisition_time_stamp == 16  # of the line nearest the k-space centre
    assert [item.key.slice for item in result] == [0]


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
    assert "incomplete: 32 of the 33 lines came" in two
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
        (noise_scan(lambda data: data.__setitem__(2, data[0])), "singular: a channel is a combination"),
        (noise_scan(lambda data: data.fill(np.nan)), "noise measurement holds NaN"),
        ([line(0, np.ones((3, 4)), (ismrmrd.ACQ_IS_NOISE_MEASUREMENT,))], "4 samples for 3 channels"),
    ],
)
def test_what_refuses_the_scan(lines, text):
    with pytest.raises(BadInputError, match=text) as caught:
        list(slices(lines + point_scan(1, 1), header()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"z": 9, "extra_limits": limits("slice", 1)}, "3D with 2 slabs"),
        ({"z": 9, "mode": "interleaved"}, "interleaved calibration"),
        ({"trajectory": "<trajectory>radial</trajectory>"}, "trajectory is 'radial'"),
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
    with pytest.raises(BadInputError, match="announces a 2D scan"):
        list(slices([acquisition], header()))
    with pytest.raises(BadInputError, match="16 partitions and its matrixSize.z is 1"):
        list(slices([acquisition], header(extra_limits=limits("kspace_encoding_step_2", 15))))
    other = line(3, samples(3, 1, 1), slice=1)
    with pytest.raises(UnsupportedScanError, match="several slabs"):
        list(slices([acquisition, other], header(z=9)))
    spiral = ismrmrd.Acquisition.from_array(np.ones((3, 26), np.complex64), np.zeros((26, 2), np.float32))
    with pytest.raises(UnsupportedScanError, match="trajectory"):
        list(slices([spiral], header(trajectory="")))
