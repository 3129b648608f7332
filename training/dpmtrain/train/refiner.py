"""The refiner: a small network after a trained one-step network, which stays as it is.

Together they are an unrolled network of unlike cascades: the one-step network, our proximal step, the refiner, the
proximal step. As the refiner may be asked again about its own image, a part of its examples are such images.
"""

import torch
from dpmrecon.errors import BadInputError
from dpmrecon.physics.forward import TOLERANCE
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.prior.conditional import RESIDUAL, ConditionalDenoiser

from .one_step import told, velocity_loss
from .undersampled import Undersampled
from .unrolled import CG_STEPS, Proximal

NOISE_FACTOR, MODEL_ERROR = 0.4, 0.005  # the noise that the data are taken to have, as the card of one-step says
ERROR = (0.012, 0.03)  # standard deviation of a real channel that the networks leave, log-uniform
PASSES = (0.6, 0.2, 0.1, 0.1)  # probabilities that this many of the refiner come before


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


def refiner_loss(
    model: ConditionalDenoiser, batch: Undersampled, label: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Of the image after the refiner and the proximal step, each example over the error of the image before."""
    conventional, acceleration, sigma_n = told(batch)
    low, high = (torch.tensor(value).log() for value in ERROR)
    drawn = torch.rand(len(sigma_n), generator=generator, device=sigma_n.device)
    error = torch.exp(low + (high - low) * drawn)
    weight = ((NOISE_FACTOR * sigma_n + MODEL_ERROR) / error).square()
    shares = torch.tensor(PASSES, device=sigma_n.device)
    before = int(torch.multinomial(shares, 1, generator=generator))

    def refined(image: torch.Tensor, passes: int) -> torch.Tensor:
        difference, time = (conventional - image) / RESIDUAL, torch.full_like(sigma_n, 1 / passes)
        velocity = model.refine(difference, time, image, acceleration, sigma_n, label)
        return Proximal.apply(
            (image - RESIDUAL * velocity) * batch.model.support, weight, batch.zero_filled, batch.model
        )

    with torch.no_grad():
        velocity = model(torch.zeros_like(conventional), torch.ones_like(sigma_n), *told(batch), label)
        image = (conventional - RESIDUAL * velocity) * batch.model.support
        image = batch.model.prox(batch.zero_filled, image, weight, CG_STEPS, TOLERANCE)
        for passes in range(before):
            image = refined(image, passes + 1)
    left = (refined(image, before + 1) - batch.clean) / RESIDUAL
    return velocity_loss(left, torch.zeros_like(left), (batch.clean - image) / RESIDUAL)
