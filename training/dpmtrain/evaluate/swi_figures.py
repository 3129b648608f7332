"""What SWI is judged by: contrast of veins, errors of phase, the size of a microbleed; and the picture of it."""

from dataclasses import dataclass

import numpy as np
import torch
from dpmrecon.output.swi import LOW_PASS, filtered_phase, minimum_projection, slab_count, weighted
from dpmrecon.simulation.slices import SwiMasks
from matplotlib.figure import Figure
from scipy import ndimage

from .metrics import high_band_energy, nrmse, on_scale
from .pictures import panels
from .swi_cases import NOISE, Case
from .volumes import HEAD

VEINS = -1  # sign of their phase in simulated scans
FINER = 4  # of the grid on which a microbleed is measured
BLEED_MM, SHELL_MM = 3.0, (6.0, 9.0)  # from its middle: where its darkest voxel is, and what is around it


def local_mean(volume: np.ndarray, where: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Mean of the voxels `where` in a window of rows and columns around each voxel of (n, rows, cols)."""
    size = (1, *window)
    total = ndimage.uniform_filter(np.where(where, volume, 0).astype(np.float64), size, mode="constant")
    return total / ndimage.uniform_filter(where.astype(np.float64), size, mode="constant").clip(1e-9)


def local_contrast(volume: np.ndarray, veins: np.ndarray, head: np.ndarray, window: tuple[int, int]) -> float:
    """1 less the mean over veins in the head over their surroundings'."""
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

    The contrast is 1 less its darkest voxel over a shell's median; the diameter that of a ball of the volume which is
    darker than half way between, between voxels by cubic splines.
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
    """A column for each method, a row for each picture (rows, cols); phase is shown from -1 to 1 rad, others from 0 to
    the first method's brightest."""
    first = next(iter(columns.values()))
    limits = {
        name: (-1.0, 1.0) if "phase" in name else (0.0, float(np.percentile(image, 99.7)))
        for name, image in first.items()
    }
    rows = [[(f"{method}\n{name}", columns[method][name], *limits[name]) for method in columns] for name in first]
    return panels(rows, 2.2)


Found = tuple[str, np.ndarray, float]  # method, image with its phase, seconds


WINDOW_MM = 9.0  # in the plane, of what is around a vein
NOTES = f"""NRMSE: of the magnitude, one least-squares factor. Veins in SWI and in its minIP: 1 less their mean over
that of the head around them, within {WINDOW_MM:g} mm in the plane. Vein phase: mean filtered phase of veins, where the
truth's is negative. In brackets: over the full scan's. Phase errors, of the image and of the filtered phase: root mean
square inside the head, weighted by the truth's magnitude, but for a constant. Microbleed: 1 less its darkest voxel over
what is around it, in the magnitude, and the diameter of a ball of the volume that is darker than half way. High band:
energy in the upper third of |k| along rows and along columns, inside the head, over the truth's. The full scan has the
noise of R = 1, {NOISE:g} of the scale a channel. L1-wavelet has the weight that is best for this very scan. Seconds:
one thread of a machine that other jobs share."""


@dataclass(frozen=True)
class SwiRow:
    """Ratios are over the full scan's. See NOTES."""

    scan: str
    method: str
    nrmse: float
    swi: float
    swi_ratio: float
    minip: float
    minip_ratio: float
    vein_rad: float
    vein_ratio: float
    phase_rad: float
    filtered_rad: float
    bleed: float
    bleed_mm: float
    high_rows: float
    high_cols: float
    seconds: float


@dataclass(frozen=True)
class PhaseRow:
    scan: str
    method: str
    nrmse: float
    phase_rad: float
    filtered_rad: float
    slope: float
    seconds: float


def widths(shape: tuple[int, ...]) -> tuple[int, int]:
    return round(LOW_PASS * shape[1]), round(LOW_PASS * shape[2])


def filtered(image: np.ndarray) -> np.ndarray:
    return filtered_phase(torch.from_numpy(image), widths(image.shape)).numpy()


class Judge:
    """Of a case's images against its truth and its full scan, the first one that is asked for."""

    def __init__(self, case: Case, masks: SwiMasks):
        self.case, self.masks, self.truth = case, masks, case.truth
        self.magnitude = np.abs(case.truth)
        self.head = self.magnitude > HEAD * np.percentile(self.magnitude, 99)
        self.weight = self.magnitude * self.head
        self.filtered = filtered(case.truth)
        self.count = slab_count(case.voxel_mm[0], len(case.truth))
        rows, cols = (2 * round(WINDOW_MM / side / 2) + 1 for side in case.voxel_mm[1:])
        self.window = rows, cols
        self.of_full: tuple[float, float, float] | None = None

    def swi(self, image: np.ndarray) -> np.ndarray:
        return weighted(np.abs(image), filtered(image), VEINS)

    def minip(self, volume: np.ndarray) -> np.ndarray:
        return minimum_projection(volume, self.count)

    def row(self, found: Found) -> SwiRow:
        method, image, seconds = found
        phase, swi = filtered(image), self.swi(image)
        veins = -minimum_projection(-self.masks.veins.astype(np.int8), self.count) > 0
        contrasts = (
            local_contrast(swi, self.masks.veins, self.head, self.window),
            local_contrast(self.minip(swi), veins, self.minip(self.head), self.window),
            dark_phase(phase, self.filtered, self.masks.veins & self.head),
        )
        self.of_full = full = self.of_full or contrasts
        magnitude = on_scale(np.abs(image), self.magnitude)
        return SwiRow(
            self.case.name,
            method,
            nrmse(image, self.truth),
            contrasts[0],
            contrasts[0] / full[0],
            contrasts[1],
            contrasts[1] / full[1],
            contrasts[2],
            contrasts[2] / full[2],
            phase_error(np.angle(image), np.angle(self.truth), self.weight),
            phase_error(phase, self.filtered, self.weight),
            *bleed_size(np.abs(image), self.masks.bleed, self.case.voxel_mm),
            high_band_energy(magnitude, self.magnitude, self.head, 1),
            high_band_energy(magnitude, self.magnitude, self.head, 2),
            seconds,
        )

    def pictures(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Projection through the microbleed, and magnitude and phase around veins and it."""
        partition, row, col = (int(round(places.mean())) for places in self.masks.bleed.nonzero())
        first = min(max(partition - self.count // 2, 0), len(image) - self.count)
        near = (partition, slice(max(row - 48, 0), row + 32), slice(max(col - 16, 0), col + 72))
        magnitude = on_scale(np.abs(image), self.magnitude)
        scale = magnitude.max() / np.abs(image).max()
        return {
            "projection of SWI": scale * self.minip(self.swi(image))[first],
            "magnitude": magnitude[near],
            "filtered phase": filtered(image)[near],
        }


def phase_row(case: Case, found: Found) -> PhaseRow:
    method, image, seconds = found
    magnitude = np.abs(case.truth)
    weight = magnitude * (magnitude > HEAD * np.percentile(magnitude, 99))
    phase, true_phase = filtered(image), filtered(case.truth)
    return PhaseRow(
        case.name,
        method,
        nrmse(image, case.truth),
        phase_error(np.angle(image), np.angle(case.truth), weight),
        phase_error(phase, true_phase, weight),
        slope(phase, true_phase, weight),
        seconds,
    )


def told(row: SwiRow) -> list[str]:
    return [
        row.scan,
        row.method,
        f"{row.nrmse:.4f}",
        f"{row.swi:.3f} ({row.swi_ratio:.2f})",
        f"{row.minip:.3f} ({row.minip_ratio:.2f})",
        f"{row.vein_rad:.3f} ({row.vein_ratio:.2f})",
        f"{row.phase_rad:.3f}",
        f"{row.filtered_rad:.3f}",
        f"{row.bleed:.3f}",
        f"{row.bleed_mm:.2f}",
        f"{row.high_rows:.2f}, {row.high_cols:.2f}",
        f"{row.seconds:.0f}",
    ]


HEADS = ["R = 4", "method", "NRMSE", "veins in SWI", "in the minIP", "vein phase, rad", "phase error, rad",
         "filtered phase error, rad", "microbleed", "its diameter, mm", "high band", "seconds"]  # fmt: skip
