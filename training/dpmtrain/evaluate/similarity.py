"""Perceptual similarity of an image to its truth, HaarPSI and GMSD, and KID of two sets of features.

piq, the library that has them, wants torchvision; tests hold the first two to values that piq gives.
"""

import numpy as np
import torch
import torch.nn.functional as F

HAAR_C, HAAR_ALPHA, HAAR_SCALES = 30.0, 4.2, 3
GMSD_C = 170.0


def _prepared(image: np.ndarray, truth: np.ndarray) -> torch.Tensor:
    """(2, 1, rows, cols) float32, 0 to 255 over the truth's range, means of 2 x 2 pixels."""
    low, high = float(truth.min()), float(truth.max())
    both = torch.from_numpy(np.stack([image, truth]).astype(np.float32))[:, None]
    scaled = 255 * ((both - low) / max(high - low, 1e-12)).clamp(0, 1)
    return F.avg_pool2d(F.pad(scaled, (0, scaled.shape[-1] % 2, 0, scaled.shape[-2] % 2)), 2)


def haarpsi(image: np.ndarray, truth: np.ndarray) -> float:
    """Haar wavelet-based perceptual similarity index, 1 for equal images (Reisenhofer et al., Signal Processing: Image
    Communication 2018); magnitudes (rows, cols)."""
    both = _prepared(image, truth)
    details = []
    for level in range(1, HAAR_SCALES + 1):
        side = 2**level
        kernel = torch.ones(side, side) / side
        kernel[side // 2 :] *= -1
        padded = F.pad(both, (side // 2 - 1, side // 2, side // 2 - 1, side // 2))
        details.append(F.conv2d(padded, torch.stack([kernel, kernel.T])[:, None]).abs())
    fine = torch.stack(details[:-1])  # (scales, images, directions, rows, cols)
    similarity = ((2 * fine[:, 0] * fine[:, 1] + HAAR_C) / (fine[:, 0].square() + fine[:, 1].square() + HAAR_C)).mean(0)
    weight = details[-1].amax(0)
    squashed = torch.sigmoid(HAAR_ALPHA * similarity)
    mean = (squashed * weight).sum() / (weight.sum() + 1e-12)
    return float((torch.logit(mean.clamp(1e-6, 1 - 1e-6)) / HAAR_ALPHA).square())


def gmsd(image: np.ndarray, truth: np.ndarray) -> float:
    """Gradient magnitude similarity deviation, 0 for equal images (Xue et al., IEEE TIP 2014); magnitudes."""
    kernel = torch.tensor([[1.0, 0.0, -1.0]]).expand(3, 3) / 3
    slopes = F.conv2d(_prepared(image, truth), torch.stack([kernel, kernel.T])[:, None], padding=1)
    found, wanted = slopes.square().sum(1).sqrt()
    similarity = (2 * found * wanted + GMSD_C) / (found.square() + wanted.square() + GMSD_C)
    return float(similarity.std(correction=0))


def kid(found: np.ndarray, wanted: np.ndarray) -> float:
    """Kernel inception distance (Binkowski et al., ICLR 2018), unbiased, of features (n, d) each: about 0 for two sets
    of one kind."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: np.ndarray) -> float:
        values = kernel(a, a)
        return float((values.sum() - np.trace(values)) / (len(a) * (len(a) - 1)))

    return within(found) + within(wanted) - 2 * float(kernel(found, wanted).mean())
