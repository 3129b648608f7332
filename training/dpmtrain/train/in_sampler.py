"""A denoiser trained inside the sampler: on the images that `prox` shows it of simulated scans, slices and volumes.

These are no clean images with white noise: folded signal, errors of the coil maps and what the network itself left come
with them. Trained on noise alone it takes such for anatomy. A step of training is a run of `prox` on a batch of scans.
At some evaluations the network is told where the truth lies; the run goes on with what it answered (DAgger: Ross et
al., AISTATS 2011), and no gradient passes to the next. A part of the loss is of plain denoising, so that it stays a
denoiser.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count

import torch
from dpmrecon.prior.denoiser import ContrastDenoiser, Denoiser, complex_noise, uncounted
from dpmrecon.prior.problem import NoiseSource, Problem
from dpmrecon.prior.samplers.diffusion import SamplerSettings, sample_prox, turned

from .batches import Batch
from .train import denoising_loss
from .undersampled import Undersampled
from .volume_scans import VolumeScan, VolumeScans

STEPS = (8, 16)  # of a run
TRAINED = 4  # of its evaluations: the last one, and others at random
SIGMA_MAX, SIGMA_MIN = 0.5, 0.01
NOISE_SCALE = (0.0, 0.4)
NOISE_FACTOR, MODEL_ERROR = (0.5, 1.6), 0.003  # drawn log-uniform; as the cards say
LEAST_ERROR = 3e-3  # of an image that the network is shown, so that those without any do not count for all
PLAIN, DRAWS = 1.0, 2  # weight of plain denoising, its draws of noise for each image
P_MEAN, P_STD = -1.8, 1.2  # of the logarithm of its noise
# of volumes: evaluations that are trained, planes of each, and runs near that of the card: a network that saw these
# alone did better than one that saw all others too
VOLUMES_TRAINED, PLANES = 4, 24
VOLUME_STEPS, VOLUME_NOISE_SCALE, VOLUME_NOISE_FACTOR = (10, 20), (0.0, 0.15), (0.7, 1.4)


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


@dataclass(frozen=True)
class ShownPlanes(ContrastDenoiser):
    """The network in training in the place of a prior, of a volume whose planes are turned as the sampler turns them.

    trained, losses, numbers: as of `Shown`; generator: of the planes that have gradients, likelier where more is left.
    """

    scan: VolumeScan
    trained: set[int]
    generator: torch.Generator
    losses: list[torch.Tensor] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)

    @torch.no_grad()
    def of_planes(self, planes: torch.Tensor, sigma: float, at_once: int) -> torch.Tensor:
        number = next(self.numbers)
        if number in self.trained:
            self.losses.append(self._loss(planes, sigma, number))
        return super().of_planes(planes, sigma, at_once)

    def _loss(self, planes: torch.Tensor, sigma: float, number: int) -> torch.Tensor:
        """Mean square in the support of the planes that are trained, over that of the images that were shown."""
        problem = self.scan.problem
        assert problem.planes is not None
        axes = problem.planes.axes
        axis, orientation = axes[number % len(axes)], number // len(axes) % 8
        clean, support = (
            turned(volume.movedim(axis, 0), orientation) for volume in (self.scan.clean, problem.model.support)
        )
        shown = squared((planes - clean) * support)
        share = shown.sum((1, 2)).sqrt().clamp_min(1e-6)
        some = torch.multinomial(share, min(PLANES, len(planes)), generator=self.generator)
        level = torch.full((len(some),), sigma, device=planes.device)
        with torch.enable_grad():
            found = self.denoiser(planes[some].contiguous(), level, self.label.expand(len(some), -1))
            left = squared((found - clean[some]) * support[some]).mean()
            return left / shown[some].mean().clamp_min(LEAST_ERROR**2)


def volume_loss(model: Denoiser, scan: VolumeScan, label: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Of VOLUMES_TRAINED evaluations of one run of `prox` on a volume. label: (1, n_labels)."""
    settings = _drawn(VOLUME_STEPS, VOLUME_NOISE_SCALE, VOLUME_NOISE_FACTOR, generator)
    trained = _trained(settings.steps, VOLUMES_TRAINED, generator)
    prior = ShownPlanes(model, label, uncounted, scan, trained, generator)
    sample_prox(scan.problem, prior, replace(settings, turns=True), _Noise(1, generator))
    return torch.stack(prior.losses).mean()


@dataclass(frozen=True)
class InSamplerLoss:
    """Of plain denoising and, with a weight, of runs on slices; in a share of the steps of a volume among `volumes`
    too, with a weight; label_dropout: share of the volumes without a label."""

    slices: float = 1.0
    volumes: VolumeScans | None = None
    share: float = 1.0
    weight: float = 0.0
    label_dropout: float = 0.0

    def __call__(
        self, model: Denoiser, batch: Undersampled, label: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        loss = PLAIN * plain_loss(model, batch, label, generator)
        if self.slices > 0:
            loss = loss + self.slices * slices_loss(model, batch, label, generator)
        if self.volumes is None or _uniform(0, 1, generator) >= self.share:
            return loss
        scan = self.volumes.draw(generator)
        known = _uniform(0, 1, generator) >= self.label_dropout
        return loss + self.weight * volume_loss(model, scan, known * model.one_hot([scan.contrast]), generator)


def slices_loss(model: Denoiser, batch: Undersampled, label: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Of TRAINED evaluations of one run of `prox`."""
    settings = _drawn(STEPS, NOISE_SCALE, NOISE_FACTOR, generator)
    prior = Shown(model, label, uncounted, batch, _trained(settings.steps, TRAINED, generator))
    problem = Problem(batch.model, batch.zero_filled, batch.zero_filled, batch.sigma_n, batch.conventional)
    sample_prox(problem, prior, settings, _Noise(len(batch.clean), generator))
    return torch.stack(prior.losses).mean()


def _drawn(
    steps: tuple[int, int], scale: tuple[float, float], factor: tuple[float, float], generator: torch.Generator
) -> SamplerSettings:
    """steps, noise_scale and noise_factor: from and to."""
    return SamplerSettings(
        steps=round(_uniform(*steps, generator)),
        sigma_max=SIGMA_MAX,
        sigma_min=SIGMA_MIN,
        noise_scale=_uniform(*scale, generator),
        cg_steps=4,
        cg_tolerance=0.04,
        noise_factor=math.exp(_uniform(math.log(factor[0]), math.log(factor[1]), generator)),
        model_error=MODEL_ERROR,
    )


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, device=generator.device))


def _trained(steps: int, number: int, generator: torch.Generator) -> set[int]:
    """The last evaluation, and others at random."""
    others = torch.randperm(steps - 1, generator=generator, device=generator.device)[: number - 1]
    return {steps - 1, *others.tolist()}


class _Noise(NoiseSource):
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
