"""The denoiser D(x; sigma, c): EDM preconditioning (Karras et al., NeurIPS 2022) around the U-Net.

sigma is the noise's standard deviation **per real channel**, everywhere.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .unet import UNet


def complex_noise(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Complex64 Gaussian noise of unit standard deviation per real channel (torch.randn of a complex dtype has
    total variance 1, a factor sqrt(2) short). Drawn on the generator's device."""
    return torch.view_as_complex(torch.randn(*shape, 2, generator=generator, device=generator.device))


def uncounted(images: int) -> None:
    """Nobody counts the evaluations."""


def one_hot(labels: Sequence[str | None], known: Sequence[str], device: torch.device) -> torch.Tensor:
    """(batch, n_labels) float32; None, or a label that is not known, is a row of zeros."""
    return torch.tensor([[float(label == name) for name in known] for label in labels], device=device)


class Denoiser(nn.Module):
    """Estimate of the clean slice from x = clean + sigma * complex_noise, on slices scaled as in `scale.py`.

    `config` holds widths, blocks, embedding, labels and sigma_data: all that is needed to rebuild the module.
    `bf16`: the network computes in bfloat16 where no gradient is asked for; set on loading where the device has it.
    """

    def __init__(self, config: dict):
        super().__init__()
        self.bf16 = False
        self.config = config
        self.labels = tuple(config["labels"])
        self.sigma_data = float(config["sigma_data"])
        self.unet = UNet(config["widths"], config["blocks"], config["embedding"], len(self.labels))
        self.unet = self.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def device(self) -> torch.device:
        return self.unet.stem.weight.device

    def one_hot(self, labels: list[str | None]) -> torch.Tensor:
        """(batch, n_labels) float32; None, or an unknown label, is a row of zeros."""
        return one_hot(labels, self.labels, self.device)

    def of_contrast(self, label: str | None, count: Callable[[int], object] = uncounted) -> "ContrastDenoiser":
        """D(x; sigma) of one contrast, None for the unlabelled prior. count: called with the images of each call."""
        return ContrastDenoiser(self, self.one_hot([label]), count)

    @torch.no_grad()
    def warm_up(self) -> None:
        """One evaluation of nothing, so that the first scan need not wait for what a device sets up once."""
        nothing = torch.zeros(1, 64, 64, dtype=torch.complex64, device=self.device)
        self(nothing, torch.ones(1, device=self.device), self.one_hot([None]))

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """x (batch, rows, cols) complex64, sigma (batch,) float32, label (batch, n_labels) -> like x."""
        total = sigma.square() + self.sigma_data**2
        shape = (-1, 1, 1, 1)
        channels = torch.view_as_real(x).permute(0, 3, 1, 2)
        # float32 of unit variance for the network; the skip path is float32 too
        inner = (channels * total.rsqrt().view(shape)).contiguous(memory_format=torch.channels_last)
        lower = self.bf16 and not torch.is_grad_enabled()
        with torch.autocast(x.device.type, torch.bfloat16) if lower else contextlib.nullcontext():
            residual = self.unet(inner, sigma.log() / 4, label).float()
        out = channels * (self.sigma_data**2 / total).view(shape)
        out = out + residual * (sigma * self.sigma_data * total.rsqrt()).view(shape)
        return torch.view_as_complex(out.permute(0, 2, 3, 1).contiguous())


@dataclass(frozen=True)
class ContrastDenoiser:
    """D(x; sigma), the contrast given: what the samplers of `samplers/diffusion.py` evaluate.

    label: (1, n_labels), or a row for each image.
    """

    denoiser: Denoiser
    label: torch.Tensor
    count: Callable[[int], object]

    @property
    def sigma_data(self) -> float:
        return self.denoiser.sigma_data

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        self.count(len(x))
        return self.denoiser(x, sigma, self.label.expand(len(x), -1).contiguous())

    def of_planes(self, planes: torch.Tensor, sigma: float, at_once: int) -> torch.Tensor:
        """D of a volume's planes (n_planes, rows, cols), which count as one image."""
        levels = torch.full((len(planes),), sigma, device=planes.device)
        parts = zip(planes.split(at_once), levels.split(at_once))
        found = torch.cat([self.denoiser(part, level, self.label.expand(len(part), -1)) for part, level in parts])
        self.count(1)
        return found

    def try_planes(self, planes: torch.Tensor, at_once: int) -> None:
        """One evaluation of planes, for what it costs."""
        self.of_planes(planes, 1.0, at_once)
