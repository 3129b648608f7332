"""The forward model of a head that folds into its field of view: two maps, two images (soft SENSE).

Uecker et al., Magnetic Resonance in Medicine 71:990, 2014. Where two places of the head share a pixel, one map cannot
tell how the coils see it; with as many maps as places, every pixel's signal is in their span.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from .forward import TOLERANCE, ForwardModel, _Inner
from .fourier import to_image, to_kspace
from .volume import VolumeModel


@dataclass(frozen=True)
class SoftSense(ForwardModel):
    """y = mask * F(sum over sets of coil_maps * x): images are (..., n_sets, rows, cols).

    coil_maps: (..., n_sets, n_coils, rows, cols) complex64, orthonormal where they are not 0: for every set sum over
    coils |s|^2 is 1 on its support and 0 outside it.
    """

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(..., n_sets, rows, cols) -> (..., n_coils, rows, cols)."""
        return self.mask * to_kspace((self.coil_maps * image.unsqueeze(-3)).sum(-4))

    def adjoint(self, kspace: torch.Tensor) -> torch.Tensor:
        """(..., n_coils, rows, cols) -> (..., n_sets, rows, cols)."""
        return (self.coil_maps.conj() * to_image(self.mask * kspace).unsqueeze(-4)).sum(-3)

    def combined(self, image: torch.Tensor) -> torch.Tensor:
        """(..., n_sets, rows, cols) to the one (..., rows, cols) to look at, see `combined_sets`."""
        return combined_sets(image, -3)

    def normal(self, image: torch.Tensor) -> torch.Tensor:
        """A^H A x: (batch, n_sets, rows, cols) to the same."""
        return super().normal(image.flatten(-3, -2)).reshape(image.shape)

    def prox(
        self,
        adjoint_kspace: torch.Tensor,
        start: torch.Tensor,
        weight: torch.Tensor,
        steps: int,
        tolerance: float = TOLERANCE,
    ) -> torch.Tensor:
        """As for one set, jointly over the sets: start is (batch, n_sets, rows, cols)."""
        zero_filled, below = adjoint_kspace.flatten(-3, -2), start.flatten(-3, -2)
        return super().prox(zero_filled, below, weight, steps, tolerance).reshape(start.shape)

    @cached_property
    def _inner(self) -> "_InnerSets":
        return _InnerSets(self)


@dataclass(frozen=True)
class SoftVolume(VolumeModel):
    """The same of a volume, whose images are (..., n_sets, partitions, rows, cols).

    coil_maps: (cols, n_sets, n_coils, partitions, rows), orthonormal where they are not 0, otherwise as `VolumeModel`.
    """

    def combined(self, image: torch.Tensor) -> torch.Tensor:
        """(..., n_sets, partitions, rows, cols) to the one to look at, see `combined_sets`."""
        return combined_sets(image, -4)

    def _plane_normal(self, part: torch.Tensor, maps: torch.Tensor, conjugate: torch.Tensor) -> torch.Tensor:
        seen = torch.fft.fft2(self._added(maps * part.unsqueeze(2)))
        torch.view_as_real(seen).mul_(self.lines[..., None])
        return (self._for_each(torch.fft.ifft2(seen)) * conjugate).sum(2)

    def _added(self, images: torch.Tensor) -> torch.Tensor:
        return images.sum(1)

    def _for_each(self, coil_images: torch.Tensor) -> torch.Tensor:
        return coil_images.unsqueeze(1)


def combined_sets(image: torch.Tensor, axis: int) -> torch.Tensor:
    """The images of several sets as one: the root of the sum of squares along `axis`, the strongest's phase. The
    magnitude is that of all coil images, whatever basis the maps are."""
    strongest = image.gather(axis, image.abs().argmax(axis, keepdim=True)).squeeze(axis)
    return torch.linalg.vector_norm(image, dim=axis) * torch.sgn(strongest)


class _InnerSets(_Inner):
    """A^H A of images whose sets lie one below the other, (batch, n_sets rows, cols): one image to the solver."""

    def __init__(self, model: SoftSense):
        self.n_sets = model.coil_maps.shape[-4]
        super().__init__(model)

    def packed_maps(self, coil_maps: torch.Tensor) -> torch.Tensor:
        return self.pack(coil_maps.movedim(-4, -3).flatten(-3, -2))

    def pack(self, image: torch.Tensor) -> torch.Tensor:
        """(..., n_sets rows, cols) to (..., cols kept, n_sets rows)."""
        return super().pack(image.unflatten(-2, (self.n_sets, -1))).movedim(-3, -2).flatten(-2)

    def unpack(self, inside: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        sets = inside.unflatten(-1, (self.n_sets, -1)).movedim(-2, -3)
        return super().unpack(sets, image.unflatten(-2, (self.n_sets, -1))).flatten(-3, -2)

    def _apply(self, inside: torch.Tensor, images: slice, columns: slice) -> torch.Tensor:
        maps, conjugate = (
            self.part(array, images)[..., columns, :].unflatten(-1, (self.n_sets, -1))
            for array in (self.coil_maps, self.conjugate)
        )
        seen = (maps * inside.unsqueeze(-3).unflatten(-1, (self.n_sets, -1))).sum(-2)
        kspace = self.sampled(seen, images).unsqueeze(-2)
        return (conjugate * kspace).sum(-4).flatten(-2)
