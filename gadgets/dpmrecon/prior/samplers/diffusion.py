"""Samplers with a diffusion prior D(x; sigma): `prox`, the default, and `dps`, the reference.

Where no coil sees anything there is no head: outside the coil maps' support the denoised image is set to zero.
sigma, sigma_n and sigma_data are standard deviations per real channel. Noise schedule: Karras et al., NeurIPS 2022.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from ...physics.details import with_details
from ...physics.forward import TOLERANCE
from ...physics.total_variation import smooth_across
from ..problem import NoiseSource, Problem, Stop, never

FURTHEST = 2.0  # exponent by which noise_bend raises noise_factor


class Prior(Protocol):
    """D(x; sigma) of a contrast: x (batch, rows, cols) complex64 and sigma (batch,) to the clean image."""

    @property
    def sigma_data(self) -> float: ...

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor: ...

    def of_planes(self, planes: torch.Tensor, sigma: float, at_once: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class Relay:
    """Two priors of a contrast: `first` above a noise level, `last` from there on (experts by noise: Balaji et al.,
    eDiff-I, 2022)."""

    first: Prior
    last: Prior
    above: float

    @property
    def sigma_data(self) -> float:
        return self.last.sigma_data

    def at(self, sigma: float) -> Prior:
        return self.first if sigma > self.above else self.last


@dataclass(frozen=True)
class SamplerSettings:
    """Settings of `prox` and `dps`; the defaults of a model travel in its card.

    steps: evaluations of the denoiser; sigma_max, sigma_min, rho: noise schedule; eta: share of fresh noise in every
    step of `prox`, 0 is deterministic; noise_scale: fresh noise and that of a warm start is this times sigma, below 1
    because the error of x0 itself is noise to the network too; prior_std, prior_power: `prox` takes the clean image,
    given the noisy one, to be as uncertain as under a white prior of standard deviation prior_std * sigma^prior_power
    (None: the network's sigma_data), which `dpmtrain calibrate` measures; warm_start: begin at the conventional
    reconstruction plus noise of sigma_max instead of at noise alone; cg_steps: at most so many conjugate gradients a
    step of `prox`; cg_tolerance: fewer where the residual is below this times sigma times the right-hand side, since
    noise in proportion to sigma comes on top of what is left; noise_factor, model_error: `prox` takes the data's noise
    to be noise_factor * sigma_n + model_error: the factor is below 1 to trust an imperfect prior less than the data;
    the rest is what coil maps and model leave unexplained where noise is low; noise_bend: the factor falls as
    exp(-noise_bend * sigma_n), or rises where it is below 0, up to e^2 times: the noisier the data, the more small
    lesions the prior misses, and the more of the noise it may take away where the data have a say after it;
    least_error, least_of_noise: least_error + least_of_noise * sigma_n, if above 0, is the error of the last denoised
    image, over that noise, as `prox` takes it: the data keep a say where noise is high; error_floor: the same error at
    least, where noise is low and the network's last error above sigma_min; detail, detail_of_noise: detail +
    detail_of_noise * sigma_n, if above 0, is the standard deviation, over the signal of the tissue, of structures of
    detail_width pixels that the last image may lack and the data are asked for (`physics.details`); turns: `prox` shows
    the network each step's image in another of the 8 orientations it was trained in, so that its preferences for one
    average out; across: weight, over sigma, of the total variation across the planes that the network has just seen of
    a volume and cannot make agree (after DiffusionMBIR: Chung et al., CVPR 2023); volumes_above: of slices, evaluations
    above this sigma are of the model of volumes, where there is one, which was trained inside the sampler and takes
    less of what folds for anatomy; None: none; zeta: step size of the data term of `dps`.
    """

    steps: int = 20
    sigma_max: float = 1.0
    sigma_min: float = 0.01
    rho: float = 7.0
    eta: float = 1.0
    noise_scale: float = 1.0
    prior_std: float | None = None
    prior_power: float = 0.0
    warm_start: bool = True
    cg_steps: int = 10
    cg_tolerance: float = 0.0
    noise_factor: float = 1.0
    model_error: float = 0.0
    noise_bend: float = 0.0
    least_error: float = 0.0
    least_of_noise: float = 0.0
    error_floor: float = 0.0
    detail: float = 0.0
    detail_of_noise: float = 0.0
    detail_width: float = 0.7
    turns: bool = False
    across: float = 0.0
    volumes_above: float | None = None
    zeta: float = 2.0

    @property
    def seeded(self) -> bool:
        """Whether samples of other seeds are other images."""
        return self.noise_scale > 0 or not self.warm_start


def noise_levels(settings: SamplerSettings) -> list[float]:
    """sigma_0 = sigma_max ... sigma_{N-1} = sigma_min, and sigma_N = 0."""
    n, rho = settings.steps, settings.rho
    high, low = settings.sigma_max ** (1 / rho), settings.sigma_min ** (1 / rho)
    return [(high + i / max(n - 1, 1) * (low - high)) ** rho for i in range(n)] + [0.0]


def initial_image(problem: Problem, noise: NoiseSource, settings: SamplerSettings) -> torch.Tensor:
    """Where the samplers begin: noise of sigma_max, around the conventional image for a warm start."""
    x = settings.sigma_max * noise.draw(*problem.start.shape[1:])
    return problem.start + settings.noise_scale * x if settings.warm_start else x


def denoised_images(prior: Prior, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """D(x; sigma) of (batch, rows, cols) or (batch, n_sets, rows, cols): the image of every map is one to the prior."""
    images = x.flatten(0, -3)
    return prior(images, torch.full((len(images),), sigma, device=x.device)).reshape(x.shape)


def denoised_step(
    prior: Prior | Relay,
    x: torch.Tensor,
    sigma: float,
    orientation: int,
    problem: Problem,
    settings: SamplerSettings,
    step: int,
) -> torch.Tensor:
    """What the network makes of the image of a step, shown to it in one of its orientations: of slices, or of the
    planes of a volume."""
    planes = problem.planes
    prior = prior.at(sigma) if isinstance(prior, Relay) else prior
    if planes is None:
        return turned_back(denoised_images(prior, turned(x, orientation), sigma), orientation)
    axis = planes.axes[step % len(planes.axes)] + 1
    across = x.flatten(0, -4).movedim(axis, 1)  # the image of every map is one to the prior
    images = turned(across.flatten(0, 1), orientation).contiguous()
    found = turned_back(prior.of_planes(images, sigma, planes.at_once), orientation).unflatten(0, across.shape[:2])
    if settings.across > 0:
        found = torch.stack([smooth_across(volume, settings.across * sigma) for volume in found])
    return found.movedim(1, axis).reshape(x.shape)


def turned(image: torch.Tensor, orientation: int) -> torch.Tensor:
    """One of the 8 orientations of (..., rows, cols): bits 1 and 2 flip rows and columns, bit 4 then swaps them."""
    image = image.flip([axis for axis, bit in ((-2, 1), (-1, 2)) if orientation & bit])
    return image.mT if orientation & 4 else image


def turned_back(image: torch.Tensor, orientation: int) -> torch.Tensor:
    """The inverse of `turned`."""
    image = image.mT if orientation & 4 else image
    return image.flip([axis for axis, bit in ((-2, 1), (-1, 2)) if orientation & bit])


@torch.no_grad()
def sample_prox(
    problem: Problem,
    prior: Prior | Relay,
    settings: SamplerSettings,
    noise: NoiseSource,
    stop: Stop = never,
) -> torch.Tensor:
    """The default: each denoised image is moved to the data by a proximal step; no back-propagation.

    x0 = argmin ||A x - y||^2 / sigma_n^2 + ||x - D(x)||^2 / r^2, with r^2 the variance of x0 given the noisy image
    under a white prior (DDS: Chung et al., ICLR 2024; DiffPIR: Zhu et al., 2023).
    """
    levels = noise_levels(settings)
    n_axes = 1 if problem.planes is None else len(problem.planes.axes)  # each is shown in every orientation
    x = initial_image(problem, noise, settings)
    x0 = x
    for step, (sigma, sigma_next) in enumerate(zip(levels, levels[1:])):
        orientation = step // n_axes % 8 if settings.turns else 0
        denoised = denoised_step(prior, x, sigma, orientation, problem, settings, step) * problem.model.support
        weight, tolerance = data_weight(problem, prior, settings, sigma), max(settings.cg_tolerance * sigma, TOLERANCE)
        if sigma_next == 0:
            weight = last_weight(weight, problem, settings)
        x0 = problem.model.prox(problem.zero_filled, denoised, weight, settings.cg_steps, tolerance)
        if sigma_next == 0:
            return detailed(x0, problem, settings)
        if stop():
            break
        x = next_image(x0, x, (sigma, sigma_next), settings, noise)
    return x0


def data_weight(problem: Problem, prior: Prior | Relay, settings: SamplerSettings, sigma: float) -> torch.Tensor:
    """sigma_n^2 / r^2 of `sample_prox`, (batch,)."""
    white = (prior.sigma_data if settings.prior_std is None else settings.prior_std) * sigma**settings.prior_power
    return data_noise(problem, settings).square() / (sigma**2 * white**2 / (sigma**2 + white**2))


def data_noise(problem: Problem, settings: SamplerSettings) -> torch.Tensor:
    """sigma_n as `prox` takes it, (batch,)."""
    factor = settings.noise_factor * torch.exp((-settings.noise_bend * problem.sigma_n).clamp_max(FURTHEST))
    return factor * problem.sigma_n + settings.model_error


def last_weight(weight: torch.Tensor, problem: Problem, settings: SamplerSettings) -> torch.Tensor:
    """No larger than the errors that the last denoised image has at least allow."""
    least = (settings.least_error + settings.least_of_noise * problem.sigma_n.double()).clamp_min(0)
    weight = weight.minimum(least.pow(-2).to(weight.dtype))
    if settings.error_floor > 0:
        weight = weight.minimum((data_noise(problem, settings) / settings.error_floor).square())
    return weight


def detailed(x0: torch.Tensor, problem: Problem, settings: SamplerSettings) -> torch.Tensor:
    """The last image with the structures that the data tell and the network did not see."""
    deviation = (settings.detail + settings.detail_of_noise * problem.sigma_n).clamp_min(0)
    if not bool(deviation.any()):
        return x0
    noise = problem.sigma_n + settings.model_error
    n_axes = 2 if problem.planes is None else 3
    return with_details(problem.model, problem.zero_filled, x0, noise, deviation, settings.detail_width, n_axes)


def next_image(
    x0: torch.Tensor, x: torch.Tensor, sigmas: tuple[float, float], settings: SamplerSettings, noise: NoiseSource
) -> torch.Tensor:
    """The noisy image of the next step of `sample_prox`. sigmas: of this step and the next."""
    sigma, sigma_next = sigmas
    x = x0 + (sigma_next / sigma) * (1 - settings.eta**2) ** 0.5 * (x - x0)
    if settings.eta > 0:
        x = x + settings.noise_scale * sigma_next * settings.eta * noise.draw(*x.shape[1:])
    return x


def sample_dps(
    problem: Problem,
    prior: Prior,
    settings: SamplerSettings,
    noise: NoiseSource,
    stop: Stop = never,
) -> torch.Tensor:
    """Algorithm 1 of the paper in its consistent form, the reference (DPS: Chung et al., ICLR 2023).

    Euler steps of the probability-flow ODE, each with a step of size zeta down the gradient of ||A D(x) - y||,
    taken through the network. zeta = 1 equals scale 2 in the authors' code. Not for volumes, for whose gradients memory
    lacks.
    """
    levels = noise_levels(settings)
    x = initial_image(problem, noise, settings)
    for sigma, sigma_next in zip(levels, levels[1:]):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = denoised_images(prior, x, sigma) * problem.model.support
            residual = torch.view_as_real(problem.model.forward(denoised) - problem.kspace)
            squared = residual.square().sum((1, 2, 3, 4))
            (gradient,) = torch.autograd.grad(squared.sum(), x)
        if stop():
            return denoised.detach()
        with torch.no_grad():
            step = settings.zeta / squared.sqrt().clamp_min(1e-12)
            x = x + (sigma_next - sigma) / sigma * (x - denoised) - step.view(-1, *[1] * (x.ndim - 1)) * gradient
    return x.detach()
