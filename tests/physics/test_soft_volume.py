"""Two sets of maps of a volume against the 3D transform, dense algebra and the slice's model, on odd sizes."""

import pytest
import torch
from dpmrecon.physics import volume
from dpmrecon.physics.fourier import origin_to_corner, to_image, to_kspace
from dpmrecon.physics.soft_sense import SoftSense, SoftVolume
from dpmrecon.physics.volume import VolumeModel, hybrid
from dpmrecon.prior.denoiser import complex_noise

from support.gaussian import random_sets
from support.volumes import dense_prox

SIZES = [(5, 6, 7), (4, 7, 6), (3, 5, 8)]  # partitions, rows, cols
N_COILS = 3
AXES = (-3, -2, -1)


def sets_of(size: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    """(2, n_coils, partitions, rows, cols), orthonormal, the second 0 in a half."""
    sets = torch.linalg.qr(complex_noise((*size, N_COILS, 2), generator))[0].permute(4, 3, 0, 1, 2).clone()
    sets[1, ..., : size[1] // 2, :] = 0
    sets[..., [0, -1]] = 0
    return sets


def model_of(size: tuple[int, int, int], generator: torch.Generator, *, cut: bool) -> tuple[SoftVolume, torch.Tensor]:
    sets = sets_of(size, generator)
    mask = (torch.rand(*size[:2], 1, generator=generator) < 0.6).float().expand(size).clone()
    mask[..., : 2 * cut] = 0
    return SoftVolume(origin_to_corner(sets.permute(4, 0, 1, 2, 3)).contiguous(), mask), sets


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_forward_adds_the_sets_and_adjoint_is_its_adjoint(size, cut):
    generator = torch.Generator().manual_seed(1)
    model, sets = model_of(size, generator, cut=cut)
    image, kspace = complex_noise((2, *size), generator), complex_noise((N_COILS, *size), generator)
    exact = model.mask * to_kspace((sets * image[:, None]).sum(0), AXES)
    found = model.forward(image)
    assert torch.allclose(found, hybrid(exact.clone()), atol=1e-5)
    exact = (sets.conj() * to_image(model.mask * kspace, AXES)).sum(1)
    assert torch.allclose(model.adjoint(hybrid(model.mask * kspace)), exact, atol=1e-5)
    assert torch.allclose(model.normal(image[None])[0], model.adjoint(found), atol=1e-5)
    assert torch.equal(model.support, (sets != 0).any(1).float())


@pytest.mark.parametrize("cached", [1, 40, 10**6])  # one position at a time, a few, and all at once
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_prox_is_the_dense_solution_of_both_sets(monkeypatch, size, cut, cached):
    monkeypatch.setattr(volume, "CACHED", cached)
    generator = torch.Generator().manual_seed(2)
    model, _ = model_of(size, generator, cut=cut)
    start, kspace = complex_noise((2, 2, *size), generator), complex_noise((N_COILS, *size), generator)
    right = model.adjoint(hybrid(model.mask * kspace))
    weights = torch.tensor([0.05, 2.0])
    found = model.prox(right, start, weights, steps=400, tolerance=1e-6)
    for image, exact in zip(found, dense_prox(model, right, start, weights), strict=True):
        assert torch.allclose(image.to(torch.complex128), exact, atol=2e-4)


def test_one_partition_is_a_slice():
    generator = torch.Generator().manual_seed(3)
    sets = random_sets(7, 10, N_COILS, generator).coil_maps
    mask = (torch.rand(7, 1, generator=generator) < 0.6).float().expand(7, 10)
    slice_model = SoftSense(sets, mask)
    model = SoftVolume(origin_to_corner(sets[:, :, None].permute(4, 0, 1, 2, 3)).contiguous(), mask[None])
    image = complex_noise((2, 7, 10), generator)
    kspace = slice_model.forward(image)
    assert torch.allclose(model.forward(image[:, None])[:, 0], hybrid(kspace[:, None].clone())[:, 0], atol=1e-5)
    right, weight = slice_model.adjoint(kspace), torch.tensor([0.3])
    wanted = slice_model.prox(right, torch.zeros_like(right)[None], weight, 200, 1e-6)
    found = model.prox(right[:, None], torch.zeros_like(right)[None, :, None], weight, 200, 1e-6)
    assert torch.allclose(found[:, :, 0], wanted, atol=1e-4)
    assert torch.allclose(model.combined(image[:, None])[0], slice_model.combined(image))


@pytest.mark.parametrize("cut", [False, True])
def test_a_second_set_of_zeros_is_one_set(cut):
    generator = torch.Generator().manual_seed(4)
    model, _ = model_of(SIZES[0], generator, cut=cut)
    model.coil_maps[:, 1] = 0
    alone = VolumeModel(model.coil_maps[:, 0].contiguous(), model.mask)
    image = complex_noise((2, *SIZES[0]), generator)
    assert torch.allclose(model.forward(image), alone.forward(image[0]), atol=1e-6)
    right, weight = alone.adjoint(alone.forward(image[0])), torch.tensor([0.2])
    both = torch.stack([right, torch.zeros_like(right)])
    found = model.prox(both, torch.zeros_like(both)[None], weight, 30)[0]
    assert torch.allclose(found[0], alone.prox(right, torch.zeros_like(right)[None], weight, 30)[0], atol=1e-5)
    assert not found[1].any()
