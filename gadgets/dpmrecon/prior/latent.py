"""The model of kind `latent`: an autoencoder, a diffusion U-Net on its latents, and a ControlNet for the sketch.

After LDPM (Tang et al.: Towards undersampled MRI reconstruction with MR-VAE and Latent Diffusion Prior). The networks
are diffusers', built from configurations; no hub is asked. A complex image is two channels; a third, where the
autoencoder has three, is the magnitude. Latents are whitened: mean 0 and standard deviation 1 in each channel.
"""

import contextlib
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from ..errors import CheckpointError
from ..files import from_json
from .denoiser import uncounted


def diffusers() -> Any:
    """The package. Raises CheckpointError where the extra is not installed."""
    try:
        import diffusers as package
    except ImportError as error:
        raise CheckpointError(
            "a model of kind latent needs diffusers, which is not installed: pip install dpmrecon[latent]"
        ) from error
    return package


class LatentModel(nn.Module):
    """Autoencoder, U-Net and ControlNet; `sketcher`: of `samplers/latent.py`, None takes CG-SENSE for the sketch.

    `config` holds `labels`, `autoencoder`, `unet` and `schedule`, the last three in diffusers' words, and may hold
    `patch`: so many pixels a side are channels to the autoencoder. The ControlNet follows from the U-Net.
    `unet.num_class_embeds` is one more than there are labels, or is not there: then the contrast changes nothing.
    `bf16`: the U-Net and the ControlNet compute in bfloat16 where no gradient is asked for.
    Raises CheckpointError without diffusers, TypeError and ValueError for what it cannot build.
    """

    alphas: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: dict):
        super().__init__()
        package = diffusers()
        self.config, self.labels, self.bf16 = config, tuple(config["labels"]), False
        self.sketcher: Any = None
        unet = config["unet"]
        self.autoencoder = package.AutoencoderKL(**config["autoencoder"])
        self.unet = package.UNet2DConditionModel(**unet)
        known = set(inspect.signature(package.ControlNetModel.__init__).parameters) - {"self"}
        self.channels = int(config["autoencoder"]["latent_channels"])
        self.controlnet = package.ControlNetModel(
            **{name: value for name, value in unet.items() if name in known},
            **({} if "in_channels" in unet else {"in_channels": self.channels}),
        )
        # the sketch's latent comes in beside z instead
        self.controlnet.controlnet_cond_embedding = nn.Identity()
        self.controlnet.conv_in = _wider(self.controlnet.conv_in, self.channels)
        self.prompt = nn.Parameter(torch.zeros(1, 1, self.unet.config.cross_attention_dim))
        schedule = package.DDIMScheduler(**config["schedule"])
        self.velocity = schedule.config.prediction_type == "v_prediction"
        self.register_buffer("alphas", schedule.alphas_cumprod.float(), persistent=False)
        self.register_buffer("mean", torch.zeros(1, self.channels, 1, 1))
        self.register_buffer("std", torch.ones(1, self.channels, 1, 1))
        self.patch = int(config.get("patch", 1))
        self.factor = self.patch * 2 ** (len(self.autoencoder.config.block_out_channels) - 1)
        self.multiple = self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def start_controlnet(self) -> None:
        """The ControlNet begins as the U-Net's first half; the sketch's channels and its outputs begin at zero."""
        own, given = self.controlnet.state_dict(), self.unet.state_dict()
        copied = {name: given[name] for name in own if name in given and own[name].shape == given[name].shape}
        self.controlnet.load_state_dict({**own, **copied})
        with torch.no_grad():
            self.controlnet.conv_in.weight.zero_()
            self.controlnet.conv_in.weight[:, : self.channels] = self.unet.conv_in.weight
            self.controlnet.conv_in.bias.copy_(self.unet.conv_in.bias)

    def padded(self, images: torch.Tensor) -> torch.Tensor:
        """(n, rows, cols) complex64 to (n, channels, rows', cols') float32, zeros up to what the levels divide."""
        parts = [images.real, images.imag, images.abs()][: self.autoencoder.config.in_channels // self.patch**2]
        rows, cols = (-size % self.multiple for size in images.shape[-2:])
        return F.pad(torch.stack(parts, 1), (0, cols, 0, rows)).contiguous(memory_format=torch.channels_last)

    def latent_shape(self, rows: int, cols: int) -> tuple[int, int, int]:
        """Channels, rows and columns of an image's latent."""
        return (
            self.channels,
            (rows + -rows % self.multiple) // self.factor,
            (cols + -cols % self.multiple) // self.factor,
        )

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """The mean of the latent: (n, rows, cols) complex64 to whitened (n, channels, h, w) float32."""
        return (self.code(self.padded(images)).mode() - self.mean) / self.std

    def code(self, padded: torch.Tensor) -> Any:
        """diffusers' distribution of the latents, not whitened, of what `padded` gives."""
        return self.autoencoder.encode(F.pixel_unshuffle(padded, self.patch)).latent_dist

    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """The channels of `padded` of latents that are not whitened."""
        return F.pixel_shuffle(self.autoencoder.decode(latents).sample, self.patch)

    def decode(self, latents: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
        """Whitened latents (n, channels, h, w) to images (n, rows, cols) complex64."""
        found = self.decoded(latents * self.std + self.mean)[..., :rows, :cols]
        return torch.complex(found[:, 0], found[:, 1])

    def contrasts(self, labels: list[str | None]) -> torch.Tensor | None:
        """The U-Net's class of each label, the one after the last for none; None where it has no classes."""
        if self.unet.config.num_class_embeds is None:
            return None
        known = {label: number for number, label in enumerate(self.labels)}
        return torch.tensor([known.get(label, len(known)) for label in labels], device=self.device)

    def predict(
        self, z: torch.Tensor, t: torch.Tensor, contrast: torch.Tensor | None, sketch: torch.Tensor | None
    ) -> torch.Tensor:
        """What the U-Net says, v or the noise: z, sketch (n, channels, h, w), t (n,) int64; sketch None is the U-Net
        without ControlNet."""
        prompt = self.prompt.expand(len(z), -1, -1)
        beside: dict[str, Any] = {}
        if sketch is not None:
            down, middle = self.controlnet(
                torch.cat([z, sketch], 1),
                t,
                encoder_hidden_states=prompt,
                controlnet_cond=z.new_zeros(1, 1, 1, 1),
                class_labels=contrast,
                return_dict=False,
            )
            beside = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(z, t, encoder_hidden_states=prompt, class_labels=contrast, **beside).sample.float()

    def clean_and_noise(
        self, z: torch.Tensor, t: torch.Tensor, contrast: torch.Tensor | None, sketch: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """z0-hat and the noise in z, each like z."""
        lower = self.bf16 and not torch.is_grad_enabled()
        with torch.autocast(z.device.type, torch.bfloat16) if lower else contextlib.nullcontext():
            found = self.predict(z, t, contrast, sketch)
        signal, noise = self.signal_and_noise(t)
        if self.velocity:
            return signal * z - noise * found, signal * found + noise * z
        return (z - noise * found) / signal, found

    def signal_and_noise(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shares of z0 and of the noise in z at t, (n, 1, 1, 1) each: their squares sum to 1."""
        alphas = self.alphas[t].view(-1, 1, 1, 1)
        return alphas.sqrt(), (1 - alphas).sqrt()

    def of_contrast(self, label: str | None, count: Callable[[int], object] = uncounted) -> "LatentPrior":
        """What the samplers evaluate, the contrast given. count: called with the images of each evaluation."""
        return LatentPrior(self, label, count)

    @torch.no_grad()
    def warm_up(self) -> None:
        """One evaluation of nothing."""
        nothing = torch.zeros(1, *self.latent_shape(64, 64), device=self.device)
        self.clean_and_noise(
            nothing, torch.zeros(1, dtype=torch.int64, device=self.device), self.contrasts([None]), nothing
        )


@dataclass(frozen=True)
class LatentPrior:
    """A latent model of one contrast."""

    model: LatentModel
    label: str | None
    count: Callable[[int], object]

    def clean_and_noise(self, z: torch.Tensor, t: int, sketch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z0-hat and the noise in z, all (n, channels, h, w), at the time t."""
        self.count(len(z))
        times = torch.full((len(z),), t, device=z.device, dtype=torch.int64)
        return self.model.clean_and_noise(z, times, self.model.contrasts([self.label] * len(z)), sketch)


def _wider(conv: nn.Conv2d, more: int) -> nn.Conv2d:
    """The same convolution with `more` input channels, whose weights are zero."""
    wide = nn.Conv2d(conv.in_channels + more, conv.out_channels, 3, padding=1)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : conv.in_channels] = conv.weight
        wide.bias.copy_(conv.bias)  # type: ignore[union-attr, arg-type]
    return wide


WEIGHTS = "diffusion_pytorch_model.safetensors"
SD_PARTS = {"vae": WEIGHTS, "unet": WEIGHTS}


def folder_checksum(folder: Path) -> str:
    """SHA-256 over the names and contents of the parts that are used. Raises CheckpointError for a missing part."""
    digest = hashlib.sha256()
    for name in (
        "scheduler/scheduler_config.json",
        *(f"{p}/{f}" for p, w in SD_PARTS.items() for f in ("config.json", w)),
    ):
        file = folder / name
        if not file.is_file():
            pickled = [p.name for p in (*file.parent.glob("*.bin"), *file.parent.glob("*.ckpt"))]
            why = f", only pickled weights ({pickled[0]}), which can run any code" if pickled else ""
            raise CheckpointError(
                f"{folder} has no {name}{why}: take a Stable Diffusion 2.1-base folder with safetensors"
            )
        digest.update(name.encode())
        with file.open("rb") as stream:
            while block := stream.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def _renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The attention of the autoencoder had other names when these weights were written."""
    for old, new in ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")):
        weights = {name.replace(old, new): value.float() for name, value in weights.items()}
    return weights


def load_stable_diffusion(folder: Path, checksum: str, labels: list[str]) -> LatentModel:
    """Autoencoder and U-Net of a local Stable Diffusion 2.1-base folder, with a new ControlNet; no text encoder.

    The prompt is a vector of zeros until training has learnt one. checksum: `folder_checksum` of what was trusted.
    Raises CheckpointError, in one sentence, for a missing part, pickled weights, or another checksum.
    """
    found = folder_checksum(folder)
    if found != checksum:
        raise CheckpointError(
            f"{folder} has checksum {found[:12]} where {checksum[:12]} is expected: the files are damaged or others, "
            "get them again"
        )
    try:
        vae, unet, schedule = (
            {name: value for name, value in from_json((folder / file).read_text()).items() if name[0] != "_"}
            for file in ("vae/config.json", "unet/config.json", "scheduler/scheduler_config.json")
        )
        package = diffusers()
        schedule = {k: v for k, v in schedule.items() if k in inspect.signature(package.DDIMScheduler).parameters}
        model = LatentModel({"labels": labels, "autoencoder": vae, "unet": unet, "schedule": schedule})
        for part, network in (("vae", model.autoencoder), ("unet", model.unet)):
            network.load_state_dict(_renamed(load((folder / part / SD_PARTS[part]).read_bytes())))
        model.std.fill_(1 / vae["scaling_factor"])
    except (SafetensorError, RuntimeError, LookupError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{folder} does not hold Stable Diffusion 2.1-base ({reason}): get it again") from error
    model.start_controlnet()
    return model.requires_grad_(False).eval()
