"""Veins, and what the field of veins, iron and air does to echoes: the SWI of simulated heads."""

import numpy as np
import torch
from dpmrecon.physics.fourier import to_image, to_kspace
from scipy import ndimage

WHITE_MATTER = (2, 41)
VENTRICLES = (4, 43)
FLUID_LABELS = (4, 43, 24, 14, 15)
# ppm (SI) relative to tissue (Haacke et al., AJNR 2009; Schenck, Med Phys 1996); of a bleed by eye
VEIN_PPM, DEEP_PPM, PALLIDUM_PPM, FAT_PPM, BONE_PPM, AIR_PPM, BLEED_PPM = 0.45, 0.05, 0.13, 0.6, -2.0, 9.4, 0.8
LARMOR_HZ_PER_PPM = 127.7  # 3 T
MASK_POWER = 4  # the phase mask's, as scanners apply it (Haacke et al., MRM 2004)


def veins(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The share of each voxel that is vein, float32: tubes of .15 to .8 mm radius.

    Medullary veins run through white matter to the ventricles, and grow; pial ones follow the brain's surface. They are
    drawn as points, half a millimetre apart, each of the volume of its piece of tube.
    """
    coarse = labels[::2, ::2, ::2]
    tissue = (coarse > 0) & (coarse < 500) & ~np.isin(coarse, FLUID_LABELS)
    to_ventricle = ndimage.distance_transform_edt(~np.isin(coarse, VENTRICLES)) * 2
    depth = (ndimage.distance_transform_edt(tissue) - ndimage.distance_transform_edt(~tissue)) * 2
    fraction = np.zeros(labels.shape, np.float32)
    white = np.argwhere(np.isin(coarse, WHITE_MATTER) & (to_ventricle > 5) & (to_ventricle < 28)) * 2.0
    surface = np.argwhere((np.abs(depth) < 1.5) & (to_ventricle > 6)) * 2.0
    if np.isin(coarse, VENTRICLES).any() and len(white):
        start = white[rng.integers(len(white), size=int(rng.integers(180, 360)))]
        radius = rng.uniform(0.15, 0.4, len(start))
        _grow(fraction, start, radius, 80, to_ventricle, rng, towards=-1.0, level=None)
    if len(surface):
        start = surface[rng.integers(len(surface), size=int(rng.integers(120, 220)))]
        radius = rng.uniform(0.3, 0.8, len(start))
        _grow(fraction, start, radius, 90, depth, rng, towards=0.0, level=-0.3)
    return fraction.clip(max=1)


def _grow(
    fraction: np.ndarray,
    position: np.ndarray,
    radius: np.ndarray,
    steps: int,
    distance: np.ndarray,
    rng: np.random.Generator,
    *,
    towards: float,
    level: float | None,
) -> None:
    """Add tubes to `fraction` from `position` (n, 3): along the gradient of `distance` (grid of 2 mm) times `towards`;
    with a level, on the surface where `distance` has it."""
    gradient = np.stack(np.gradient(ndimage.gaussian_filter(distance.astype(np.float32), 1)), -1)
    position = position + rng.uniform(0, 2, position.shape)
    direction = rng.standard_normal(position.shape)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    alive = np.ones(len(position), bool)
    for _ in range(steps):
        index = tuple(np.clip(position / 2, 0, np.array(distance.shape) - 1).round().astype(int).T)
        uphill = gradient[index]
        uphill /= np.maximum(np.linalg.norm(uphill, axis=1, keepdims=True), 1e-3)
        pull = towards * uphill if level is None else np.clip(level - distance[index], -2, 2)[:, None] * uphill * 0.4
        keep = 0.75 if level is None else 0.95
        direction = keep * direction + (1 - keep if level is None else 0.5) * pull
        direction += 0.12 * rng.standard_normal(direction.shape)
        if level is not None:  # stay in the surface
            direction -= 0.6 * (direction * uphill).sum(1, keepdims=True) * uphill
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        position = position + 0.5 * direction
        alive &= distance[index] > 0.5 if level is None else np.abs(distance[index]) < 5
        _splat(fraction, position[alive], 0.5 * np.pi * radius[alive] ** 2)
        if level is None:
            radius = radius * 1.008


def _splat(volume: np.ndarray, position: np.ndarray, amount: np.ndarray) -> None:
    """Spread `amount` (n,) at `position` (n, 3) over the eight voxels around it."""
    low = np.floor(position).astype(int)
    rest = position - low
    for corner in np.ndindex(2, 2, 2):
        index = low + corner
        share = np.prod(np.where(np.array(corner) == 1, rest, 1 - rest), axis=1) * amount
        held = ((index >= 0) & (index < volume.shape)).all(1)
        np.add.at(volume, tuple(index[held].T), share[held])


def susceptibility(labels: np.ndarray, fat: np.ndarray, vein: np.ndarray, bleed: np.ndarray) -> np.ndarray:
    """Susceptibility relative to tissue in ppm, float32. vein, bleed: the share of each voxel."""
    ppm = np.where(labels == 0, AIR_PPM, 0).astype(np.float32)
    ppm[np.isin(labels, (165, 515))] = BONE_PPM
    ppm[np.isin(labels, (10, 11, 12, 49, 50, 51))] = DEEP_PPM
    ppm[np.isin(labels, (13, 52))] = PALLIDUM_PPM
    ppm[fat] = FAT_PPM
    ppm[labels == 514] = VEIN_PPM
    return ppm + vein * (VEIN_PPM - ppm) + bleed * BLEED_PPM


def complex_echo(ppm: np.ndarray, te: float) -> np.ndarray:
    """What the field of `ppm` does to a gradient echo at `te` ms: factors of the signal, complex64, its phase as a
    shimmed scanner measures it and its dephasing within voxels. The main field runs along the last axis."""
    phase = field_phase(ppm, te)
    tissue = np.argwhere(np.abs(ppm) < 1)[:: max(1, ppm.size // 20_000)]

    def terms(index: np.ndarray) -> np.ndarray:  # of a shim of second order
        x, y, z = (index / ppm.shape - 0.5).T
        return np.stack([np.ones_like(x), x, y, z, x * y, x * z, y * z, x * x - y * y, 2 * z * z - x * x - y * y], -1)

    shim = np.linalg.lstsq(terms(tissue), phase[tuple(tissue.T)], rcond=None)[0]
    grid = np.moveaxis(np.indices(ppm.shape, dtype=np.float32), 0, -1)
    phase = phase - np.stack([terms(plane.reshape(-1, 3)) @ shim for plane in grid]).reshape(ppm.shape)
    return (dephasing(phase) * np.exp(1j * phase)).astype(np.complex64)


def masked_magnitude(ppm: np.ndarray, te: float) -> np.ndarray:
    """The same as factors of the magnitude of SWI (Haacke et al., MRM 2004): dephasing, and the phase mask."""
    phase = field_phase(ppm, te)
    signal_of = np.exp(1j * phase)
    smooth = ndimage.gaussian_filter(signal_of.real, 4) + 1j * ndimage.gaussian_filter(signal_of.imag, 4)
    rest = np.angle(signal_of * smooth.conj())  # high-pass filtered
    mask = np.clip(1 - np.maximum(rest, 0) / np.pi, 0, 1) ** MASK_POWER
    return (dephasing(phase) * mask).astype(np.float32)


def dipole(shape: tuple[int, ...], along: int = -1) -> torch.Tensor:
    """Field over susceptibility of every spatial frequency (Salomir et al., Concepts in MR 2003), the origin in the
    middle of an array of cubic voxels; along: the axis of the main field."""
    frequency = [torch.arange(size) / size - (size // 2) / size for size in shape]
    squares = torch.meshgrid(*[f.square() for f in frequency], indexing="ij")
    return 1 / 3 - squares[along] / (squares[0] + squares[1] + squares[2]).clamp_min(1e-12)


def field_phase(ppm: np.ndarray, te: float) -> np.ndarray:
    """Phase in rad that susceptibility in ppm has made at `te` ms; the main field runs along the last axis."""
    axes = (0, 1, 2)
    field = to_image(to_kspace(torch.from_numpy(ppm).to(torch.complex64), axes) * dipole(ppm.shape), axes).real.numpy()
    return 2 * np.pi * LARMOR_HZ_PER_PPM * field * te * 1e-3


def dephasing(phase: np.ndarray) -> np.ndarray:
    """What is left of the signal of a voxel that `phase` in rad varies in."""
    slope = np.sqrt(sum(g**2 for g in np.gradient(phase)))  # rad a voxel
    return np.abs(np.sinc(slope.clip(max=2 * np.pi) / (2 * np.pi)))
