"""What passes between the steps of a reconstruction."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ..data import Slice, SliceKey, Volume
from ..physics.forward import ForwardModel
from ..physics.volume import VolumeModel
from ..prior.checkpoint import Checkpoint
from ..prior.kinds import Settings

# planes of fewer pixels, or of longer ones, are not shown to the prior: training/reports/volumes/planes
SHORTEST, LONGEST_PIXEL = 16, 1.3
DISTRUSTED = "NOT TO BE TRUSTED: "  # how such a remark begins


@dataclass(frozen=True)
class Sampling:
    """How slices are sampled. batch: most images (slices times samples) the network sees at once; deadline: seconds
    for the whole scan, to which `samples` and the steps are cut, None for no limit; mode: which of the model's
    settings; source: where they come from, in words; keep_samples: each Reconstruction holds its samples; gate: off,
    warn, or fallback where an image is not to be trusted; asks: False where a deadline leaves the gate no time to ask
    prior and data; adapt: fit the prior to the scan; precision: auto, or float32 where that was asked for; image: of
    the uncertainty mode, how the image is sampled, whose error the spread of the samples tells: None for their mean."""

    sampler: str
    settings: Settings
    samples: int
    seed: int
    batch: int
    fallback: bool
    deadline: float | None = None
    mode: str = "fast"
    source: str = "given"
    keep_samples: bool = False
    gate: str = "off"
    asks: bool = True
    adapt: bool = False
    precision: str = "auto"
    image: "Sampling | None" = None

    @property
    def evaluations(self) -> int:
        """Of the network, a slice."""
        return self.samples * self.settings.steps + (0 if self.image is None else self.image.evaluations)

    @property
    def told(self) -> str:
        """Such as "3 x 20 steps", see `Reconstruction.drawn`."""
        image = None if self.image is None else (self.image.samples, self.image.settings.steps)
        return _told(self.samples, self.settings.steps, image)


def _told(samples: int, steps: int, image: tuple[int, int] | None) -> str:
    if image is None:
        return f"{samples} x {steps} steps"
    spread = f"{samples} x {steps} for the spread" if samples else "no time for a spread"
    return f"{image[0]} x {image[1]} steps, {spread}"


@dataclass(frozen=True)
class Misfit:
    """What an image leaves of its data, over what the noise alone would leave, as root mean squares.

    residual: of all samples; by_row: (rows,) float32, of a volume (partitions, rows), nan where nothing was acquired;
    by_channel: (n_coils,) float32.
    """

    residual: float
    by_row: torch.Tensor
    by_channel: torch.Tensor


@dataclass(frozen=True)
class Agreement:
    """How far a slice is from the sound scans of its contrast, R and noise, see `agreement.py`.

    values: natural logarithms, by name; deviations: of each from what is expected, in standard deviations of sound
    scans; distance: of all together, where 1 is what few sound scans exceed; beyond: words, where the limits were not
    measured for the scan's R or noise.
    """

    values: dict[str, float]
    deviations: dict[str, float]
    distance: float
    beyond: str | None = None


@dataclass(frozen=True)
class Adapted:
    """A prior that was fitted to a scan, see `adapt.py`: what became of it in words, and the seconds it took now."""

    checkpoint: Checkpoint
    text: str
    seconds: float = 0.0


@dataclass
class MappedSlice:
    """A slice with its forward model, conventional images and scale; all in the units of `data.kspace`, whose coils
    may be virtual ones.

    phase: (rows, cols) complex64 of modulus 1, the slice's smooth phase. The model's coil maps hold it, so that its
    images are nearly real: an image times `phase` is that of the coil maps alone. n_coils: that measured; 0 where not
    known. zero_filled, conventional: (rows, cols), or (n_sets, rows, cols) for a head that folds, of several maps;
    `model.combined` makes one image of them. Each map has its own phase there, `phase` is the first's.
    """

    data: Slice
    model: ForwardModel
    phase: torch.Tensor
    scale: float
    zero_filled: torch.Tensor
    conventional: torch.Tensor
    seconds: dict[str, float]
    n_coils: int = 0

    @property
    def key(self) -> SliceKey:
        return self.data.key

    @property
    def n_sets(self) -> int:
        """Of coil maps: 2 where the head folds into its field of view."""
        return len(self.conventional) if self.conventional.ndim == 3 else 1

    def residual(self, image: torch.Tensor) -> float:
        """||A x - y|| over sigma_n sqrt(2 n), what the noise of the n acquired samples alone would leave.

        image: with all its sets, as `conventional`.
        """
        return self.misfit(image).residual

    def misfit(self, image: torch.Tensor) -> Misfit:
        """The same of all samples, of every row and of every channel."""
        sigma_n, (by_row, by_channel) = self.data.sigma_n, self.counts
        difference = torch.view_as_real(self.model.forward(image) - self.data.kspace)
        square = difference.square().sum(-1) / (2 * sigma_n**2)
        return Misfit(
            float(difference.norm()) / (sigma_n * math.sqrt(2 * float(by_row.sum()))),
            (square.sum((0, 2)) / by_row).sqrt().cpu(),
            (square.sum((1, 2)) / by_channel).sqrt().cpu(),
        )

    @cached_property
    def counts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Acquired samples of all coils in each row, (rows,), of a volume (partitions, rows), and of each channel,
        (n_coils,) or one number."""
        mask = self.model.mask
        if mask.ndim == self.data.mask.ndim:
            return mask.sum(-1) * len(self.data.kspace), mask.sum()
        return mask.sum((0, -1)), mask.flatten(1).sum(1)

    @cached_property
    def energy(self) -> Misfit:
        """What an image of nothing would leave."""
        square = torch.view_as_real(self.data.kspace).square().sum(-1) / (2 * self.data.sigma_n**2)
        by_row, by_channel = self.counts
        return Misfit(
            math.sqrt(float(square.sum()) / float(by_row.sum())),
            (square.sum((0, 2)) / by_row).sqrt().cpu(),
            (square.sum((1, 2)) / by_channel).sqrt().cpu(),
        )


def planes_of(shape: tuple[int, ...], voxel_mm: tuple[float, ...]) -> tuple[int, ...]:
    """The axes whose planes a prior of slices can judge: large enough, and of pixels that are nearly square."""
    found = []
    for axis in range(3):
        down, across = (other for other in range(3) if other != axis)
        ratio = voxel_mm[down] / voxel_mm[across]
        if min(shape[down], shape[across]) >= SHORTEST and max(ratio, 1 / ratio) <= LONGEST_PIXEL:
            found.append(axis)
    return tuple(found) or (0,)


@dataclass
class MappedVolume(MappedSlice):
    """The same of a volume, whose images are (partitions, rows, cols) and whose `data.kspace` is a `hybrid`: what it
    misses and holds is counted there, one coil at a time."""

    data: Volume
    model: VolumeModel

    @property
    def n_sets(self) -> int:
        return len(self.conventional) if self.conventional.ndim == 4 else 1

    @property
    def planes(self) -> tuple[int, ...]:
        """Axes across which it is cut for the prior, see `planes_of`."""
        return planes_of(tuple(self.data.mask.shape), self.data.voxel_mm)

    def misfit(self, image: torch.Tensor) -> Misfit:
        coils = self.model.coils(image)
        return self._parts(coil - measured for coil, measured in zip(coils, self.data.kspace))

    @cached_property
    def energy(self) -> Misfit:
        return self._parts(self.data.kspace)

    def _parts(self, coils: Iterable[torch.Tensor]) -> Misfit:
        """Root mean squares of coils (partitions, rows, cols) over that of the noise."""
        lines, by_channel = torch.zeros_like(self.model.mask[..., 0]), []
        for coil in coils:
            square = torch.view_as_real(coil).square().sum((-2, -1)) / (2 * self.data.sigma_n**2)
            lines += square
            by_channel.append(square.sum())
        by_line, each = self.counts
        return Misfit(
            math.sqrt(float(lines.sum()) / float(by_line.sum())),
            (lines / by_line).sqrt().cpu(),
            (torch.stack(by_channel) / each).sqrt().cpu(),
        )


@dataclass
class Reconstruction:
    """One image (rows, cols) complex64, of a volume (partitions, rows, cols), the spread of its samples (float32,
    standard deviation of their magnitude) or None.

    fallback: None, or why the image is the conventional one; residual: ||A x - y|| over what the noise alone leaves;
    samples: drawn; steps: of each, as planned; image_draws: the same of the image, where the samples are for the spread
    alone; evaluations: of the network, in all, fewer than planned where the deadline stopped it; 0 for the conventional
    image; draws: the samples (samples, rows, cols) complex64 where they are kept. image and draws are without the
    smooth phase. remarks: what to know before the image is used, of all steps; trusted: False where it contradicts its
    data beyond use; misfit: where the residual lies; agreement: of prior and data, None where they were not asked;
    unasked: why, in words, None where they were, or nobody wants to know; adaptation: of the prior to the scan, in
    words, None where it was not asked for.
    """

    mapped: MappedSlice
    image: torch.Tensor
    spread: torch.Tensor | None
    fallback: str | None
    residual: float
    seconds: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    steps: int = 0
    evaluations: int = 0
    draws: torch.Tensor | None = None
    remarks: tuple[str, ...] = ()
    trusted: bool = True
    misfit: Misfit | None = None
    agreement: Agreement | None = None
    unasked: str | None = None
    adaptation: str | None = None
    image_draws: tuple[int, int] | None = None

    @property
    def verdict(self) -> str:
        """Of the gate: trusted, or "caution" or "not trusted" with the first reason."""
        if not self.trusted:
            return f"not trusted: {self.remarks[0].removeprefix(DISTRUSTED)}"
        return f"caution: {self.remarks[0]}" if self.remarks else "trusted"

    @property
    def key(self) -> SliceKey:
        return self.mapped.data.key

    @property
    def stopped(self) -> bool:
        """Whether the deadline cut its sampling short."""
        samples, steps = self.image_draws or (0, 0)
        return self.evaluations < self.samples * self.steps + samples * steps

    @property
    def drawn(self) -> str:
        """Such as "3 x 20 steps, stopped after 31 evaluations", or "3 x 20 steps, 16 x 20 for the spread"."""
        end = f", stopped after {self.evaluations} evaluations" if self.stopped else ""
        return f"{_told(self.samples, self.steps, self.image_draws)}{end}"
