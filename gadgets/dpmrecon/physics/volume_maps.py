"""Coil maps of a volume: ESPIRiT with a kernel along all three axes, on a grid as coarse as smooth maps allow."""

import torch

from ..errors import BadInputError
from .coil_maps import (
    CHUNK,
    FEWEST,
    KERNEL,
    LARGEST,
    dominant,
    fourier_matrix,
    kernel_correlations,
    kernel_size,
    principal_component,
)
from .fourier import crop_or_pad, origin_to_corner
from .volume_map_sets import DOUBLE, continue_ends, folding_axis, second_set, shared_part

# Size of the matrix whose eigenvectors span the signal; a larger one takes minutes
MATRIX = 2048
# Of the eigenvalue; at .9 slabs lose dark edges (training/reports/volumes/support)
CROP = 0.85
SECOND = 0.9  # the same of a second set
# Points along an axis that maps are found on, and interpolated between
POINTS = 128


def estimate_volume_maps(
    calibration: torch.Tensor, shape: tuple[int, int, int], crop: float = CROP, fold: float = DOUBLE
) -> torch.Tensor:
    """Coil maps of a volume in the layout of `VolumeModel`: (cols, n_coils, partitions, rows) complex64, the origin of
    partitions and rows at index 0; sum over coils of |s|^2 is 1 in the support and 0 outside it. Two sets in that of
    `SoftVolume` where the head folds: orthonormal, the second 0 where one place of the head explains a voxel.

    calibration: (n_coils, partitions, rows, samples) complex64 k-space, fully sampled, pre-whitened, of the same field
    of view as the volume; index N//2 of each axis is the centre. shape: (partitions, rows, cols) of the volume. crop:
    voxels whose eigenvalue is smaller are outside the support; fold: see `folding_axis`. Phase: as of
    `estimate_coil_maps`. Raises BadInputError for a calibration too small for the kernel, zero or not finite.
    """
    calibration = _middle(calibration)
    operator = volume_operator(calibration)
    reference = principal_component(calibration)
    grid = grid_of(shape)
    axis = folding_axis(operator, grid, fold)
    (first, strength), *more = _eigenvectors(operator, reference, grid, 1 if axis is None else 2)
    if axis is None:
        head = (strength >= crop).permute(1, 2, 0)
        continue_ends(first.permute(2, 3, 0, 1), head, calibration)
        return _on_grid(first, strength, shape, crop)
    ((second, second_strength),) = more
    strong = torch.stack([strength >= crop, second_strength >= SECOND]).permute(0, 2, 3, 1)
    one, other, double = second_set(first.permute(2, 3, 0, 1), second.permute(2, 3, 0, 1), strong, axis)
    one = _on_grid(one.permute(2, 3, 0, 1), strength, shape, crop)
    other = _on_grid(other.permute(2, 3, 0, 1), double.permute(2, 0, 1).float(), shape, 0.5)
    return torch.stack([one, _orthogonal(other, one)], 1)


def folded_part(calibration: torch.Tensor, shape: tuple[int, int, int]) -> float:
    """Share of the head that shares its voxels with another part of it, along any axis. Arguments and errors as of
    `estimate_volume_maps`."""
    return shared_part(volume_operator(_middle(calibration)), grid_of(shape))


def packed_maps(maps: torch.Tensor) -> torch.Tensor:
    """(n_coils, partitions, rows, cols) in the layout of `VolumeModel`."""
    return origin_to_corner(maps.permute(3, 0, 1, 2)).contiguous()


def grid_of(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Points of the grid on which a volume's maps are found."""
    partitions, rows, cols = (size if size <= POINTS else -(-size // 2) for size in shape)
    return partitions, rows, cols


def longest_kernel(n_coils: int) -> int:
    """Samples of the kernel along an axis whose calibration is long enough."""
    return min(KERNEL, max(2, int((MATRIX / n_coils) ** (1 / 3) + 1e-9)))


def central(calibration: torch.Tensor) -> torch.Tensor:
    """The part of a calibration that maps are made of, a view."""
    for axis in (1, 2, 3):
        calibration = crop_or_pad(calibration, min(calibration.shape[axis], LARGEST), axis)
    return calibration


def _middle(calibration: torch.Tensor) -> torch.Tensor:
    for size, name in zip(calibration.shape[1:], ("partitions", "lines", "samples")):
        if size < FEWEST:
            raise BadInputError(
                f"The calibration has {size} {name}, but at least {FEWEST} are needed for coil maps: acquire a larger "
                "block of central k-space."
            )
    calibration = central(calibration)
    if not bool(torch.isfinite(torch.view_as_real(calibration)).all()) or not bool((calibration != 0).any()):
        raise BadInputError("The calibration is zero or has values that are not finite: check the scan's samples.")
    return calibration / calibration.abs().max()


def volume_operator(calibration: torch.Tensor) -> torch.Tensor:
    """(taps, taps, taps, n_coils, n_coils): `kernel_correlations` by the kernel of a volume."""
    longest = longest_kernel(len(calibration))
    return kernel_correlations(calibration, [min(longest, kernel_size(size)) for size in calibration.shape[1:]])


def _eigenvectors(
    operator: torch.Tensor, reference: torch.Tensor, grid: tuple[int, ...], n_sets: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """On a grid (partitions, rows, cols), the largest first: eigenvectors (cols, n_coils, partitions, rows) of unit
    norm, and their eigenvalues (cols, partitions, rows)."""
    n_coils = len(reference)
    by_partition, by_row, by_col = (
        fourier_matrix(size, taps, operator.device) for size, taps in zip(grid, operator.shape)
    )
    partitions, rows, cols = grid
    along = torch.einsum("xk,ijkcC->xijcC", by_col, operator)
    sets = [
        (
            operator.new_empty((cols, n_coils, partitions, rows)),
            torch.empty((cols, partitions, rows), device=operator.device),
        )
        for _ in range(n_sets)
    ]
    step = max(1, CHUNK // (rows * n_coils**2))
    for col in range(cols):
        across = torch.einsum("yj,ijcC->iycC", by_row, along[col])
        for first in range(0, partitions, step):
            some = slice(first, min(first + step, partitions))
            matrices = (by_partition[some] @ across.flatten(1)).view(-1, n_coils, n_coils)
            for index, (maps, values) in enumerate(sets):
                vectors, found = dominant(matrices, reference)
                maps[col, :, some] = vectors.view(-1, rows, n_coils).permute(2, 0, 1)
                values[col, some] = found.view(-1, rows)
                if index + 1 < n_sets:  # what is left has the next one as its largest
                    matrices = matrices - found[:, None, None] * vectors[:, :, None] * vectors[:, None].conj()
    return sets


def _orthogonal(other: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    """Maps (cols, n_coils, partitions, rows) of unit norm or 0, made orthogonal to others, and 0 where those are."""
    for position, beside in zip(other, one):
        position -= beside * (beside.conj() * position).sum(0)
        norm = torch.linalg.vector_norm(position, dim=0)
        position *= ((norm > 0.1) & (beside != 0).any(0)) / norm.clamp_min(1e-17)
    return other


def _on_grid(maps: torch.Tensor, values: torch.Tensor, shape: tuple[int, ...], crop: float) -> torch.Tensor:
    """Maps as `estimate_volume_maps` gives them, interpolated coil by coil where the grid is coarser."""
    partitions, rows, cols = shape
    coarse = maps.shape[0], *maps.shape[2:]
    if coarse != (cols, partitions, rows):
        values = _interpolated(values, (cols, partitions, rows))
        finer = maps.new_empty((cols, maps.shape[1], partitions, rows))
        for coil in range(maps.shape[1]):
            parts = [
                _interpolated(part, (cols, partitions, rows)) for part in torch.view_as_real(maps[:, coil]).unbind(-1)
            ]
            finer[:, coil] = torch.complex(*parts)
        maps = finer
    for position, value in zip(maps, values):
        norm = torch.linalg.vector_norm(position, dim=0).clamp_min(1e-17)
        position.copy_(origin_to_corner(position * ((value >= crop) / norm)))
    return maps


def _interpolated(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """(cols, partitions, rows) float32 on a finer grid of the same field of view, by trilinear interpolation.

    Index N//2 of both grids is one place.
    """
    for axis, size in enumerate(shape):
        if values.shape[axis] == size:
            continue
        place = torch.arange(size, device=values.device)
        ratio = values.shape[axis] / size
        where = (place - size // 2) * ratio + values.shape[axis] // 2
        lower = where.floor().clamp(0, values.shape[axis] - 1).long()
        upper = (lower + 1).clamp_max(values.shape[axis] - 1)
        part = (where - lower).clamp(0, 1).view([-1 if a == axis else 1 for a in range(3)])
        values = torch.lerp(values.index_select(axis, lower), values.index_select(axis, upper), part.to(values))
    return values
