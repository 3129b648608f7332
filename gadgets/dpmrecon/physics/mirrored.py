"""Whether an image is another one's mirror image along the readout, by what its channels see.

Bipolar echoes are read in turns forwards and backwards. Where the flag for it is missing, or is on lines that were
turned already, every second echo is mirrored, and is as good an image as the others.
"""

import torch

from .fourier import crop_or_pad, to_image

WIDTH = 24  # samples of each axis, around the centre of k-space
# Correlation by which it has to be more like the mirror image. Of echoes of simulated heads it is less like it, by 0 in
# one channel that sees both sides alike, by .3 to .9 in several
MARGIN = 0.1


def centre_of(kspace: torch.Tensor) -> torch.Tensor:
    """A copy of what `is_mirrored` looks at."""
    return _cropped(kspace, tuple(min(WIDTH, size) for size in kspace.shape[1:])).clone()


def is_mirrored(kspace: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both, (n_coils, ..., cols) with the readout last, fit better when one is turned; not if channels differ.

    Asked are the channels' coarse magnitude images, without their mean: the phase of echoes changes.
    """
    if len(kspace) != len(other):
        return False
    shape = tuple(min(WIDTH, *sizes) for sizes in zip(kspace.shape[1:], other.shape[1:], strict=True))
    one, two = (to_image(_cropped(data, shape), axes=tuple(range(1, data.ndim))).abs() for data in (kspace, other))
    one, two = one - one.mean(), two - two.mean()
    return bool(((turned(one) - one) * two).sum() > MARGIN * one.norm() * two.norm())


def _cropped(kspace: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    for axis, width in enumerate(shape, 1):
        kspace = crop_or_pad(kspace, width, axis)
    return kspace


def turned(data: torch.Tensor) -> torch.Tensor:
    """Of (..., cols), k-space or image: its mirror image along the readout, k-space having its centre at cols//2."""
    return data.flip(-1) if data.shape[-1] % 2 else data.flip(-1).roll(1, -1)
