"""What passes between the steps of a reconstruction."""

import math
from dataclasses import dataclass, field

import torch

from ..data import Slice, SliceKey
from ..physics.forward import ForwardModel
from ..prior.kinds import Settings


@dataclass(frozen=True)
class Sampling:
    """How slices are sampled. batch: most images (slices times samples) the network sees at once; deadline: seconds
    for the whole scan, to which `samples` and the steps are cut, None for no limit; mode: which of the model's
    settings; source: where they come from, in words; keep_samples: each Reconstruction holds its samples."""

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


@dataclass
class MappedSlice:
    """A slice with its forward model, conventional images and scale; all in the units of `data.kspace`, whose coils
    may be virtual ones.

    phase: (rows, cols) complex64 of modulus 1, the slice's smooth phase. The model's coil maps hold it, so that its
    images are nearly real: an image times `phase` is that of the coil maps alone. n_coils: that measured; 0 where not
    known. zero_filled, conventional: (rows, cols), or (n_sets, rows, cols) for a head that folds, whose model has
    several maps; `model.combined` makes one image of them. Each map has its own phase there, `phase` is the first's.
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
        kspace = self.data.kspace
        difference = torch.view_as_real(self.model.forward(image) - kspace).norm()
        count = float(self.model.mask.sum()) * kspace.shape[0]
        return float(difference) / (self.data.sigma_n * math.sqrt(2 * count))


@dataclass
class Reconstruction:
    """One image (rows, cols) complex64, the spread of its samples (float32, std of a real channel) or None.

    fallback: None, or why the image is the conventional one; residual: ||A x - y|| over what the noise alone leaves;
    samples: drawn; steps: of each, as planned; evaluations: of the network, in all, fewer than planned where the
    deadline stopped it; 0 for the conventional image; draws: the samples (samples, rows, cols) complex64 where they are
    kept. image and draws are without the smooth phase. remarks: what to know before the image is used, of this step and
    of those before; trusted: False where it contradicts its data beyond use.
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

    @property
    def key(self) -> SliceKey:
        return self.mapped.data.key

    @property
    def stopped(self) -> bool:
        """Whether the deadline cut its sampling short."""
        return self.evaluations < self.samples * self.steps

    @property
    def drawn(self) -> str:
        """Such as "3 x 20 steps, stopped after 31 evaluations"."""
        end = f", stopped after {self.evaluations} evaluations" if self.stopped else ""
        return f"{self.samples} x {self.steps} steps{end}"
