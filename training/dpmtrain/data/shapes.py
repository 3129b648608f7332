"""Random objects that are no heads, so that a network does not make heads of all that it sees.

After SynthMorph (Hoffmann et al., IEEE TMI 2022), with what heads and phantoms have besides: sheets, balls and a rim.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

from .lesions import smooth_field

SIDE, VOXEL_MM = 96, 2.0
LABELS = ("flair", "t1", "swi", None)  # that a network may be told, None: no label
RADII, UNEVEN, EDGE = (0.6, 0.95), 0.25, 0.9  # of the ellipsoid, over half the field of view; nothing lies beyond EDGE


def random_shapes(rng: np.random.Generator) -> tuple[np.ndarray, tuple[float, float, float]]:
    """(SIDE, SIDE, SIDE) float32, not negative, and the voxel in mm: regions, sheets and balls in an uneven ellipsoid.

    The field of view's edge is 0.
    """
    shape = (SIDE,) * 3
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 3, indexing="ij"), -1)
    depth = _depth(points, rng)
    image = _regions(shape, rng)
    for _ in range(rng.integers(1, 4)):
        image[_sheet(shape, rng)] = rng.uniform(0, 1)
    for _ in range(rng.integers(0, 4)):
        centre, radius = rng.uniform(-0.5, 0.5, 3), rng.uniform(0.05, 0.25)
        image[((points - centre) ** 2).sum(-1) < radius**2] = rng.uniform(0, 1.2)
    image *= 1 + 0.08 * smooth_field(shape, 4, rng)
    if rng.random() < 0.8:
        rim, gap = rng.uniform(0.04, 0.12), rng.uniform(0.02, 0.08)
        image[depth < rim] = rng.uniform(0.3, 1.3)
        image[(depth >= rim) & (depth < rim + gap)] = rng.uniform(0, 0.15)
    image[depth < 0] = 0
    image = gaussian_filter(image, rng.uniform(0.3, 0.7), truncate=2)  # voxels of two regions hold some of both
    return image.clip(0).astype(np.float32), (VOXEL_MM,) * 3


def _depth(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """About 1 in the middle of an uneven ellipsoid, negative outside it."""
    radius = np.sqrt(((points / rng.uniform(*RADII, 3)) ** 2).sum(-1))
    bulges = rng.uniform(0, UNEVEN) * smooth_field(radius.shape, int(rng.integers(3, 7)), rng)
    return np.minimum(1 - radius + bulges, EDGE - np.abs(points).max(-1))


def _regions(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Each where its smooth field is the largest."""
    fields = np.stack([smooth_field(shape, int(rng.integers(4, 9)), rng) for _ in range(rng.integers(2, 5))])
    return rng.uniform(0.3, 1, len(fields))[fields.argmax(0)]


def _sheet(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Where a smooth field is about a number: thin and curved."""
    field = smooth_field(shape, int(rng.integers(8, 28)), rng)
    width = rng.uniform(0.1, 0.4)
    return np.abs(field / field.std() - rng.uniform(-0.5, 0.5)) < width
