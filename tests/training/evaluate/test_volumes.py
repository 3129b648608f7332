"""What volumes are judged by: metrics on known volumes, correlated noise, total variation across planes."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from dpmtrain.evaluate.metrics import high_band_energy, neighbour_nrmse
from dpmtrain.evaluate.volume_schemes import CorrelatedNoise, SmoothAcross, smooth_across


def test_slices_of_wrong_brightness_show_between_neighbours_of_their_axis_alone():
    truth = np.random.default_rng(0).random((6, 5, 7), np.float32)
    striped = truth * (1 + 0.1 * np.array([1, -1] * 3, np.float32))[:, None, None]
    wanted = np.linalg.norm(np.diff(striped - truth, axis=0)) / np.linalg.norm(np.diff(truth, axis=0))
    assert neighbour_nrmse(striped, truth, 0) == pytest.approx(wanted, rel=1e-5)
    # along the others each plane has one factor: its differences are wrong by a tenth
    assert neighbour_nrmse(striped, truth, 1) == pytest.approx(0.1, rel=1e-4)
    assert neighbour_nrmse(striped, truth, 2) == pytest.approx(0.1, rel=1e-4)
    assert neighbour_nrmse(truth, truth, 0) == 0


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


def test_correlated_noise_has_the_stated_covariance_along_the_planes_of_its_step():
    noise = CorrelatedNoise([3, 4], axes=(2, 0), correlation=0.6)
    for axis in (2, 0, 2):
        drawn = noise.draw(41, 43, 37)
        assert drawn.shape == (2, 41, 43, 37) and drawn.dtype == torch.complex64
        planes = drawn.movedim(axis + 1, 0)
        parts = torch.view_as_real(planes)
        # 2 x 60,000 numbers of each channel, of which neighbours share a part
        assert parts.var((0, 1, 2, 3)).sqrt().tolist() == pytest.approx([1, 1], abs=0.02)
        for distance in (1, 2):
            product = (parts[distance:] * parts[:-distance]).mean().item()
            assert product == pytest.approx(0.6**distance, abs=0.02)
        for other in {1, 2, 3} - {axis + 1}:
            moved = torch.view_as_real(drawn.movedim(other, 0))
            assert (moved[1:] * moved[:-1]).mean().item() == pytest.approx(0, abs=0.02)


def test_total_variation_across_planes_against_exact_solutions():
    """A step of height h between m and n planes: the plateaus come nearer by weight/m and weight/n, or meet in the
    mean; pixels have nothing to do with each other."""
    phase = complex(math.cos(0.7), math.sin(0.7))
    column = torch.tensor([1.0, 1, 1, 3, 3], dtype=torch.complex64) * phase
    planes = torch.stack([column, 5 * torch.ones(5) * phase, column * 0.01], 1).view(5, 1, 3).to(torch.complex64)
    found = smooth_across(planes, 0.6, steps=400)
    wanted = torch.tensor([1.2, 1.2, 1.2, 2.7, 2.7]) * phase
    torch.testing.assert_close(found[:, 0, 0], wanted.to(torch.complex64), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, 0, 1], planes[:, 0, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, 0, 2], planes[:, 0, 2].mean().expand(5), atol=1e-4, rtol=0)
    assert torch.equal(smooth_across(planes[:1], 0.6), planes[:1])


@dataclass(frozen=True)
class Same:
    """A prior that leaves planes as they are."""

    sigma_data: float = 0.25

    def of_planes(self, planes, sigma, at_once):
        return planes


def test_a_smoothed_prior_smooths_by_sigma():
    planes = torch.tensor([0.0, 1.0], dtype=torch.complex64).view(2, 1, 1)
    found = SmoothAcross(Same(), 0.5).of_planes(planes, 0.4, 1).flatten()
    torch.testing.assert_close(found, torch.tensor([0.2, 0.8], dtype=torch.complex64), atol=1e-4, rtol=0)
