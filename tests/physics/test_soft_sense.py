"""The forward model of two sets of maps against dense algebra, on odd and unequal sizes."""

import dataclasses

import pytest
import torch
from dpmrecon.physics import forward
from dpmrecon.physics.forward import ForwardModel
from dpmrecon.physics.soft_sense import SoftSense
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.prior.problem import NoiseSource, Problem
from dpmrecon.prior.samplers.diffusion import sample_dps, sample_prox

from support.gaussian import SETTINGS, SIGMA_DATA, GivenPrior, dense, random_sets

SIZES = [(7, 6), (5, 9), (8, 8)]
SIGMA_N = 0.05


@pytest.mark.parametrize("size", SIZES)
def test_adjoint(size):
    generator = torch.Generator().manual_seed(1)
    model = random_sets(*size, 3, generator)
    image, kspace = complex_noise((4, 2, *size), generator), complex_noise((4, 3, *size), generator)
    assert model.forward(image).shape == kspace.shape
    assert model.adjoint(kspace).shape == image.shape
    left = (model.forward(image).conj() * kspace).sum()
    right = (image.conj() * model.adjoint(kspace)).sum()
    assert torch.isclose(left, right, rtol=1e-4)


@pytest.mark.parametrize("cached", [1, 50, 10**6])  # one column at a time, a few, and everything at once
@pytest.mark.parametrize("readouts", [True, False])
def test_normal_operator_in_parts(monkeypatch, cached, readouts):
    monkeypatch.setattr(forward, "CACHED", cached)
    generator = torch.Generator().manual_seed(6)
    one, other = (random_sets(7, 11, 3, generator).coil_maps for _ in range(2))
    mask = (torch.rand(7, 1 if readouts else 11, generator=generator) < 0.5).float().expand(7, 11)
    image = complex_noise((2, 2, 7, 11), generator)
    for maps, sampled in (
        (torch.stack([one, other]), torch.stack([mask, mask])[:, None]),
        (one[None], mask),
        (one, mask),
    ):
        model = SoftSense(maps, sampled)
        assert torch.allclose(model.normal(image), model.adjoint(model.forward(image)), atol=1e-5)


def test_a_second_map_of_zeros_is_one_map():
    generator = torch.Generator().manual_seed(7)
    maps = random_sets(7, 9, 3, generator).coil_maps
    maps[1] = 0
    mask = (torch.rand(7, 9, generator=generator) < 0.5).float()
    both, alone = SoftSense(maps, mask), ForwardModel(maps[0], mask)
    image, kspace = complex_noise((2, 2, 7, 9), generator), complex_noise((3, 7, 9), generator)
    weight = torch.tensor([0.1])
    found = both.prox(both.adjoint(kspace), image, weight, 50)
    assert torch.allclose(found[:, 0], alone.prox(alone.adjoint(kspace), image[:, 0], weight, 50), atol=1e-4)
    assert torch.allclose(found[:, 1], image[:, 1], atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weight", [0.01, 3.0])
def test_prox_is_the_dense_solution(size, weight):
    generator = torch.Generator().manual_seed(2)
    model = random_sets(*size, 3, generator)
    start, kspace = complex_noise((2, 2, *size), generator), complex_noise((3, *size), generator)
    weights = torch.tensor([weight, 2 * weight])
    found = model.prox(model.adjoint(kspace), start, weights, steps=200, tolerance=1e-6)
    matrix = dense(model, 2, *size)
    right = matrix.mH @ kspace.flatten().to(torch.complex128)
    for image, begin, w in zip(found, start, weights):
        system = matrix.mH @ matrix + w * torch.eye(matrix.shape[1])
        exact = torch.linalg.solve(system, right + w * begin.flatten().to(torch.complex128))
        assert torch.allclose(image.flatten().to(torch.complex128), exact, atol=1e-4)


def test_combined_is_the_magnitude_over_the_coils_with_the_phase_of_the_strongest():
    generator = torch.Generator().manual_seed(3)
    model = random_sets(5, 6, 4, generator)
    image = complex_noise((3, 2, 5, 6), generator) * model.support
    combined = model.combined(image)
    assert combined.shape == (3, 5, 6)
    coils = torch.linalg.vector_norm((model.coil_maps * image.unsqueeze(-3)).sum(-4), dim=-3)
    assert torch.allclose(combined.abs(), coils, atol=1e-5)
    first = (image[:, 0].abs() > image[:, 1].abs()) & (combined != 0)
    assert torch.allclose(torch.sgn(combined)[first], torch.sgn(image[:, 0])[first], atol=1e-5)
    second = (image[:, 1].abs() > image[:, 0].abs()) & (combined != 0)
    assert torch.allclose(torch.sgn(combined)[second], torch.sgn(image[:, 1])[second], atol=1e-5)


def white_world():
    """A white prior, so that the posterior of both images is in closed form: problem, its mean, its covariance."""
    generator = torch.Generator().manual_seed(5)
    model = random_sets(5, 6, 4, generator)
    model = dataclasses.replace(model, mask=torch.ones(5, 6))
    matrix = dense(model, 2, 5, 6)
    x = SIGMA_DATA * complex_noise((1, 2, 5, 6), generator) * model.support
    kspace = model.forward(x) + SIGMA_N * complex_noise((1, 4, 5, 6), generator)
    precision = matrix.mH @ matrix / SIGMA_N**2 + torch.eye(matrix.shape[1]) / SIGMA_DATA**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ matrix.mH @ kspace.flatten().to(torch.complex128) / SIGMA_N**2
    start = torch.zeros(1, 2, 5, 6, dtype=torch.complex64)
    problem = Problem(model, kspace, model.adjoint(kspace), torch.tensor([SIGMA_N]), start)
    return problem, mean.reshape(2, 5, 6), covariance.diagonal().real.reshape(2, 5, 6).sqrt()


def sampled(sampler, problem, count, **changes):
    def denoise(x, sigma):
        assert x.ndim == 3 and len(sigma) == len(x)  # every image of every set is one to the prior
        return x * SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma.view(-1, 1, 1) ** 2)

    many = dataclasses.replace(
        problem, sigma_n=problem.sigma_n.expand(count), start=problem.start.expand(count, 2, 5, 6)
    )
    settings = dataclasses.replace(SETTINGS, **changes)
    return sampler(many, GivenPrior(denoise), settings, NoiseSource(list(range(count))))


def test_prox_draws_both_images_from_the_posterior():
    problem, mean, std = white_world()
    draws = sampled(sample_prox, problem, 400)
    assert draws.shape == (400, 2, 5, 6)
    seen = problem.model.support > 0
    error = (draws.mean(0) - mean)[seen].abs() / std[seen].float()
    assert error.square().mean().sqrt() < 0.25
    spread = torch.view_as_real(draws).std(0).mean(-1)[seen] / std[seen]
    assert 0.8 < spread.mean() < 1.05


def test_dps_comes_near_the_data_with_both_images():
    problem, mean, _ = white_world()
    draws = sampled(sample_dps, problem, 8, steps=200, zeta=0.5)
    seen = problem.model.support > 0
    error = torch.linalg.vector_norm((draws.mean(0) - mean)[seen]) / torch.linalg.vector_norm(mean[seen])
    assert error < 0.2
