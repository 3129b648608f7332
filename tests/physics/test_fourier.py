"""The Fourier transform and the change of a matrix's size, on odd and unequal sizes."""

import pytest
import torch
from dpmrecon.physics.fourier import crop_or_pad, to_image, to_kspace
from dpmrecon.prior.denoiser import complex_noise

SIZES = [(7, 6), (5, 9), (8, 8)]


@pytest.mark.parametrize("size", SIZES)
def test_fft_is_unitary_and_centred(size):
    image = complex_noise(size, torch.Generator().manual_seed(0))
    assert torch.allclose(to_image(to_kspace(image)), image, atol=1e-6)
    assert torch.isclose(to_kspace(image).norm(), image.norm())
    point = torch.zeros(size, dtype=torch.complex64)
    point[size[0] // 2, size[1] // 2] = 1  # the origin has a flat spectrum without any phase
    flat = torch.full(size, 1 / (size[0] * size[1]) ** 0.5, dtype=torch.complex64)
    assert torch.allclose(to_kspace(point), flat, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(7, 4), (4, 7), (8, 5), (5, 8), (6, 6)])
def test_crop_or_pad_keeps_the_origin(old, new):
    data = torch.arange(old, dtype=torch.float32) + 1
    assert crop_or_pad(data, new, 0)[new // 2] == data[old // 2]
