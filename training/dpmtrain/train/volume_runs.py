"""Volumes in training inside the sampler: what the network was shown in its latest runs, which are kept.

A run on a volume takes as long as many steps. So one is made now and then, by the network as it is, and many steps are
trained on planes of the latest ones (the aggregated data of DAgger: Ross et al., AISTATS 2011).
"""

from collections import deque
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from dpmrecon.prior.denoiser import ContrastDenoiser, Denoiser, uncounted
from dpmrecon.prior.samplers.diffusion import sample_prox, turned

from .in_sampler import LEAST_ERROR, DeviceNoise, drawn_settings, squared, uniform
from .volume_scans import VolumeScan, VolumeScans

RUNS, RUN_EVERY = 64, 20  # that are kept, and the steps between two; 64 take 1.5 GB
KEPT = 32  # planes of an evaluation
GROUPS, PLANES = 4, 8  # of a step: each group is of one evaluation
LAST = 0.25  # share of the groups that are of a run's last evaluation
# near those of the card: a network that saw these alone did better than one that saw all others too
VOLUME_STEPS, VOLUME_NOISE_SCALE, VOLUME_NOISE_FACTOR = (16, 20), (0.0, 0.1), (0.8, 1.25)


class Evaluation(NamedTuple):
    """Planes that the network was shown, turned as they were, and the truth: (KEPT, rows, cols, 2) float16.

    support: (KEPT, rows, cols) bool; sigma: what the network was told of their noise.
    """

    planes: torch.Tensor
    clean: torch.Tensor
    support: torch.Tensor
    sigma: float

    def loss(self, model: Denoiser, label: torch.Tensor, some: torch.Tensor) -> torch.Tensor:
        """Mean square in the support of some of the planes, over that of what was shown. label: (1, n_labels)."""
        planes, clean = (torch.view_as_complex(pairs[some].float()) for pairs in (self.planes, self.clean))
        support = self.support[some]
        level = torch.full((len(some),), self.sigma, device=planes.device)
        found = model(planes, level, label.expand(len(some), -1))
        shown = squared((planes - clean) * support).mean()
        return squared((found - clean) * support).mean() / shown.clamp_min(LEAST_ERROR**2)


class Run(NamedTuple):
    """What is kept of a run, all its evaluations in order."""

    contrast: str | None
    evaluations: list[Evaluation]


@dataclass(frozen=True)
class Recorder(ContrastDenoiser):
    """The network in the place of a prior, of a volume: keeps planes of what it is shown, likelier where more is left.

    generator: draws them.
    """

    scan: VolumeScan
    generator: torch.Generator
    kept: list[Evaluation] = field(default_factory=list)

    def of_planes(self, planes: torch.Tensor, sigma: float, at_once: int) -> torch.Tensor:
        problem, number = self.scan.problem, len(self.kept)
        assert problem.planes is not None
        # turned as `sample_prox` turns them
        axes = problem.planes.axes
        axis, orientation = axes[number % len(axes)], number // len(axes) % 8
        support = problem.model.support.reshape(self.scan.clean.shape)  # may have an axis of length 1 before
        clean, support = (turned(volume.movedim(axis, 0), orientation) for volume in (self.scan.clean, support))
        left = squared((planes - clean) * support).sum((1, 2)).sqrt().clamp_min(1e-6)
        some = torch.multinomial(left, min(KEPT, len(planes)), generator=self.generator)
        shown, truth = (torch.view_as_real(images[some].contiguous()).half() for images in (planes, clean))
        self.kept.append(Evaluation(shown, truth, support[some].bool(), sigma))
        return super().of_planes(planes, sigma, at_once)


@torch.no_grad()
def recorded(model: Denoiser, scan: VolumeScan, generator: torch.Generator) -> Run:
    """A run of `prox` with settings drawn."""
    settings = drawn_settings(VOLUME_STEPS, VOLUME_NOISE_SCALE, VOLUME_NOISE_FACTOR, generator)
    prior = Recorder(model, model.one_hot([scan.contrast]), uncounted, scan, generator)
    sample_prox(scan.problem, prior, replace(settings, turns=True), DeviceNoise(1, generator))
    return Run(scan.contrast, prior.kept)


@dataclass
class VolumeRuns:
    """The loss of volumes, on the latest RUNS runs. Each RUN_EVERY-th call makes one, the first call too.

    They are in memory: training that goes on begins with new ones. label_dropout: share of the groups without a label.
    """

    scans: VolumeScans
    label_dropout: float = 0.0
    runs: deque[Run] = field(default_factory=lambda: deque(maxlen=RUNS))
    calls: int = 0

    def __call__(self, model: Denoiser, generator: torch.Generator) -> torch.Tensor:
        if self.calls % RUN_EVERY == 0:
            self.runs.append(recorded(model, self.scans.draw(generator), generator))
        self.calls += 1
        return torch.stack([self._group(model, generator) for _ in range(GROUPS)]).mean()

    def _group(self, model: Denoiser, generator: torch.Generator) -> torch.Tensor:
        run = self.runs[_index(len(self.runs), generator)]
        last = uniform(0, 1, generator) < LAST
        evaluation = run.evaluations[-1 if last else _index(len(run.evaluations), generator)]
        known = uniform(0, 1, generator) >= self.label_dropout
        kept = len(evaluation.planes)
        some = torch.randperm(kept, generator=generator, device=generator.device)[:PLANES]
        return evaluation.loss(model, known * model.one_hot([run.contrast]), some)


def _index(size: int, generator: torch.Generator) -> int:
    return int(torch.randint(size, (), generator=generator, device=generator.device))
