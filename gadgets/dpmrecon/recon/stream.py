"""Every slice of a scan is sampled: several at once where there is room, and within any deadline."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..data import LostSlice
from ..device import DEVICE_ERRORS, synchronize
from ..physics.volume import VolumeModel
from ..prior.checkpoint import Checkpoint
from .adapt import Adaptation
from .agreement import evaluations_asked, kind_of
from .deadline import Deadline
from .sample import Progress, draw, fall_back, sample_group
from .types import MappedSlice, MappedVolume, Reconstruction, Sampling

# applications of the normal operator for a volume's CG-SENSE image, see `scaled`
CG_SENSE_STEPS = 2 * (VolumeModel.cg_steps + 2)


def sampled(
    stream: Iterable[MappedSlice | LostSlice],
    checkpoint: Checkpoint,
    contrast: str | None,
    sampling: Sampling,
    progress: Progress = lambda evaluations: None,
    deadline: Deadline | None = None,
    adaptation: Adaptation | None = None,
) -> Iterator[Reconstruction | LostSlice]:
    """Sample every slice from the posterior, several slices at once where the batch has room for them.

    deadline: where there is one, each slice gets the samples and steps that fit its share of the time left, and
    CG-SENSE where too few do. adaptation: of the scan, where it is sampled in several calls.

    Raises DpmreconError when a slice cannot be sampled and the fallback is off.
    """
    if sampling.adapt and adaptation is None:
        adaptation = Adaptation(checkpoint, contrast, sampling)
    for group in _groups(stream, slices_at_once(sampling.batch, sampling.samples)):
        if isinstance(group, LostSlice):
            if deadline is not None:
                deadline.note(1, 0, 0.0)
            yield group
        elif adaptation is not None:
            yield from _sample_adapted(group, adaptation, progress)
        elif deadline is None:
            yield from sample_group(group, checkpoint, contrast, sampling, progress)
        else:
            yield from _sample_in_time(group, checkpoint, contrast, sampling, progress, deadline)


def slices_at_once(batch: int, samples: int) -> int:
    """The most slices whose samples make a batch of the network."""
    return max(1, batch // samples)


def _groups(stream: Iterable[MappedSlice | LostSlice], size: int) -> Iterator[list[MappedSlice] | LostSlice]:
    """Lists of at most `size` neighbours of one shape and number of maps; a volume is alone."""
    group: list[MappedSlice] = []
    for item in stream:
        if group and (isinstance(item, LostSlice | MappedVolume) or _shapes(item) != _shapes(group[0])):
            yield group
            group = []
        if isinstance(item, LostSlice | MappedVolume):
            yield [item] if isinstance(item, MappedVolume) else item
            continue
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _shapes(item: MappedSlice) -> tuple[tuple[int, ...], ...]:
    return item.model.coil_maps.shape, item.model.mask.shape


def _sample_adapted(group: list[MappedSlice], adaptation: Adaptation, progress: Progress) -> Iterator[Reconstruction]:
    adapted, sampling = adaptation.of(group), adaptation.sampling
    seconds = {"adaptation": adapted.seconds} if adapted.seconds else {}
    for item in sample_group(group, adaptation.checkpoint, adaptation.contrast, sampling, progress, adapted=adapted):
        yield replace(item, seconds={**item.seconds, **seconds})
        seconds = {}


def _sample_in_time(
    group: list[MappedSlice],
    checkpoint: Checkpoint,
    contrast: str | None,
    sampling: Sampling,
    progress: Progress,
    deadline: Deadline,
) -> Iterator[Reconstruction]:
    share = deadline.share(len(group), sum(group[0].seconds.values()))
    if deadline.per_evaluation is None and share > 0:
        share -= try_out(group, checkpoint, contrast, sampling, deadline)
    began = deadline.clock()
    asking = deadline.asking(len(group), evaluations_asked(checkpoint, sampling.gate, kind_of(group[0])))
    plan = deadline.plan(sampling, len(group), share, asking) if share > 0 else None
    if plan is None:
        passed = "had passed" if deadline.left() <= -deadline.reserve else "left no time for it"
        for mapped in group:
            yield fall_back(mapped, f"the deadline of {deadline.seconds:g} s {passed}", sampling)
        deadline.note(len(group), 0, 0.0)
        return
    device, is_over = group[0].conventional.device, deadline.until(share - asking if plan.asks else share)
    evaluations = 0

    def stop() -> bool:
        synchronize(device)  # else a GPU's work would be asked for long before it is done
        return is_over()

    def count(images: int) -> None:  # also of images that are not trusted then
        nonlocal evaluations
        evaluations += images
        progress(images)

    found = list(sample_group(group, checkpoint, contrast, plan, count, stop))
    asked = sum(item.seconds.get("gate", 0.0) for item in found)
    deadline.note(len(group), evaluations, deadline.clock() - began - asked, asked)
    yield from found


def try_out(
    group: list[MappedSlice], checkpoint: Checkpoint, contrast: str | None, sampling: Sampling, deadline: Deadline
) -> float:
    """Measure what an evaluation costs; the seconds that it took. A device that fails is left to the sampling."""
    if isinstance(group[0], MappedVolume):
        return _try_out_volume(group[0], checkpoint, contrast, sampling, deadline)
    # the first evaluations of a size pay for its start; on a CPU images follow each other, and one tells enough
    samples = 1 if group[0].conventional.device.type == "cpu" else sampling.samples
    began = deadline.clock()
    for steps in (1, min(2, sampling.settings.steps)):
        brief = replace(sampling, samples=samples, settings=replace(sampling.settings, steps=steps))
        again = deadline.clock()
        try:
            _, evaluations = draw(group, checkpoint, contrast, brief)
        except DEVICE_ERRORS:
            break
        deadline.note(0, evaluations * len(group), deadline.clock() - again)
    return deadline.clock() - began


def _try_out_volume(
    mapped: MappedVolume, checkpoint: Checkpoint, contrast: str | None, sampling: Sampling, deadline: Deadline
) -> float:
    """The same, from a batch of its planes in each direction; the data steps go by those of the CG-SENSE image."""
    prior, began, seconds = checkpoint.model.of_contrast(contrast), deadline.clock(), 0.0
    images = (mapped.conventional / mapped.scale)[None].flatten(0, -4)  # of every set
    for axis in mapped.planes:
        planes = images.movedim(axis + 1, 1).flatten(0, 1)
        middle = planes.narrow(0, max(0, len(planes) // 2 - sampling.batch // 2), min(sampling.batch, len(planes)))
        for _ in range(2):  # the first pays for its start
            again = deadline.clock()
            try:
                prior.try_planes(middle.contiguous(), sampling.batch)
            except DEVICE_ERRORS:
                return deadline.clock() - began
            synchronize(planes.device)
        seconds += (deadline.clock() - again) * len(planes) / len(middle)
    steps = getattr(sampling.settings, "cg_steps", mapped.model.cg_steps) + 1
    data_steps = mapped.seconds.get("conventional", 0.0) * steps / CG_SENSE_STEPS
    deadline.per_evaluation = seconds / len(mapped.planes) + data_steps
    return deadline.clock() - began
