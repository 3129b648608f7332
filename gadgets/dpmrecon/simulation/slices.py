"""The physics of a simulated scan: object, coils and phase, k-space of a slice, and its truth.

The object is evaluated on a grid twice as fine as the matrix, multiplied there by its phase and the coil maps, and
transformed. K-space is cropped to the matrix: partial volume and Gibbs ringing are those of a scanner. What lies
outside the field of view is cut off along the lines, unless `wrap` folds it in as a scanner does, and along the readout
likewise where there is no oversampling.
"""

import dataclasses
import itertools

import numpy as np

from ..errors import BadInputError
from .diffusion import DiffusionHead
from .epi_settings import EpiSettings
from .phantom import Letters, LetterVolume, Phantom, SmoothNoise
from .settings import SimulationSettings, VolumeSettings
from .susceptibility import GradientEchoHead

FINER = 2
FOLDS = 3  # with `wrap`: the middle field of view and its two neighbours
PLANES = (-1 / 3, 0.0, 1 / 3)  # of the slice thickness: the slice profile


def simulated_kspace(settings: SimulationSettings, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One slice as arrays: k-space (n_coils, rows, cols) complex64, whitened, without oversampling and zero where it
    was not acquired, and its truth (rows, cols) float32, see `simulate.simulate`."""
    settings = dataclasses.replace(settings, oversampling=1)
    mixing = noise_mixing(settings)
    clean, truth = slice_and_truth(the_object(settings), settings, index, settings.weightings[0], mixing)
    truth = np.abs(truth)
    kspace = np.einsum("ij,jrc->irc", np.linalg.inv(mixing), clean)
    rng = np.random.default_rng([settings.seed, 24, index])
    level = settings.noise * float(np.percentile(truth, 99))
    kspace += level * (rng.normal(size=kspace.shape) + 1j * rng.normal(size=kspace.shape))
    acquired = sorted({*settings.grid_rows(), *settings.calibration_rows()})
    kspace[:, np.setdiff1d(np.arange(settings.rows), acquired)] = 0
    kspace[..., : settings.skipped_samples] = 0
    return kspace.astype(np.complex64), truth


def slice_and_truth(
    phantom: Phantom | Letters, settings: SimulationSettings, index: int, weighting: float, mixing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free k-space (n_coils, rows, samples) and the truth (rows, cols), noise of unit level being whitened; the
    truth is complex, but with `wrap`. weighting: one of `settings.weightings`."""
    folds = FOLDS if settings.wrap else 1
    fine = slice_points(settings, index, FINER, settings.oversampling, 0.0, folds)
    image: np.ndarray | np.float32 = np.float32(0)
    for part in PLANES:
        offset = part * settings.slice_thickness_mm
        plane = slice_points(settings, index, FINER, settings.oversampling, offset, folds)
        depth = settings.slice_thickness_mm / len(PLANES)
        image = image + object_image(phantom, settings, plane, weighting, FINER, depth) / len(PLANES)
    maps = coil_maps(fine, settings.n_coils, settings.subject)
    coil_images = maps * (image * object_phase(fine, settings.subject))
    if settings.wrap:
        coil_images = by_fold(coil_images, folds).sum(1)
    kspace = cropped_kspace(settings, coil_images)
    return kspace, true_image(settings, index, kspace, mixing)


def cropped_kspace(settings: SimulationSettings, coil_images: np.ndarray) -> np.ndarray:
    """K-space (n_coils, rows, samples) complex64 of images on the fine grid."""
    import torch

    from ..physics.fourier import crop_or_pad, to_kspace

    # orthonormal on both sizes: the factor keeps the units of the image
    kspace = to_kspace(torch.from_numpy(coil_images)) / FINER
    return crop_or_pad(crop_or_pad(kspace, settings.rows, -2), settings.samples, -1).numpy()


def true_image(settings: SimulationSettings, index: int, kspace: np.ndarray, mixing: np.ndarray) -> np.ndarray:
    """The truth (rows, cols) of k-space (n_coils, rows, samples), as `slice_and_truth` says."""
    import torch

    from ..physics.fourier import crop_or_pad, to_image

    folds = FOLDS if settings.wrap else 1
    coarse = crop_or_pad(to_image(torch.from_numpy(kspace)), settings.cols, -1).numpy()
    whitening = np.linalg.inv(mixing).astype(np.complex64)
    coarse = np.einsum("ij,jrc->irc", whitening, coarse)
    points = slice_points(settings, index, 1, 1, 0.0, folds)
    true_maps = np.einsum("ij,jrc->irc", whitening, coil_maps(points, settings.n_coils, settings.subject))
    if settings.wrap:
        return combined_sets(by_fold(true_maps, folds), coarse)
    true_maps /= np.linalg.norm(true_maps, axis=0)
    return (true_maps.conj() * coarse).sum(0)


def the_object(settings: SimulationSettings) -> Phantom | Letters:
    """What lies in the scanner."""
    if settings.phantom == "letters":
        letters = LetterVolume if isinstance(settings, VolumeSettings) else Letters
        return letters(np.array(settings.position_mm), settings.directions()[2])
    if isinstance(settings, EpiSettings):
        head = DiffusionHead(settings.subject, settings.lesion_side, settings.marker_mm)
        centres = [(index, settings.slice_position(index)) for index in range(settings.n_slices)]
        head.put_emboli(centres, np.stack(settings.directions()[:2]), settings.emboli, settings.subject)
        return head
    kind = GradientEchoHead if settings.contrast == "swi" else Phantom
    return kind(settings.subject, settings.lesion_side, settings.marker_mm)


def object_image(
    thing: Phantom | Letters,
    settings: SimulationSettings,
    points: np.ndarray,
    weighting: float,
    finer: int,
    depth: float,
) -> np.ndarray:
    """What the object sends from points (..., 3), LPS mm, of a grid `finer` times as fine as the matrix and `depth` mm
    from plane to plane: float32, or complex64 of a head that makes its own field."""
    if not isinstance(thing, GradientEchoHead):
        return thing.magnitude(points, settings.contrast, weighting)
    read, phase, through = settings.directions()
    down, along = (size / finer for size in settings.pixel_mm)
    return thing.signal(points, weighting, np.stack([along * read, down * phase, depth * through]))


def slice_points(
    settings: SimulationSettings, index: int, finer: int, oversampling: int, offset: float, folds: int = 1
) -> np.ndarray:
    """Points (rows * finer * folds, cols * oversampling * finer, 3) float32 of a slice, LPS mm, `offset` mm off its
    plane; folds: an odd number of fields of view along the lines."""
    read, phase, through = settings.directions()
    rows, cols = settings.rows * finer * folds, settings.cols * oversampling * finer
    down = (np.arange(rows) - rows // 2)[:, None, None] * (settings.pixel_mm[0] / finer) * phase
    along = (np.arange(cols) - cols // 2)[None, :, None] * (settings.pixel_mm[1] / finer) * read
    return (settings.slice_position(index) + offset * through + down + along).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class SwiMasks:
    """Where a swi scan has what it is made for: (n_slices or partitions, rows, cols) bool each, voxels of which veins
    or the microbleed fill a quarter or more."""

    veins: np.ndarray
    bleed: np.ndarray


def swi_masks(settings: SimulationSettings) -> SwiMasks:
    """On the grid of the truth. Raises BadInputError where the scan is no swi of a head."""
    head = the_object(settings)
    if not isinstance(head, GradientEchoHead):
        raise BadInputError(f"{settings.contrast} of {settings.phantom} has no veins to mask; give swi of the head")
    middle = settings.partitions // 2
    places = [
        (index, (partition - middle) * settings.slice_thickness_mm)
        for index in range(settings.n_slices)
        for partition in range(settings.partitions)
    ]
    read, phase, through = settings.directions()
    within = np.array(PLANES)[:, None]
    sides = (settings.pixel_mm[0] * phase, settings.pixel_mm[1] * read, settings.slice_thickness_mm * through)
    corners = [down + along + deep for down, along, deep in itertools.product(*(within * side for side in sides))]
    shape = len(places), settings.rows, settings.cols
    veins, bleed = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for number, (index, offset) in enumerate(places):
        points = slice_points(settings, index, 1, 1, offset)
        for corner in corners:
            part = points + corner.astype(np.float32)
            veins[number] += head.vein_fraction(part) / len(corners)
            bleed[number] += (np.linalg.norm(part - head.bleed, axis=-1) < head.bleed_radius) / len(corners)
    return SwiMasks(veins >= 0.25, bleed >= 0.25)


def coil_maps(points: np.ndarray, n_coils: int, subject: int = 0) -> np.ndarray:
    """Complex sensitivities (n_coils, ...) complex64 at points (..., 3) in LPS mm, before whitening.

    Each coil is a small loop on a helmet around the head that looks at its centre: the transverse part of a
    magnetic dipole's field, smoothed over the loop's size.
    """
    rng = np.random.default_rng([subject, 21])
    turn = 2 * np.pi * (np.arange(n_coils) + 0.25 + 0.1 * rng.uniform(-1, 1, n_coils)) / n_coils
    height = np.where(np.arange(n_coils) % 2, 45.0, -5.0) + rng.uniform(-6, 6, n_coils)
    maps = np.empty((n_coils, *points.shape[:-1]), np.complex64)
    for coil in range(n_coils):
        place = np.array([108 * np.cos(turn[coil]), 128 * np.sin(turn[coil]), height[coil]])
        aim = np.array([0.0, 0.0, 15.0]) - place
        aim = (aim / np.linalg.norm(aim)).astype(np.float32)
        x, y, z = np.moveaxis(points - place.astype(np.float32), -1, 0)
        square = x * x + y * y + z * z + np.float32(45.0**2)
        along = 3 * (aim[0] * x + aim[1] * y + aim[2] * z) / square
        maps[coil] = ((along * x - aim[0]) - 1j * (along * y - aim[1])) * (square / 100**2) ** np.float32(-1.5)
    return maps


def object_phase(points: np.ndarray, subject: int) -> np.ndarray:
    """exp(i phase), complex64: smooth, of about a radian across the head."""
    rng = np.random.default_rng([subject, 22])
    waves = SmoothNoise(rng, 12, 170.0, 0.3)
    slope = rng.normal(0, 0.006, 3).astype(np.float32)
    flat = np.ascontiguousarray(points.reshape(-1, 3).T)
    return np.exp(1j * (0.6 * waves(flat) + slope @ flat)).astype(np.complex64).reshape(points.shape[:-1])


def noise_mixing(settings: SimulationSettings) -> np.ndarray:
    """(n_coils, n_coils) complex128 M: white noise w of unit level becomes M w; the mean channel keeps the level."""
    rng = np.random.default_rng([settings.subject, 23])
    count = settings.n_coils
    off = rng.normal(size=(count, count)) + 1j * rng.normal(size=(count, count))
    gains = rng.uniform(0.85, 1.15, count)[:, None] if settings.noise_correlation else np.ones((count, 1))
    mixing = gains * (np.eye(count) + 0.5 * settings.noise_correlation * off)
    return mixing * np.sqrt(count / (np.abs(mixing) ** 2).sum())


def by_fold(array: np.ndarray, folds: int) -> np.ndarray:
    """(n_coils, folds * rows, cols) to (n_coils, folds, rows, cols), where what folds onto one pixel is one column."""
    # rows is even or folds odd: whole and middle share their origin
    return array.reshape(len(array), folds, -1, array.shape[-1])


def combined_sets(maps: np.ndarray, coil_images: np.ndarray) -> np.ndarray:
    """Root of the sum of squares of the images of several maps (n_coils, n_maps, rows, cols), made orthonormal."""
    basis = np.linalg.qr(maps.transpose(2, 3, 0, 1))[0]
    return np.linalg.norm(np.einsum("rcim,irc->rcm", basis.conj(), coil_images), axis=-1)
