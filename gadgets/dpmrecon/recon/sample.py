"""From complete slices to images: coil maps, conventional reconstruction, posterior samples, and the fallback."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, field, replace

import torch

from ..errors import BadInputError, DpmreconError, first_line
from ..mrd.collect import LostSlice, Slice, with_calibration_as_data
from ..physics.cg_sense import slice_scale
from ..physics.coil_compression import compressed
from ..physics.coil_maps import estimate_coil_maps
from ..physics.forward import ForwardModel
from ..physics.phase import smooth_phase
from ..prior.checkpoint import Checkpoint
from ..prior.denoiser import synchronize
from ..prior.samplers import SAMPLERS, NoiseSource, Problem, SamplerSettings, Stop, never
from .deadline import Deadline

log = logging.getLogger("dpmrecon")

# A data residual (1 is what the noise alone leaves) above this, and above twice that of CG-SENSE, does not fit the data
LARGEST_RESIDUAL = 3.0


@dataclass(frozen=True)
class Sampling:
    """How slices are sampled. batch: most images (slices times samples) the network sees at once; deadline: seconds
    for the whole scan, to which `samples` and the steps are cut, None for no limit; mode: which of the model's
    settings; source: where they come from, in words."""

    sampler: str
    settings: SamplerSettings
    samples: int
    seed: int
    batch: int
    fallback: bool
    deadline: float | None = None
    mode: str = "fast"
    source: str = "given"


@dataclass
class MappedSlice:
    """A slice with its forward model, conventional images and scale; all in the units of `data.kspace`, whose coils
    may be virtual ones. The model's coil maps hold the slice's smooth phase, so that its images are nearly real.
    n_coils: that measured; 0 where not known."""

    data: Slice
    model: ForwardModel
    scale: float
    zero_filled: torch.Tensor
    conventional: torch.Tensor
    seconds: dict[str, float]
    n_coils: int = 0


@dataclass
class Reconstruction:
    """One image (rows, cols) complex64, the spread of its samples (float32, std of a real channel) or None.

    fallback: None, or why the image is the conventional one; residual: ||A x - y|| over what the noise alone leaves;
    samples: drawn; steps: of each, as planned; evaluations: of the network, in all, fewer than planned where the
    deadline stopped it; 0 for the conventional image.
    """

    mapped: MappedSlice
    image: torch.Tensor
    spread: torch.Tensor | None
    fallback: str | None
    residual: float
    seconds: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    steps: int = 0
    evaluations: int = 0

    @property
    def stopped(self) -> bool:
        """Whether the deadline cut its sampling short."""
        return self.evaluations < self.samples * self.steps

    @property
    def drawn(self) -> str:
        """Such as "3 x 20 steps, stopped after 31 evaluations"."""
        end = f", stopped after {self.evaluations} evaluations" if self.stopped else ""
        return f"{self.samples} x {self.steps} steps{end}"


def with_coil_maps(slices: Iterable[Slice | LostSlice], device: torch.device) -> Iterator[MappedSlice | LostSlice]:
    """ESPIRiT maps, scale and CG-SENSE image of every slice; a scan without calibration is refused."""
    for data in slices:
        if isinstance(data, LostSlice):
            yield data
            continue
        if data.calibration is None:
            raise BadInputError(
                f"slice {data.key.slice} has no calibration lines and no fully sampled centre of k-space: coil maps "
                "need at least 8 adjacent lines around the centre, embedded or separate"
            )
        started = time.perf_counter()
        n_coils = len(data.kspace)
        data = compressed(data)
        assert data.calibration is not None
        calibration = data.calibration.to(device)
        data = with_calibration_as_data(data)
        rows, cols = data.mask.shape
        maps = estimate_coil_maps(calibration, (rows, cols))
        synchronize(device)
        seconds = {"maps": time.perf_counter() - started}
        yield mapped_slice(data, maps, seconds, n_coils)


def mapped_slice(
    data: Slice, maps: torch.Tensor, seconds: dict[str, float], n_coils: int = 0
) -> MappedSlice | LostSlice:
    """The slice with its conventional images, on the device of `maps` (n_coils, rows, cols), where its image's smooth
    phase goes."""
    started = time.perf_counter()
    data = replace(data, kspace=data.kspace.to(maps.device), mask=data.mask.to(maps.device))
    model = ForwardModel(maps, data.mask)
    zero_filled = model.adjoint(data.kspace)
    scale, conventional = slice_scale(model, zero_filled, data.sigma_n)
    if not (math.isfinite(scale) and scale > 0):
        return LostSlice(data.key, "its k-space holds no signal inside the coil maps' support", data.header)
    phase = smooth_phase(conventional)
    model = ForwardModel(maps * phase, data.mask)
    zero_filled, conventional = zero_filled * phase.conj(), conventional * phase.conj()
    synchronize(maps.device)
    seconds = {**seconds, "conventional": time.perf_counter() - started}
    return MappedSlice(data, model, scale, zero_filled, conventional, seconds, n_coils)


def sampled(
    stream: Iterable[MappedSlice | LostSlice],
    checkpoint: Checkpoint,
    contrast: str | None,
    sampling: Sampling,
    progress: Callable[[int], object] = lambda evaluations: None,
    deadline: Deadline | None = None,
) -> Iterator[Reconstruction | LostSlice]:
    """Sample every slice from the posterior, several slices at once where the batch has room for them.

    deadline: where there is one, each slice gets the samples and steps that fit its share of the time left, and
    CG-SENSE where too few do. Raises DpmreconError when a slice cannot be sampled and the fallback is off.
    """
    for group in _groups(stream, slices_at_once(sampling.batch, sampling.samples)):
        if isinstance(group, LostSlice):
            if deadline is not None:
                deadline.note(1, 0, 0.0)
            yield group
        elif deadline is None:
            yield from _sample_group(group, checkpoint, contrast, sampling, progress)
        else:
            yield from _sample_in_time(group, checkpoint, contrast, sampling, progress, deadline)


def _sample_in_time(
    group: list[MappedSlice],
    checkpoint: Checkpoint,
    contrast: str | None,
    sampling: Sampling,
    progress: Callable[[int], object],
    deadline: Deadline,
) -> Iterator[Reconstruction]:
    share = deadline.share(len(group), sum(group[0].seconds.values()))
    if deadline.per_evaluation is None and share > 0:
        share -= _try_out(group, checkpoint, contrast, sampling, deadline)
    began = time.monotonic()
    plan = deadline.plan(sampling, len(group), share) if share > 0 else None
    if plan is None:
        passed = "had passed" if deadline.left() <= -deadline.reserve else "left no time for it"
        for mapped in group:
            yield _fall_back(mapped, f"the deadline of {deadline.seconds:g} s {passed}", sampling)
        deadline.note(len(group), 0, 0.0)
        return
    device, is_over = group[0].conventional.device, deadline.until(share)

    def stop() -> bool:
        synchronize(device)  # else a GPU's work would be asked for long before it is done
        return is_over()

    found = list(_sample_group(group, checkpoint, contrast, plan, progress, stop))
    deadline.note(len(group), sum(item.evaluations for item in found), time.monotonic() - began)
    yield from found


def _try_out(
    group: list[MappedSlice], checkpoint: Checkpoint, contrast: str | None, sampling: Sampling, deadline: Deadline
) -> float:
    """Measure what an evaluation costs; the seconds that it took. What fails here is left to the sampling itself."""
    # the first evaluations of a size pay for its start; on a CPU images follow each other, and one tells enough
    samples = 1 if group[0].conventional.device.type == "cpu" else sampling.samples
    began = time.monotonic()
    for steps in (1, 2):
        brief = replace(sampling, samples=samples, settings=replace(sampling.settings, steps=steps))
        again = time.monotonic()
        try:
            _, evaluations = draw(group, checkpoint, contrast, brief)
        except Exception:
            break
        deadline.note(0, evaluations * len(group), time.monotonic() - again)
    return time.monotonic() - began


def slices_at_once(batch: int, samples: int) -> int:
    """The most slices whose samples make a batch of the network."""
    return max(1, batch // samples)


def _groups(stream: Iterable[MappedSlice | LostSlice], size: int) -> Iterator[list[MappedSlice] | LostSlice]:
    """Lists of at most `size` neighbours of equal shape, in order."""
    group: list[MappedSlice] = []
    for item in stream:
        if group and (isinstance(item, LostSlice) or item.data.kspace.shape != group[0].data.kspace.shape):
            yield group
            group = []
        if isinstance(item, LostSlice):
            yield item
            continue
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _sample_group(
    group: list[MappedSlice],
    checkpoint: Checkpoint,
    contrast: str | None,
    sampling: Sampling,
    progress: Callable[[int], object],
    stop: Stop = never,
) -> Iterator[Reconstruction]:
    started = time.perf_counter()
    draws: list[torch.Tensor] = []
    evaluations, failure = 0, None
    try:
        draws, evaluations = draw(group, checkpoint, contrast, sampling, progress, stop)
    except DpmreconError:
        raise
    except Exception as error:  # whatever it is, the slices are complete: alone each may do, else it is CG-SENSE's
        failure = error.with_traceback(None)  # a traceback keeps the tensors of the attempt
    if failure is not None:
        reason = f"the sampler failed ({first_line(failure)})"
        images = min(sampling.batch, len(group) * sampling.samples)
        if images == 1:
            yield _fall_back(group[0], reason, sampling, failure)
            return
        log.warning("%d images at once: %s: they are tried one by one", images, reason)
        # a slice by itself, then a sample by itself
        fewer = sampling if len(group) > 1 else replace(sampling, batch=1)
        for mapped in group:
            yield from _sample_group([mapped], checkpoint, contrast, fewer, progress, stop)
        return
    seconds = (time.perf_counter() - started) / len(group)
    for mapped, samples in zip(group, draws):
        image = samples.mean(0) * mapped.scale
        spread = None
        if len(samples) > 1:
            deviation = torch.view_as_real(samples).var(0).mean(-1).sqrt()
            spread = deviation * mapped.scale
        residual = data_residual(mapped, image)
        if not math.isfinite(residual):
            yield _fall_back(mapped, "the model's image is not finite", sampling)
        elif residual > LARGEST_RESIDUAL and residual > 2 * data_residual(mapped, mapped.conventional):
            yield _fall_back(mapped, f"the model's image misses the data by {residual:.1f} times the noise", sampling)
        else:
            used = {**mapped.seconds, "sampling": seconds}
            steps = sampling.settings.steps
            yield Reconstruction(mapped, image, spread, None, residual, used, len(samples), steps, evaluations)


def draw(
    group: list[MappedSlice],
    checkpoint: Checkpoint,
    contrast: str | None,
    sampling: Sampling,
    progress: Callable[[int], object] = lambda evaluations: None,
    stop: Stop = never,
) -> tuple[list[torch.Tensor], int]:
    """One (samples, rows, cols) tensor a slice, scale 1, and the evaluations of the network for each slice.

    When `stop` says so there are fewer of them, and fewer samples of a single slice.
    """
    denoiser, device = checkpoint.denoiser, group[0].conventional.device
    entries = [(mapped, index) for mapped in group for index in range(sampling.samples)]
    draws, evaluations = [], 0
    for first in range(0, len(entries), sampling.batch):
        if first and len(group) == 1 and stop():
            break
        chunk = entries[first : first + sampling.batch]
        slices = [mapped for mapped, _ in chunk]
        # samples of one slice share its maps and data by broadcasting instead of copies
        kept = slices[:1] if all(mapped is slices[0] for mapped in slices) else slices
        scales = torch.tensor([mapped.scale for mapped in slices], device=device)
        kspace = torch.stack([mapped.data.kspace / mapped.scale for mapped in kept])
        problem = Problem(
            ForwardModel(
                torch.stack([mapped.model.coil_maps for mapped in kept]),
                torch.stack([mapped.model.mask for mapped in kept]).unsqueeze(-3),
            ),
            kspace,
            torch.stack([mapped.zero_filled / mapped.scale for mapped in kept]),
            torch.tensor([mapped.data.sigma_n for mapped in slices], device=device) / scales,
            torch.stack([mapped.conventional / mapped.scale for mapped in slices]),
        )
        noise = NoiseSource([sample_seed(sampling.seed, mapped.data, index) for mapped, index in chunk], device)
        label = denoiser.one_hot([contrast] * len(chunk))

        def denoise(x: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor = label) -> torch.Tensor:
            nonlocal evaluations
            evaluations += len(x)
            progress(len(x))
            return denoiser(x, sigma, label)

        sample = SAMPLERS[sampling.sampler]
        draws.append(sample(problem, denoise, noise, sampling.settings, denoiser.sigma_data, stop))
    synchronize(device)
    return list(torch.cat(draws).unflatten(0, (len(group), -1))), evaluations // len(group)


def _fall_back(
    mapped: MappedSlice, reason: str, sampling: Sampling, cause: BaseException | None = None
) -> Reconstruction:
    if not sampling.fallback:
        raise DpmreconError(
            f"slice {mapped.data.key.slice}: {reason}; the fallback is off, so the scan stops here "
            "(--fallback on gives the CG-SENSE image instead)"
        ) from cause
    seconds = {**mapped.seconds, "sampling": 0.0}
    residual = data_residual(mapped, mapped.conventional)
    return Reconstruction(mapped, mapped.conventional, None, reason, residual, seconds)


def data_residual(mapped: MappedSlice, image: torch.Tensor) -> float:
    """||A x - y|| over sigma_n sqrt(2 n), what the noise of the n acquired samples alone would leave."""
    kspace = mapped.data.kspace
    difference = torch.view_as_real(mapped.model.forward(image) - kspace).norm()
    count = float(mapped.model.mask.sum()) * kspace.shape[0]
    return float(difference) / (mapped.data.sigma_n * math.sqrt(2 * count))


def sample_seed(seed: int, data: Slice, index: int) -> int:
    """The seed of one sample of one slice: nothing else of the scan or of the batching enters."""
    text = f"{seed} {astuple(data.key)} {index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
