"""The sampler of the kind `one-step`: one evaluation of a conditional denoiser, or a few; data consistency.

SSDM-MRI (Liu et al.) replaces the measured samples at the end. Here the image is moved to the data by the proximal step
of the other samplers, which knows the noise; the paper's replacement is the setting `hard`. A network that was trained
by regression is asked again about its own image, as an unrolled network is. A model with a refiner is one of two
unlike cascades: that smaller network follows, and the proximal step again.
"""

from dataclasses import dataclass, replace

import torch

from ...physics.forward import TOLERANCE
from ..conditional import RESIDUAL, Conditioned, ddim_step
from ..problem import NoiseSource, Problem, Stop, never


@dataclass(frozen=True)
class OneStepSettings:
    """steps: evaluations of the network in all; a_round: of them before the image is moved to the data, None for all;
    further ones begin anew, conditioned on that image; later_acceleration: net R that each round after the first is
    told, over that of the one before, as its image is the nearer one; noise_scale: of the noise that a round begins
    with, 0 gives the same image for every seed; error: std per real channel of what the network leaves, of the scale:
    how far the data may move its image; cg_steps: of that proximal step; noise_factor, model_error: the noise that the
    data are taken to have, as in `SamplerSettings`; hard: put the measured samples in place instead, noise and all.

    Of a model with a refiner the first evaluation is of both networks, each further one of the refiner alone."""

    steps: int = 1
    a_round: int | None = None
    later_acceleration: float = 1.0
    noise_scale: float = 1.0
    error: float = 0.03
    cg_steps: int = 8
    noise_factor: float = 1.0
    model_error: float = 0.0
    hard: bool = False


@torch.no_grad()
def sample_one_step(
    problem: Problem, prior: Conditioned, settings: OneStepSettings, noise: NoiseSource, stop: Stop = never
) -> torch.Tensor:
    """The network's image, moved to the data, and refined where the model has a refiner. (batch, rows, cols) complex64
    at scale 1, of volumes (batch, partitions, rows, cols), whose planes are cut in turn."""
    refiner, conventional = prior.refiner, conventional_image(problem, prior.conditioning)
    if refiner is None:
        return _rounds(problem, prior, settings, noise, stop, conventional)
    image = _rounds(problem, prior, replace(settings, steps=1), noise, never, conventional)
    numbers = net_acceleration(problem).expand(len(image)), problem.sigma_n.expand(len(image))
    for done in range(settings.steps):
        if done and stop():
            break
        difference, time = (conventional - image) / RESIDUAL, 1 / (done + 1)
        velocity = _velocity(problem, refiner, difference, time, image, numbers, done + 1)
        image = consistent(problem, (image - RESIDUAL * velocity) * problem.model.support, settings)
    return image


def _rounds(
    problem: Problem,
    prior: Conditioned,
    settings: OneStepSettings,
    noise: NoiseSource,
    stop: Stop,
    image: torch.Tensor,
) -> torch.Tensor:
    """Rounds of DDIM (Song et al., ICLR 2021) from noise in equal steps, beside `image` at first, then data
    consistency."""
    acceleration = net_acceleration(problem)
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
