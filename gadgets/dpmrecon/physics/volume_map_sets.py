"""Two sets of coil maps of a volume whose head folds into its field of view, along its rows or its partitions."""

import math

import torch

from .coil_maps import FEWEST_COILS, FOLDED, REACH, THIRD, at_the_edge, basis_of, fourier_matrix

# A head folds along the rows where two eigenvalues are large and the third is small, as for slices, in regions that
# hold a voxel of the first or last row: together more than DOUBLE of the head on a coarse grid. Simulated heads that
# fit have 0; by one set those with .0006 have 1 to 2 % more NRMSE, with .005 up to twice as much: the table in
# training/reports/volumes/folds.
# Slabs cut heads off along the partitions: there all of the first or last ones have to fold, from the edge on, as deep
# as DEPTH of the axis in a tenth of its lines. Simulated heads that fit have 0, those cut off by the slab .06, folded
# ones .11 to .2 where 10 to 20 % are too much
DOUBLE, DEPTH, LOOKED_AT = 0.0005, 0.08, 32
EVEN = 0.35  # share over depth of a head that folds as much along both: there are two sets, for one axis
OUTER = 0.125  # of the partitions, at each end: what is looked at
# A head that reaches the field of view's end along the rows leaks into the other end, as k-space is cut off, and the
# kernel, which is periodic, finds the maps of where it came from. So the outermost END of the rows may have them, and
# those up to twice as deep are not trusted (training/reports/volumes/folds)
END, ALIEN = 0.018, 0.75  # correlation with the maps from inside of maps that are not theirs
FIRST = 0.9  # of the first eigenvalue, where a head is


def folding_axis(operator: torch.Tensor, grid: tuple[int, int, int], fold: float = DOUBLE) -> int | None:
    """The axis along which the head folds, 0 for partitions, 1 for rows; None where it does not.

    operator: convolution of `volume_maps`, (taps, taps, taps, n_coils, n_coils); grid: (partitions, rows, cols);
    fold: share of the head above which it folds along the rows.
    """
    if operator.shape[-1] < FEWEST_COILS:
        return None
    share, depth = folded_share(operator, grid), _folded_depth(operator, grid)
    if share > fold and (depth <= DEPTH or share / depth >= EVEN):
        return 1
    return 0 if depth > DEPTH else None


def folded_share(operator: torch.Tensor, grid: tuple[int, int, int]) -> float:
    """How much of the head folds along the rows."""
    places = [torch.arange(0, points, max(1, points // LOOKED_AT)) for points in grid]
    head, strong = _strong(operator, grid, places)
    return float(at_the_edge(strong, 1).sum() / head.sum().clamp_min(1))


def shared_part(operator: torch.Tensor, grid: tuple[int, int, int]) -> float:
    """Share of the head whose voxels are of two places or more, wherever they lie. Arguments as of `folding_axis`; 0
    of too few coils to tell."""
    if operator.shape[-1] < FEWEST_COILS:
        return 0.0
    places = [torch.arange(0, points, max(1, points // LOOKED_AT)) for points in grid]
    _, second, first = _eigenvalues(operator, grid, places)
    head = first >= FIRST
    return float((head & (second >= FOLDED)).sum() / head.sum().clamp_min(1))


def _folded_depth(operator: torch.Tensor, grid: tuple[int, int, int]) -> float:
    """How deep the head folds along the partitions, over their number, in the tenth of the lines that is deepest."""
    size = grid[0]
    outer = math.ceil(OUTER * size)
    ends = torch.cat([torch.arange(outer), torch.arange(size - outer, size)])
    places = [ends, *(torch.arange(0, points, max(1, points // LOOKED_AT)) for points in grid[1:])]
    near, far = _strong(operator, grid, places)[1].float().split(outer)
    depth = near.cumprod(0).sum(0) + far.flip(0).cumprod(0).sum(0)
    return float(depth.flatten().quantile(0.9)) / size


def _strong(
    operator: torch.Tensor, grid: tuple[int, int, int], places: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(partitions, rows, cols) bool at some places of the axes: there is a head; two of its places share a voxel."""
    third, second, first = _eigenvalues(operator, grid, places)
    head = first >= FIRST
    return head, head & (second >= FOLDED) & (third < THIRD)


def _eigenvalues(operator: torch.Tensor, grid: tuple[int, int, int], places: list[torch.Tensor]) -> torch.Tensor:
    """(3, partitions, rows, cols): the third, second and first at some places of the axes."""
    by_partition, by_row, by_col = (
        fourier_matrix(points, taps, operator.device)[place.to(operator.device)]
        for points, taps, place in zip(grid, operator.shape, places)
    )
    along = torch.einsum("xk,ijkcC->xijcC", by_col, operator)
    found = []
    for position in along:
        matrices = torch.einsum("zi,yj,ijcC->zycC", by_partition, by_row, position)
        found.append(torch.linalg.eigvalsh(matrices.cpu())[..., -3:])
    return torch.stack(found, -2).movedim(-1, 0)


def second_set(
    first: torch.Tensor, second: torch.Tensor, strong: torch.Tensor, axis: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two maps from the edge on, as far as two places of the head share a voxel; both (partitions, rows, cols, n_coils)
    as `first`, and where, (partitions, rows, cols) bool.

    first, second: eigenvectors that span the signal; strong: (2, partitions, rows, cols) bool, where their eigenvalues
    are large; axis: that folds, 0 or 1. Any basis of the two would do for the data, and the prior wants images of
    heads: the first set continues the maps inside the head to the edge, the second those of the opposite edge beyond
    it.
    """
    double = at_the_edge(strong.all(0), axis)
    inside, beyond = _continued(first, strong[0] & ~double, axis)
    span = torch.stack([first[double], second[double]], -1)
    one, other = torch.clone(first), torch.zeros_like(first)
    one[double], other[double] = basis_of(span, inside[double], beyond[double])
    return one, other, double


def continue_ends(maps: torch.Tensor, head: torch.Tensor, calibration: torch.Tensor) -> None:
    """Continue one set of maps (partitions, rows, cols, n_coils) from inside the head, in place, in the first and last
    rows where they are nearer to those of the other end, and the head is brighter there.

    head: (partitions, rows, cols) bool, where there are maps; calibration: that they were made of.
    """
    if maps.shape[-1] < FEWEST_COILS:  # nobody has looked whether the head folds
        return
    size = head.shape[1]
    depth = max(1, round(END * size))
    ends = torch.cat([torch.arange(depth), torch.arange(size - depth, size)]).to(maps.device)
    known = head.clone()
    known[:, : 2 * depth] = known[:, size - 2 * depth :] = False
    found = _continued(maps, known, 1, ends)
    inside, beyond = (torch.nn.functional.normalize(there, dim=-1, eps=1e-17) for there in found)
    there = maps[:, ends]
    own, others = ((continued.conj() * there).sum(-1) for continued in (inside, beyond))
    first, last = _brightness(calibration, head.shape, (3 * depth, size - 1 - 3 * depth))
    darker = torch.stack([first < last] * depth + [last < first] * depth, 1)
    swapped = head[:, ends] & darker & (own.abs() < ALIEN) & (own.abs() < others.abs())
    maps[:, ends] = torch.where(swapped[..., None], inside * torch.sgn(own)[..., None], there)


def _brightness(calibration: torch.Tensor, shape: torch.Size, rows: tuple[int, ...]) -> torch.Tensor:
    """(rows, partitions, cols): root of the sum of squares of the calibration's image in some rows of a grid."""
    for axis, size in enumerate(calibration.shape[1:], 1):
        window = torch.hann_window(size + 2, periodic=False, device=calibration.device)[1:-1]
        calibration = calibration * window.view([-1 if a == axis else 1 for a in range(4)])
    by_partition, by_row, by_col = (
        fourier_matrix(points, size, calibration.device) for points, size in zip(shape, calibration.shape[1:])
    )
    along = torch.einsum("rj,nzjk->rnzk", by_row[list(rows)], calibration)
    return torch.linalg.vector_norm(by_partition @ along @ by_col.T, dim=1)


def _continued(
    maps: torch.Tensor, known: torch.Tensor, axis: int, where: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (partitions, rows, cols, n_coils), where they are known, continued everywhere, and one field of view beyond
    the nearer end of an axis; neither of unit norm. where: places along the axis, None for all."""
    places = [torch.arange(size, device=maps.device) for size in known.shape]
    here, size = places[axis], known.shape[axis]
    wanted = here if where is None else where
    beyond = torch.where(wanted < size // 2, wanted + size, wanted - size)

    def weights(to: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        distance = (to[:, None] - place) / (REACH * len(place))
        return (1 + distance.square()).pow(-2).to(maps)

    source = maps * known[..., None]
    for other in {0, 1, 2} - {axis}:  # first, since it is one for both
        source = torch.tensordot(weights(places[other], places[other]), source.movedim(other, 0), 1).movedim(0, other)
    source = source.movedim(axis, 0)
    inside, outside = (torch.tensordot(weights(to, here), source, 1).movedim(0, axis) for to in (wanted, beyond))
    return inside, outside
