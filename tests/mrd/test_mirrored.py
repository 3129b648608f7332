"""Echoes that were read the other way and do not say so are no mirror images."""

import ismrmrd
import numpy as np
import pytest
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.physics.fourier import to_image

TOLD = "its readouts run the other way than those of the first echo and are turned"
KINDS = {
    "slices": {"n_slices": 2, "echoes": 3, "contrast": "swi"},
    "separate calibration": {"echoes": 3, "contrast": "swi", "calibration": "separate"},
    "odd": {"echoes": 3, "contrast": "swi", "matrix": (45, 47)},
    "volume": {"partitions": 14, "echoes": 2, "contrast": "swi"},
}


def magnitudes(data):
    return to_image(data, axes=tuple(range(1, data.ndim))).abs()


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_an_echo_that_was_read_backwards_without_the_flag_is_turned(simulated_scan, settings):
    with open_scan(simulated_scan(**settings)) as scan:
        lines, header = list(scan.acquisitions()), scan.header
    sound = list(slices(lines, header))
    assert not any(TOLD in remark for item in sound for remark in item.remarks)
    for item in lines:
        if item.idx.contrast == 1 and not item.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            item.data[:] = np.roll(item.data[:, ::-1], 1, 1)
    found = list(slices(lines, header))
    for item, expected in zip(found, sound, strict=True):
        assert any(TOLD in remark for remark in item.remarks) == (item.key.contrast == 1)
        one, other = magnitudes(item.kspace), magnitudes(expected.kspace)
        assert (one - other).norm() < 0.06 * other.norm() and item.mask.equal(expected.mask)
        one, other = magnitudes(item.calibration), magnitudes(expected.calibration)
        assert (one - other).norm() < 0.06 * other.norm()


def test_an_echo_that_was_turned_before_and_bears_the_flag_is_turned_back(simulated_scan):
    with open_scan(simulated_scan(n_slices=2, echoes=3, contrast="swi")) as scan:
        lines, header = list(scan.acquisitions()), scan.header
    for item in lines:
        if item.idx.contrast == 1:
            item.set_flag(ismrmrd.ACQ_IS_REVERSE)
    for item in slices(lines, header):
        assert any(TOLD in remark for remark in item.remarks) == (item.key.contrast == 1)


def test_one_channel_that_cannot_tell_is_left_alone(simulated_scan):
    with open_scan(simulated_scan(n_coils=1, echoes=3, acceleration=1, contrast="swi")) as scan:
        found = list(slices(scan.acquisitions(), scan.header))
    assert not any(TOLD in remark for item in found for remark in item.remarks)
