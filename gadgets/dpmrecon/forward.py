"""The forward model A = P F S, its adjoint and normal operator, and the proximal solve on it.

Images are (..., rows, cols) complex64; k-space is (..., n_coils, rows, cols). Rows are phase-encoding lines and
columns are readout samples, as the scan's header orders them.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from .fourier import corner_to_image, corner_to_kspace, origin_to_centre, origin_to_corner, to_image, to_kspace


@dataclass(frozen=True)
class ForwardModel:
    """y = mask * F(coil_maps * x) of one slice.

    coil_maps: (n_coils, rows, cols) complex64, sum over coils of |s|^2 is 1 on the head and 0 outside it;
    mask: (rows, cols) float32, 1 where k-space was acquired.
    """

    coil_maps: torch.Tensor
    mask: torch.Tensor

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

    def normal(self, image: torch.Tensor) -> torch.Tensor:
        """A^H A x; a third of the time of `adjoint(forward(x))` on a CPU, since no coil image is shifted."""
        coil_maps, conjugate, mask, axes = self._at_corner
        kspace = corner_to_kspace(coil_maps * origin_to_corner(image, axes).unsqueeze(-3), axes)
        kspace *= mask
        return origin_to_centre((conjugate * corner_to_image(kspace, axes)).sum(-3), axes)

    @cached_property
    def _at_corner(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, ...]]:
        # with full readouts the mask is the same in every column, and the readout's transform cancels in A^H A
        full_readouts = bool((self.mask == self.mask[..., :1]).all())
        axes = (-2,) if full_readouts else (-2, -1)
        coil_maps = origin_to_corner(self.coil_maps, axes)
        return coil_maps, coil_maps.conj(), origin_to_corner(self.mask.square(), axes), axes

    def prox(
        self,
        adjoint_kspace: torch.Tensor,
        start: torch.Tensor,
        weight: torch.Tensor,
        steps: int,
        tolerance: float = 1e-4,
    ) -> torch.Tensor:
        """argmin_x ||A x - y||^2 + weight ||x - start||^2: solves (A^H A + weight) x = A^H y + weight start.

        adjoint_kspace: A^H y; start: (batch, rows, cols), also where the conjugate gradients begin; weight: scalar
        or (batch,), > 0. At most `steps` iterations, fewer when every residual is below `tolerance` times the
        right-hand side. Scalars are kept per image of the batch, so that batching changes nothing.
        """
        weight = torch.as_tensor(weight, dtype=torch.float32, device=start.device).reshape(-1, 1, 1)
        solution = start
        residual = adjoint_kspace - self.normal(start)  # the weight's terms cancel at x = start
        limit = tolerance**2 * _energy(adjoint_kspace + weight * start)
        direction, energy = residual, _energy(residual)
        for _ in range(steps):
            active = energy > limit
            if not bool(active.any()):
                break
            applied = self.normal(direction) + weight * direction
            # a converged image stays as it is while others of the batch go on
            length = active * energy / (direction.conj() * applied).real.sum((-2, -1), keepdim=True).clamp_min(1e-30)
            solution = solution + length * direction
            residual = residual - length * applied
            new = _energy(residual)
            direction = residual + new / energy.clamp_min(1e-30) * direction
            energy = new
        return solution


def _energy(image: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(image).square().sum((-3, -2, -1), keepdim=True).squeeze(-1)
