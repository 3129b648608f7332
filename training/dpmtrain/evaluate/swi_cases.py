"""Scans for `swi`: the phantom in three dimensions, and measured gradient echoes with simulated coils."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from dpmrecon.data import LostSlice, Volume
from dpmrecon.errors import BadInputError, DpmreconError
from dpmrecon.physics.fourier import to_kspace
from dpmrecon.physics.scale import image_scale
from dpmrecon.physics.volume import hybrid
from dpmrecon.physics.volume_maps import packed_maps
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.recon.prepare import SWI_CROP
from dpmrecon.recon.types import MappedVolume
from dpmrecon.recon.volumes import mapped_volume, with_volume_maps
from dpmrecon.simulation.settings import VolumeSettings
from dpmrecon.simulation.slices import coil_maps
from dpmrecon.simulation.volumes import simulated_volume

from .references import CPU
from .validation_volumes import calibration_block, two_by_two, volume_data

NOISE = 0.03  # per real channel, over the truth's 99th percentile
PATTERNS = {"2 x 2 CAIPIRINHA": (2, 2, 1), "4 x 1": (4, 1, 0)}  # R of rows, of partitions, shift of partitions
RADIANS = np.pi / 0.0036743774  # of the measured phase images' unit
GRE_VOXEL = (1.0, 0.47, 0.47)  # mm
GRE_NOISE, GRE_BLOCK, GRE_FOV = 0.02, 12, 190.0  # of the scale; lines; mm that the coils take the small volume for


@dataclass
class Case:
    """A scan, fully sampled and undersampled with the same coil maps.

    truth: (partitions, rows, cols) complex64, with the phase that these maps leave.
    """

    name: str
    full: MappedVolume
    mapped: MappedVolume
    truth: np.ndarray

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Along partitions, rows and columns."""
        return self.full.data.voxel_mm


def in_map_phase(mapped: MappedVolume, image: torch.Tensor) -> np.ndarray:
    """An image of the model, of all sets of maps or of one, as that of the coil maps alone."""
    combined = mapped.model.combined(image) if image.ndim > mapped.phase.ndim else image
    return (combined * mapped.phase).numpy()


def phantom(subject: int, partitions: int, matrix: tuple[int, int]) -> VolumeSettings:
    """Fully sampled and without noise, voxels of 2 x .9 x .9 mm."""
    return VolumeSettings(
        contrast="swi",
        subject=subject,
        matrix=matrix,
        fov_mm=(0.9 * matrix[0], 0.9 * matrix[1]),
        partitions=partitions,
        position_mm=(0.0, 2.0, 28.0),
        acceleration=1,
        partition_acceleration=1,
        calibration_lines=min(24, partitions),
        noise=0.0,
    )


def phantom_cases(settings: VolumeSettings, patterns: Sequence[str]) -> Iterator[Case]:
    clean, magnitude = (torch.from_numpy(array) for array in simulated_volume(settings))
    noise = NOISE * image_scale(magnitude)
    generator = torch.Generator().manual_seed(settings.seed)
    noisy = torch.stack([coil + noise * complex_noise(tuple(coil.shape), generator) for coil in clean])
    voxel, block = (settings.slice_thickness_mm, *settings.pixel_mm), settings.calibration_lines
    full = _mapped(with_volume_maps(_acquired(noisy, lines_of(settings), block, noise, voxel, 1), CPU, SWI_CROP))
    truth = in_map_phase(full, full.model.adjoint(hybrid(clean)))
    for name in patterns:
        rows, partitions, shift = PATTERNS[name]
        lines = lines_of(replace(settings, acceleration=rows, partition_acceleration=partitions, caipirinha=shift))
        data = _acquired(noisy, lines, block, noise, voxel, rows * partitions)
        yield Case(f"subject {settings.subject}, {name}", full, _mapped(with_volume_maps(data, CPU, SWI_CROP)), truth)


def lines_of(settings: VolumeSettings) -> torch.Tensor:
    """(partitions, rows) float32, 1 where acquired."""
    lines = torch.zeros(settings.partitions, settings.rows)
    for place in (*settings.grid_places(), *settings.calibration_places()):
        lines[place] = 1
    return lines


def gre_cases(images: Path) -> Iterator[Case]:
    """Every echo of the two measured volumes, R = 2 x 2 CAIPIRINHA. Raises BadInputError where they are missing."""
    import nibabel

    for name in ("CLEARSWI", "ROMEO"):
        paths = [images / f"gre_complex/{name}_{kind}.nii" for kind in ("Mag", "Phase")]
        if not all(path.is_file() for path in paths):
            raise BadInputError(f"{paths[0]} or {paths[1].name} does not exist: give the folder with gre_complex/")
        magnitude, phase = (np.asarray(nibabel.load(path).dataobj).T for path in paths)  # type: ignore[attr-defined]
        for echo, image in enumerate(magnitude * np.exp(1j * RADIANS * phase), 1):
            even = image[tuple(slice(size // 2 * 2) for size in image.shape)]  # as BART needs it
            yield _gre_case(f"{name}, echo {echo}", torch.from_numpy(even.astype(np.complex64)))


def _gre_case(name: str, image: torch.Tensor) -> Case:
    image = image / image_scale(image.abs())
    shape = tuple(image.shape)
    axes = [(np.arange(size) - size // 2) * GRE_FOV / size for size in shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij")[::-1], -1).astype(np.float32)
    maps = torch.from_numpy(coil_maps(points, 8))
    maps /= torch.linalg.vector_norm(maps, dim=0)
    noise = GRE_NOISE * complex_noise(tuple(maps.shape), torch.Generator().manual_seed(0))
    kspace = to_kspace(maps * image, (1, 2, 3)) + noise
    lines = two_by_two(shape, calibration_block(shape, GRE_BLOCK))

    def acquired(some: torch.Tensor, factor: int) -> MappedVolume:
        data = _acquired(kspace, some, GRE_BLOCK, GRE_NOISE, GRE_VOXEL, factor)
        return _mapped(mapped_volume(data, packed_maps(maps), {}))

    return Case(name, acquired(torch.ones(shape[:2]), 1), acquired(lines, 4), image.numpy())


def _acquired(
    kspace: torch.Tensor,
    lines: torch.Tensor,
    block: int,
    noise: float,
    voxel_mm: tuple[float, float, float],
    factor: int,
) -> Volume:
    shape = tuple(kspace.shape[1:])
    mask = lines[..., None].expand(shape).contiguous()
    return volume_data(kspace * mask, mask, calibration_block(shape, block), noise, factor, voxel_mm)


def _mapped(found: MappedVolume | LostSlice) -> MappedVolume:
    if isinstance(found, LostSlice):
        raise DpmreconError(f"the simulated scan is lost: {found.reason}")
    return found
