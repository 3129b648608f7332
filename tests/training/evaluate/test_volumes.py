"""What volumes are judged by."""

import numpy as np
import pytest
from dpmtrain.evaluate.metrics import high_band_energy


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_high_band_counts_waves_of_the_upper_third_along_its_axis(axis):
    n = 12

    def wave(cycles):
        shape = [1, 1, 1]
        shape[axis] = n
        return np.broadcast_to(np.cos(2 * np.pi * cycles * np.arange(n) / n).reshape(shape), (n, n, n))

    head = np.zeros((n, n, n), bool)
    head[2:9, 1:, 3:10] = True
    truth = wave(5) + wave(2)  # k_max is 6: beyond 4 lies the first alone
    assert high_band_energy(0.5 * wave(5) + 3 * wave(3), truth, head, axis) == pytest.approx(0.25)
    for other in {0, 1, 2} - {axis}:  # along which the volume is constant
        assert high_band_energy(truth + wave(5), truth + 0, head, axis) == pytest.approx(4)
        assert np.abs(np.diff(truth, axis=other)).max() == 0
