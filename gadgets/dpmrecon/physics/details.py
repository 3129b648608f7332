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
    around, response = (_gaussian(image, size, axes) for size in (SURROUNDINGS, width))
    response = response / response.square().mean().sqrt()  # white numbers keep their deviation
    amplitude = deviation * _convolved(image.abs(), around, axes).real.clamp_min(0) * model.support

    def structures(drawn: torch.Tensor) -> torch.Tensor:
        """U of C = U U^H, of white numbers."""
        return amplitude * _convolved(drawn.view(image.shape), response, axes)

    def drawn(structures: torch.Tensor) -> torch.Tensor:
        """U^H."""
        return _convolved(amplitude * structures, response, axes).view(len(image), 1, -1)

    def normal(white: torch.Tensor) -> torch.Tensor:
        return drawn(model.normal(structures(white)))

    residual = drawn(adjoint_kspace - model.normal(image))
    limit = TOLERANCE**2 * energy_of(residual)
    weight = noise.square().view(-1, 1, 1)
    white = conjugate_gradients(normal, torch.zeros_like(residual), residual, weight, STEPS, limit)
    return image + structures(white)


def _gaussian(image: torch.Tensor, width: float, axes: tuple[int, ...]) -> torch.Tensor:
    """Frequency response, 1 at the origin, of a Gaussian of standard deviation `width` pixels along the axes."""
    squares = [
        torch.fft.fftfreq(image.shape[axis], device=image.device).square().view(-1, *[1] * (-1 - axis)) for axis in axes
    ]
    return torch.exp(-2 * (math.pi * width) ** 2 * sum(squares, torch.zeros(1, device=image.device)))


def _convolved(image: torch.Tensor, response: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return torch.fft.ifftn(torch.fft.fftn(image, dim=axes) * response, dim=axes)
