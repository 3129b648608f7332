"""The methods that are compared: conventional ones with tuned weights, and models with the card's settings."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from dpmrecon.data import Volume
from dpmrecon.options import Options
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.prior.kinds import settings_from
from dpmrecon.recon.plan import sampling_of
from dpmrecon.recon.stream import sampled
from dpmrecon.recon.types import MappedSlice, Reconstruction, Sampling

from . import baselines
from .engine import Made, Method, Tuner
from .plan import Condition, Plan
from .scoring import Undersampled


def conventional(
    names: Sequence[str], contrast: str, condition: Condition, shapes: Sequence[tuple[int, ...]], tuner: Tuner
) -> Iterator[Method]:
    """Those of plan.CONVENTIONAL that are named; shapes: of all slices that they are compared on."""
    wavelet_name, wavelet = baselines.wavelet_tool(shapes)
    tools = {
        "CG-SENSE": ("CG-SENSE", baselines.tuned_cg_sense, baselines.SENSE_WEIGHTS),
        "L1-wavelet": (wavelet_name, wavelet, baselines.WAVELET_WEIGHTS),
    }
    for name in names:
        if name == "zero-filled":
            yield Method(name, "", _zero_filled, before=("maps",))
            continue
        title, image, start = tools[name]
        run = partial(_weighted, image)
        weight = tuner.best(title, contrast, condition, run, start)
        yield Method(title, f"weight {weight:g}", partial(run, weight=weight))


def _zero_filled(here: Undersampled) -> Made:
    return Made(here.mapped.model.combined(here.mapped.zero_filled))


def _weighted(image: Callable[[MappedSlice, float], torch.Tensor], here: Undersampled, weight: float) -> Made:
    return Made(image(here.mapped, weight))


def own_methods(
    checkpoints: Sequence[Checkpoint], plan: Plan, contrast: str, condition: Condition, device: torch.device
) -> list[Method]:
    """Every model with every sampler, as the product samples: with the card's settings for the contrast and R.

    Raises BadInputError for an uncertainty mode that the card has no settings for.
    """
    names = [checkpoint.card.get("name", checkpoint.model_id) for checkpoint in checkpoints]
    if len(set(names)) < len(names):
        names = [checkpoint.model_id for checkpoint in checkpoints]
    found = []
    for own_name, given in zip(names, checkpoints):
        checkpoint = given.of_scan(volume=condition.is_volume)
        label = label_for(checkpoint, contrast)
        for name in plan.samplers:
            options = Options(samples=plan.samples, seed=plan.seed)
            options = replace(options, mode=name) if name == "uncertainty" else replace(options, sampler=name)
            sampling = sampling_of(options, checkpoint, device, label, condition.R, volume=condition.is_volume)
            found.append(model_method(name if len(checkpoints) == 1 else f"{own_name} {name}", checkpoint, sampling))
    return found


def label_for(checkpoint: Checkpoint, contrast: str | None) -> str | None:
    """The contrast where the model has a label of it."""
    return contrast if contrast in checkpoint.model.labels else None


def reconstructed(
    mapped: MappedSlice, checkpoint: Checkpoint, contrast: str | None, sampling: Sampling
) -> Reconstruction:
    """A slice as the product makes it, of the label that the model has for the contrast."""
    (found,) = sampled([mapped], checkpoint, label_for(checkpoint, contrast), sampling)
    assert isinstance(found, Reconstruction)
    return found


def by_card(
    mapped: MappedSlice,
    checkpoint: Checkpoint,
    contrast: str,
    changes: Mapping[str, float | int] | None = None,
    *,
    samples: int | None = None,
    keep_samples: bool = False,
    mode: str = Options.mode,
) -> Reconstruction:
    """The same by the card's settings for contrast and R, with changes, among which "samples" may be."""
    settled = dict(changes or {})
    count = settled.pop("samples", samples)
    assert count is None or isinstance(count, int)
    is_volume = isinstance(mapped.data, Volume)
    checkpoint = checkpoint.of_scan(volume=is_volume)
    device, label = mapped.conventional.device, label_for(checkpoint, contrast)
    sampling = sampling_of(
        Options(samples=count, mode=mode),
        checkpoint,
        device,
        label,
        mapped.data.acceleration,
        volume=is_volume,
        keep_samples=keep_samples,
    )
    settings = settings_from({**vars(sampling.settings), **settled}, type(sampling.settings))
    several = sampling.samples if count is None or not settings.seeded else count
    return reconstructed(mapped, checkpoint, contrast, replace(sampling, settings=settings, samples=several))


def model_method(name: str, checkpoint: Checkpoint, sampling: Sampling) -> Method:
    """The mean of the samples as the product makes it, fallback included."""

    def run(here: Undersampled) -> Made:
        kept = replace(sampling, keep_samples=sampling.samples > 1)
        result = reconstructed(here.mapped, checkpoint, here.full.contrast, kept)
        facts = {"samples": sampling.samples, "evaluations": result.evaluations, "fallback": result.fallback}
        return Made(result.image, result.draws, facts)

    settings = json.dumps(vars(sampling.settings))
    setting = f"{checkpoint.model_id}, {sampling.sampler}, {sampling.samples} samples, seed {sampling.seed}, {settings}"
    return Method(name, setting, run)
