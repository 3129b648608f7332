"""Some acquired lines of a slice are held back, and what the others make foretells them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..physics.cg_sense import cg_sense
from ..physics.forward import ForwardModel
from ..prior.problem import Problem
from .planes import MappedPlane
from .types import MappedSlice

NEAR = 4  # lines on either side of the centre that never are: nothing foretells the scale
Line = int | tuple[int, int]  # a row of a slice; a partition and a row of a volume's plane


@dataclass(frozen=True)
class HeldBack:
    """problem: of the lines that are left, at scale 1, CG-SENSE of them to start from; left_out: the model of those
    that are held back; kspace: (n_coils, rows, cols) complex64, of all; sigma_n: of its noise. Images have the sets of
    the slice."""

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
    """Not of volumes, but of their planes, not of shots with a mask each, and not of a few lines."""
    return mapped.model.mask.ndim == 2 and len(outer_lines(mapped)) > 0


def outer_lines(mapped: MappedSlice) -> list[Line]:
    """Acquired lines that may be held back: of a plane those outside of the calibration block, whose own lines foretell
    each other whatever has moved."""
    mask = mapped.model.mask
    if isinstance(mapped, MappedPlane):
        outside = mask.clone()
        first, second = (slice(side // 2 - n // 2, side // 2 - n // 2 + n) for side, n in zip(mask.shape, mapped.block))
        outside[first, second] = 0
        return [(partition, row) for partition, row in torch.nonzero(outside).tolist()]
    return [row for row in torch.nonzero(mask.amax(1)).flatten().tolist() if abs(row - len(mask) // 2) > NEAR]


def held_back(mapped: MappedSlice, lines: Iterable[Line], unused: Iterable[Line] = ()) -> HeldBack:
    """The slice without these lines. unused: lines that are neither used nor foretold."""
    mask, maps, form = mapped.model.mask, mapped.model.coil_maps, type(mapped.model)
    away = mask * _at(lines, mask)
    kept = form(maps, (mask - away) * (1 - _at(unused, mask)))
    kspace, sigma_n = mapped.data.kspace / mapped.scale, mapped.data.sigma_n / mapped.scale
    zero_filled = kept.adjoint(kspace)
    start = cg_sense(kept, zero_filled, sigma_n, 1.0)
    sigma = torch.tensor([sigma_n], device=mask.device)
    return HeldBack(
        Problem(kept, kspace[None], zero_filled[None], sigma, start[None]), form(maps, away), kspace, sigma_n
    )


def _at(lines: Iterable[Line], mask: torch.Tensor) -> torch.Tensor:
    """1 at the lines, 0 elsewhere."""
    found = torch.zeros_like(mask)
    for line in lines:
        found[line] = 1
    return found
