"""Stages of a latent model's training, in LDPM's order: autoencoder, latent denoiser, ControlNet (Tang et al.).

Each says what is trained, and does one step on a batch of crops.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from dpmrecon.device import has_bfloat16
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.prior.latent import LatentModel
from torch import nn

from . import timed
from .crop_pool import CropPool
from .latent_start import begin_linear
from .scans import scanned, sketches
from .sketcher import SwinSketcher

FEATURE_SIGMA = 0.05  # at which our denoiser sees the images whose features are compared
LOOKED_AT = 64  # batches, before the first step
REAL = 0.97  # share of the energy


Images = tuple[torch.Tensor, torch.Tensor]  # of `CropPool.draw`, and their classes


class Stage(timed.Stage, Protocol):
    """As `TimedRun` takes it; `settings`: table [train] of the recipe."""

    settings: dict

    def prepare(self, pool: CropPool, fresh: bool) -> None:
        """Once, before the first step. fresh: the model has random weights."""


def at_precision(step: Callable) -> Callable:
    """A stage's step at the recipe's precision; float32 where the device has no bfloat16."""

    @functools.wraps(step)
    def wrapped(stage: Any, examples: Images, share: float) -> dict[str, torch.Tensor]:
        device = examples[0].device
        lower = stage.settings["precision"] == "bf16" and has_bfloat16(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=lower):
            return step(stage, examples, share)

    return wrapped


class Features(nn.Module):
    """What the levels of the denoiser that ships make of an image: a perceptual loss without foreign weights."""

    def __init__(self) -> None:
        super().__init__()
        self.denoiser = load_checkpoint().denoiser
        self.found: list[torch.Tensor] = []
        for blocks in self.denoiser.unet.down_blocks:
            blocks.register_forward_hook(lambda module, given, made: self.found.append(made))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(batch, rows, cols) complex64 to the features of each level."""
        self.found = []
        sigma = torch.full((len(images),), FEATURE_SIGMA, device=images.device)
        label = torch.zeros(len(images), len(self.denoiser.labels), device=images.device)
        self.denoiser(images, sigma, label)
        return self.found

    def distance(self, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean over the levels of the L1 distance, relative to the target's mean absolute feature."""
        with torch.no_grad():
            wanted = self(target)
        parts = [(a - b).abs().mean() / b.abs().mean().clamp_min(1e-6) for a, b in zip(self(images), wanted)]
        return torch.stack([part.float() for part in parts]).mean()


class Discriminator(nn.Sequential):
    """Of patches: (batch, 2, rows, cols) to a map of scores (Isola et al., CVPR 2017)."""

    def __init__(self, width: int = 32):
        layers: list[nn.Module] = [nn.Conv2d(2, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for _ in range(2):
            layers += [nn.Conv2d(width, 2 * width, 4, 2, 1), nn.GroupNorm(8, 2 * width), nn.LeakyReLU(0.2)]
            width *= 2
        super().__init__(*layers, nn.Conv2d(width, 1, 3, padding=1))


def nearly_real(images: torch.Tensor) -> torch.Tensor:
    """Those of (n, rows, cols) whose energy is in the real part, as the phase rule leaves slices; all where none is."""
    real = images.real.square().sum((1, 2)) > REAL * images.abs().square().sum((1, 2))
    return images[real] if bool(real.any()) else images


def adam(parameters: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)


def stepped(optimizer: torch.optim.Optimizer, loss: torch.Tensor, clip: float) -> None:
    """One step of the optimizer; none where the gradient is not finite."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if bool(torch.isfinite(nn.utils.clip_grad_norm_(parameters, clip))):
        optimizer.step()


class AutoencoderStage:
    """L1, logarithm of each image's root mean square error, KL, features of our own denoiser, and from a share of the
    budget on a discriminator; the last two cost nothing where they have no weight.

    The logarithm is the round trip's PSNR: nearly real images, as reconstructions show them, count as much as those
    with more phase, of which the latents hold less.

    The discriminator's part has `adversarial` times the gradient of the L1 loss at the last layer (Esser et al., CVPR
    2021).
    """

    def __init__(self, model: LatentModel, settings: dict, device: torch.device):
        self.model, self.settings = model, settings
        self.features = Features().to(device).requires_grad_(False) if settings["perceptual"] > 0 else None
        self.discriminator = Discriminator().to(device)
        self.modules: dict[str, nn.Module] = {"autoencoder": model.autoencoder, "discriminator": self.discriminator}
        self.optimizers = {
            "autoencoder": adam(model.autoencoder.requires_grad_(True).parameters(), settings["rate"]),
            "discriminator": adam(self.discriminator.parameters(), settings["rate"]),
        }

    def prepare(self, pool: CropPool, fresh: bool) -> None:
        """An autoencoder of blocks of pixels begins as a linear code."""
        if fresh and self.model.patch > 1:
            images = torch.cat([pool.draw(self.settings["batch"])[0] for _ in range(LOOKED_AT)])
            images = nearly_real(images)
            begin_linear(self.model.autoencoder, F.pixel_unshuffle(self.model.padded(images), self.model.patch))

    @at_precision
    def step(self, examples: Images, share: float) -> dict[str, torch.Tensor]:
        images, classes = examples
        settings, rows, cols = self.settings, *images.shape[-2:]
        target = self.model.padded(images)
        latent = self.model.code(target)
        made = self.model.decoded(latent.sample())[..., :rows, :cols].float()
        target = target[..., :rows, :cols]
        losses = {
            "l1": (made - target).abs().mean(),
            "log_rms": (made - target).square().mean((1, 2, 3)).clamp_min(1e-12).log().mean() / 2,
            "kl": latent.kl().float().mean() / target[0].numel(),
        }
        if self.features is not None:
            losses["perceptual"] = self.features.distance(torch.complex(made[:, 0], made[:, 1]), images)
        total = sum(settings[name] * loss for name, loss in losses.items())
        adversarial = settings["adversarial"] > 0 and share >= settings["adversarial_from"]
        if adversarial:
            fooled = -self.discriminator(made[:, :2]).float().mean()
            last = self.model.autoencoder.decoder.conv_out.weight
            of_l1, of_fooled = (
                torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (losses["l1"], fooled)
            )
            total = total + settings["adversarial"] * (of_l1 / of_fooled.clamp_min(1e-8)).clamp(max=1e3) * fooled
        stepped(self.optimizers["autoencoder"], total, settings["clip"])
        if adversarial:
            real, false = self.discriminator(target[:, :2]).float(), self.discriminator(made[:, :2].detach()).float()
            judged = F.relu(1 - real).mean() + F.relu(1 + false).mean()
            stepped(self.optimizers["discriminator"], judged, settings["clip"])
            losses["discriminator"] = judged
        return {name: loss.detach() for name, loss in losses.items()}


def _v_loss(
    model: LatentModel, z0: torch.Tensor, classes: torch.Tensor, sketch: torch.Tensor | None, settings: dict
) -> torch.Tensor:
    """Mean squared error of what the U-Net predicts, several times and noises for each latent.

    A channel counts by its share of the image: whitened, the one of the blocks' means has a sixteenth of the error and
    most of the image. `time_power`: times are drawn as this power of a uniform number.
    """
    draws = settings["draws"]
    z0, classes = z0.repeat(draws, 1, 1, 1), classes.repeat(draws)
    dropped = torch.rand(len(classes), device=z0.device) < settings["label_dropout"]
    classes = torch.where(dropped, len(model.labels), classes)
    share = torch.rand(len(z0), device=z0.device) ** settings.get("time_power", 1.0)
    t = (share * len(model.alphas)).long().clamp_max(len(model.alphas) - 1)
    noise = torch.randn_like(z0)
    signal, spread = model.signal_and_noise(t)
    wanted = signal * noise - spread * z0 if model.velocity else noise
    has_classes = model.unet.config.num_class_embeds is not None
    shown = None if sketch is None else sketch.repeat(draws, 1, 1, 1)
    found = model.predict(signal * z0 + spread * noise, t, classes if has_classes else None, shown)
    return (model.std / model.std.mean() * (found.float() - wanted).square()).mean()


class DenoiserStage:
    """The U-Net and the prompt on whitened latents, the autoencoder frozen."""

    def __init__(self, model: LatentModel, settings: dict, device: torch.device):
        self.model, self.settings = model, settings
        self.modules: dict[str, nn.Module] = {"model": model}
        trained = [*model.unet.requires_grad_(True).parameters(), model.prompt.requires_grad_(True)]
        self.optimizers = {"unet": adam(trained, settings["rate"])}

    @torch.no_grad()
    def prepare(self, pool: CropPool, fresh: bool) -> None:
        """Measures what whitens the latents."""
        model = self.model
        model.mean.zero_()
        model.std.fill_(1)
        found = torch.cat([model.encode(pool.draw(self.settings["batch"])[0]).float() for _ in range(LOOKED_AT)])
        model.mean.copy_(found.mean((0, 2, 3), keepdim=True))
        model.std.copy_(found.std((0, 2, 3), keepdim=True).clamp_min(1e-6))

    @at_precision
    def step(self, examples: Images, share: float) -> dict[str, torch.Tensor]:
        images, classes = examples
        with torch.no_grad():
            z0 = self.model.encode(images).float()
        loss = _v_loss(self.model, z0, classes, None, self.settings)
        stepped(self.optimizers["unet"], loss, self.settings["clip"])
        return {"loss": loss.detach()}


class ControlStage:
    """The ControlNet on the encoded sketch, the rest frozen."""

    def __init__(self, model: LatentModel, settings: dict, device: torch.device):
        self.model, self.settings = model, settings
        model.start_controlnet()
        self.modules: dict[str, nn.Module] = {"controlnet": model.controlnet}
        self.optimizers = {"controlnet": adam(model.controlnet.requires_grad_(True).parameters(), settings["rate"])}

    def prepare(self, pool: CropPool, fresh: bool) -> None:
        pass

    @at_precision
    def step(self, examples: Images, share: float) -> dict[str, torch.Tensor]:
        images, classes = examples
        names: list[str | None] = [*self.model.labels, None]
        with torch.no_grad():
            shown = sketches(images, [names[number] for number in classes.tolist()], self.model.sketcher)
            z0, shown = self.model.encode(images).float(), self.model.encode(shown).float()
        loss = _v_loss(self.model, z0, classes, shown, self.settings)
        stepped(self.optimizers["controlnet"], loss, self.settings["clip"])
        return {"loss": loss.detach()}


class SketcherStage:
    """SwinIR from the zero-filled image to the clean one, L1."""

    def __init__(self, model: SwinSketcher, settings: dict, device: torch.device):
        self.model, self.settings = model, settings
        self.modules: dict[str, nn.Module] = {"model": model}
        self.optimizers = {"model": adam(model.requires_grad_(True).parameters(), settings["rate"])}

    def prepare(self, pool: CropPool, fresh: bool) -> None:
        pass

    @at_precision
    def step(self, examples: Images, share: float) -> dict[str, torch.Tensor]:
        images, classes = examples
        found = self.model(scanned(images).zero_filled)
        loss = torch.view_as_real(found - images).abs().mean()
        stepped(self.optimizers["model"], loss, self.settings["clip"])
        return {"l1": loss.detach()}


STAGES: dict[str, Callable[[Any, dict, torch.device], Stage]] = {
    "sketcher": SketcherStage,
    "autoencoder": AutoencoderStage,
    "denoiser": DenoiserStage,
    "control": ControlStage,
}
