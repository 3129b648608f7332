"""Total variation across planes against exact solutions."""

import math

import torch
from dpmrecon.physics.total_variation import smooth_across


def test_total_variation_across_planes_against_exact_solutions():
    """A step of height h between m and n planes: the plateaus come nearer by weight/m and weight/n, or meet in the
    mean; pixels have nothing to do with each other."""
    phase = complex(math.cos(0.7), math.sin(0.7))
    column = torch.tensor([1.0, 1, 1, 3, 3], dtype=torch.complex64) * phase
    planes = torch.stack([column, 5 * torch.ones(5) * phase, column * 0.01], 1).view(5, 1, 3).to(torch.complex64)
    found = smooth_across(planes, 0.6, steps=400)
    wanted = torch.tensor([1.2, 1.2, 1.2, 2.7, 2.7]) * phase
    torch.testing.assert_close(found[:, 0, 0], wanted.to(torch.complex64), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, 0, 1], planes[:, 0, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, 0, 2], planes[:, 0, 2].mean().expand(5), atol=1e-4, rtol=0)
    assert torch.equal(smooth_across(planes[:1], 0.6), planes[:1])
