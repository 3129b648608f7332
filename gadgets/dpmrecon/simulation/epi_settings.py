"""What a simulated EPI diffusion scan is: its shots, its readout gradient, its weightings and what spoils it."""

from dataclasses import dataclass

import numpy as np

from ..errors import BadInputError
from .settings import SimulationSettings

# unit vectors of the gradients, LPS, by their number; none: trace-weighted
DIRECTIONS: dict[int, tuple[tuple[float, float, float], ...]] = {
    0: ((0.0, 0.0, 0.0),),
    1: ((1.0, 0.0, 0.0),),
    3: ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    4: ((1.0, 1.0, 1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, -1.0, -1.0)),
    6: ((1.0, 0.0, 1.0), (-1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (0.0, 1.0, -1.0), (1.0, 1.0, 0.0), (-1.0, 1.0, 0.0)),
}


@dataclass(frozen=True)
class EpiReadout:
    """The readout of one line, times in microseconds: a trapezoid, sampled at equal times around its middle.

    As the trajectory description of the header has it: `delay` is the time of the first sample's dwell after the
    gradient's start, and a sample counts at the end of its dwell.
    """

    n_samples: int
    dwell: float
    ramp: int
    flat: int
    delay: int

    @property
    def echo_spacing(self) -> int:
        return 2 * self.ramp + self.flat

    def positions(self, cols: int) -> np.ndarray:
        """(n_samples,) float64 k of a forward line's samples, in cycles per field of view, 0 in the middle of the
        gradient: the sampled time covers `cols` of them. A reversed line has the same with the other sign."""
        time = self.delay + self.dwell * (np.arange(self.n_samples) + 1)
        area = self._area(time)
        covered = self._area(self.delay + self.dwell * np.array([0, self.n_samples]))
        return cols / (covered[1] - covered[0]) * (area - (self.ramp + self.flat) / 2)

    def as_if_flat(self, cols: int) -> np.ndarray:
        """(n_samples,) float64, `positions` if the gradient were at its top throughout."""
        top = np.diff(self.positions(cols)).max()
        return top * (np.arange(self.n_samples) + 1 - self.n_samples / 2)

    def _area(self, time: np.ndarray) -> np.ndarray:
        """Area of a gradient of unit height up to `time`."""
        up, top, down = self.ramp, self.flat, self.echo_spacing - time
        area = up / 2 + (time - up).clip(0, top)
        if up:
            area = area - np.where(time < up, up / 2 - time**2 / (2 * up), 0)
            area = area + np.where(down < up, up / 2 - down**2 / (2 * up), 0)
        return area


@dataclass(frozen=True)
class EpiSettings(SimulationSettings):
    """A diffusion scan by EPI: b = 0 first, then each direction of each further b-value.

    Every second line runs backwards, and three navigator lines through the centre of k-space come before the lines of
    a shot. The settings of SimulationSettings mean the same.
    """

    contrast: str = "dwi"
    matrix: tuple[int, int] = (128, 128)
    acceleration: int = 2
    calibration: str = "separate"
    b_values: tuple[float, ...] = (0.0, 1000.0)
    directions_per_b: int = 3  # 0: one trace-weighted image
    averages: int = 1  # of the images with a b-value above 0
    unweighted_averages: int = 1  # of those with b = 0
    shots: int = 1  # of one image: shot s has every `shots`-th line
    ramp_sampling: bool = False  # else all samples lie on the flat top
    # as on Siemens's scanners: ramps keep the phase of an off-centre field of view
    fixed_receiver: bool = False
    calibration_by: str = "epi"  # shots of the images' echo spacing; "gre": no reversed lines; "own-space": nor cols
    weighting_counter: str = "contrast"  # or "repetition": the counter that tells b-values and directions
    ghost: float = 0.1  # of the signal, before correction
    ghost_drift: float = 0.3  # part of it by which it changes over the scan
    motion: float = 1.0  # of the random phase of each shot at b = 1000; 0: none
    eddy: float = 1.0  # of the phase of each direction; 0: none
    emboli: int = 8  # of 1 to 4 mm diameter in each slice

    def __post_init__(self) -> None:
        for name, choices in (
            ("contrast", ("dwi",)),
            ("calibration", ("separate", "none")),
            ("calibration_by", ("epi", "gre", "own-space")),
            ("weighting_counter", ("contrast", "repetition")),
            ("directions_per_b", tuple(DIRECTIONS)),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise BadInputError(
                    f"{name} is {value!r}, which EPI is not simulated with; use one of {', '.join(map(str, choices))}"
                )
        super().__post_init__()
        for name in ("unweighted_averages", "shots"):
            count = getattr(self, name)
            if not isinstance(count, int) or not 1 <= count <= 4096:
                raise BadInputError(f"{name} is {count}; it must be a whole number from 1 to 4096")
        for name, most in (("ghost", 0.5), ("ghost_drift", 1.0), ("motion", 100.0), ("eddy", 100.0), ("emboli", 16)):
            if not 0 <= getattr(self, name) <= most:
                raise BadInputError(f"{name} is {getattr(self, name)}; it must be from 0 to {most:g}")
        if not self.b_values or list(self.b_values) != sorted(set(self.b_values)):
            raise BadInputError(f"b_values are {self.b_values}; give each once, in ascending order")
        if self.wrap or self.asymmetric_echo < 1:
            raise BadInputError(
                "EPI is simulated without wrap and with full echoes; leave wrap and asymmetric_echo out"
            )
        if self.ramp_sampling and self.oversampling == 1:
            raise BadInputError(
                "with samples on ramps those of the flat top are too far apart without oversampling; give oversampling "
                "2, or leave ramp_sampling out"
            )
        if self.weighting_counter == "repetition" and self.repetitions > 1:
            raise BadInputError("the counter repetition tells the weightings; give one repetition, or counter contrast")
        if len(self.grid_rows()) < 2 * self.shots:
            raise BadInputError(
                f"{self.shots} shots of {len(self.grid_rows())} lines; give every shot two lines, a forward and a "
                "reversed one"
            )

    @property
    def weightings(self) -> tuple[float, ...]:
        """The b-value of each image of one place, in the order of `weighting_counter`."""
        return tuple(b for b, _ in self.weighting_table)

    @property
    def weighting_table(self) -> list[tuple[float, tuple[float, float, float]]]:
        """(b-value, unit vector along the gradient in LPS) of each, (0, 0, 0) for b = 0 and trace-weighted images."""
        table: list[tuple[float, tuple[float, float, float]]] = []
        for b in self.b_values:
            for direction in DIRECTIONS[self.directions_per_b if b else 0]:
                x, y, z = np.array(direction) / max(np.linalg.norm(direction), 1.0)
                table.append((b, (float(x), float(y), float(z))))
        return table

    def averages_of(self, weighting: int) -> int:
        """Averages of the weighting-th image."""
        return self.averages if self.weightings[weighting] else self.unweighted_averages

    @property
    def readout(self) -> EpiReadout:
        """Ramps of a fifth of the sampling time; with ramp sampling all but a quarter of them is sampled."""
        dwell = 2.0
        sampled = round(self.samples * dwell)
        ramp = round(0.2 * sampled)
        delay = ramp // 4 if self.ramp_sampling else ramp
        return EpiReadout(self.samples, dwell, ramp, sampled + 2 * delay - 2 * ramp, delay)

    @property
    def calibration_cols(self) -> int:
        """Readout points of the calibration without oversampling: half as many where it has an own encoding space."""
        return max(16, self.cols // 2) if self.calibration_by == "own-space" else self.cols

    @property
    def calibration_dwell(self) -> float:
        """Microseconds, of calibration by a gradient echo and of the noise scan."""
        return 10.0 / self.oversampling

    def shot_rows(self) -> list[list[int]]:
        """Rows of each shot of an image, in the order of acquisition."""
        return [self.grid_rows()[shot :: self.shots] for shot in range(self.shots)]

    def calibration_shots(self) -> list[list[int]]:
        """Rows of each shot of the calibration: of EPI as many shots as keep the echo spacing along the lines, which
        distorts it as the images; of a gradient echo one."""
        rows = list(self.calibration_rows())
        n_shots = self.acceleration * self.shots if self.calibration_by == "epi" else 1
        return [rows[shot::n_shots] for shot in range(n_shots) if rows[shot::n_shots]]
