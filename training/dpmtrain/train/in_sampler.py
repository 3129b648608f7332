"""A denoiser trained inside the sampler: on the images that `prox` shows it of simulated scans.

These are no clean images with white noise: folded signal, errors of the coil maps and what the network itself left come
with them. Trained on noise alone it takes such for anatomy. A step of training is a run of `prox` on a batch of scans.
At some evaluations the network is told where the truth lies; the run goes on with what it answered (DAgger: Ross et
al., AISTATS 2011), and no gradient passes to the next. A part of the loss is of plain denoising, so that it stays a
denoiser.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import torch
from dpmrecon.prior.denoiser import ContrastDenoiser, Denoiser, complex_noise, uncounted
from dpmrecon.prior.problem import NoiseSource, Problem
from dpmrecon.prior.samplers.diffusion import SamplerSettings, sample_prox

from .undersampled import Undersampled

STEPS = (8, 16)  # of a run
TRAINED = 4  # of its evaluations: the last one, and others at random
SIGMA_MAX, SIGMA_MIN = 0.5, 0.01
NOISE_SCALE = (0.0, 0.4)
NOISE_FACTOR, MODEL_ERROR = (0.5, 1.6), 0.003  # drawn log-uniform; as the cards say
LEAST_ERROR = 3e-3  # of an image that the network is shown, so that those without any do not count for all
PLAIN = 0.3  # weight of plain denoising
P_MEAN, P_STD = -1.8, 1.2  # of the logarithm of its noise


@dataclass(frozen=True)
class Shown(ContrastDenoiser):
    """The network in training in the place of a prior, of slices.

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


def in_sampler_loss(
    model: Denoiser, batch: Undersampled, label: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Of TRAINED evaluations of one run of `prox`, and of plain denoising."""
    device = batch.clean.device

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, device=device))

    settings = SamplerSettings(
        steps=round(uniform(*STEPS)),
        sigma_max=SIGMA_MAX,
        sigma_min=SIGMA_MIN,
        noise_scale=uniform(*NOISE_SCALE),
        cg_steps=4,
        cg_tolerance=0.04,
        noise_factor=math.exp(uniform(*map(math.log, NOISE_FACTOR))),
        model_error=MODEL_ERROR,
    )
    others = torch.randperm(settings.steps - 1, generator=generator, device=device)[: TRAINED - 1]
    prior = Shown(model, label, uncounted, batch, {settings.steps - 1, *others.tolist()})
    problem = Problem(batch.model, batch.zero_filled, batch.zero_filled, batch.sigma_n, batch.conventional)
    seeds = torch.randint(2**62, (len(batch.clean),), generator=generator, device=device).tolist()
    sample_prox(problem, prior, settings, NoiseSource(seeds, device))
    return torch.stack(prior.losses).mean() + PLAIN * plain_loss(model, batch, label, generator)


def plain_loss(model: Denoiser, batch: Undersampled, label: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mean square of what white noise leaves, over the noise's."""
    clean = batch.clean
    sigma = torch.exp(P_MEAN + P_STD * torch.randn(len(clean), generator=generator, device=clean.device))
    noise = complex_noise(tuple(clean.shape), generator)
    left = squared(model(clean + sigma[:, None, None] * noise, sigma, label) - clean)
    return ((batch.weight * left).mean((1, 2)) / (2 * sigma.square())).mean()


def squared(image: torch.Tensor) -> torch.Tensor:
    """|x|^2 of each pixel."""
    return torch.view_as_real(image).square().sum(-1)
