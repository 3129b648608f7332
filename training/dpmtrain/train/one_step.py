"""The one-step network: a conditional denoiser is trained, then distilled; and its twin by regression.

After SSDM-MRI (Liu et al.). Teacher: v-prediction at T = 128 times. Distillation: progressive (Salimans and Ho, ICLR
2022): a student of N steps learns where the teacher's DDIM steps lead, the target being the clean image whose single
DDIM step ends there; a stage may halve several times at once. Twin: the same network at t = 1 with nothing in the place
of the noise, so that it learns the mean.
"""

from collections.abc import Callable
from functools import partial

import torch
from dpmrecon.errors import BadInputError
from dpmrecon.prior.conditional import RESIDUAL, ConditionalDenoiser, ddim_step, signal_and_noise
from dpmrecon.prior.denoiser import Denoiser, complex_noise

from .undersampled import Undersampled

TIMES = 128
EASY = 0.1  # of the residual's rms: examples with less of it count as this much
TYPICAL_SIGMA = 0.05  # of what a conventional image lacks, where a denoiser is begun with


def velocity_loss(
    velocity: torch.Tensor, target: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Mean square of v, each pixel times its weight, each example over that of its residual: what is hard to unfold
    would drown the rest."""
    scale = residual.abs().square().mean((1, 2)) / 2 + EASY**2
    return ((weight * (velocity - target).abs().square()).mean((1, 2)) / 2 / scale).mean()


def teacher_loss(
    model: ConditionalDenoiser, batch: Undersampled, label: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """v-prediction at one of TIMES times."""
    residual = residual_of(batch)
    drawn = torch.randint(1, TIMES + 1, (len(residual),), generator=generator, device=residual.device) / TIMES
    alpha, sigma = (value.view(-1, 1, 1) for value in signal_and_noise(drawn))
    noise = complex_noise(tuple(residual.shape), generator)
    velocity = model(alpha * residual + sigma * noise, drawn, *told(batch), label)
    return velocity_loss(velocity, alpha * noise - sigma * residual, residual, batch.weight)


def regression_loss(
    model: ConditionalDenoiser, batch: Undersampled, label: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """The twin: from nothing to the residual. v at t = 1 is its negative."""
    residual = residual_of(batch)
    ones = torch.ones(len(residual), device=residual.device)
    velocity = model(torch.zeros_like(residual), ones, *told(batch), label)
    return velocity_loss(velocity, -residual, residual, batch.weight)


def distillation_loss(
    model: ConditionalDenoiser,
    batch: Undersampled,
    label: torch.Tensor,
    generator: torch.Generator,
    *,
    teacher: ConditionalDenoiser,
    steps: int,
    substeps: int,
) -> torch.Tensor:
    """The student's v where one of its `steps` begins, against that whose DDIM step ends where `substeps` of the
    teacher's do."""
    residual = residual_of(batch)
    begin = torch.randint(1, steps + 1, (len(residual),), generator=generator, device=residual.device) / steps
    alpha, sigma = (value.view(-1, 1, 1) for value in signal_and_noise(begin))
    noisy = alpha * residual + sigma * complex_noise(tuple(residual.shape), generator)
    target = distilled_target(partial(predicted, teacher, batch, label), noisy, begin, 1 / steps, substeps)
    velocity = model(noisy, begin, *told(batch), label)
    return velocity_loss(velocity, (alpha * noisy - target) / sigma, residual, batch.weight)


def distilled_target(
    velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noisy: torch.Tensor,
    begin: torch.Tensor,
    length: float,
    substeps: int,
) -> torch.Tensor:
    """The clean image from which one DDIM step of `length` leads from z_begin to where `substeps` steps lead that
    follow v (Salimans and Ho, appendix G: the DDIM-consistent target)."""
    with torch.no_grad():
        current, now = noisy, begin
        for number in range(substeps):
            following = begin - length * (number + 1) / substeps
            current = ddim_step(current, velocity(current, now), now, following)
            now = following
    alpha, sigma = (value.view(-1, 1, 1) for value in signal_and_noise(begin))
    end_alpha, end_sigma = (value.view(-1, 1, 1) for value in signal_and_noise(now.clamp_min(0)))
    return (current - end_sigma / sigma * noisy) / (end_alpha - end_sigma / sigma * alpha)


def predicted(
    model: ConditionalDenoiser, batch: Undersampled, label: torch.Tensor, noisy: torch.Tensor, now: torch.Tensor
) -> torch.Tensor:
    return model(noisy, now, *told(batch), label)


def residual_of(batch: Undersampled) -> torch.Tensor:
    return (batch.clean - batch.conventional) / RESIDUAL


def told(batch: Undersampled) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return batch.conventional, batch.acceleration, batch.sigma_n


def begin_with(model: ConditionalDenoiser, denoiser: Denoiser) -> None:
    """Weights of a denoiser of the same widths, which takes the conventional image for a noisy one: its error is told
    as v, the noise level as sigma_n, and what is new begins at zero. Raises BadInputError where the widths differ."""
    for name in ("widths", "blocks", "embedding", "labels"):
        if model.config[name] != denoiser.config[name]:
            raise BadInputError(
                f"--start has {name} {denoiser.config[name]} and the recipe {model.config[name]}: a network of other "
                "widths cannot be begun with"
            )
    weights = denoiser.unet.state_dict()
    stem, embedded = weights["stem.weight"], weights["embed_noise.0.weight"]
    weights["stem.weight"] = torch.cat([0 * stem, stem], 1)
    weights["embed_noise.0.weight"] = torch.cat([0 * embedded, 0 * embedded, embedded], 1)
    for name in ("head.weight", "head.bias"):
        weights[name] = -TYPICAL_SIGMA / RESIDUAL * weights[name]
    model.network.load_state_dict(weights)
