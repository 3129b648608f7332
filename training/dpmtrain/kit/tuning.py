"""Fine-tuning in `dpmtrain kit`: the recipe for a hospital's scans, and the length that validation patients choose."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dpmrecon.prior.denoiser import Denoiser

from ..evaluate.engine import compare
from ..evaluate.methods import own_methods
from ..evaluate.plan import Condition, Plan
from ..evaluate.references import ReferenceSlice
from ..evaluate.score_lines import ScoreLines
from ..evaluate.scoring import Undersampled
from ..files import writing
from ..train.keeper import Start
from ..train.train import train
from .data import Split, patterns

LENGTHS = (0.25, 0.5, 1, 2, 4, 8)  # of the recipe's steps; 0, the start itself, is a candidate as well


@dataclass(frozen=True)
class Best:
    """The fine-tuning that won; start: the model it began with; errors: mean validation NRMSE by steps."""

    steps: int
    denoiser: Denoiser
    start: Checkpoint
    errors: dict[int, float]


def default_recipe() -> Path:
    return Path(str(files("dpmtrain.recipes") / "finetune.toml"))


def target(contrast: str, start: Start) -> dict[str, str]:
    """Its own slot where the model has it, which knows the contrast already; else the first spare one."""
    labels = start.config["labels"]
    spare = [label for label in labels if label.startswith("spare")]
    if contrast not in labels and not spare:
        raise BadInputError(f"{start.model_id} knows no '{contrast}' and has no spare slot: start with another model")
    return {"label": contrast, "slot": contrast if contrast in labels else spare[0]}


def settings(recipe: dict, split: Split) -> dict:
    """Table [train] for these volumes: crops no larger than the smallest of them."""
    # all sides of a volume that is cut, else those of its slices
    smallest = min(min(volume["shape"][len(volume["spans"]) == 1 :]) for volume in split.volumes["train"])
    volumes = {"volumes": patterns(split.volumes["train"]), "real_fraction": 1.0}
    return {**recipe, **volumes, "crops": [min(crop, smallest) for crop in recipe["crops"]]}


def plan(accelerations: tuple[int, ...], calibration_lines: int) -> Plan:
    """How validation and test slices are undersampled, and what is compared."""
    return Plan(accelerations, ("regular",), (calibration_lines,), (1,), ("CG-SENSE", "L1-wavelet"), tuning_slices=4)


def tune(
    recipe: dict,
    start: Start,
    data: Path,
    out: Path,
    validation: Sequence[ReferenceSlice],
    plan: Plan,
    device: torch.device,
) -> Best:
    """Train on, length by length, to the recipe's own and beyond while the error on the validation slices falls.

    The error is that of one sample a slice.
    """
    folder, lines, errors = out / "candidates", ScoreLines(out / "validation.jsonl"), {}
    cases = [
        Undersampled(full, condition, device)
        for full in validation
        for condition in plan.conditions(round(full.data.acceleration), full.is_volume)
    ]
    if not cases:
        raise BadInputError("the validation scans cannot be undersampled so: give --R in multiples of the scans' own R")
    for steps in dict.fromkeys([0, *(max(1, round(part * recipe["train"]["steps"])) for part in LENGTHS)]):
        path = folder / (f"{steps:06d}.safetensors" if steps else "start.safetensors")
        if not path.with_suffix(".json").exists():
            length = {**recipe, "train": {**recipe["train"], "steps": steps}}
            chosen = device.type if device.type == "cpu" else None
            denoiser = train(length, data, out / "run", start=start, device=chosen).cpu() if steps else started(start)
            with writing(path):
                save_checkpoint(path, denoiser, {"sampling": start.sampling})
        errors[steps] = error_of(load_checkpoint(path, device), cases, plan, lines)
        images = steps * recipe["train"]["batch"]
        print(f"after {steps} steps ({images} images): NRMSE {errors[steps]:.4f} on the validation patients")
        best = min(errors, key=lambda length: errors[length])
        last_two = list(errors.values())[-2:]
        if steps >= recipe["train"]["steps"] and last_two[-1] > last_two[0]:
            break
    told = "the model as it was: fine-tuning made it no better; more patients, or another --recipe, may"
    print(f"chosen: {best} steps" if best else f"chosen: {told}")
    if best == max(errors):
        print("the error still fell at the longest training: more steps in a --recipe of your own may do better")
    name = f"{best:06d}" if best else "start"
    return Best(
        best,
        load_checkpoint(folder / f"{name}.safetensors").denoiser,
        load_checkpoint(folder / "start.safetensors", device),
        errors,
    )


def started(start: Start) -> Denoiser:
    denoiser = Denoiser(start.config)
    denoiser.load_state_dict(start.ema)
    return denoiser


def error_of(checkpoint: Checkpoint, cases: Sequence[Undersampled], plan: Plan, lines: ScoreLines) -> float:
    """Mean over conditions of the mean NRMSE over slices, one sample each."""
    one = replace(plan, samples=1)
    groups: dict[tuple[str, Condition], list[Undersampled]] = {}
    for here in cases:
        groups.setdefault((here.full.contrast, here.condition), []).append(here)
    methods = [own_methods([checkpoint], one, *place, here[0].device) for place, here in groups.items()]
    rows = compare(zip(groups.values(), methods), lines, len(cases))
    return float(np.mean([np.mean(row.nrmse) for row in rows]))
