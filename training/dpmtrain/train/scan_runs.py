"""Training on simulated scans of prepared slices: their crops, a stage, and a run of stages for a time each.

The rate falls to 0 over the last part of a stage's time.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from dpmrecon.device import device_of
from dpmrecon.errors import BadInputError, DpmreconError
from torch.optim.swa_utils import AveragedModel

from ..arguments import checkpoint_path
from ..data.dataset import read_manifest
from ..data.masks import drawn_mask
from .batches import Batches, example_seed, focus_weight, load
from .muon import optimizers
from .recipe import read_recipe
from .timed import TimedRun
from .train import check_contrasts
from .undersampled import COILS, Coils, Undersampled, calibrated_coils, undersampled

EMA = 0.999
ENDLESS = 10**9  # steps: the time ends a stage
T = TypeVar("T", bound=torch.nn.Module)


class Crops(NamedTuple):
    """clean: (batch, rows, cols) complex64; weight, of each pixel's error, and mask: like it, float32; label: (batch,
    n_labels)."""

    clean: torch.Tensor
    weight: torch.Tensor
    mask: torch.Tensor
    label: torch.Tensor
    coils: Coils | None = None


class CropBatches(Batches):
    """`batches[k]`: clean crops, each `draws` times, with a mask of its own every time."""

    def joined(self, examples: list[tuple[torch.Tensor, ...]]) -> Crops:
        clean, weight, mask, label, *coils = (torch.cat(column) for column in zip(*examples))
        return Crops(clean, weight, mask, label, Coils(*coils) if coils else None)

    def example(self, step: int, number: int, crop: int) -> tuple[torch.Tensor, ...]:
        seed, draws = example_seed(self.settings["seed"], step, number), self.settings["draws"]
        generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        clean, foci, contrast = self.slices.example(crop, generator)
        masks = torch.from_numpy(np.stack([drawn_mask(crop, rng) for _ in range(draws)])).float()
        kept = torch.rand(draws, 1, generator=generator) >= self.settings["label_dropout"]
        weight = focus_weight(foci, self.settings)
        return clean.expand(draws, -1, -1), weight.expand(draws, -1, -1), masks, kept * self.label_of(contrast)


class CalibratedBatches(CropBatches):
    """With coil maps of each crop's own calibration, where runs on slices count. They take a core longer than a GPU
    takes for a step: loader processes make them."""

    def example(self, step: int, number: int, crop: int) -> tuple[torch.Tensor, ...]:
        clean, *others = super().example(step, number, crop)
        if self.settings["slice_weight"] == 0:
            return clean, *others
        generator = torch.Generator().manual_seed(example_seed(self.settings["seed"], step, -1 - number))
        n_coils = COILS[example_seed(self.settings["seed"], step, 0) % len(COILS)]  # those of a step have as many
        coils = calibrated_coils(clean[:1].to(torch.complex64), generator, n_coils)
        return clean, *others, *(part.expand(len(clean), *part.shape[1:]) for part in coils)


Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]
Loss = Callable[[Any, Undersampled, torch.Tensor, torch.Generator], torch.Tensor]  # of a model, scans and their labels


@torch.no_grad()
def averaged(averages: Tensors, values: Tensors, count: torch.Tensor | int) -> None:
    """Moves the averages, of `count` steps so far, towards the values."""
    decay = min(EMA, (1 + int(count)) / (10 + int(count)))
    torch._foreach_lerp_(averages, values, 1 - decay)


class ScanStage:
    """A model in training by `loss`, its average in `ema`. generator: of the loss's noise, on the model's device."""

    def __init__(self, model: torch.nn.Module, loss: Loss, settings: dict, generator: torch.Generator):
        self.model, self.loss, self.settings, self.generator = model, loss, settings, generator
        self.ema = AveragedModel(model, multi_avg_fn=averaged).requires_grad_(False)
        self.modules: dict[str, torch.nn.Module] = {"model": model, "ema": self.ema}
        found = optimizers(model, settings["optimizer"])
        self.optimizers = {f"optimizer {number}": optimizer for number, optimizer in enumerate(found)}

    @property
    def average(self) -> Any:
        """The model with the averaged weights."""
        return self.ema.module

    def step(self, examples: tuple[Undersampled, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
        """examples: a batch and its labels. Raises DpmreconError where the loss is not finite."""
        batch, label = examples
        with torch.autocast(label.device.type, torch.bfloat16, enabled=self.settings["precision"] == "bf16"):
            loss = self.loss(self.model, batch, label, self.generator)
        self.model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings["clip"])
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.ema.update_parameters(self.model)
        if not math.isfinite(loss.item()):
            raise DpmreconError(
                f"the loss is {loss.item()}: the state saved last is still there; lower the rate in the recipe and "
                "begin anew"
            )
        return {"loss": loss.detach()}


class ScanRun:
    """Stages, one after the other, on the scans of a recipe; `folder` holds the state of each.

    kind: of the recipe; model: the configuration, where the recipe has no table [model]; batches: of which kind.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        kind: str,
        model: dict[str, Any] | None = None,
        batches: type[CropBatches] = CropBatches,
    ):
        self.recipe = read_recipe(args.recipe, kind)
        self.recipe.setdefault("model", model)
        read_manifest(args.data)
        checkpoint_path(args.out, args.start, getattr(args, "refine", None))
        if args.minutes <= 0:
            raise BadInputError(f"--minutes is {args.minutes:g}: give a time above 0")
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        self.folder, self.device, self.workers = args.folder, device_of(args.device), args.workers
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        self.settings = self.recipe["train"]
        self.batches = batches(args.data, self.settings, self.recipe["model"]["labels"], None)
        check_contrasts(self.batches.slices, self.batches.labels)
        self.crops: Iterator[Any] | None = None  # begun once: loader processes take seconds to start

    def train(self, name: str, model: T, loss: Loss, minutes: float, begun_with: dict[str, Any]) -> tuple[T, int]:
        """The averaged weights, once the stage's minutes are spent, and its steps."""
        generator = torch.Generator(self.device)
        stage = ScanStage(model, loss, self.settings, generator)
        made_with = {table: self.recipe[table] for table in ("model", "train")} | begun_with
        made_with["the data"] = self.batches.slices.digest[:12]
        run = TimedRun(self.folder / f"{name}.pt", stage, made_with, self.settings, minutes)
        generator.manual_seed(self.settings["seed"] + run.steps)
        run.train(self._examples(run.steps, generator))
        return stage.average, run.steps

    def _examples(
        self, done: int, generator: torch.Generator
    ) -> Iterator[tuple[Undersampled, torch.Tensor] | DpmreconError]:
        conditioning = self.recipe["model"].get("conditioning", "cg-sense")
        self.crops = self.crops or iter(load(self.batches, range(done, ENDLESS), self.workers, self.device))
        for crops in self.crops:
            if isinstance(crops, DpmreconError):
                yield crops
            clean, weight, mask, label = (part.to(self.device, non_blocking=True) for part in crops[:4])
            coils = crops.coils and Coils(*(part.to(self.device, non_blocking=True) for part in crops.coils))
            yield undersampled(clean, weight, mask, conditioning, generator, coils), label


def check_kept(share: float) -> None:
    """Raises BadInputError for a share that `blend` does not take."""
    if not 0 <= share < 1:
        raise BadInputError(f"--keep is {share:g}: give a share from 0 on and below 1")


def blend(model: torch.nn.Module, begun: dict[str, torch.Tensor], share: float) -> None:
    """Moves trained weights back towards those that the training began with, by a share of the way (WiSE-FT: Wortsman
    et al., CVPR 2022)."""
    model.load_state_dict({name: value.lerp(begun[name], share) for name, value in model.state_dict().items()})


def kept_text(share: float) -> str:
    """For the history, behind the name of what the training began with."""
    return f", of whose weights {share:g} are kept" if share else ""
