"""How well prior and data agree, told without a truth: numbers of a slice that sound scans have in a narrow range.

Some acquired lines are held back, and a short run of the prior, from CG-SENSE of the others on, foretells them. `held
back`: the share of their signal that it misses; what has moved, or does not fit the prior, is not foretold. `denoised`:
how far the denoised image is from it once noise of some sigma is added, over sigma; `kept`: the share of that noise
which the denoiser takes for detail and leaves. Both grow with the detail of what the image shows, and a head has as
much of it as the prior has learnt. The image of the scan itself is not asked, so
that its sampler, mode and number of samples do not matter.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import CheckpointError
from ..prior.problem import NoiseSource
from ..prior.samplers.diffusion import Prior, SamplerSettings, sample_prox
from .held_back import can_be_held_back, held_back, outer_rows
from .types import Agreement, MappedSlice

SIGMAS = (0.06, 0.12, 0.25, 0.5, 1.0)  # of the noise that is added, over the scale
SHARE = 4  # one acquired line in so many is held back
ANY = "any"  # of the card, for scans of no known contrast
COVARIATES = 9  # see `covariates`
RANGES = ("sigma_n", "R", "head", "matrix")  # entries of the card: lowest and highest that was measured
BEYOND = 1.25  # times what was measured
SHORT = SamplerSettings(
    steps=3, sigma_max=0.3, sigma_min=0.03, eta=1.0, noise_scale=0.4, cg_steps=4, noise_factor=0.75, turns=True
)
HELD_BACK = "held back"
NAMES = (HELD_BACK, *(f"{what} at {sigma:g}" for what in ("denoised", "kept") for sigma in SIGMAS))


@torch.no_grad()
def agreement(mapped: MappedSlice, prior: Prior, seed: int = 0) -> dict[str, float]:
    """Natural logarithms of the numbers, by NAMES; none for volumes, for heads that fold, and for shots with a mask
    each. seed: of the lines that are held back, and of the noise."""
    if not can_be_held_back(mapped):
        return {}
    noise = NoiseSource([seed], mapped.model.mask.device)
    outer = outer_rows(mapped)
    held = held_back(mapped, np.random.default_rng(seed).permutation(outer)[: max(1, len(outer) // SHARE)].tolist())
    image = sample_prox(held.problem, prior, SHORT, noise)[0]
    missed, signal = (float(held.missed(found)) - 1 for found in (image, torch.zeros_like(image)))
    least = 2 / math.sqrt(held.count / 2)  # noise hides what is smaller
    unforetold = math.log(max(missed, least) / max(signal, least))
    return dict(zip(NAMES, [unforetold, *_denoised(image, mapped.model.support, prior, noise)]))


def _denoised(image: torch.Tensor, support: torch.Tensor, prior: Prior, noise: NoiseSource) -> list[float]:
    """`denoised` at all SIGMAS, then `kept`."""
    levels = torch.tensor(SIGMAS, device=image.device)
    added = levels[:, None, None] * torch.cat([noise.draw(*image.shape) for _ in SIGMAS])
    moved = (prior(image + added, levels) - image) * support
    energy = 2 * support.sum().clamp_min(1) * levels**2  # of the noise inside
    square = torch.view_as_real(moved).square().sum((1, 2, 3))
    along = (torch.view_as_real(moved) * torch.view_as_real(added)).sum((1, 2, 3))
    return [*(square / energy).sqrt().clamp_min(1e-9).log().tolist(), *(along / energy).clamp_min(1e-4).log().tolist()]


@dataclass(frozen=True)
class Limits:
    """What sound scans of a contrast have, as `dpmtrain gate` measured it; it travels in the model's card.

    expected: (COVARIATES, n_names) coefficients of `covariates`; precision: (n_names, n_names), inverse covariance of
    what is left; largest: distance that few sound scans exceed; sigma_n: of the noise over the scale, lowest and
    highest; R: likewise; head, matrix: pixels, likewise.
    """

    expected: np.ndarray
    precision: np.ndarray
    largest: float
    sigma_n: tuple[float, float]
    R: tuple[float, float]
    head: tuple[float, float]
    matrix: tuple[float, float]

    @classmethod
    def of(cls, card: dict, contrast: str | None) -> "Limits | None":
        """From a model's card; None where it has none. Raises CheckpointError for an entry that lacks something.

        card["gate"]["fits"] is a list of {"levels", "slopes", "precision", "largest"}: level, precision and largest
        distance of each contrast, ANY for scans of no known one, and slopes that those of a fit have in common.
        """
        gate = card.get("gate")
        if gate is None:
            return None
        try:
            levels = {name: fit for fit in gate["fits"] for name in fit["levels"]}
            name = contrast if contrast in levels else ANY
            fit = levels[name]
            expected = np.array([fit["levels"][name], *fit["slopes"]], float)
            precision = np.array(fit["precision"][name], float)
            if (expected.shape, precision.shape) != ((COVARIATES, len(NAMES)), (len(NAMES),) * 2):
                raise ValueError("it is of another version")
            ranges = [(float(low), float(high)) for low, high in (gate[name] for name in RANGES)]
            return cls(expected, precision, float(fit["largest"][name]), *ranges)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"model card: the entry gate is not usable ({error!r}): get the card again, or let `dpmtrain gate` "
                "measure"
            ) from error

    def judge(self, values: dict[str, float], mapped: MappedSlice) -> Agreement | None:
        """The distance of a slice's numbers from those of sound scans; None of a matrix that is smaller or larger than
        those that were measured."""
        if not values or not self.matrix[0] / BEYOND <= mapped.model.mask.numel() <= self.matrix[1] * BEYOND:
            return None
        sigma_n, fold = mapped.data.sigma_n / mapped.scale, mapped.data.acceleration
        measured = zip(
            (sigma_n, fold, float(mapped.model.support.sum())), (self.sigma_n, self.R, self.head), strict=True
        )
        known = covariates(*(min(max(value, low), high) for value, (low, high) in measured))
        apart = np.array([values[name] for name in NAMES]) - np.array(known) @ self.expected
        distance = math.sqrt(float(apart @ self.precision @ apart)) / self.largest
        deviations = apart / np.sqrt(np.linalg.inv(self.precision).diagonal())
        beyond = None
        if sigma_n > BEYOND * self.sigma_n[1]:
            beyond = (
                f"its noise is {sigma_n:.2g} of the bright parts, and scans of up to {self.sigma_n[1]:.2g} are known: "
                "small detail may be lost or the prior's; average more, or acquire larger voxels"
            )
        elif fold > BEYOND * self.R[1]:
            beyond = f"R = {fold:g} is more than the {self.R[1]:g} that the gate knows: acquire more lines"
        return Agreement(values, dict(zip(NAMES, deviations.tolist())), distance, beyond)


def covariates(sigma_n: float, acceleration: float, pixels: float) -> list[float]:
    """What the numbers of a sound scan depend on: 1, the logarithms of noise over the scale, of R and of the pixels of
    the head, their squares, and the noise's products with the others."""
    noise, fold, head = math.log(max(sigma_n, 1e-6)), math.log(acceleration), math.log(max(1.0, pixels))
    return [1.0, noise, fold, head, noise**2, fold**2, head**2, noise * fold, noise * head]
