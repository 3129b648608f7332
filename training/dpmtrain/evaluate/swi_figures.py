"""What SWI is judged by: contrast of veins, errors of phase, the size of a microbleed; and the picture of it."""

import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

FINER = 4  # of the grid on which a microbleed is measured
BLEED_MM, SHELL_MM = 3.0, (6.0, 9.0)  # from its middle: where its darkest voxel is, and what is around it


def local_mean(volume: np.ndarray, where: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Mean of the voxels `where` in a window of rows and columns around each voxel of (n, rows, cols)."""
    size = (1, *window)
    total = ndimage.uniform_filter(np.where(where, volume, 0).astype(np.float64), size, mode="constant")
    return total / ndimage.uniform_filter(where.astype(np.float64), size, mode="constant").clip(1e-9)


def local_contrast(volume: np.ndarray, veins: np.ndarray, head: np.ndarray, window: tuple[int, int]) -> float:
    """1 less the mean over veins inside the head, over that of what is around them."""
    around = local_mean(volume, head & ~veins, window)
    inside = veins & head & (around > 0)
    return float(1 - volume[inside].sum() / around[inside].sum())


def dark_phase(phase: np.ndarray, truth: np.ndarray, veins: np.ndarray) -> float:
    """Mean phase in radians over those voxels of veins where the truth's is negative."""
    return float(phase[veins & (truth < 0)].mean())


def phase_error(phase: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> float:
    """Root mean square in radians of the difference, weighted, but for a constant."""
    turned = np.exp(1j * (phase - truth))
    turned *= np.exp(-1j * np.angle((weight * turned).sum()))
    return float(np.sqrt((weight * np.angle(turned) ** 2).sum() / weight.sum()))


def slope(phase: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> float:
    """Of a weighted least-squares line through 0, of the phase against the truth's."""
    return float((weight * phase * truth).sum() / (weight * truth**2).sum())


def bleed_size(magnitude: np.ndarray, bleed: np.ndarray, voxel_mm: tuple[float, float, float]) -> tuple[float, float]:
    """(contrast, diameter in mm) of a dark ball in (partitions, rows, cols); bleed: bool, where it is.

    The contrast is 1 less its darkest voxel over the median of a shell around it; the diameter that of a ball of the
    volume which is darker than half way between, between voxels by cubic splines.
    """
    middle = np.round(ndimage.center_of_mass(bleed)).astype(int)
    reach = np.ceil(SHELL_MM[1] / np.array(voxel_mm)).astype(int)
    box = tuple(slice(max(m - r, 0), m + r + 1) for m, r in zip(middle, reach))
    part = magnitude[box].astype(np.float64)
    grid = np.meshgrid(*[np.arange(size) for size in part.shape], indexing="ij")
    away = np.sqrt(sum(((g - m + b.start) * v) ** 2 for g, m, b, v in zip(grid, middle, box, voxel_mm)))
    around = float(np.median(part[(away > SHELL_MM[0]) & (away < SHELL_MM[1])]))
    lowest = np.unravel_index(np.where(away <= BLEED_MM, part, np.inf).argmin(), part.shape)
    darkest = float(part[lowest])
    sizes = [FINER * (size - 1) + 1 for size in part.shape]
    fine = ndimage.map_coordinates(part, np.meshgrid(*[np.arange(n) / FINER for n in sizes], indexing="ij"), order=3)
    labels = ndimage.label(fine <= (around + darkest) / 2)[0]
    voxels = (labels == labels[tuple(FINER * place for place in lowest)]).sum()
    volume = float(voxels) * float(np.prod(voxel_mm)) / FINER**3
    return 1 - darkest / around, float(np.cbrt(6 * volume / np.pi))


def picture(columns: dict[str, dict[str, np.ndarray]]) -> Figure:
    """A column for each method, a row for each of its pictures (rows, cols) by name; a name that speaks of phase is
    shown from -1 to 1 rad, others from 0 to the first method's brightest."""
    names = list(next(iter(columns.values())))
    shapes = [next(iter(columns.values()))[name].shape for name in names]
    heights = [shape[0] / shape[1] for shape in shapes]
    made = Figure((2.2 * len(columns), 2.2 * sum(heights) + 0.3), layout="constrained")
    axes = made.subplots(len(names), len(columns), squeeze=False, height_ratios=heights)
    for column, (method, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(method, fontsize=9)
        for row, name in enumerate(names):
            bright = float(np.percentile(next(iter(columns.values()))[name], 99.7))
            low, high = (-1.0, 1.0) if "phase" in name else (0.0, bright)
            axes[row, column].imshow(pictures[name], cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
            if column == 0:
                axes[row, column].set_ylabel(name, fontsize=9)
    return made
