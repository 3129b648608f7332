"""Coarse scans of prepared volumes and random shapes, for training inside the sampler.

The network is asked for their planes in turn there. Coil maps of a volume take longer than a step of training: a run
makes its scans once, and keeps them in its folder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from dpmrecon.data import SliceKey, Volume
from dpmrecon.errors import BadInputError
from dpmrecon.physics.fourier import crop_or_pad, to_image, to_kspace
from dpmrecon.physics.scale import image_scale
from dpmrecon.physics.volume import VolumeModel, hybrid
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.prior.problem import Planes, Problem
from dpmrecon.recon.prepare import with_coil_maps
from dpmrecon.recon.sample import volume_problem
from dpmrecon.recon.types import MappedVolume
from dpmrecon.simulation.sampling import Pattern
from dpmrecon.simulation.slices import coil_maps

from ..data.dataset import PreparedSlices
from ..data.lesions import smooth_field
from ..data.shapes import LABELS, random_shapes
from ..data.workers import Workers
from ..files import writing
from .batches import example_seed
from .keeper import read_tensors, write_state

VOXEL_MM, OBLONG = (2.0, 4.0), 1.5  # how much longer a voxel is along an axis at most, in a third of the scans
VOXELS = 280_000  # of a scan at most, which a network passes in a second
CUT, AIR = 0.3, 1.25  # of the head at one end, and field of view over it, at most
COILS = (6, 8, 8, 12)
FACTORS = ((2, 2), (2, 2), (2, 2), (1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2))
POISSON, SHIFTED = 0.3, 0.6  # shares: of all, and of the regular ones
CALIBRATION = (7, 12)  # half its side
SIGMA_N = (0.006, 0.07)  # log-uniform
PHASE = 1.2  # rad, the largest standard deviation of its smooth part
AT_ONCE = 8, 64  # planes that the network sees, on a CPU and on a GPU
ATTEMPTS = 50  # one in ten scans of heads folds
TENSORS = ("maps", "zero_filled", "start", "clean")


class VolumeScan(NamedTuple):
    """problem: with a `VolumeModel`, without k-space, which `prox` does not need; clean: (partitions, rows, cols)
    complex64 at the scale and phase of its images, 0 outside the maps' support."""

    problem: Problem
    clean: torch.Tensor
    contrast: str | None


@dataclass(frozen=True)
class VolumeScans:
    """`number` scans of prepared volumes in `folder`, made where they are not there.

    shapes: share of them that are of random shapes instead.
    """

    folder: Path
    number: int
    shapes: float = 0.0

    def make(self, slices: PreparedSlices, seed: int, jobs: int = 1) -> None:
        """By so many processes. Raises BadInputError where no prepared volume is cut in three directions, or the scans
        are of others."""
        weights = slices.weights * torch.tensor([float(len(volume["spans"]) == 3) for volume in slices.volumes])
        if not weights.any():
            raise BadInputError(
                f"no prepared volume is cut in three directions, as volume_scans = {self.number} needs: give it 0, or "
                "add volumes of thin slices"
            )
        made_of = {"data": slices.digest, "seed": seed, "shapes": self.shapes}
        if self._file(0).exists() and read_tensors(self._file(0), {"made of"})["made of"] != made_of:
            raise BadInputError(
                f"{self.folder} has scans of other volumes, another seed or other volume_shapes: take another --run"
            )
        missing = [number for number in range(self.number) if not self._file(number).exists()]
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with Workers(min(jobs, len(missing))) as workers:
            made = workers.run(
                partial(_drawn, slices, weights, seed, self.shapes), missing, "volume scans", self.number - len(missing)
            )
            for number, found in made:
                with writing(self.folder):
                    write_state(self._file(number), {**found, "made of": made_of})

    def draw(self, generator: torch.Generator) -> VolumeScan:
        """One of them, on the generator's device."""
        device = generator.device
        number = int(torch.randint(self.number, (1,), generator=generator, device=device))
        found: dict[str, Any] = read_tensors(self._file(number), {"contrast", "lines", "sigma_n", *TENSORS})
        maps, zero_filled, start, clean = (torch.view_as_complex(found[name].to(device).float()) for name in TENSORS)
        mask = found["lines"].to(device).float()[..., None].expand(clean.shape)
        axes = tuple(found["planes"])
        problem = Problem(
            VolumeModel(maps, mask), zero_filled[:, None], zero_filled, found["sigma_n"].to(device), start,
            Planes(axes, AT_ONCE[device.type == "cuda"]),
        )  # fmt: skip
        return VolumeScan(problem, clean, found["contrast"])

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:04d}.pt"


def _drawn(slices: PreparedSlices, weights: torch.Tensor, seed: int, shapes: float, number: int) -> dict[str, Any]:
    """Heads that fold get two sets of maps, which a scan here does not have: then another is drawn.

    shapes: share of the scans that are of random shapes, evenly among the numbers. Raises BadInputError where ATTEMPTS
    fold.
    """
    of_shapes = int((number + 1) * shapes) > int(number * shapes)
    for attempt in range(ATTEMPTS):
        own = example_seed(seed, number, attempt)
        data, voxel_mm, contrast = _shapes(own) if of_shapes else _prepared(slices, weights, own)
        found = scanned(data, voxel_mm, own)
        if found is not None:
            return {**found, "contrast": contrast}
    raise BadInputError(
        f"{ATTEMPTS} scans of the prepared volumes fold, or have no coil maps: see whether they hold heads, or give "
        "volume_scans = 0"
    )


Drawn = tuple[np.ndarray, Sequence[float], str | None]  # what `scanned` takes of it, and its contrast


def _prepared(slices: PreparedSlices, weights: torch.Tensor, seed: int) -> Drawn:
    index = int(torch.multinomial(weights, 1, generator=torch.Generator().manual_seed(seed)))
    volume = slices.volumes[index]
    return np.asarray(slices.data[index], np.float32), volume["voxel_mm"], volume["contrast"]


def _shapes(seed: int) -> Drawn:
    rng = np.random.default_rng((seed, 1))  # other numbers than `scanned` draws
    data, voxel_mm = random_shapes(rng)
    return data, voxel_mm, LABELS[rng.integers(len(LABELS))]


def scanned(data: np.ndarray, voxel_mm: Sequence[float], seed: int) -> dict[str, Any] | None:
    """A scan of a volume (slices, rows, cols) float32, or with real and imaginary parts as last axis: what `VolumeScan`
    is made of, numbers as pairs of float16. None where its head folds."""
    rng = np.random.default_rng(seed)
    image, steps = _coarse(data, voxel_mm, rng)
    maps = _maps(image, steps, rng)
    order = rng.permutation(3).tolist()
    image, maps = image.permute(order), maps.permute(0, *(1 + axis for axis in order))
    shape, steps = tuple(image.shape), [steps[axis] for axis in order]
    lines, block = _lines((shape[0], shape[1]), rng)
    sigma_n = float(np.exp(rng.uniform(*np.log(SIGMA_N))))
    generator = torch.Generator().manual_seed(seed)
    mask = lines[..., None].expand(shape)
    seen = torch.stack([to_kspace(one * image, (0, 1, 2)) for one in maps])
    kspace = mask * (seen + sigma_n * complex_noise(tuple(seen.shape), generator))
    n_lines, key = int(lines.sum()), SliceKey(0)
    scan = Volume(
        key, kspace, mask, kspace[(slice(None), *block)].clone(), sigma_n, "known",
        lines.numel() / n_lines, n_lines, n_lines, key.seed_key, voxel_mm=(steps[0], steps[1], steps[2]),
    )  # fmt: skip
    (mapped,) = with_coil_maps([scan], torch.device("cpu"))
    if not isinstance(mapped, MappedVolume) or type(mapped.model) is not VolumeModel:
        return None
    problem, model = volume_problem(mapped, AT_ONCE[0]), mapped.model
    # at the phase that the known maps leave the image
    phase = torch.sgn(VolumeModel(model.coil_maps, torch.ones(shape)).adjoint(hybrid(seen)))
    clean = image.abs() * phase / mapped.scale
    tensors = model.coil_maps, problem.zero_filled, problem.start, clean
    return {
        **{name: torch.view_as_real(tensor).half() for name, tensor in zip(TENSORS, tensors)},
        "lines": lines.bool(), "sigma_n": problem.sigma_n, "planes": list(mapped.planes),
    }  # fmt: skip


def _coarse(data: np.ndarray, voxel_mm: Sequence[float], rng: np.random.Generator) -> tuple[torch.Tensor, list[float]]:
    """The head, cut at one end and with air around it, complex64 at scale 1 and its voxels in mm."""
    image = torch.from_numpy(data)
    measured = image.ndim == 4
    image = torch.view_as_complex(image.contiguous()) if measured else image
    cut = int(rng.uniform(0, CUT) * len(image))
    image = image[cut:] if rng.random() < 0.5 else image[: len(image) - cut]
    extent = np.array(image.shape) * voxel_mm
    wanted = rng.uniform(*VOXEL_MM) * (rng.uniform(1, OBLONG, 3) if rng.random() < 1 / 3 else np.ones(3))
    matrix = extent / np.maximum(wanted, voxel_mm)
    air = rng.uniform(1.02, AIR, 3)
    matrix /= max(1.0, float(np.prod(matrix * air)) / VOXELS) ** (1 / 3)
    matrix = np.minimum(2 * np.round(matrix / 2), image.shape).astype(int).clip(8)
    kspace = to_kspace(image.to(torch.complex64), (0, 1, 2))
    for axis, size in enumerate(matrix.tolist()):
        kspace = crop_or_pad(kspace, size, axis)
    image = to_image(kspace, (0, 1, 2))
    image = image if measured else image.abs().to(torch.complex64)
    for axis, size in enumerate(matrix.tolist()):
        image = crop_or_pad(image, 2 * round(size * air[axis] / 2), axis)
    smooth = torch.from_numpy(rng.uniform(0, PHASE) * smooth_field(tuple(image.shape), 4, rng)).float()
    return image / image_scale(image) * torch.polar(torch.ones_like(smooth), smooth), (extent / matrix).tolist()


def _maps(image: torch.Tensor, steps: list[float], rng: np.random.Generator) -> torch.Tensor:
    """(n_coils, *image.shape) complex64, sum of squares 1: coils of a helmet."""
    axes = [(np.arange(size) - size // 2) * step for size, step in zip(image.shape, steps)]
    points = np.stack(np.meshgrid(*axes, indexing="ij")[::-1], -1).astype(np.float32)
    maps = torch.from_numpy(coil_maps(points, int(rng.choice(COILS)), int(rng.integers(1000))))
    return maps / torch.linalg.vector_norm(maps, dim=0)


def _lines(shape: tuple[int, int], rng: np.random.Generator) -> tuple[torch.Tensor, tuple[slice, slice]]:
    """(partitions, rows) float32, 1 where acquired, and the calibration among them."""
    factors = FACTORS[rng.integers(len(FACTORS))]
    pattern = Pattern(shape, factors, (0, 0), False)
    if rng.random() < POISSON:
        lines = Pattern(shape, (1, math.prod(factors)), (0, 0), False).poisson(rng)
    else:
        lines = pattern.regular(int(rng.random() < SHIFTED))
    half = int(rng.integers(CALIBRATION[0], CALIBRATION[1] + 1))
    first, second = (slice(max(0, size // 2 - half), size // 2 + half) for size in shape)
    lines[first, second] = True
    return torch.from_numpy(lines).float(), (first, second)
