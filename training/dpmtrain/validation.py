"""Validation scans with known truth: patient09 FLAIR slices and slices simulated from a held-out label map.

They go through the same maps, scale and samplers as a scan does in dpmrecon.
"""

from pathlib import Path

import numpy as np
import torch
from dpmrecon.acquisitions import Slice, SliceKey
from dpmrecon.denoiser import complex_noise
from dpmrecon.fourier import crop_or_pad, to_image, to_kspace
from dpmrecon.reconstruct import MappedSlice, with_coil_maps
from dpmrecon.scale import image_scale
from dpmrecon.simulate import coil_maps

from .dataset import random_phase
from .prepare import axial, pixel_size, simulated_slices

HELD_OUT = ("patient09", "patient12", "training_seg_02")  # never trained on; patient12 is not tuned on either
N_COILS = 8


def validation_slices(
    images: Path, acceleration: int, calibration_lines: int
) -> list[tuple[str, MappedSlice, np.ndarray]]:
    """(contrast, slice with maps, truth (rows, cols)): three FLAIR slices of patient09 at 256x256 with noise of
    2.1 % of the scale, and three T1 and one T2 slices of the held-out label map at 180 rows with noise of 0.75 %."""
    path = images / "open_ms/patient09/study2_FLAIR.nii.gz"
    flair = [at_pixel_size(image, pixel_size(path), 0.9, (256, 256)) for image in axial(path)[[16, 22, 28]]]
    labels = images / "synthseg_labels/training_seg_02.nii.gz"
    cases = [("flair", image, 0.021) for image in flair]
    for contrast, count in (("t1", 3), ("t2", 1)):
        for image in simulated_slices(labels, contrast, count, seed=5):
            top = (image.shape[0] - 180) // 2
            cases.append((contrast, torch.from_numpy(image[top : top + 180].copy()), 0.0075))
    found = []
    for number, (contrast, magnitude, sigma) in enumerate(cases):
        generator = torch.Generator().manual_seed(number)
        data, truth = acquire(magnitude, sigma, acceleration, calibration_lines, generator)
        (mapped,) = with_coil_maps([data], torch.device("cpu"))
        assert isinstance(mapped, MappedSlice), mapped.reason
        found.append((contrast, mapped, truth))
    return found


def at_pixel_size(image: np.ndarray, old_mm: float, new_mm: float, shape: tuple[int, int]) -> torch.Tensor:
    """Magnitude at a coarser pixel size by cropping k-space, then cropped or padded to `shape`."""
    kspace = to_kspace(torch.from_numpy(image.copy()))
    for axis, size in enumerate(image.shape):
        kspace = crop_or_pad(kspace, round(size * old_mm / new_mm), axis)
    magnitude = to_image(kspace).abs()
    for axis, size in enumerate(shape):
        magnitude = crop_or_pad(magnitude, size, axis)
    return magnitude


def acquire(
    magnitude: torch.Tensor, sigma: float, acceleration: int, calibration_lines: int, generator: torch.Generator
) -> tuple[Slice, np.ndarray]:
    """A regularly undersampled multi-coil slice with random smooth phase; sigma is relative to the scale."""
    rows, cols = magnitude.shape
    image = magnitude / image_scale(magnitude) * random_phase(magnitude.shape, 1.0, generator)
    down, along = np.meshgrid(np.linspace(-115, 115, rows), np.linspace(-115, 115, cols), indexing="ij")
    maps = torch.from_numpy(coil_maps(np.stack([along, down, 0 * down], -1).astype(np.float32), N_COILS))
    maps = maps / maps.abs().square().sum(0).sqrt()
    mask = torch.zeros(rows, cols)
    mask[rows // 2 % acceleration :: acceleration] = 1
    first = rows // 2 - calibration_lines // 2
    mask[first : first + calibration_lines] = 1
    kspace = mask * (to_kspace(maps * image) + sigma * complex_noise((N_COILS, rows, cols), generator))
    key = SliceKey(0, 0, 0, 0, 0, int(generator.initial_seed()))
    data = Slice(
        key=key,
        kspace=kspace,
        mask=mask,
        calibration=kspace[:, first : first + calibration_lines],
        sigma_n=sigma,
        noise_source="known",
        header=None,
        acceleration=acceleration,
        n_lines_got=int(mask[:, 0].sum()),
        n_lines_needed=int(mask[:, 0].sum()),
    )
    return data, image.abs().numpy()
