"""The one-step network: a conditional denoiser is trained, then distilled; and its twin by regression.

After SSDM-MRI (Liu et al.). Teacher: v-prediction at T = 128 times. Distillation: progressive (Salimans and Ho, ICLR
2022): a student of N steps learns where the teacher's DDIM steps lead, the target being the clean image whose single
DDIM step ends there; a stage may halve several times at once. Twin: the same network at t = 1 with nothing in the place
of the noise, so that it learns the mean. A time budget ends each stage: the rate falls to 0 over its last part.
"""

import copy
import csv
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from dpmrecon.errors import BadInputError, DpmreconError
from dpmrecon.prior.checkpoint import save_checkpoint
from dpmrecon.prior.conditional import RESIDUAL, ConditionalDenoiser, ddim_step, signal_and_noise
from dpmrecon.prior.denoiser import Denoiser, complex_noise
from dpmrecon.prior.kinds import ONE_STEP

from ..data.masks import drawn_mask
from .batches import Batches, example_seed, load
from .keeper import read_tensors, write_state
from .muon import optimizers
from .recipe import timed_factor
from .undersampled import Undersampled, undersampled

TIMES = 128
EASY = 0.1  # of the residual's rms: examples with less of it count as this much
EMA = 0.999
SAVE_SECONDS = 60.0
ENDLESS = 10**9  # steps: the time ends a stage
TYPICAL_SIGMA = 0.05  # of what a conventional image lacks, where a denoiser is begun with


class Crops(NamedTuple):
    """clean: (batch, rows, cols) complex64; mask: like it, float32; label: (batch, n_labels)."""

    clean: torch.Tensor
    mask: torch.Tensor
    label: torch.Tensor


class CropBatches(Batches):
    """`batches[k]`: clean crops, each `draws` times, with a mask of its own every time."""

    def joined(self, examples: list[tuple[torch.Tensor, ...]]) -> Crops:
        return Crops(*(torch.cat(column) for column in zip(*examples)))

    def example(self, step: int, number: int, crop: int) -> tuple[torch.Tensor, ...]:
        seed, draws = example_seed(self.settings["seed"], step, number), self.settings["draws"]
        generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        clean, _, contrast = self.slices.example(crop, generator)
        masks = torch.from_numpy(np.stack([drawn_mask(crop, rng) for _ in range(draws)])).float()
        kept = torch.rand(draws, 1, generator=generator) >= self.settings["label_dropout"]
        return clean.expand(draws, -1, -1), masks, kept * self.label_of(contrast)


def velocity_loss(velocity: torch.Tensor, target: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Mean square of v, each example over that of its residual: what is hard to unfold would drown the rest."""
    scale = residual.abs().square().mean((1, 2)) / 2 + EASY**2
    return ((velocity - target).abs().square().mean((1, 2)) / 2 / scale).mean()


@dataclass
class Stage:
    """A model in training. loss: of a batch; minutes: its budget."""

    name: str
    model: ConditionalDenoiser
    loss: Callable[[ConditionalDenoiser, Undersampled, torch.Tensor, torch.Generator], torch.Tensor]
    minutes: float
    settings: dict
    done: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizers = optimizers(self.model, self.settings["optimizer"])

    @property
    def progress(self) -> float:
        return self.seconds / (60 * self.minutes)

    def step(self, batch: Undersampled, label: torch.Tensor, generator: torch.Generator) -> None:
        rate = self.settings["rate"] * timed_factor(self.progress, self.done, self.settings)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        with torch.autocast(label.device.type, torch.bfloat16, enabled=self.settings["precision"] == "bf16"):
            loss = self.loss(self.model, batch, label, generator)
        self.model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings["clip"])
        for optimizer in self.optimizers:
            optimizer.step()
        self.done += 1
        decay = min(EMA, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)
        value = loss.item()
        if not math.isfinite(value):
            raise DpmreconError(f"{self.name}: the loss is {value} at step {self.done}: lower the rate in the recipe")
        self.losses.append(value)

    def state(self) -> dict:
        return {
            "name": self.name, "done": self.done, "seconds": self.seconds, "model": self.model.state_dict(),
            "ema": self.ema.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }  # fmt: skip

    def load_state(self, state: dict) -> None:
        self.done, self.seconds = state["done"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)


def teacher_loss(
    model: ConditionalDenoiser, batch: Undersampled, label: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """v-prediction at one of TIMES times."""
    residual = residual_of(batch)
    drawn = torch.randint(1, TIMES + 1, (len(residual),), generator=generator, device=residual.device) / TIMES
    alpha, sigma = (value.view(-1, 1, 1) for value in signal_and_noise(drawn))
    noise = complex_noise(tuple(residual.shape), generator)
    velocity = model(alpha * residual + sigma * noise, drawn, *told(batch), label)
    return velocity_loss(velocity, alpha * noise - sigma * residual, residual)


def regression_loss(
    model: ConditionalDenoiser, batch: Undersampled, label: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """The twin: from nothing to the residual. v at t = 1 is its negative."""
    residual = residual_of(batch)
    ones = torch.ones(len(residual), device=residual.device)
    velocity = model(torch.zeros_like(residual), ones, *told(batch), label)
    return velocity_loss(velocity, -residual, residual)


def distillation_loss(
    model: ConditionalDenoiser,
    batch: Undersampled,
    label: torch.Tensor,
    generator: torch.Generator,
    *,
    teacher: ConditionalDenoiser,
    steps: int,
    substeps: int,
) -> torch.Tensor:
    """The student's v where one of its `steps` begins, against that whose DDIM step ends where `substeps` of the
    teacher's do."""
    residual = residual_of(batch)
    begin = torch.randint(1, steps + 1, (len(residual),), generator=generator, device=residual.device) / steps
    alpha, sigma = (value.view(-1, 1, 1) for value in signal_and_noise(begin))
    noisy = alpha * residual + sigma * complex_noise(tuple(residual.shape), generator)
    target = distilled_target(partial(predicted, teacher, batch, label), noisy, begin, 1 / steps, substeps)
    velocity = model(noisy, begin, *told(batch), label)
    return velocity_loss(velocity, (alpha * noisy - target) / sigma, residual)


def distilled_target(
    velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noisy: torch.Tensor,
    begin: torch.Tensor,
    length: float,
    substeps: int,
) -> torch.Tensor:
    """The clean image from which one DDIM step of `length` leads from z_begin to where `substeps` steps lead that
    follow v (Salimans and Ho, appendix G: the DDIM-consistent target)."""
    with torch.no_grad():
        current, now = noisy, begin
        for number in range(substeps):
            following = begin - length * (number + 1) / substeps
            current = ddim_step(current, velocity(current, now), now, following)
            now = following
    alpha, sigma = (value.view(-1, 1, 1) for value in signal_and_noise(begin))
    end_alpha, end_sigma = (value.view(-1, 1, 1) for value in signal_and_noise(now.clamp_min(0)))
    return (current - end_sigma / sigma * noisy) / (end_alpha - end_sigma / sigma * alpha)


def predicted(
    model: ConditionalDenoiser, batch: Undersampled, label: torch.Tensor, noisy: torch.Tensor, now: torch.Tensor
) -> torch.Tensor:
    return model(noisy, now, *told(batch), label)


def residual_of(batch: Undersampled) -> torch.Tensor:
    return (batch.clean - batch.conventional) / RESIDUAL


def told(batch: Undersampled) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return batch.conventional, batch.acceleration, batch.sigma_n


class Run:
    """Stages on the examples of a recipe, in a folder whose state.pt they go on from."""

    def __init__(self, recipe: dict, data: Path, folder: Path, device: torch.device, workers: int):
        self.recipe, self.folder, self.device = recipe, folder, device
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        self.batches = CropBatches(data, recipe["train"], recipe["model"]["labels"], None)
        self.workers = workers
        self.crops: Iterator[Any] | None = None  # begun once: loader processes take seconds to start
        folder.mkdir(parents=True, exist_ok=True)

    def train(self, stage: Stage) -> ConditionalDenoiser:
        """Until its budget is spent; the averaged weights."""
        file = self.folder / f"{stage.name}.pt"
        if file.exists():
            stage.load_state(read_tensors(file, set(stage.state())))
            if stage.progress >= 1:
                return stage.ema
        generator = torch.Generator(self.device).manual_seed(self.recipe["train"]["seed"] + stage.done)
        saved = begun = time.perf_counter()
        self.crops = self.crops or iter(load(self.batches, range(stage.done, ENDLESS), self.workers, self.device))
        for crops in self.crops:
            if isinstance(crops, DpmreconError):
                raise crops
            clean, mask, label = (part.to(self.device, non_blocking=True) for part in crops)
            batch = undersampled(clean, mask, self.recipe["model"]["conditioning"], generator)
            stage.step(batch, label, generator)
            now = time.perf_counter()
            stage.seconds, begun = stage.seconds + now - begun, now
            if stage.progress >= 1 or now - saved > SAVE_SECONDS:
                write_state(file, stage.state())
                self._log(stage)
                saved = now
            if stage.progress >= 1:
                break
        return stage.ema

    def _log(self, stage: Stage) -> None:
        with (self.folder / "log.csv").open("a", newline="") as file:
            row = [stage.name, stage.done, round(stage.seconds, 1), sum(stage.losses) / max(1, len(stage.losses))]
            csv.writer(file).writerow(row)
        print(*row, flush=True)
        stage.losses.clear()

    def save(self, path: Path, model: ConditionalDenoiser, history: str, sampling: dict) -> None:
        card = {"kind": ONE_STEP, "recipe": self.recipe["train"], "history": history, "sampling": sampling}
        save_checkpoint(path, model, card)


def begin_with(model: ConditionalDenoiser, denoiser: Denoiser) -> None:
    """Weights of a denoiser of the same widths, which takes the conventional image for a noisy one: its error is told
    as v, the noise level as sigma_n, and what is new begins at zero. Raises BadInputError where the widths differ."""
    for name in ("widths", "blocks", "embedding", "labels"):
        if model.config[name] != denoiser.config[name]:
            raise BadInputError(
                f"--start has {name} {denoiser.config[name]} and the recipe {model.config[name]}: a network of other "
                "widths cannot be begun with"
            )
    weights = denoiser.unet.state_dict()
    stem, embedded = weights["stem.weight"], weights["embed_noise.0.weight"]
    weights["stem.weight"] = torch.cat([0 * stem, stem], 1)
    weights["embed_noise.0.weight"] = torch.cat([0 * embedded, 0 * embedded, embedded], 1)
    for name in ("head.weight", "head.bias"):
        weights[name] = -TYPICAL_SIGMA / RESIDUAL * weights[name]
    model.network.load_state_dict(weights)
