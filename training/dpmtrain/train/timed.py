"""Training for a time: the loop of all that is not trained for a number of steps, and its state.

A stage says what is trained and does one step; the loop sets the rate, saves, and goes on where a run was stopped.
"""

import csv
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from dpmrecon.errors import BadInputError, DpmreconError
from torch import nn

from ..files import writing
from .keeper import read_tensors, write_state
from .recipe import timed_factor

Clock = Callable[[], float]


class Stage(Protocol):
    """modules, optimizers: what the state holds, by name."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]

    def step(self, examples: Any, share: float) -> dict[str, torch.Tensor]:
        """One step. share: of the budget that is spent. Returns the losses, for the log."""


class TimedRun:
    """A stage in training for `minutes` in all, those of an earlier run included.

    file: of the state, gone on with where it is there; log.csv lies beside it. made_with: what a state must have been
    made with (recipe, start ...), plain values. settings: rate, warmup, decay_fraction, save_seconds. Raises
    BadInputError where the state is damaged or was made with something else.
    """

    def __init__(
        self,
        file: Path,
        stage: Stage,
        made_with: dict[str, Any],
        settings: dict,
        minutes: float,
        clock: Clock = time.monotonic,
    ):
        self.file, self.stage, self.made_with, self.settings = file, stage, made_with, settings
        self.budget, self.clock = 60 * minutes, clock
        self.steps, self.seconds = 0, 0.0
        if file.exists():
            self._go_on()

    @property
    def share(self) -> float:
        """Of the budget that is spent, 0 to 1."""
        return min(1.0, self.seconds / self.budget)

    def train(self, examples: Iterator[Any], saved: Callable[[], None] = lambda: None) -> None:
        """Until the budget is spent, one step at least from random weights.

        examples: what a step takes, or a DpmreconError; saved: called after each state. Raises DpmreconError where an
        example cannot be had or the state not be written.
        """
        began, last = self.clock() - self.seconds, self.seconds
        sums: dict[str, torch.Tensor] = {}
        since = self.steps
        while self.share < 1 or self.steps == 0:
            drawn = next(examples)
            if isinstance(drawn, DpmreconError):
                raise drawn
            rate = self.settings["rate"] * timed_factor(self.share, self.steps, self.settings)
            for optimizer in self.stage.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = rate
            losses = self.stage.step(drawn, self.share)
            sums = {name: sums.get(name, 0) + loss for name, loss in losses.items()}
            self.steps += 1
            self.seconds = self.clock() - began
            if self.share >= 1 or self.seconds - last >= self.settings["save_seconds"]:
                count = self.steps - since
                self._save({name: float(total) / count for name, total in sums.items()})
                sums, since, last = {}, self.steps, self.seconds
                saved()

    def _go_on(self) -> None:
        state = read_tensors(self.file, {"made_with", "seconds", "steps", "modules", "optimizers"})
        made_with = {"the data": self.made_with.get("the data"), **state["made_with"]}  # earlier versions do not say
        if made_with != {"the data": None, **self.made_with}:
            raise BadInputError(
                f"{self.file} is of another recipe ({_difference(made_with, self.made_with)}): take that recipe, or "
                "another --run"
            )
        for name, module in self.stage.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in self.stage.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.seconds, self.steps = state["seconds"], state["steps"]

    def _save(self, losses: dict[str, float]) -> None:
        state = {
            "made_with": self.made_with,
            "seconds": self.seconds,
            "steps": self.steps,
            "modules": {name: module.state_dict() for name, module in self.stage.modules.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.stage.optimizers.items()},
        }
        named = (f"{name} {loss:.5f}" for name, loss in losses.items())
        row = [self.file.stem, self.steps, round(self.seconds, 1), *named]
        with writing(self.file):
            write_state(self.file, state)
            with self.file.with_name("log.csv").open("a", newline="") as log:
                csv.writer(log).writerow(row)
        print(*row, sep=", ", file=sys.stderr, flush=True)


def _difference(old: Any, new: Any, name: str = "") -> str:
    """The first value in which two nested tables differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
        return _difference(old.get(key), new.get(key), key)
    return f"{name} is {old!r} there and {new!r} here"
