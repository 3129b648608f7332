"""Small structures that an image lacks, estimated from what it leaves of the data."""

import math

import torch

from .forward import ForwardModel, conjugate_gradients, energy_of

STEPS, TOLERANCE = 12, 0.02  # of the conjugate gradients
SURROUNDINGS = 2.0  # pixels: standard deviation of the Gaussian whose mean the tissue's signal is
PLACE = 0.7  # likewise, whose mean the energy at a place is
TISSUE = 0.5  # of the mean amplitude: where the median of the energy is taken
CERTAIN = 4.0  # times that median: energy of a structure that is taken for one
LARGEST = 4.0  # times the energy found: variance that a structure is allowed


def with_details(
    model: ForwardModel,
    adjoint_kspace: torch.Tensor,
    image: torch.Tensor,
    noise: torch.Tensor,
    deviation: torch.Tensor,
    width: float,
    n_axes: int = 2,
) -> torch.Tensor:
    """The image with the structures that it lacks and the data show, by two passes of `structures`.

    In the first they may be anywhere, with a standard deviation (per real channel) of `deviation` times the signal of
    the tissue around, and most of what is found is noise. In the second their variance follows the energy that was
    found at each place: none up to the median over the tissue, all from CERTAIN medians on, and never more than LARGEST
    times that energy. So what stands out is kept as the data have it, and the rest of the image stays quiet (two passes
    of sparse Bayesian learning: Tipping, JMLR 2001). A network takes what it cannot tell from noise for none.

    adjoint_kspace: A^H y; image: (batch, rows, cols), or longer where `model` has sets of maps; noise: (batch,), of a
    real channel of the data; deviation: (batch,); width: of the structures, pixels; n_axes: 3 of volumes.
    """
    axes = tuple(range(-n_axes, 0))
    response = _gaussian(image, width, axes)
    response = response / response.square().mean().sqrt()  # white numbers keep their deviation
    around = _convolved(image.abs(), _gaussian(image, SURROUNDINGS, axes), axes).real.clamp_min(0)
    amplitude = deviation.view(-1, *[1] * (image.ndim - 1)) * around * model.support
    left = adjoint_kspace - model.normal(image)
    first = structures(model, left, noise, amplitude, response)
    amplitude = _variance(first, amplitude, model.support, axes).sqrt()
    return image + structures(model, left, noise, amplitude, response)


def structures(
    model: ForwardModel,
    left: torch.Tensor,
    noise: torch.Tensor,
    amplitude: torch.Tensor,
    response: torch.Tensor,
) -> torch.Tensor:
    """argmin_s ||A (image + s) - y||^2 / noise^2 + s^H C^-1 s: the best linear estimate of what an image lacks, whose
    covariance is C.

    C is that of white numbers after the frequency response of a point spread, times the amplitude of each pixel.
    left: A^H (y - A image), as the image; noise: as in `with_details`; amplitude: as the image, real, 0 outside of the
    support; response: of the last axes.
    """
    axes = tuple(range(-response.ndim, 0))

    def spread(white: torch.Tensor) -> torch.Tensor:
        """U of C = U U^H."""
        return amplitude * _convolved(white.view(left.shape), response, axes)

    def gathered(image: torch.Tensor) -> torch.Tensor:
        """U^H."""
        return _convolved(amplitude * image, response, axes).view(len(left), 1, -1)

    def normal(white: torch.Tensor) -> torch.Tensor:
        return gathered(model.normal(spread(white)))

    residual = gathered(left)
    limit = TOLERANCE**2 * energy_of(residual)
    weight = noise.square().view(-1, 1, 1)
    return spread(conjugate_gradients(normal, torch.zeros_like(residual), residual, weight, STEPS, limit))


def _variance(
    found: torch.Tensor, amplitude: torch.Tensor, support: torch.Tensor, axes: tuple[int, ...]
) -> torch.Tensor:
    """Of the second pass. found: structures of the first, whose amplitude this was, both as the image."""
    place, allowed = _gaussian(found, PLACE, axes), amplitude.square()
    energy, most = (_convolved(squared, place, axes).real.clamp_min(0) for squared in (found.abs().square(), allowed))
    stands_out = energy / most.clamp_min(1e-12)
    inside = support.expand(amplitude.shape).flatten(1).sum(1).clamp_min(1)
    mean = amplitude.flatten(1).sum(1) / inside
    of_tissue = amplitude.flatten(1) >= TISSUE * mean[:, None]
    median = stands_out.flatten(1).where(of_tissue, torch.nan).nanmedian(1).values.clamp_min(1e-12)
    over = stands_out / median.view(-1, *[1] * (energy.ndim - 1))
    return ((over - 1) / (CERTAIN - 1)).clamp(0, 1) * allowed.minimum(LARGEST * energy)


def _gaussian(image: torch.Tensor, width: float, axes: tuple[int, ...]) -> torch.Tensor:
    """Frequency response, 1 at the origin, of a Gaussian of standard deviation `width` pixels along the axes."""
    squares = [
        torch.fft.fftfreq(image.shape[axis], device=image.device).square().view(-1, *[1] * (-1 - axis)) for axis in axes
    ]
    return torch.exp(-2 * (math.pi * width) ** 2 * sum(squares, torch.zeros(1, device=image.device)))


def _convolved(image: torch.Tensor, response: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return torch.fft.ifftn(torch.fft.fftn(image, dim=axes) * response, dim=axes)
