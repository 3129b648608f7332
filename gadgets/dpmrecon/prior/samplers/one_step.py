"""The sampler of the kind `one-step`: one evaluation of a conditional denoiser, or a few; data consistency.

SSDM-MRI (Liu et al.) replaces the measured samples at the end. Here the image is moved to the data by the proximal step
of the other samplers, which knows the noise; the paper's replacement is the setting `hard`. A model with a refiner is
an unrolled network of two unlike cascades: that smaller network follows, and the proximal step again. Its image is near
enough for a diffusion prior to end in a few evaluations at low noise levels, by the sampler `prox`.
"""

from dataclasses import dataclass, replace

import torch

from ...physics.forward import TOLERANCE
from ..conditional import RESIDUAL, Conditioned, ddim_step
from ..problem import NoiseSource, Problem, Stop, never
from .diffusion import SamplerSettings, sample_prox


@dataclass(frozen=True)
class OneStepSettings:
    """steps: evaluations in all, that of the refiner counts with the network's; a_round: of them before the image is
    moved to the data, None for all; further ones begin anew, conditioned on that image; later_acceleration: net R that
    each round after the first is told, over that of the one before, as its image is the nearer one; noise_scale: of the
    noise that a round begins with, 0 gives the same image for every seed; error: std per real channel of what the
    network leaves, of the scale: how far the data may move its image; cg_steps: of that proximal step; noise_factor,
    model_error: the noise that the data are taken to have, as in `SamplerSettings`; hard: put the measured samples in
    place instead, noise and all.

    sigma_max: evaluations after the first are of the model's diffusion prior, at noise levels from this one to
    sigma_min, without noise; None: of the network. looser: error of the image that these go on from, over `error`, as
    they move it to the data again. across: as in `SamplerSettings`."""

    steps: int = 1
    a_round: int | None = None
    later_acceleration: float = 1.0
    noise_scale: float = 1.0
    error: float = 0.03
    cg_steps: int = 8
    noise_factor: float = 1.0
    model_error: float = 0.0
    hard: bool = False
    sigma_max: float | None = None
    sigma_min: float = 0.01
    looser: float = 1.0
    across: float = 0.0

    @property
    def seeded(self) -> bool:
        """Whether samples of other seeds are other images."""
        return self.noise_scale > 0


@torch.no_grad()
def sample_one_step(
    problem: Problem, prior: Conditioned, settings: OneStepSettings, noise: NoiseSource, stop: Stop = never
) -> torch.Tensor:
    """The network's image, moved to the data, refined where the model has a refiner, and ended by the diffusion prior
    where the settings say so. (batch, rows, cols) complex64 at scale 1, of volumes (batch, partitions, rows, cols),
    whose planes are cut in turn."""
    if settings.sigma_max is None or settings.steps == 1:
        return refined(problem, prior, settings, _rounds(problem, prior, settings, noise, stop))
    own = replace(settings, steps=1, error=settings.looser * settings.error)
    image = refined(problem, prior, own, _rounds(problem, prior, own, noise, stop))
    return image if stop() else ended(problem, prior, settings, image, noise, stop)


def refined(problem: Problem, prior: Conditioned, settings: OneStepSettings, image: torch.Tensor) -> torch.Tensor:
    """The refiner's image, moved to the data; `image` itself of a model without one."""
    if prior.refiner is None:
        return image
    numbers = net_acceleration(problem).expand(len(image)), problem.sigma_n.expand(len(image))
    difference = (conventional_image(problem, prior.conditioning) - image) / RESIDUAL
    velocity = _velocity(problem, prior.refiner, difference, 1.0, image, numbers, settings.steps)
    return consistent(problem, (image - RESIDUAL * velocity) * problem.model.support, settings)


def ended(
    problem: Problem,
    prior: Conditioned,
    settings: OneStepSettings,
    image: torch.Tensor,
    noise: NoiseSource,
    stop: Stop,
) -> torch.Tensor:
    """By the last steps of `prox` from `image` on; of a volume across the axis that comes next first."""
    assert prior.later is not None and settings.sigma_max is not None
    planes, steps = problem.planes, settings.steps - 1
    if planes is not None:
        planes = replace(planes, axes=(*planes.axes[1:], planes.axes[0]))
    last = SamplerSettings(
        steps=steps,
        sigma_max=settings.sigma_max if steps > 1 else settings.sigma_min,
        sigma_min=settings.sigma_min,
        noise_scale=0.0,
        cg_steps=settings.cg_steps,
        noise_factor=settings.noise_factor,
        model_error=settings.model_error,
        turns=True,
        across=settings.across,
    )
    return sample_prox(replace(problem, start=image, planes=planes), prior.later, last, noise, stop)


def _rounds(
    problem: Problem,
    prior: Conditioned,
    settings: OneStepSettings,
    noise: NoiseSource,
    stop: Stop,
) -> torch.Tensor:
    """Rounds of DDIM (Song et al., ICLR 2021) from noise in equal steps, then data consistency. A network that was
    trained by regression is asked again about its own image, as an unrolled network is."""
    acceleration, image = net_acceleration(problem), conventional_image(problem, prior.conditioning)
    done, stopped = 0, False
    while done < settings.steps and not stopped:
        current = settings.noise_scale * noise.draw(*problem.start.shape[1:])
        beside = image.expand_as(current)
        numbers = acceleration.expand(len(current)), problem.sigma_n.expand(len(current))
        count = min(settings.a_round or settings.steps, settings.steps - done)
        for step in range(count):
            time, following = (torch.tensor(1 - number / count) for number in (step, step + 1))
            velocity = _velocity(problem, prior, current, float(time), beside, numbers, done)
            done += 1
            stopped = done < settings.steps and stop()
            current = ddim_step(current, velocity, time, torch.zeros(()) if stopped else following)
            if stopped:
                break
        image = consistent(problem, (beside + RESIDUAL * current) * problem.model.support, settings)
        acceleration = (settings.later_acceleration * acceleration).clamp_min(1)
    return image


def consistent(problem: Problem, image: torch.Tensor, settings: OneStepSettings) -> torch.Tensor:
    """The image moved to the data."""
    if settings.hard:
        return replaced(problem, image)
    sigma_n = settings.noise_factor * problem.sigma_n + settings.model_error
    weight = sigma_n.square() / settings.error**2
    return problem.model.prox(problem.zero_filled, image, weight, settings.cg_steps, TOLERANCE)


def replaced(problem: Problem, image: torch.Tensor) -> torch.Tensor:
    """The image with measured samples for its own, coil by coil, combined again."""
    return image + problem.zero_filled - problem.model.normal(image)


def conventional_image(problem: Problem, conditioning: str) -> torch.Tensor:
    """What the network is conditioned on; it may be one for all."""
    return problem.start if conditioning == "cg-sense" else problem.zero_filled


def net_acceleration(problem: Problem) -> torch.Tensor:
    """(batch,), or (1,) where the mask is one for all: samples of the matrix over those acquired."""
    mask = problem.model.mask
    mask = mask.flatten(1) if mask.ndim == 4 else mask.reshape(1, -1)
    return 1 / mask.mean(1).clamp_min(1e-3)


def _velocity(
    problem: Problem,
    prior: Conditioned,
    current: torch.Tensor,
    time: float,
    conventional: torch.Tensor,
    numbers: tuple[torch.Tensor, torch.Tensor],
    step: int,
) -> torch.Tensor:
    planes = problem.planes
    if planes is None:
        images = current.flatten(0, -3)  # the image of every map is one to the network
        sets = len(images) // len(current)
        each = (values.repeat_interleave(sets) for values in numbers)
        return prior(images, time, conventional.reshape(images.shape), *each).reshape(current.shape)
    axis = planes.axes[step % len(planes.axes)] + 1
    images, beside = (image.flatten(0, -4).movedim(axis, 1) for image in (current, conventional))
    across, (images, beside) = images, (image.flatten(0, 1).contiguous() for image in (images, beside))
    found = prior.of_planes(images, time, beside, numbers[0][:1], numbers[1][:1], planes.at_once)
    return found.unflatten(0, across.shape[:2]).movedim(1, axis).reshape(current.shape)
