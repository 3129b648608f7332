"""What an image lacks and the data show, against dense algebra, on odd and unequal sizes."""

import pytest
import torch
from dpmrecon.physics import details
from dpmrecon.physics.details import structures, with_details
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


def covariance(amplitude, n_axes):
    """C from the formula: the amplitudes of any two places times a Gaussian point spread, around the edges."""
    shape = amplitude.shape[1:]
    axes = torch.cartesian_prod(*[torch.arange(size) for size in shape[-n_axes:]]).reshape(-1, n_axes)
    apart = axes[:, None] - axes
    size = torch.tensor(shape[-n_axes:])
    apart = torch.minimum(apart % size, -apart % size).double()
    # of white numbers that a Gaussian of WIDTH spreads
    correlation = torch.exp(-apart.square().sum(-1) / (4 * WIDTH**2))
    blocks = [a[:, None] * correlation * a for a in amplitude.double().reshape(-1, len(axes))]
    return torch.block_diag(*blocks).to(torch.complex128)


def response_of(image, n_axes):
    """Of a Gaussian of WIDTH, whose squares have the sum 1."""
    response = details._gaussian(image, WIDTH, tuple(range(-n_axes, 0)))
    return response / response.square().mean().sqrt()


def plane(generator):
    maps = complex_noise((3, 17, 14), generator)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    maps[:, :2] = 0
    return ForwardModel(maps, (torch.rand(17, 1, generator=generator) < 0.6).float().expand(17, 14)), (17, 14), 2


def sets(generator):
    return random_sets(13, 15, 3, generator), (2, 13, 15), 2


@pytest.mark.parametrize("scan", [plane, sets])
def test_structures_are_the_best_linear_estimate(scan):
    generator = torch.Generator().manual_seed(0)
    model, shape, n_axes = scan(generator)
    image = 1 + 0.3 * complex_noise((1, *shape), generator)
    kspace = model.forward(image + 0.2 * complex_noise((1, *shape), generator))
    amplitude = DEVIATION * torch.rand(1, *shape, generator=generator) * model.support
    noise, unexplained = 0.1, model.adjoint(kspace) - model.normal(image)
    found = structures(model, unexplained, torch.tensor([noise]), amplitude, response_of(image, n_axes))
    A = dense(model, *shape)
    C = covariance(amplitude, n_axes)
    left = (kspace - model.forward(image)).flatten().to(A.dtype)
    expected = C @ A.mH @ torch.linalg.solve(A @ C @ A.mH + noise**2 * torch.eye(len(A), dtype=A.dtype), left)
    # the Gaussians' tails beyond half of the image, and beyond half a cycle a pixel, are the rest
    assert torch.allclose(found.flatten().to(A.dtype), expected, atol=1e-2)
    assert expected.abs().max() > 0.1
    assert not (found * (1 - model.support)).any()


@pytest.mark.parametrize("scan", [plane, sets])
def test_the_second_pass_allows_structures_where_the_first_found_more_than_elsewhere(scan, monkeypatch):
    generator = torch.Generator().manual_seed(5)
    model, shape, n_axes = scan(generator)
    image = 1 + 0.3 * complex_noise((1, *shape), generator)
    lacking = 0.05 * complex_noise((1, *shape), generator)
    lacking[..., 6, 8] = 2.0
    zero_filled = model.adjoint(model.forward(image + lacking))
    passes = []

    def recorded(*args):
        passes.append((args[3], structures(*args)))
        return passes[-1][1]

    monkeypatch.setattr(details, "structures", recorded)
    found = with_details(model, zero_filled, image, torch.tensor([0.1]), torch.tensor([DEVIATION]), WIDTH, n_axes)
    (anywhere, first), (allowed, last) = passes
    assert torch.equal(found, image + last)
    axes = tuple(range(-n_axes, 0))
    assert torch.allclose(anywhere, DEVIATION * blurred(image.abs(), details.SURROUNDINGS, axes) * model.support)
    found_there = blurred(first.abs().square(), details.PLACE, axes)
    energy = found_there / blurred(anywhere.square(), details.PLACE, axes)
    inside = model.support.expand(anywhere.shape).bool()
    median = energy[anywhere >= details.TISSUE * anywhere[inside].mean()].median()
    share = ((energy / median - 1) / (details.CERTAIN - 1)).clamp(0, 1) * model.support
    most = torch.minimum(anywhere.square(), details.LARGEST * found_there)
    assert torch.allclose(allowed.square(), share * most, atol=1e-5)
    assert (allowed == 0).sum() > (anywhere == 0).sum()
    assert ((allowed > 0) & (allowed == anywhere)).any()
    assert ((share > 0) & (most < anywhere.square())).any()


def blurred(image, width, axes):
    return details._convolved(image, details._gaussian(image, width, axes), axes).real


def test_batching_changes_nothing():
    generator = torch.Generator().manual_seed(1)
    model, shape, n_axes = plane(generator)
    images = 1 + 0.3 * complex_noise((2, *shape), generator)
    zero_filled, noise = model.adjoint(model.forward(torch.ones_like(images))), torch.tensor([0.1, 0.3])
    deviation = torch.tensor([DEVIATION, 2 * DEVIATION])
    both = with_details(model, zero_filled, images, noise, deviation, WIDTH, n_axes)
    for number in range(2):
        own = slice(number, number + 1)
        alone = with_details(
            model,
            zero_filled[own],
            images[own],
            noise[own],
            deviation[own],
            WIDTH,
            n_axes,
        )
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
    amplitude = torch.full(image.shape, DEVIATION)
    # where all is sampled A^H A is the identity: C / (C + noise^2) of each frequency
    found = structures(model, model.normal(true - image), torch.tensor([0.1]), amplitude, response_of(image, 3))
    seen = torch.zeros(1, *shape, dtype=torch.complex64)
    seen[0, 6, 7, 7] = 1.0
    power = torch.fft.fftn(spread(seen, (-3, -2, -1)), dim=(-3, -2, -1)).abs().square() * DEVIATION**2
    expected = torch.fft.ifftn(torch.fft.fftn(seen, dim=(-3, -2, -1)) * power / (power + 0.01), dim=(-3, -2, -1))
    assert torch.allclose(found, expected, atol=1e-4)
    assert found[0, 6, 7, 7].real > 3 * found[0, 5, 7, 7].real > 0


def spread(image, axes):
    return details._convolved(image, response_of(image, len(axes)), axes)


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
    found = with_details(
        model, model.adjoint(model.forward(2 * image)), image, torch.tensor([0.1]), torch.zeros(1), WIDTH, n_axes
    )
    assert torch.equal(found, image)


def test_a_focus_stays_and_noise_goes():
    generator = torch.Generator().manual_seed(6)
    model = ForwardModel(torch.ones(1, 63, 64, dtype=torch.complex64), torch.ones(63, 64))
    image = torch.ones(1, 63, 64, dtype=torch.complex64)
    focus = torch.zeros(1, 63, 64)
    focus[0, 30:32, 20:22] = 0.8
    data = image + focus + 0.1 * complex_noise((1, 63, 64), generator)
    found = with_details(model, model.normal(data), image, torch.tensor([0.1]), torch.tensor([0.12]), 0.7) - image
    assert found[0, 30:32, 20:22].real.mean() > 0.5
    assert found[focus == 0].abs().square().mean().sqrt() < 0.3 * 0.1 * 2**0.5
    assert (found[focus == 0].abs() < 1e-6).float().mean() > 0.3
