"""Two sets of coil maps of a volume whose head folds into its field of view, along its rows or its partitions."""

import math

import torch

from .coil_maps import FEWEST_COILS, FOLDED, REACH, THIRD, at_the_edge, basis_of, fourier_matrix

# A head folds along an axis where, from the first and last line or partition on, two eigenvalues are large and the
# third is small, together as deep as DEPTH of them, in a tenth of the lines of a coarse grid. Simulated heads that fit
# have 0, those cut off by the slab .05, folded ones .11 to .2 where 10 to 20 % are too much
DEPTH, LOOKED_AT = 0.08, 32
OUTER = 0.125  # of an axis, at each end: what is looked at
FIRST = 0.9  # of the first eigenvalue there


def folding_axis(operator: torch.Tensor, grid: tuple[int, int, int]) -> int | None:
    """The axis along which the head folds, 0 for partitions, 1 for rows; None where it does not.

    operator: convolution of `volume_maps`, (taps, taps, taps, n_coils, n_coils); grid: (partitions, rows, cols).
    """
    if operator.shape[-1] < FEWEST_COILS:
        return None
    depths = [_folded_depth(operator, grid, axis) for axis in (0, 1)]
    deepest = max((0, 1), key=lambda axis: depths[axis])
    return deepest if depths[deepest] > DEPTH else None


def _folded_depth(operator: torch.Tensor, grid: tuple[int, int, int], axis: int) -> float:
    """How deep the head folds along an axis, over the axis' size, in the tenth of the lines where it is deepest."""
    size = grid[axis]
    outer = math.ceil(OUTER * size)
    places = [torch.arange(0, points, max(1, points // LOOKED_AT)) for points in grid]
    places[axis] = torch.cat([torch.arange(outer), torch.arange(size - outer, size)])
    by_partition, by_row, by_col = (
        fourier_matrix(points, taps, operator.device)[place.to(operator.device)]
        for points, taps, place in zip(grid, operator.shape, places)
    )
    along = torch.einsum("xk,ijkcC->xijcC", by_col, operator)
    strong = []
    for position in along:
        matrices = torch.einsum("zi,yj,ijcC->zycC", by_partition, by_row, position)
        third, second, first = torch.linalg.eigvalsh(matrices.cpu())[..., -3:].unbind(-1)
        strong.append(((first >= FIRST) & (second >= FOLDED) & (third < THIRD)).movedim(axis, 0))
    near, far = torch.stack(strong, -1).float().split(outer)
    depth = near.cumprod(0).sum(0) + far.flip(0).cumprod(0).sum(0)
    return float(depth.flatten().quantile(0.9)) / size


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


def _continued(maps: torch.Tensor, known: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (partitions, rows, cols, n_coils), where they are known, continued everywhere, and one field of view beyond
    the nearer end of an axis; neither of unit norm."""
    places = [torch.arange(size, device=maps.device) for size in known.shape]
    here, size = places[axis], known.shape[axis]
    beyond = torch.where(here < size // 2, here + size, here - size)

    def weights(to: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        distance = (to[:, None] - place) / (REACH * len(place))
        return (1 + distance.square()).pow(-2).to(maps)

    source = maps * known[..., None]
    for other in {0, 1, 2} - {axis}:  # first, since it is one for both
        source = torch.tensordot(weights(places[other], places[other]), source.movedim(other, 0), 1).movedim(0, other)
    source = source.movedim(axis, 0)
    inside, outside = (torch.tensordot(weights(to, here), source, 1).movedim(0, axis) for to in (here, beyond))
    return inside, outside
