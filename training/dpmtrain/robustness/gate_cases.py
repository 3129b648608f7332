"""Slices for `dpmtrain gate`: sound heads, and such as are painted, mistreated or no heads at all.

Everything is a magnitude image, or its fully sampled k-space, so that a case is the same at every R.
"""

import math
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import torch
from dpmrecon.contrasts import CONTRAST_LABELS, label_of
from dpmrecon.data import LostSlice, Slice
from dpmrecon.mrd.collect import slices
from dpmrecon.physics.fourier import crop_or_pad, to_kspace
from dpmrecon.physics.scale import image_scale
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.simulation.file import header_of
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.slices import simulated_kspace

from ..data.dataset import random_phase
from ..data.images import axial, pixel_size
from ..data.labelmaps import SEQUENCES, simulated_slices
from ..evaluate.validation import MATRIX, PIXEL_MM, at_pixel_size, unit_maps

CALIBRATION, NOISE_LINES = 24, 64
LABEL_MAPS = tuple(f"training_seg_{number:02}" for number in (3, 5, 8, 11, 14, 17, 20))
# subjects that set the limits: all but patient09 and the phantom were trained on
SETTING = ("patient01", "patient03", "patient04", "patient09", *LABEL_MAPS, "phantom")
PHANTOM, LABELS = "phantom", ("flair", "t1", "t2", "dwi")
# and those that are judged, none of which was
JUDGING = ("patient12", "training_seg_02", "phantom")
LOWEST, HIGHEST = 0.35, 0.8  # of a volume, that slices are taken from
COARSER = (1.0, 1.0, 0.75, 0.5)  # of a slice's matrix, in turn


@dataclass(frozen=True)
class Head:
    """A magnitude (rows, cols) float32 and its contrast."""

    subject: str
    contrast: str
    image: torch.Tensor


@dataclass
class Case:
    """kspace: (n_coils, rows, cols) complex64, of a volume (n_coils, partitions, rows, cols), all of it with noise;
    sigma: of the noise, a real channel; label: contrast that is told to the prior; rng: for what is drawn;
    acceleration, center: of the rows; one_map: the second set of maps is not used."""

    kspace: np.ndarray
    sigma: float
    label: str
    rng: np.random.Generator
    acceleration: int
    center: int
    one_map: bool = False


def heads(images: Path, subjects: tuple[str, ...], count: int, seed: int) -> Iterator[Head]:
    """About `count` of each subject, of its volumes or contrasts in turn, none twice, at pixels of several sizes."""
    for subject in subjects:
        for number, head in enumerate(_heads(images, subject, count, seed)):
            factor = COARSER[(number + seed) % len(COARSER)]
            shape = tuple(round(factor * size) for size in head.image.shape)
            coarse = at_pixel_size(head.image.numpy(), 1.0, 1 / factor, (shape[0], shape[1]))
            yield Head(head.subject, head.contrast, coarse)


def _heads(images: Path, subject: str, count: int, seed: int) -> Iterator[Head]:
    volumes = sorted((images / "open_ms" / subject).glob("*.nii.gz"))
    for path in volumes:
        volume, name = axial(path), path.name.split(".")[0]
        places = np.linspace(LOWEST * len(volume), HIGHEST * len(volume), -(-count // len(volumes)) + 1)[:-1]
        for number in dict.fromkeys(places.astype(int).tolist()):
            image = at_pixel_size(volume[number], pixel_size(path), PIXEL_MM, MATRIX)
            yield Head(f"{subject}/{name}", str(label_of(name)), image)
    path = images / f"synthseg_labels/{subject}.nii.gz"
    for name, sequence in SEQUENCES.items() if path.is_file() else ():
        found = simulated_slices(path, name, -(-count // len(SEQUENCES)), seed)
        even = found.shape[1] // 2 * 2  # a head that ends at the edge would wrap
        for image in found[:, :even, :even]:
            yield Head(f"{subject}/{name}", sequence.contrast, torch.from_numpy(image.copy()))
    if subject == PHANTOM:
        for number in range(count):
            contrast = LABELS[number % len(LABELS)]
            settings = SimulationSettings(
                matrix=(192, 192), n_coils=4, n_slices=1, acceleration=1, contrast=contrast, subject=100 * seed + number
            )
            truth = np.abs(simulated_kspace(settings)[1]).astype(np.float32)
            yield Head(f"{PHANTOM}/{contrast}", contrast, torch.from_numpy(truth))


# ---- what is done to the image


Paint = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]


def grid(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of every pixel, -1 to 1."""
    rows, cols = image.shape
    down, along = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, cols), indexing="ij")
    return down, along


def _blob(image: torch.Tensor, rng: np.random.Generator, *radii: float, rim: float = 0.04) -> list[torch.Tensor]:
    """Soft, uneven discs around one place of the brain, 0 to 1, of these radii (1 is half of the field of view)."""
    down, along = grid(image)
    inside = torch.nonzero((image > 0.3 * image_scale(image)) & (torch.hypot(down, along) < 0.4))
    row, col = inside[int(rng.integers(len(inside)))].tolist()
    down, along, turn = down - down[row, 0], along - along[0, col], float(rng.uniform(0, 6))
    angle, distance = torch.atan2(down, along), torch.hypot(down, along)
    uneven = 1 + 0.15 * torch.sin(3 * angle + turn) + 0.1 * torch.sin(5 * angle)
    return [((radius * uneven - distance) / rim + 0.5).clamp(0, 1) for radius in radii]


def mass(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A tumour: swelling around, a bright rim, a dark and uneven middle."""
    return tumour(image, _blob(image, rng, float(rng.uniform(0.2, 0.28)), 0.15, 0.11), float(image_scale(image)), rng)


def tumour(image: torch.Tensor, parts: list[torch.Tensor], level: float, rng: np.random.Generator) -> torch.Tensor:
    """parts: swelling, rim and middle, 0 to 1; level: the image's scale."""
    swelling, rim, middle = parts
    image = image * (1 + 0.4 * swelling)
    image = image * (1 - rim) + 1.1 * level * rim
    texture = 1 + 0.2 * torch.from_numpy(rng.standard_normal(image.shape).astype(np.float32))
    return image * (1 - middle) + 0.25 * level * texture.clamp(0.2, 2) * middle


def cavity(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Tissue that was taken out: fluid in its place, as the ventricles' or dark."""
    (hole,) = _blob(image, rng, float(rng.uniform(0.12, 0.22)), rim=0.03)
    return image * (1 - hole) + float(rng.choice([0.08, 0.9])) * image_scale(image) * hole


def shunt(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A catheter from the skull to the middle: a dark tube of 3 mm with a thin bright wall."""
    down, along = grid(image)
    turn = float(rng.uniform(0, 2 * math.pi))
    across = -math.sin(turn) * along + math.cos(turn) * down
    way = math.cos(turn) * along + math.sin(turn) * down
    here = ((way > 0.05) & (way < 0.75)).float()
    wall, tube = ((0.026 - across.abs()) / 0.01).clamp(0, 1) * here, ((0.016 - across.abs()) / 0.01).clamp(0, 1) * here
    image = image * (1 - wall) + 0.7 * image_scale(image) * wall
    return image * (1 - tube)


def child(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A head of 65 to 80 % the size in its field of view."""
    return _zoomed(image, float(rng.uniform(0.65, 0.8)))


def _zoomed(image: torch.Tensor, factor: float) -> torch.Tensor:
    shape = [round(factor * size) for size in image.shape]
    small = torch.nn.functional.interpolate(image[None, None], shape, mode="bilinear", antialias=True)[0, 0]
    for axis, size in enumerate(image.shape):
        small = crop_or_pad(small, size, axis)
    return small


def shaded(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """As at 7 T: bright in the middle, dark at the temples."""
    down, along = grid(image)
    shift, turn = rng.uniform(-0.15, 0.15, 2), float(rng.uniform(0, math.pi))
    down, along = down - float(shift[0]), along - float(shift[1])
    long = math.cos(turn) * along + math.sin(turn) * down
    return image * (0.25 + 1.5 * torch.exp(-(torch.hypot(down, along) ** 2 + 0.6 * long**2) / 0.25))


def metal(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A void with a bright, sharp edge on one side."""
    (hole,) = _blob(image, rng, float(rng.uniform(0.15, 0.3)), rim=0.02)
    edge = (hole - hole.roll(int(rng.integers(3, 6)), 1)).clamp_min(0)
    return image * (1 - hole) + 2.5 * image_scale(image) * edge


def camera(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    from skimage.data import camera as picture

    return placed(picture(), image, rng)


def shepp_logan(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    from skimage.data import shepp_logan_phantom

    return placed(shepp_logan_phantom(), image, rng)


def placed(picture: np.ndarray, like: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A picture, turned by chance, in the middle of the field of view."""
    turned = torch.from_numpy(np.rot90(picture, int(rng.integers(4))).astype(np.float32).copy())
    size = round(float(rng.uniform(0.75, 0.9)) * min(like.shape))
    found = torch.nn.functional.interpolate(turned[None, None], (size, size), mode="bilinear", antialias=True)[0, 0]
    for axis, extent in enumerate(like.shape):
        found = crop_or_pad(found, extent, axis)
    return found.clamp_min(0)


def blocks(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Rectangles of chance."""
    rows, cols = image.shape
    found = torch.zeros(rows, cols)
    for _ in range(int(rng.integers(15, 40))):
        top, left = int(rng.integers(rows // 8, rows * 3 // 4)), int(rng.integers(cols // 8, cols * 3 // 4))
        height, width = rng.integers(8, 60, 2)
        bottom, right = min(rows * 7 // 8, top + int(height)), min(cols * 7 // 8, left + int(width))
        found[top:bottom, left:right] = float(rng.uniform(0.1, 1))
    return found


def knee(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Two condyles with trabeculae, cartilage and muscle, that fill the field of view along the rows."""
    down, along = grid(image)
    wave = 0.05 * torch.sin(3 * down + float(rng.uniform(0, 6)))
    found = ((along + wave).abs() < float(rng.uniform(0.5, 0.65))).float() * 0.4
    for place, size in ((-0.47, 0.43), (0.52, 0.45)):
        bone = (torch.hypot(along / size, (down - place) / size) < 1).float()
        texture = 1 + 0.15 * torch.from_numpy(rng.standard_normal(image.shape).astype(np.float32))
        found = found * (1 - bone) + 0.85 * texture.clamp(0.5, 1.5) * bone
        shell = ((torch.hypot(along / size, (down - place) / size) - 1).abs() < 0.05).float()
        found = found * (1 - shell)
    gap = (down - 0.02).abs() < 0.04
    return torch.where(gap & (along.abs() < 0.42), torch.full_like(found, 0.95), found)


def fruit(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A round fruit with segments and pips."""
    down, along = grid(image)
    radius, angle = torch.hypot(down, along), torch.atan2(down, along)
    walls = (torch.sin(float(rng.integers(4, 7)) * angle + float(rng.uniform(0, 6))).abs() * radius > 0.03).float()
    found = (radius < 0.75).float() * (0.3 + 0.6 * walls * (radius < 0.66).float())
    for _ in range(int(rng.integers(6, 16))):
        turn, far = rng.uniform(0, 2 * math.pi), rng.uniform(0.1, 0.4)
        found[torch.hypot(down - float(far * math.sin(turn)), along - float(far * math.cos(turn))) < 0.025] = 0.05
    return found


# ---- what is done to k-space


Spoil = Callable[[Case], None]


def spike(case: Case) -> None:
    coil, row = int(case.rng.integers(len(case.kspace))), case.kspace.shape[-2] // 2 + int(case.rng.integers(-8, 8))
    sample = int(case.rng.integers(*near_the_middle(case.kspace.shape[-1])))
    partition = tuple(size // 2 for size in case.kspace.shape[1:-2])
    case.kspace[(coil, *partition, row, sample)] += 2 * np.abs(case.kspace).max()


def near_the_middle(samples: int) -> tuple[int, int]:
    """Of a readout, for a spike, away from what bounds it."""
    margin = min(20, samples // 2 - 1)
    return margin, samples - margin


def alternate_shots_moved(case: Case) -> None:
    """Of two interleaves one, 3 pixels along the readout."""
    rows = np.zeros(case.kspace.shape[-2], bool)
    step = case.acceleration
    rows[case.center % step :: 2 * step] = True  # every other acquired line
    _moved_rows(case, rows, 3.0)


def half_moved(case: Case) -> None:
    """The head moves once, in the middle of the scan."""
    rows = np.zeros(case.kspace.shape[-2], bool)
    rows[case.center + 6 :] = True
    _moved_rows(case, rows, float(case.rng.uniform(2, 4)))


def _moved_rows(case: Case, rows: np.ndarray, pixels: float) -> None:
    case.kspace[..., rows, :] *= shift(pixels, case.kspace.shape[-1])


def shift(pixels: float, samples: int) -> np.ndarray:
    """(samples,) complex64: what moves a readout by so many pixels."""
    place = np.arange(samples) - samples // 2
    return np.exp(-2j * np.pi * pixels * place / samples).astype(np.complex64)


def wrong_centre(case: Case) -> None:
    """The header's centre line is an eighth of the lines beside the true one."""
    case.center += int(case.rng.choice([-1, 1])) * (case.kspace.shape[-2] // 8)


def noise_only_coil(case: Case) -> None:
    coil = int(case.rng.integers(len(case.kspace)))
    shape = case.kspace.shape[1:]
    part = case.rng.standard_normal((*shape, 2)).astype(np.float32)
    case.kspace[coil] = case.sigma * part.view(np.complex64)[..., 0]


def dead_coil(case: Case) -> None:
    case.kspace[int(case.rng.integers(len(case.kspace)))] = 0


def clipped(case: Case) -> None:
    """The receiver ends at a quarter of what the loudest coil would have."""
    limit = float(np.abs(case.kspace.view(np.float32)).max()) * float(case.rng.uniform(0.15, 0.4))
    case.kspace = np.clip(case.kspace.view(np.float32), -limit, limit).view(np.complex64)


def wrap(case: Case) -> None:
    """Every other line of k-space alone: a field of view of half the size."""
    case.kspace = np.ascontiguousarray(case.kspace[:, case.center % 2 :: 2])
    case.center = case.kspace.shape[1] // 2


def wrap_one_map(case: Case) -> None:
    wrap(case)
    case.one_map = True


def other_label(case: Case) -> None:
    others = [name for name in CONTRAST_LABELS if name != case.label]
    case.label = str(case.rng.choice(others))


def very_noisy(case: Case) -> None:
    extra = case.sigma * math.sqrt(float(case.rng.uniform(60, 150)))
    part = case.rng.standard_normal((*case.kspace.shape, 2)).astype(np.float32)
    case.kspace = case.kspace + extra * part.view(np.complex64)[..., 0]
    case.sigma = math.hypot(case.sigma, extra)


SOUND, WRAP_ONE_MAP = "sound", "wrap, one map"
PATHOLOGY: dict[str, Paint] = {"tumour-like mass": mass, "cavity": cavity, "shunt": shunt}
OBJECTS: dict[str, Paint] = {
    "camera": camera, "Shepp-Logan": shepp_logan, "blocks": blocks, "knee": knee, "fruit": fruit
}  # fmt: skip
BODIES: dict[str, Paint] = {"smaller head": child, "shading of 7 T": shaded, "metal": metal}
FAULTS: dict[str, Spoil] = {
    "spike": spike,
    "wrap": wrap,
    WRAP_ONE_MAP: wrap_one_map,
    "wrong centre": wrong_centre,
    "alternate shots moved": alternate_shots_moved,
    "second half moved": half_moved,
    "noise-only coil": noise_only_coil,
    "dead coil": dead_coil,
    "clipped receiver": clipped,
    "other label": other_label,
    "very noisy": very_noisy,
}
PAINTED = {**PATHOLOGY, **BODIES, **{f"object: {name}": paint for name, paint in OBJECTS.items()}}
KINDS = (SOUND, *PAINTED, *FAULTS)


def folded(coil_images: torch.Tensor, size: int, axis: int) -> torch.Tensor:
    """As a field of view of `size` points along the axis has them: what lies beyond it comes in from the other side."""
    folds = -(-coil_images.shape[axis] // size) | 1  # an odd number: whole and middle share their origin
    return crop_or_pad(coil_images, folds * size, axis).unflatten(axis, (folds, size)).sum(axis)


def extent_of(image: torch.Tensor, axis: int) -> int:
    """Points along an axis that the head takes."""
    seen = (image > 0.05 * image.max()).movedim(axis, 0).flatten(1).any(1).nonzero()
    return int(seen[-1] - seen[0]) + 1


def case_of(
    head: Head, kind: str, acceleration: int, sigma: float, rng: np.random.Generator, part: float | None = None
) -> tuple[Case, np.ndarray]:
    """The case, and the truth (rows, cols) float32. sigma: of the noise, over the scale; part: of the head's extent
    along the lines that the field of view holds, the rest folds; None: all of it."""
    image = PAINTED[kind](head.image, rng) if kind in PAINTED else head.image
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    rows, cols = image.shape
    filled = image / image_scale(image) * random_phase(image.shape, 1.0, generator)
    coil_images = unit_maps(rows, cols) * filled
    if part is not None:
        coil_images = folded(coil_images, 2 * round(part * extent_of(image, 0) / 2), 1)
        rows = coil_images.shape[1]
    clean = to_kspace(coil_images)
    kspace = clean + sigma * complex_noise(tuple(clean.shape), generator)
    case = Case(kspace.numpy(), sigma, head.contrast, rng, acceleration, rows // 2)
    if kind in FAULTS:
        FAULTS[kind](case)
    return case, filled.abs().numpy()


def noise_lines(case: Case) -> list[ismrmrd.Acquisition]:
    """A noise measurement, as long as the case's lines."""
    shape = (len(case.kspace), 2 * case.kspace.shape[-1])
    lines = []
    for _ in range(NOISE_LINES):
        part = case.rng.standard_normal(shape).astype(np.float32).view(np.complex64)
        lines.append(ismrmrd.Acquisition.from_array(case.sigma * part, sample_time_us=5.0))
        lines[-1].set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    return lines


def slice_of(case: Case) -> Slice | LostSlice:
    """As a scanner's lines make it: undersampled, with calibration lines and a noise measurement."""
    n_coils, rows, cols = case.kspace.shape
    true_center = rows // 2
    settings = SimulationSettings(
        matrix=(rows, cols), n_coils=n_coils, n_slices=1, oversampling=1, acceleration=case.acceleration,
        calibration_lines=min(CALIBRATION, rows // 2), contrast=case.label,
    )  # fmt: skip
    header = header_of(settings)
    limits = header.encoding[0].encodingLimits.kspace_encoding_step_1
    limits.minimum, limits.maximum, limits.center = 0, rows - 1, case.center
    grid = {(row,) for row in range(rows) if (row - true_center) % case.acceleration == 0}
    half = settings.calibration_lines // 2
    return collected(case, header, grid, {(row,) for row in range(true_center - half, true_center + half)})


def collected(
    case: Case,
    header: ismrmrd.xsd.ismrmrdHeader,
    grid: Set[tuple[int, ...]],
    calibration: Set[tuple[int, ...]],
) -> Slice | LostSlice:
    """What the collector makes of these lines and a noise measurement. Places: (row,), of a volume (partition, row)."""
    lines = noise_lines(case)
    for place in sorted(grid | calibration):
        where: tuple[Any, ...] = (slice(None), *place)
        samples = np.ascontiguousarray(case.kspace[where])
        line = ismrmrd.Acquisition.from_array(samples, sample_time_us=5.0, center_sample=samples.shape[1] // 2)
        line.idx.kspace_encode_step_2, line.idx.kspace_encode_step_1 = (0, *place)[-2:]
        if place in calibration:
            both = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING
            line.set_flag(both if place in grid else ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        lines.append(line)
    (found,) = slices(lines, header)
    return found
