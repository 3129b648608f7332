"""Simulated slices with a known truth, for `evaluate`, `sweep` and `bench`.

They go through maps, scale and samplers as scans do in dpmrecon. Never trained on: patient09 and a label map, on which
settings are chosen, and patient12, on which nothing is chosen.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from dpmrecon.contrasts import label_of
from dpmrecon.data import Slice, SliceKey
from dpmrecon.errors import BadInputError
from dpmrecon.physics.fourier import crop_or_pad, to_image, to_kspace
from dpmrecon.physics.scale import image_scale
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.simulation.slices import coil_maps

from ..data.dataset import random_phase
from ..data.images import axial, pixel_size
from ..data.labelmaps import SEQUENCES, simulated_slices
from .references import ReferenceSlice
from .undersampling import regular

N_COILS = 8
# noise over the scale: what the shared FLAIR and T1 scans have
SIGMA_N = {"flair": 0.021, "t1": 0.0075, "t2": 0.0075, "dwi": 0.021, "swi": 0.021}
PIXEL_MM, MATRIX = 0.9, (256, 256)


@lru_cache
def validation_scan(images: Path, contrast: str, sigma: float | None = None) -> list[ReferenceSlice]:
    """Three slices: FLAIR of patient09 at 256x256, others from the held-out label map, 180 rows.

    sigma: of the noise, over the scale; None: SIGMA_N.

    Raises BadInputError where the images lack them, or there are none of that contrast.
    """
    if contrast not in SIGMA_N:
        raise BadInputError(f"there is no validation scan of contrast '{contrast}': there are {', '.join(SIGMA_N)}")
    if contrast == "flair":
        path = images / "open_ms/patient09/study2_FLAIR.nii.gz"
        _check(path)
        slices = [at_pixel_size(image, pixel_size(path), PIXEL_MM, MATRIX) for image in axial(path)[[16, 22, 28]]]
    else:
        path = images / "synthseg_labels/training_seg_02.nii.gz"
        _check(path)
        slices = _simulated(path, "dwi_b1000" if contrast == "dwi" else contrast, 3)
    return [full_slice(f"validation {contrast}", number, contrast, s, sigma) for number, s in enumerate(slices)]


def _check(path: Path) -> None:
    if not path.is_file():
        raise BadInputError(f"{path} does not exist: give the folder with open_ms/ and synthseg_labels/ as --images")


def subject_slices(images: Path, subject: str, n_slices: int) -> Iterator[ReferenceSlice]:
    """`n_slices` from the middle of every volume of a patient (open_ms), or of every contrast of a label map.

    Raises BadInputError where the subject has no volume.
    """
    volumes, labels = volumes_of(images, subject), images / f"synthseg_labels/{subject}.nii.gz"
    if not volumes and not labels.is_file():
        raise BadInputError(f"{images} has neither open_ms/{subject}/ nor {labels.name}: name a subject that is there")
    for path in volumes:
        yield from volume_slices(path, n_slices)
    if not volumes:
        content = _digest(labels)
        for name, sequence in SEQUENCES.items():
            for number, magnitude in enumerate(_simulated(labels, name, n_slices)):
                found = full_slice(f"{subject}/{name}", number, sequence.contrast, magnitude)
                yield replace(found, subject=subject, content=content)


def volumes_of(images: Path, subject: str) -> list[Path]:
    """Of a patient of open_ms; empty where there is none of that name."""
    return sorted((images / "open_ms" / subject).glob("*.nii.gz"))


def volume_slices(path: Path, numbers: int | Sequence[int]) -> Iterator[ReferenceSlice]:
    """Those numbers of a volume of `volumes_of`, or that many from its middle.

    Raises BadInputError where there is no such volume, or it is shorter.
    """
    _check(path)
    name = path.name.split(".")[0]
    volume, content = axial(path), _digest(path)
    if isinstance(numbers, int):
        middle = np.linspace(0.4 * len(volume), 0.75 * len(volume), numbers + 1)[:-1].astype(int)
        numbers = list(dict.fromkeys(middle.tolist()))
    if not all(0 <= number < len(volume) for number in numbers):
        raise BadInputError(f"{path} has slices 0 to {len(volume) - 1}, and not all of {list(numbers)}")
    subject = path.parent.name
    for number in numbers:
        magnitude = at_pixel_size(volume[number], pixel_size(path), PIXEL_MM, MATRIX)
        found = full_slice(f"{subject}/{name}", number, str(label_of(name)), magnitude)
        yield replace(found, subject=subject, content=content)


def _digest(path: Path) -> str:
    """Of the file: another one of this name has other scores."""
    return sha256(path.read_bytes()).hexdigest()


def _simulated(labels: Path, sequence: str, count: int) -> list[torch.Tensor]:
    slices = simulated_slices(labels, sequence, count, seed=5)
    top = max(0, (slices.shape[1] - 180) // 2)
    cols = slices.shape[2] // 2 * 2  # BART's pics needs even sizes
    return [torch.from_numpy(image[top : top + 180, :cols].copy()) for image in slices]


def at_pixel_size(image: np.ndarray, old_mm: float, new_mm: float, shape: tuple[int, int]) -> torch.Tensor:
    """Magnitude at a coarser pixel size, by cropped k-space, then of `shape`."""
    kspace = to_kspace(torch.from_numpy(image.copy()))
    for axis, size in enumerate(image.shape):
        kspace = crop_or_pad(kspace, round(size * old_mm / new_mm), axis)
    magnitude = to_image(kspace).abs()
    for axis, size in enumerate(shape):
        magnitude = crop_or_pad(magnitude, size, axis)
    return magnitude


def full_slice(
    scan: str, number: int, contrast: str, magnitude: torch.Tensor, sigma: float | None = None
) -> ReferenceSlice:
    """A simulated acquisition of `magnitude`; phase and noise depend on scan and number alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{scan} {number}".encode()))
    data, coil_images, truth = _acquired(magnitude, sigma or SIGMA_N[contrast], number, generator)
    return ReferenceSlice(scan, number, contrast, data, truth, np.ones_like(truth, dtype=bool), coil_images)


def acquire(
    magnitude: torch.Tensor, sigma: float, acceleration: int, calibration_lines: int, generator: torch.Generator
) -> tuple[Slice, np.ndarray]:
    """A regularly undersampled multi-coil slice with random smooth phase; sigma is relative to the scale."""
    data, _, truth = _acquired(magnitude, sigma, int(generator.initial_seed()), generator)
    return regular(data, acceleration, calibration_lines), truth


def unit_maps(rows: int, cols: int) -> torch.Tensor:
    """(N_COILS, rows, cols) complex64 over 230 mm, the sum of |s|^2 is 1."""
    down, along = np.meshgrid(np.linspace(-115, 115, rows), np.linspace(-115, 115, cols), indexing="ij")
    maps = torch.from_numpy(coil_maps(np.stack([along, down, 0 * down], -1).astype(np.float32), N_COILS))
    return maps / maps.abs().square().sum(0).sqrt()


def _acquired(
    magnitude: torch.Tensor, sigma: float, number: int, generator: torch.Generator
) -> tuple[Slice, torch.Tensor, np.ndarray]:
    """(fully sampled slice, coil images without noise, truth)."""
    rows, cols = magnitude.shape
    image = magnitude / image_scale(magnitude) * random_phase(magnitude.shape, 1.0, generator)
    coil_images = unit_maps(rows, cols) * image
    kspace = to_kspace(coil_images) + sigma * complex_noise((N_COILS, rows, cols), generator)
    data = Slice(
        key=SliceKey(number),
        kspace=kspace,
        mask=torch.ones(rows, cols),
        calibration=kspace,
        sigma_n=sigma,
        noise_source="known",
        acceleration=1,
        n_lines_got=rows,
        n_lines_needed=rows,
        seed_key=(0, 0, 0, 0, 0, number),
    )
    return data, coil_images, image.abs().numpy()
