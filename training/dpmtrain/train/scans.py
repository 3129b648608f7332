"""Undersampled multi-coil scans of a batch of crops, made on the device: coils, masks, noise, CG-SENSE, sketches."""

import math

import torch
from dpmrecon.physics.forward import ForwardModel
from dpmrecon.prior.problem import NoiseSource, Problem
from dpmrecon.prior.samplers.latent import Sketcher

from .undersampled import cg_sense

N_COILS = 8
ACCELERATION, NOISE = (2.0, 10.0), (0.003, 0.05)  # drawn: R, and sigma_n per real channel at scale 1, log-uniform


def coil_maps(batch: int, side: int, device: torch.device) -> torch.Tensor:
    """(batch, N_COILS, side, side) complex64, sum of |s|^2 is 1: smooth coils around the crop."""
    angle = torch.rand(batch, 1, device=device) * 2 * math.pi
    angle = angle + torch.arange(N_COILS, device=device) * 2 * math.pi / N_COILS
    radius = 0.8 + 0.7 * torch.rand(batch, N_COILS, device=device)
    line = torch.linspace(-1, 1, side, device=device)
    rows = line.view(1, 1, -1, 1) - (radius * angle.sin())[..., None, None]
    cols = line.view(1, 1, 1, -1) - (radius * angle.cos())[..., None, None]
    width = 0.6 + 0.6 * torch.rand(batch, N_COILS, 1, 1, device=device)
    magnitude = torch.exp(-(rows.square() + cols.square()) / (2 * width.square()))
    slopes = torch.randn(2, batch, N_COILS, 1, 1, device=device)
    phase = slopes[0] * rows + slopes[1] * cols + 2 * math.pi * torch.rand(batch, N_COILS, 1, 1, device=device)
    magnitude = magnitude / magnitude.square().sum(1, keepdim=True).sqrt()
    return torch.polar(magnitude, phase)


def line_mask(side: int, device: torch.device) -> torch.Tensor:
    """(side, side) float32, whole lines: some in the centre, the rest regular or at random, at a random R."""
    low, high = ACCELERATION
    r = low + (high - low) * float(torch.rand(()))
    centre = max(2, round(side * (0.04 + 0.06 * float(torch.rand(())))))
    lines = torch.rand(side) < 1 / r
    if float(torch.rand(())) < 0.5:
        lines = (torch.arange(side) + int(torch.randint(round(r), ()))) % round(r) == 0
    lines[(side - centre) // 2 :][:centre] = True
    return lines.float()[:, None].expand(side, side).contiguous().to(device)


def scanned(images: torch.Tensor) -> Problem:
    """The scan of each crop (batch, side, side), with one mask for all; CG-SENSE is the start, as
    `physics/cg_sense.py` makes it of a slice."""
    batch, side, device = len(images), images.shape[-1], images.device
    model = ForwardModel(coil_maps(batch, side, device), line_mask(side, device))
    low, high = (math.log(level) for level in NOISE)
    sigma_n = torch.exp(low + (high - low) * torch.rand(batch, device=device))
    kspace = model.forward(images)
    noise = torch.view_as_complex(torch.randn(*kspace.shape, 2, device=device))
    kspace = kspace + model.mask * sigma_n.view(-1, 1, 1, 1) * noise
    zero_filled = model.adjoint(kspace)
    return Problem(model, kspace, zero_filled, sigma_n, cg_sense(model, zero_filled, sigma_n))


def sketches(images: torch.Tensor, labels: list[str | None], sketcher: Sketcher | None) -> torch.Tensor:
    """What the ControlNet is shown of a scan of each crop: (batch, side, side) complex64."""
    problem = scanned(images)
    if sketcher is None:
        return problem.start
    return sketcher.image(problem, labels, NoiseSource([0] * len(images), images.device))
