"""Posterior samples of a group of slices; where they cannot be had or trusted, the conventional image, labelled."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ..device import DEVICE_ERRORS, synchronize
from ..errors import DeviceError, DpmreconError, first_line
from ..prior.checkpoint import Checkpoint
from ..prior.problem import NoiseSource, Planes, Problem, Stop, never
from .agreement import agreed
from .gate import judged
from .types import Adapted, MappedSlice, MappedVolume, Reconstruction, Sampling

log = logging.getLogger("dpmrecon")

Progress = Callable[[int], object]  # called with the images of each evaluation of the network


def problem_of(slices: list[MappedSlice], at_once: int = 1) -> Problem:
    """The slices at scale 1, an entry of the batch each. The samples of one slice share its maps and data. A volume is
    alone, of whose planes the network sees `at_once`."""
    if isinstance(slices[0], MappedVolume):
        return volume_problem(slices[0], at_once)
    # by broadcasting instead of copies
    kept = slices[:1] if all(mapped is slices[0] for mapped in slices) else slices
    device = slices[0].conventional.device
    scales = torch.tensor([mapped.scale for mapped in slices], device=device)
    return Problem(
        type(kept[0].model)(
            torch.stack([mapped.model.coil_maps for mapped in kept]),
            torch.stack([mapped.model.mask.reshape(-1, *mapped.data.mask.shape) for mapped in kept]),
        ),
        torch.stack([mapped.data.kspace / mapped.scale for mapped in kept]),
        torch.stack([mapped.zero_filled / mapped.scale for mapped in kept]),
        torch.tensor([mapped.data.sigma_n for mapped in slices], device=device) / scales,
        torch.stack([mapped.conventional / mapped.scale for mapped in slices]),
    )


def volume_problem(mapped: MappedVolume, at_once: int) -> Problem:
    """A volume at scale 1, without copies of its maps; of its data the sampler needs `zero_filled` alone."""
    sigma_n = torch.tensor([mapped.data.sigma_n / mapped.scale], device=mapped.conventional.device)
    zero_filled, start = (image[None] / mapped.scale for image in (mapped.zero_filled, mapped.conventional))
    planes = Planes(mapped.planes, at_once)
    return Problem(mapped.model, mapped.data.kspace[None], zero_filled, sigma_n, start, planes)


def sample_seed(seed: int, seed_key: tuple[int, ...], index: int) -> int:
    """The seed of one sample of one slice: nothing else of the scan or of the batching enters."""
    text = f"{seed} {seed_key} {index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def draw(
    group: list[MappedSlice],
    checkpoint: Checkpoint,
    contrast: str | None,
    sampling: Sampling,
    progress: Progress = lambda evaluations: None,
    stop: Stop = never,
) -> tuple[list[torch.Tensor], int]:
    """One tensor a slice, (samples, rows, cols) or (samples, n_sets, rows, cols), scale 1, and the evaluations of the
    network for each slice, one for all its sets.

    When `stop` says so there are fewer, also samples of one slice.
    """
    device = group[0].conventional.device
    _, sampler = checkpoint.kind.sampler(sampling.sampler)
    entries = [(mapped, index) for mapped in group for index in range(sampling.samples)]
    draws, evaluations = [], 0
    # the network sees each set's image; a volume's planes count as one
    n_sets = 1 if isinstance(group[0], MappedVolume) else group[0].n_sets

    def count(images: int) -> None:
        nonlocal evaluations
        images //= n_sets
        evaluations += images
        progress(images)

    prior = checkpoint.of_contrast(contrast, sampling.settings, count)
    at_once = 1 if isinstance(group[0], MappedVolume) else sampling.batch
    for first in range(0, len(entries), at_once):
        if first and len(group) == 1 and stop():
            break
        chunk = entries[first : first + at_once]
        seeds = [sample_seed(sampling.seed, mapped.data.seed_key, index) for mapped, index in chunk]
        problem = problem_of([mapped for mapped, _ in chunk], sampling.batch)
        draws.append(sampler.sample(problem, prior, sampling.settings, NoiseSource(seeds, device), stop))
    synchronize(device)
    return list(torch.cat(draws).unflatten(0, (len(group), -1))), evaluations // len(group)


def sample_group(
    group: list[MappedSlice],
    checkpoint: Checkpoint,
    contrast: str | None,
    sampling: Sampling,
    progress: Progress,
    stop: Stop = never,
    adapted: Adapted | None = None,
) -> Iterator[Reconstruction]:
    """The slices of a group, sampled at once. Where the device fails, most often for want of memory, they are tried
    slice by slice, then sample by sample, a volume with half of the planes at once; what fails then comes as the
    conventional image. adapted: samples instead of the checkpoint; the gate asks the prior as it was loaded.

    Raises DpmreconError where an image cannot be had and the fallback is off, DeviceError where the device makes none.
    """
    started = time.perf_counter()
    means: list[Reconstruction] = []
    failure = None
    try:
        own = checkpoint if adapted is None else adapted.checkpoint
        drawn = _drawn(group, own, contrast, sampling, progress, stop)
        seconds = (time.perf_counter() - started) / len(group)
        means = [_mean(mapped, *each, sampling, seconds) for mapped, each in zip(group, drawn)]
        del drawn
    except DEVICE_ERRORS as error:
        failure = error.with_traceback(None)  # a traceback keeps the tensors of the attempt
    if failure is not None:
        reason = f"the sampler failed ({first_line(failure)})"
        is_volume = isinstance(group[0], MappedVolume)  # whose planes make the batch
        samples = max(sampling.samples, 0 if sampling.image is None else sampling.image.samples)
        images = sampling.batch if is_volume else min(sampling.batch, len(group) * samples)
        if images == 1:
            yield fall_back(group[0], reason, sampling, failure)
            return
        log.warning("%d images at once: %s: fewer are tried", images, reason)
        fewer = sampling if len(group) > 1 else replace(sampling, batch=images // 2 if is_volume else 1)
        for mapped in group:
            yield from sample_group([mapped], checkpoint, contrast, fewer, progress, stop, adapted)
        return
    for mapped, item in zip(group, means):
        if adapted is not None:
            item = replace(item, adaptation=adapted.text)
        item, doubt = judged(_asked(item, checkpoint, contrast, sampling), sampling.gate)
        yield item if doubt is None else fall_back(mapped, doubt, sampling)


def _asked(item: Reconstruction, checkpoint: Checkpoint, contrast: str | None, sampling: Sampling) -> Reconstruction:
    """With the agreement of prior and data, where the gate is on, or why they were not asked."""
    if sampling.gate == "off":
        return item
    if not sampling.asks:
        return replace(item, unasked="the deadline leaves no time for it")
    started = time.perf_counter()
    try:
        found = agreed(item.mapped, checkpoint, contrast)
    except DEVICE_ERRORS as error:
        log.warning("the gate could not ask whether prior and data agree: %s", first_line(error))
        return replace(item, unasked=f"the device failed ({first_line(error)})")
    if isinstance(found, str):
        return replace(item, unasked=found)
    synchronize(item.image.device)
    return replace(item, agreement=found, seconds={**item.seconds, "gate": time.perf_counter() - started})


def _drawn(
    group: list[MappedSlice],
    checkpoint: Checkpoint,
    contrast: str | None,
    sampling: Sampling,
    progress: Progress,
    stop: Stop,
) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """Of each slice: the samples whose mean is the image, those of the spread, and the evaluations of the network. Both
    are the same ones but in the uncertainty mode."""
    if sampling.image is None:
        draws, evaluations = draw(group, checkpoint, contrast, sampling, progress, stop)
        return [(samples, samples, evaluations) for samples in draws]
    own = replace(sampling.image, batch=sampling.batch)
    images, evaluations = draw(group, checkpoint, contrast, own, progress, stop)
    if sampling.samples == 0 or stop():
        return [(samples, samples[:0], evaluations) for samples in images]
    draws, more = draw(group, checkpoint, contrast, sampling, progress, stop)
    return [(samples, others, evaluations + more) for samples, others in zip(images, draws)]


def _mean(
    mapped: MappedSlice,
    image_samples: torch.Tensor,
    samples: torch.Tensor,
    evaluations: int,
    sampling: Sampling,
    seconds: float,
) -> Reconstruction:
    image = image_samples.mean(0) * mapped.scale
    own = sampling.image
    spread = mapped.model.combined(samples).abs().std(0) * mapped.scale if len(samples) > 1 else None
    misfit = mapped.misfit(image)
    return Reconstruction(
        mapped,
        mapped.model.combined(image),
        spread,
        None,
        misfit.residual,
        {**mapped.seconds, "sampling": seconds},
        len(samples),
        sampling.settings.steps,
        evaluations,
        mapped.model.combined(samples) * mapped.scale if sampling.keep_samples else None,
        misfit=misfit,
        image_draws=None if own is None else (len(image_samples), own.settings.steps),
    )


def fall_back(
    mapped: MappedSlice, reason: str, sampling: Sampling, cause: BaseException | None = None
) -> Reconstruction:
    """The conventional image, and why. Raises DpmreconError where the fallback is off, DeviceError where the device
    does not give that image either."""
    if not sampling.fallback:
        raise DpmreconError(
            f"slice {mapped.key.slice}: {reason}; the fallback is off, so the scan stops here "
            "(--fallback on gives the CG-SENSE image instead)"
        ) from cause
    try:
        return conventional(mapped, reason)
    except DEVICE_ERRORS as error:
        raise DeviceError(
            f"slice {mapped.key.slice}: {reason}, and the device failed at its CG-SENSE image too "
            f"({first_line(error)}): the scan stops here, start it again"
        ) from error


def conventional(mapped: MappedSlice, reason: str) -> Reconstruction:
    """The CG-SENSE image, because of `reason`, with what the checks say of it."""
    seconds = {**mapped.seconds, "sampling": 0.0}
    misfit = mapped.misfit(mapped.conventional)
    image = mapped.model.combined(mapped.conventional)
    return judged(Reconstruction(mapped, image, None, reason, misfit.residual, seconds, misfit=misfit))[0]
