"""The conditional denoiser of the kind `one-step`: diffusion of what a conventional image lacks.

After SSDM-MRI (Liu et al., Highly Undersampled MRI Reconstruction via a Single Posterior Sampling of Diffusion Models):
v-prediction (Salimans and Ho, ICLR 2022) with a cosine schedule, the conventional image beside the noisy one. What is
diffused is the difference to that image over RESIDUAL, of about unit variance, and not the image: one evaluation from
noise alone then has to tell the difference and nothing else. Noise has unit standard deviation per real channel.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .denoiser import ContrastDenoiser, Denoiser, one_hot, uncounted
from .unet import UNet

RESIDUAL = 0.1  # standard deviation of image less conventional image over the scale, at R = 6
SIGMA_DATA = 0.25  # of the conventional image, as in the denoiser


def signal_and_noise(time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma of the cosine schedule at `time`, 0 (clean) to 1 (noise); alpha^2 + sigma^2 = 1."""
    return torch.cos(time * (math.pi / 2)), torch.sin(time * (math.pi / 2))


def ddim_step(noisy: torch.Tensor, velocity: torch.Tensor, now: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """z at `following` from z and v at `now` (Song et al., ICLR 2021)."""
    alpha, sigma = (value.view(-1, 1, 1) for value in signal_and_noise(now))
    next_alpha, next_sigma = (value.view(-1, 1, 1) for value in signal_and_noise(following.clamp_min(0)))
    return next_alpha * (alpha * noisy - sigma * velocity) + next_sigma * (sigma * noisy + alpha * velocity)


@dataclass(frozen=True)
class Later:
    """The diffusion prior of evaluations after the first. No part of the network, nor of its file."""

    denoiser: Denoiser


class ConditionalDenoiser(nn.Module):
    """v of z_t = alpha_t z + sigma_t noise, v = alpha_t noise - sigma_t z.

    It is told t, the conventional image, net R, sigma_n and contrast. `config` holds widths, blocks, embedding, labels
    and `conditioning`, which the conventional image is: cg-sense or zero-filled. A second, smaller network may come
    after it, the refiner: `config["refiner"]` holds its widths, blocks and embedding. later: where the model's card
    asks for one.
    """

    later: Later | None = None

    def __init__(self, config: dict):
        super().__init__()
        self.bf16 = False
        self.config = config
        self.labels = tuple(config["labels"])
        if config["conditioning"] not in ("cg-sense", "zero-filled"):
            raise ValueError(f"conditioning is {config['conditioning']!r}, not cg-sense or zero-filled")
        self.network = self._unet(config)
        self.refiner = self._unet(config["refiner"]) if "refiner" in config else None

    def _unet(self, of: dict) -> UNet:
        network = UNet(of["widths"], of["blocks"], of["embedding"], len(self.labels), 2, 3)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def device(self) -> torch.device:
        return self.network.stem.weight.device

    def one_hot(self, labels: list[str | None]) -> torch.Tensor:
        """(batch, n_labels) float32; None, or an unknown label, is a row of zeros."""
        return one_hot(labels, self.labels, self.device)

    def of_contrast(self, label: str | None, count: Callable[[int], object] = uncounted) -> "Conditioned":
        """v of one contrast, None for any. count: called with the images of each call."""
        later = None if self.later is None else self.later.denoiser.of_contrast(label, count)
        return Conditioned(self, self.one_hot([label]), count, later)

    @torch.no_grad()
    def warm_up(self) -> None:
        """One evaluation of nothing."""
        nothing = torch.zeros(1, 64, 64, dtype=torch.complex64, device=self.device)
        ones = torch.ones(1, device=self.device)
        self(nothing, ones, nothing, ones, ones, self.one_hot([None]))
        if self.refiner is not None:
            self.refine(nothing, ones, nothing, ones, ones, self.one_hot([None]))
        if self.later is not None:
            self.later.denoiser.warm_up()

    def forward(
        self,
        noisy: torch.Tensor,
        time: torch.Tensor,
        conventional: torch.Tensor,
        acceleration: torch.Tensor,
        sigma_n: torch.Tensor,
        label: torch.Tensor,
    ) -> torch.Tensor:
        """noisy: z_t, conventional: at scale 1, both (batch, rows, cols) complex64; time, acceleration (net R) and
        sigma_n (batch,) float32; label (batch, n_labels). Returns v like `noisy`."""
        return self._evaluated(self.network, noisy, time, conventional, acceleration, sigma_n, label)

    def refine(
        self,
        difference: torch.Tensor,
        time: torch.Tensor,
        image: torch.Tensor,
        acceleration: torch.Tensor,
        sigma_n: torch.Tensor,
        label: torch.Tensor,
    ) -> torch.Tensor:
        """The refiner's v at time 1, as `forward`: `image` less RESIDUAL v is its answer.

        image: moved to the data; difference: (conventional image - image) / RESIDUAL.
        """
        return self._evaluated(self.refiner, difference, time, image, acceleration, sigma_n, label)

    def _evaluated(self, network, noisy, time, conventional, acceleration, sigma_n, label) -> torch.Tensor:
        pairs = torch.stack([noisy, conventional / SIGMA_DATA], 1)
        channels = torch.view_as_real(pairs).permute(0, 1, 4, 2, 3).flatten(1, 2)
        inner = channels.contiguous(memory_format=torch.channels_last)
        numbers = torch.stack([time, acceleration.log() / 2, sigma_n.clamp_min(1e-4).log() / 4], 1)
        lower = self.bf16 and not torch.is_grad_enabled()
        with torch.autocast(noisy.device.type, torch.bfloat16) if lower else contextlib.nullcontext():
            out = network(inner, numbers, label).float()
        return torch.view_as_complex(out.permute(0, 2, 3, 1).contiguous())


@dataclass(frozen=True)
class Conditioned:
    """v of a contrast: what `samplers/one_step.py` evaluates. label: (1, n_labels); count: called with the images of
    each call but the refiner's; later: D(x; sigma) of evaluations after the first; refines: v is the refiner's."""

    denoiser: ConditionalDenoiser
    label: torch.Tensor
    count: Callable[[int], object]
    later: ContrastDenoiser | None = None
    refines: bool = False

    @property
    def conditioning(self) -> str:
        return self.denoiser.config["conditioning"]

    @property
    def refiner(self) -> "Conditioned | None":
        """The second network, of a model that has one."""
        return None if self.denoiser.refiner is None else dataclasses.replace(self, refines=True)

    def __call__(
        self,
        noisy: torch.Tensor,
        time: float,
        conventional: torch.Tensor,
        acceleration: torch.Tensor,
        sigma_n: torch.Tensor,
    ) -> torch.Tensor:
        """Of (batch, rows, cols); acceleration, sigma_n: (batch,)."""
        self._count(len(noisy))
        return self._velocity(noisy, time, conventional, acceleration, sigma_n)

    def _count(self, images: int) -> None:
        """The refiner belongs to the evaluation before it."""
        if not self.refines:
            self.count(images)

    def _velocity(self, noisy, time, conventional, acceleration, sigma_n) -> torch.Tensor:
        times = torch.full((len(noisy),), time, device=noisy.device)
        label = self.label.expand(len(noisy), -1).contiguous()
        network = self.denoiser.refine if self.refines else self.denoiser
        return network(noisy, times, conventional, acceleration, sigma_n, label)

    def of_planes(
        self,
        noisy: torch.Tensor,
        time: float,
        conventional: torch.Tensor,
        acceleration: torch.Tensor,
        sigma_n: torch.Tensor,
        at_once: int,
    ) -> torch.Tensor:
        """Of a volume's planes (n_planes, rows, cols), which count as one image."""
        numbers = (acceleration.expand(len(noisy)), sigma_n.expand(len(noisy)))
        parts = zip(*(values.split(at_once) for values in (noisy, conventional, *numbers)))
        found = torch.cat([self._velocity(part, time, image, *told) for part, image, *told in parts])
        self._count(1)
        return found

    def try_planes(self, planes: torch.Tensor, at_once: int) -> None:
        """One evaluation of planes, with that of the refiner, for what it costs."""
        one = torch.ones(1, device=planes.device)
        for network in (self, self.refiner):
            if network is not None:
                network.of_planes(planes, 1.0, planes, one, one, at_once)
