"""What a slice is, with no host in it: k-space, where it was acquired, and how noisy it is."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

# where a slice's noise level is from
MEASURED = "noise scan"
ESTIMATED = "k-space periphery"


@dataclass(frozen=True, order=True)
class SliceKey:
    """What tells one slice from another; numbers as the lines' headers count them."""

    slice: int
    contrast: int = 0
    phase: int = 0
    set: int = 0
    repetition: int = 0
    average: int = 0

    @classmethod
    def of(cls, counters: Any) -> "SliceKey":
        """That of an MRD image's header."""
        return cls(*(int(getattr(counters, part.name)) for part in fields(cls)))

    @property
    def seed_key(self) -> tuple[int, ...]:
        """What enters the seeds of the slice's samples, see `Slice`."""
        return self.slice, self.contrast, self.phase, self.set, self.repetition, self.average


@dataclass
class Slice:
    """One complete slice on the encoded grid without readout oversampling.

    kspace: (n_coils, rows, cols) complex64, whitened where a noise scan came, zero where not acquired; mask: (rows,
    cols) float32, 1 where acquired; calibration: (n_coils, rows_cal, cols) complex64, fully sampled, k-space centre at
    rows_cal//2, or None; sigma_n: standard deviation of the noise in one real channel of `kspace`; noise_source:
    MEASURED, ESTIMATED or "given"; acceleration: as announced, or as the lines show it where nothing is announced;
    n_lines_got: different lines acquired; n_lines_needed: lines that limits and acceleration announce; seed_key:
    numbers that alone enter the seeds of its samples; remarks: what was repaired or left out, or is doubtful, a
    sentence's end each; pooled: the calibration is made of lines of other averages or repetitions too, which are no
    data of this one; ghost: of EPI, amplitude of the N/2 ghost over the signal's by the navigators: after and before
    its correction, of the shot that has most left; others: its further averages, each with a phase of its own; shots:
    (rows,) int64, the shot of each acquired row, where each shot has a phase of its own, else None; n_averages: that
    are in `kspace`, whose coils are then those of each in turn; channels: the receiver's numbers of those in `kspace`,
    empty where not known; calibration_noise: standard deviation of the noise in `calibration` over sigma_n, where
    averages of the image's lines have less, else 1.
    """

    key: SliceKey
    kspace: "torch.Tensor"
    mask: "torch.Tensor"
    calibration: "torch.Tensor | None"
    sigma_n: float
    noise_source: str
    acceleration: float
    n_lines_got: int
    n_lines_needed: int
    seed_key: tuple[int, ...]
    remarks: tuple[str, ...] = ()
    pooled: bool = False
    ghost: tuple[float, float] | None = None
    others: "tuple[Slice, ...]" = ()
    shots: "torch.Tensor | None" = None
    n_averages: int = 1
    channels: tuple[int, ...] = ()
    calibration_noise: float = 1.0


AnySlice = TypeVar("AnySlice", bound=Slice)


@dataclass
class Volume(Slice):
    """One complete volume of a 3D scan: a Slice whose arrays have partitions (kspace_encode_step_2) before the rows.

    kspace: (n_coils, partitions, rows, cols) complex64; mask: (partitions, rows, cols) float32, the same columns in
    every acquired line; calibration: (n_coils, partitions_cal, rows_cal, cols) complex64, a fully sampled block with
    the k-space centre at partitions_cal//2 and rows_cal//2, or None; acceleration: of both directions together;
    key.slice: the slab; voxel_mm: along partitions, rows and columns.
    """

    voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass
class LostSlice:
    """A slice that cannot be reconstructed, and why, as part of a sentence."""

    key: SliceKey
    reason: str
