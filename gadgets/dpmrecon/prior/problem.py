"""What a posterior sampler is asked: a batch of reconstruction problems, noise, and when to stop."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from ..physics.forward import ForwardModel
from .denoiser import complex_noise

Stop = Callable[[], bool]  # asked after every step: True makes that step's clean image the result

THREADS = 8  # that draw noise for a GPU, a millisecond an image of 320x320


@dataclass(frozen=True)
class Planes:
    """How a volume (partitions, rows, cols) is shown to a prior of slices: cut across one of `axes` in each step, the
    next one in the next. at_once: planes that the network sees."""

    axes: tuple[int, ...]
    at_once: int


@dataclass(frozen=True)
class Problem:
    """A batch of reconstruction problems y = A x + n in units where the image's scale is 1.

    kspace: (batch, n_coils, rows, cols) complex64; zero_filled: A^H kspace, (batch, rows, cols) complex64; sigma_n:
    (batch,) float32, the noise of `kspace`; start: (batch, rows, cols) complex64, a conventional reconstruction that a
    sampler may start from. The model, kspace and zero_filled may be one for all. With `SoftSense` as the model images
    are (batch, n_sets, rows, cols), with `VolumeModel` (batch, partitions, rows, cols), with `SoftVolume` both; then
    `planes` says how a prior sees them.
    """

    model: ForwardModel
    kspace: torch.Tensor
    zero_filled: torch.Tensor
    sigma_n: torch.Tensor
    start: torch.Tensor
    planes: Planes | None = None

    @classmethod
    def without_data(cls, batch: int, rows: int, cols: int, device: torch.device) -> "Problem":
        """Nothing was acquired: what a sampler draws from it is the prior's."""
        maps = torch.ones(1, rows, cols, dtype=torch.complex64, device=device)
        zeros = torch.zeros(batch, rows, cols, dtype=torch.complex64, device=device)
        model = ForwardModel(maps, torch.zeros(rows, cols, device=device))
        return cls(model, zeros[:, None], zeros, torch.ones(batch, device=device), zeros)


class NoiseSource:
    """Noise for a batch, a generator for each entry: batching changes nothing.

    seeds: one integer an entry. Numbers are drawn on the CPU, so that every device sees the same ones: for a GPU, which
    would wait for them, by several threads.
    """

    def __init__(self, seeds: list[int], device: torch.device | str = "cpu"):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device = torch.device(device)
        self.map = map if self.device.type == "cpu" else ThreadPoolExecutor(THREADS).map

    def draw(self, *shape: int) -> torch.Tensor:
        """(batch, *shape) complex64, unit standard deviation per real channel; shape: (rows, cols) or longer."""
        return torch.stack(list(self.map(partial(complex_noise, shape), self.generators))).to(self.device)


def never() -> bool:
    """Sample to the end."""
    return False
