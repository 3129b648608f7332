"""The picture of a protocol: a column for each kind of image, all in one plane of the patient, a row for each set.

As Figure 8 of the source paper: trace, ADC, SWI, FLAIR, T1 and others, standard of care over accelerated.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ismrmrd
import numpy as np

from ..errors import BadInputError
from ..mrd.geometry import Grid, grid_of_mrd, plane_of_mrd
from .images_file import images_in, series_of
from .maps import ADC, ADC_WINDOW, TRACE
from .mrd_images import COUNTERS, RECONSTRUCTION
from .swi import SWI
from .weighting import B_VALUE
from .writers import telling

# what is shown of a contrast, series and name; else the reconstruction
KINDS = {"dwi": ((TRACE, "trace"), (ADC, "ADC")), "swi": ((SWI, "SWI"),)}
ORDER = ("dwi", "swi", "flair", "t1", "t2")  # of the columns; what is not known comes last
PIXELS = 384  # of a picture's longer side
SAME_PLANE = 25.0  # degrees between slices and the picture's plane, below which the nearest slice is shown


@dataclass(frozen=True)
class Shown:
    """A scan of the picture. folder: of its replay; name: of its protocol; row: the set it is of; frame: of reference,
    in which places can be compared; told: under the name, line by line."""

    folder: Path
    name: str
    row: str
    contrast: str | None
    frame: str
    told: tuple[str, ...] = ()


@dataclass
class _Stack:
    """Slices or a volume as grids of one plane, or of all partitions, each with its pixels (partitions, rows, cols)."""

    parts: list[tuple[Grid, np.ndarray]]

    @classmethod
    def read(cls, images: Path, series: int) -> "_Stack | None":
        """The largest of several b-values of a trace, the first of several echoes or averages of others; None where
        directions say nothing."""
        found: dict[tuple[float, ...], list[tuple[Grid, np.ndarray]]] = {}
        try:
            for image in images_in(images, series):
                weighting = float(image.meta[B_VALUE[0]]) if series == TRACE else 0.0
                counters = (weighting, *(int(getattr(image.getHead(), name)) for name in COUNTERS))
                found.setdefault(counters, []).append((_grid(image), np.asarray(image.data[0], np.float32)))
        except BadInputError:
            return None
        return cls(found[max(found) if series == TRACE else min(found)])

    @property
    def is_volume(self) -> bool:
        return len(self.parts[0][1]) > 1

    def reach(self, normal: np.ndarray) -> tuple[float, float]:
        """The first and last place, in mm along a direction, that its voxels have."""
        corners = [
            grid.first + np.array(corner) * (np.array(pixels.shape) - 1) * grid.spacing_mm @ grid.directions
            for grid, pixels in self.parts
            for corner in itertools.product((0, 1), repeat=3)
        ]
        if not self.is_volume:  # a slice lies where its middle is
            corners = [_middle(grid, pixels) for grid, pixels in self.parts]
        places = [float(corner @ normal) for corner in corners]
        return min(places), max(places)

    def near(self, point: np.ndarray) -> tuple[Grid, np.ndarray]:
        """The volume, or the slice that is nearest to a point."""
        return min(self.parts, key=lambda part: abs((point - part[0].first) @ part[0].directions[0]))

    def picture(self, view: Grid, size: tuple[int, int]) -> tuple[np.ndarray, str]:
        """(rows, cols) in a plane, and what is to be said of it: slices of about this plane are shown as acquired,
        volumes interpolated."""
        point = view.first + (np.array(size) - 1) / 2 * view.spacing_mm[1:] @ view.directions[1:]
        grid, pixels = self.near(point)
        if not self.is_volume:
            angle = np.degrees(np.arccos(abs(grid.directions[0] @ view.directions[0]).clip(0, 1)))
            if angle > SAME_PLANE:
                grid, pixels = self.parts[len(self.parts) // 2]
                return _upright(grid, pixels)[1][0], "another orientation"
            off = abs(float((point - grid.first) @ grid.directions[0]))
            note = f"{off:.0f} mm off" if off > grid.spacing_mm[0] else ""
            return _interpolated(grid, pixels, view, size), note
        return _interpolated(grid, pixels, view, size), ""


def write_overview(path: Path, scans: Sequence[Shown], rows: Sequence[str]) -> None:
    """Draw overview.png. rows: names of the sets, in order; scans of several share columns by protocol name, else by
    contrast. Raises BadInputError where it cannot be written."""
    from matplotlib.figure import Figure  # heavy, and needed for the picture alone

    scans = sorted(scans, key=lambda scan: (_order(scan), -rows.index(scan.row)))
    pictures = [(scan, kind, stack) for scan in scans for kind, stack in _stacks(scan)]
    numbers = _paired(scans)
    columns = list(dict.fromkeys((numbers[scan.folder], kind) for scan, kind, _ in pictures))
    if not columns:
        return
    frame, view, size = _view([(scan, stack) for scan, _, stack in pictures if stack is not None])
    figure = Figure(figsize=(2.5 * len(columns), 3.05 * len(rows) + 0.2), facecolor="black")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for axis in grid.ravel():
        axis.set_axis_off()
    for scan, kind, stack in pictures:
        axis = grid[rows.index(scan.row), columns.index((numbers[scan.folder], kind))]
        if stack is None:
            image, note = np.zeros(size, np.float32), "no geometry"
        elif scan.frame != frame:
            part = stack.parts[len(stack.parts) // 2]
            turned = _upright(*part)[1]
            image, note = turned[len(turned) // 2], "another frame of reference"
        else:
            image, note = stack.picture(view, size)
        bright = ADC_WINDOW if kind == "ADC" else float(np.percentile(image, 99.7)) or 1.0
        axis.imshow(image, cmap="gray", vmin=0, vmax=bright)
        title = " ".join(filter(None, (scan.name, kind)))
        axis.set_title("\n".join((title, *scan.told, note)).rstrip(), color="white", fontsize=8)
    for axes, name in zip(grid, rows if len(rows) > 1 else ()):
        axes[0].text(-0.04, 0.5, name, transform=axes[0].transAxes, color="white", rotation=90, va="center", ha="right")
    figure.text(0.995, 0.004, "RESEARCH: not for diagnostic use", color="gray", fontsize=7, ha="right", va="bottom")
    figure.tight_layout(pad=0.4)
    with telling(path.parent, "make room or choose another --out"):
        figure.savefig(path, dpi=100, facecolor="black", metadata={"Software": None})


def _order(scan: Shown) -> int:
    return ORDER.index(scan.contrast) if scan.contrast in ORDER else len(ORDER)


def _paired(scans: Sequence[Shown]) -> dict[Path, int]:
    """A number for each scan, by its folder: the same for counterparts in different rows, of the same protocol name,
    else of the same contrast. Those of the first scan's row come first."""
    numbers = {scan.folder: number for number, scan in enumerate(scans)}
    free = [scan for scan in scans if scan.row == scans[0].row] if scans else []
    waiting = [scan for scan in scans if scan not in free]
    for attribute in ("name", "contrast"):
        for scan in list(waiting):
            value = getattr(scan, attribute)
            partner = next((other for other in free if value and getattr(other, attribute) == value), None)
            if partner is not None:
                numbers[scan.folder] = numbers[partner.folder]
                free.remove(partner)
                waiting.remove(scan)
    return numbers


def _stacks(scan: Shown) -> list[tuple[str, _Stack | None]]:
    """What is shown of a scan; nothing where it has no images."""
    images = scan.folder / "images.h5"
    there = series_of(images)
    kinds = [(name, series) for series, name in KINDS.get(str(scan.contrast), ()) if series in there]
    kinds = kinds or ([("", RECONSTRUCTION)] if RECONSTRUCTION in there else [])
    return [(name, _Stack.read(images, series)) for name, series in kinds]


def _view(stacks: Sequence[tuple[Shown, _Stack]]) -> tuple[str, Grid, tuple[int, int]]:
    """The frame of reference, the plane as a grid of one partition, and the size (rows, cols) of the pictures.

    The plane is a slice of the first axial 2D scan, else of any 2D scan, else an axial partition of a volume: the one
    nearest the middle of its frame of reference's scans.
    """

    def rank(entry: tuple[Shown, _Stack]) -> tuple[bool, bool]:
        stack = entry[1]
        return stack.is_volume, stack.parts[0][0].orientation != "axial"

    if not stacks:
        return "", Grid(np.zeros(3), np.eye(3), (1.0, 1.0, 1.0)), (PIXELS, PIXELS)
    scan, stack = min(stacks, key=rank)
    plane = "axial" if stack.is_volume else stack.parts[0][0].orientation
    parts = [grid.resliced(pixels, plane) for grid, pixels in stack.parts]
    normal = parts[0][0].directions[0]
    reaches = [other.reach(normal) for shown, other in stacks if shown.frame == scan.frame]
    level = (max(low for low, _ in reaches) + min(high for _, high in reaches)) / 2
    slices = [
        replace(grid, first=grid.first + number * grid.spacing_mm[0] * normal)
        for grid, pixels in parts
        for number in range(len(pixels))
    ]
    shape = parts[0][1].shape[1:]
    place = min(slices, key=lambda grid: abs(float(_middle(grid, np.empty((1, *shape))) @ normal) - level))
    lengths = [count * step for count, step in zip(shape, place.spacing_mm[1:])]
    pixel = max(lengths) / PIXELS
    rows, cols = (round(length / pixel) for length in lengths)
    # the outer edges of the first voxels stay where they are
    first = place.first - sum(
        (step - pixel) / 2 * axis for step, axis in zip(place.spacing_mm[1:], place.directions[1:])
    )
    return scan.frame, Grid(first, place.directions, (place.spacing_mm[0], pixel, pixel)), (rows, cols)


def _grid(image: ismrmrd.Image) -> Grid:
    """Of a volume's image; of a slice's, with one partition. Raises BadInputError."""
    head, shape = image.getHead(), image.data.shape
    if shape[1] > 1:
        return grid_of_mrd(head, shape)
    plane = plane_of_mrd(head, shape[2:])
    directions = np.stack([plane.normal, plane.along_rows, plane.along_columns])
    return Grid(plane.first, directions, (float(head.field_of_view[2]), *plane.spacing_mm))


def _upright(grid: Grid, pixels: np.ndarray) -> tuple[Grid, np.ndarray]:
    return grid.resliced(pixels, grid.orientation)


def _middle(grid: Grid, pixels: np.ndarray) -> np.ndarray:
    return grid.first + (np.array(pixels.shape) - 1) / 2 * grid.spacing_mm @ grid.directions


def _interpolated(grid: Grid, pixels: np.ndarray, view: Grid, size: tuple[int, int]) -> np.ndarray:
    """(rows, cols) float32 at the points of a plane, linear between voxels, 0 outside."""
    down, across = (np.arange(count) * step for count, step in zip(size, view.spacing_mm[1:]))
    points = view.first + down[:, None, None] * view.directions[1] + across[:, None] * view.directions[2]
    voxels = (points - grid.first) @ grid.directions.T / grid.spacing_mm
    shape = np.array(pixels.shape)
    if shape[0] == 1:  # a slice is seen along its normal
        voxels[..., 0] = 0
    inside = np.all((voxels > -0.5 - 1e-6) & (voxels < shape - 0.5 + 1e-6), axis=-1)
    voxels = voxels.clip(0, shape - 1)
    low = np.minimum(voxels.astype(int), np.maximum(shape - 2, 0))
    share = voxels - low
    found = np.zeros(size)
    for corner in itertools.product((0, 1), repeat=3):
        place = np.minimum(low + corner, shape - 1)
        weight = np.prod(np.where(corner, share, 1 - share), axis=-1)
        found += weight * pixels[tuple(np.moveaxis(place, -1, 0))]
    return np.where(inside, found, 0).astype(np.float32)
