"""The methods that `evaluate` compares: conventional ones with tuned weights, and models with the card's settings."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dpmrecon.checkpoint import Checkpoint, sampler_defaults
from dpmrecon.reconstruct import Reconstruction, Sampling, sampled
from dpmrecon.samplers import settings_from

from . import baselines
from .references import ReferenceSlice
from .score_lines import ScoreLines
from .scoring import Condition, Row, Undersampled

if TYPE_CHECKING:
    from .evaluation import Plan


@dataclass(frozen=True)
class Method:
    """name: in the table; setting: all that changes its scores; run: to the score of one slice."""

    name: str
    setting: str
    run: Callable[[Undersampled], dict[str, Any]]


class Weights:
    """CG-SENSE and L1-wavelet with the best weight on validation slices of the contrast, for each mask and R.

    Tuned with as many calibration lines as the plan has at most, of fully sampled data.
    """

    def __init__(
        self,
        tuning: Callable[[str], list[ReferenceSlice]],
        plan: "Plan",
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
        self.tuned: dict[tuple, str] = {}

    def methods(self, contrast: str, condition: Condition) -> list[Method]:
        found = []
        for name in self.plan.conventional:
            if name == "zero-filled":
                found.append(Method(name, "", lambda here: here.score(here.mapped.zero_filled)))
                continue
            title, run, _ = self.tools[name]
            weight = self._weight(name, contrast, condition)

            def scored(here: Undersampled, run: Any = run, weight: float = weight) -> dict[str, Any]:
                return here.score(run(here.mapped, weight))

            found.append(Method(title, f"weight {weight:g}", scored))
        return found

    def _weight(self, name: str, contrast: str, condition: Condition) -> float:
        title, run, start = self.tools[name]
        condition = dataclasses.replace(condition, scan_R=1, calibration_lines=max(self.plan.calibration))
        key = {"tuned": title, "contrast": contrast, "slices": self.plan.tuning_slices}
        key |= dataclasses.asdict(condition)

        def make() -> dict[str, Any]:
            cases = [Undersampled(full, condition, self.device) for full in self.tuning(contrast)]
            cases = cases[: self.plan.tuning_slices]

            def error(weight: float) -> float:
                scores = [(case.full, case.score(run(case.mapped, weight)), "") for case in cases]
                return float(np.mean(Row.of(contrast, condition, title, scores).nrmse))

            weight, tried = baselines.tuned_weight(error, start)
            return {"weight": weight, "tried": tried, "on": [[c.full.scan, c.full.number] for c in cases]}

        weight = self.lines.get(key, make)["weight"]
        self.tuned[(contrast, condition.mask, condition.R, title)] = (
            f"{contrast}, {condition.sampling()}, R={condition.R}: {title} {weight:g}"
        )
        return weight


def own_methods(checkpoints: Sequence[Checkpoint], plan: "Plan", here: Undersampled) -> list[Method]:
    """Every model with every sampler, at the settings of its card for the contrast and R."""
    found = []
    for checkpoint in checkpoints:
        contrast = here.full.contrast if here.full.contrast in checkpoint.denoiser.labels else None
        samples = plan.samples or checkpoint.card.get("sampling", {}).get("samples", 1)
        for sampler in plan.samplers:
            settings = settings_from(sampler_defaults(checkpoint.card, sampler, contrast, here.condition.R)[0])
            batch = 4 if here.device.type == "cpu" else 32
            sampling = Sampling(sampler, settings, samples, plan.seed, batch, fallback=True)

            def scored(
                here: Undersampled, checkpoint: Any = checkpoint, label: str | None = contrast, how: Any = sampling
            ) -> dict[str, Any]:
                (result,) = sampled([here.mapped], checkpoint, label, how)
                assert isinstance(result, Reconstruction)
                score = here.score(result.image, result.spread, how.samples)
                return {**score, "samples": how.samples, "fallback": result.fallback}

            name = sampler if len(checkpoints) == 1 else f"{checkpoint.card.get('name', checkpoint.model_id)} {sampler}"
            text = f"{checkpoint.model_id}, {samples} samples, seed {plan.seed}, {json.dumps(vars(settings))}"
            found.append(Method(name, text, scored))
    return found
