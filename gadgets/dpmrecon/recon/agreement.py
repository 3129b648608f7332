"""How well prior and data agree, told without a truth: numbers of one slice that sound scans have in a narrow range.

`denoised`: how far the denoiser moves the image once noise of some sigma is added, over sigma. It grows with the detail
of what the image shows; a head has as much of it as the prior has learnt. `held back`: the share of the signal of some
acquired lines that an image made without them misses, where a short run of the prior starts from CG-SENSE of the
others; what has moved, or does not fit the prior, is not foretold.
"""

import math

import numpy as np
import torch

from ..physics.cg_sense import cg_sense
from ..physics.forward import ForwardModel
from ..prior.problem import NoiseSource, Problem
from ..prior.samplers.diffusion import Prior, SamplerSettings, sample_prox
from .types import MappedSlice

SIGMAS = (0.05, 0.1, 0.2, 0.4)  # of the noise that is added, over the scale
SHARE = 4  # one acquired line in so many is held back
NEAR = 4  # lines on either side of the centre that never are: nothing foretells the scale
SHORT = SamplerSettings(
    steps=4, sigma_max=0.3, sigma_min=0.03, eta=1.0, noise_scale=0.4, cg_steps=6, noise_factor=0.75, turns=True
)
NAMES = ("held back", *(f"denoised at {sigma:g}" for sigma in SIGMAS))


@torch.no_grad()
def agreement(mapped: MappedSlice, sample: torch.Tensor, prior: Prior, seed: int) -> dict[str, float]:
    """Natural logarithms of the numbers, by NAMES; none for volumes, for heads that fold, and for shots with a mask
    each. sample: (rows, cols) at scale 1."""
    if type(mapped.model) is not ForwardModel or mapped.model.mask.ndim != 2:
        return {}
    device = sample.device
    noise, levels = NoiseSource([seed], device), torch.tensor(SIGMAS, device=device)
    added = torch.cat([noise.draw(*sample.shape) for _ in SIGMAS])
    moved = prior(sample + levels[:, None, None] * added, levels) - sample
    inside = mapped.model.support
    square = torch.view_as_real(moved).square().sum(-1) * inside
    rms = (square.sum((1, 2)) / (2 * inside.sum().clamp_min(1))).sqrt() / levels
    return dict(zip(NAMES, [_held_back(mapped, prior, seed), *rms.clamp_min(1e-9).log().tolist()]))


def _held_back(mapped: MappedSlice, prior: Prior, seed: int) -> float:
    """Logarithm of the share of the signal of acquired rows that the others, and the prior, do not foretell."""
    mask = mapped.model.mask
    rows = torch.nonzero(mask.amax(1)).flatten().tolist()
    outer = [row for row in rows if abs(row - len(mask) // 2) > NEAR]
    held = np.random.default_rng(seed).permutation(outer)[: max(1, len(outer) // SHARE)]
    away = torch.zeros_like(mask)
    away[held.tolist()] = mask[held.tolist()]
    kept, left_out = (ForwardModel(mapped.model.coil_maps, part) for part in (mask - away, away))
    kspace, sigma_n = mapped.data.kspace / mapped.scale, mapped.data.sigma_n / mapped.scale
    zero_filled = kept.adjoint(kspace)
    start = cg_sense(kept, zero_filled, sigma_n, 1.0)
    levels = torch.tensor([sigma_n], device=kspace.device)
    problem = Problem(kept, kspace[None], zero_filled[None], levels, start[None])
    image = sample_prox(problem, prior, SHORT, NoiseSource([seed + 1], kspace.device))[0]
    count = 2 * float(away.sum()) * len(kspace)
    missed, signal = (
        float(torch.view_as_real(values).square().sum()) / (count * sigma_n**2) - 1
        for values in (left_out.forward(image) - kspace * away, kspace * away)
    )
    least = 2 / math.sqrt(count / 2)  # noise hides what is smaller
    return math.log(max(missed, least) / max(signal, least))
