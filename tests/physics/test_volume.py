"""The forward model of volumes against the 3D transform and dense algebra, on odd and unequal sizes."""

import pytest
import torch
from dpmrecon.physics import volume
from dpmrecon.physics.fourier import origin_to_corner, to_image, to_kspace
from dpmrecon.physics.volume import VolumeModel, hybrid
from dpmrecon.prior.denoiser import complex_noise

from support.volumes import dense_prox

SIZES = [(5, 6, 7), (4, 7, 6), (3, 5, 8)]  # partitions, rows, cols
N_COILS = 3
AXES = (-3, -2, -1)


def maps_of(size: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    """(n_coils, partitions, rows, cols), of unit norm, 0 in a corner and at the readout's ends."""
    maps = complex_noise((N_COILS, *size), generator)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    maps[:, 0, 0] = 0
    maps[..., [0, -1]] = 0
    return maps


def model_of(size: tuple[int, int, int], generator: torch.Generator, *, cut: bool) -> tuple[VolumeModel, torch.Tensor]:
    """A model, with its maps as (n_coils, partitions, rows, cols). cut: the first samples of each echo are missing."""
    maps = maps_of(size, generator)
    mask = (torch.rand(*size[:2], 1, generator=generator) < 0.6).float().expand(size).clone()
    mask[..., : 2 * cut] = 0
    return VolumeModel(origin_to_corner(maps.permute(3, 0, 1, 2)).contiguous(), mask), maps


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_forward_is_the_3d_transform_and_adjoint_its_adjoint(size, cut):
    generator = torch.Generator().manual_seed(1)
    model, maps = model_of(size, generator, cut=cut)
    image, kspace = complex_noise(size, generator), complex_noise((N_COILS, *size), generator)
    exact = model.mask * to_kspace(maps * image, AXES)
    found = model.forward(image)
    assert torch.allclose(found, hybrid(exact.clone()), atol=1e-5)
    assert all(torch.equal(one, other) for one, other in zip(model.coils(image), found, strict=True))
    exact = (maps.conj() * to_image(model.mask * kspace, AXES)).sum(0)
    assert torch.allclose(model.adjoint(hybrid(model.mask * kspace)), exact, atol=1e-5)
    assert torch.allclose(model.normal(image[None])[0], model.adjoint(found), atol=1e-5)
    assert torch.equal(model.support, (maps != 0).any(0).float())


@pytest.mark.parametrize("cached", [1, 40, 10**6])  # one position at a time, a few, and all at once
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_prox_is_the_dense_solution(monkeypatch, size, cut, cached):
    monkeypatch.setattr(volume, "CACHED", cached)
    generator = torch.Generator().manual_seed(2)
    model, _ = model_of(size, generator, cut=cut)
    start, kspace = complex_noise((2, *size), generator), complex_noise((N_COILS, *size), generator)
    right = model.adjoint(hybrid(model.mask * kspace))
    weights = torch.tensor([0.05, 2.0])
    found = model.prox(right, start, weights, steps=200, tolerance=1e-6)
    for image, exact in zip(found, dense_prox(model, right, start, weights), strict=True):
        assert torch.allclose(image.to(torch.complex128), exact, atol=1e-4)


def test_a_position_that_no_coil_sees_stays_where_it_was():
    generator = torch.Generator().manual_seed(3)
    model, _ = model_of(SIZES[0], generator, cut=False)
    start = complex_noise((1, *SIZES[0]), generator)
    found = model.prox(torch.zeros(SIZES[0], dtype=torch.complex64), start, torch.tensor([1.0]), steps=5)
    assert torch.equal(found[..., [0, -1]], start[..., [0, -1]])


def test_nothing_is_seen():
    model = VolumeModel(torch.zeros(4, 2, 3, 5, dtype=torch.complex64), torch.ones(3, 5, 4))
    image = torch.ones(3, 5, 4, dtype=torch.complex64)
    assert not model.forward(image).any() and not model.normal(image[None]).any() and not model.support.any()
