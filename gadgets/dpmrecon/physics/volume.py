"""The forward model of a volume, which its full readouts decouple, and the proximal solve on it.

With a full readout the transform along it is part of the data: each of its positions is a 2D problem in (partitions,
rows) of its own, whatever the pattern of the lines. So data are taken as hybrids: k-space along partitions and rows,
image along the readout (`hybrid`). They are solved some positions at a time. An echo that is cut couples them again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from .forward import CACHED, TOLERANCE, ForwardModel, conjugate_gradients, energy_of
from .fourier import origin_to_centre, origin_to_corner, to_image

ON_DEVICE = 2**26  # complex numbers of coil images that a GPU works on at once (.5 GB)
_PLANE = (-2, -1)  # partitions and rows of the packed layout


def hybrid(kspace: torch.Tensor) -> torch.Tensor:
    """K-space (n_coils, partitions, rows, cols) to the image along cols, in place."""
    for coil in kspace:
        coil.copy_(to_image(coil, axes=(-1,)))
    return kspace


@dataclass(frozen=True)
class VolumeModel(ForwardModel):
    """y = mask * F(coil_maps * x) of one volume, y being a `hybrid`. Images are (..., partitions, rows, cols).

    coil_maps: (cols, n_coils, partitions, rows) complex64, the origin of partitions and rows at index 0; sum over coils
    of |s|^2 is 1 on the head and 0 outside it. mask: (partitions, rows, cols) float32, 1 where acquired, the same
    columns in every line.
    """

    cg_steps: ClassVar[int] = 4  # twice, the second time from the first image on
    # each position along the readout is a small problem, which converges early

    @cached_property
    def lines(self) -> torch.Tensor:
        """(partitions, rows) float32, the origin at index 0: 1 where a line was acquired."""
        return origin_to_corner(self.mask.amax(-1)).contiguous()

    @cached_property
    def columns(self) -> torch.Tensor | None:
        """(cols, 1, 1) float32, the origin at index 0: 1 where an echo has samples; None where it has all."""
        columns = self.mask.amax((0, 1))
        return None if bool(columns.all()) else origin_to_corner(columns, (0,)).view(-1, 1, 1)

    @cached_property
    def support(self) -> torch.Tensor:
        """(partitions, rows, cols) float32, 1 where the coil maps are not 0."""
        seen = torch.stack([(maps != 0).any(-3) for maps in self.coil_maps]).float()
        return self._unpack(seen)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(partitions, rows, cols) -> (n_coils, partitions, rows, cols)."""
        inside = self._pack(image)
        return torch.stack([self._coil(inside, coil) for coil in range(self.coil_maps.shape[-3])])

    def coils(self, image: torch.Tensor) -> Iterator[torch.Tensor]:
        """`forward` coil by coil, (partitions, rows, cols) each."""
        inside = self._pack(image)
        for coil in range(self.coil_maps.shape[-3]):
            yield self._coil(inside, coil)

    def _coil(self, inside: torch.Tensor, coil: int) -> torch.Tensor:
        seen = torch.fft.fft2(self._added(self.coil_maps[..., coil, :, :] * inside), norm="ortho") * self.lines
        return self._unpack(self._read(seen))

    def adjoint(self, kspace: torch.Tensor) -> torch.Tensor:
        """(n_coils, partitions, rows, cols) -> (partitions, rows, cols)."""
        inside = torch.zeros_like(self.coil_maps[..., 0, :, :])
        if self.columns is None:
            for some in self._positions():
                part = origin_to_corner(kspace[..., some].permute(3, 0, 1, 2), _PLANE) * self.lines
                part = self._for_each(torch.fft.ifft2(part, norm="ortho"))
                inside[some] = (part * self.coil_maps[some].conj()).sum(-3)
        else:
            for coil, part in enumerate(kspace):
                seen = self._read(self._pack(part) * self.lines)
                inside += self._for_each(torch.fft.ifft2(seen, norm="ortho")) * self.coil_maps[..., coil, :, :].conj()
        return self._unpack(inside)

    def normal(self, image: torch.Tensor) -> torch.Tensor:
        """A^H A x: (batch, partitions, rows, cols) to the same."""
        return torch.stack([self._unpack(self._normal(self._pack(one))) for one in image])

    def prox(
        self,
        adjoint_kspace: torch.Tensor,
        start: torch.Tensor,
        weight: torch.Tensor,
        steps: int,
        tolerance: float = TOLERANCE,
    ) -> torch.Tensor:
        """As for a slice: start is (batch, partitions, rows, cols), adjoint_kspace the same or without the batch.

        With full readouts every position along them is solved, and is done, by itself.
        """
        batch = len(start)
        weights = torch.as_tensor(weight, dtype=torch.float32, device=start.device).reshape(-1).expand(batch)
        targets = adjoint_kspace.expand_as(start)
        solve = self._solve_decoupled if self.columns is None else self._solve
        return torch.stack([solve(*one, steps, tolerance) for one in zip(targets, start, weights)])

    def _solve_decoupled(
        self, target: torch.Tensor, start: torch.Tensor, weight: torch.Tensor, steps: int, tolerance: float
    ) -> torch.Tensor:
        right, solution = self._pack(target), self._pack(start)
        for some in self._positions():
            maps, shape = self.coil_maps[some], solution[some].shape
            conjugate = maps.conj().resolve_conj()

            def normal(
                part: torch.Tensor,
                maps: torch.Tensor = maps,
                conjugate: torch.Tensor = conjugate,
                shape: torch.Size = shape,
            ) -> torch.Tensor:
                return self._plane_normal(part.view(shape), maps, conjugate).view(part.shape)

            # all that a position has below each other, as one image to the solver
            here, wanted = (whole[some].flatten(1, -2) for whole in (solution, right))
            limit = tolerance**2 * energy_of(wanted + weight * here)
            residual = wanted - normal(here)
            solution[some] = conjugate_gradients(normal, here, residual, weight, steps, limit).view(shape)
        return self._unpack(solution)

    def _solve(
        self, target: torch.Tensor, start: torch.Tensor, weight: torch.Tensor, steps: int, tolerance: float
    ) -> torch.Tensor:
        right, solution = self._pack(target), self._pack(start)
        shape = solution.shape

        def normal(inside: torch.Tensor) -> torch.Tensor:
            return self._normal(inside.view(shape)).view(1, -1, shape[-1])

        right, solution = right.view(1, -1, shape[-1]), solution.view(1, -1, shape[-1])
        limit = tolerance**2 * energy_of(right + weight * solution)
        found = conjugate_gradients(normal, solution, right - normal(solution), weight, steps, limit)
        return self._unpack(found.view(shape))

    def _normal(self, inside: torch.Tensor) -> torch.Tensor:
        """A^H A of a packed image (cols, partitions, rows)."""
        found = torch.zeros_like(inside)
        if self.columns is None:
            for some in self._positions():
                maps = self.coil_maps[some]
                found[some] = self._plane_normal(inside[some], maps, maps.conj())
        else:
            for coil in range(self.coil_maps.shape[-3]):
                maps = self.coil_maps[..., coil, :, :]
                seen = self._read(torch.fft.fft2(self._added(maps * inside)) * self.lines)
                found += self._for_each(torch.fft.ifft2(seen)) * maps.conj()
        return found

    def _plane_normal(self, part: torch.Tensor, maps: torch.Tensor, conjugate: torch.Tensor) -> torch.Tensor:
        """A^H A of some positions (n, partitions, rows) along a full readout."""
        seen = torch.fft.fft2(maps * part.unsqueeze(1))
        torch.view_as_real(seen).mul_(self.lines[..., None])
        seen = torch.fft.ifft2(seen)
        seen *= conjugate
        return seen.sum(1)

    def _added(self, images: torch.Tensor) -> torch.Tensor:
        """What the images of all sets of maps are together, (cols, partitions, rows)."""
        return images

    def _for_each(self, coil_images: torch.Tensor) -> torch.Tensor:
        """The same for each set."""
        return coil_images

    def _read(self, lines: torch.Tensor) -> torch.Tensor:
        """Hybrid lines (cols, partitions, rows) as the part of the readout that was acquired alone makes them."""
        if self.columns is None:
            return lines
        # along cols the origin is in the middle: a phase of k-space
        return torch.fft.ifft(torch.fft.fft(lines, dim=0) * self.columns, dim=0)

    def _positions(self) -> Iterator[slice]:
        """Runs of positions along the readout that some coil sees, as many as are fastest at once."""
        coil_images = self.coil_maps[0].numel()
        cached = CACHED * torch.get_num_threads() if self.coil_maps.device.type == "cpu" else ON_DEVICE
        at_once = max(1, cached // coil_images)
        for first in range(self._seen.start, self._seen.stop, at_once):
            yield slice(first, min(first + at_once, self._seen.stop))

    @cached_property
    def _seen(self) -> range:
        """Positions along the readout from the first to the last that some coil sees."""
        seen = torch.stack([(maps != 0).any() for maps in self.coil_maps]).nonzero().flatten().tolist()
        return range(seen[0], seen[-1] + 1) if seen else range(0)

    @staticmethod
    def _pack(image: torch.Tensor) -> torch.Tensor:
        """(..., partitions, rows, cols) to (cols, ..., partitions, rows), the origin of these two at index 0."""
        return origin_to_corner(image.movedim(-1, 0), _PLANE).contiguous()

    @staticmethod
    def _unpack(inside: torch.Tensor) -> torch.Tensor:
        """The inverse of `_pack`."""
        return origin_to_centre(inside, _PLANE).movedim(0, -1).contiguous()
