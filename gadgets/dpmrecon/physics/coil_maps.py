"""Coil maps from calibration lines: ESPIRiT (Uecker et al., Magnetic Resonance in Medicine 71:990, 2014)."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch.nn.functional import max_pool3d

from ..errors import BadInputError
from .fourier import crop_or_pad, to_image

SQUARINGS = 6  # the operator's 64th power: an eigenvalue of .9 becomes .001
CHUNK = 2**21  # matrix elements held at once (16 MB), in a handful of arrays
FEWEST = 8  # calibration lines, or samples
# The kernel along an axis is the largest up to this one that leaves at least two more patches than it has samples:
# with 8 lines CG-SENSE of the FLAIR validation slice (R = 2) has NRMSE .92 by a kernel of 6, .08 by one of 4, .05 by 3
KERNEL = 6
LARGEST = 24  # samples of the calibration that are used along each axis
THRESHOLD = 0.02  # of the largest singular value: what is above spans the signal
CROP = 0.9  # of the largest eigenvalue, 1 where the signal explains the coils: below no maps

# A head folds where, on a coarse grid of LOOKED_AT pixels or more each way, the second eigenvalue is at least FOLDED
# and the third less than THIRD in regions that hold a pixel of the first or last line: together more than DOUBLE of the
# head. Simulated heads that just fit have .015 at most, .02 where 3 % are too much (T2 .013), .02 to .04 where 7 % are,
# .06 to .08 where 13 % are; DWI, whose fat is suppressed, .008 there. Those cut off at the edge have up to .04, as the
# calibration cannot tell that nothing folds: two sets suit them as well
FOLDED, THIRD, DOUBLE, LOOKED_AT = 0.95, 0.8, 0.016, 44
FEWEST_COILS = 4  # of two images at R = 2
REACH = 0.03  # of the image: how far a map is taken from where it continues


def estimate_coil_maps(
    calibration: torch.Tensor,
    shape: tuple[int, int],
    *,
    kernel: int | None = None,
    threshold: float = THRESHOLD,
    crop: float = CROP,
    max_calibration: int = LARGEST,
) -> torch.Tensor:
    """Coil maps (n_coils, rows, cols) complex64: sum over coils of |s|^2 is 1 in the support and 0 outside it.

    calibration: (n_coils, lines, samples) complex64 k-space, fully sampled, pre-whitened, of the same field of view
    as the image; index N//2 of both axes is the centre. Its middle, at most `max_calibration` each way, is used.
    shape: (rows, cols) of the image. kernel: k-space kernel size; None is 6, and less along an axis with fewer than
    13 lines. threshold: singular vectors of the calibration matrix above this fraction of the largest singular value
    span the signal. crop: pixels whose largest eigenvalue is smaller (it is 1 where the signal explains the coils
    fully) are outside the support; .6 to 1.

    Phase: the coil combination along the dominant principal component of the calibration data, a virtual coil that sees
    the whole head, has phase zero everywhere. A physical coil as reference would put phase vortices where it sees
    nothing. The principal component's own phase makes its largest element real and positive. So neither the order of
    the coils nor the scale of the data matters.

    Raises BadInputError for a calibration, or an image, too small for the kernel, for one that is zero or not finite,
    and for a crop, threshold, kernel or largest calibration out of range.
    """
    return _Espirit(calibration, shape, kernel, threshold, crop, max_calibration).first().permute(2, 0, 1).contiguous()


def estimate_map_sets(calibration: torch.Tensor, shape: tuple[int, int], crop: float = CROP) -> torch.Tensor:
    """(n_sets, n_coils, rows, cols): the maps of `estimate_coil_maps`, or two sets where the head folds.

    Two sets are orthonormal, the second is 0 where one place of the head explains a pixel. Raises BadInputError as
    `estimate_coil_maps`.
    """
    espirit = _Espirit(calibration, shape, crop=crop)
    first = espirit.first()
    sets = espirit.both(first) if espirit.folds() else first[None]
    return sets.permute(0, 3, 1, 2).contiguous()


class _Espirit:
    """The image-space operator: a Hermitian (n_coils, n_coils) matrix at every pixel, eigenvalues in [0, 1]."""

    def __init__(
        self,
        calibration: torch.Tensor,
        shape: tuple[int, int],
        kernel: int | None = None,
        threshold: float = THRESHOLD,
        crop: float = CROP,
        max_calibration: int = LARGEST,
    ):
        if not 0.6 <= crop <= 1:
            raise BadInputError(f"The crop of the coil maps is {crop}, but .6 to 1 is needed: choose about .9.")
        if not 0 <= threshold < 1:
            raise BadInputError(
                f"The threshold of the coil maps is {threshold}, but 0 to 1 is needed: choose about .02."
            )
        if kernel is not None and kernel < 1:
            raise BadInputError(f"The kernel of the coil maps is {kernel}, but 1 or more is needed: choose about 6.")
        sizes = (kernel,) * 2 if kernel is not None else tuple(kernel_size(size) for size in calibration.shape[-2:])
        calibration = _middle(calibration, shape, sizes, FEWEST if kernel is None else kernel + 2, max_calibration)
        self.shape, self.crop, self.n_coils = shape, crop, len(calibration)
        operator = kernel_correlations(calibration, sizes, threshold)
        self.reference = principal_component(calibration)
        self.by_row, by_col = (
            fourier_matrix(size, 2 * taps - 1, calibration.device) for size, taps in zip(shape, sizes)
        )
        # (cols, n_coils, n_coils) matrices per row of the kernel
        self.hybrid = torch.einsum("qe,decC->dqcC", by_col, operator)

    def matrices(self, rows: slice, cols: slice = slice(None)) -> torch.Tensor:
        """(rows * cols, n_coils, n_coils) of some pixels."""
        found = self.by_row[rows] @ self.hybrid[:, cols].flatten(1)
        return found.view(-1, self.n_coils, self.n_coils)

    def first(self) -> torch.Tensor:
        """(rows, cols, n_coils): the dominant eigenvectors, 0 outside the support."""
        maps = self.hybrid.new_empty((*self.shape, self.n_coils))
        step = max(1, CHUNK // self.hybrid[0].numel())
        for start in range(0, self.shape[0], step):
            rows = slice(start, min(start + step, self.shape[0]))
            vectors, values = dominant(self.matrices(rows), self.reference)
            maps[rows] = (vectors * (values >= self.crop)[:, None]).view(-1, self.shape[1], self.n_coils)
        return maps

    def folds(self) -> bool:
        """Whether the head folds into its field of view along the lines.

        Two places and no more explain a pixel there: the third eigenvalue is smaller, unless noise is taken for signal.
        Away from the edge, close to a coil, the second is large as well.
        """
        if self.n_coils < FEWEST_COILS:
            return False
        rows, cols = (slice(None, None, max(1, size // LOOKED_AT)) for size in self.shape)
        values = torch.linalg.eigvalsh(self.matrices(rows, cols).cpu()).view(len(self.by_row[rows]), -1, self.n_coils)
        third, second, first = (values[..., -place] for place in (3, 2, 1))
        head = first >= self.crop
        double = at_the_edge((head & (second >= FOLDED) & (third < THIRD))[None], 1)
        return int(double.sum()) > DOUBLE * int(head.sum())

    def both(self, first: torch.Tensor) -> torch.Tensor:
        """(2, rows, cols, n_coils): two maps where the second eigenvalue passes the crop, from the edge on.

        Elsewhere the first is as it is, and the second 0. Any basis of the two eigenvectors would do for the data, and
        the prior wants images of heads: the first set continues the maps inside the head to the edge, and the
        second those of the opposite edge beyond it.
        """
        sets = torch.stack([first, torch.zeros_like(first)])
        step = max(1, CHUNK // self.hybrid[0].numel())
        parts = [self._two(slice(start, min(start + step, self.shape[0]))) for start in range(0, self.shape[0], step)]
        double, spans = (torch.cat(part).to(first.device) for part in zip(*parts))
        double = at_the_edge((double & (first != 0).any(-1))[None], 1)[0]
        inside, beyond = _continued(first, (first != 0).any(-1) & ~double)
        span = spans[double]
        sets[:, double] = basis_of(span, inside[double], beyond[double])
        return sets

    def _two(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Of some rows: (rows, cols) bool, the second eigenvalue passes the crop; (rows, cols, n_coils, 2): span."""
        values, vectors = torch.linalg.eigh(self.matrices(rows).cpu())
        shape = (-1, self.shape[1])
        return values[:, -2].view(shape) >= self.crop, vectors[..., -2:].unflatten(0, shape)


def at_the_edge(where: torch.Tensor, axis: int) -> torch.Tensor:
    """The connected regions of `where`, (partitions, rows, cols) bool, that hold a voxel of an axis' first or last
    plane. A slice is one partition."""
    found = torch.zeros_like(where)
    ends = torch.tensor([0, where.shape[axis] - 1], device=where.device)
    found.index_copy_(axis, ends, where.index_select(axis, ends))
    while True:
        grown = max_pool3d(found[None].float(), 3, 1, 1)[0].bool() & where
        if torch.equal(grown, found):
            return found
        found = grown


def _continued(maps: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (rows, cols, n_coils), where they are known, continued everywhere, and one field of view beyond the nearer
    edge of the lines; neither of unit norm."""
    rows, cols = known.shape
    down, along = torch.arange(rows), torch.arange(cols)
    beyond = torch.where(down < rows // 2, down + rows, down - rows)
    source = maps * known[..., None]

    def spread(to: torch.Tensor) -> torch.Tensor:
        by_row, by_col = (
            (1 + ((there[:, None] - here) / (REACH * size)).square()).pow(-2).to(maps)
            for there, here, size in ((to, down, rows), (along, along, cols))
        )
        return torch.einsum("Rr,rcn,Cc->RCn", by_row, source, by_col)

    return spread(down), spread(beyond)


def basis_of(span: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(2, pixels, n_coils): the orthonormal basis of span (pixels, n_coils, 2) whose first vector is that nearest to
    `first`, (pixels, n_coils), and whose second one has the phase of `second`."""
    a, b = ((span.mH @ vector[..., None])[..., 0] for vector in (first, second))
    a = a / torch.linalg.vector_norm(a, dim=-1, keepdim=True).clamp_min(1e-20)
    other = torch.stack([-a[..., 1].conj(), a[..., 0].conj()], -1)
    other = other * torch.sgn((other.conj() * b).sum(-1, keepdim=True))
    return torch.stack([(span @ one[..., None])[..., 0] for one in (a, other)])


def kernel_size(lines: int) -> int:
    """Samples of the kernel along an axis of the calibration."""
    return min(KERNEL, max(1, (lines - 1) // 2))


def _middle(
    calibration: torch.Tensor, shape: tuple[int, int], kernel: tuple[int, ...], fewest: int, largest: int
) -> torch.Tensor:
    if calibration.ndim != 3:
        raise BadInputError(
            f"The calibration has shape {tuple(calibration.shape)}, but (n_coils, lines, samples) is needed."
        )
    if largest < fewest:
        raise BadInputError(
            f"At most {largest} lines of the calibration may be used, but at least {fewest} are needed for coil maps: "
            "allow more with max_calibration."
        )
    for size, name in zip(calibration.shape[1:], ("lines", "samples")):
        if size < fewest:
            raise BadInputError(
                f"The calibration has {size} {name}, but at least {fewest} are needed for coil maps: "
                "acquire more central k-space lines."
            )
    if min(shape) < 2 * max(kernel) - 1:
        raise BadInputError(
            f"The image is {shape[0]} x {shape[1]}, but coil maps need at least {2 * max(kernel) - 1} pixels each way."
        )
    if not bool(torch.isfinite(torch.view_as_real(calibration)).all()) or not bool((calibration != 0).any()):
        raise BadInputError("The calibration is zero or has values that are not finite: check the scan's samples.")
    for axis in (1, 2):
        calibration = crop_or_pad(calibration, min(calibration.shape[axis], largest), axis)
    return calibration / calibration.abs().max()


def kernel_correlations(calibration: torch.Tensor, kernel: Sequence[int], threshold: float = THRESHOLD) -> torch.Tensor:
    """The projection of all k-space patches on the signal space, averaged over the patches that hold a sample: a
    convolution (2 kernel - 1 taps along each axis, n_coils, n_coils) that leaves true k-space as it is.

    calibration: (n_coils, lines, samples) or (n_coils, partitions, lines, samples); kernel: its size along each axis.
    """
    n_coils, axes = len(calibration), len(kernel)
    patches = calibration
    for axis, size in enumerate(kernel, 1):
        patches = patches.unfold(axis, size, 1)
    patches = patches.movedim(0, axes).flatten(0, axes - 1).flatten(1)
    # the right singular vectors, conjugated since patches are rows; LAPACK is quicker than a GPU
    energies, vectors = torch.linalg.eigh((patches.T @ patches.conj()).cpu())
    signal = vectors[:, energies > threshold**2 * energies[-1]].to(patches.device)
    projection = (signal @ signal.mH).view(n_coils, *kernel, n_coils, *kernel)
    projection = projection.movedim((0, axes + 1), (-2, -1)).flip(*range(axes, 2 * axes)) / math.prod(kernel)
    convolution = projection.new_zeros((*(2 * size - 1 for size in kernel), n_coils, n_coils))
    for place in itertools.product(*map(range, kernel)):
        some = tuple(slice(first, first + size) for first, size in zip(place, kernel))
        convolution[some] += projection[place]
    return convolution


def principal_component(calibration: torch.Tensor) -> torch.Tensor:
    """(n_coils,): the dominant eigenvector of the covariance between coils, its largest element positive."""
    samples = calibration.flatten(1)
    component = torch.linalg.eigh((samples @ samples.mH).cpu())[1][:, -1].to(samples.device)
    return component * torch.sgn(component[component.abs().argmax()]).conj()


def fourier_matrix(size: int, taps: int, device: torch.device) -> torch.Tensor:
    """(size, taps): the image-space values, unnormalized, of unit samples around the centre of k-space."""
    units = torch.eye(taps, dtype=torch.complex64, device=device)
    return to_image(crop_or_pad(units, size, 0), (0,)) * size**0.5


def dominant(matrices: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(pixels, n_coils), (pixels,): eigenvector of the largest eigenvalue of Hermitian (pixels, n_coils, n_coils)
    matrices with eigenvalues in [0, 1], its combination along `reference` being real, and that eigenvalue; both are of
    no use where it is below .6."""
    power = matrices
    for _ in range(SQUARINGS):  # power iteration by squaring: fewer passes over memory than vector by vector
        power = power @ power
    # Every column is the eigenvector, times its own element's conjugate: take the largest
    column = power.diagonal(dim1=1, dim2=2).real.argmax(1)
    vector = power.gather(2, column.view(-1, 1, 1).expand(-1, power.shape[1], 1))
    # Eigenvalues below .6 become less than the clamp: no normalization needed
    vector = vector / vector.abs().square().sum(1, keepdim=True).sqrt().clamp_min(1e-17)
    value = (vector.conj() * (matrices @ vector)).real.sum(1)
    vector = vector[..., 0]
    phase = torch.sgn(vector @ reference.conj()).conj()
    return vector * phase[:, None], value[:, 0]
