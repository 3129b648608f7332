"""The denoiser D(x; sigma, c): EDM preconditioning (Karras et al., NeurIPS 2022) around the U-Net.

sigma is the standard deviation of the noise **per real channel** everywhere in this project.
"""

import contextlib
from pathlib import Path

import torch
from torch import nn

from .unet import UNet

CONTRAST_LABELS = ("flair", "t1", "t2", "dwi", "swi")
LABELS = (*CONTRAST_LABELS, "spare1", "spare2", "spare3")


def complex_noise(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Complex64 Gaussian noise of unit standard deviation per real channel (torch.randn of a complex dtype has
    total variance 1, a factor sqrt(2) short). Drawn on the generator's device."""
    return torch.view_as_complex(torch.randn(*shape, 2, generator=generator, device=generator.device))


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware; without it they are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        found = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    return "avx512_bf16" in found or "amx_bf16" in found


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all that it was asked for, so that a clock tells what it took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
        """(batch, n_labels) float32; None, or a label that the model does not know, is a row of zeros."""
        rows = [[float(label == known) for known in self.labels] for label in labels]
        return torch.tensor(rows, device=self.device)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """x (batch, rows, cols) complex64, sigma (batch,) float32, label (batch, n_labels) -> like x."""
        total = sigma.square() + self.sigma_data**2
        shape = (-1, 1, 1, 1)
        channels = torch.view_as_real(x).permute(0, 3, 1, 2)
        # The network sees float32 of unit variance; the skip path stays in float32 as well.
        inner = (channels * total.rsqrt().view(shape)).contiguous(memory_format=torch.channels_last)
        lower = self.bf16 and not torch.is_grad_enabled()
        with torch.autocast(x.device.type, torch.bfloat16) if lower else contextlib.nullcontext():
            residual = self.unet(inner, sigma.log() / 4, label).float()
        out = channels * (self.sigma_data**2 / total).view(shape)
        out = out + residual * (sigma * self.sigma_data * total.rsqrt()).view(shape)
        return torch.view_as_complex(out.permute(0, 2, 3, 1).contiguous())


@torch.no_grad()
def warm_up(denoiser: Denoiser) -> None:
    """One evaluation of nothing, so that the first scan need not wait for what a device sets up once."""
    device = denoiser.device
    nothing = torch.zeros(1, 64, 64, dtype=torch.complex64, device=device)
    denoiser(nothing, torch.ones(1, device=device), denoiser.one_hot([None]))
