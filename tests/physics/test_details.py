"""The best linear estimate of what an image lacks, against dense algebra, on odd and unequal sizes."""

import pytest
import torch
from dpmrecon.physics import details
from dpmrecon.physics.details import with_details
from dpmrecon.physics.forward import ForwardModel
from dpmrecon.physics.fourier import origin_to_corner
from dpmrecon.physics.volume import VolumeModel
from dpmrecon.prior.denoiser import complex_noise

from support.gaussian import dense, random_sets

DEVIATION, WIDTH = 0.3, 0.8


@pytest.fixture(autouse=True)
def solved_to_the_last_digit(monkeypatch):
    monkeypatch.setattr(details, "STEPS", 200)
    monkeypatch.setattr(details, "TOLERANCE", 1e-5)


def covariance(image, support, n_axes):
    """C from the formula: tissue's signal times a Gaussian point spread between any two places, around the edges."""
    shape = image.shape[1:]
    axes = torch.cartesian_prod(*[torch.arange(size) for size in shape[-n_axes:]]).reshape(-1, n_axes)
    apart = axes[:, None] - axes
    size = torch.tensor(shape[-n_axes:])
    apart = torch.minimum(apart % size, -apart % size).double()

    def gaussian(width):
        return torch.exp(-apart.square().sum(-1) / (2 * width**2))

    around = gaussian(details.SURROUNDINGS)
    around = around / around.sum(1, keepdim=True)
    correlation = gaussian(WIDTH * 2**0.5)  # of white numbers that a Gaussian of WIDTH spreads
    sets = image.reshape(-1, len(axes))
    seen = support.expand(image.shape).reshape(-1, len(axes))
    amplitudes = DEVIATION * (around @ sets.abs().double().T).T * seen
    blocks = [a[:, None] * correlation * a for a in amplitudes]
    return torch.block_diag(*blocks).to(torch.complex128)


def plane(generator):
    maps = complex_noise((3, 17, 14), generator)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    maps[:, :2] = 0
    return ForwardModel(maps, (torch.rand(17, 1, generator=generator) < 0.6).float().expand(17, 14)), (17, 14), 2


def sets(generator):
    return random_sets(13, 15, 3, generator), (2, 13, 15), 2


@pytest.mark.parametrize("scan", [plane, sets])
def test_it_is_the_best_linear_estimate(scan):
    generator = torch.Generator().manual_seed(0)
    model, shape, n_axes = scan(generator)
    image = 1 + 0.3 * complex_noise((1, *shape), generator)
    kspace = model.forward(image + 0.2 * complex_noise((1, *shape), generator))
    noise = 0.1
    found = with_details(model, model.adjoint(kspace), image, torch.tensor([noise]), DEVIATION, WIDTH, n_axes)
    A = dense(model, *shape)
    C = covariance(image, model.support, n_axes)
    left = (kspace - model.forward(image)).flatten().to(A.dtype)
    gain = torch.linalg.solve(A @ C @ A.mH + noise**2 * torch.eye(len(A), dtype=A.dtype), left)
    expected = image.flatten() + C @ A.mH @ gain
    # the Gaussians' tails beyond half of the image, and beyond half a cycle a pixel, are the rest
    assert torch.allclose(found.flatten().to(A.dtype), expected, atol=1e-2)
    assert (expected - image.flatten()).abs().max() > 0.3
    assert torch.equal(found * (1 - model.support), image * (1 - model.support))


def test_batching_changes_nothing():
    generator = torch.Generator().manual_seed(1)
    model, shape, n_axes = plane(generator)
    images = 1 + 0.3 * complex_noise((2, *shape), generator)
    zero_filled, noise = model.adjoint(model.forward(torch.ones_like(images))), torch.tensor([0.1, 0.3])
    both = with_details(model, zero_filled, images, noise, DEVIATION, WIDTH, n_axes)
    for number in range(2):
        own = slice(number, number + 1)
        alone = with_details(model, zero_filled[own], images[own], noise[own], DEVIATION, WIDTH, n_axes)
        assert torch.allclose(both[own], alone, atol=1e-5)
        assert not torch.allclose(both[own], images[own], atol=1e-2)


def test_a_volume_gets_structures_along_three_axes():
    generator = torch.Generator().manual_seed(4)
    shape = (13, 14, 15)
    maps = complex_noise((3, *shape), generator)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    model = VolumeModel(origin_to_corner(maps.permute(3, 0, 1, 2)).contiguous(), torch.ones(shape))
    image, true = torch.ones(1, *shape, dtype=torch.complex64), torch.ones(1, *shape, dtype=torch.complex64)
    true[0, 6, 7, 7] = 2.0
    # where all is sampled A^H A is the identity: C / (C + noise^2) of each frequency
    found = with_details(model, model.normal(true), image, torch.tensor([0.1]), DEVIATION, WIDTH, 3) - image
    seen = torch.zeros(1, *shape, dtype=torch.complex64)
    seen[0, 6, 7, 7] = 1.0
    power = torch.fft.fftn(spread(seen, (-3, -2, -1)), dim=(-3, -2, -1)).abs().square() * DEVIATION**2
    expected = torch.fft.ifftn(torch.fft.fftn(seen, dim=(-3, -2, -1)) * power / (power + 0.01), dim=(-3, -2, -1))
    assert torch.allclose(found, expected, atol=1e-4)
    assert found[0, 6, 7, 7].real > 3 * found[0, 5, 7, 7].real > 0


def spread(image, axes):
    """By the point spread of structures, whose squares have the sum 1."""
    response = details._gaussian(image, WIDTH, axes)
    return details._convolved(image, response / response.square().mean().sqrt(), axes)


def test_drawn_structures_have_the_deviation_and_the_width_that_are_said():
    white = complex_noise((60, 31, 40), torch.Generator().manual_seed(2))
    values = torch.view_as_real(spread(white, (-2, -1)))
    assert values.std().item() == pytest.approx(1, abs=0.01)
    beside = (values[:, :, 1:] * values[:, :, :-1]).mean() / values.square().mean()
    assert beside.item() == pytest.approx(float(torch.exp(torch.tensor(-1 / (4 * WIDTH**2)))), abs=0.01)


def test_no_deviation_is_the_image_itself():
    generator = torch.Generator().manual_seed(3)
    model, shape, n_axes = plane(generator)
    image = complex_noise((1, *shape), generator)
    found = with_details(model, model.adjoint(model.forward(2 * image)), image, torch.tensor([0.1]), 0.0, WIDTH, n_axes)
    assert torch.equal(found, image)
