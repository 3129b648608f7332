"""A small head as a volume that came out of k-space, odd and unequal in size."""

from functools import lru_cache

import torch
from dpmrecon.data import SliceKey, Volume
from dpmrecon.physics.fourier import to_kspace
from dpmrecon.physics.volume import VolumeModel
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.simulation.slices import coil_maps

SHAPE = (28, 33, 42)  # partitions, rows, cols
VOXEL_MM = (6.0, 6.0, 5.0)
AXES = (-3, -2, -1)


@lru_cache
def head(n_coils: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """(image (partitions, rows, cols) complex64, coil maps (n_coils, ...) of unit norm): an ellipsoid with a cavity."""
    places = torch.meshgrid(
        *(((torch.arange(size) - size // 2) * mm for size, mm in zip(SHAPE, VOXEL_MM))), indexing="ij"
    )
    z, y, x = places
    radius = ((x / 75) ** 2 + (y / 80) ** 2 + (z / 65) ** 2).sqrt()
    cavity = (((x - 20) / 25) ** 2 + ((y + 10) / 15) ** 2 + (z / 20) ** 2).sqrt()
    magnitude = torch.sigmoid((1 - radius) * 12) * (1 - 0.7 * torch.sigmoid((1 - cavity) * 8))
    magnitude = magnitude * (1 + 0.25 * torch.sin(0.3 * x + 0.1 * z) * torch.sin(0.25 * y - 0.2 * z))  # fine structure
    image = magnitude * torch.polar(torch.ones(SHAPE), 0.01 * (x + 0.5 * y - z))
    maps = torch.from_numpy(coil_maps(torch.stack([x, y, z], -1).float().numpy(), n_coils))
    return image, maps / torch.linalg.vector_norm(maps, dim=0)


def volume(sigma_n: float = 0.01, n_coils: int = 6, *, first_col: int = 0, seed: int = 0) -> Volume:
    """R = 2 x 2 with a shift, and a block of 16 x 15 lines; first_col: of a cut echo."""
    image, maps = head(n_coils)
    partition, row = torch.meshgrid(torch.arange(SHAPE[0]), torch.arange(SHAPE[1]), indexing="ij")
    lines = ((row % 2 == 0) & ((partition + row // 2) % 2 == 0)).float()
    lines[6:22, 9:24] = 1
    mask = lines[..., None].expand(SHAPE).clone()
    mask[..., :first_col] = 0
    noise = complex_noise((n_coils, *SHAPE), torch.Generator().manual_seed(seed))
    kspace = mask * (to_kspace(maps * image, AXES) + sigma_n * noise)
    count, key = int(lines.sum()), SliceKey(0)
    block = kspace[:, 6:22, 9:24]
    return Volume(
        key, kspace, mask, block, sigma_n, "noise scan", 4.0, count, count, key.seed_key, voxel_mm=VOXEL_MM
    )  # fmt: skip


def dense_prox(model: VolumeModel, right: torch.Tensor, start: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(batch, ...) complex128: (A^H A + weight) x = right + weight start, solved with A as a matrix."""
    shape, n = start[0].shape, start[0].numel()
    columns = [model.forward(unit.view(shape)).flatten() for unit in torch.eye(n, dtype=torch.complex64)]
    matrix = torch.stack(columns, 1).to(torch.complex128)
    normal = matrix.mH @ matrix
    targets = ((right + weight * begin).flatten().to(torch.complex128) for begin, weight in zip(start, weights))
    solved = [torch.linalg.solve(normal + weight * torch.eye(n), b) for b, weight in zip(targets, weights)]
    return torch.stack(solved).view(start.shape)
