"""The methods that `evaluate` compares: conventional ones with tuned weights, and models with the card's settings."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dpmrecon.data import Volume
from dpmrecon.errors import BadInputError
from dpmrecon.options import Options
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.recon.plan import sampling_of
from dpmrecon.recon.stream import sampled
from dpmrecon.recon.types import MappedSlice, Reconstruction, Sampling

from . import baselines
from .plan import VOLUME_MASKS, Condition, Plan
from .references import ReferenceSlice
from .score_lines import ScoreLines
from .scoring import Row, Undersampled


@dataclass(frozen=True)
class Method:
    """name: in the table; setting: all that changes its scores; run: to the score of one slice."""

    name: str
    setting: str
    run: Callable[[Undersampled], dict[str, Any]]


class Weights:
    """CG-SENSE and L1-wavelet with the best weight on fully sampled validation slices of the contrast, undersampled
    in the same way."""

    def __init__(
        self,
        tuning: Callable[[str], list[ReferenceSlice]],
        plan: Plan,
        lines: ScoreLines,
        device: torch.device,
        shapes: list[tuple[int, ...]],
    ):
        self.tuning, self.plan, self.lines, self.device = tuning, plan, lines, device
        name, wavelet = baselines.wavelet_tool(shapes)
        self.tools = {
            "CG-SENSE": ("CG-SENSE", baselines.tuned_cg_sense, baselines.SENSE_WEIGHTS),
            "L1-wavelet": (name, wavelet, baselines.WAVELET_WEIGHTS),
        }
        self.tuned: dict[tuple[str, str, int, str], float] = {}

    def methods(self, contrast: str, condition: Condition) -> list[Method]:
        found = []
        for name in self.plan.conventional:
            if name == "zero-filled":
                found.append(
                    Method(name, "", lambda here: here.score(here.mapped.model.combined(here.mapped.zero_filled)))
                )
                continue
            title, run, _ = self.tools[name]
            weight = self._weight(name, contrast, condition)

            def scored(here: Undersampled, run: Any = run, weight: float = weight) -> dict[str, Any]:
                return here.score(run(here.mapped, weight))

            found.append(Method(title, f"weight {weight:g}", scored))
        return found

    def _weight(self, name: str, contrast: str, condition: Condition) -> float:
        title, run, start = self.tools[name]
        condition = dataclasses.replace(condition, scan_R=1)
        key = {"tuned": title, "contrast": contrast, "slices": self.plan.tuning_slices}
        key |= dataclasses.asdict(condition)

        def make() -> dict[str, Any]:
            volume = condition.mask in VOLUME_MASKS.values()
            fitting = [full for full in self.tuning(contrast) if full.is_volume == volume]
            if not fitting:
                raise BadInputError(
                    f"no validation scan of {contrast} is {'3D' if volume else '2D'}, on which weights could be tuned: "
                    "leave the conventional methods out, or add such a scan"
                )
            cases = [Undersampled(full, condition, self.device) for full in fitting[: self.plan.tuning_slices]]

            def error(weight: float) -> float:
                scores = [(case.full, case.score(run(case.mapped, weight)), "") for case in cases]
                return float(np.mean(Row.of(contrast, condition, title, scores).nrmse))

            weight, tried = baselines.tuned_weight(error, start)
            return {"weight": weight, "tried": tried, "on": [[c.full.scan, c.full.number] for c in cases]}

        weight = self.lines.get(key, make)["weight"]
        self.tuned[(contrast, condition.sampling(), condition.R, title)] = weight
        return weight


def own_methods(checkpoints: Sequence[Checkpoint], plan: Plan, here: Undersampled) -> list[Method]:
    """Every model with every sampler, as the product samples: with the card's settings for the contrast and R.

    Raises BadInputError for the uncertainty mode of a model whose card has no settings for it.
    """
    names = [checkpoint.card.get("name", checkpoint.model_id) for checkpoint in checkpoints]
    if len(set(names)) < len(names):
        names = [checkpoint.model_id for checkpoint in checkpoints]
    found = []
    for own_name, checkpoint in zip(names, checkpoints):
        for name in plan.samplers:
            options = Options(samples=plan.samples, seed=plan.seed)
            uncertain = name == "uncertainty"
            options = (
                dataclasses.replace(options, mode=name) if uncertain else dataclasses.replace(options, sampler=name)
            )
            label = label_for(checkpoint, here.full.contrast)
            sampling = sampling_of(
                options,
                checkpoint,
                here.device,
                label,
                here.condition.R,
                volume=isinstance(here.full.data, Volume),
            )
            title = name if len(checkpoints) == 1 else f"{own_name} {name}"
            found.append(model_method(title, checkpoint, sampling))
    return found


def label_for(checkpoint: Checkpoint, contrast: str) -> str | None:
    """The contrast where the model has a label of it."""
    return contrast if contrast in checkpoint.model.labels else None


def reconstructed(mapped: MappedSlice, checkpoint: Checkpoint, contrast: str, sampling: Sampling) -> Reconstruction:
    """A slice as the product makes it, of the label that the model has for the contrast."""
    (found,) = sampled([mapped], checkpoint, label_for(checkpoint, contrast), sampling)
    assert isinstance(found, Reconstruction)
    return found


def model_method(name: str, checkpoint: Checkpoint, sampling: Sampling) -> Method:
    """The mean of the samples as the product makes it, fallback included."""

    def scored(here: Undersampled) -> dict[str, Any]:
        kept = dataclasses.replace(sampling, keep_samples=sampling.samples > 1)
        result = reconstructed(here.mapped, checkpoint, here.full.contrast, kept)
        score = here.score(result.image, result.draws)
        return {**score, "samples": sampling.samples, "fallback": result.fallback}

    settings = json.dumps(vars(sampling.settings))
    setting = f"{checkpoint.model_id}, {sampling.sampler}, {sampling.samples} samples, seed {sampling.seed}, {settings}"
    return Method(name, setting, scored)


def score_of(method: Method, here: Undersampled, lines: ScoreLines) -> dict[str, Any]:
    """The method's score of the slice, with its seconds; from `lines` where it is there."""
    key = {"scan": here.full.scan, "slice": here.full.number, "contrast": here.full.contrast}
    key |= {**dataclasses.asdict(here.condition), "method": method.name, "setting": method.setting}

    def make() -> dict[str, Any]:
        _ = here.mapped  # maps are the same for all methods, and not counted
        started = time.perf_counter()
        score = method.run(here)
        return {**score, "seconds": time.perf_counter() - started}

    return lines.get(key, make)
