"""Receiver noise: the whitening matrix from a noise measurement, or a noise level estimated from k-space.

sigma is the standard deviation of one real channel (real or imaginary part) of one k-space sample.
"""

import math

import numpy as np
import torch

from .covariance import noise_covariance
from .fourier import to_image

# Share of the columns, the quietest, that the noise level is of
QUIET_SHARE = 0.1
# Smallest noise level over the samples' root mean square: scanners have far more
FLOOR = 1e-4


def whitening(lines: list[np.ndarray], dwell_ratio: float) -> torch.Tensor:
    """(n_coils, n_coils) complex64 matrix W that makes the image lines' noise white across coils: W C W^H = 1.

    lines: (n_coils, n_samples) complex64 noise measurements. dwell_ratio: the noise lines' dwell time over the image
    lines', which scales the variance, because the bandwidth is 1/dwell. Raises BadInputError for noise that is not
    finite or whose covariance is singular.
    """
    covariance = noise_covariance(lines)
    inverse = np.linalg.inv(np.linalg.cholesky(covariance * dwell_ratio))
    return torch.from_numpy(inverse.astype(np.complex64))


def estimated_sigma(kspace: torch.Tensor, mask: torch.Tensor) -> float:
    """The noise level of a slice without noise measurement: the smaller of two estimates, as signal only adds to both.

    One is the outer lines, along the readout, in columns beside the head: those where the inner lines hold least.
    (Columns chosen by the outer lines themselves are quiet by chance, which makes them 4 % too low.) The other is the
    corners of k-space. Data undersampled along both axes have the outermost tenth of their samples for it. kspace:
    (n_coils, rows, cols); mask: (rows, cols), 1 where acquired. Never below FLOOR times the root mean square of the
    samples, so that data without noise keep a usable weight.
    """
    acquired = kspace[:, mask > 0]
    floor = FLOOR * float(acquired.abs().square().mean().sqrt())
    if not torch.equal(mask, torch.outer(mask.amax(1), mask.amax(0))):  # undersampled along both axes
        return max(float(_median_variance(kspace[:, _periphery(mask)]).sqrt()), floor)
    rows = mask.amax(1).nonzero().squeeze(1)
    columns = mask.amax(0).nonzero().squeeze(1)
    distance = (rows - mask.shape[0] // 2).abs()
    outward = rows[distance.argsort(descending=True)]
    outer = outward[: max(1, len(rows) // 2)]
    level = _level(kspace[:, outer], kspace[:, outward[-len(outer) :]], columns)
    return max(float(level), floor)


def _level(lines: torch.Tensor, inner: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The smaller of the two estimates.

    lines, inner: (n_coils, n_lines, cols), outermost first; columns: those that hold data.
    """
    cols = lines.shape[2]
    # the window keeps edges from leaking into the quiet columns
    window = torch.zeros(cols)
    window[columns] = torch.hann_window(len(columns) + 2, periodic=False)[1:-1]
    quiet = _column_variance(inner, window).argsort()[: max(1, round(QUIET_SHARE * cols))]
    beside = _column_variance(lines, window)[quiet].mean()
    edge = columns[((columns - cols // 2).abs()).argsort(descending=True)[: max(1, len(columns) // 5)]]
    corners = lines[:, : max(1, lines.shape[1] // 4)][..., edge].flatten(1)
    return torch.minimum(beside, _median_variance(corners)).sqrt()


def estimated_volume_sigma(kspace: torch.Tensor, mask: torch.Tensor) -> float:
    """The same of a volume, whose lines are those of both phase encodings: the outermost tenth, and the innermost.

    kspace: (n_coils, partitions, rows, cols); mask: (partitions, rows, cols), the same columns in every acquired line.
    """
    places, columns = mask.amax(2).nonzero(), mask.amax((0, 1)).nonzero().squeeze(1)
    size = torch.tensor(mask.shape[:2])
    radius = (2 * (places - size // 2) / size).square().sum(1)
    outward = places[radius.argsort(descending=True)]
    count = max(1, round(QUIET_SHARE * len(places)))
    outer, inner = (kspace[:, down, along] for down, along in (outward[:count].T, outward[-count:].T))
    energy = sum(float(torch.vdot(coil.flatten(), coil.flatten()).real) for coil in kspace)
    floor = FLOOR * math.sqrt(energy / (len(kspace) * len(places) * len(columns)))
    return max(float(_level(outer, inner, columns)), floor)


def _median_variance(samples: torch.Tensor) -> torch.Tensor:
    """The variance of a real channel from (n_coils, n) samples of noise: |n|^2 is exponential, its median is
    2 ln 2 sigma^2, and blind to single bright samples."""
    return samples.abs().square().median(1).values.mean() / (2 * math.log(2))


def _periphery(mask: torch.Tensor) -> torch.Tensor:
    """(rows, cols) bool: the acquired samples that are farthest from the centre, a tenth of them."""
    down, along = (((torch.arange(size) - size // 2) / (size / 2)).square() for size in mask.shape)
    radius = down[:, None] + along
    chosen = radius[mask > 0].quantile(1 - QUIET_SHARE)
    return (mask > 0) & (radius >= chosen)


def _column_variance(lines: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """(n_coils, n_lines, cols) k-space to the variance of a real channel in each column of the image, (cols,)."""
    hybrid = to_image(lines * window, axes=(-1,)) / window.square().mean().sqrt()
    return torch.view_as_real(hybrid).square().mean((0, 1, 3))
