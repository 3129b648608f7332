"""The smooth phase of a slice goes into its coil maps: what is left, and that the data are still described."""

import pytest
import torch
from dpmrecon.data import Slice, SliceKey
from dpmrecon.physics.fourier import to_kspace
from dpmrecon.physics.phase import smooth_phase
from dpmrecon.recon.conventional import mapped_slice


def head(rows, cols):
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, cols), indexing="ij")
    disc = (y**2 + x**2 < 0.7).float()
    return disc * (1 + 0.3 * torch.cos(9 * x) * torch.cos(7 * y)), y, x


@pytest.mark.parametrize("shape", [(75, 62), (64, 81), (20, 23)])
def test_a_smooth_phase_is_found(shape):
    magnitude, y, x = head(*shape)
    factor = smooth_phase((magnitude * torch.exp(1j * (2 * x + y**2 - 1))).to(torch.complex64))
    assert torch.allclose(factor.abs(), torch.ones(shape), atol=1e-6)
    inside = magnitude > 0
    left = factor[inside] * torch.exp(-1j * (2 * x + y**2 - 1))[inside]
    assert left.angle().abs().quantile(0.95) < 0.25  # 1.3 before; most at the edge


def test_the_phase_of_what_is_finer_than_the_window_stays():
    magnitude, _, _ = head(150, 161)
    image = magnitude * torch.ones((), dtype=torch.complex64)
    image[70:74, 80:84] *= torch.exp(torch.tensor(1.5j))
    kept = image * smooth_phase(image).conj()
    assert kept[71, 81].angle() > 1.2
    assert abs(float(kept[40, 81].angle())) < 0.02


@pytest.mark.parametrize("shape", [(75, 62), (64, 81), (20, 23)])
def test_a_real_image_has_none(shape):
    image = head(*shape)[0]
    assert smooth_phase(image.to(torch.complex64)).angle().abs()[image > 0].max() < 0.02


def test_an_empty_slice_has_phase_factors_of_modulus_one():
    assert torch.allclose(smooth_phase(torch.zeros(30, 41, dtype=torch.complex64)).abs(), torch.ones(30, 41))


def test_the_phase_moves_from_the_image_to_the_coil_maps_and_the_data_stay_described():
    shape, coils = (45, 52), 3
    magnitude, y, x = head(*shape)
    image = magnitude * torch.exp(1j * (2.5 * x - y**2 + 0.4))
    maps = torch.stack([torch.exp(1j * k * x) / coils**0.5 for k in range(coils)]) * (magnitude > 0)
    kspace = to_kspace((maps * image).to(torch.complex64))
    data = Slice(SliceKey(0), kspace, torch.ones(shape), kspace, 1e-4, "known", 1, 45, 45, SliceKey(0).seed_key)
    mapped = mapped_slice(data, maps.to(torch.complex64), {})
    found = mapped.conventional
    assert (mapped.model.forward(found) - kspace).norm() < 0.01 * kspace.norm()
    assert (found - magnitude).norm() < 0.1 * magnitude.norm()  # real and positive, where it was not
    assert (image - magnitude).norm() > 0.9 * magnitude.norm()
    assert torch.allclose(mapped.zero_filled.angle()[magnitude > 0], found.angle()[magnitude > 0], atol=0.02)
