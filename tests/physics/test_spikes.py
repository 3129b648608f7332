"""Spikes in k-space: found where they are, taken out to within the noise, and never seen in a sound scan."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from dpmrecon.physics.fourier import to_kspace, without_oversampling
from dpmrecon.physics.noise import estimated_sigma
from dpmrecon.physics.spikes import LARGEST, Spike, without_spikes
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.slices import coil_maps, simulated_kspace, slice_points

COLS = 64


@lru_cache
def scan(noise: float = 0.01, **settings) -> tuple[torch.Tensor, torch.Tensor, float]:
    """k-space, mask and noise level."""
    chosen = SimulationSettings(
        **{"matrix": (48, COLS), "n_coils": 6, "acceleration": 2, "calibration_lines": 16, "n_slices": 1, **settings},
        noise=noise,
    )
    kspace = torch.from_numpy(simulated_kspace(chosen)[0])
    mask = (kspace.abs().sum(0) > 0).float()
    return kspace, mask, estimated_sigma(kspace, mask)


def spike(col: float, cols: int = COLS) -> torch.Tensor:
    """As a readout has it that was sampled twice as finely: brightest at `col`, where halves lie between samples."""
    fine = torch.zeros(2 * cols, dtype=torch.complex64)
    fine[round(2 * (col - cols // 2)) + cols] = 1
    found = without_oversampling(fine, cols)
    return found / found.abs().max()


@pytest.mark.parametrize(
    "settings",
    [
        {"noise": 0.0},
        {"noise": 0.15},
        {"noise": 0.0005, "phantom": "letters"},
        {"noise": 0.0, "phantom": "letters", "acceleration": 1},
        {"n_coils": 2, "acceleration": 1, "noise": 0.002},
        {"n_coils": 2, "acceleration": 1, "noise": 0.0, "phantom": "letters", "contrast": "dwi", "subject": 127},
        {"matrix": (16, 16), "calibration_lines": 8, "n_coils": 2},
        {"matrix": (33, 47), "n_coils": 16},
        {"asymmetric_echo": 0.7, "noise": 0.001},
        {"partial_fourier": 0.7, "contrast": "dwi"},
        {"contrast": "t2", "noise": 0.002, "subject": 5},
    ],
)
def test_a_sound_scan_stays_the_same_object(settings):
    kspace, mask, sigma = scan(**settings)
    found = without_spikes(kspace, mask, sigma)
    assert found[0] is kspace and found[1] == []


@pytest.mark.parametrize("n_coils", [2, 8])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_nor_is_the_centre_of_an_even_object_that_fills_the_field_of_view(n_coils, noise):
    settings = SimulationSettings(matrix=(64, COLS), n_coils=n_coils)
    maps = torch.from_numpy(coil_maps(slice_points(settings, 0, 1, 1, 0.0), n_coils))
    kspace = to_kspace(maps / maps.abs().square().sum(0).sqrt())
    kspace = kspace + noise * torch.randn(
        kspace.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)
    )
    mask = torch.ones(64, COLS)
    assert without_spikes(kspace, mask, estimated_sigma(kspace, mask))[0] is kspace


@pytest.mark.parametrize("noise", [0.001, 0.02])
@pytest.mark.parametrize("coils", [(2,), tuple(range(6))])
@pytest.mark.parametrize("col", [9.0, 9.5, 2.0, 61.0, 40.5])
@pytest.mark.parametrize("row", [24, 2])
def test_spikes_are_found_and_taken_out(noise, coils, col, row):
    kspace, mask, sigma = scan(noise)
    spoiled = kspace.clone()
    for coil in coils:
        spoiled[coil, row] += 3 * kspace.abs().max() * np.exp(1j * coil) * spike(col)
    cleaned, found = without_spikes(spoiled, mask, sigma)
    assert [(sorted(item.coils), item.row, item.col) for item in found] == [(list(coils), row, col)]
    # no more is left than a few times the noise, or a tenth of the signal around
    around = kspace[:, row, max(0, int(col) - 3) : int(col) + 4].abs().square().mean().sqrt()
    for coil in coils:
        assert (cleaned - kspace)[coil].norm() < 6 * sigma + 0.5 * around
    untouched = torch.ones_like(mask, dtype=torch.bool)
    untouched[row] = False
    assert torch.equal(cleaned[:, untouched], kspace[:, untouched])


def test_several_spikes_of_one_line_and_a_weak_one():
    kspace, mask, sigma = scan(0.02)
    spoiled = kspace.clone()
    for coil, col, height in ((0, 5.0, 400), (0, 50.5, 900), (3, 5.0, 60)):
        spoiled[coil, 4] += height * sigma * spike(col)
    cleaned, found = without_spikes(spoiled, mask, sigma)
    assert found == [Spike((0, 3), 4, 5.0), Spike((0,), 4, 50.5)]  # the brighter coil first
    assert (cleaned - kspace).norm() < 12 * sigma
    faint = kspace.clone()
    faint[0, 4] += LARGEST * sigma * spike(5.0)  # less than noise may be
    assert without_spikes(faint, mask, sigma)[0] is faint


def test_samples_without_neighbours_stay():
    """Undersampled along the readout too, there is nothing that predicts a sample."""
    kspace, mask, sigma = scan(0.02, acceleration=1)
    mask = mask.clone()
    mask[:, ::3] = 0
    sparse = kspace * mask
    assert without_spikes(sparse, mask, sigma)[0] is sparse


def test_unacquired_samples_stay_zero():
    kspace, mask, sigma = scan(0.01, asymmetric_echo=0.7)
    spoiled = kspace.clone()
    spoiled[1, 24] += 5 * kspace.abs().max() * spike(55.5) * mask[24]
    cleaned, found = without_spikes(spoiled, mask, sigma)
    assert found == [Spike((1,), 24, 55.5)]
    assert not cleaned[:, mask == 0].any()


def test_a_spike_says_where_it_is():
    assert str(Spike((3,), 40, 12.0)) == "coil 3, line 40, sample 12"
    assert str(Spike((3, 0), 40, 12.5)) == "coil 3 and 1 more, line 40, sample 12.5"
