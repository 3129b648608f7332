"""Training batches of the one-step network: clean crops as an accelerated scan of several coils would bring them.

Coils, noise and the conventional image are made where the network is trained, for the whole batch at once.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from dpmrecon.errors import BadInputError
from dpmrecon.physics.cg_sense import PRIOR_STD, WEIGHT_FACTOR
from dpmrecon.physics.coil_maps import estimate_coil_maps
from dpmrecon.physics.forward import ForwardModel
from dpmrecon.physics.fourier import crop_or_pad
from dpmrecon.prior.denoiser import complex_noise

COILS = (4, 6, 8, 12, 16)
SIGMA_N = (0.003, 0.12)  # of the noise of a real channel over the scale, log-uniform
MAP_ERROR = 0.04  # of coil maps, at most
CG_STEPS = 15
LINES = 24  # of a calibration
EDGE, AROUND = 0.04, (2, 10)  # of the head, where maps are known: signal, pixels beside it


class Undersampled(NamedTuple):
    """clean, conventional: (batch, rows, cols) complex64 at scale 1, inside the maps' support; weight: like them,
    float32, of each pixel's error; acceleration (net) and sigma_n: (batch,) float32; zero_filled: A^H of the data, of
    `model`, whose maps are the calibration's."""

    clean: torch.Tensor
    weight: torch.Tensor
    conventional: torch.Tensor
    acceleration: torch.Tensor
    sigma_n: torch.Tensor
    zero_filled: torch.Tensor
    model: ForwardModel


class Coils(NamedTuple):
    """maps: (batch, n_coils, rows, cols) complex64, sum of squares 1; known: like them, what a calibration finds, 0
    where it finds no head; sigma_n: (batch,) float32."""

    maps: torch.Tensor
    known: torch.Tensor
    sigma_n: torch.Tensor


def drawn_coils(clean: torch.Tensor, generator: torch.Generator, n_coils: int | None = None) -> Coils:
    """Coils around each crop (batch, rows, cols) complex64, with smooth errors on its head; n_coils: None draws it."""
    batch, device = len(clean), clean.device
    low, high = (math.log(value) for value in SIGMA_N)
    sigma_n = torch.exp(low + (high - low) * torch.rand(batch, generator=generator, device=device))
    n_coils = n_coils or COILS[int(torch.randint(len(COILS), (1,), generator=generator, device=device))]
    maps = coil_maps((batch, n_coils, *clean.shape[1:]), generator)
    return Coils(maps, with_errors(maps, generator) * head(clean, generator)[:, None], sigma_n)


def calibrated_coils(clean: torch.Tensor, generator: torch.Generator, n_coils: int | None = None) -> Coils:
    """`drawn_coils` with ESPIRiT maps of each crop's own calibration, as a reconstruction has them, where the head ends
    within the crop."""
    maps, known, sigma_n = drawn_coils(clean, generator, n_coils)
    kspace = ForwardModel(maps, torch.ones_like(clean[:, None].real)).forward(clean)
    kspace = kspace + sigma_n.view(-1, 1, 1, 1) * complex_noise(tuple(maps.shape), generator)
    crops = zip(border(clean) < EDGE, kspace, maps, known)
    found = [estimated(one, true, other) if fits else other for fits, one, true, other in crops]
    return Coils(maps, torch.stack(found), sigma_n)


def undersampled(
    clean: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    conditioning: str,
    generator: torch.Generator,
    coils: Coils | None = None,
) -> Undersampled:
    """A scan of each crop: coils, noise, and CG-SENSE or the zero-filled image.

    clean: (batch, rows, cols) complex64; weight, of each pixel's error, and mask: like it, float32; generator: on
    their device; coils: None draws them.
    """
    maps, known, sigma_n = drawn_coils(clean, generator) if coils is None else coils
    mask = mask[:, None]
    noise = complex_noise(tuple(maps.shape), generator)
    kspace = ForwardModel(maps, torch.ones_like(mask)).forward(clean) + sigma_n.view(-1, 1, 1, 1) * noise
    inside = (known != 0).any(1).float()
    model = ForwardModel(known, mask)
    zero_filled = model.adjoint(kspace)  # which leaves out what the mask does
    image = cg_sense(model, zero_filled, sigma_n) if conditioning == "cg-sense" else zero_filled
    acceleration = 1 / mask.mean((1, 2, 3))
    return Undersampled(clean * inside, weight, image * inside, acceleration, sigma_n, zero_filled, model)


def estimated(kspace: torch.Tensor, maps: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """ESPIRiT maps (n_coils, rows, cols) of the centre of full k-space, with the phase at which the image is the true
    one of `maps`; `otherwise` where noise hides them."""
    calibration = crop_or_pad(crop_or_pad(kspace, LINES, -2), LINES, -1)
    try:
        found = estimate_coil_maps(calibration, (maps.shape[-2], maps.shape[-1]))
    except BadInputError:
        return otherwise
    return found * torch.sgn((found.conj() * maps).sum(0)) if found.any() else otherwise


def cg_sense(model: ForwardModel, zero_filled: torch.Tensor, sigma_n: torch.Tensor) -> torch.Tensor:
    """`dpmrecon.physics.cg_sense.cg_sense` of a batch at scale 1."""
    weight = (WEIGHT_FACTOR * (sigma_n / PRIOR_STD).square()).clamp_min(1e-4)
    image = model.prox(zero_filled, torch.zeros_like(zero_filled), weight, CG_STEPS)

    def product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one.conj() * other).real.sum((1, 2), keepdim=True)

    return image * (product(image, zero_filled) / product(image, model.normal(image)).clamp_min(1e-30))


def coil_maps(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """(batch, n_coils, rows, cols) complex64, sum of squares 1: a ring of coils whose phases turn slowly."""
    batch, n_coils, rows, cols = shape
    device = generator.device

    def uniform(low: float, high: float, *more: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(batch, n_coils, *more, generator=generator, device=device)

    turn = 2 * math.pi * (torch.arange(n_coils, device=device) + uniform(-0.3, 0.3)) / n_coils
    turn = turn + 2 * math.pi * torch.rand(batch, 1, generator=generator, device=device)
    radius, width = uniform(0.9, 1.5), uniform(0.5, 0.9)
    y = torch.linspace(-1, 1, rows, device=device).view(-1, 1)
    x = torch.linspace(-1, 1, cols, device=device)

    def per_coil(values: torch.Tensor) -> torch.Tensor:
        return values[..., None, None]

    distance = (y - per_coil(radius * turn.sin())).square() + (x - per_coil(radius * turn.cos())).square()
    size = 1 / (1 + distance / per_coil(width).square())
    slopes = uniform(-1.5, 1.5, 2)
    phase = per_coil(uniform(-math.pi, math.pi)) + per_coil(slopes[..., 0]) * y + per_coil(slopes[..., 1]) * x
    maps = torch.polar(size, phase)
    return maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)


def with_errors(maps: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Maps as a calibration finds them: smooth relative errors, sum of squares 1."""
    batch, n_coils, rows, cols = maps.shape
    bumps = torch.randn(2 * batch, n_coils, 6, 6, generator=generator, device=maps.device)
    fields = F.interpolate(bumps, (rows, cols), mode="bicubic", align_corners=True).view(2, *maps.shape)
    size = MAP_ERROR * torch.rand(batch, 1, 1, 1, generator=generator, device=maps.device)
    found = maps * (1 + size * torch.complex(*fields))
    return found / torch.linalg.vector_norm(found, dim=1, keepdim=True)


def border(clean: torch.Tensor) -> torch.Tensor:
    """(batch,): mean signal of the outermost pixels."""
    signal = clean.abs()
    sides = signal[:, 0], signal[:, -1], signal[:, :, 0], signal[:, :, -1]
    return torch.cat(sides, 1).mean(1)


def head(clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(batch, rows, cols) float32: 1 on the head and some pixels around it."""
    inside = (F.avg_pool2d(clean.abs()[:, None], 5, 1, 2) > EDGE).float()
    reach = int(torch.randint(*AROUND, (1,), generator=generator, device=clean.device))
    return F.max_pool2d(inside, 2 * reach + 1, 1, reach)[:, 0]
