"""The refiner: a small network after a trained one-step network, which stays as it is.

Together they are an unrolled network of unlike cascades: the one-step network, our proximal step, the refiner, the
proximal step.
"""

import torch
from dpmrecon.errors import BadInputError
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.prior.conditional import RESIDUAL, ConditionalDenoiser

from .one_step import residual_of, told, velocity_loss
from .undersampled import Undersampled
from .unrolled import Proximal

NOISE_FACTOR, MODEL_ERROR = 0.4, 0.005  # the noise that the data are taken to have, as the card of one-step says
ERROR = (0.012, 0.03)  # standard deviation of a real channel that the networks leave, log-uniform
LEFT = 0.4  # of the conventional image's error, about what the networks leave


def with_refiner(refined: Checkpoint, refiner: ConditionalDenoiser) -> ConditionalDenoiser:
    """The one-step network, frozen, with `refiner`'s network after it, whose last layer begins at zero; a refiner that
    it has is left out.

    Raises BadInputError where `refined` is no one-step network of the same labels.
    """
    model = refined.model
    if not isinstance(model, ConditionalDenoiser):
        raise BadInputError(f"--refine {refined.model_id} is of another kind than one-step: name another model")
    for name in ("labels", "conditioning"):
        if model.config[name] != refiner.config[name]:
            raise BadInputError(
                f"--refine has {name} {model.config[name]} and the recipe {refiner.config[name]}: give the recipe those"
            )
    own = {name: refiner.config[name] for name in ("widths", "blocks", "embedding")}
    found = ConditionalDenoiser({**model.config, "refiner": own})
    assert found.refiner is not None
    found.network.load_state_dict(model.network.state_dict())
    found.network.requires_grad_(False)
    found.refiner.load_state_dict(refiner.network.state_dict())
    for parameter in found.refiner.head.parameters():
        torch.nn.init.zeros_(parameter)
    return found


def both_of(refined: Checkpoint, config: dict) -> ConditionalDenoiser:
    """The one-step network and its refiner, to be trained on together.

    Raises BadInputError where `refined` has no refiner, or its network is not of `config`.
    """
    model = refined.model
    if not isinstance(model, ConditionalDenoiser) or model.refiner is None:
        raise BadInputError(f"--refine {refined.model_id} has no refiner: train one first, by the stage refiner")
    if {name: value for name, value in model.config.items() if name != "refiner"} != config:
        raise BadInputError(
            f"--refine {refined.model_id} is no network of the recipe's [model]: give the recipe its own"
        )
    model.later = None  # no part of what is trained
    return model.requires_grad_(True)


def refiner_loss(
    model: ConditionalDenoiser, batch: Undersampled, label: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Of the image after the refiner and the proximal step, each example over the error of the image before."""
    weight = data_weight(batch, generator)
    with torch.no_grad():
        image = first_image(model, batch, label, weight)
    left = (refined_image(model, batch, label, weight, image) - batch.clean) / RESIDUAL
    return velocity_loss(left, torch.zeros_like(left), (batch.clean - image) / RESIDUAL, batch.weight)


def together_loss(
    model: ConditionalDenoiser, batch: Undersampled, label: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Of the same image, with gradients of both networks through both proximal steps."""
    weight = data_weight(batch, generator)
    image = first_image(model, batch, label, weight)
    left = (refined_image(model, batch, label, weight, image) - batch.clean) / RESIDUAL
    return velocity_loss(left, torch.zeros_like(left), LEFT * residual_of(batch), batch.weight)


def data_weight(batch: Undersampled, generator: torch.Generator) -> torch.Tensor:
    """Of the proximal steps, (batch,)."""
    sigma_n = batch.sigma_n
    low, high = (torch.tensor(value).log() for value in ERROR)
    error = torch.exp(low + (high - low) * torch.rand(len(sigma_n), generator=generator, device=sigma_n.device))
    return ((NOISE_FACTOR * sigma_n + MODEL_ERROR) / error).square()


def first_image(
    model: ConditionalDenoiser, batch: Undersampled, label: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """The one-step network's image, moved to the data."""
    conventional, ones = batch.conventional, torch.ones_like(batch.sigma_n)
    velocity = model(torch.zeros_like(conventional), ones, *told(batch), label)
    return _consistent(batch, conventional - RESIDUAL * velocity, weight)


def refined_image(
    model: ConditionalDenoiser, batch: Undersampled, label: torch.Tensor, weight: torch.Tensor, image: torch.Tensor
) -> torch.Tensor:
    """The refiner's image, moved to the data."""
    conventional, acceleration, sigma_n = told(batch)
    difference, ones = (conventional - image) / RESIDUAL, torch.ones_like(sigma_n)
    velocity = model.refine(difference, ones, image, acceleration, sigma_n, label)
    return _consistent(batch, image - RESIDUAL * velocity, weight)


def _consistent(batch: Undersampled, image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return Proximal.apply(image * batch.model.support, weight, batch.zero_filled, batch.model)
