"""Coil maps from calibration lines: ESPIRiT (Uecker et al., Magnetic Resonance in Medicine 71:990, 2014)."""

import torch

from ..errors import BadInputError
from .fourier import crop_or_pad, to_image

SQUARINGS = 6  # the operator's 64th power: a second eigenvalue of .9 beside a first of 1 is down to .001
CHUNK = 2**21  # matrix elements of the operator held at once (16 MB); a handful of such arrays is alive


def estimate_coil_maps(
    calibration: torch.Tensor,
    shape: tuple[int, int],
    *,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.9,
    max_calibration: int = 24,
) -> torch.Tensor:
    """Coil maps (n_coils, rows, cols) complex64: sum over coils of |s|^2 is 1 in the support and 0 outside it.

    calibration: (n_coils, lines, samples) complex64 k-space, fully sampled, pre-whitened, of the same field of view
    as the image; index N//2 of both axes is the centre. Its middle, at most `max_calibration` each way, is used.
    shape: (rows, cols) of the image. kernel: k-space kernel size. threshold: singular vectors of the calibration
    matrix above this fraction of the largest singular value span the signal. crop: pixels whose largest eigenvalue
    is smaller (it is 1 where the signal explains the coils fully) are outside the support; .6 to 1.

    Phase: the coil combination along the dominant principal component of the calibration data, a virtual coil that
    sees the whole head, has phase zero everywhere. A physical coil as reference would put phase vortices where it
    sees nothing. The principal component's own phase makes its largest element real and positive, so that neither
    the order of the coils nor the scale of the data matters.

    Raises BadInputError for a calibration, or an image, too small for the kernel, and for one that is zero or not
    finite, and for a crop out of range.
    """
    if not 0.6 <= crop <= 1:
        raise BadInputError(f"The crop of the coil maps is {crop}, but .6 to 1 is needed: choose about .9.")
    calibration = _middle(calibration, shape, kernel, max_calibration)
    operator = _kernel_correlations(calibration, kernel, threshold)
    reference = _principal_component(calibration)
    by_row, by_col = (_fourier_matrix(size, 2 * kernel - 1, calibration.device) for size in shape)
    # image-space operator: (cols, n_coils, n_coils) matrices per row of the image
    operator = torch.einsum("qe,decC->dqcC", by_col, operator)
    n_coils = len(calibration)
    maps = calibration.new_empty((*shape, n_coils))
    step = max(1, CHUNK // operator[0].numel())
    for start in range(0, shape[0], step):
        rows = by_row[start : start + step]
        matrices = (rows @ operator.flatten(1)).view(-1, n_coils, n_coils)
        maps[start : start + step] = _dominant(matrices, reference, crop).view(len(rows), shape[1], n_coils)
    return maps.permute(2, 0, 1).contiguous()


def _middle(calibration: torch.Tensor, shape: tuple[int, int], kernel: int, largest: int) -> torch.Tensor:
    if calibration.ndim != 3:
        raise BadInputError(
            f"The calibration has shape {tuple(calibration.shape)}, but (n_coils, lines, samples) is needed."
        )
    for size, name in zip(calibration.shape[1:], ("lines", "samples")):
        if size < kernel + 2:
            raise BadInputError(
                f"The calibration has {size} {name}, but at least {kernel + 2} are needed for coil maps: "
                "acquire more central k-space lines."
            )
    if min(shape) < 2 * kernel - 1:
        raise BadInputError(
            f"The image is {shape[0]} x {shape[1]}, but coil maps need at least {2 * kernel - 1} pixels each way."
        )
    if not bool(torch.isfinite(torch.view_as_real(calibration)).all()) or not bool((calibration != 0).any()):
        raise BadInputError("The calibration is zero or has values that are not finite: check the scan's samples.")
    for axis in (1, 2):
        calibration = crop_or_pad(calibration, min(calibration.shape[axis], largest), axis)
    return calibration / calibration.abs().max()


def _kernel_correlations(calibration: torch.Tensor, kernel: int, threshold: float) -> torch.Tensor:
    """The projection of all k-space patches on the signal space, averaged over the patches that hold a sample: a
    convolution (2 kernel - 1, 2 kernel - 1, n_coils, n_coils) that leaves true k-space as it is."""
    n_coils = len(calibration)
    patches = calibration.unfold(1, kernel, 1).unfold(2, kernel, 1)
    patches = patches.permute(1, 2, 0, 3, 4).reshape(-1, n_coils * kernel**2)
    # the right singular vectors, conjugated since a patch is a row here, as eigenvectors of a smaller matrix: LAPACK's,
    # since the decompositions that a GPU's libraries choose are made for many matrices or large ones
    energies, vectors = torch.linalg.eigh((patches.T @ patches.conj()).cpu())
    signal = vectors[:, energies > threshold**2 * energies[-1]].to(patches.device)
    projection = (signal @ signal.mH).view(n_coils, kernel, kernel, n_coils, kernel, kernel)
    projection = projection.permute(1, 2, 4, 5, 0, 3).flip(2, 3) / kernel**2
    convolution = projection.new_zeros((2 * kernel - 1, 2 * kernel - 1, n_coils, n_coils))
    for i in range(kernel):
        for j in range(kernel):
            convolution[i : i + kernel, j : j + kernel] += projection[i, j]
    return convolution


def _principal_component(calibration: torch.Tensor) -> torch.Tensor:
    """(n_coils,): the dominant eigenvector of the covariance between coils, its largest element positive."""
    samples = calibration.flatten(1)
    component = torch.linalg.eigh((samples @ samples.mH).cpu())[1][:, -1].to(samples.device)
    return component * torch.sgn(component[component.abs().argmax()]).conj()


def _fourier_matrix(size: int, taps: int, device: torch.device) -> torch.Tensor:
    """(size, taps): the image-space values, unnormalized, of unit samples around the centre of k-space."""
    units = torch.eye(taps, dtype=torch.complex64, device=device)
    return to_image(crop_or_pad(units, size, 0), (0,)) * size**0.5


def _dominant(matrices: torch.Tensor, reference: torch.Tensor, crop: float) -> torch.Tensor:
    """(pixels, n_coils): eigenvector of the largest eigenvalue of Hermitian (pixels, n_coils, n_coils) matrices with
    eigenvalues in [0, 1]; zero where the eigenvalue is below `crop`."""
    power = matrices
    for _ in range(SQUARINGS):  # power iteration by squaring: fewer passes over memory than vector by vector
        power = power @ power
    # Every column of the power is the eigenvector, times the conjugate of its own element: take the largest
    column = power.diagonal(dim1=1, dim2=2).real.argmax(1)
    vector = power.gather(2, column.view(-1, 1, 1).expand(-1, power.shape[1], 1))
    # Eigenvalues below .6 leave less than the clamp, or underflow, and fail the test below: no normalization needed
    vector = vector / vector.abs().square().sum(1, keepdim=True).sqrt().clamp_min(1e-17)
    value = (vector.conj() * (matrices @ vector)).real.sum(1)
    vector = vector[..., 0]
    phase = torch.sgn(vector @ reference.conj()).conj()
    return vector * phase[:, None] * (value >= crop)
