"""The methods of the bench: ours, conventional ones and deepinv's, on the same slices, coil maps, scale and noise.

Weights, step sizes and deepinv's lambda are the best on validation slices of the scan's contrast and R; those of `prox`
are the card's, which `dpmtrain sweep` chose likewise.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.prior.checkpoint import Checkpoint, sampler_defaults
from dpmrecon.prior.kinds import settings_from
from dpmrecon.prior.samplers.diffusion import SamplerSettings
from dpmrecon.recon.sample import draw, problem_of, sample_seed
from dpmrecon.recon.types import Sampling

from ..evaluate.engine import Made, Method, Tuner
from ..evaluate.methods import conventional
from ..evaluate.metrics import on_scale
from ..evaluate.plan import CONVENTIONAL, Condition
from ..evaluate.references import ReferenceSlice
from ..evaluate.scoring import Undersampled
from ..hardware import TimedDenoiser, network_work
from .baselines import deepinv_diffpir, deepinv_dps, gadgetron_images, import_deepinv
from .plan import BenchPlan

# where the search begins; it goes on by factors of 2
ZETAS = (0.5, 0.7, 1.0)
DPS_WEIGHTS = (2000.0, 4000.0, 8000.0)
LAMBDAS = (1.75, 3.5, 7.0)
BATCH = 4  # samples of a slice that the network sees at once


class Ours:
    """A checkpoint that is timed: the network's seconds, evaluations and FLOP beside each image."""

    def __init__(self, checkpoint: Checkpoint, seed: int):
        self.checkpoint, self.seed = checkpoint, seed

    @property
    def name(self) -> str:
        """The model and how its network computes where no gradient is taken: both change the scores."""
        return self.checkpoint.model_id + (", bfloat16" if self.checkpoint.denoiser.bf16 else "")

    def made(
        self, timed: TimedDenoiser, image: torch.Tensor, draws: torch.Tensor | None, evaluations: int, *, gradient: bool
    ) -> Made:
        denoiser = self.checkpoint.denoiser
        flops = network_work(denoiser.config, (image.shape[0], image.shape[1]), gradient)[0]
        precision = "bfloat16" if denoiser.bf16 and not gradient else "float32"
        facts = {"evaluations": evaluations, "gflop": evaluations * flops / 1e9, "precision": precision}
        return Made(image, draws, facts, timed.seconds())

    def sampled(self, here: Undersampled, sampler: str, settings: SamplerSettings, samples: int) -> Made:
        """Posterior samples and their mean, without the product's fallback."""
        mapped, timed = here.mapped, TimedDenoiser(self.checkpoint.denoiser)
        sampling = Sampling(sampler, settings, samples, self.seed, BATCH, fallback=False)
        model: Any = timed
        volumes = self.checkpoint.volumes
        if volumes is not None:  # which slices may ask too
            other: Any = TimedDenoiser(volumes.denoiser)
            other.spans = timed.spans
            volumes = dataclasses.replace(volumes, model=other)
        checkpoint = dataclasses.replace(self.checkpoint, model=model, volumes=volumes)
        (found,), evaluations = draw([mapped], checkpoint, here.full.contrast, sampling)
        draws = mapped.model.combined(found * mapped.scale)
        return self.made(timed, draws.mean(0), draws, evaluations, gradient=sampler == "dps")

    def method(self, name: str, sampler: str, settings: SamplerSettings, samples: int) -> Method:
        text = f"{self.name}, {samples} samples, seed {self.seed}, {json.dumps(vars(settings))}"
        return Method(name, text, partial(self.sampled, sampler=sampler, settings=settings, samples=samples))


def methods(
    contrast: str, condition: Condition, slices: Sequence[ReferenceSlice], plan: BenchPlan, ours: Ours, tuner: Tuner
) -> Iterator[Method]:
    """Every method for slices of one contrast at R, cheap ones first."""
    yield from conventional(CONVENTIONAL, contrast, condition, [tuple(full.data.mask.shape) for full in slices], tuner)
    yield from _recorded(condition.R, slices, plan.grappa)
    card = ours.checkpoint.card
    settings = settings_from(sampler_defaults(card, "prox", contrast, condition.R)[0])
    for steps in plan.prox_steps:
        yield ours.method(f"prox {steps}", "prox", dataclasses.replace(settings, steps=steps), 1)
    samples = card.get("sampling", {}).get("samples", 1)
    mean = f", mean of {samples}" if samples > 1 else ""
    yield ours.method(f"prox default{mean}", "prox", settings, samples)
    if "deepinv" not in plan.without:
        yield from _deepinv(contrast, condition, plan, ours, tuner)
    dps = dps_settings(contrast, condition, plan, ours, tuner)
    yield ours.method(f"dps {plan.dps_steps}", "dps", dps, 1)


def dps_settings(contrast: str, condition: Condition, plan: BenchPlan, ours: Ours, tuner: Tuner) -> SamplerSettings:
    """With the zeta that `dpmtrain sweep` found for this contrast, R and number of steps, else with the best one."""
    sampling, name = ours.checkpoint.card.get("sampling", {}), f"dps {plan.dps_steps}"
    for entry in sampling.get("by_contrast_R", []):
        if (entry["sampler"], entry["contrast"], entry["R"]) == ("dps", contrast, condition.R):
            found = settings_from({**sampling.get("dps", {}), **entry["settings"]})
            if "zeta" in entry["settings"] and found.steps == plan.dps_steps:
                tuner.found[contrast, condition, f"{name} (the card's sweep)"] = found.zeta
                return found
    dps = settings_from({**sampling.get("dps", {}), "steps": plan.dps_steps})

    def run(here: Undersampled, zeta: float) -> Made:
        return ours.sampled(here, "dps", dataclasses.replace(dps, zeta=zeta), 1)

    text = f"{ours.name}, seed {plan.seed}, {json.dumps({**vars(dps), 'zeta': None})}"
    return dataclasses.replace(dps, zeta=tuner.best(name, contrast, condition, run, ZETAS, text))


def _recorded(acceleration: int, slices: Sequence[ReferenceSlice], folder: Path | None) -> Iterator[Method]:
    """The images that a Gadgetron's GRAPPA chain returned for these scans, where `folder` has them at this R.

    Their unit is their own: one factor a scan takes them to the truth's.
    """
    pictures: dict[tuple[str, int], np.ndarray] = {}
    for scan in {full.scan for full in slices}:
        file = None if folder is None else folder / f"{scan.removesuffix('_full')}_r{acceleration}.h5"
        if file is None or not file.is_file():
            continue
        images = gadgetron_images(file)
        fitting = [f for f in slices if f.scan == scan and images.get(f.number, np.empty(0)).shape == f.truth.shape]
        if fitting:
            found, truth, mask = (
                np.stack(arrays) for arrays in zip(*((images[full.number], full.truth, full.mask) for full in fitting))
            )
            pictures |= {full.place: image for full, image in zip(fitting, on_scale(found, truth, mask))}

    def run(here: Undersampled) -> Made:
        return Made(torch.from_numpy(pictures[here.full.place]).to(torch.complex64))

    if pictures:
        yield Method("GRAPPA (Gadgetron)", "recorded", run, before=(), only=frozenset(pictures), timed=False)


def _deepinv(contrast: str, condition: Condition, plan: BenchPlan, ours: Ours, tuner: Tuner) -> Iterator[Method]:
    """deepinv's DiffPIR and DPS with our denoiser, where deepinv is installed."""
    if import_deepinv()[0] is None:
        return
    for name, image, steps, start, gradient in (
        ("deepinv DiffPIR", deepinv_diffpir, plan.diffpir_steps, LAMBDAS, False),
        ("deepinv DPS", deepinv_dps, plan.dps_steps, DPS_WEIGHTS, True),
    ):
        if gradient and "deepinv-dps" in plan.without:
            continue

        def run(
            here: Undersampled, weight: float, image: Any = image, steps: int = steps, gradient: bool = gradient
        ) -> Made:
            mapped, timed = here.mapped, TimedDenoiser(ours.checkpoint.denoiser)
            counted: list[int] = []
            prior = timed.of_contrast(here.full.contrast, counted.append)

            def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
                return mapped.model.support * prior(x, sigma)  # as in our samplers: what no coil sees is no head

            seed = sample_seed(plan.seed, mapped.data.seed_key, 0)
            found = image(problem_of([mapped]), denoise, steps, weight, seed)[0] * mapped.scale
            return ours.made(timed, found, None, sum(counted), gradient=gradient)

        text = f"{ours.name}, {steps} steps, seed {plan.seed}"
        weight = tuner.best(f"{name} {steps}", contrast, condition, run, start, text)
        yield Method(f"{name} {steps}", f"{text}, weight {weight:g}", partial(run, weight=weight))
