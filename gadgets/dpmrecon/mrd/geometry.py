"""Where the voxels of an image lie in the patient: the one place that turns MRD geometry into DICOM's.

Coordinates are the patient's, LPS in mm (x to the left, y to the back, z to the head), in MRD and DICOM alike. So head
first and feet first make no difference here.

MRD gives `position`, the centre of the slice, and unit vectors along increasing columns (read_dir) and rows
(phase_dir). DICOM's ImagePositionPatient is the centre of the first voxel, row 0 and column 0. The link between them
is the transform: k-space sample k of a centred FFT of N samples has the phase exp(-2 pi i k (n - N//2) / N), which is 1
for every k at voxel n = N//2. That voxel's centre is therefore the point the gradients encode as zero, which is
where the scanner put the slice: `position`. Voxel (row, column) lies at

    position + (column - columns//2) * column_spacing * read_dir + (row - rows//2) * row_spacing * phase_dir

spacing = field of view / matrix; ImagePositionPatient is this at (0, 0). Zero-filling and cropping in
`mrd_images.to_recon_space` keep voxel N//2 where it is. In a volume the same holds for the partitions, along slice_dir:
partition N//2 is the plane through `position`.

Hosts that subtract half of the field of view, position - FOV/2 read_dir - FOV/2 phase_dir, arrive at the same point
where N is even (N//2 * FOV/N = FOV/2). Where N is odd they are half a voxel too far out. Others take that point for the
outer edge of the image, and step half a voxel inwards. They are half a voxel off where N is even and right where it is
odd.
"""

from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInputError

if TYPE_CHECKING:
    import ismrmrd

# Directions in a header are float32, of four digits or so
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Plane:
    """The voxel grid of one image in LPS mm.

    first: centre of voxel (0, 0); along_columns, along_rows: unit vectors (3,) float64 in which the column and the
    row index increase; spacing_mm: (between rows, between columns), as DICOM's PixelSpacing.
    """

    first: np.ndarray
    along_columns: np.ndarray
    along_rows: np.ndarray
    spacing_mm: tuple[float, float]

    @property
    def normal(self) -> np.ndarray:
        """Unit vector (3,) of DICOM's slice direction: along_columns x along_rows."""
        return np.cross(self.along_columns, self.along_rows)

    def point(self, row: float, column: float) -> np.ndarray:
        """Patient coordinates (3,) of a voxel."""
        down, across = self.spacing_mm
        return self.first + row * down * self.along_rows + column * across * self.along_columns

    def voxel(self, point: np.ndarray) -> tuple[float, float, float]:
        """(row, column, mm off the plane along `normal`) of patient coordinates (3,)."""
        offset = np.asarray(point, float) - self.first
        down, across = self.spacing_mm
        return offset @ self.along_rows / down, offset @ self.along_columns / across, offset @ self.normal


@dataclass(frozen=True)
class Grid:
    """A volume's voxel grid in LPS mm, axes in the order partitions, rows, columns.

    first: centre of voxel (0, 0, 0); directions: (3, 3), the unit vector in which each axis' index increases;
    spacing_mm: between neighbours along each axis.
    """

    first: np.ndarray
    directions: np.ndarray
    spacing_mm: tuple[float, float, float]

    def plane(self, partition: int) -> Plane:
        """The plane of one partition."""
        through, down, across = self.directions
        return Plane(self.first + partition * self.spacing_mm[0] * through, across, down, self.spacing_mm[1:])

    def patient_axes(self) -> tuple[int, ...]:
        """Which axis of the patient, 0 to 2 for x, y and z, each axis of the grid is nearest to."""
        return max(permutations(range(3)), key=lambda axes: sum(abs(self.directions[range(3), axes])))

    def tilt(self) -> float:
        """The largest angle, in degrees, between the grid's and the patient's axes."""
        nearest = np.abs(self.directions[range(3), self.patient_axes()])
        return float(np.degrees(np.arccos(nearest.min().clip(0, 1))))

    @property
    def orientation(self) -> str:
        """The one of ORIENTATIONS that its partitions are nearest to."""
        return next(name for name, axes in ORIENTATIONS.items() if axes[0][0] == self.patient_axes()[0])

    def resliced(self, pixels: np.ndarray, orientation: str) -> "tuple[Grid, np.ndarray]":
        """The grid and pixels (partitions, rows, columns), partitions nearest to one of ORIENTATIONS.

        Axes are swapped and turned round, as a reader expects them; no voxel changes its value or its place.
        """
        mine, first, turned = self.patient_axes(), self.first, []
        order = [mine.index(axis) for axis, _ in ORIENTATIONS[orientation]]
        directions, spacing = self.directions[order].copy(), [self.spacing_mm[axis] for axis in order]
        pixels = pixels.transpose(order)
        for number, (axis, sign) in enumerate(ORIENTATIONS[orientation]):
            turned.append(slice(None))
            if directions[number, axis] * sign < 0:
                first = first + (pixels.shape[number] - 1) * spacing[number] * directions[number]
                directions[number] *= -1
                turned[-1] = slice(None, None, -1)
        return Grid(first, directions, (spacing[0], spacing[1], spacing[2])), pixels[tuple(turned)]


# Patient axis (x left, y back, z head) and sign of slices, rows, columns
ORIENTATIONS = {
    "axial": ((2, 1), (1, 1), (0, 1)),
    "coronal": ((1, 1), (2, -1), (0, 1)),
    "sagittal": ((0, -1), (2, -1), (1, 1)),
}


def grid_of_mrd(head: "ismrmrd.ImageHeader", shape: tuple[int, ...]) -> Grid:
    """The voxel grid of a volume's MRD image (..., partitions, rows, columns).

    Raises BadInputError as `plane_of_mrd`, and for a slice_dir not across the plane.
    """
    partitions, rows, columns = shape[-3:]
    plane = plane_of_mrd(head, (rows, columns))
    through, depth = _unit("slice_dir", head.slice_dir), float(head.field_of_view[2])
    if abs(abs(through @ plane.normal) - 1) > _TOLERANCE:
        raise BadInputError(
            f"slice_dir of the scan's lines is {np.degrees(np.arccos(abs(through @ plane.normal).clip(0, 1))):.1f} "
            "degrees off the normal of read_dir and phase_dir; the partitions of a volume lie along it, correct the "
            "scan's headers"
        )
    if not 0 < depth < np.inf:
        raise BadInputError(
            f"the image of {partitions} partitions has a field of view of {depth:g} mm along them; a positive length "
            "is needed, correct the scan's header"
        )
    through = plane.normal * np.sign(through @ plane.normal)
    spacing = (depth / partitions, *plane.spacing_mm)
    first = plane.first - (partitions // 2) * spacing[0] * through
    return Grid(first, np.stack([through, plane.along_rows, plane.along_columns]), spacing)


def plane_of_partition(head: "ismrmrd.ImageHeader", shape: tuple[int, ...], partition: int) -> Plane:
    """The plane of a partition of an MRD image (..., partitions, rows, columns); a slice has one.

    Raises BadInputError as `grid_of_mrd`.
    """
    if shape[-3] == 1:
        return plane_of_mrd(head, (shape[-2], shape[-1]))
    return grid_of_mrd(head, shape).plane(partition)


def plane_of_mrd(head: "ismrmrd.ImageHeader", shape: tuple[int, int]) -> Plane:
    """The plane of an MRD image header (position, read_dir, phase_dir, field_of_view) and its (rows, columns).

    Raises BadInputError where the header's directions or field of view say nothing.
    """
    rows, columns = shape
    position = np.array(head.position[:], float)
    across, down = _unit("read_dir", head.read_dir), _unit("phase_dir", head.phase_dir)
    if abs(across @ down) > _TOLERANCE:
        raise BadInputError(
            f"read_dir and phase_dir of the scan's lines are {np.degrees(np.arccos(across @ down)):.1f} degrees apart; "
            "an image needs them at right angles, correct the scan's headers"
        )
    down = down - (down @ across) * across  # DICOM viewers tolerate less than float32 rounding leaves
    down /= np.linalg.norm(down)
    width, height = float(head.field_of_view[0]), float(head.field_of_view[1])
    if not (0 < width < np.inf and 0 < height < np.inf and np.isfinite(position).all()):
        raise BadInputError(
            f"the image has field of view {width:g} x {height:g} mm at {position}; positive lengths and a finite "
            "position are needed, correct the scan's header"
        )
    spacing = (height / rows, width / columns)
    first = position - (columns // 2) * spacing[1] * across - (rows // 2) * spacing[0] * down
    return Plane(first, across, down, spacing)


def plane_of_dicom(dataset: Any) -> Plane:
    """The plane of a DICOM image as viewers find it: ImagePositionPatient, ImageOrientationPatient, PixelSpacing."""
    orientation = np.array([float(value) for value in dataset.ImageOrientationPatient])
    return Plane(
        np.array([float(value) for value in dataset.ImagePositionPatient]),
        orientation[:3],
        orientation[3:],
        (float(dataset.PixelSpacing[0]), float(dataset.PixelSpacing[1])),
    )


def are_parallel(planes: list[Plane]) -> bool:
    """Whether rows and columns of all point the same way."""
    axes = [np.stack([plane.along_columns, plane.along_rows]) for plane in planes]
    return all(np.abs(both - axes[0]).max() <= 1e-4 for both in axes)


def slice_spacing(planes: list[Plane]) -> float | None:
    """The distance of neighbouring slices in mm; None for an uneven stack."""
    if not are_parallel(planes):
        return None
    normal = planes[0].normal
    places = np.unique(np.round([plane.first @ normal for plane in planes], 3))
    steps = np.diff(places)
    return float(steps.mean()) if len(steps) and np.ptp(steps) < 0.01 else None


def orientation_letters(direction: np.ndarray) -> str:
    """The letters viewers put at the image's edge in this direction (3,): L/R, P/A, H/F, the largest part first."""
    order = sorted(range(3), key=lambda axis: -abs(direction[axis]))
    letters = ("LR", "PA", "HF")
    return "".join(letters[axis][int(direction[axis] < 0)] for axis in order if abs(direction[axis]) > 0.1)


def _unit(name: str, values: Any) -> np.ndarray:
    vector = np.array(values[:], float)
    length = np.linalg.norm(vector)
    if not abs(length - 1) < 0.01:
        raise BadInputError(
            f"{name} of the scan's lines is {np.array2string(vector, precision=3)}; a unit vector in patient "
            "coordinates is needed, correct the scan's headers"
        )
    return vector / length
