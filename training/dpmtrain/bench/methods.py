"""The methods of the bench: ours, conventional ones and deepinv's, on the same slices, coil maps, scale and noise.

Weights, step sizes and deepinv's lambda are the best on validation slices of the scan's contrast and R; the settings
of `prox` are the card's, which `dpmtrain sweep` chose on the same validation data.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.prior.checkpoint import Checkpoint, sampler_defaults, uncertainty_defaults
from dpmrecon.prior.kinds import DENOISER, KINDS, settings_from
from dpmrecon.prior.problem import NoiseSource, never
from dpmrecon.prior.samplers.diffusion import SamplerSettings
from dpmrecon.recon.sample import problem_of, sample_seed
from dpmrecon.recon.types import MappedSlice

from ..evaluate.baselines import SENSE_WEIGHTS, WAVELET_WEIGHTS, tuned_cg_sense, tuned_weight, wavelet_tool
from ..evaluate.metrics import Moments
from ..evaluate.plan import Condition
from ..evaluate.references import CPU, ReferenceSlice
from ..evaluate.score_lines import ScoreLines
from ..evaluate.scoring import Undersampled
from ..evaluate.undersampling import CALIBRATION_LINES
from ..hardware import PeakMemory, device_name, network_work
from .peers import Denoise, deepinv_diffpir, deepinv_dps, gadgetron_images, import_deepinv
from .plan import BenchPlan

# where the search for the best begins; it goes on by factors of 2 while the best one lies at an end
ZETAS = (0.5, 0.7, 1.0)
DPS_WEIGHTS = (2000.0, 4000.0, 8000.0)
LAMBDAS = (1.75, 3.5, 7.0)
BATCH = 4  # samples of a slice that the network sees at once


def undersampled_slice(full: ReferenceSlice, acceleration: int) -> Undersampled:
    """A fully sampled slice at R, regularly, with 24 calibration lines (as the acceptance scans have it at R = 4)."""
    return Undersampled(full, Condition("regular", acceleration, CALIBRATION_LINES), CPU)


class Meter:
    """A contrast's denoiser that counts its evaluations and their seconds; those of a gradient fall to the rest."""

    def __init__(self, checkpoint: Checkpoint, contrast: str):
        self.denoiser = checkpoint.denoiser
        self.contrast = self.denoiser.of_contrast(contrast)
        self.evaluations, self.seconds = 0, 0.0

    @property
    def sigma_data(self) -> float:
        return self.contrast.sigma_data

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        started = time.perf_counter()
        image = self.contrast(x, sigma)
        self.seconds += time.perf_counter() - started
        self.evaluations += len(x)
        return image


Run = Callable[[Undersampled, Meter], torch.Tensor]
Tunable = Callable[[Undersampled, Meter, float], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Method:
    """name: in the table; setting: all that changes its scores; run: a slice to samples (samples, rows, cols) complex
    in the units of its k-space; gradient: taken through the network; before: the stages before `run` that it needs, of
    "maps" and "start" (scale and CG-SENSE); only: the slices (scan, number) it has, None for all; timed: False for
    images that another machine made."""

    name: str
    setting: str
    run: Run
    gradient: bool = False
    before: tuple[str, ...] = ("maps", "start")
    only: frozenset[tuple[str, int]] | None = None
    timed: bool = True


def measure(method: Method, here: Undersampled, checkpoint: Checkpoint) -> dict[str, Any]:
    """Scores of one slice, and what it took: evaluations, GFLOP of the network, seconds by stage, peak memory."""
    mapped, meter = here.mapped, Meter(checkpoint, here.full.contrast)
    memory, started = PeakMemory(CPU), time.perf_counter()
    samples = method.run(here, meter)
    seconds, peak = time.perf_counter() - started, memory.read()
    score = here.score(samples.mean(0), samples)
    score |= {"samples": len(samples), "evaluations": meter.evaluations, "device": None}
    if meter.evaluations:
        shape = (samples.shape[1], samples.shape[2])
        flops = network_work(checkpoint.denoiser.config, shape, method.gradient)[0]
        score["gflop"] = meter.evaluations * flops / 1e9
        score["precision"] = "bfloat16" if checkpoint.denoiser.bf16 and not method.gradient else "float32"
    if method.timed:
        stages = {"maps": mapped.seconds["maps"], "start": mapped.seconds["conventional"]}
        score["seconds"] = {name: stages[name] for name in method.before}
        score["seconds"] |= {"network": meter.seconds, "rest": seconds - meter.seconds}
        score |= {"device": device_name(CPU), "memory_mb": None if peak is None else peak / 2**20}
    return score


def model_of(checkpoint: Checkpoint) -> str:
    """The model and how its network computes where no gradient is taken: both change the scores."""
    return checkpoint.model_id + (", bfloat16" if checkpoint.denoiser.bf16 else "")


class Tuner:
    """The best weight of a method on a contrast's validation slices at R, from the results file where it has it."""

    def __init__(self, slices: Callable[[str], list[ReferenceSlice]], checkpoint: Checkpoint, lines: ScoreLines):
        self.slices, self.checkpoint, self.lines = slices, checkpoint, lines
        self.found: dict[str, float] = {}  # by method, contrast and R, in words

    def best(
        self, name: str, contrast: str, acceleration: int, run: Tunable, start: Sequence[float], settings: str = ""
    ) -> float:
        """settings: all else that the method depends on, the model too; empty for conventional methods."""
        slices = self.slices(contrast)
        key = {"tuned": name, "contrast": contrast, "R": acceleration, "on": [[s.scan, s.number] for s in slices]}
        key |= {"settings": settings} if settings else {}

        def make() -> dict[str, Any]:
            cases = [undersampled_slice(full, acceleration) for full in slices]

            def error(weight: float) -> float:
                return float(np.mean([self._error(run, here, weight) for here in cases]))

            weight, tried = tuned_weight(error, start)
            return {"weight": weight, "tried": {f"{each:g}": tried[each] for each in sorted(tried)}}

        weight = self.lines.get(key, make)["weight"]
        self.found[f"{name}, {contrast}, R = {acceleration}"] = weight
        return weight

    def _error(self, run: Tunable, here: Undersampled, weight: float) -> float:
        image = run(here, Meter(self.checkpoint, here.full.contrast), weight).mean(0)
        moments = Moments.of(here.full.picture(image), here.full.truth, here.full.mask)
        return moments.nrmse(moments.cross / max(moments.image, 1e-30))


def methods(
    contrast: str, acceleration: int, slices: Sequence[ReferenceSlice], plan: BenchPlan, tuner: Tuner
) -> Iterator[Method]:
    """Every method for slices of one contrast at R, cheap ones first; weights are tuned when a method's turn comes."""
    yield from _conventional(contrast, acceleration, slices, tuner)
    yield from _recorded(acceleration, slices, plan.grappa)
    checkpoint, model = tuner.checkpoint, model_of(tuner.checkpoint)
    settings = settings_from(sampler_defaults(checkpoint.card, "prox", contrast, acceleration)[0])
    for steps in plan.prox_steps:
        yield _sampling(f"prox {steps}", "prox", dataclasses.replace(settings, steps=steps), 1, plan.seed, model)
    for samples in sorted({checkpoint.card.get("sampling", {}).get("samples", 1), plan.samples} - {1}):
        yield _sampling(f"prox default, mean of {samples}", "prox", settings, samples, plan.seed, model)
    uncertainty = uncertainty_defaults(checkpoint.card, contrast)
    if uncertainty is not None:
        chosen, samples = uncertainty
        yield _sampling(f"uncertainty, mean of {samples}", "prox", settings_from(chosen), samples, plan.seed, model)
    if "deepinv" not in plan.without:
        yield from _deepinv(contrast, acceleration, plan, tuner)
    dps = dps_settings(contrast, acceleration, plan, tuner)
    yield _sampling(f"dps {plan.dps_steps}", "dps", dps, 1, plan.seed, model)
    if plan.dps_samples > 1:
        name = f"dps {plan.dps_steps}, mean of {plan.dps_samples}"
        yield _sampling(name, "dps", dps, plan.dps_samples, plan.seed, model)


def dps_settings(contrast: str, acceleration: int, plan: BenchPlan, tuner: Tuner) -> SamplerSettings:
    """With the zeta that `dpmtrain sweep` found for this contrast, R and number of steps, else with the best one."""
    sampling = tuner.checkpoint.card.get("sampling", {})
    for entry in sampling.get("by_contrast_R", []):
        if (entry["sampler"], entry["contrast"], entry["R"]) == ("dps", contrast, acceleration):
            found = settings_from({**sampling.get("dps", {}), **entry["settings"]})
            if "zeta" in entry["settings"] and found.steps == plan.dps_steps:
                tuner.found[f"dps {plan.dps_steps}, {contrast}, R = {acceleration} (the card's sweep)"] = found.zeta
                return found
    dps = settings_from({**sampling.get("dps", {}), "steps": plan.dps_steps})

    def run(here: Undersampled, meter: Meter, zeta: float) -> torch.Tensor:
        return _sample(here, meter, "dps", dataclasses.replace(dps, zeta=zeta), 1, plan.seed)

    text = f"{model_of(tuner.checkpoint)}, seed {plan.seed}, {json.dumps({**vars(dps), 'zeta': None})}"
    zeta = tuner.best(f"dps {plan.dps_steps}", contrast, acceleration, run, ZETAS, text)
    return dataclasses.replace(dps, zeta=zeta)


def _conventional(contrast: str, acceleration: int, slices: Sequence[ReferenceSlice], tuner: Tuner) -> Iterator[Method]:
    """Zero-filled, CG-SENSE and L1-wavelet."""

    def zero_filled(here: Undersampled, _: Meter) -> torch.Tensor:
        return here.mapped.model.adjoint(here.mapped.data.kspace)[None]

    yield Method("zero-filled", "", zero_filled, before=("maps",))
    wavelet_name, wavelet = wavelet_tool([full.data.kspace.shape[-2:] for full in slices])
    for name, image, start in (
        ("CG-SENSE", tuned_cg_sense, SENSE_WEIGHTS),
        (wavelet_name, wavelet, WAVELET_WEIGHTS),
    ):

        def run(here: Undersampled, _: Meter, weight: float, image: Any = image) -> torch.Tensor:
            return image(here.mapped, weight)[None]

        weight = tuner.best(name, contrast, acceleration, run, start)
        yield Method(name, f"weight {weight:g}", partial(run, weight=weight))


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
        moments = [Moments.of(images[full.number], full.truth, full.mask) for full in fitting]
        factor = sum(m.cross for m in moments) / max(sum(m.image for m in moments), 1e-30)
        pictures |= {(scan, full.number): factor * images[full.number] for full in fitting}

    def run(here: Undersampled, _: Meter) -> torch.Tensor:
        return torch.from_numpy(pictures[here.full.scan, here.full.number]).to(torch.complex64)[None]

    if pictures:
        yield Method("GRAPPA (Gadgetron)", "recorded", run, before=(), only=frozenset(pictures), timed=False)


def _sampling(name: str, sampler: str, settings: SamplerSettings, samples: int, seed: int, model: str) -> Method:
    text = f"{model}, {samples} samples, seed {seed}, {json.dumps(vars(settings))}"

    def run(here: Undersampled, meter: Meter) -> torch.Tensor:
        return _sample(here, meter, sampler, settings, samples, seed)

    return Method(name, text, run, gradient=sampler == "dps")


def _sample(
    here: Undersampled, meter: Meter, sampler: str, settings: SamplerSettings, samples: int, seed: int
) -> torch.Tensor:
    mapped, drawn = here.mapped, []
    seeds = [sample_seed(seed, mapped.data.seed_key, index) for index in range(samples)]
    for first in range(0, samples, BATCH):
        noise = NoiseSource(seeds[first : first + BATCH])
        problem = problem_of([mapped] * len(noise.generators))
        drawn.append(KINDS[DENOISER].samplers[sampler].sample(problem, meter, settings, noise, never))
    return torch.cat(drawn) * mapped.scale


def _deepinv(contrast: str, acceleration: int, plan: BenchPlan, tuner: Tuner) -> Iterator[Method]:
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
            here: Undersampled, meter: Meter, weight: float, image: Any = image, steps: int = steps
        ) -> torch.Tensor:
            mapped = here.mapped
            seed = sample_seed(plan.seed, mapped.data.seed_key, 0)
            return image(problem_of([mapped]), _supported(meter, mapped), steps, weight, seed) * mapped.scale

        text = f"{model_of(tuner.checkpoint)}, {steps} steps, seed {plan.seed}"
        weight = tuner.best(f"{name} {steps}", contrast, acceleration, run, start, text)
        text += f", weight {weight:g}"
        yield Method(f"{name} {steps}", text, partial(run, weight=weight), gradient)


def _supported(denoise: Meter, mapped: MappedSlice) -> Denoise:
    """As in our samplers: where no coil sees anything there is no head."""
    return lambda x, sigma: mapped.model.support * denoise(x, sigma)
