"""Simulated volumes with a known truth: the held-out label map in three contrasts, as a 3D scan would bring it."""

import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.data import SliceKey, Volume
from dpmrecon.errors import BadInputError
from dpmrecon.physics.fourier import crop_or_pad, to_image, to_kspace
from dpmrecon.physics.scale import image_scale
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.simulation.settings import VolumeSettings
from dpmrecon.simulation.slices import coil_maps
from dpmrecon.simulation.volumes import simulated_volume

from ..data.labelmaps import simulate
from ..data.lesions import smooth_field
from .references import ReferenceSlice

HELD_OUT = "training_seg_02"
N_COILS = 8
BLOCK = 24  # lines of the calibration each way
# noise per real channel over the scale; voxel in mm, partitions first
VOLUMES = {
    "t1": (0.02, (2.0, 2.0, 2.0)),
    "t2": (0.02, (2.0, 2.0, 2.0)),
    "flair": (0.03, (2.5, 2.0, 2.0)),
    "swi": (0.03, (2.0, 1.0, 1.0)),
}
COARSE = {"t1": (3.0, 3.0, 3.0), "t2": (3.0, 3.0, 3.0), "flair": (3.75, 3.0, 3.0), "swi": (4.0, 2.0, 2.0)}


@dataclass
class ReferenceVolume:
    """data: the undersampled volume; truth: magnitude (partitions, rows, cols) float32; maps: the true coil maps,
    (n_coils, partitions, rows, cols) complex64."""

    contrast: str
    data: Volume
    truth: np.ndarray
    maps: torch.Tensor


@lru_cache
def validation_volume(
    images: Path,
    contrast: str,
    voxel_mm: tuple[float, float, float] | None = None,
    partitions: int | None = None,
    *,
    full: bool = False,
) -> ReferenceVolume:
    """Sagittal partitions (axial ones of swi), R = 2 x 2 shifted by one partition on every other line.

    voxel_mm: None as in VOLUMES; partitions: in the middle of the head, None for all; full: every line is acquired.
    Raises BadInputError where the images lack the head or the contrast.
    """
    import nibabel

    path = images / f"synthseg_labels/{HELD_OUT}.nii.gz"
    if contrast not in VOLUMES:
        raise BadInputError(f"there is no validation volume of contrast '{contrast}': there are {', '.join(VOLUMES)}")
    if not path.is_file():
        raise BadInputError(f"{path} does not exist: give the folder with synthseg_labels/ as --images")
    noise, voxel = VOLUMES[contrast]
    voxel = voxel_mm or voxel
    rng = np.random.default_rng(zlib.crc32(contrast.encode()))
    image: Any = nibabel.as_closest_canonical(nibabel.load(path))
    labels = np.asarray(image.dataobj).astype(np.int16)
    inside = np.argwhere(labels > 0)
    low, high = np.maximum(inside.min(0) - 8, 0), inside.max(0) + 9
    head = simulate(labels[tuple(slice(a, b) for a, b in zip(low, high))], contrast, rng)
    head = head[::-1, ::-1]  # to the left and to the back
    # partitions run to head, rows back, columns left; or left, back, feet
    head = head.transpose(2, 1, 0)[-120:] if contrast == "swi" else head[:, :, ::-1]
    if partitions is not None:
        first = (len(head) - round(partitions * voxel[0])) // 2
        head = head[first : first + round(partitions * voxel[0])]
    kspace = to_kspace(torch.from_numpy(np.ascontiguousarray(head)), (0, 1, 2))
    for axis, size in enumerate(head.shape):
        kspace = crop_or_pad(kspace, round(size / voxel[axis] / 2) * 2, axis)
    magnitude = to_image(kspace, (0, 1, 2)).abs()
    magnitude = magnitude / image_scale(magnitude)
    shape = tuple(magnitude.shape)
    return _acquired(contrast, magnitude, noise, voxel, _points(contrast, shape, voxel), rng, full)


def slab_with_field(subject: int) -> ReferenceVolume:
    """A coarse slab of SWI, R = 3, of the product's head, whose tissues make their own field: its phase is no smooth
    one, and signal is lost near the sinuses."""
    settings = VolumeSettings(
        contrast="swi",
        matrix=(64, 80),
        fov_mm=(180.0, 230.0),
        partitions=30,
        slice_thickness_mm=3.0,
        acceleration=3,
        partition_acceleration=1,
        calibration_lines=16,
        noise=0.018,
        subject=subject,
        seed=subject,
    )
    return phantom_volume(settings)


def phantom_volume(settings: VolumeSettings) -> ReferenceVolume:
    """A 3D scan of the product's head, the noise known. No true maps."""
    kspace, truth = (torch.from_numpy(array) for array in simulated_volume(settings))
    scale = image_scale(truth)
    sigma_n = settings.noise * float(np.percentile(truth, 99)) / scale
    mask = (kspace[0] != 0).float()
    block = calibration_block(tuple(truth.shape), settings.calibration_lines)
    voxel = (settings.slice_thickness_mm, *settings.pixel_mm)
    data = volume_data(
        kspace / scale,
        mask,
        block,
        sigma_n,
        settings.acceleration * settings.partition_acceleration,
        voxel,
        settings.subject,
    )
    return ReferenceVolume(settings.contrast, data, (truth / scale).numpy(), torch.empty(0))


def full_volume(images: Path, contrast: str) -> ReferenceSlice:
    """A coarse one, fully sampled, on which `evaluate` tunes weights for volumes."""
    found = validation_volume(images, contrast, COARSE.get(contrast), full=True)
    where = np.ones(found.truth.shape, bool)
    return ReferenceSlice(f"validation {contrast} volume", 0, contrast, found.data, found.truth, where)


def _points(contrast: str, shape: tuple[int, ...], voxel: tuple[float, ...]) -> np.ndarray:
    """(partitions, rows, cols, 3) LPS mm, the origin in the middle."""
    axes = [(np.arange(size) - size // 2) * step for size, step in zip(shape, voxel)]
    partition, row, col = np.meshgrid(*axes, indexing="ij")
    points = (col, row, partition) if contrast == "swi" else (partition, row, -col)
    return np.stack(points, -1).astype(np.float32)


def calibration_block(shape: tuple[int, ...], size: int) -> tuple[slice, slice]:
    """Around the centre of k-space along partitions and rows."""
    first, second = (slice(max(side // 2 - size // 2, 0), side // 2 - size // 2 + size) for side in shape[:2])
    return first, second


def two_by_two(shape: tuple[int, ...], block: tuple[slice, slice]) -> torch.Tensor:
    """(partitions, rows) float32, 1 where acquired: every other line of every other row, shifted by one partition from
    row to row, and the block."""
    lines = torch.zeros(shape[:2])
    for row in range(shape[1] // 2 % 2, shape[1], 2):
        lines[(shape[0] // 2 + row // 2) % 2 :: 2, row] = 1
    lines[block] = 1
    return lines


def _acquired(
    contrast: str,
    magnitude: torch.Tensor,
    noise: float,
    voxel: tuple[float, float, float],
    points: np.ndarray,
    rng: np.random.Generator,
    full: bool,
) -> ReferenceVolume:
    shape = tuple(magnitude.shape)
    maps = torch.from_numpy(coil_maps(points, N_COILS))
    maps /= torch.linalg.vector_norm(maps, dim=0)
    phase = torch.from_numpy(1.2 * smooth_field(shape, 4, rng))
    image = magnitude * torch.polar(torch.ones(shape), phase)
    block = calibration_block(shape, BLOCK)
    lines = torch.ones(shape[:2]) if full else two_by_two(shape, block)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    mask = lines[..., None].expand(shape)
    kspace = torch.stack(
        [mask * (to_kspace(one * image, (0, 1, 2)) + noise * complex_noise(shape, generator)) for one in maps]
    )
    data = volume_data(kspace, mask, block, noise, 1 if full else 4, voxel)
    return ReferenceVolume(contrast, data, magnitude.numpy(), maps)


def volume_data(
    kspace: torch.Tensor,
    mask: torch.Tensor,
    block: tuple[slice, slice],
    sigma_n: float,
    acceleration: float,
    voxel_mm: tuple[float, float, float],
    number: int = 0,
) -> Volume:
    """A simulated scan. kspace, mask: as the volume has them; block: of the calibration; number: of the slab."""
    count, key, calibration = int(mask[..., 0].sum()), SliceKey(number), kspace[(slice(None), *block)].clone()
    return Volume(
        key, kspace, mask, calibration, sigma_n, "known", float(acceleration), count, count, key.seed_key,
        voxel_mm=voxel_mm,
    )  # fmt: skip
