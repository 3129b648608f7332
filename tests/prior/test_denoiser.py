"""The network and its preconditioning."""

import pytest
import torch
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.prior.denoiser import Denoiser, complex_noise

from support.models import THREE_LEVELS, random_denoiser


@pytest.mark.parametrize("size", [(8, 8), (33, 47), (18, 31), (2, 5)])
def test_any_matrix_size(size):
    x = complex_noise((3, *size), torch.Generator().manual_seed(1))
    model = random_denoiser()
    out = model(x, torch.tensor([0.1, 1.0, 5.0]), model.one_hot(["flair", None, "swi"]))
    assert out.shape == x.shape
    assert out.dtype == torch.complex64
    assert torch.isfinite(torch.view_as_real(out)).all()


def test_preconditioning_at_both_ends():
    """Little noise: D(x) = x. Nothing but noise: D is of the size of the data, whatever the size of x."""
    model = random_denoiser()
    label = model.one_hot([None])
    x = complex_noise((1, 16, 15), torch.Generator().manual_seed(2))
    assert torch.allclose(model(x, torch.tensor([1e-5]), label), x, atol=1e-3)
    far = [model(sigma * x, torch.tensor([sigma]), label).abs().max() for sigma in (1e3, 1e4)]
    assert far[1] < 5 * far[0]


def test_untrained_network_is_the_gaussian_denoiser():
    model = Denoiser(THREE_LEVELS)  # its head is zero: only the skip path is left
    x = complex_noise((1, 9, 6), torch.Generator().manual_seed(3))
    expected = x * 0.25**2 / (0.25**2 + 0.5**2)
    assert torch.allclose(model(x, torch.tensor([0.5]), model.one_hot([None])), expected, atol=1e-6)


def test_bfloat16_changes_little_and_no_gradient():
    model = load_checkpoint().denoiser
    x = complex_noise((2, 64, 47), torch.Generator().manual_seed(5))
    sigma, label = torch.tensor([0.1, 1.0]), model.one_hot(["flair", "t1"])
    found = []
    for model.bf16 in (False, True):
        with torch.no_grad():
            found.append(model(x, sigma, label) - x)
        found.append(model(x, sigma, label) - x)
    exact, with_gradient, reduced, reduced_with_gradient = found
    assert torch.equal(reduced_with_gradient, with_gradient)
    assert 0 < (reduced - exact).norm() < 0.01 * exact.norm()


def test_batching_and_labels():
    model = random_denoiser()
    x = complex_noise((2, 21, 14), torch.Generator().manual_seed(4))
    sigma = torch.tensor([0.2, 0.7])
    both = model(x, sigma, model.one_hot(["t1", "flair"]))
    alone = model(x[1:], sigma[1:], model.one_hot(["flair"]))
    assert torch.allclose(both[1:], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[1:], model(x[1:], sigma[1:], model.one_hot(["t2"])), atol=1e-4)
    unlabelled = model(x[1:], sigma[1:], model.one_hot([None]))
    assert torch.equal(unlabelled, model(x[1:], sigma[1:], model.one_hot(["no such label"])))
