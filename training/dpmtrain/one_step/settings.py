"""Settings of a one-step network that was trained by regression, on validation slices:

    python -m dpmtrain.one_step.settings --images DATA [--model FILE] [--mask poisson] [--steps N --write FILE]

Masks with 24 calibration lines, noise of SIGMAS over the scale. Printed in markdown, NRMSE: how the noise
enters the weight of the proximal step (noise_factor, model_error). Then, where the card has sigma_max, evaluations
after the first, of the diffusion prior from a noise level on; else the l2 weight of the CG-SENSE that the network sees,
over that of its training, and evaluations of the network, told the scan's net R or less. Each row with the `error` of
ERRORS that is best for the contrast and R; means are geometric. --write puts the row of --steps evaluations with the
least mean into the card of a model. The last row is the model that ships, by its card.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.physics.cg_sense import WEIGHT_FACTOR, cg_sense
from dpmrecon.prior.checkpoint import Checkpoint, write_card
from dpmrecon.prior.conditional import ConditionalDenoiser, Conditioned
from dpmrecon.prior.kinds import ONE_STEP
from dpmrecon.prior.problem import NoiseSource, Problem
from dpmrecon.prior.samplers.one_step import OneStepSettings, sample_one_step
from dpmrecon.recon.sample import problem_of
from dpmrecon.recon.types import MappedSlice

from ..arguments import exit_code, module_parser, words
from ..evaluate.methods import by_card, label_for
from ..evaluate.plan import CALIBRATION_LINES, Condition
from ..evaluate.references import CPU
from ..evaluate.scoring import Undersampled
from ..evaluate.sweep import with_entries
from ..evaluate.tables import show
from ..evaluate.trust import scores
from ..evaluate.undersampling import MASKS
from ..evaluate.validation import SIGMA_N, validation_scan

SIGMAS = (0.0075, 0.021, 0.05)
ERRORS = (0.01, 0.014, 0.02, 0.03, 0.045)
WEIGHTS = ((0.6, 0.0025), (0.5, 0.003), (0.4, 0.005), (0.3, 0.0075), (0.2, 0.01))  # noise_factor, model_error
CG_WEIGHTS = (0.3, 3.0)
LATER = (1.0, 0.7)
LEVELS = {2: (0.02,), 3: (0.02,), 4: (0.02, 0.03), 6: (0.03,), 9: (0.03,)}  # sigma_max, by evaluations
USUAL, ONCE = 4, "1 evaluation"
KEPT = ("steps", "a_round", "later_acceleration", "noise_scale", "noise_factor", "model_error", "sigma_max", "looser")
Group = tuple[str, int]  # contrast, R


@dataclass(frozen=True)
class Remembering(Conditioned):
    """A prior that evaluates each network once for each image and R: most rows begin alike."""

    known: dict[tuple, torch.Tensor] = field(default_factory=dict)

    def _velocity(self, noisy, time, conventional, acceleration, sigma_n) -> torch.Tensor:
        image = hashlib.sha256(conventional.numpy().tobytes()).digest()
        key = self.refines, image, time, float(acceleration[0])
        if key not in self.known:
            self.known[key] = super()._velocity(noisy, time, conventional, acceleration, sigma_n)
        return self.known[key]


@dataclass(frozen=True)
class Case:
    """A slice with its problem."""

    group: Group
    sigma: float
    truth: np.ndarray
    mapped: MappedSlice
    problem: Problem
    prior: Remembering


Change = Callable[[Case], Case]


@dataclass(frozen=True)
class Variant:
    """A row: settings but for the error; change: of the case that the network and the proximal step see."""

    name: str
    settings: OneStepSettings
    change: Change | None = None


def with_cg_weight(case: Case, weight: float) -> Case:
    """Conditioned on a CG-SENSE of another weight, over that of training."""
    mapped = case.mapped
    image = cg_sense(mapped.model, mapped.zero_filled, mapped.data.sigma_n, mapped.scale, weight * WEIGHT_FACTOR)
    return replace(case, problem=replace(case.problem, start=image[None] / mapped.scale))


def variants(weight: tuple[float, float] | None, by_prior: bool) -> list[Variant]:
    """The rows that choose the proximal step's weight; with one given, those that choose the rest. by_prior: the
    evaluations after the first, USUAL in the first rows, are of the diffusion prior."""
    if weight is None:
        count = f", {USUAL} evaluations" if by_prior else ""
        return [Variant(f"noise {a:g} sigma_n + {b:g}{count}", _settings(a, b, by_prior)) for a, b in WEIGHTS]
    once = replace(_settings(*weight, by_prior), steps=1)
    if by_prior:
        found = [Variant(ONCE, once)]
        for steps, levels in LEVELS.items():
            for level in levels:
                name = f"{steps} evaluations, the prior's from {level if steps > 2 else once.sigma_min:g} on"
                found.append(Variant(name, replace(once, steps=steps, sigma_max=level)))
        return found
    found = [Variant(f"CG-SENSE's weight x {x:g}", once, partial(with_cg_weight, weight=x)) for x in CG_WEIGHTS]
    for steps in (2, 3, 4):
        for later in LATER if steps == 2 else LATER[1:]:
            name = f"{steps} evaluations, later ones told R x {later:g}"
            found.append(Variant(name, replace(once, steps=steps, a_round=1, later_acceleration=later)))
    return found


def _settings(noise_factor: float, model_error: float, by_prior: bool) -> OneStepSettings:
    found = OneStepSettings(noise_scale=0.0, noise_factor=noise_factor, model_error=model_error)
    return replace(found, steps=USUAL, sigma_max=LEVELS[USUAL][0]) if by_prior else found


def cases(
    images: Path, checkpoint: Checkpoint, contrasts: tuple[str, ...], slices: list[int], mask: str = "regular"
) -> Iterator[Case]:
    for contrast in contrasts:
        for acceleration in (4, 8):
            for sigma in SIGMAS:
                full = validation_scan(images, contrast, sigma)
                for number in slices:
                    case = Undersampled(full[number], Condition(mask, acceleration, CALIBRATION_LINES), CPU)
                    prior = checkpoint.model.of_contrast(label_for(checkpoint, contrast))
                    yield Case(
                        (contrast, acceleration), sigma, full[number].truth, case.mapped, problem_of([case.mapped]),
                        Remembering(*vars(prior).values()),
                    )  # fmt: skip


def nrmse(case: Case, variant: Variant) -> list[float]:
    """By the errors."""
    case = case if variant.change is None else variant.change(case)
    found = []
    for error in ERRORS:
        settings = replace(variant.settings, error=error)
        image = sample_one_step(case.problem, case.prior, settings, NoiseSource([0]))[0]
        found.append(scores(case.truth, case.mapped.model.combined(image))[0])
    return found


@dataclass(frozen=True)
class Row:
    """errors: the best of each group; figures: NRMSE of each group, of each sigma, and the mean."""

    variant: Variant
    errors: dict[Group, float]
    figures: list[float]

    @property
    def mean(self) -> float:
        return self.figures[-1]


def measured(variant: Variant, of: list[Case], groups: list[Group]) -> Row:
    values = {group: np.array([nrmse(case, variant) for case in of if case.group == group]) for group in groups}
    best = {group: int(np.log(found).mean(0).argmin()) for group, found in values.items()}
    chosen = [found[:, best[group]] for group, found in values.items()]
    return Row(variant, {group: ERRORS[best[group]] for group in groups}, figures_of(chosen, of, groups))


def default_figures(default: Checkpoint, of: list[Case], groups: list[Group]) -> list[float]:
    """Those of a row, of the model that ships by its card."""
    images = [by_card(case.mapped, default, case.group[0]).image for case in of]
    errors = np.array([scores(case.truth, image)[0] for case, image in zip(of, images)])
    return figures_of([errors[[case.group == group for case in of]] for group in groups], of, groups)


def figures_of(values: list[np.ndarray], of: list[Case], groups: list[Group]) -> list[float]:
    """values: NRMSE of each group's slices, at one sigma after the other."""
    table, sigmas = np.array(values), np.array([case.sigma for case in of if case.group == groups[0]])
    of_sigma = [geometric_mean(table[:, sigmas == sigma]) for sigma in SIGMAS]
    return [*(geometric_mean(found) for found in table), *of_sigma, geometric_mean(table)]


def geometric_mean(values: np.ndarray) -> float:
    """So that a percent counts alike at every noise."""
    return float(np.exp(np.log(values).mean()))


def sampling_with(card: dict, row: Row, once: Row | None = None) -> dict[str, Any]:
    """The card's table `sampling` with the row's settings. once: the row of one evaluation where the prior makes the
    others: the errors are its, and `looser` is what the row's are over them, as a geometric mean."""
    chosen, errors = row.variant.settings, row.errors
    if once is not None:
        errors = once.errors
        ratios = np.array([row.errors[group] / errors[group] for group in errors])
        chosen = replace(chosen, looser=round(geometric_mean(ratios), 2))
    own = {name: getattr(chosen, name) for name in KEPT if getattr(chosen, name) != getattr(OneStepSettings, name)}
    entries = [
        {
            "sampler": ONE_STEP,
            "contrast": contrast,
            "R": acceleration,
            "settings": {"error": error},
            "measured": f"the least NRMSE of {', '.join(f'{e:g}' for e in ERRORS)} on validation slices",
        }
        for (contrast, acceleration), error in errors.items()
    ]
    base = {**own, "error": float(np.median(list(errors.values())))}
    return with_entries({**card["sampling"], ONE_STEP: base}, entries)


def main() -> None:
    parser = module_parser(__doc__, "images")
    parser.add_argument("--model", type=Path, help="by regression (default: the one that ships)")
    parser.add_argument("--mask", choices=MASKS, default="regular")
    parser.add_argument("--contrasts", default=",".join(SIGMA_N))
    parser.add_argument("--slices", type=int, nargs="+", default=[1], help="of the three validation slices")
    parser.add_argument(
        "--steps", type=int, default=USUAL, help=f"evaluations that --write chooses for (default: {USUAL})"
    )
    parser.add_argument("--write", type=Path, help="model whose card gets the settings")
    args = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load_model(args.model or ONE_STEP, "cpu")
    contrasts = words("--contrasts", args.contrasts, tuple(SIGMA_N))
    groups = [(contrast, acceleration) for contrast in contrasts for acceleration in (4, 8)]
    by_prior = isinstance(checkpoint.model, ConditionalDenoiser) and checkpoint.model.later is not None
    rows: list[Row] = []

    def told() -> Iterator[list[str]]:
        of = list(cases(args.images, checkpoint, contrasts, args.slices, args.mask))
        weight = None
        for _ in range(2):
            for variant in variants(weight, by_prior):
                row = measured(variant, of, groups)
                rows.append(row)
                yield line(variant.name, row.figures)
            best = min(rows, key=lambda row: row.mean).variant.settings
            weight = best.noise_factor, best.model_error
        yield line("the default", default_figures(load_model(None, "cpu"), of, groups))

    def line(name: str, figures: list[float]) -> list[str]:
        return [name, *(f"{value:.4f}" for value in figures)]

    heads = [f"{contrast} R = {acceleration}" for contrast, acceleration in groups]
    print(f"# Settings of the one-step network, validation slices, {args.mask} masks\n")
    show(["", *heads, *(f"sigma_n {sigma:g}" for sigma in SIGMAS), "mean"], told())
    own = [row for row in rows if row.variant.change is None and row.variant.settings.steps == args.steps]
    if own:
        best = min(own, key=lambda row: row.mean)
        once = next((row for row in rows if row.variant.name == ONCE), None)
        told_errors = f"error {best.errors}" + (f", of one evaluation {once.errors}" if once else "")
        print(f"\nBest of {args.steps} evaluations: {best.variant.name}; {told_errors}")
        if args.write is not None:
            write_card(args.write, sampling=sampling_with(load_model(args.write, "cpu").card, best, once))


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
