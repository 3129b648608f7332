"""How well prior and data agree, told without a truth: numbers of a slice that sound scans have in a narrow range.

Some acquired lines are held back, and a short run of the prior, from CG-SENSE of the others on, foretells them. `held
back`: the share of their signal that it misses; what has moved, or does not fit the prior, is not foretold. `denoised`:
how far the denoised image is from it once noise of some sigma is added, over sigma; `kept`: the share of that noise
which the denoiser takes for detail and leaves. Both grow with the detail of what the image shows, and a head has as
much of it as the prior has learnt. The image of the scan itself is not asked, so
that its sampler, mode and number of samples do not matter. Of a head that folds both images foretell, and the first one
is denoised: its numbers are those of other slices. A volume is asked by some of its planes, each a slice with a
distance of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import CheckpointError
from ..prior.checkpoint import Checkpoint
from ..prior.denoiser import Denoiser
from ..prior.problem import NoiseSource
from ..prior.samplers.diffusion import Prior, SamplerSettings, sample_prox
from .held_back import can_be_held_back, held_back, outer_lines
from .planes import MappedPlane, planes_across_readout
from .types import Agreement, MappedSlice, MappedVolume

SIGMAS = (0.06, 0.12, 0.25, 0.5, 1.0)  # of the noise that is added, over the scale
SHARE = 4  # one acquired line in so many is held back
ANY = "any"  # of the card, for scans of no known contrast
SLICES, VOLUMES = "slices", "volumes"  # kinds of scans, with limits of their own
RANGES = ("sigma_n", "R", "head", "matrix")  # entries of the card: lowest and highest that was measured
RANGES_OF_PLANES = ("pixel_mm", "ratio", "sets")  # and of volumes
BEYOND = 1.25  # times what was measured
SHORT = SamplerSettings(
    steps=3, sigma_max=0.3, sigma_min=0.03, eta=1.0, noise_scale=0.4, cg_steps=4, noise_factor=0.75, turns=True
)
# Of the network that asking takes; of a volume about: 2 and 4 % of the seconds of 20 in the two shared ones
EVALUATIONS = {SLICES: SHORT.steps + len(SIGMAS), VOLUMES: 1}
HELD_BACK = "held back"
NAMES = (HELD_BACK, *(f"{what} at {sigma:g}" for what in ("denoised", "kept") for sigma in SIGMAS))


def agreed(mapped: MappedSlice, checkpoint: Checkpoint, contrast: str | None) -> Agreement | str:
    """Of prior and data, or why these are not held against each other, in words."""
    checkpoint = asked_of(checkpoint)
    limits = Limits.of(checkpoint.card, contrast, kind_of(mapped))
    if limits is None or not isinstance(checkpoint.model, Denoiser):
        return _no_limits(checkpoint, kind_of(mapped))
    parts = parts_of(mapped)
    reason = _excluded(parts, limits)
    if reason is not None:
        return reason
    prior = checkpoint.model.of_contrast(contrast)
    found = [limits.judge(agreement(part, prior), part) for part in parts]
    return sorted(found, key=lambda part: part.distance)[middle(len(found))]


def asked_of(checkpoint: Checkpoint) -> Checkpoint:
    """The model that is asked: of one-step the prior that ends it, where one does."""
    return checkpoint.prior or checkpoint


def without_limits(checkpoint: Checkpoint, kind: str) -> str | None:
    """That a model is never asked of scans of a kind, in words; None where its card has limits for them."""
    checkpoint = asked_of(checkpoint)
    if isinstance(checkpoint.model, Denoiser) and Limits.of(checkpoint.card, None, kind) is not None:
        return None
    return _no_limits(checkpoint, kind)


def _no_limits(checkpoint: Checkpoint, kind: str) -> str:
    return f"the card of {checkpoint.model_id} has no limits of the gate for {kind}"


def evaluations_asked(checkpoint: Checkpoint, gate: str, kind: str) -> int:
    """Of the network that asking takes, of a volume about; 0 where nothing is asked."""
    return 0 if gate == "off" or without_limits(checkpoint, kind) is not None else EVALUATIONS[kind]


def _excluded(parts: Sequence[MappedSlice], limits: "Limits") -> str | None:
    """Why these parts are not asked, in words."""
    if not parts:
        return "its echo is cut, which couples the planes that would be asked, or it has no calibration"
    return next((reason for part in parts if (reason := limits.exclude(part)) is not None), None)


def kind_of(mapped: MappedSlice) -> str:
    """SLICES, whether or not the head folds, or VOLUMES."""
    return VOLUMES if isinstance(mapped, MappedVolume | MappedPlane) else SLICES


def parts_of(mapped: MappedSlice) -> Sequence[MappedSlice]:
    """What is asked: a slice itself, of a volume some planes, none where its echo is cut."""
    return planes_across_readout(mapped) if isinstance(mapped, MappedVolume) else [mapped]


def middle(count: int) -> int:
    """Which of a scan's parts, the nearest to sound ones first, stands for all."""
    return count // 2


@torch.no_grad()
def agreement(mapped: MappedSlice, prior: Prior, seed: int = 0) -> dict[str, float]:
    """Natural logarithms of the numbers, by NAMES, of a slice that `can_be_held_back`. seed: of the lines that are held
    back, and of the noise."""
    noise = NoiseSource([seed], mapped.model.mask.device)
    outer = outer_lines(mapped)
    order = np.random.default_rng(seed).permutation(len(outer))
    held = held_back(mapped, [outer[place] for place in order[: max(1, len(outer) // SHARE)]])
    image = sample_prox(held.problem, prior, SHORT, noise)[0]
    missed, signal = (float(held.missed(found)) - 1 for found in (image, torch.zeros_like(image)))
    least = 2 / math.sqrt(held.count / 2)  # noise hides what is smaller
    unforetold = math.log(max(missed, least) / max(signal, least))
    first, support = (part[0] if mapped.n_sets > 1 else part for part in (image, mapped.model.support))
    return dict(zip(NAMES, [unforetold, *_denoised(first, support, prior, noise)]))


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

    expected: (covariates, n_names) coefficients of `covariates`; precision: (n_names, n_names), inverse covariance of
    what is left; largest: distance that few sound scans exceed; ranges: lowest and highest by name, sigma_n: of the
    noise over the scale, R, head and matrix in pixels; of volumes those of a plane, and the others of `known_of`.
    """

    expected: np.ndarray
    precision: np.ndarray
    largest: float
    ranges: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, card: dict, contrast: str | None, kind: str = SLICES) -> "Limits | None":
        """From a model's card; None where it has none for the kind. Raises CheckpointError for an entry that lacks
        something.

        card["gate"]["fits"] is a list of {"levels", "slopes", "precision", "largest"}: level, precision and largest
        distance of each contrast, ANY for scans of no known one, and slopes that those of a fit have in common.
        card["gate"]["volumes"] is the same of volumes.
        """
        gate = card.get("gate")
        if gate is not None and kind != SLICES:
            gate = gate.get(kind)
        if gate is None:
            return None
        try:
            levels = {name: fit for fit in gate["fits"] for name in fit["levels"]}
            name = contrast if contrast in levels else ANY
            fit = levels[name]
            expected = np.array([fit["levels"][name], *fit["slopes"]], float)
            precision = np.array(fit["precision"][name], float)
            if (expected.shape, precision.shape) != ((COVARIATES[kind], len(NAMES)), (len(NAMES),) * 2):
                raise ValueError("it is of another version")
            names = RANGES + (RANGES_OF_PLANES if kind == VOLUMES else ())
            ranges = {name: (float(low), float(high)) for name, (low, high) in ((name, gate[name]) for name in names)}
            return cls(expected, precision, float(fit["largest"][name]), ranges)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"model card: the entry gate is not usable ({error!r}): get the card again, or let `dpmtrain gate` "
                "measure"
            ) from error

    def exclude(self, mapped: MappedSlice) -> str | None:
        """Why such a slice was not measured, in words; None where such were."""
        (least, most), pixels = self.ranges["matrix"], mapped.model.mask.numel()
        ratio, longest = known_of(mapped).get("ratio", 1.0), self.ranges.get("ratio", (1.0, math.inf))[1]
        if not can_be_held_back(mapped):
            return "it has no lines to hold back, or shots with a phase each"
        if not least / BEYOND <= pixels <= most * BEYOND:
            return f"its {pixels} pixels are not the {least:g} to {most:g} that the gate knows"
        if ratio > BEYOND * longest:
            return f"its pixels are {ratio:.1f} times as long as wide, and the gate knows up to {longest:.1f}"
        return None

    def judge(self, values: dict[str, float], mapped: MappedSlice) -> Agreement:
        """The distance of a slice's numbers, which the limits do not `exclude`, from those of sound scans."""
        known = known_of(mapped)
        inside = {name: min(max(value, self.ranges[name][0]), self.ranges[name][1]) for name, value in known.items()}
        apart = np.array([values[name] for name in NAMES]) - np.array(covariates(**inside)) @ self.expected
        distance = math.sqrt(float(apart @ self.precision @ apart)) / self.largest
        deviations = apart / np.sqrt(np.linalg.inv(self.precision).diagonal())
        beyond, sigma_n, fold = None, known["sigma_n"], known["R"]
        noisiest, highest = (self.ranges[name][1] for name in ("sigma_n", "R"))
        if sigma_n > BEYOND * noisiest:
            beyond = (
                f"its noise is {sigma_n:.2g} of the bright parts, and scans of up to {noisiest:.2g} are known: "
                "small detail may be lost or the prior's; average more, or acquire larger voxels"
            )
        elif fold > BEYOND * highest:
            beyond = f"R = {fold:g} is more than the {highest:g} that the gate knows: acquire more lines"
        return Agreement(values, dict(zip(NAMES, deviations.tolist())), distance, beyond)


def known_of(mapped: MappedSlice) -> dict[str, float]:
    """What the numbers of a sound scan depend on, by names of the card's ranges: noise over the scale, R, pixels of the
    head; of a volume's plane also the root of a pixel's area in mm, its longer side over the shorter one, and the sets
    of maps."""
    support = mapped.model.support
    head = support if support.ndim == 2 else support[0]
    found = {"sigma_n": mapped.data.sigma_n / mapped.scale, "R": mapped.data.acceleration, "head": float(head.sum())}
    if isinstance(mapped, MappedPlane):
        short, long = sorted(mapped.pixel_mm)
        found |= {"pixel_mm": math.sqrt(short * long), "ratio": long / short, "sets": float(mapped.n_sets)}
    return found


def covariates(
    sigma_n: float, R: float, head: float, pixel_mm: float | None = None, ratio: float = 1.0, sets: float = 1.0
) -> list[float]:
    """1, the logarithms of noise over the scale, of R and of the pixels of the head, their squares, and the noise's
    products with the others; of a plane also those of the pixel's size, its square, of the ratio of its sides and of
    the sets of maps."""
    noise, fold, pixels = math.log(max(sigma_n, 1e-6)), math.log(R), math.log(max(1.0, head))
    found = [1.0, noise, fold, pixels, noise**2, fold**2, pixels**2, noise * fold, noise * pixels]
    if pixel_mm is None:
        return found
    size = math.log(pixel_mm)
    return [*found, size, size**2, math.log(ratio), math.log(sets)]


COVARIATES = {SLICES: 9, VOLUMES: 13}
