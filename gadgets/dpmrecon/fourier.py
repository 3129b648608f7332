"""The one Fourier transform of the project: centred and orthonormal."""

import torch


def to_kspace(image: torch.Tensor, axes: tuple[int, ...] = (-2, -1)) -> torch.Tensor:
    """Centred orthonormal FFT over `axes`; index N//2 of each axis is the origin on both sides."""
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(image, axes), dim=axes, norm="ortho"), axes)


def to_image(kspace: torch.Tensor, axes: tuple[int, ...] = (-2, -1)) -> torch.Tensor:
    """Inverse, and adjoint, of `to_kspace`."""
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(kspace, axes), dim=axes, norm="ortho"), axes)


def crop_or_pad(data: torch.Tensor, size: int, axis: int) -> torch.Tensor:
    """Crop or zero-pad one axis so that its origin, index N//2, stays the origin of the new length."""
    old = data.shape[axis]
    start = old // 2 - size // 2
    if size <= old:
        return data.narrow(axis, start, size)
    shape = list(data.shape)
    shape[axis] = size
    padded = data.new_zeros(shape)
    padded.narrow(axis, -start, old).copy_(data)
    return padded
