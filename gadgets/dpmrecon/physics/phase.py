"""The phase rule, one for training and reconstruction: a slice's low-resolution phase is taken off."""

import math

import torch

from .fourier import Axes, crop_or_pad, to_image, to_kspace

LINES = 24  # of the centre of k-space, each way
RULE = f"the phase of the Hann-windowed {LINES} x {LINES} centre of k-space is 0"


def smooth_phase(image: torch.Tensor, axes: Axes = (-2, -1)) -> torch.Tensor:
    """exp(i phi), phi the phase of the Hann-windowed centre of k-space: (rows, cols) complex64 to the same; a volume
    has its three axes smoothed.

    What coils and the field leave of smooth phase is different in every scan and says nothing of anatomy. Taken into
    the coil maps it leaves images that are nearly real (as in homodyne detection, Noll et al., IEEE Transactions on
    Medical Imaging 10:154, 1991). So the network has little else to learn than magnitudes.
    """
    kspace = to_kspace(image, axes)
    for axis in axes:
        size = image.shape[axis]
        lines = min(LINES, size)
        # symmetric about the origin: else a real image would get a phase
        place = torch.arange(lines, device=image.device) - lines // 2
        window = torch.cos(math.pi * place / (lines + 1)).square()
        centre = crop_or_pad(kspace, lines, axis) * window.view(-1, *[1] * (-1 - axis))
        kspace = crop_or_pad(centre, size, axis)
    # not sgn: where nothing is, the factor stays 1 in modulus
    return torch.polar(torch.ones_like(kspace.real), to_image(kspace, axes).angle())
