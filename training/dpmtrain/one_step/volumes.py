"""How often the one-step network is asked of a volume:

    python -m dpmtrain.one_step.volumes --images DATA --out DIR [--write FILE]

Volumes as `dpmrecon simulate --three-d` makes them and the held-out label map at 3 mm, R = 2 x 2 CAIPIRINHA. Printed in
markdown, NRMSE: CG-SENSE, the default, and the network with 1 to 10 evaluations, those after the first of the diffusion
prior. Planes are cut across the partitions alone or each axis in turn. Each row has the error of ERRORS that is best
for the contrast. --write puts the best row of --steps evaluations, planes in turn, into the card of a model, and what
the best one of each contrast has else. A run that was stopped goes on.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.data import Volume
from dpmrecon.errors import DpmreconError
from dpmrecon.prior.checkpoint import Checkpoint, write_card
from dpmrecon.prior.kinds import ONE_STEP
from dpmrecon.prior.problem import NoiseSource, Planes
from dpmrecon.prior.samplers.one_step import OneStepSettings, sample_one_step
from dpmrecon.recon.plan import CPU_BATCH
from dpmrecon.recon.sample import volume_problem
from dpmrecon.recon.types import MappedVolume
from dpmrecon.simulation.settings import VolumeSettings

from ..arguments import exit_code, module_parser
from ..evaluate.methods import by_card, label_for
from ..evaluate.metrics import nrmse
from ..evaluate.references import CPU, simulated
from ..evaluate.score_lines import ScoreLines
from ..evaluate.tables import show
from ..evaluate.undersampling import with_maps
from ..evaluate.validation_volumes import COARSE, validation_volume
from .settings import geometric_mean

CONTRASTS = ("flair", "t1", "swi")
LABEL_MAP = ("flair", "t1")
ERRORS = (0.014, 0.02, 0.03)
AXES = {"in turn": (0, 1, 2), "across partitions": (0,)}
LEVELS = {1: (0.02,), 4: (0.02, 0.03), 7: (0.03, 0.06), 10: (0.03, 0.06)}  # sigma_max, by evaluations
USUAL = 7  # evaluations
KEPT = ("steps", "sigma_max", "noise_factor", "model_error", "looser")  # in the card
NOISES = ((0.5, 0.003), (0.75, 0.003))  # noise_factor, model_error
SUBJECT = 3


@dataclass(frozen=True)
class Case:
    """A volume, made and mapped when it is first used."""

    name: str
    contrast: str
    make: Callable[[], tuple[Volume, np.ndarray]]

    @cached_property
    def made(self) -> tuple[MappedVolume, np.ndarray]:
        data, truth = self.make()
        found = with_maps(data, CPU, contrast=self.contrast)
        assert isinstance(found, MappedVolume)
        return found, truth

    @property
    def mapped(self) -> MappedVolume:
        return self.made[0]

    def nrmse(self, image: torch.Tensor) -> float:
        """image: with all its sets."""
        return nrmse(self.mapped.model.combined(image).abs().numpy(), self.made[1])


def settings_of(contrast: str, seed: int) -> VolumeSettings:
    """A head of 3 mm voxels, of SWI a slab of such partitions with pixels of 2 mm."""
    swi = contrast == "swi"
    return VolumeSettings(
        contrast=contrast,
        subject=seed,
        seed=seed,
        matrix=(88, 72) if swi else (76, 62),
        fov_mm=(176.0, 144.0) if swi else (228.0, 186.0),
        partitions=32 if swi else 60,
        slice_thickness_mm=3.0,
        acceleration=2,
        partition_acceleration=2,
        caipirinha=1,
        calibration_lines=16,
        noise=0.02,
    )


def simulated_case(contrast: str) -> Case:
    def make() -> tuple[Volume, np.ndarray]:
        (data,), truth = simulated(settings_of(contrast, SUBJECT))
        if not isinstance(data, Volume):
            raise DpmreconError(f"the simulated volume of {contrast} is lost")
        return data, truth

    return Case(f"simulated {contrast}", contrast, make)


def label_map_case(images: Path, contrast: str) -> Case:
    def make() -> tuple[Volume, np.ndarray]:
        found = validation_volume(images, contrast, COARSE[contrast])
        return found.data, found.truth

    return Case(f"label map {contrast}", contrast, make)


@dataclass(frozen=True)
class Row:
    """values: NRMSE by volume and error, (volumes, errors)."""

    contrasts: list[str]
    planes: str
    settings: OneStepSettings
    values: np.ndarray

    def best(self, contrast: str) -> int:
        """Place of the error that is best for the contrast's volumes."""
        where = [each == contrast for each in self.contrasts]
        return int(np.log(self.values[where]).mean(0).argmin())

    def mean_of(self, contrast: str) -> float:
        return geometric_mean(self.figures[[each == contrast for each in self.contrasts]])

    @property
    def errors(self) -> dict[str, float]:
        return {contrast: ERRORS[self.best(contrast)] for contrast in dict.fromkeys(self.contrasts)}

    @property
    def figures(self) -> np.ndarray:
        return np.array([line[self.best(contrast)] for line, contrast in zip(self.values, self.contrasts)])


def measured(of: list[Case], checkpoint: Checkpoint, planes: str, settings: OneStepSettings, lines: ScoreLines) -> Row:
    def errors(case: Case) -> dict[str, Any]:
        prior = checkpoint.model.of_contrast(label_for(checkpoint, case.contrast))
        axes = tuple(axis for axis in AXES[planes] if axis in case.mapped.planes)
        problem = replace(volume_problem(case.mapped, CPU_BATCH), planes=Planes(axes, CPU_BATCH))
        each = [replace(settings, error=error) for error in ERRORS]
        return {"nrmse": [case.nrmse(sample_one_step(problem, prior, one, NoiseSource([0]))[0]) for one in each]}

    key = {"model": checkpoint.model_id, "settings": vars(settings), "planes": planes, "errors": ERRORS}
    values = [lines.get({**key, "volume": case.name}, partial(errors, case))["nrmse"] for case in of]
    return Row([case.contrast for case in of], planes, settings, np.array(values))


def others(of: list[Case], default: Checkpoint, lines: ScoreLines) -> list[tuple[str, np.ndarray]]:
    """CG-SENSE and the default, NRMSE of each volume."""

    def both(case: Case) -> dict[str, Any]:
        image = by_card(case.mapped, default, case.contrast).image.abs().numpy()
        return {"CG-SENSE": case.nrmse(case.mapped.conventional), "default": nrmse(image, case.made[1])}

    key = {"model": default.model_id}
    found = [lines.get({**key, "volume": case.name}, partial(both, case)) for case in of]
    return [(name, np.array([each[name] for each in found])) for name in ("CG-SENSE", "default")]


def tried(card: OneStepSettings) -> Iterator[tuple[str, OneStepSettings]]:
    """Planes and settings of each row."""
    less, usual = (replace(card, noise_factor=factor, model_error=error, looser=1.0) for factor, error in NOISES)
    for steps, levels in LEVELS.items():
        for level in levels:
            yield "in turn", replace(usual, steps=steps, sigma_max=level)
    yield "in turn", replace(less, steps=USUAL, sigma_max=LEVELS[USUAL][0])
    for steps in (1, 4):
        yield "across partitions", replace(usual, steps=steps, sigma_max=LEVELS[steps][0])


def words_of(settings: OneStepSettings) -> str:
    if settings.steps == 1:
        return f"1 evaluation, noise_factor {settings.noise_factor:g}"
    return f"{settings.steps} evaluations, from {settings.sigma_max:g} on, noise_factor {settings.noise_factor:g}"


def card_entry(rows: list[Row]) -> dict[str, Any]:
    """For `sampling.volume` of a card: the row with the least mean, and what the best one of each contrast has else."""
    best = min(rows, key=lambda row: geometric_mean(row.figures))
    shared = {name: getattr(best.settings, name) for name in KEPT}
    by_contrast: dict[str, dict[str, float]] = {}
    for contrast in dict.fromkeys(best.contrasts):
        own = min(rows, key=lambda row: row.mean_of(contrast))
        differing = {name: getattr(own.settings, name) for name in KEPT if getattr(own.settings, name) != shared[name]}
        by_contrast[contrast] = {**differing, "error": own.errors[contrast]}
    return {
        "samples": 1,
        ONE_STEP: {**shared, "error": float(np.median(list(best.errors.values())))},
        "by_contrast": by_contrast,
        "measured": "the least NRMSE on simulated volumes: training/reports/one_step/volumes.md",
    }


def main() -> None:
    parser = module_parser(__doc__, "images", "out")
    parser.add_argument("--model", type=Path, help="by regression (default: the one that ships)")
    parser.add_argument(
        "--steps", type=int, default=USUAL, help=f"evaluations that --write chooses for (default: {USUAL})"
    )
    parser.add_argument("--write", type=Path, help="model whose card gets the settings")
    args = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint, default = load_model(args.model or ONE_STEP, "cpu"), load_model(None, "cpu").of_scan(volume=True)
    of = [simulated_case(contrast) for contrast in CONTRASTS]
    of += [label_map_case(args.images, contrast) for contrast in LABEL_MAP]
    card = OneStepSettings(**checkpoint.card["sampling"][ONE_STEP])
    lines, found = ScoreLines(args.out / "scores.jsonl"), []

    def line(name: str, values: np.ndarray) -> list[str]:
        return [name, *(f"{value:.4f}" for value in values), f"{geometric_mean(values):.4f}"]

    def told() -> Iterator[list[str]]:
        for name, values in others(of, default, lines):
            yield line(name, values)
        for planes, settings in tried(card):
            row = measured(of, checkpoint, planes, settings, lines)
            found.append(row)
            yield line(f"{words_of(settings)}, planes {planes}", row.figures)

    print("# The one-step network on volumes\n")
    show(["", *(case.name for case in of), "mean"], told())
    own = [row for row in found if row.settings.steps == args.steps and row.planes == "in turn"]
    if args.write is not None and own:
        volume = card_entry(own)
        write_card(args.write, sampling={**load_model(args.write, "cpu").card["sampling"], "volume": volume})
        print(f"\n{args.write.with_suffix('.json').name}: {volume[ONE_STEP]}, {volume['by_contrast']}")


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
