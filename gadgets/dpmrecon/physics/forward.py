"""The forward model A = P F S, its adjoint and normal operator, and the proximal solve on it.

Images are (..., rows, cols) complex64; k-space is (..., n_coils, rows, cols). Rows are phase-encoding lines, columns
readout samples, as the header orders them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from .fourier import corner_to_image, corner_to_kspace, origin_to_centre, origin_to_corner, to_image, to_kspace

CACHED = 3 * 2**16  # complex numbers (1.5 MB) that a core's caches hold
TOLERANCE = 1e-4  # of a solution in float32


@dataclass(frozen=True)
class ForwardModel:
    """y = mask * F(coil_maps * x) of one slice.

    coil_maps: (n_coils, rows, cols) complex64, sum over coils of |s|^2 is 1 on the head and 0 outside it;
    mask: (rows, cols) float32, 1 where k-space was acquired, or (n_coils, rows, cols) where coils have one each.
    """

    coil_maps: torch.Tensor
    mask: torch.Tensor

    cg_steps: ClassVar[int] = 30  # of CG-SENSE

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(..., rows, cols) -> (..., n_coils, rows, cols)."""
        return self.mask * to_kspace(self.coil_maps * image.unsqueeze(-3))

    def adjoint(self, kspace: torch.Tensor) -> torch.Tensor:
        """(..., n_coils, rows, cols) -> (..., rows, cols)."""
        return (self.coil_maps.conj() * to_image(self.mask * kspace)).sum(-3)

    @cached_property
    def support(self) -> torch.Tensor:
        """(..., rows, cols) float32, 1 where the coil maps are not 0."""
        return (self.coil_maps.abs().sum(-3) > 0).float()

    def combined(self, image: torch.Tensor) -> torch.Tensor:
        """The image to look at: itself."""
        return image

    def normal(self, image: torch.Tensor) -> torch.Tensor:
        """A^H A x: (batch, rows, cols) to the same."""
        inside = self._inner.pack(image)
        return self._inner.unpack(self._inner.normal(inside), torch.zeros_like(image))

    @cached_property
    def _inner(self) -> "_Inner":
        return _Inner(self)

    def prox(
        self,
        adjoint_kspace: torch.Tensor,
        start: torch.Tensor,
        weight: torch.Tensor,
        steps: int,
        tolerance: float = TOLERANCE,
    ) -> torch.Tensor:
        """argmin_x ||A x - y||^2 + weight ||x - start||^2: solves (A^H A + weight) x = A^H y + weight start.

        adjoint_kspace: A^H y; start: (batch, rows, cols), also where the conjugate gradients begin; weight: scalar or
        (batch,), > 0. At most `steps` iterations, fewer once residuals are below `tolerance` times the right-hand side.
        Scalars are kept per image of the batch, so that batching changes nothing.
        """
        weight = torch.as_tensor(weight, dtype=torch.float32, device=start.device).reshape(-1, 1, 1)
        limit = tolerance**2 * energy_of(adjoint_kspace + weight * start)
        solution = self._inner.pack(start)
        # the weight's terms cancel at x = start
        residual = self._inner.pack(adjoint_kspace) - self._inner.normal(solution)
        return self._inner.unpack(
            conjugate_gradients(self._inner.normal, solution, residual, weight, steps, limit), start
        )


def conjugate_gradients(
    normal: Callable[[torch.Tensor], torch.Tensor],
    solution: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    steps: int,
    limit: torch.Tensor,
) -> torch.Tensor:
    """Solves (normal + weight) x = b for a batch (batch, rows, cols), from `solution` with its `residual` on.

    At most `steps` iterations, fewer when the energy of every residual is below `limit`, (batch, 1, 1). Scalars are
    kept per image, so that batching changes nothing.
    """
    direction, energy = residual, energy_of(residual)
    for _ in range(steps):
        active = energy > limit
        if solution.device.type == "cpu" and not bool(active.any()):  # a GPU would have to wait for the answer
            break
        applied = normal(direction) + weight * direction
        # a converged image stays as it is while others of the batch go on
        length = active * energy / (direction.conj() * applied).real.sum((-2, -1), keepdim=True).clamp_min(1e-30)
        solution = solution + length * direction
        residual = residual - length * applied
        new = energy_of(residual)
        direction = residual + new / energy.clamp_min(1e-30) * direction
        energy = new
    return solution


class _Inner:
    """A^H A in the layout that is fastest: rows last, origin in the corner, and only the columns that it changes.

    With full readouts the mask is the same in every column: the readout's transform cancels, columns are independent of
    each other, and those without support drop out. Otherwise, with an asymmetric echo or 2D undersampling, all of them
    stay. On a CPU it is done in parts whose coil images stay in the cache, some images or some columns of one: several
    times as fast as all at once.
    """

    def __init__(self, model: ForwardModel):
        full_readouts = bool((model.mask == model.mask[..., :1]).all())
        seen = model.support.reshape(-1, *model.support.shape[-2:]).sum((0, 1)).nonzero().flatten().tolist()
        self.columns = slice(seen[0], seen[-1] + 1) if full_readouts and seen else slice(None)
        self.full_readouts = full_readouts
        self.shift = (-2,) if full_readouts else (-2, -1)
        self.axes = (-1,) if full_readouts else (-2, -1)  # of the transposed image
        self.coil_maps = self.packed_maps(model.coil_maps)
        self.conjugate = self.coil_maps.conj().resolve_conj()
        # with the factor 1/N of the transforms there and back
        mask = model.mask.square() / math.prod(model.mask.shape[axis] for axis in self.shift)
        mask = origin_to_corner(mask, self.shift).mT[..., : 1 if full_readouts else None, :]
        self.mask = mask.repeat_interleave(2, -1)  # for real and imaginary part

    def packed_maps(self, coil_maps: torch.Tensor) -> torch.Tensor:
        """(..., n_coils, cols kept, rows)."""
        return self.pack(coil_maps)

    def pack(self, image: torch.Tensor) -> torch.Tensor:
        """(..., rows, cols) to (..., cols kept, rows)."""
        return origin_to_corner(image, self.shift).mT[..., self.columns, :].contiguous()

    def unpack(self, inside: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """The inverse of `pack`; columns that were left out are those of `image`."""
        found = image.clone(memory_format=torch.contiguous_format)
        found[..., self.columns] = origin_to_centre(inside.mT, self.shift)
        return found

    def normal(self, inside: torch.Tensor) -> torch.Tensor:
        """A^H A of packed images (batch, cols kept, rows)."""
        everything = slice(None)
        if inside.device.type != "cpu":
            return self._apply(inside, everything, everything)
        found = torch.empty_like(inside)
        images, columns, rows = inside.shape
        column = rows * self.coil_maps.shape[-3]
        cached = CACHED * torch.get_num_threads()
        at_once = max(1, cached // (columns * column))
        width = max(1, cached // column) if self.full_readouts else columns
        for first in range(0, images, at_once):
            part = slice(first, first + at_once)
            for left in range(0, columns, width):
                some = slice(left, left + width)
                found[part, some] = self._apply(inside[part, some], part, some)
        return found

    def _apply(self, inside: torch.Tensor, images: slice, columns: slice) -> torch.Tensor:
        """A^H A of some images of the batch and some of their columns, `inside`."""
        kspace = self.sampled(self.part(self.coil_maps, images)[..., columns, :] * inside.unsqueeze(-3), images)
        kspace *= self.part(self.conjugate, images)[..., columns, :]
        return kspace.sum(-3)

    @staticmethod
    def part(array: torch.Tensor, images: slice) -> torch.Tensor:
        """Of each image's own, or what is one for all."""
        return array[images] if array.ndim == 4 and len(array) > 1 else array

    def sampled(self, coil_images: torch.Tensor, images: slice) -> torch.Tensor:
        """Packed coil images as the sampled part of their k-space alone makes them."""
        kspace = corner_to_kspace(coil_images, self.axes)
        kspace.view(torch.float32).mul_(self.part(self.mask, images))
        return corner_to_image(kspace, self.axes)


def energy_of(image: torch.Tensor) -> torch.Tensor:
    """Sum of |x|^2 of each image of a batch, (batch, 1, 1)."""
    return torch.view_as_real(image).square().sum((-3, -2, -1), keepdim=True).squeeze(-1)
