"""Fine-tuning in `dpmtrain kit`: the recipe for a hospital's scans, and the length that validation patients choose."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from dpmrecon.errors import BadInputError, DpmreconError
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dpmrecon.prior.denoiser import Denoiser

from ..evaluate.engine import Method
from ..evaluate.methods import own_methods
from ..evaluate.plan import Plan
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
    """The fine-tuning that won; start: the model it began with; missed: by steps, see `missed`."""

    steps: int
    denoiser: Denoiser
    start: Checkpoint
    missed: dict[int, float]


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
    """Train on, length by length, to the recipe's own and beyond while less is missed on the validation patients."""
    folder, lines, found = out / "candidates", ScoreLines(out / "left_out.jsonl"), {}
    cases = cases_of(validation, plan, device)
    for steps in dict.fromkeys([0, *(max(1, round(part * recipe["train"]["steps"])) for part in LENGTHS)]):
        path = folder / f"{steps:06d}.safetensors" if steps else begun(start, out)
        if not path.with_suffix(".json").exists():
            length = {**recipe, "train": {**recipe["train"], "steps": steps}}
            chosen = device.type if device.type == "cpu" else None
            denoiser = train(length, data, out / "run", start=start, device=chosen).cpu()
            with writing(path):
                save_checkpoint(path, denoiser, {"sampling": start.sampling})
        found[steps] = float(np.mean(missed(load_checkpoint(path, device), cases, plan, lines)))
        images = steps * recipe["train"]["batch"]
        print(f"after {steps} steps ({images} images): {found[steps]:.4f} times the noise is missed of lines left out")
        best = min(found, key=lambda length: found[length])
        last_two = list(found.values())[-2:]
        if steps >= recipe["train"]["steps"] and last_two[-1] > last_two[0]:
            break
    told = "the model as it was: fine-tuning made it no better; more patients, or another --recipe, may"
    print(f"chosen: {best} steps" if best else f"chosen: {told}")
    if best == max(found):
        print("the error still fell at the longest training: more steps in a --recipe of your own may do better")
    name = f"{best:06d}" if best else "start"
    return Best(
        best,
        load_checkpoint(folder / f"{name}.safetensors").denoiser,
        load_checkpoint(folder / "start.safetensors", device),
        found,
    )


def refuse_worse(best: Best, out: Path, test: Sequence[ReferenceSlice], plan: Plan, device: torch.device) -> None:
    """Raises DpmreconError where the tuned model misses more than its start on the test patients, on whom nothing was
    chosen."""
    if best.steps == 0:
        return
    lines, cases = ScoreLines(out / "left_out.jsonl"), cases_of(test, plan, device)
    tuned = load_checkpoint(out / "candidates" / f"{best.steps:06d}.safetensors", device)
    before, after = (float(np.mean(missed(each, cases, plan, lines))) for each in (best.start, tuned))
    if after > before:
        raise DpmreconError(
            f"the tuned model foretells lines of the test patients worse than the one it began with, {after:.4f} times "
            f"their noise against {before:.4f}: no model is written; go on with that one, or give more patients or "
            "scans with less noise"
        )
    print(f"of the test patients' lines {after:.4f} times the noise is missed, by the start {before:.4f}")


def cases_of(references: Sequence[ReferenceSlice], plan: Plan, device: torch.device) -> list[Undersampled]:
    """Raises BadInputError where the scans cannot be undersampled so."""
    cases = [
        Undersampled(full, condition, device)
        for full in references
        for condition in plan.conditions(round(full.data.acceleration), full.is_volume)
    ]
    if not cases:
        raise BadInputError("the scans cannot be undersampled so: give --R in multiples of the scans' own R")
    return cases


def begun(start: Start, out: Path) -> Path:
    """The model that fine-tuning begins with, as a file."""
    path = out / "candidates" / "start.safetensors"
    if not path.with_suffix(".json").exists():
        denoiser = Denoiser(start.config)
        denoiser.load_state_dict(start.ema)
        with writing(path):
            save_checkpoint(path, denoiser, {"sampling": start.sampling})
    return path


def missed(checkpoint: Checkpoint, cases: Sequence[Undersampled], plan: Plan, lines: ScoreLines) -> list[float]:
    """What one sample misses of the lines that it was not given, rms over the noise's, for each case.

    The site's own images hold noise, or are CG-SENSE's: by NRMSE against them, a prior that keeps noise looks good.
    """
    one, found = replace(plan, samples=1), []
    for here in cases:
        full = here.full
        (method,) = own_methods([checkpoint], one, full.contrast, here.condition, here.device)
        key = {**full.key, **asdict(here.condition), "setting": method.setting}
        found.append(lines.get(key, partial(_of_case, here, method))["missed"])
    return found


def _of_case(here: Undersampled, method: Method) -> dict[str, float]:
    return {"missed": here.missed(method.run(here).image)}
