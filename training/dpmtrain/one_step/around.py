"""What may be gained around the one-step network: `python -m dpmtrain.one_step.around --images DATA`.

Validation slices as in `settings`, whose settings the first row has: one evaluation by the card. Each further row
changes one thing: how the error of the proximal step is chosen; how far it is solved; the CG-SENSE that the network
sees; its scale; what it is told; flipped images averaged. Printed in markdown: NRMSE, geometric means. Where nothing
else is said a row has the error of ERRORS that is best for its contrast and R.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.physics.cg_sense import cg_sense
from dpmrecon.prior.kinds import ONE_STEP
from dpmrecon.prior.samplers.one_step import OneStepSettings

from ..arguments import exit_code, module_parser, words
from ..evaluate.tables import show
from ..evaluate.validation import SIGMA_N
from .settings import ERRORS, Case, Change, Remembering, Variant, cases, geometric_mean, nrmse, with_cg_weight

Key = Callable[[Case], Any]  # cases that are alike have one error


def by_group(case: Case) -> Any:
    return case.group


def by_noise(case: Case) -> Any:
    return case.group, case.sigma


def by_case(case: Case) -> Any:
    return id(case)


@dataclass(frozen=True)
class Row:
    variant: Variant
    key: Key = by_group


@dataclass(frozen=True)
class Flipped(Remembering):
    """A prior that is the mean of its answers to an image and the flipped one, in one batch. axes: each flipped alone,
    and together where there are two."""

    axes: tuple[int, ...] = (-1,)

    def _velocity(self, noisy, time, conventional, acceleration, sigma_n) -> torch.Tensor:
        flips = [(), *((axis,) for axis in self.axes), *([self.axes] if len(self.axes) > 1 else [])]
        both = [torch.cat([image.flip(some) for some in flips]) for image in (noisy, conventional)]
        told = [values.repeat(len(flips)) for values in (acceleration, sigma_n)]
        found = super()._velocity(both[0], time, both[1], *told).chunk(len(flips))
        return torch.stack([image.flip(some) for image, some in zip(found, flips)]).mean(0)


@dataclass(frozen=True)
class Told(Remembering):
    """A prior that is told other numbers, over those of the scan."""

    acceleration: float = 1.0
    noise: float = 1.0

    def _velocity(self, noisy, time, conventional, acceleration, sigma_n) -> torch.Tensor:
        return super()._velocity(noisy, time, conventional, self.acceleration * acceleration, self.noise * sigma_n)


def with_prior(case: Case, kind: type[Remembering], **how: Any) -> Case:
    prior = case.prior
    return replace(case, prior=kind(prior.denoiser, prior.label, prior.count, **how))


def with_cg_steps(case: Case, steps: int) -> Case:
    """Conditioned on a CG-SENSE of so many iterations at most."""
    mapped = case.mapped
    form = type("Shorter", (type(mapped.model),), {"cg_steps": steps})
    model = form(mapped.model.coil_maps, mapped.model.mask)
    image = cg_sense(model, mapped.zero_filled, mapped.data.sigma_n, mapped.scale)
    return replace(case, problem=replace(case.problem, start=image[None] / mapped.scale))


def with_scale(case: Case, factor: float) -> Case:
    """The slice brighter by a factor than the scale's rule says."""
    problem = case.problem
    images = {name: factor * getattr(problem, name) for name in ("kspace", "zero_filled", "start", "sigma_n")}
    return replace(case, problem=replace(problem, **images))


def rows(card: OneStepSettings) -> Iterator[Row]:
    one = replace(card, steps=1)

    def changed(name: str, change: Change) -> Row:
        return Row(Variant(name, one, change))

    yield Row(Variant("one evaluation, by the card", one))
    yield Row(Variant("error by contrast, R and sigma_n", one), by_noise)
    yield Row(Variant("error by slice (needs the truth)", one), by_case)
    for factor, error in ((0.2, 0.0025), (0.4, 0.0025), (0.7, 0.0025), (1.0, 0.0)):
        weight = replace(one, noise_factor=factor, model_error=error)
        yield Row(Variant(f"noise {factor:g} sigma_n + {error:g}", weight))
    for steps in (2, 4, 30):
        yield Row(Variant(f"proximal step, {steps} iterations", replace(one, cg_steps=steps)))
    yield Row(Variant("measured samples put in place", replace(one, hard=True)))
    for steps in (4, 8, 15):
        yield changed(f"CG-SENSE, {steps} iterations", partial(with_cg_steps, steps=steps))
    for factor in (0.7, 1.4):
        yield changed(f"CG-SENSE's weight x {factor:g}", partial(with_cg_weight, weight=factor))
    for factor in (0.8, 0.9, 1.1, 1.25):
        yield changed(f"scale x {factor:g}", partial(with_scale, factor=factor))
    for factor in (0.7, 1.4):
        yield changed(f"told R x {factor:g}", partial(with_prior, kind=Told, acceleration=factor))
        yield changed(f"told sigma_n x {factor:g}", partial(with_prior, kind=Told, noise=factor))
    for name, axes in (("columns", (-1,)), ("rows", (-2,))):
        change = partial(with_prior, kind=Flipped, axes=axes)
        yield changed(f"mean with flipped {name} (two in a batch)", change)
    yield changed("mean of all flips (four in a batch)", partial(with_prior, kind=Flipped, axes=(-1, -2)))
    yield Row(Variant(f"{card.steps} evaluations, by the card", card))


def chosen(values: np.ndarray, keys: Sequence[Any]) -> np.ndarray:
    """NRMSE of each case, (cases,), of (cases, errors): with the error that is best, in the mean, for those of its
    key."""
    found = np.empty(len(values))
    for key in set(keys):
        where = np.array([other == key for other in keys])
        found[where] = values[where, np.log(values[where]).mean(0).argmin()]
    return found


def main() -> None:
    parser = module_parser(__doc__, "images")
    parser.add_argument("--contrasts", default="flair,t1")
    parser.add_argument("--slices", type=int, nargs="+", default=[1], help="of the three validation slices")
    args = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load_model(ONE_STEP, "cpu")
    contrasts = words("--contrasts", args.contrasts, tuple(SIGMA_N))
    of = list(cases(args.images, checkpoint, contrasts, args.slices))
    groups = list(dict.fromkeys(case.group for case in of))
    card = OneStepSettings(**checkpoint.card["sampling"][ONE_STEP])

    def lines() -> Iterator[list[str]]:
        first = None
        for row in rows(card):
            values = np.array([nrmse(case, row.variant) for case in of])
            found = chosen(values, [row.key(case) for case in of])
            mean = geometric_mean(found)
            first = first or mean
            by = [geometric_mean(found[np.array([case.group == group for case in of])]) for group in groups]
            yield [
                row.variant.name,
                *(f"{value:.4f}" for value in by),
                f"{mean:.4f}",
                f"{100 * (mean / first - 1):+.1f} %",
            ]

    print(f"# Around the one-step network, {len(of)} validation slices and noise levels, errors {ERRORS}\n")
    show(["", *(f"{contrast} R = {acceleration}" for contrast, acceleration in groups), "mean", "change"], lines())


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
