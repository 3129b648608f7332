"""How often the one-step network is asked of a volume: `python -m dpmtrain.evaluate.one_step_volumes --images DATA`.

Volumes as `dpmrecon simulate --three-d` makes them and the held-out label map at 3 mm, R = 2 x 2 CAIPIRINHA. Printed in
markdown, NRMSE: CG-SENSE, the default, and the network with 1 to 4 evaluations, whose planes are cut across the
partitions alone or across each axis in turn, each row with the error of ERRORS that is best over all volumes. --write
puts the best row of --steps evaluations into the card of a model, for volumes.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.data import Volume
from dpmrecon.errors import DpmreconError
from dpmrecon.prior.checkpoint import Checkpoint, write_card
from dpmrecon.prior.kinds import ONE_STEP
from dpmrecon.prior.problem import NoiseSource, Planes, Problem
from dpmrecon.prior.samplers.one_step import OneStepSettings, sample_one_step
from dpmrecon.recon.plan import CPU_BATCH
from dpmrecon.recon.sample import volume_problem
from dpmrecon.recon.types import MappedVolume
from dpmrecon.tools.simulation_settings import VolumeSettings

from .methods import by_card, label_for
from .metrics import nrmse
from .one_step_settings import geometric_mean
from .references import CPU, simulated
from .tables import show
from .undersampling import with_maps
from .validation_volumes import COARSE, validation_volume

CONTRASTS = ("flair", "t1", "t2", "swi")
LABEL_MAP = ("flair", "t1")
ERRORS = (0.014, 0.02, 0.03)
AXES = {"in turn": (0, 1, 2), "across partitions": (0,)}
STEPS = {"in turn": (1, 2, 3, 4), "across partitions": (2,)}  # one evaluation is across partitions in both
SUBJECT = 3


@dataclass(frozen=True)
class Case:
    name: str
    contrast: str
    mapped: MappedVolume
    truth: np.ndarray

    @property
    def problem(self) -> Problem:
        return volume_problem(self.mapped, CPU_BATCH)


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
    (data,), truth = simulated(settings_of(contrast, SUBJECT))
    if not isinstance(data, Volume):
        raise DpmreconError(f"the simulated volume of {contrast} is lost")
    return Case(f"simulated {contrast}", contrast, _mapped(data, contrast), truth)


def label_map_case(images: Path, contrast: str) -> Case:
    found = validation_volume(images, contrast, COARSE[contrast])
    return Case(f"label map {contrast}", contrast, _mapped(found.data, contrast), found.truth)


def _mapped(data: Volume, contrast: str) -> MappedVolume:
    found = with_maps(data, CPU, contrast=contrast)
    assert isinstance(found, MappedVolume)
    return found


@dataclass(frozen=True)
class Row:
    """errors: NRMSE by volume and error, (volumes, errors)."""

    planes: str
    settings: OneStepSettings
    values: np.ndarray

    @property
    def best(self) -> int:
        return int(np.log(self.values).mean(0).argmin())

    @property
    def figures(self) -> np.ndarray:
        return self.values[:, self.best]


def measured(of: list[Case], checkpoint: Checkpoint, planes: str, settings: OneStepSettings) -> Row:
    values = np.empty((len(of), len(ERRORS)))
    for case, line in zip(of, values):
        prior = checkpoint.model.of_contrast(label_for(checkpoint, case.contrast))
        axes = tuple(axis for axis in AXES[planes] if axis in case.mapped.planes)
        problem = replace(case.problem, planes=Planes(axes, CPU_BATCH))
        for number, error in enumerate(ERRORS):
            image = sample_one_step(problem, prior, replace(settings, error=error), NoiseSource([0]))[0]
            line[number] = nrmse(case.mapped.model.combined(image).abs().numpy(), case.truth)
    return Row(planes, settings, values)


def card_entry(row: Row) -> dict[str, Any]:
    """For `sampling.volume` of a card."""
    return {
        "samples": 1,
        ONE_STEP: {"steps": row.settings.steps, "error": ERRORS[row.best]},
        "measured": "the least NRMSE on simulated volumes: training/reports/one_step/volumes.md",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder with synthseg_labels/")
    parser.add_argument("--model", type=Path, help="by regression (default: the one that ships)")
    parser.add_argument("--steps", type=int, default=2, help="evaluations that --write chooses for (default: 2)")
    parser.add_argument("--write", type=Path, help="model whose card gets the settings")
    args = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint, default = load_model(args.model or ONE_STEP, "cpu"), load_model(None, "cpu")
    of = [simulated_case(contrast) for contrast in CONTRASTS]
    of += [label_map_case(args.images, contrast) for contrast in LABEL_MAP]
    card = OneStepSettings(**checkpoint.card["sampling"][ONE_STEP])
    found: list[Row] = []

    def line(name: str, values: np.ndarray) -> list[str]:
        return [name, *(f"{value:.4f}" for value in values), f"{geometric_mean(values):.4f}"]

    def lines() -> Iterator[list[str]]:
        combined = [case.mapped.model.combined(case.mapped.conventional) for case in of]
        yield line("CG-SENSE", np.array([nrmse(i.abs().numpy(), case.truth) for i, case in zip(combined, of)]))
        images = [by_card(case.mapped, default, case.contrast).image for case in of]
        yield line("default", np.array([nrmse(i.abs().numpy(), case.truth) for i, case in zip(images, of)]))
        for planes, counts in STEPS.items():
            for steps in counts:
                row = measured(of, checkpoint, planes, replace(card, steps=steps))
                found.append(row)
                name = f"{steps} evaluations, planes {planes}, error {ERRORS[row.best]:g}"
                yield line(name.replace("1 evaluations", "1 evaluation"), row.figures)

    print("# The one-step network on volumes\n")
    show(["", *(case.name for case in of), "mean"], lines())
    own = [row for row in found if row.settings.steps == args.steps and row.planes == "in turn"]
    if args.write is not None and own:
        volume = card_entry(own[0])
        write_card(args.write, sampling={**load_model(args.write, "cpu").card["sampling"], "volume": volume})
        print(f"\n{args.write.with_suffix('.json').name}: {volume[ONE_STEP]}")


if __name__ == "__main__":
    try:
        main()
    except DpmreconError as error:
        raise SystemExit(f"dpmtrain: {error}") from None
