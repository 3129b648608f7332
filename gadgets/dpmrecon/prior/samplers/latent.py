"""Samplers with a latent diffusion prior: `latent`, multi-coil and complex, and `latent-hard`, the paper's.

LDPM's dual stage (Tang et al.), with DDIM steps (Song et al., ICLR 2021). A Sketcher's image is the ControlNet's, and
where sampling begins. Above the time p the image behind z0-hat is moved to the data; from p down z0-hat moves along the
k-space residual's gradient, through the decoder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ..conditional import ConditionalDenoiser, Conditioned
from ..denoiser import uncounted
from ..latent import LatentPrior
from ..problem import NoiseSource, Problem, Stop, never
from .one_step import OneStepSettings, sample_one_step

CG_STEPS = 10
# of the sketches
SKETCH = OneStepSettings(noise_scale=0.0, error=0.02, noise_factor=0.4, model_error=0.005)

Consistency = Callable[[Problem, LatentPrior, "LatentSettings", torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class LatentSettings:
    """Settings of both samplers; the defaults of a model travel in its card.

    steps: evaluations of the U-Net, evenly spaced in time; first: the time T to begin at, at noise alone where it is
    the schedule's last, else at the sketch's latent with noise; noise_scale: that noise over the time's, below 1 as
    the sketch's own error is noise to the network too; p: data consistency above this time, guidance from it down;
    guidance: g, times the gradient of the squared residual in k-space; eta: share of fresh noise in a step, 0 is
    deterministic; prior_std: what a decoded image may be wrong by, per real channel, where z is noise alone (it shrinks
    with the noise); final_std: the same of the last image, which is moved to the data once more.
    """

    steps: int = 20
    first: int = 1000
    p: int = 200
    guidance: float = 0.1
    eta: float = 0.0
    noise_scale: float = 1.0
    prior_std: float = 0.1
    final_std: float = 0.05

    @property
    def seeded(self) -> bool:
        """Whether samples of other seeds are other images. `first` may be all of the schedule, which the model has."""
        return True


@dataclass(frozen=True)
class Sketcher:
    """What makes the sketch: a network of the kind one-step, trained by regression, and data consistency."""

    denoiser: ConditionalDenoiser
    settings: OneStepSettings

    def image(self, problem: Problem, labels: list[str | None], noise: NoiseSource, stop: Stop = never) -> torch.Tensor:
        """(batch, rows, cols) complex64 at scale 1; labels: of each image, or one for all."""
        prior = Conditioned(self.denoiser, self.denoiser.one_hot(labels), uncounted)
        return sample_one_step(problem, prior, self.settings, noise, stop)


def sketch(problem: Problem, prior: LatentPrior, noise: NoiseSource, stop: Stop = never) -> torch.Tensor:
    """What the ControlNet is shown, (batch, ..., rows, cols) complex64: the Sketcher's image, moved to the data, or
    CG-SENSE for a model without Sketcher."""
    sketcher = prior.model.sketcher
    return problem.start if sketcher is None else sketcher.image(problem, [prior.label], noise, stop)


def times(settings: LatentSettings, trained: int) -> list[int]:
    """The times of the steps, evenly spaced from first - 1 down; 0 comes after the last."""
    first = min(settings.first, trained)
    return [round((settings.steps - i) * first / settings.steps) - 1 for i in range(settings.steps)]


def near_data(problem: Problem, image: torch.Tensor, std: float, cg_steps: int = CG_STEPS) -> torch.Tensor:
    """The exact proximal step: argmin ||A x - y||^2 / sigma_n^2 + ||x - image||^2 / std^2."""
    weight = (problem.sigma_n / max(std, 1e-3)).square().clamp_min(1e-6)
    return problem.model.prox(problem.zero_filled, image * problem.model.support, weight, cg_steps)


def on_data(problem: Problem, image: torch.Tensor) -> torch.Tensor:
    """The magnitude image with the sampled k-space replaced by the data: hard consistency."""
    image = image.abs().to(image.dtype)
    return image + problem.model.adjoint(problem.kspace - problem.model.forward(image))


def soft(problem: Problem, prior: LatentPrior, settings: LatentSettings, z: torch.Tensor, noise: float) -> torch.Tensor:
    """z with the change that the proximal step makes to its image: what the autoencoder loses does not add up."""
    image = _decoded(prior, z, problem)
    moved = near_data(problem, image, settings.prior_std * noise)
    return z + _encoded(prior, moved) - _encoded(prior, image)


def hard(problem: Problem, prior: LatentPrior, settings: LatentSettings, z: torch.Tensor, noise: float) -> torch.Tensor:
    """As the paper has it: the image on the data, encoded."""
    return _encoded(prior, on_data(problem, _decoded(prior, z, problem)))


def guided(problem: Problem, prior: LatentPrior, settings: LatentSettings, z: torch.Tensor) -> torch.Tensor:
    """z less g times the gradient of ||A decode(z) - y||^2."""
    if settings.guidance == 0:
        return z
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        residual = problem.model.forward(_decoded(prior, at, problem)) - problem.kspace
        (slope,) = torch.autograd.grad(torch.view_as_real(residual).square().sum(), at)
    return z - settings.guidance * slope


@torch.no_grad()
def sample_latent(
    problem: Problem, prior: LatentPrior, settings: LatentSettings, noise: NoiseSource, stop: Stop = never
) -> torch.Tensor:
    """Multi-coil, complex, data consistency by the proximal step with sigma_n. The sketch is given the change from its
    latent to the sampled one: what the autoencoder loses of it stays."""
    first = sketch(problem, prior, noise, stop)
    shown = _encoded(prior, first)
    z = _sampled(problem, prior, settings, noise, stop, soft, shown)
    image = first + _decoded(prior, z, problem) - _decoded(prior, shown, problem)
    return near_data(problem, image, settings.final_std, problem.model.cg_steps)


@torch.no_grad()
def sample_latent_hard(
    problem: Problem, prior: LatentPrior, settings: LatentSettings, noise: NoiseSource, stop: Stop = never
) -> torch.Tensor:
    """The paper's: k-space of a magnitude image, in which the sampled part is replaced."""
    shown = _encoded(prior, sketch(problem, prior, noise, stop))
    return on_data(problem, _decoded(prior, _sampled(problem, prior, settings, noise, stop, hard, shown), problem))


def _sampled(
    problem: Problem,
    prior: LatentPrior,
    settings: LatentSettings,
    noise: NoiseSource,
    stop: Stop,
    consistent: Consistency,
    shown: torch.Tensor,
) -> torch.Tensor:
    """z0 of the last step. shown: the sketch's latent."""
    trained = len(prior.model.alphas)
    steps = times(settings, trained)
    draw = partial(_latent_noise, prior, problem, noise)
    begin = prior.model.alphas[steps[0]]
    spread = settings.noise_scale * (1 - begin).sqrt()
    z = draw() if settings.first >= trained else begin.sqrt() * shown + spread * draw()
    clean = z
    for t, after in zip(steps, [*steps[1:], None]):
        clean, direction = prior.clean_and_noise(z, t, shown)
        share = float((1 - prior.model.alphas[t]).sqrt())
        if t > settings.p:
            clean = consistent(problem, prior, settings, clean, share)
        else:
            clean = guided(problem, prior, settings, clean)
        if after is None or stop():
            break
        now, then = prior.model.alphas[t], prior.model.alphas[after]
        fresh = settings.eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
        z = then.sqrt() * clean + (1 - then - fresh.square()).sqrt() * direction
        if settings.eta > 0:
            z = z + fresh * draw()
    return clean


def _latent_noise(prior: LatentPrior, problem: Problem, noise: NoiseSource) -> torch.Tensor:
    """Noise of unit standard deviation like the latents of the problem's images."""
    channels, rows, cols = prior.model.latent_shape(*problem.start.shape[-2:])
    drawn = torch.view_as_real(noise.draw(*problem.start.shape[1:-2], -(-channels // 2), rows, cols))
    return drawn.movedim(-1, -3).flatten(-4, -3)[..., :channels, :, :].reshape(-1, channels, rows, cols)


def _encoded(prior: LatentPrior, images: torch.Tensor) -> torch.Tensor:
    return prior.model.encode(images.flatten(0, -3))


def _decoded(prior: LatentPrior, z: torch.Tensor, problem: Problem) -> torch.Tensor:
    return prior.model.decode(z, *problem.start.shape[-2:]).reshape(problem.start.shape)
