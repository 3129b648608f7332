"""An unrolled network, as a control: the denoiser of the kind one-step and our proximal step, in turn (MoDL).

After Aggarwal et al., MoDL (IEEE TMI 2019): one network for all iterations, conjugate gradients in between, trained end
to end. It begins with the conventional image; its first half iteration is the twin by regression.
"""

from typing import Any

import torch
from dpmrecon.physics.forward import TOLERANCE, ForwardModel
from dpmrecon.prior.conditional import RESIDUAL, ConditionalDenoiser

from .one_step import velocity_loss
from .undersampled import Undersampled

ITERATIONS = 4
CG_STEPS = 8  # of a proximal step, as in the samplers
FIRST_ERROR = 0.03  # standard deviation of a real channel that the network leaves, before training
NOISE_FACTOR, MODEL_ERROR = 0.6, 0.0025  # the noise that the data are taken to have, as the cards say


class Proximal(torch.autograd.Function):
    """`ForwardModel.prox` with gradients of the image and of the weight (batch,), by a second solve."""

    @staticmethod
    def forward(ctx: Any, image: torch.Tensor, weight: torch.Tensor, zero_filled: torch.Tensor, model: ForwardModel):
        found = model.prox(zero_filled, image, weight, CG_STEPS, TOLERANCE)
        ctx.save_for_backward(image, weight, found)
        ctx.model = model
        return found

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor):  # type: ignore[override]
        """With M = A^H A + weight: found = M^-1 (A^H y + weight image), so of the image weight M^-1, and of the weight
        M^-1 (image - found)."""
        image, weight, found = ctx.saved_tensors
        solved = ctx.model.prox(gradient, torch.zeros_like(gradient), weight, CG_STEPS, TOLERANCE)
        of_weight = (solved.conj() * (image - found)).real.sum((1, 2))
        return weight.view(-1, 1, 1) * solved, of_weight, None, None


class Unrolled(ConditionalDenoiser):
    """The conditional denoiser, and the error that each of ITERATIONS proximal steps takes it to leave."""

    def __init__(self, config: dict):
        super().__init__(config)
        self.log_error = torch.nn.Parameter(torch.full((ITERATIONS,), FIRST_ERROR).log())

    def reconstructed(
        self,
        model: ForwardModel,
        zero_filled: torch.Tensor,
        conventional: torch.Tensor,
        acceleration: torch.Tensor,
        sigma_n: torch.Tensor,
        label: torch.Tensor,
    ) -> torch.Tensor:
        """(batch, rows, cols) complex64 at scale 1, as what is given; acceleration, sigma_n: (batch,)."""
        current, ones = conventional, torch.ones_like(sigma_n)
        noise = (NOISE_FACTOR * sigma_n + MODEL_ERROR).square()
        for error in self.log_error.exp():
            velocity = self(torch.zeros_like(current), ones, current, acceleration, sigma_n, label)
            image = (current - RESIDUAL * velocity) * model.support
            current = Proximal.apply(image, noise / error.square(), zero_filled, model)
        return current


def unrolled_loss(
    model: Unrolled, batch: Undersampled, label: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Of the last image, examples weighted as in the regression."""
    found = model.reconstructed(
        batch.model, batch.zero_filled, batch.conventional, batch.acceleration, batch.sigma_n, label
    )
    residual = (batch.clean - batch.conventional) / RESIDUAL
    return velocity_loss((found - batch.clean) / RESIDUAL, torch.zeros_like(found), residual, batch.weight)
