"""Posteriors in closed form: the forward model as a matrix, and a Gaussian prior with its exact denoiser."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from dpmrecon.physics.forward import ForwardModel
from dpmrecon.physics.soft_sense import SoftSense
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.prior.problem import Problem
from dpmrecon.prior.samplers.diffusion import SamplerSettings

ROWS, COLS, SIGMA_N = 7, 6, 0.05
N = ROWS * COLS
SIGMA_DATA = 0.25
SETTINGS = SamplerSettings(steps=50, sigma_max=5.0, sigma_min=0.01, eta=0.0, warm_start=False, cg_steps=60)


def random_model(rows: int, cols: int, n_coils: int, generator: torch.Generator, empty_rows: int = 1) -> ForwardModel:
    maps = complex_noise((n_coils, rows, cols), generator)
    maps = maps / maps.abs().square().sum(0).sqrt()
    maps[:, :empty_rows] = 0  # outside the head
    return ForwardModel(maps, (torch.rand(rows, cols, generator=generator) < 0.5).float())


def random_sets(rows: int, cols: int, n_coils: int, generator: torch.Generator) -> SoftSense:
    """Two orthonormal maps; the first row is outside the head, and the second map is 0 in the last column too."""
    maps = complex_noise((rows, cols, n_coils, 2), generator)
    maps = torch.linalg.qr(maps)[0].permute(3, 2, 0, 1).clone()
    maps[:, :, :1] = 0
    maps[1, :, :, -1:] = 0
    return SoftSense(maps, (torch.rand(rows, cols, generator=generator) < 0.5).float())


def dense(model: ForwardModel, *shape: int) -> torch.Tensor:
    """A as a matrix complex128, from images of the shape to k-space, both flattened."""
    basis = torch.eye(math.prod(shape), dtype=torch.complex64).reshape(-1, *shape)
    return model.forward(basis).flatten(1).T.to(torch.complex128)


@dataclass(frozen=True)
class GivenPrior:
    """Any function of (x, sigma) as the prior of a sampler."""

    denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    sigma_data: float = SIGMA_DATA

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.denoise(x, sigma)


class GaussianWorld:
    """x ~ N(0, covariance) for each real channel, y = A x + n, and everything that follows in closed form."""

    def __init__(self):
        generator = torch.Generator().manual_seed(4)
        rows, cols = torch.meshgrid(torch.arange(ROWS), torch.arange(COLS), indexing="ij")
        points = torch.stack([rows.flatten(), cols.flatten()], 1).double()
        self.covariance = 0.25**2 * torch.exp(-torch.cdist(points, points).square() / 8) + 1e-4 * torch.eye(N).double()
        self.model = random_model(ROWS, COLS, 3, generator, empty_rows=0)
        self.matrix = dense(self.model, ROWS, COLS)
        root = torch.linalg.cholesky(self.covariance).to(torch.complex128)
        self.x = root @ complex_noise((N,), generator).to(torch.complex128)
        mask = self.model.mask.expand(3, ROWS, COLS).flatten()
        noise = SIGMA_N * complex_noise((3 * N,), generator).to(torch.complex128) * mask
        self.y = self.matrix @ self.x + noise
        self.posterior_covariance = torch.linalg.inv(
            torch.linalg.inv(self.covariance).to(torch.complex128) + self.matrix.mH @ self.matrix / SIGMA_N**2
        )
        self.prior = GivenPrior(self.denoise)
        self.posterior_mean = self.posterior_covariance @ self.matrix.mH @ self.y / SIGMA_N**2

    def shrink(self, sigma: float) -> torch.Tensor:
        """The exact denoiser as a matrix: D(x) = C (C + sigma^2)^-1 x."""
        return self.covariance @ torch.linalg.inv(self.covariance + sigma**2 * torch.eye(N))

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        matrix = self.shrink(float(sigma[0])).to(torch.complex64)
        return (x.flatten(1) @ matrix.T).reshape(x.shape)

    def problem(self) -> Problem:
        kspace = self.y.reshape(1, 3, ROWS, COLS).to(torch.complex64)
        zero_filled, start = self.model.adjoint(kspace), torch.zeros(1, ROWS, COLS, dtype=torch.complex64)
        return Problem(self.model, kspace, zero_filled, torch.tensor([SIGMA_N]), start)

    def error(self, mean: torch.Tensor) -> float:
        return float((mean.flatten() - self.x).norm())
