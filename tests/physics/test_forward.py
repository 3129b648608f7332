"""The forward model and the proximal solve against dense algebra, on odd and unequal sizes."""

import pytest
import torch
from dpmrecon.physics import forward
from dpmrecon.physics.forward import ForwardModel
from dpmrecon.prior.denoiser import complex_noise

from support.gaussian import dense, random_model

SIZES = [(7, 6), (5, 9), (8, 8)]


@pytest.mark.parametrize("size", SIZES)
def test_adjoint(size):
    generator = torch.Generator().manual_seed(1)
    model = random_model(*size, 3, generator)
    image, kspace = complex_noise((2, *size), generator), complex_noise((2, 3, *size), generator)
    assert model.forward(image).shape == kspace.shape
    assert model.adjoint(kspace).shape == image.shape
    left = (model.forward(image).conj() * kspace).sum()
    right = (image.conj() * model.adjoint(kspace)).sum()
    assert torch.isclose(left, right, rtol=1e-4)
    matrix = dense(model, *size).to(torch.complex64)
    normal = (matrix.mH @ matrix @ image.flatten(1).T).T.reshape(image.shape)
    assert torch.allclose(model.normal(image), normal, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_normal_operator_of_full_readouts(size):
    generator = torch.Generator().manual_seed(5)
    model = random_model(*size, 3, generator)
    lines = (torch.rand(size[0], 1, generator=generator) < 0.5).float().expand(size)
    model = ForwardModel(model.coil_maps, lines)
    image = complex_noise((2, *size), generator)
    assert torch.allclose(model.normal(image), model.adjoint(model.forward(image)), atol=1e-5)


@pytest.mark.parametrize("cached", [1, 50, 10**6])  # one column at a time, a few, and everything at once
@pytest.mark.parametrize("readouts", [True, False])
def test_normal_operator_in_parts(monkeypatch, cached, readouts):
    monkeypatch.setattr(forward, "CACHED", cached)
    generator = torch.Generator().manual_seed(6)
    one, other = (random_model(7, 11, 3, generator) for _ in range(2))
    mask = (torch.rand(7, 1 if readouts else 11, generator=generator) < 0.5).float().expand(7, 11)
    image = complex_noise((2, 7, 11), generator)
    for maps in (torch.stack([one.coil_maps, other.coil_maps]), one.coil_maps):
        for sampled in (torch.stack([mask, mask])[:, None], mask):
            model = ForwardModel(maps, sampled)
            assert torch.allclose(model.normal(image), model.adjoint(model.forward(image)), atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weight", [0.01, 3.0])
def test_prox_is_the_dense_solution(size, weight):
    generator = torch.Generator().manual_seed(2)
    model = random_model(*size, 3, generator)
    start, kspace = complex_noise((2, *size), generator), complex_noise((3, *size), generator)
    weights = torch.tensor([weight, 2 * weight])
    found = model.prox(model.adjoint(kspace), start, weights, steps=100, tolerance=1e-6)
    matrix = dense(model, *size)
    right = matrix.mH @ kspace.flatten().to(torch.complex128)
    for image, begin, w in zip(found, start, weights):
        system = matrix.mH @ matrix + w * torch.eye(matrix.shape[1])
        exact = torch.linalg.solve(system, right + w * begin.flatten().to(torch.complex128))
        assert torch.allclose(image.flatten().to(torch.complex128), exact, atol=1e-4)


def test_prox_does_not_depend_on_the_batch():
    generator = torch.Generator().manual_seed(3)
    model = random_model(9, 6, 4, generator)
    start, kspace = complex_noise((3, 9, 6), generator), complex_noise((4, 9, 6), generator)
    weights = torch.tensor([0.001, 0.1, 10.0])  # need very different numbers of iterations
    together = model.prox(model.adjoint(kspace), start, weights, steps=7, tolerance=1e-2)
    alone = [model.prox(model.adjoint(kspace), s[None], w, steps=7, tolerance=1e-2)[0] for s, w in zip(start, weights)]
    assert torch.allclose(together, torch.stack(alone), atol=1e-5)
