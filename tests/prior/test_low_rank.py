"""Low-rank updates of a denoiser's convolutions."""

import torch
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.prior.low_rank import merged, with_low_rank

from support.models import random_denoiser

RANK = 3


def denoised(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    images = complex_noise((2, 37, 30), generator)
    return model(images, torch.tensor([0.1, 0.7]), model.one_hot(["flair", None]))


def test_an_update_that_is_not_fitted_changes_no_bit():
    plain = random_denoiser()
    model, parameters = with_low_rank(plain, RANK, seed=1)
    assert torch.equal(denoised(model), denoised(plain))
    assert torch.equal(denoised(merged(plain, model)), denoised(plain))
    assert all(parameter.requires_grad for parameter in parameters)
    assert sum(p.requires_grad for p in model.parameters()) == len(parameters)


def test_a_fitted_update_merges_exactly_and_has_its_rank():
    plain = random_denoiser()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    model, parameters = with_low_rank(plain, RANK, seed=1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    network = merged(plain, model)
    assert list(network.state_dict()) == list(before)
    assert torch.equal(denoised(network), denoised(model)) and not torch.equal(denoised(network), denoised(plain))
    updated = 0
    for name, weight in network.state_dict().items():
        difference = (weight - before[name]).flatten(1) if weight.ndim == 4 else weight - before[name]
        if difference.any():
            updated += 1
            assert torch.linalg.matrix_rank(difference.double(), rtol=1e-4) <= RANK
    assert updated == len(parameters) / 2
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_equal_seeds_give_equal_updates():
    (_, first), (_, again), (_, other) = (with_low_rank(random_denoiser(), RANK, seed) for seed in (5, 5, 6))
    assert all(torch.equal(one, two) for one, two in zip(first, again))
    assert not all(torch.equal(one, two) for one, two in zip(first, other))
