"""From the options and the model's card to how a scan is sampled."""

import dataclasses

import torch

from ..device import device_of
from ..errors import BadInputError
from ..mrd.header import Header, acceleration, contrast_label, n_partitions
from ..options import Options, printable
from ..prior.checkpoint import Checkpoint, load_checkpoint, sampler_defaults, uncertainty_defaults, volume_defaults
from ..prior.kinds import DENOISER, KINDS, ONE_STEP
from .types import Sampling

ADAPTED = "prox"  # the sampler whose prior can be adapted
CPU_BATCH, GPU_BATCH = 4, 32  # images that the network sees at once


def load(options: Options, *, final: bool = False) -> tuple[Checkpoint, torch.device]:
    """The checkpoint on its device. final: no scan's options take the place of these. Raises BadInputError and
    CheckpointError."""
    device, later = device_of(options.device), not (final and options.steps == 1)
    model = ONE_STEP if options.model is None and options.sampler == ONE_STEP else options.model
    checkpoint = load_checkpoint(model, device, later=later)
    if options.sampler == ONE_STEP and checkpoint.kind is KINDS[DENOISER]:
        # another model's sampler: this one is its prior
        checkpoint = load_checkpoint(ONE_STEP, device, checkpoint, later=later)
    if options.precision == "float32":
        for one in (checkpoint, checkpoint.prior, checkpoint.volumes):
            if one is not None:
                one.model.bf16 = False
    return checkpoint, device


def asked(options: Options, checkpoint: Checkpoint, header: Header) -> tuple[Checkpoint, str | None, Sampling]:
    """Model, contrast and sampling of a scan with this header. Raises BadInputError."""
    if options.mode == "uncertainty" and options.samples == 1:
        raise BadInputError("mode uncertainty tells the spread of samples, and 1 is asked for: give 2 samples or more")
    volume = n_partitions(header) > 1
    checkpoint = checkpoint.of_scan(volume=volume)
    contrast, device = contrast_of(options, checkpoint, header), checkpoint.model.device
    sampling = sampling_of(options, checkpoint, device, contrast, acceleration(header), volume=volume)
    return checkpoint, contrast, sampling


def sampling_of(
    options: Options,
    checkpoint: Checkpoint,
    device: torch.device,
    contrast: str | None = None,
    acceleration: float | None = None,
    *,
    volume: bool = False,
    keep_samples: bool = False,
) -> Sampling:
    """How to sample a scan of this contrast and announced R (None: not known), of slices or of a volume.

    What no option says is the model's own default, else that of its sampler's settings and one sample. Where all
    samples would be alike there is one, whatever was asked for. Raises BadInputError for what the model, or a volume,
    cannot have.
    """
    name, sampler = checkpoint.kind.sampler(options.sampler)
    if volume and not sampler.volumes:
        raise BadInputError(
            f"the sampler {name} is for slices, and the scan is a volume: choose {_of_volumes(checkpoint)}"
        )
    if options.mode == "uncertainty":
        found = uncertainty_defaults(checkpoint.card, contrast, acceleration, volume=volume)
        found = found if name == checkpoint.kind.sampler(None)[0] else None
        if found is None:
            raise BadInputError(
                "mode uncertainty is for the sampler prox and a model whose card has settings for it: choose mode fast"
            )
        chosen, samples, source = found
        source += ", uncertainty mode"
    elif volume and (own := volume_defaults(checkpoint.card, name, contrast)) is not None:
        chosen, samples, source = own
    else:
        chosen, source = sampler_defaults(checkpoint.card, name, contrast, acceleration)
        samples = checkpoint.card.get("sampling", {}).get("samples", 1)
    if options.adapt:
        _check_adaptable(options, name, volume)
    settings, image = sampler.settings_from(chosen), None
    if options.mode == "uncertainty":
        fast = dataclasses.replace(options, mode="fast", samples=None)
        image = sampling_of(fast, checkpoint, device, contrast, acceleration, volume=volume)
    if options.steps is not None:
        settings = dataclasses.replace(settings, steps=options.steps)
        source += "; steps by option"
    samples = options.samples or samples
    if samples > 1 and not settings.seeded:
        samples, source = 1, f"{source}; one sample, as all would be alike"
    return Sampling(
        sampler=name,
        settings=settings,
        samples=samples,
        seed=options.seed,
        batch=options.batch or (CPU_BATCH if device.type == "cpu" else GPU_BATCH),
        fallback=options.fallback == "on",
        deadline=options.deadline,
        mode=options.mode,
        source=source,
        keep_samples=keep_samples,
        gate=options.gate,
        adapt=options.adapt,
        precision=options.precision,
        image=image,
    )


def _check_adaptable(options: Options, sampler: str, volume: bool) -> None:
    """Raises BadInputError for what no prior can be adapted to."""
    if sampler != ADAPTED:
        raise BadInputError(f"--adapt is for the sampler {ADAPTED} and the model's is {sampler}: leave one of them out")
    if volume:
        raise BadInputError("--adapt is for slices, and the scan is a volume: leave it out")
    if options.deadline is not None:
        raise BadInputError("--adapt takes longer than a deadline can foresee: leave one of them out")


def _of_volumes(checkpoint: Checkpoint) -> str:
    return " or ".join(name for name, sampler in checkpoint.kind.samplers.items() if sampler.volumes)


def contrast_of(options: Options, checkpoint: Checkpoint, header: Header | None) -> str | None:
    """The label that the options give, else the one that the protocol's name tells if the model knows it, else None.

    Raises BadInputError for a label that the model does not know.
    """
    if options.contrast is None:
        label = None if header is None else contrast_label(header)
        return label if label in checkpoint.model.labels else None
    labels = [label for label in checkpoint.model.labels if not label.startswith("spare")]
    if options.contrast not in labels:
        raise BadInputError(
            f"contrast '{printable(options.contrast)}' is unknown to the model: valid ones are {', '.join(labels)}"
        )
    return options.contrast
