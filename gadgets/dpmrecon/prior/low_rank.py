"""Low-rank updates of a denoiser's convolutions (LoRA: Hu et al., ICLR 2022), on a copy of it.

W + B A takes the place of each weight W, where B A has few ranks and B begins at zero: at first the copy is the
network itself, bit by bit. The weights of the network that was given are never touched.
"""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize

from .denoiser import Denoiser


class LowRank(nn.Module):
    """weight (out, in, rows, cols) to weight + up @ down, up (out, rank) and down (rank, in * rows * cols)."""

    def __init__(self, weight: torch.Tensor, rank: int, generator: torch.Generator):
        super().__init__()
        n_out, n_in = len(weight), weight[0].numel()
        down = torch.randn(rank, n_in, generator=generator) / n_in**0.5
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(n_out, rank, device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def with_low_rank(model: Denoiser, rank: int, seed: int) -> tuple[Denoiser, list[nn.Parameter]]:
    """A copy whose convolutions have low-rank updates, and the parameters of these, the only ones to be fitted."""
    found, generator = copy.deepcopy(model).requires_grad_(False), torch.Generator().manual_seed(seed)
    parameters: list[nn.Parameter] = []
    for layer in [layer for layer in found.modules() if isinstance(layer, nn.Conv2d)]:
        update = LowRank(layer.weight, rank, generator)
        parametrize.register_parametrization(layer, "weight", update)
        parameters += update.parameters()
    return found, parameters


@torch.no_grad()
def merged(model: Denoiser, adapted: Denoiser) -> Denoiser:
    """A copy of `model`, the plain network, whose weights are those that `adapted` computes with."""
    found = copy.deepcopy(model).requires_grad_(False)
    for name, layer in adapted.named_modules():
        if parametrize.is_parametrized(layer):
            found.get_parameter(f"{name}.weight").copy_(layer.weight)
    return found
