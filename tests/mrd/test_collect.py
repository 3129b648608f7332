"""From ISMRMRD lines to slices: averages, the order of lines, what loses a slice and what refuses the scan."""

import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.data import LostSlice, SliceKey
from dpmrecon.errors import BadInputError, UnsupportedScanError
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan

from support.hand_made import (
    CAL,
    MIXING,
    OVERSAMPLED,
    assert_point,
    average_limits,
    header,
    header_xml,
    line,
    noise_lines,
    noisy,
    only,
    point_scan,
    reason,
    samples,
    write_scan,
)


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
