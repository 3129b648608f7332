"""A denoiser trained inside the sampler: on the images that `prox` shows it of simulated scans.

These are no clean images with white noise: folded signal, errors of the coil maps and what the network itself left come
with them. Trained on noise alone it takes such for anatomy. A step of training is a run of `prox` on a batch of slices.
At some evaluations the network is told where the truth lies; the run goes on with what it answered (DAgger: Ross et
al., AISTATS 2011), and no gradient passes to the next. Runs on volumes take longer and are kept: `volume_runs`. A part
of the loss is of plain denoising, so that it stays a denoiser.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import torch
from dpmrecon.prior.denoiser import ContrastDenoiser, Denoiser, complex_noise, uncounted
from dpmrecon.prior.problem import NoiseSource, Problem
from dpmrecon.prior.samplers.diffusion import SamplerSettings, sample_prox

from .batches import Batch
from .train import denoising_loss
from .undersampled import Undersampled

STEPS = (8, 16)  # of a run
TRAINED = 4  # of its evaluations: the last one, and others at random
SIGMA_MAX, SIGMA_MIN = 0.5, 0.01
NOISE_SCALE = (0.0, 0.4)
NOISE_FACTOR, MODEL_ERROR = (0.5, 1.6), 0.003  # drawn log-uniform; as the cards say
LEAST_ERROR = 3e-3  # of an image that the network is shown, so that those without any do not count for all
PLAIN, DRAWS = 1.0, 2  # weight of plain denoising, its draws of noise for each image
P_MEAN, P_STD = -1.8, 1.2  # of the logarithm of its noise


@dataclass(frozen=True)
class Shown(ContrastDenoiser):
    """The network in training in the place of a prior.

    losses: of the evaluations in `trained`, whose gradients are kept; numbers: of the evaluations to come.
    """

    batch: Undersampled
    trained: set[int]
    losses: list[torch.Tensor] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        trained = next(self.numbers) in self.trained
        with torch.set_grad_enabled(trained):
            found = super().__call__(x, sigma)
            if trained:
                self.losses.append(self._loss(x, found))
        return found.detach()

    def _loss(self, x: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """Mean square on the head, each example over that of the image that was shown."""
        clean, support = self.batch.clean, self.batch.model.support
        left = (self.batch.weight * squared((found - clean) * support)).mean((1, 2))
        return (left / squared((x - clean) * support).mean((1, 2)).clamp_min(LEAST_ERROR**2)).mean()


@dataclass(frozen=True)
class InSamplerLoss:
    """Of plain denoising and, with a weight, of runs on slices; in a share of the steps of volumes too, with a weight.

    volumes: their loss, as `VolumeRuns`.
    """

    slices: float = 1.0
    volumes: Callable[[Denoiser, torch.Generator], torch.Tensor] | None = None
    share: float = 1.0
    weight: float = 0.0

    def __call__(
        self, model: Denoiser, batch: Undersampled, label: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        loss = PLAIN * plain_loss(model, batch, label, generator)
        if self.slices > 0:
            loss = loss + self.slices * slices_loss(model, batch, label, generator)
        if self.volumes is None or uniform(0, 1, generator) >= self.share:
            return loss
        return loss + self.weight * self.volumes(model, generator)


def slices_loss(model: Denoiser, batch: Undersampled, label: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Of TRAINED evaluations of one run of `prox`."""
    settings = drawn_settings(STEPS, NOISE_SCALE, NOISE_FACTOR, generator)
    prior = Shown(model, label, uncounted, batch, _trained(settings.steps, generator))
    problem = Problem(batch.model, batch.zero_filled, batch.zero_filled, batch.sigma_n, batch.conventional)
    sample_prox(problem, prior, settings, DeviceNoise(len(batch.clean), generator))
    return torch.stack(prior.losses).mean()


def drawn_settings(
    steps: tuple[int, int], scale: tuple[float, float], factor: tuple[float, float], generator: torch.Generator
) -> SamplerSettings:
    """steps, noise_scale and noise_factor: from and to."""
    return SamplerSettings(
        steps=round(uniform(*steps, generator)),
        sigma_max=SIGMA_MAX,
        sigma_min=SIGMA_MIN,
        noise_scale=uniform(*scale, generator),
        cg_steps=4,
        cg_tolerance=0.04,
        noise_factor=math.exp(uniform(math.log(factor[0]), math.log(factor[1]), generator)),
        model_error=MODEL_ERROR,
    )


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, device=generator.device))


def _trained(steps: int, generator: torch.Generator) -> set[int]:
    """The last evaluation, and others at random."""
    others = torch.randperm(steps - 1, generator=generator, device=generator.device)[: TRAINED - 1]
    return {steps - 1, *others.tolist()}


class DeviceNoise(NoiseSource):
    """Drawn where the network is trained: a GPU would wait for numbers of the CPU."""

    def __init__(self, batch: int, generator: torch.Generator):
        self.batch, self.generator = batch, generator

    def draw(self, *shape: int) -> torch.Tensor:
        return complex_noise((self.batch, *shape), self.generator)


def plain_loss(model: Denoiser, batch: Undersampled, label: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Of white noise alone, as before this stage."""
    clean = batch.clean.repeat_interleave(DRAWS, 0)
    sigma = torch.exp(P_MEAN + P_STD * torch.randn(len(clean), generator=generator, device=clean.device))
    noisy = clean + sigma[:, None, None] * complex_noise(tuple(clean.shape), generator)
    shown = Batch(batch.clean, batch.weight, noisy, sigma, label.repeat_interleave(DRAWS, 0))
    return denoising_loss(model, shown, model.sigma_data)


def squared(image: torch.Tensor) -> torch.Tensor:
    """|x|^2 of each pixel."""
    return torch.view_as_real(image).square().sum(-1)
