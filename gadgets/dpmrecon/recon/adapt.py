"""`--adapt`: the prior is fitted to a scan by low-rank weights, once, and its slices share them.

After steerable conditional diffusion (Barbano et al., arXiv 2308.14409). There the loss is asked of the lines that the
data step has just used; here other lines are held back in each round of sampling and asked, as in zero-shot
self-supervised learning (Yaman et al., ICLR 2022). Lines that no round has seen choose how many rounds are used, none
included.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..device import DEVICE_ERRORS, synchronize
from ..errors import first_line
from ..physics.forward import ForwardModel
from ..prior.checkpoint import Checkpoint
from ..prior.low_rank import merged, with_low_rank
from ..prior.problem import NoiseSource
from ..prior.samplers.diffusion import (
    Prior,
    SamplerSettings,
    data_weight,
    denoised_step,
    initial_image,
    next_image,
    noise_levels,
    sample_prox,
)
from .held_back import HeldBack, can_be_held_back, held_back, outer_lines
from .sample import sample_seed
from .types import Adapted, MappedSlice, Sampling

log = logging.getLogger("dpmrecon")

RANK, RATE = 8, 2e-3  # of the weights; of Adam at the start, from which it falls to 0
ROUNDS, ASKED = 6, 2  # of sampling; after so many each, the lines that choose are asked
CHOOSING, FORETOLD = 6, 4  # one outer line in so many chooses; one of the others in so many is held back in a round
ERROR = 0.1  # of a step's image, over sigma: what lines miss is weighted by it and the noise
LEAST = 0.01  # gain below which the prior stays as it is
FEWEST = 2 * CHOOSING  # outer lines
CG_STEPS = 8


@dataclass(frozen=True)
class Fit:
    """checkpoint: with the weights that foretell best; rounds: after which it had them, 0 for the prior as it was;
    before, after: what is missed of the lines that choose, root mean square over the noise's."""

    checkpoint: Checkpoint
    rounds: int
    before: float
    after: float

    @property
    def text(self) -> str:
        """What became of it, in words."""
        if self.rounds == 0:
            return "prior not adapted to the scan: held-back lines were not foretold better"
        return (
            f"prior adapted to the scan, rank {RANK}, {self.rounds} rounds: held-back lines missed by "
            f"{self.after:.2f} times the noise instead of {self.before:.2f}"
        )


class Adaptation:
    """Of one scan: fitted to its first slice that can be. checkpoint: as loaded, which is never changed."""

    def __init__(self, checkpoint: Checkpoint, contrast: str | None, sampling: Sampling):
        self.checkpoint, self.contrast, self.sampling = checkpoint, contrast, sampling
        self._adapted: Adapted | None = None

    def of(self, group: list[MappedSlice]) -> Adapted:
        """The prior for these slices, which is fitted now where it has not been."""
        if self._adapted is not None:
            return replace(self._adapted, seconds=0.0)
        if not can_be_fitted(group[0]):
            return Adapted(self.checkpoint, "prior not adapted to the scan: no slice so far can be fitted to")
        started = time.perf_counter()
        log.info("the prior is adapted to slice %d", group[0].key.slice)
        try:
            fit = fitted(group[0], self.checkpoint, self.contrast, self.sampling)
            found = Adapted(fit.checkpoint, fit.text)
        except DEVICE_ERRORS as error:
            found = Adapted(self.checkpoint, f"prior not adapted to the scan: the device failed ({first_line(error)})")
            log.warning("%s", found.text)
        synchronize(group[0].conventional.device)
        self._adapted = replace(found, seconds=time.perf_counter() - started)
        return self._adapted


def can_be_fitted(mapped: MappedSlice) -> bool:
    """Not heads that fold, shots with a mask each, and a few lines."""
    return can_be_held_back(mapped) and mapped.n_sets == 1 and len(outer_lines(mapped)) >= FEWEST


def fitted(mapped: MappedSlice, checkpoint: Checkpoint, contrast: str | None, sampling: Sampling) -> Fit:
    """Low-rank weights for a slice, by `sampling.settings` of the sampler prox. A slice that `can_be_fitted`."""
    settings, plain = sampling.settings, checkpoint.denoiser
    assert isinstance(settings, SamplerSettings)
    seed = sample_seed(sampling.seed, mapped.data.seed_key, 0)
    rng = np.random.default_rng(seed)
    outer = rng.permutation(outer_lines(mapped)).tolist()
    choosing, others = outer[: len(outer) // CHOOSING], outer[len(outer) // CHOOSING :]
    judge = held_back(mapped, choosing)

    def missed(prior: Prior) -> float:
        image = sample_prox(judge.problem, prior, settings, NoiseSource([seed], plain.device))[0]
        return math.sqrt(float(judge.missed(image)))

    model, parameters = with_low_rank(plain, RANK, seed)
    prior, optimizer = model.of_contrast(contrast), torch.optim.Adam(parameters, lr=RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, ROUNDS * settings.steps)
    before = missed(plain.of_contrast(contrast))
    best = Fit(checkpoint, 0, before, before)
    for number in range(1, ROUNDS + 1):
        foretold = rng.permutation(others)[: len(others) // FORETOLD].tolist()
        noise = NoiseSource([seed + number], plain.device)
        _fit_round(held_back(mapped, foretold, unused=choosing), prior, settings, noise, optimizer, schedule)
        if number % ASKED:
            continue
        network = merged(plain, model)
        after = missed(network.of_contrast(contrast))
        if after < min(best.after, (1 - LEAST) * before):
            best = Fit(replace(checkpoint, model=network, volumes=None), number, before, after)
    return best


def _fit_round(
    held: HeldBack,
    prior: Any,
    settings: SamplerSettings,
    noise: NoiseSource,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Sample the problem as `sample_prox` does, with an update after each step."""
    problem, levels, denoiser = held.problem, noise_levels(settings), prior.denoiser
    x = initial_image(problem, noise, settings)
    for step, (sigma, sigma_next) in enumerate(zip(levels, levels[1:])):
        orientation, weight = step % 8 if settings.turns else 0, data_weight(problem, prior, settings, sigma)
        with torch.enable_grad():
            with torch.autocast(x.device.type, torch.bfloat16, enabled=denoiser.bf16):
                denoised = denoised_step(prior, x, sigma, orientation, problem, settings, step)
            image = _Prox.apply(denoised * problem.model.support, problem.model, problem.zero_filled, weight)
            loss = held.missed(image[0]) / (1 + (ERROR * sigma / held.sigma_n) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        x = next_image(image.detach(), x, (sigma, sigma_next), settings, noise)


class _Prox(torch.autograd.Function):
    """`ForwardModel.prox`, which is linear in its start: (A^H A + w)^-1 w, its own adjoint."""

    @staticmethod
    def forward(ctx: Any, start: torch.Tensor, model: ForwardModel, zero_filled: torch.Tensor, weight: torch.Tensor):
        ctx.model, ctx.weight = model, weight
        return model.prox(zero_filled, start, weight, CG_STEPS)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor):
        gradient = gradient.contiguous()
        return ctx.model.prox(torch.zeros_like(gradient), gradient, ctx.weight, CG_STEPS), None, None, None


def foreseen(
    mapped: MappedSlice,
    checkpoint: Checkpoint,
    contrast: str | None,
    sampling: Sampling,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that a fit to such a slice takes, from a few steps of it. clock: seconds that only grow."""
    settings = sampling.settings
    assert isinstance(settings, SamplerSettings)
    brief = replace(settings, steps=2)
    held = held_back(mapped, outer_lines(mapped)[::FORETOLD])
    model, parameters = with_low_rank(checkpoint.denoiser, RANK, 0)
    optimizer = torch.optim.Adam(parameters, lr=0.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    prior, noise = model.of_contrast(contrast), NoiseSource([0], model.device)
    seconds = []
    for run in (
        lambda: _fit_round(held, prior, brief, noise, optimizer, schedule),
        lambda: sample_prox(held.problem, prior, brief, noise),
    ):
        for _ in range(2):  # the first pays for its start
            began = clock()
            run()
            synchronize(model.device)
        seconds.append((clock() - began) / brief.steps)
    return settings.steps * (ROUNDS * seconds[0] + (1 + ROUNDS // ASKED) * seconds[1])
