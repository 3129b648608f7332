"""Small structures that an image lacks, estimated from what it leaves of the data."""

import math

import torch

from .forward import ForwardModel, conjugate_gradients, energy_of

STEPS, TOLERANCE = 12, 0.02  # of the conjugate gradients
SURROUNDINGS = 2.0  # pixels: standard deviation of the Gaussian whose mean the tissue's signal is


def with_details(
    model: ForwardModel,
    adjoint_kspace: torch.Tensor,
    image: torch.Tensor,
    noise: torch.Tensor,
    deviation: float,
    width: float,
    n_axes: int = 2,
) -> torch.Tensor:
    """argmin_x ||A x - y||^2 / noise^2 + (x - image)^H C^-1 (x - image): the best linear estimate of an image whose
    errors have the covariance C.

    C: at each place a standard deviation (per real channel) of `deviation` times the signal of the tissue around, and a
    Gaussian point spread of `width` pixels: structures of that size, anywhere, bright or dark. A network takes what it
    cannot tell from noise for none; this keeps of it what the data are worth.

    adjoint_kspace: A^H y; image: (batch, rows, cols), or longer where `model` has sets of maps; noise: (batch,), of a
    real channel of the data; n_axes: 3 of volumes.
    """
    axes = tuple(range(-n_axes, 0))
    signal = _spread(image.abs(), SURROUNDINGS, axes, unit_sum=True).clamp_min(0)
    amplitude = deviation * signal * model.support

    def structures(drawn: torch.Tensor) -> torch.Tensor:
        """U of C = U U^H, of white numbers."""
        return amplitude * _spread(drawn.view(image.shape), width, axes)

    def drawn(structures: torch.Tensor) -> torch.Tensor:
        """U^H."""
        return _spread(amplitude * structures, width, axes).view(len(image), 1, -1)

    def normal(white: torch.Tensor) -> torch.Tensor:
        return drawn(model.normal(structures(white)))

    residual = drawn(adjoint_kspace - model.normal(image))
    limit = TOLERANCE**2 * energy_of(residual)
    weight = noise.square().view(-1, 1, 1)
    white = conjugate_gradients(normal, torch.zeros_like(residual), residual, weight, STEPS, limit)
    return image + structures(white)


def _spread(image: torch.Tensor, width: float, axes: tuple[int, ...], unit_sum: bool = False) -> torch.Tensor:
    """Convolved with a Gaussian of standard deviation `width` pixels, whose squares have the sum 1, or itself."""
    found = torch.fft.fftn(image, dim=axes)
    energy = 1.0
    for axis in axes:
        size = image.shape[axis]
        response = torch.exp(-2 * (math.pi * width * torch.fft.fftfreq(size, device=image.device)).square())
        energy *= float(response.square().mean())
        found = found * response.view(-1, *[1] * (-1 - axis))
    found = torch.fft.ifftn(found, dim=axes)
    found = found if image.is_complex() else found.real
    return found if unit_sum else found / energy**0.5
