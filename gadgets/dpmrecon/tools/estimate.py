"""`dpmrecon estimate`: what a scan will cost in seconds and memory, measured on this machine.

Slices of three sizes go through the steps of a reconstruction; a line through the measurements, with no negative
coefficient, gives each stage's cost for any matrix, number of coils, slices, samples and steps. Nothing is kept.
A volume takes minutes: smaller ones stand for it, and its memory is counted, array by array.
"""

import argparse
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from ..data import Slice, Volume
    from ..mrd.scan import Scan
    from ..prior.checkpoint import Checkpoint
    from ..recon.types import Sampling

STEPS = 3  # of a measurement
NOISE = 0.02  # of such a volume, over its signal: more noise, fewer iterations
LARGEST_MEASURED = 300_000  # voxels of a volume that stands for a larger one
# MB a million voxels of a volume, and as much for each coil and each further sample
VOLUME_MEMORY = (8.0 * 24, 8.0 * 2, 8.0 * 2.25)
MEGA = 1e6


@dataclass(frozen=True)
class Load:
    """What there is to do: a matrix (rows, cols), coils, slices, samples of so many steps, images at once. partitions:
    of a volume, each of which counts as one slice; 1 for slices. beside: evaluations for an image that the samples are
    not of, as of the uncertainty mode."""

    rows: int
    cols: int
    n_coils: int
    n_slices: int
    samples: int
    steps: int
    batch: int
    partitions: int = 1
    beside: int = 0

    @property
    def is_volume(self) -> bool:
        return self.partitions > 1

    @property
    def megapixels(self) -> float:
        return self.partitions * self.rows * self.cols / MEGA

    @property
    def slices_at_once(self) -> int:
        from ..recon.stream import slices_at_once

        return 1 if self.is_volume else min(self.n_slices, slices_at_once(self.batch, self.samples))

    @property
    def images_at_once(self) -> int:
        return 1 if self.is_volume else min(self.batch, self.samples * self.slices_at_once)


def load_of(scan: "Scan", sampling: "Sampling", *, combine_averages: bool) -> Load:
    """What an open scan is to do, with all of its coils: a reconstruction may keep fewer virtual ones."""
    from ..mrd.header import encoded_grid, n_partitions

    rows, cols = encoded_grid(scan.header)
    steps, n_images = sampling.settings.steps, scan.n_images(combine_averages)
    partitions = n_partitions(scan.header)
    beside = sampling.evaluations - sampling.samples * steps
    return Load(rows, cols, scan.n_coils, n_images, sampling.samples, steps, sampling.batch, partitions, beside)


@dataclass(frozen=True)
class Measurement:
    """Seconds of the stages of one slice (`evaluation`: of one image and step), and the peak of the memory in MB."""

    load: Load
    maps: float
    conventional: float
    evaluation: float
    peak: float


@dataclass(frozen=True)
class CostModel:
    """Coefficients of the features below; start: seconds before the first slice; base: MB without any slice."""

    maps: np.ndarray
    conventional: np.ndarray
    evaluation: np.ndarray
    memory: np.ndarray
    start: float
    base: float
    error: float  # largest relative miss of the measured seconds of a slice
    adaptation: float = 0.0  # seconds a megapixel and step, once a scan
    asked: int = 0  # evaluations of the network by the gate, a slice

    def stages(self, load: Load) -> dict[str, float]:
        """Seconds of each stage of one slice."""
        evaluation = float(_evaluation(load) @ self.evaluation)
        return {
            "maps": float(_maps(load) @ self.maps),
            "conventional": float(_conventional(load) @ self.conventional),
            "sampling": (load.samples * load.steps + load.beside) * evaluation,
            **({"gate": self.asked * evaluation} if self.asked else {}),
        }

    def seconds(self, load: Load) -> float:
        """Of the whole scan, from the start of the command to the last image."""
        return self.start + self.once(load) + load.n_slices * sum(self.stages(load).values())

    def once(self, load: Load) -> float:
        """Of the prior's adaptation to the scan."""
        return self.adaptation * load.megapixels * load.steps

    def peak(self, load: Load) -> float:
        """The largest memory in MB: the process on a CPU, what torch holds on a GPU. Slices follow each other."""
        return self.base + memory_of(load, self.memory)


def memory_of(load: Load, coefficients: np.ndarray) -> float:
    """MB that a scan takes beside the loaded model. coefficients: VOLUME_MEMORY, of slices those of `cost_model`."""
    return float(_memory(load) @ coefficients)


def _maps(load: Load) -> np.ndarray:
    if not load.is_volume:
        return np.array([1.0, load.megapixels * load.n_coils**2])
    from ..physics.volume_maps import grid_of, longest_kernel

    # eigenvectors: of the calibration's matrix, of each point; then what goes by sample
    size = load.n_coils * longest_kernel(load.n_coils) ** 3 / 1000
    points = math.prod(grid_of((load.partitions, load.rows, load.cols))) / MEGA
    return np.array([size**3, points * load.n_coils**2, load.megapixels * load.n_coils])


def _conventional(load: Load) -> np.ndarray:
    return np.array([1.0, load.megapixels * load.n_coils])


def _evaluation(load: Load) -> np.ndarray:
    return np.array([load.megapixels, load.megapixels * load.n_coils])


def _memory(load: Load) -> np.ndarray:
    if load.is_volume:
        return load.megapixels * np.array([1.0, load.n_coils, max(0, load.samples - 1)])
    images = load.megapixels * load.images_at_once
    return np.array([images, images * load.n_coils, load.megapixels * load.n_coils])


def measure(
    checkpoint: "Checkpoint",
    sampling: "Sampling",
    load: Load,
    device: "torch.device",
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Run a slice or volume of this size through maps and conventional image; then as many as the scan samples at once
    through STEPS steps of the sampler, a volume through all. clock: seconds that only grow, for the steps."""
    import torch

    from ..recon.prepare import with_coil_maps
    from ..recon.sample import draw
    from ..recon.types import MappedSlice

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    (mapped,) = with_coil_maps([_volume(load) if load.is_volume else _slice(load)], device)
    assert isinstance(mapped, MappedSlice), mapped.reason
    group, samples = [replace(mapped) for _ in range(load.slices_at_once)], min(load.batch, load.samples)
    samples = 1 if load.is_volume else samples
    seconds = 0.0
    # data steps take more iterations early and late: sampled as a volume is
    counted = load.steps if load.is_volume else STEPS
    for steps in (1, counted):  # the first run of a size pays for its start
        brief = replace(sampling, samples=samples, settings=replace(sampling.settings, steps=steps))
        began = clock()
        draw(group, checkpoint, None, brief)
        seconds = clock() - began
    seconds /= len(group) * samples * counted
    return Measurement(load, mapped.seconds["maps"], mapped.seconds["conventional"], seconds, memory_peak(device))


def _adaptation(checkpoint: "Checkpoint", sampling: "Sampling", load: Load, device: "torch.device") -> float:
    """Seconds that the prior's adaptation to the scan takes."""
    from ..recon.adapt import foreseen
    from ..recon.prepare import with_coil_maps
    from ..recon.types import MappedSlice

    (mapped,) = with_coil_maps([_slice(load)], device)
    assert isinstance(mapped, MappedSlice), mapped.reason
    return foreseen(mapped, checkpoint, None, sampling)


def _slice(load: Load) -> "Slice":
    """An ellipse seen by smooth coils, every fourth line and 24 central ones."""
    import torch

    from ..data import Slice, SliceKey
    from ..physics.fourier import to_kspace
    from ..prior.denoiser import complex_noise
    from ..simulation.slices import coil_maps

    down, along = np.meshgrid(np.linspace(-115, 115, load.rows), np.linspace(-115, 115, load.cols), indexing="ij")
    maps = torch.from_numpy(coil_maps(np.stack([along, down, 0 * down], -1).astype(np.float32), load.n_coils))
    head = torch.from_numpy(((along / 85) ** 2 + (down / 100) ** 2 < 1).astype(np.float32))
    mask = torch.zeros(load.rows, load.cols)
    mask[load.rows // 2 % 4 :: 4] = 1
    first = max(0, load.rows // 2 - 12)
    mask[first : first + 24] = 1
    noise = 0.01 * complex_noise((load.n_coils, load.rows, load.cols), torch.Generator().manual_seed(0))
    kspace = mask * (to_kspace(maps * head) + noise)
    n_lines = int(mask[:, 0].sum())
    key = SliceKey(0)
    calibration = kspace[:, first : first + 24]
    return Slice(key, kspace, mask, calibration, 0.01, "known", 4, n_lines, n_lines, key.seed_key)


def _volume(load: Load) -> "Volume":
    """An ellipsoid seen by smooth coils, R = 2 x 2 and a block of 24 x 24 in the centre acquired."""
    import torch

    from ..data import SliceKey, Volume
    from ..physics.fourier import to_kspace
    from ..prior.denoiser import complex_noise
    from ..simulation.slices import coil_maps

    shape = (load.partitions, load.rows, load.cols)
    places = np.meshgrid(*(np.linspace(-115, 115, size) for size in shape), indexing="ij")
    points = np.stack(places[::-1], -1).astype(np.float32)
    head = torch.from_numpy((np.square(np.stack(places) / 95).sum(0) < 1).astype(np.float32))
    block = tuple(slice(max(0, size // 2 - 12), size // 2 + 12) for size in shape[:2])
    lines = torch.zeros(shape[:2])
    lines[shape[0] // 2 % 2 :: 2, shape[1] // 2 % 2 :: 2] = 1
    lines[block] = 1
    mask, generator = lines[..., None].expand(shape).clone(), torch.Generator().manual_seed(0)
    maps = torch.from_numpy(coil_maps(points, load.n_coils))
    kspace = torch.stack(
        [mask * (to_kspace(one * head, (0, 1, 2)) + NOISE * complex_noise(shape, generator)) for one in maps]
    )
    key, n_lines = SliceKey(0), int(lines.sum())
    calibration = kspace[:, block[0], block[1]]
    return Volume(key, kspace, mask, calibration, NOISE, "known", 4, n_lines, n_lines, key.seed_key)


def memory_peak(device: "torch.device") -> float:
    """MB at most so far: torch's on a GPU, else the process's."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / MEGA
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGA


def cost_model(
    checkpoint: "Checkpoint", sampling: "Sampling", load: Load, device: "torch.device", start: float = 0.0
) -> CostModel:
    """Measure at half the matrix, at half the coils and at the scan's own size, and fit."""
    base = memory_peak(device)
    half = replace(load, rows=max(32, load.rows // 2), cols=max(32, load.cols // 2), n_coils=max(2, load.n_coils // 2))
    sizes = [half, replace(load, n_coils=half.n_coils), load]  # ascending: the process's peak never falls
    measure(checkpoint, sampling, half, device)  # pays for the first start of everything
    found = [measure(checkpoint, sampling, size, device) for size in sizes]
    memory = _fit([_memory(m.load) for m in found], [max(1.0, m.peak - base) for m in found])
    return _fitted(found, memory, start, base)


def volume_cost_model(
    checkpoint: "Checkpoint", sampling: "Sampling", load: Load, device: "torch.device", start: float, base: float
) -> CostModel:
    """As `cost_model`, from volumes of at most LARGEST_MEASURED voxels. base: MB before a volume is read."""
    shape = (load.partitions, load.rows, load.cols)
    sizes = []
    for voxels, n_coils in (
        (LARGEST_MEASURED / 4, load.n_coils),
        (LARGEST_MEASURED, max(2, load.n_coils // 2)),
        (LARGEST_MEASURED, load.n_coils),
    ):
        factor = min(1.0, (voxels / math.prod(shape)) ** (1 / 3))
        partitions, rows, cols = (max(min(size, 16), round(factor * size)) for size in shape)
        sizes.append(replace(load, partitions=partitions, rows=rows, cols=cols, n_coils=n_coils))
    measure(checkpoint, sampling, sizes[0], device)  # pays for the first start of everything
    found = [measure(checkpoint, sampling, size, device) for size in sizes]
    return _fitted(found, np.array(VOLUME_MEMORY), start, base)


def _fitted(found: list[Measurement], memory: np.ndarray, start: float, base: float) -> CostModel:
    load, fits = found[-1].load, {}
    for stage, features in (("maps", _maps), ("conventional", _conventional), ("evaluation", _evaluation)):
        fits[stage] = _fit([features(m.load) for m in found], [getattr(m, stage) for m in found])
    model = CostModel(fits["maps"], fits["conventional"], fits["evaluation"], memory, start, base, error=0.0)
    evaluations = load.samples * load.steps
    measured = [m.maps + m.conventional + evaluations * m.evaluation for m in found]
    misses = [sum(model.stages(m.load).values()) / seconds - 1 for m, seconds in zip(found, measured)]
    return replace(model, error=max(map(abs, misses)))


def _fit(features: list[np.ndarray], values: list[float]) -> np.ndarray:
    """Coefficients >= 0 that miss the values least, relative to each: the best over all choices of what is zero."""
    scale = 1 / np.maximum(values, 1e-9)
    matrix, target = np.stack(features) * scale[:, None], np.asarray(values) * scale
    best, least = np.zeros(matrix.shape[1]), np.inf
    for kept in range(1, 2 ** matrix.shape[1]):
        columns = [column for column in range(matrix.shape[1]) if kept >> column & 1]
        found = np.linalg.lstsq(matrix[:, columns], target, rcond=None)[0]
        miss = float(np.square(matrix[:, columns] @ found - target).sum())
        if (found >= 0).all() and miss < least:
            best, least = np.zeros(matrix.shape[1]), miss
            best[columns] = found
    return best


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dpmrecon estimate`: those of `replay` that cost something or save it."""
    from .. import options

    parser.add_argument("scan", type=Path, help="ISMRMRD file with raw acquisitions")
    options.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """`dpmrecon estimate`; the exit code. Raises BadInputError."""
    from ..data import Slice
    from ..dicom.write import DicomOptions
    from ..mrd.collect import slices
    from ..mrd.header import check_supported
    from ..mrd.receiving import Receiving, open_as
    from ..options import from_arguments
    from ..output.images_file import Outputs
    from ..physics.coil_compression import n_kept
    from ..recon import plan
    from ..recon.agreement import SLICES, VOLUMES, evaluations_asked
    from ..recon.deadline import Deadline
    from ..results import Wanted

    options = from_arguments(args)
    checkpoint, device = plan.load(options, final=True)
    start, base = time.monotonic() - args.started, memory_peak(device)
    with open_as(args.scan, options) as scan:
        check_supported(scan.header)
        checkpoint, contrast, sampling = plan.asked(options, checkpoint, scan.header)
        whole = load_of(scan, sampling, combine_averages=options.combine_averages)
        rows, cols, partitions = whole.rows, whole.cols, whole.partitions
        n_coils, n_slices = whole.n_coils, whole.n_slices
        receiving, combine = Receiving.of(options, scan.header), options.combine_averages
        stream = slices(scan.acquisitions(), scan.header, combine_averages=combine, receiving=receiving)
        began = time.monotonic()
        first = next((data for data in stream if isinstance(data, Slice)), None)
        reading = time.monotonic() - began if partitions > 1 else 0.0
    kept = n_coils if first is None else n_kept(first) * (1 + len(first.others))
    del first, stream
    load = replace(whole, n_coils=kept)
    wanted = Wanted(Outputs(options.outputs), DicomOptions(reformat=options.reformat))
    finish = wanted.seconds_to_finish(scan.header, contrast, n_slices)
    began = time.monotonic()
    if load.is_volume:  # whose measured coils stay in memory beside the virtual ones
        base += 8 * load.megapixels * (n_coils - kept)
        model = volume_cost_model(checkpoint, sampling, load, device, start + n_slices * reading, base)
    else:
        model = cost_model(checkpoint, sampling, load, device, start)
        if sampling.adapt:
            seconds = _adaptation(checkpoint, sampling, load, device)
            model = replace(model, adaptation=seconds / (load.megapixels * load.steps))
    asked = evaluations_asked(checkpoint, sampling.gate, VOLUMES if load.is_volume else SLICES)
    model = replace(model, asked=asked)
    virtual = f" ({kept} virtual ones)" if kept < n_coils else ""
    what, matrix = ("volumes", f"{partitions} x {rows} x {cols}") if load.is_volume else ("slices", f"{rows} x {cols}")
    unit = what[:-1]
    print(f"{n_slices} {what} of {matrix}, {n_coils} coils{virtual}; {sampling.sampler}, mode {sampling.mode}: "
          f"{load.samples} samples of {load.steps} steps, {load.batch} images at once on {device}")  # fmt: skip
    print(f"measured at three sizes in {time.monotonic() - began:.1f} s; the fit misses them by {model.error:.0%}")
    for stage, seconds in model.stages(load).items():
        print(f"  {stage:<13}{seconds:9.3f} s a {unit}")
    if sampling.adapt:
        print(f"  adaptation   {model.once(load):9.1f} s once")
    told = f", reading {n_slices * reading:.1f} s" if load.is_volume else ""
    print(f"  start {start:.1f} s{told}, preview and DICOM {finish:.1f} s")
    print(f"the scan: {model.seconds(load) + finish:.1f} s, about {model.peak(load):.0f} MB")
    for words, other in _others(load):
        print(f"  {words:<22}{model.seconds(other) + finish:9.1f} s {model.peak(other):7.0f} MB")
    if sampling.deadline is not None:
        rest = sampling.deadline - finish - replace(model, asked=0).seconds(replace(load, samples=0, beside=0))
        evaluation = model.stages(replace(load, samples=1, steps=1, beside=0))["sampling"]
        cut = Deadline(sampling.deadline, n_slices, 0.0, per_evaluation=evaluation).plan(
            sampling, 1, rest / n_slices, asked * evaluation
        )
        words = "no time for the model: CG-SENSE for"
        if cut is not None:
            words = f"{cut.told} for"
        print(f"deadline of {sampling.deadline:g} s: {words} every {unit}")
    return 0


def _others(load: Load) -> list[tuple[str, Load]]:
    """What the same scan would cost otherwise, with what is different in words."""
    return [
        ("one sample", replace(load, samples=1)),
        (f"{load.samples} samples of 10 steps", replace(load, steps=10)),
        (f"twice the {'volumes' if load.is_volume else 'slices'}", replace(load, n_slices=2 * load.n_slices)),
        ("twice these coils", replace(load, n_coils=2 * load.n_coils)),
        ("twice the matrix", replace(load, rows=2 * load.rows, cols=2 * load.cols)),
    ]
