"""The physics of a simulated 3D scan: k-space of a slab, and its truth.

As in 2D the object is evaluated on a grid twice as fine, here in all three directions. Plane after plane of that grid
is multiplied by the coil maps, transformed and cropped within the plane. It is added to all partitions of k-space with
the phases of its own place: no array on the fine grid has more than a few planes. The slab is excited over the whole
encoded depth with sharp ends; what lies outside the field of view along the lines is cut off, or folds with `wrap`.
"""

import dataclasses

import numpy as np

from .phantom import Letters, Phantom
from .settings import VolumeSettings
from .slices import (
    FOLDS,
    by_fold,
    coil_maps,
    combined_sets,
    noise_mixing,
    object_image,
    object_phase,
    slice_points,
    the_object,
)

_FINER = 2
_PLANES = 16  # of the fine grid at once


def simulated_volume(settings: VolumeSettings, complex_truth: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A volume as arrays: k-space (n_coils, encoded partitions, rows, cols) complex64, whitened, without oversampling
    of the readout and zero where it was not acquired, and its truth (partitions, rows, cols), see `simulate.simulate`:
    float32, or complex64 with the object's phase. Of several echoes or b-values the first.
    """
    settings = dataclasses.replace(settings, oversampling=1)
    mixing = noise_mixing(settings)
    kspace, truth = volume_and_truth(the_object(settings), settings, settings.weightings[0], mixing)
    whitening = np.linalg.inv(mixing).astype(np.complex64)
    for partition in range(kspace.shape[1]):
        kspace[:, partition] = np.tensordot(whitening, kspace[:, partition], 1)
    acquired = np.zeros(kspace.shape[1:], bool)
    for place in {*settings.grid_places(), *settings.calibration_places()}:
        acquired[place] = True
    acquired[..., : settings.skipped_samples] = False
    rng = np.random.default_rng([settings.seed, 24])
    level = np.float32(settings.noise * float(np.percentile(np.abs(truth), 99)))
    for coil in kspace:
        noise = rng.standard_normal((*coil.shape, 2), np.float32).view(np.complex64)[..., 0]
        coil += level * noise
        coil *= acquired
    return kspace, truth if complex_truth else np.abs(truth)


def volume_and_truth(
    phantom: Phantom | Letters, settings: VolumeSettings, weighting: float, mixing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free k-space (n_coils, encoded partitions, rows, samples) complex64 and the complex truth (partitions,
    rows, cols), noise of unit level being whitened; weighting: one of `settings.weightings`."""
    import torch

    from ..physics.fourier import crop_or_pad, to_kspace

    depth, rows, samples = settings.encoded_partitions, settings.rows, settings.samples
    fine, folds = depth * _FINER, FOLDS if settings.wrap else 1
    kspace = torch.zeros(settings.n_coils, depth, rows * samples, dtype=torch.complex64)
    for start in range(0, fine, _PLANES):
        planes = range(start, min(start + _PLANES, fine))
        points = np.stack([_plane(settings, plane, _FINER, folds) for plane in planes])
        signal = object_image(phantom, settings, points, weighting, _FINER, settings.slice_thickness_mm / _FINER)
        inside = np.nonzero(signal)
        points = points[inside]
        signal = signal[inside] * object_phase(points, settings.subject)
        maps = coil_maps(points, settings.n_coils, settings.subject)
        # orthonormal on both sizes: the factor keeps the units of the image
        phases = torch.from_numpy(_encoding(depth, planes) / _FINER**1.5)
        image = np.zeros((len(planes), folds * rows * _FINER, samples * _FINER), np.complex64)
        for coil in range(settings.n_coils):
            image[inside] = maps[coil] * signal
            seen = by_fold(image, folds).sum(1) if settings.wrap else image
            lines = crop_or_pad(to_kspace(torch.from_numpy(seen), (-1,)), samples, -1)
            lines = crop_or_pad(to_kspace(lines, (-2,)), rows, -2)
            kspace[coil].addmm_(phases, lines.reshape(len(planes), -1))
    kspace = kspace.reshape(settings.n_coils, depth, rows, samples)
    return kspace.numpy(), _truth(settings, kspace, mixing)


def _plane(settings: VolumeSettings, plane: int, finer: int, folds: int) -> np.ndarray:
    """Points (folds * rows * finer, samples * finer, 3) of an encoded partition, counted on a grid `finer` times as
    fine."""
    offset = (plane - settings.encoded_partitions * finer // 2) * settings.slice_thickness_mm / finer
    return slice_points(settings, 0, finer, settings.oversampling, offset, folds)


def _encoding(depth: int, planes: range) -> np.ndarray:
    """(depth, planes) complex64: the columns of the orthonormal transform along the fine partitions that k-space's
    middle `depth` rows and these planes have in common."""
    fine = depth * _FINER
    turns = np.outer(np.arange(depth) - depth // 2, np.array(planes) - fine // 2) / fine
    return (np.exp(-2j * np.pi * turns) / np.sqrt(fine)).astype(np.complex64)


def _truth(settings: VolumeSettings, kspace, mixing: np.ndarray) -> np.ndarray:
    """(partitions, rows, cols) complex64: the whitened coil images, combined by the true coil maps, whitened too; of
    those of all that folds onto a voxel with `wrap`."""
    import torch

    from ..physics.fourier import crop_or_pad, to_image

    sizes = settings.partitions, settings.rows, settings.cols
    coarse = torch.empty(settings.n_coils, *sizes, dtype=torch.complex64)
    for coil, lines in enumerate(kspace):
        image = crop_or_pad(to_image(lines, (0,)), sizes[0], 0)
        coarse[coil] = crop_or_pad(to_image(image), sizes[2], -1)
    whitening = np.linalg.inv(mixing).astype(np.complex64)
    truth, folds = np.empty(sizes, np.complex64), FOLDS if settings.wrap else 1
    for partition in range(sizes[0]):
        offset = (partition - sizes[0] // 2) * settings.slice_thickness_mm
        points = slice_points(settings, 0, 1, 1, offset, folds)
        maps = np.einsum("ij,jrc->irc", whitening, coil_maps(points, settings.n_coils, settings.subject))
        images = np.einsum("ij,jrc->irc", whitening, coarse[:, partition].numpy())
        if settings.wrap:
            truth[partition] = combined_sets(by_fold(maps, folds), images)
        else:
            truth[partition] = ((maps / np.linalg.norm(maps, axis=0)).conj() * images).sum(0)
    return truth
