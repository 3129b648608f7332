"""The training loop: EDM loss, EMA, label dropout, resumable at any step with the same numbers.

The engine is Hugging Face accelerate: it finds the device, starts the process group, wraps the model and casts to
bfloat16. The loop is left to us. Lightning owns the loop, the order of optimizers (Muon and Adam are two) and the
checkpoint. They must be ours: a resumed run repeats an uninterrupted one bit for bit.
"""

import math
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from dpmrecon.contrasts import CONTRAST_LABELS
from dpmrecon.errors import BadInputError, DpmreconError
from dpmrecon.prior.denoiser import Denoiser
from tqdm import tqdm

from ..data.dataset import PreparedSlices
from .batches import Batch, Batches, load
from .keeper import Keeper, Start
from .muon import optimizers
from .recipe import PRECISIONS, ema_decay, learning_rate


class Stopped(DpmreconError):
    """Training was interrupted; its state is saved."""


class Trainer:
    """Model, averaged model and optimizers on the device, and one step of training."""

    def __init__(self, recipe: dict, start: Start | None = None, device: str | None = None):
        """device: `cpu`, or None for a GPU where there is one."""
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        self.settings = recipe["train"]
        AcceleratorState._reset_state()  # it remembers the precision of an earlier run in this process
        precision = PRECISIONS[self.settings["precision"]]
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
        processes = self.accelerator.num_processes
        if self.settings["batch"] % processes:
            raise BadInputError(
                f"the recipe's batch of {self.settings['batch']} cannot be shared by {processes} processes: "
                "change batch, or give --processes"
            )
        torch.manual_seed(self.settings["seed"])
        self.model, self.ema = Denoiser(recipe["model"]), Denoiser(recipe["model"])
        if start is not None:
            self.model.load_state_dict(start.weights)
        self.ema.load_state_dict(self.model.state_dict() if start is None else start.ema)
        self.ema.requires_grad_(False)
        self.random_start = start is None
        if self.accelerator.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # Muon needs no more
        self.model.to(self.accelerator.device)
        self.ema.to(self.accelerator.device)
        self.optimizers = optimizers(self.model, self.settings["optimizer"])
        states = None if start is None else start.optimizers_for(self.settings["optimizer"])
        for optimizer, state in zip(self.optimizers, states or []):
            optimizer.load_state_dict(state)
        self.parallel = self.accelerator.prepare(self.model)

    def step(self, step: int, batch: Any, stop: bool = False) -> tuple[float, bool]:
        """One step on this process's share of the batch. Returns the whole batch's loss, and whether any process was
        told to stop. Raises DpmreconError where the loss or its gradient is not finite."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, self.settings)
        loss = self.loss(batch)
        self.model.zero_grad()
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings["clip"])
        told = torch.stack([loss.detach(), norm.detach(), torch.full_like(norm, float(stop))])
        told = self.accelerator.reduce(told, "mean")
        for optimizer in self.optimizers:
            optimizer.step()
        decay = ema_decay(step, self.settings, self.random_start)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)
        mean, length, asked = told.tolist()  # a GPU has all of the step's work by now
        if not (math.isfinite(mean) and math.isfinite(length)):
            raise DpmreconError(
                f"the loss is {mean} and its gradient's norm {length} at step {step}: the last state was saved before; "
                "lower the rate in the recipe and begin anew"
            )
        return mean, asked > 0

    def loss(self, batch: Any) -> torch.Tensor:
        return denoising_loss(self.parallel, batch, self.model.sigma_data)

    def state(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def load_state(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)


def train(
    recipe: dict,
    data: Path,
    run: Path,
    threads: int | None = None,
    start: Start | None = None,
    *,
    device: str | None = None,
    workers: int = 0,
) -> Denoiser:
    """Train by `recipe` on the prepared slices in `data`. Returns the averaged weights, in evaluation mode.

    recipe: tables model and train, and target for one contrast; run: folder of state.pt, log.csv, sheets/,
    tensorboard/, gone on with from its state; start: weights to begin with, None for random ones; workers: loader
    processes, 0 makes the examples in this one.

    Raises BadInputError where the data do not fit the recipe, or the state is damaged or of another recipe or of other
    data; Stopped after SIGINT or SIGTERM, with the state saved; DpmreconError where the loss is not finite or the disk
    is full.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    trainer = Trainer(recipe, start, device)
    accelerator, settings = trainer.accelerator, recipe["train"]
    batches = Batches(
        data, settings, recipe["model"]["labels"], recipe.get("target", {}).get("label"),
        accelerator.num_processes, accelerator.process_index,
    )  # fmt: skip
    check_contrasts(batches.slices, batches.labels, batches.target)
    identity = None if start is None else start.checksum
    keeper = Keeper(run, recipe, identity, batches.slices.digest, accelerator.is_main_process)
    first, state = keeper.go_on()
    if state is not None:
        trainer.load_state(state)
    steps = range(first, settings["steps"])
    loader = iter(load(batches, steps, workers, accelerator.device))
    bar = tqdm(steps, initial=first, total=settings["steps"], desc="training", disable=not accelerator.is_main_process)
    with StopSignal() as signals:
        for step in bar:
            asked = time.perf_counter()
            batch = next(loader)
            waited = time.perf_counter() - asked
            if isinstance(batch, DpmreconError):
                raise batch
            loss, stopping = trainer.step(step, batch.to(accelerator.device), signals.received)
            keeper.note(loss, waited)
            done = step + 1 == settings["steps"]
            if done or stopping or (step + 1) % settings["save_every"] == 0:
                keeper.save(trainer.state(), step)
            if keeper.writes and (done or _due(step + 1, settings["sheet_every"])):
                keeper.sheet(trainer.ema, batches, step)
            if stopping and not done:
                accelerator.wait_for_everyone()
                raise Stopped(
                    f"stopped after step {step + 1} of {settings['steps']}: the state is in {run}, and the same "
                    "command goes on from there"
                )
    accelerator.wait_for_everyone()
    return trainer.ema.eval()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def check_contrasts(slices: PreparedSlices, labels: Sequence[str], target: str | None = None) -> None:
    """Raises BadInputError where volumes have no label, or not the one that all examples get."""
    found = {volume["contrast"] for volume in slices.volumes}
    named = ", ".join(sorted(found))
    if target is not None:
        if len(found) > 1:
            raise BadInputError(
                f"all examples are to be '{target}', and the volumes are of {named}: name those of one contrast in the "
                "recipe (volumes)"
            )
        if target in CONTRAST_LABELS and found != {target}:
            raise BadInputError(
                f"all examples are to be '{target}', and the volumes are of {named}: name others in the recipe "
                "(volumes), or give their label"
            )
    elif found - set(labels):
        raise BadInputError(
            f"the model has no label for {', '.join(sorted(found - set(labels)))}: name other volumes in the recipe, "
            f"or add to its labels ({', '.join(labels)})"
        )


def denoising_loss(model: torch.nn.Module, batch: Batch, sigma_data: float) -> torch.Tensor:
    """Weighted denoising error (EDM, table 1): mean over real channels of lambda(sigma) (D - clean)^2, pixels with the
    batch's weight."""
    weight = (batch.sigma.square() + sigma_data**2) / (batch.sigma * sigma_data).square()
    count = len(batch.clean)
    off = model(batch.noisy, batch.sigma, batch.label).unflatten(0, (count, -1)) - batch.clean[:, None]
    error = (batch.weight[:, None] * torch.view_as_real(off).square().sum(-1)).mean((2, 3)) / 2
    return (weight.unflatten(0, (count, -1)) * error).mean()


class StopSignal:
    """While it is entered, SIGINT and SIGTERM only set `received`; outside the main thread it does nothing."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, *_) -> None:
        self.received = True

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
