"""Lesions painted into label maps: infarcts, gliosis, and small foci of 1 to 10 mm, often many of them."""

import numpy as np
import torch
import torch.nn.functional as F

from .veins import FLUID_LABELS, WHITE_MATTER

Lesion = tuple[str, np.ndarray, tuple[slice, ...]]  # tissue, its fraction of each voxel of the box, the box

# what small foci are made of, by contrast: infarcts, gliosis, lacunes, microbleeds
FOCI = {
    "dwi": ("acute",),
    "flair": ("acute", "gliosis", "gliosis", "chronic"),
    "t2": ("acute", "gliosis", "chronic", "bleed"),
    "t1": ("acute", "gliosis", "chronic", "chronic", "bleed"),
    "swi": ("bleed", "bleed", "acute"),
}
DIAMETERS_MM = (1.0, 10.0)
FEWEST, MOST = 10, 250
# share of volumes without foci; of the rest, with one territory alone
NO_FOCI, TERRITORY, TERRITORY_MM = 0.2, 0.5, 35.0


def lesions(labels: np.ndarray, rng: np.random.Generator) -> list[Lesion]:
    """Blobs with soft, uneven edges in white and deep grey matter: acute infarcts, chronic ones with a gliotic rim, and
    small spots of gliosis."""
    centres = np.argwhere(np.isin(labels, (*WHITE_MATTER, 10, 49)))
    kinds = ["acute"] * int(rng.integers(0, 3)) + ["chronic"] * int(rng.integers(0, 2))
    kinds += ["gliosis"] * int(rng.integers(0, 10))
    painted = []
    for kind in kinds if len(centres) else ():
        centre = centres[rng.integers(len(centres))]
        radii = rng.uniform(1.5, 5, 3) if kind == "gliosis" else rng.uniform(4, 14, 3)
        box, radius = _ellipsoid(labels.shape, centre, radii, rng)
        brain = _brain(labels[box])
        depth = (1 - radius) * radii.mean()  # mm from the edge inwards
        strength = rng.uniform(0.6, 1.0)
        edge = (np.clip(depth / 1.5 + 0.5, 0, 1) * brain).astype(np.float32)
        if kind == "chronic":
            painted.append(("gliosis", edge, box))
            core = np.clip((depth - 2) / 1.5 + 0.5, 0, 1) * brain
            painted.append(("chronic", core.astype(np.float32), box))
        else:
            painted.append((kind, strength * edge, box))
    return painted


def foci(labels: np.ndarray, contrast: str, rng: np.random.Generator) -> list[Lesion]:
    """Small foci in the brain; labels: at 1 mm. Some slices of a volume have several, others one or none.

    Their number and their diameters are log-uniform: small ones are the most frequent.
    """
    centres = np.argwhere(_brain(labels))
    if rng.random() < NO_FOCI or not len(centres):
        return []
    if rng.random() < TERRITORY:
        middle = centres[rng.integers(len(centres))]
        centres = centres[np.square(centres - middle).sum(1) < TERRITORY_MM**2]
    painted = []
    for _ in range(int(_log_uniform(FEWEST, MOST, rng))):
        centre = centres[rng.integers(len(centres))] + rng.uniform(-0.5, 0.5, 3)
        radii = 0.5 * _log_uniform(*DIAMETERS_MM, rng) * rng.uniform(0.75, 1.33, 3)
        box, radius = _ellipsoid(labels.shape, centre, radii, rng)
        edge = np.clip((1 - radius) * radii.mean() + 0.5, 0, 1) * _brain(labels[box])  # a voxel wide
        painted.append((str(rng.choice(FOCI[contrast])), (rng.uniform(0.2, 1) * edge).astype(np.float32), box))
    return painted


def smooth_field(shape: tuple[int, ...], points: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random field of about unit standard deviation: a coarse grid of normals, interpolated."""
    coarse = torch.from_numpy(rng.standard_normal([1, 1] + [points] * len(shape)).astype(np.float32))
    return F.interpolate(coarse, shape, mode="trilinear", align_corners=True)[0, 0].numpy()


def _ellipsoid(
    shape: tuple[int, ...], centre: np.ndarray, radii: np.ndarray, rng: np.random.Generator
) -> tuple[tuple[slice, ...], np.ndarray]:
    """A box in `shape` and the distance of its voxels from `centre`, 1 at the uneven ellipsoid's surface."""
    box = tuple(
        slice(max(0, int(c - 2 * r)), min(size, int(c + 2 * r) + 2)) for c, r, size in zip(centre, radii, shape)
    )
    grid = np.meshgrid(*[np.arange(b.start, b.stop, dtype=np.float32) for b in box], indexing="ij")
    radius = np.sqrt(sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii)))
    return box, radius * np.exp(0.25 * smooth_field(radius.shape, 5, rng))


def _brain(labels: np.ndarray) -> np.ndarray:
    return (labels > 0) & (labels < 500) & ~np.isin(labels, FLUID_LABELS)


def _log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
