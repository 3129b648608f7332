"""What a simulated scan is: its contrast, its sampling, and where its slices lie in the patient."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from ..errors import BadInputError
from .phantom import CONTRASTS
from .sampling import Pattern

# read and phase directions, LPS; the slice direction is their cross product
_AXES = {
    "axial": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "sagittal": ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
    "coronal": ((0.0, 0.0, -1.0), (1.0, 0.0, 0.0)),
}


@cache  # asked for with every line
def _directions(rotation_deg: tuple[float, float, float], orientation: str) -> np.ndarray:
    """(3, 3), read-only: unit vectors in LPS along read, phase and slice."""
    ax, ay, az = np.deg2rad(rotation_deg)
    about_x = np.array([[1, 0, 0], [0, np.cos(ax), -np.sin(ax)], [0, np.sin(ax), np.cos(ax)]])
    about_y = np.array([[np.cos(ay), 0, np.sin(ay)], [0, 1, 0], [-np.sin(ay), 0, np.cos(ay)]])
    about_z = np.array([[np.cos(az), -np.sin(az), 0], [np.sin(az), np.cos(az), 0], [0, 0, 1]])
    axes = np.array(_AXES[orientation])
    found = (about_z @ about_y @ about_x @ np.vstack([axes, np.cross(*axes)]).T).T
    found.setflags(write=False)
    return found


@dataclass(frozen=True)
class SimulationSettings:
    """What to simulate. Sizes are (rows, cols): rows are phase-encoding lines, cols are readout samples.

    subject is the seed of the anatomy, the coils and the phase, seed that of the noise: the truth does not depend
    on seed, nor on how k-space is sampled.
    """

    contrast: str = "flair"
    matrix: tuple[int, int] = (256, 256)
    fov_mm: tuple[float, float] = (230.0, 230.0)
    slice_thickness_mm: float = 4.0
    slice_gap_mm: float = 1.0
    n_slices: int = 3
    acceleration: int = 4
    calibration: str = "embedded"  # or "separate", or "none"
    calibration_lines: int = 24
    n_coils: int = 8
    noise: float = 0.021  # standard deviation per real channel, whitened, over the truth's 99th percentile
    noise_correlation: float = 0.15  # typical correlation of two channels
    noise_scan: bool = True
    oversampling: int = 2
    partial_fourier: float = 1.0  # part of the lines that is acquired; the early ones are left out
    asymmetric_echo: float = 1.0  # part of every readout that is acquired; the early samples are left out
    orientation: str = "axial"  # or "sagittal", "coronal": read and phase directions before the rotation
    rotation_deg: tuple[float, float, float] = (20.0, 0.0, 4.0)  # of the slices, about x, then y, then z
    position_mm: tuple[float, float, float] = (4.0, -5.0, 20.0)  # centre of the slice group, LPS
    interleaved: bool = True
    averages: int = 1
    repetitions: int = 1
    b_value: float = 1000.0  # s/mm^2, for dwi alone
    b_values: tuple[float, ...] = ()  # several, for dwi alone, in place of b_value; the counter `contrast` tells them
    echoes: int = 1  # for swi alone; the counter `contrast` tells them
    echo_times_ms: tuple[float, ...] = ()  # of each; as a rule proportional to their number, 20 ms in the mean
    patient_position: str = "HFS"  # only what the header says: all coordinates are the patient's
    wrap: bool = False  # what lies beyond the field of view along the lines is folded into it
    swap_phase: bool = False  # lines run where readout samples ran: the two directions change places
    phantom: str = "head"  # or "letters", the test object for geometry
    subject: int = 0
    seed: int = 0
    lesion_side: str = "left"
    marker_mm: tuple[float, float, float] | None = None  # a fiducial ball of 3 mm radius, LPS
    vendor: str = "SIMULATED"  # Siemens's files hold conjugated k-space (mrd/receiving.py)

    def __post_init__(self) -> None:
        for name, choices in (
            ("contrast", tuple(CONTRASTS)),
            ("calibration", ("embedded", "separate", "none")),
            ("oversampling", (1, 2)),
            ("lesion_side", ("left", "right")),
            ("orientation", tuple(_AXES)),
            ("phantom", ("head", "letters")),
            ("patient_position", tuple(f"{first}F{side}" for first in "HF" for side in ("S", "P", "DR", "DL"))),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise BadInputError(f"{name} is {value!r}; use one of {', '.join(map(str, choices))}")
        whole = {"rows": self.matrix[0], "cols": self.matrix[1]}
        for name in ("n_slices", "acceleration", "n_coils", "averages", "repetitions", "echoes"):
            whole[name] = getattr(self, name)
        for name, count in whole.items():
            least = 16 if name in ("rows", "cols") else 1
            if not isinstance(count, int) or not least <= count <= 4096:
                raise BadInputError(f"{name} is {count}; it must be a whole number from {least} to 4096")
        for name, number in (("fov_mm", min(self.fov_mm)), ("slice_thickness_mm", self.slice_thickness_mm)):
            if not 0 < number < np.inf:
                raise BadInputError(f"{name} is {number}; it must be a length above 0 mm")
        for name in ("slice_gap_mm", "noise", "noise_correlation", "b_value", "subject", "seed"):
            if not 0 <= getattr(self, name) < np.inf:
                raise BadInputError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.b_values and (self.contrast != "dwi" or not all(0 <= b < np.inf for b in self.b_values)):
            raise BadInputError(
                f"b_values are {self.b_values} for {self.contrast}; give values of 0 or more, and contrast dwi"
            )
        if self.contrast != "swi" and (self.echoes > 1 or self.echo_times_ms):
            raise BadInputError(f"several echoes or their times are given for {self.contrast}; give contrast swi")
        if self.echo_times_ms and (
            len(self.echo_times_ms) != self.echoes or not all(0 < time < np.inf for time in self.echo_times_ms)
        ):
            raise BadInputError(
                f"echo times are {self.echo_times_ms} ms for {self.echoes} echoes; give one above 0 for each echo"
            )
        if self.contrast == "swi" and self.wrap:
            raise BadInputError("swi is simulated without wrap: the phase of what folds is not defined")
        for name in ("partial_fourier", "asymmetric_echo"):
            if not 0.5 < getattr(self, name) <= 1:
                raise BadInputError(f"{name} is {getattr(self, name)}; it must be above 0.5 and at most 1")
        if self.calibration != "none":
            reach = self.rows // 2 - self.skipped_rows
            if not 2 <= self.calibration_lines <= 2 * reach:
                raise BadInputError(
                    f"{self.calibration_lines} calibration lines asked for; this matrix and partial Fourier have room "
                    f"for 2 to {2 * reach} around the centre"
                )

    @property
    def rows(self) -> int:
        return self.matrix[0]

    @property
    def cols(self) -> int:
        return self.matrix[1]

    @property
    def weightings(self) -> tuple[float, ...]:
        """What tells one place's images apart, in order of the counter `contrast`: b-values in s/mm^2 of dwi, echo
        times in ms of swi; one number without a meaning for others."""
        if self.contrast == "swi":
            mean = CONTRASTS["swi"].te
            return self.echo_times_ms or tuple(2 * mean * (n + 1) / (self.echoes + 1) for n in range(self.echoes))
        return self.b_values or (self.b_value,)

    @property
    def pixel_mm(self) -> tuple[float, float]:
        return self.fov_mm[0] / self.rows, self.fov_mm[1] / self.cols

    @property
    def samples(self) -> int:
        """Readout samples of a full echo, oversampling included."""
        return self.cols * self.oversampling

    @property
    def skipped_rows(self) -> int:
        return self.rows - int(np.ceil(self.partial_fourier * self.rows - 1e-9))

    @property
    def skipped_samples(self) -> int:
        return self.samples - int(np.ceil(self.asymmetric_echo * self.samples - 1e-9))

    # a 2D scan has one partition; VolumeSettings has its own
    @property
    def partitions(self) -> int:
        return 1

    @property
    def partition_acceleration(self) -> int:
        return 1

    @property
    def encoded_partitions(self) -> int:
        """Partitions that are encoded (kspace_encode_step_2)."""
        return 1

    @property
    def skipped_partitions(self) -> int:
        return 0

    def calibration_rows(self) -> range:
        """Rows of the calibration region, k-space centre (row rows//2) in its middle; empty without calibration."""
        if self.calibration == "none":
            return range(0)
        start = self.rows // 2 - self.calibration_lines // 2
        return range(start, start + self.calibration_lines)

    def grid_rows(self) -> list[int]:
        """Rows of the regular undersampling, which holds the k-space centre."""
        offset = self.rows // 2 % self.acceleration
        return [row for row in range(self.skipped_rows, self.rows) if row % self.acceleration == offset]

    def calibration_places(self) -> list[tuple[int, int]]:
        """(partition, row) of the calibration region's lines, in order."""
        return [(0, row) for row in self.calibration_rows()]

    def grid_places(self) -> list[tuple[int, int]]:
        """(partition, row) of the undersampled lines, in order."""
        return [(0, row) for row in self.grid_rows()]

    def directions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit vectors (3,) in LPS along increasing cols, rows and slice index."""
        read, phase, through = _directions(tuple(self.rotation_deg), self.orientation)
        return (phase, read, through) if self.swap_phase else (read, phase, through)

    def slice_position(self, index: int) -> np.ndarray:
        """Centre (3,) of a slice in LPS mm: voxel (rows//2, cols//2)."""
        step = self.slice_thickness_mm + self.slice_gap_mm
        return np.array(self.position_mm) + (index - (self.n_slices - 1) / 2) * step * self.directions()[2]

    def slice_order(self) -> list[int]:
        """Slice indices in the order of acquisition: 1, 3, ..., 0, 2, ... where interleaved."""
        indices = list(range(self.n_slices))
        return indices[1::2] + indices[::2] if self.interleaved else indices


@dataclass(frozen=True)
class VolumeSettings(SimulationSettings):
    """A 3D scan: one slab of partitions; `slice_thickness_mm` is a partition's, `calibration_lines` the length of both
    sides of the calibration block. The settings of SimulationSettings are those of the rows (kspace_encode_step_1)."""

    n_slices: int = 1
    slice_gap_mm: float = 0.0
    slice_thickness_mm: float = 2.0
    partitions: int = 80  # of the image; the middle of the slab is voxel partitions//2
    acceleration: int = 2
    partition_acceleration: int = 2  # of kspace_encode_step_2
    caipirinha: int = 0  # partitions by which the grid moves from one acquired row to the next
    elliptical: bool = False  # the corners of the plane of rows and partitions are left out
    sampling: str = "regular"  # or "random", "poisson": denser in the centre, as many lines as the factors say
    partition_partial_fourier: float = 1.0
    slice_oversampling: float = 1.0  # encoded partitions over those of the image

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling not in ("regular", "random", "poisson"):
            raise BadInputError(f"sampling is {self.sampling!r}; use one of regular, random, poisson")
        if self.n_slices != 1 or self.slice_gap_mm:
            raise BadInputError("a 3D scan is simulated as one slab; give no slices or gap")
        for name, least in (("partitions", 8), ("partition_acceleration", 1), ("caipirinha", 0)):
            count = getattr(self, name)
            if not isinstance(count, int) or not least <= count <= 4096:
                raise BadInputError(f"{name} is {count}; it must be a whole number from {least} to 4096")
        if not 0.5 < self.partition_partial_fourier <= 1:
            raise BadInputError(
                f"partition_partial_fourier is {self.partition_partial_fourier}; it must be above 0.5 and at most 1"
            )
        if not 1 <= self.slice_oversampling <= 4:
            raise BadInputError(f"slice_oversampling is {self.slice_oversampling}; it must be from 1 to 4")
        reach = self.encoded_partitions // 2 - self.skipped_partitions
        if self.calibration != "none" and self.calibration_lines > 2 * reach:
            raise BadInputError(
                f"a calibration block of {self.calibration_lines} partitions asked for; this slab and partial Fourier "
                f"have room for 2 to {2 * reach} around the centre"
            )

    @property
    def encoded_partitions(self) -> int:
        return int(np.ceil(self.slice_oversampling * self.partitions - 1e-9))

    @property
    def skipped_partitions(self) -> int:
        return self.encoded_partitions - int(np.ceil(self.partition_partial_fourier * self.encoded_partitions - 1e-9))

    def calibration_places(self) -> list[tuple[int, int]]:
        rows = self.calibration_rows()
        shift = self.encoded_partitions // 2 - self.rows // 2
        return [(row + shift, other) for row in rows for other in rows]

    def grid_places(self) -> list[tuple[int, int]]:
        pattern = Pattern(
            (self.encoded_partitions, self.rows),
            (self.partition_acceleration, self.acceleration),
            (self.skipped_partitions, self.skipped_rows),
            self.elliptical,
        )
        if self.sampling == "regular":
            chosen = pattern.regular(self.caipirinha)
        else:
            rng = np.random.default_rng([self.seed, 25])
            chosen = pattern.random(rng) if self.sampling == "random" else pattern.poisson(rng)
        return [(int(partition), int(row)) for partition, row in np.argwhere(chosen)]
