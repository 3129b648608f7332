"""Simulated scans with known truth, and how slices are undersampled for `evaluate`, `sweep` and the validation scans.

They go through the same maps, scale and samplers as a scan does in dpmrecon. Never trained on: patient09 and a label
map, on which settings are chosen, and patient12, on which nothing is chosen.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from dpmrecon.acquisitions import Slice, SliceKey
from dpmrecon.conventional import slice_scale, zero_filled
from dpmrecon.denoiser import complex_noise
from dpmrecon.errors import BadInputError
from dpmrecon.forward import ForwardModel
from dpmrecon.fourier import crop_or_pad, to_image, to_kspace
from dpmrecon.reconstruct import MappedSlice, with_coil_maps
from dpmrecon.scale import image_scale
from dpmrecon.simulate import coil_maps

from .dataset import random_phase
from .labelmaps import SEQUENCES, simulated_slices
from .readers import label_of
from .readers_images import axial, pixel_size

HELD_OUT = ("patient09", "patient12", "training_seg_02")  # never trained on; patient12 is not tuned on either
N_COILS = 8
MASKS = ("regular", "random", "poisson")
CPU = torch.device("cpu")
# noise as a fraction of the scale: what the shared FLAIR and T1 scans have
SIGMA_N = {"flair": 0.021, "t1": 0.0075, "t2": 0.0075, "dwi": 0.021, "swi": 0.021}
PIXEL_MM, MATRIX = 0.9, (256, 256)


@dataclass
class FullSlice:
    """A fully sampled slice to undersample.

    data: its noisy k-space; truth: magnitude (rows, cols) float32; mask: bool, where to score; coil_images: without
    noise, (n_coils, rows, cols) complex64, None where not known; header: of a measured scan, None for a simulated one.
    """

    scan: str
    number: int
    contrast: str | None
    data: Slice
    truth: np.ndarray
    mask: np.ndarray
    coil_images: torch.Tensor | None = None
    header: object = None


def validation_slices(
    images: Path, acceleration: int, calibration_lines: int, contrasts: tuple[str, ...] = ("flair", "t1", "t2")
) -> list[tuple[str, MappedSlice, np.ndarray]]:
    """(contrast, slice with maps, truth (rows, cols)) of every validation slice, regularly undersampled."""
    found = []
    for contrast in contrasts:
        for full in validation_scan(images, contrast):
            mask = sampling_mask("regular", full.truth.shape, acceleration, calibration_lines, full.number)
            data = undersampled(full.data, mask, acceleration, calibration_lines)
            found.append((contrast, with_maps(data, CPU), full.truth))
    return found


@lru_cache
def validation_scan(images: Path, contrast: str) -> list[FullSlice]:
    """Three slices: FLAIR of patient09 at 256x256, other contrasts simulated from the held-out label map, 180 rows.

    Raises BadInputError where the images lack them.
    """
    if contrast == "flair":
        path = images / "open_ms/patient09/study2_FLAIR.nii.gz"
        _check(path)
        slices = [at_pixel_size(image, pixel_size(path), PIXEL_MM, MATRIX) for image in axial(path)[[16, 22, 28]]]
    else:
        path = images / "synthseg_labels/training_seg_02.nii.gz"
        _check(path)
        slices = _simulated(path, "dwi_b1000" if contrast == "dwi" else contrast, 3)
    return [full_slice(f"validation {contrast}", number, contrast, s) for number, s in enumerate(slices)]


def _check(path: Path) -> None:
    if not path.is_file():
        raise BadInputError(f"{path} does not exist: give the folder with open_ms/ and synthseg_labels/ as --images")


def subject_slices(images: Path, subject: str, n_slices: int) -> Iterator[FullSlice]:
    """`n_slices` from the middle of every volume of a patient (open_ms), or of every contrast of a label map.

    Raises BadInputError where the subject has no volume.
    """
    volumes = sorted((images / "open_ms" / subject).glob("*.nii.gz"))
    labels = images / f"synthseg_labels/{subject}.nii.gz"
    if not volumes and not labels.is_file():
        raise BadInputError(f"{images} has neither open_ms/{subject}/ nor {labels.name}: name a subject that is there")
    for path in volumes:
        name = path.name.split(".")[0]
        volume = axial(path)
        middle = np.linspace(0.4 * len(volume), 0.75 * len(volume), n_slices + 1)[:-1].astype(int)
        for number in dict.fromkeys(middle.tolist()):
            magnitude = at_pixel_size(volume[number], pixel_size(path), PIXEL_MM, MATRIX)
            yield full_slice(f"{subject}/{name}", number, str(label_of(name)), magnitude)
    if not volumes:
        for name, sequence in SEQUENCES.items():
            for number, magnitude in enumerate(_simulated(labels, name, n_slices)):
                yield full_slice(f"{subject}/{name}", number, sequence.contrast, magnitude)


def _simulated(labels: Path, sequence: str, count: int) -> list[torch.Tensor]:
    slices = simulated_slices(labels, sequence, count, seed=5)
    top = max(0, (slices.shape[1] - 180) // 2)
    cols = slices.shape[2] // 2 * 2  # BART's pics needs even sizes
    return [torch.from_numpy(image[top : top + 180, :cols].copy()) for image in slices]


def at_pixel_size(image: np.ndarray, old_mm: float, new_mm: float, shape: tuple[int, int]) -> torch.Tensor:
    """Magnitude at a coarser pixel size by cropping k-space, then cropped or padded to `shape`."""
    kspace = to_kspace(torch.from_numpy(image.copy()))
    for axis, size in enumerate(image.shape):
        kspace = crop_or_pad(kspace, round(size * old_mm / new_mm), axis)
    magnitude = to_image(kspace).abs()
    for axis, size in enumerate(shape):
        magnitude = crop_or_pad(magnitude, size, axis)
    return magnitude


def full_slice(scan: str, number: int, contrast: str, magnitude: torch.Tensor) -> FullSlice:
    """A simulated acquisition of `magnitude`; phase and noise depend on scan and number alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{scan} {number}".encode()))
    data, coil_images, truth = _acquired(magnitude, SIGMA_N[contrast], number, generator)
    return FullSlice(scan, number, contrast, data, truth, np.ones_like(truth, dtype=bool), coil_images)


def acquire(
    magnitude: torch.Tensor, sigma: float, acceleration: int, calibration_lines: int, generator: torch.Generator
) -> tuple[Slice, np.ndarray]:
    """A regularly undersampled multi-coil slice with random smooth phase; sigma is relative to the scale."""
    data, _, truth = _acquired(magnitude, sigma, int(generator.initial_seed()), generator)
    mask = sampling_mask("regular", truth.shape, acceleration, calibration_lines, 0)
    return undersampled(data, mask, acceleration, calibration_lines), truth


def _acquired(
    magnitude: torch.Tensor, sigma: float, number: int, generator: torch.Generator
) -> tuple[Slice, torch.Tensor, np.ndarray]:
    """(fully sampled slice, coil images without noise, truth)."""
    rows, cols = magnitude.shape
    image = magnitude / image_scale(magnitude) * random_phase(magnitude.shape, 1.0, generator)
    down, along = np.meshgrid(np.linspace(-115, 115, rows), np.linspace(-115, 115, cols), indexing="ij")
    maps = torch.from_numpy(coil_maps(np.stack([along, down, 0 * down], -1).astype(np.float32), N_COILS))
    coil_images = maps / maps.abs().square().sum(0).sqrt() * image
    kspace = to_kspace(coil_images) + sigma * complex_noise((N_COILS, rows, cols), generator)
    data = Slice(
        key=SliceKey(0, 0, 0, 0, 0, number),
        kspace=kspace,
        mask=torch.ones(rows, cols),
        calibration=kspace,
        sigma_n=sigma,
        noise_source="known",
        header=None,
        acceleration=1,
        n_lines_got=rows,
        n_lines_needed=rows,
    )
    return data, coil_images, image.abs().numpy()


def sampling_mask(
    kind: str, shape: tuple[int, ...], acceleration: float, calibration_lines: int, seed: int
) -> torch.Tensor:
    """(rows, cols) float32, 1 where acquired: equal arguments give equal masks.

    regular: every R-th row, the centre among them; random: rows / R rows drawn from all alike; in both the
    `calibration_lines` around the centre come on top, so that R is the nominal one. poisson: variable-density Poisson
    disc in both axes by sigpy, with a fully sampled square in the centre; R is the net one, to 10 %.
    Raises BadInputError where sigpy finds no such mask.
    """
    rows, cols = shape
    mask = torch.zeros(rows, cols)
    centre = [slice(size // 2 - calibration_lines // 2, size // 2 - calibration_lines // 2 + calibration_lines)
              for size in shape]  # fmt: skip
    if kind == "regular":
        mask[rows // 2 % int(acceleration) :: int(acceleration)] = 1
        mask[centre[0]] = 1
    elif kind == "random":
        chosen = np.random.default_rng([seed, rows, int(acceleration)]).permutation(rows)[: round(rows / acceleration)]
        mask[torch.from_numpy(chosen)] = 1
        mask[centre[0]] = 1
    elif kind == "poisson":
        mask = _poisson(rows, cols, acceleration, calibration_lines).clone()
        mask[centre[0], centre[1]] = 1
    else:
        raise BadInputError(f"mask '{kind}' is unknown: valid ones are {', '.join(MASKS)}")
    return mask


@lru_cache
def _poisson(rows: int, cols: int, acceleration: float, calibration_lines: int) -> torch.Tensor:
    from sigpy.mri import poisson  # heavy, and for this alone

    calibration = (calibration_lines, calibration_lines)
    try:
        found = poisson((rows, cols), acceleration, calib=calibration, seed=0, crop_corner=False)
    except ValueError as error:
        raise BadInputError(
            f"no Poisson-disc mask of {rows} x {cols} has R = {acceleration:g} with {calibration_lines} calibration "
            "lines: choose a smaller R or fewer lines"
        ) from error
    return torch.from_numpy(np.abs(found).astype(np.float32))


def undersampled(data: Slice, mask: torch.Tensor, acceleration: float, calibration_lines: int) -> Slice:
    """The slice with the samples of the mask alone; calibration: the centre, None without calibration lines.

    The noise level stays that of the data.
    """
    mask = mask * data.mask
    kspace = mask * data.kspace
    rows, cols = mask.shape
    calibration = None
    if calibration_lines:
        first = rows // 2 - calibration_lines // 2
        calibration = kspace[:, first : first + calibration_lines]
        if not bool(mask[first].all()):  # undersampled along the columns too
            calibration = crop_or_pad(calibration, calibration_lines, 2)
    n_lines = int(mask.amax(1).sum())
    return replace(
        data,
        kspace=kspace,
        mask=mask,
        calibration=calibration,
        acceleration=acceleration,
        n_lines_got=n_lines,
        n_lines_needed=n_lines,
    )


def with_maps(data: Slice, device: torch.device, maps: torch.Tensor | None = None) -> MappedSlice:
    """The slice with maps of its own calibration, as in a reconstruction, or with `maps` of elsewhere.

    Raises BadInputError where it cannot be used.
    """
    if maps is None:
        (found,) = with_coil_maps([data], device)
        if not isinstance(found, MappedSlice):
            raise BadInputError(f"slice {data.key.slice}: {found.reason}; leave it out")
        return found
    model = ForwardModel(maps, data.mask.to(device))
    kspace = data.kspace.to(device)
    scale, conventional = slice_scale(model, kspace, data.sigma_n)
    return MappedSlice(data, model, scale, zero_filled(model, kspace), conventional, {})
