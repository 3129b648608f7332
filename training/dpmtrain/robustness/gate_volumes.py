"""Volumes for `dpmtrain gate`: sound heads of label maps and phantoms, painted and mistreated ones, and other objects.

Each position along the readout is a problem of its own. So limits come from volumes that have few of them, far apart,
and planes across them as fine as a scan's; those that are judged are whole and coarse. The lines come as a scanner's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from dpmrecon.data import LostSlice, Slice
from dpmrecon.physics.fourier import crop_or_pad, to_image, to_kspace
from dpmrecon.physics.scale import image_scale
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.simulation.file import header_of
from dpmrecon.simulation.settings import SimulationSettings, VolumeSettings
from dpmrecon.simulation.slices import coil_maps, the_object

from ..data.items import Item
from ..data.labelmaps import read_label_map
from ..data.lesions import smooth_field
from .gate_cases import (
    PHANTOM,
    SOUND,
    WRAP_ONE_MAP,
    Case,
    alternate_shots_moved,
    collected,
    extent_of,
    folded,
    noise_only_coil,
    shift,
    spike,
    tumour,
    wrong_centre,
)

CONTRASTS = ("t1", "t2", "flair", "swi")
PIXEL_MM = (1.0, 4.0)
SIGMA_N = (0.005, 0.04)  # with more, and few calibration lines, coil maps of slabs do not fit
FACTORS = ((1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (2, 2), (3, 2))  # R of rows and partitions
COLUMNS = 20  # of a volume that sets limits
LARGEST, THINNEST = 90_000, 16  # voxels of one that is judged; partitions
N_COILS, BLOCKS = 5, (16, 20)  # calibration lines each way
FOLDS, HELD_OUT = "sound, folds", "training_seg_02"


@dataclass(frozen=True)
class Protocol:
    """How a volume is acquired: its size in voxels, (partitions, rows, cols), and from one to the next in mm; axial or
    sagittal partitions; R of rows and partitions; lines of the block each way; partitions that the middle of the field
    of view is off that of the head; sigma: of the noise, over the scale."""

    size: tuple[int, int, int]
    voxel_mm: tuple[float, float, float]
    axial: bool
    factors: tuple[int, int]
    block: int
    off: float
    sigma: float


@dataclass
class VolumeCase(Case):
    """A case of (n_coils, partitions, rows, cols)."""

    settings: VolumeSettings = VolumeSettings()


@lru_cache(maxsize=8)
def head_volume(images: Path, subject: str, contrast: str, seed: int) -> torch.Tensor:
    """Magnitudes at 1 mm, (slices, rows, cols) float32: upwards, to the back and to the left."""
    if subject == PHANTOM:
        settings = SimulationSettings(contrast=contrast, subject=seed)
        z, y, x = np.meshgrid(*(2 * (np.arange(size) - size // 2) for size in (96, 116, 96)), indexing="ij")
        head = np.abs(the_object(settings).magnitude(np.stack([x, y, z], -1).astype(np.float32), contrast))
        coarse = torch.from_numpy(head.astype(np.float32))[None, None]  # of 2 mm, which is quicker
        return torch.nn.functional.interpolate(coarse, scale_factor=2, mode="trilinear")[0, 0]
    path = images / f"synthseg_labels/{subject}.nii.gz"
    options = {"sequence": contrast, "number": 0, "seed": seed}
    (volume,), _ = read_label_map(Item("labels", subject, subject, contrast, "", "", (path,), options))
    return torch.from_numpy(np.ascontiguousarray(volume.slices, np.float32))


def protocol_of(head: torch.Tensor, contrast: str, whole: bool, rng: np.random.Generator) -> Protocol:
    """One by chance. whole: voxels are as large as LARGEST needs; else there are COLUMNS."""
    axial = contrast == "swi" or rng.random() < 0.3
    extent = [float(extent_of(head, axis)) for axis in ((0, 1, 2) if axial else (2, 1, 0))]
    margins = rng.uniform(6, 40, 3)
    pixel, thick = float(np.exp(rng.uniform(*np.log(PIXEL_MM)))), float(rng.uniform(1, 2.6 if axial else 1.5))
    slab, place = float(rng.uniform(0.4, 1.0)), float(rng.uniform(-0.5, 0.5))
    depth = slab * extent[0] if axial else extent[0] + margins[0]
    down, along = extent[1] + margins[1], extent[2] + margins[2]
    if whole:
        pixel = max(pixel, float(np.cbrt(depth * down * along / thick / LARGEST)))
    voxel = thick * pixel, pixel, pixel if whole else along / COLUMNS
    size = tuple(max(THINNEST, 2 * round(length / side / 2)) for length, side in zip((depth, down, along), voxel))
    choices = [pair for pair in FACTORS if pair[1] == 1 or size[0] >= 32]
    factors = choices[int(rng.integers(len(choices)))]
    block = min(int(rng.choice(BLOCKS)), *size[:2])
    off = place * (1 - slab) * extent[0] / voxel[0] if axial else 0.0
    return Protocol(size, voxel, axial, factors, block, off, float(np.exp(rng.uniform(*np.log(SIGMA_N)))))


def seen_by(head: torch.Tensor, protocol: Protocol) -> torch.Tensor:
    """(partitions, rows, cols) float32, the scale is 1: what the field of view holds. A column is as thick as rows are
    far apart."""
    (partitions, rows, cols), (thickness, pixel, step) = protocol.size, protocol.voxel_mm
    head = head if protocol.axial else head.permute(2, 1, 0).flip(2)
    middles = head.shape[2] / 2 + step * (np.arange(cols) - cols // 2)
    spans = [
        (round(middle - pixel / 2), max(round(middle + pixel / 2), round(middle - pixel / 2) + 1)) for middle in middles
    ]
    part = torch.stack([head[..., max(first, 0) : max(last, 0)].sum(-1) / (last - first) for first, last in spans], -1)
    off = round(protocol.off * thickness)
    for axis, extent in ((0, round(partitions * thickness)), (1, round(rows * pixel))):
        part = crop_or_pad(part, extent + 2 * abs(off) * (axis == 0), axis)
        part = crop_or_pad(part.roll(-off, 0) if axis == 0 else part, extent, axis)
    kspace = to_kspace(part, (0, 1))
    for axis, size in enumerate((partitions, rows)):
        kspace = crop_or_pad(kspace, size, axis)
    magnitude = to_image(kspace, (0, 1)).abs()
    return magnitude / image_scale(magnitude)


def volume_case(
    head: torch.Tensor, kind: str, protocol: Protocol, contrast: str, rng: np.random.Generator, part: float | None
) -> tuple[VolumeCase, np.ndarray]:
    """The case, and the truth (partitions, rows, cols) float32. part: of the head's extent along rows or partitions
    that the field of view holds, the rest folds; None: all of it."""
    image = seen_by(head, protocol)
    if kind in PAINTED:
        image = PAINTED[kind](image, points_of(protocol, centred=True), rng)
    shape, points = tuple(image.shape), points_of(protocol)
    maps = torch.from_numpy(coil_maps(points.numpy(), N_COILS, int(rng.integers(100))))
    phase = torch.from_numpy(1.2 * smooth_field(shape, 4, rng))
    coil_images = maps / torch.linalg.vector_norm(maps, dim=0) * torch.polar(image, phase)
    size = list(shape)
    if part is not None:
        axis = 1 if protocol.axial else int(rng.integers(2))
        size[axis] = max(THINNEST, 2 * round(part * extent_of(image, axis) / 2))
        coil_images = folded(coil_images, size[axis], axis + 1)
    clean = to_kspace(coil_images, (1, 2, 3))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    kspace = clean + protocol.sigma * complex_noise(tuple(clean.shape), generator)
    thickness, down, along = protocol.voxel_mm
    settings = VolumeSettings(
        contrast=contrast, matrix=(size[1], size[2]), fov_mm=(size[1] * down, size[2] * along), partitions=size[0],
        slice_thickness_mm=thickness, acceleration=protocol.factors[0], partition_acceleration=protocol.factors[1],
        caipirinha=int(min(protocol.factors) > 1 and rng.integers(2)),
        calibration_lines=min(protocol.block, size[0] // 2 * 2, size[1] // 2 * 2), n_coils=N_COILS,
        oversampling=1,
    )  # fmt: skip
    case = VolumeCase(
        kspace.numpy(), protocol.sigma, contrast, rng, protocol.factors[0], size[1] // 2, settings=settings
    )
    if kind in FAULTS:
        FAULTS[kind](case)
    return case, image.numpy()


def points_of(protocol: Protocol, centred: bool = False) -> torch.Tensor:
    """(partitions, rows, cols, 3) LPS mm from the middle of the head, or of the field of view."""
    axes = [(torch.arange(size) - size // 2) * side for size, side in zip(protocol.size, protocol.voxel_mm)]
    partition, row, col = torch.meshgrid(*(axis.float() for axis in axes), indexing="ij")
    if centred:
        return torch.stack((col, row, partition), -1)
    off = protocol.off * protocol.voxel_mm[0]
    return torch.stack((col, row, partition + off) if protocol.axial else (partition, row, -col), -1)


def volume_of(case: VolumeCase) -> Slice | LostSlice:
    """As a scanner's lines make it: undersampled, with a calibration block and a noise measurement."""
    settings, header = case.settings, header_of(case.settings)
    header.encoding[0].encodingLimits.kspace_encoding_step_1.center = case.center
    return collected(case, header, set(settings.grid_places()), set(settings.calibration_places()))


# ---- what is done to the image (partitions, rows, cols), given its voxels' places


Paint = Callable[[torch.Tensor, torch.Tensor, np.random.Generator], torch.Tensor]


def _balls(image: torch.Tensor, points: torch.Tensor, rng: np.random.Generator, *radii_mm: float) -> list[torch.Tensor]:
    """Soft, uneven balls around one place of the brain, 0 to 1."""
    inside = torch.nonzero((image > 0.3) & (torch.linalg.vector_norm(points, dim=-1) < 45))
    apart = points - points[tuple(inside[int(rng.integers(len(inside)))])]
    angle = torch.atan2(apart[..., 1], apart[..., 0])
    distance = torch.linalg.vector_norm(apart, dim=-1)
    uneven = 1 + 0.15 * torch.sin(3 * angle + float(rng.uniform(0, 6))) + 0.1 * torch.sin(5 * angle)
    return [((radius * uneven - distance) / 4 + 0.5).clamp(0, 1) for radius in radii_mm]


def mass(image: torch.Tensor, points: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A tumour: swelling around, a bright rim, a dark and uneven middle."""
    return tumour(image, _balls(image, points, rng, float(rng.uniform(23, 32)), 17, 12), 1.0, rng)


def cavity(image: torch.Tensor, points: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Tissue that was taken out: fluid in its place, as the ventricles' or dark."""
    (hole,) = _balls(image, points, rng, float(rng.uniform(14, 25)))
    return image * (1 - hole) + float(rng.choice([0.08, 0.9])) * hole


def blocks(image: torch.Tensor, points: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Cuboids of chance."""
    found = torch.zeros_like(image)
    for _ in range(int(rng.integers(25, 60))):
        middle, half = torch.from_numpy(rng.uniform(-60, 60, 3)), torch.from_numpy(rng.uniform(5, 35, 3))
        found[((points - middle).abs() < half).all(-1)] = float(rng.uniform(0.1, 1))
    return found


def fruit(image: torch.Tensor, points: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A round fruit with segments and pips."""
    radius, across = torch.linalg.vector_norm(points, dim=-1), torch.linalg.vector_norm(points[..., 1:], dim=-1)
    angle = torch.atan2(points[..., 2], points[..., 1])
    segments = (torch.sin(float(rng.integers(4, 7)) * angle + float(rng.uniform(0, 6))).abs() * across > 3).float()
    found = (radius < 80).float() * (0.3 + 0.6 * segments * (radius < 70).float())
    for _ in range(int(rng.integers(20, 50))):
        place = torch.from_numpy(rng.uniform(-40, 40, 3))
        found[torch.linalg.vector_norm(points - place, dim=-1) < 4] = 0.05
    return found


def bottle(image: torch.Tensor, points: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A cylinder of fluid with rods in it, as phantoms for quality assurance have them."""
    down, along, through = points.unbind(-1)
    found = ((torch.hypot(down, along) < 75) & (through.abs() < 80)).float()
    for _ in range(int(rng.integers(5, 12))):
        place, radius = rng.uniform(-50, 50, 2), float(rng.uniform(3, 12))
        found[torch.hypot(down - float(place[0]), along - float(place[1])) < radius] *= float(rng.uniform(0, 0.7))
    return found


# ---- what is done to k-space


def later_partitions_moved(case: Case) -> None:
    """The head moves once, in the middle of the scan, whose outer loop are the partitions."""
    pixels = float(case.rng.uniform(1.5, 3))
    partitions = case.kspace.shape[1]
    case.kspace[:, partitions // 2 + partitions // 10 :] *= shift(pixels, case.kspace.shape[-1])


def one_map(case: Case) -> None:
    case.one_map = True


PATHOLOGY: dict[str, Paint] = {"tumour-like mass": mass, "cavity": cavity}
OBJECTS: dict[str, Paint] = {"blocks": blocks, "fruit": fruit, "bottle": bottle}
FAULTS = {
    "spike": spike,
    "wrong centre": wrong_centre,
    "alternate shots moved": alternate_shots_moved,
    "later partitions moved": later_partitions_moved,
    "noise-only coil": noise_only_coil,
    WRAP_ONE_MAP: one_map,
}
PAINTED = {**PATHOLOGY, **{f"object: {name}": paint for name, paint in OBJECTS.items()}}
KINDS = (SOUND, FOLDS, *PAINTED, *FAULTS)
