"""What lines turn out to be, before k-space is made of them: channels that see nothing, receivers that are clipped."""

import ismrmrd
import numpy as np
import pytest
from dpmrecon.mrd.collect import settled, slices
from dpmrecon.mrd.receiving import Receiving
from dpmrecon.mrd.scan_log import ScanLog

from support.hand_made import header, line, noise_lines, noisy, only, samples

MIXING = np.eye(3)
NUMBERS = range(33)


def noise(rng, scale=1.0):
    flags = (ismrmrd.ACQ_IS_NOISE_MEASUREMENT,)
    return [line(0, scale * noisy(rng, 26, MIXING), flags) for _ in range(64)]


def scan(rng, blind=(), signal=9.0, dwell=5.0):
    """A point of some size, whose blind channels hold noise alone."""
    lines = []
    for number in NUMBERS:
        data = signal * samples(number, 2, -3) * np.exp(-(((number - 16) / 4) ** 2))
        data[list(blind)] = 0
        lines.append(line(number, data + noisy(rng, 26, MIXING), dwell=dwell))
    return lines


@pytest.mark.parametrize(
    "blind, told", [((), None), ((1,), "channel 1 holds noise alone"), ((0, 1, 2), "every channel holds noise alone")]
)
def test_channels_that_hold_noise_alone_are_told(blind, told):
    rng = np.random.default_rng(0)
    item = only(slices([*noise(rng), *scan(rng, blind)], header()))
    assert len(item.remarks) == (told is not None)
    assert told is None or item.remarks[0].startswith(told)


def test_the_noise_counts_in_the_image_lines_bandwidth():
    """Noise of a quarter of the dwell time has four times the variance."""
    rng = np.random.default_rng(1)
    measured = noise(rng, 2.0)
    for one in measured:
        one.sample_time_us = 1.25
    (found,) = settled([*measured, *scan(rng, (2,))], header(), {}, Receiving(), ScanLog())
    assert found.levels[2] == pytest.approx(1, abs=0.3) and found.levels[0] > 4
    without = settled(scan(rng, (2,)), header(), {}, Receiving(), ScanLog())
    assert next(iter(without)).found.remarks == ()


@pytest.mark.parametrize("end", ["first", "last", None])
def test_what_lies_where_an_asymmetric_echo_was_filled_up_is_no_data(end):
    """Oversampling that is removed afterwards leaves something of the other samples there, but less than noise."""
    rng = np.random.default_rng(4)
    lines = scan(rng)
    lacking = {"first": slice(0, 6), "last": slice(-6, None), None: slice(0, 0)}[end]
    for one in lines:
        one.data[:, lacking] *= 0.3
    log = ScanLog()
    item = only(slices([*noise(rng), *lines], header(), log=log))
    assert any(f"the {end} 6 samples" in remark for remark in item.remarks) == (end is not None)
    left = {"first": range(8, 26), "last": range(18), None: range(26)}[end]
    assert item.mask[0].nonzero().squeeze(1).tolist() == list(left)


@pytest.mark.parametrize("limit", [0.3, 0.6, None])
def test_a_receiver_that_is_clipped_is_told(limit):
    rng = np.random.default_rng(2)
    lines = scan(rng, signal=40.0)
    if limit is not None:
        largest = limit * max(np.abs(one.data[1].view(np.float32)).max() for one in lines)
        for one in lines:
            one.data[1] = np.clip(one.data[1].view(np.float32), -largest, largest).view(np.complex64)
    remarks = only(slices([*noise(rng), *lines], header())).remarks
    assert [text.split(":")[0] for text in remarks] == ([] if limit is None else ["channel 1 is clipped"])


def test_values_of_one_size_are_not_clipped():
    lines = [line(number, samples(number, 0, 0)) for number in NUMBERS]
    assert only(slices([*noise_lines(np.random.default_rng(3), 1e-3), *lines], header())).remarks == ()
