"""Some acquired lines of a slice are held back, and what the others make foretells them."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from ..physics.cg_sense import cg_sense
from ..physics.forward import ForwardModel
from ..prior.problem import Problem
from .types import MappedSlice

NEAR = 4  # lines on either side of the centre that never are: nothing foretells the scale


@dataclass(frozen=True)
class HeldBack:
    """problem: of the lines that are left, at scale 1, CG-SENSE of them to start from; left_out: the model of those
    that are held back; kspace: (n_coils, rows, cols) complex64, of all; sigma_n: of its noise."""

    problem: Problem
    left_out: ForwardModel
    kspace: torch.Tensor
    sigma_n: float

    @property
    def count(self) -> float:
        """Real numbers that are held back."""
        return 2 * float(self.left_out.mask.sum()) * len(self.kspace)

    def missed(self, image: torch.Tensor) -> torch.Tensor:
        """What an image (rows, cols), at scale 1, misses of the lines: mean square over that of the noise."""
        missed = torch.view_as_real(self.left_out.forward(image) - self.kspace * self.left_out.mask)
        return missed.square().sum() / (self.count * self.sigma_n**2)


def can_be_held_back(mapped: MappedSlice) -> bool:
    """Not of volumes, of heads that fold, and of shots with a mask each."""
    return type(mapped.model) is ForwardModel and mapped.model.mask.ndim == 2


def outer_rows(mapped: MappedSlice) -> list[int]:
    """Acquired rows that may be held back."""
    mask = mapped.model.mask
    return [row for row in torch.nonzero(mask.amax(1)).flatten().tolist() if abs(row - len(mask) // 2) > NEAR]


def held_back(mapped: MappedSlice, rows: Collection[int], unused: Collection[int] = ()) -> HeldBack:
    """The slice without these rows. unused: rows that are neither used nor foretold."""
    mask, maps = mapped.model.mask, mapped.model.coil_maps
    away, neither = torch.zeros_like(mask), torch.ones_like(mask)
    away[list(rows)] = mask[list(rows)]
    neither[list(unused)] = 0
    kept = ForwardModel(maps, (mask - away) * neither)
    kspace, sigma_n = mapped.data.kspace / mapped.scale, mapped.data.sigma_n / mapped.scale
    zero_filled = kept.adjoint(kspace)
    start = cg_sense(kept, zero_filled, sigma_n, 1.0)
    sigma = torch.tensor([sigma_n], device=mask.device)
    return HeldBack(
        Problem(kept, kspace[None], zero_filled[None], sigma, start[None]), ForwardModel(maps, away), kspace, sigma_n
    )
