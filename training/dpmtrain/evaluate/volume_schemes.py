"""Ways to make a volume's slices agree that the product lacks: what `planes in turn` was chosen against."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from dpmrecon.physics.total_variation import smooth_across
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.prior.problem import NoiseSource, Planes, never
from dpmrecon.prior.samplers.diffusion import Prior, SamplerSettings, sample_prox
from dpmrecon.recon.plan import CPU_BATCH
from dpmrecon.recon.sample import sample_seed, volume_problem
from dpmrecon.recon.types import MappedVolume

from .methods import label_for


@dataclass(frozen=True)
class Scheme:
    """axes: cut across one of them in each step, in turn; correlation: of the noise of neighbouring planes; tv: weight
    of the total variation across them, over sigma."""

    axes: tuple[int, ...]
    correlation: float = 0.0
    tv: float = 0.0


class CorrelatedNoise(NoiseSource):
    """Noise whose neighbouring planes share a part: its covariance is correlation^distance (after ISCS, arXiv
    2602.04162). axes: the planes of each step, whose noise was drawn just before it."""

    def __init__(self, seeds: list[int], axes: Sequence[int], correlation: float):
        super().__init__(seeds)
        self.axes, self.correlation, self.drawn = axes, correlation, 0

    def draw(self, *shape: int) -> torch.Tensor:
        """(batch, *shape) complex64, unit standard deviation per real channel; shape: (partitions, rows, cols)."""
        noise = super().draw(*shape)
        planes = noise.movedim(self.axes[self.drawn % len(self.axes)] + 1, 0)
        self.drawn += 1
        for before, plane in zip(planes, planes[1:]):
            plane *= (1 - self.correlation**2) ** 0.5
            plane += self.correlation * before
        return noise


@dataclass(frozen=True)
class SmoothAcross:
    """A prior of planes, after which total variation across them is made smaller (after DiffusionMBIR and DDS: Chung et
    al., CVPR 2023 and ICLR 2024). strength: weight over sigma."""

    prior: Prior
    strength: float

    @property
    def sigma_data(self) -> float:
        return self.prior.sigma_data

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.prior(x, sigma)

    def of_planes(self, planes: torch.Tensor, sigma: float, at_once: int) -> torch.Tensor:
        return smooth_across(self.prior.of_planes(planes, sigma, at_once), self.strength * sigma)


def sampled_volume(
    mapped: MappedVolume,
    checkpoint: Checkpoint,
    contrast: str,
    settings: SamplerSettings,
    scheme: Scheme,
    sample: int = 0,
) -> torch.Tensor:
    """One sample (partitions, rows, cols) complex64 of a volume at scale 1, as the product draws it but for the
    scheme."""
    problem = replace(volume_problem(mapped, CPU_BATCH), planes=Planes(scheme.axes, CPU_BATCH))
    seeds = [sample_seed(0, mapped.data.seed_key, sample)]
    noise = CorrelatedNoise(seeds, scheme.axes, scheme.correlation) if scheme.correlation else NoiseSource(seeds)
    prior: Prior = checkpoint.model.of_contrast(label_for(checkpoint, contrast))
    if scheme.tv:
        prior = SmoothAcross(prior, scheme.tv)
    return sample_prox(problem, prior, settings, noise, never)[0]
