"""Muon (Jordan et al., 2024): momentum whose matrix is made orthogonal, for the convolutions of the network.

torch.optim.Muon takes matrices only and works in bfloat16, which many CPUs emulate: slower than all of a step here.
"""

from collections import defaultdict

import torch
from dpmrecon.errors import BadInputError
from torch import nn

# of the quintic iteration (Jordan et al., 2024)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
OPTIMIZERS = ("adam", "muon")


class Muon(torch.optim.Optimizer):
    """One step moves a weight (out, ...) by rate * 0.2 * sqrt(longest side) times an orthogonal matrix: each of its
    numbers by about 0.2 rate in the rms, as Adam does (Liu et al., 2025)."""

    def __init__(self, parameters, lr: float = 1e-3, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                average = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                matrix = parameter.grad.lerp(average, group["momentum"]).flatten(1)  # Nesterov's look ahead
                alike[matrix.shape].append((parameter, matrix))
            for shape, members in alike.items():  # at once: a GPU waits for the launch of each small product otherwise
                updates = orthogonal(torch.stack([matrix for _, matrix in members]))
                for (parameter, _), update in zip(members, updates):
                    parameter.add_(update.view_as(parameter), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """U V^T, roughly, of each U S V^T in matrices (n, rows, cols): singular values between .7 and 1.2 after five
    Newton-Schulz iterations.

    Those below about .01 of the Frobenius norm stay smaller.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.mT if tall else x


def optimizers(model: nn.Module, name: str) -> list[torch.optim.Optimizer]:
    """For `adam` one optimizer; for `muon` two: Muon for the convolutions inside, Adam for all else.

    Stem and head (the first and the last convolution) and everything that is no convolution stay with Adam, as usual.
    Raises BadInputError for another name.
    """
    if name not in OPTIMIZERS:
        raise BadInputError(f"optimizer '{name}' is unknown: valid ones are {', '.join(OPTIMIZERS)}")
    parameters = dict(model.named_parameters())
    inner = [
        value
        for key, value in parameters.items()
        if name == "muon" and value.ndim == 4 and not key.split(".")[1].startswith(("stem", "head"))
    ]
    taken = {id(value) for value in inner}
    others = [value for value in parameters.values() if id(value) not in taken]
    adam = torch.optim.Adam(others, betas=(0.9, 0.99))
    return [Muon(inner), adam] if inner else [adam]
