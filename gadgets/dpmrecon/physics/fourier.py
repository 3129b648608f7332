"""The one Fourier transform of the project: orthonormal, with the origin at index N//2 of every axis."""

import torch

Axes = tuple[int, ...]


def to_kspace(image: torch.Tensor, axes: Axes = (-2, -1)) -> torch.Tensor:
    """Centred orthonormal FFT over `axes`; index N//2 of each axis is the origin on both sides."""
    return origin_to_centre(torch.fft.fftn(origin_to_corner(image, axes), dim=axes, norm="ortho"), axes)


def to_image(kspace: torch.Tensor, axes: Axes = (-2, -1)) -> torch.Tensor:
    """Inverse, and adjoint, of `to_kspace`."""
    return origin_to_centre(torch.fft.ifftn(origin_to_corner(kspace, axes), dim=axes, norm="ortho"), axes)


def corner_to_kspace(image: torch.Tensor, axes: Axes = (-2, -1)) -> torch.Tensor:
    """sqrt(N) times the transform of N points, the origin at index 0 on both sides: an iteration has neither shifts nor
    factors to pay for."""
    return torch.fft.fftn(image, dim=axes, norm="backward")


def corner_to_image(kspace: torch.Tensor, axes: Axes = (-2, -1)) -> torch.Tensor:
    """Adjoint of `corner_to_kspace`, N times its inverse."""
    return torch.fft.ifftn(kspace, dim=axes, norm="forward")


def origin_to_corner(data: torch.Tensor, axes: Axes = (-2, -1)) -> torch.Tensor:
    """Move the origin from index N//2 to index 0."""
    return torch.fft.ifftshift(data, axes)


def origin_to_centre(data: torch.Tensor, axes: Axes = (-2, -1)) -> torch.Tensor:
    """Move the origin from index 0 to index N//2."""
    return torch.fft.fftshift(data, axes)


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


def without_oversampling(lines: torch.Tensor, cols: int) -> torch.Tensor:
    """Keep the central `cols` pixels of the readout: (..., n_samples) k-space to (..., cols) k-space."""
    return to_kspace(crop_or_pad(to_image(lines, axes=(-1,)), cols, -1), axes=(-1,))
