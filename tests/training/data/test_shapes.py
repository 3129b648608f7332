"""Random objects that are no heads: numbers that can be scanned, inside the field of view, and other ones each time."""

import numpy as np
import pytest
from dpmtrain.data import shapes
from dpmtrain.data.shapes import random_shapes


def edge(volume):
    """What is not inside."""
    outside = volume.copy()
    outside[1:-1, 1:-1, 1:-1] = 0
    return outside


@pytest.mark.parametrize("side", [47, 48])
def test_shapes_are_finite_not_negative_and_inside_the_field_of_view(monkeypatch, side):
    monkeypatch.setattr(shapes, "SIDE", side)
    for seed in (1, 3, 5, 7, 9, 10**18 + 1):
        volume, voxel_mm = random_shapes(np.random.default_rng(seed))
        assert volume.shape == (side,) * 3 and volume.dtype == np.float32 and voxel_mm == (2, 2, 2)
        assert np.isfinite(volume).all() and volume.min() == 0 and not edge(volume).any()
        assert 0.05 < (volume > 0.1).mean() < 0.8 and volume.std() > 0.05


def test_shapes_follow_their_seed_alone(monkeypatch):
    monkeypatch.setattr(shapes, "SIDE", 31)
    one, same, other = (random_shapes(np.random.default_rng(seed))[0] for seed in (1, 1, 3))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_their_size_is_that_of_a_coarse_volume():
    volume, voxel_mm = random_shapes(np.random.default_rng(0))
    assert volume.shape == (96, 96, 96) and voxel_mm == (2.0, 2.0, 2.0)
