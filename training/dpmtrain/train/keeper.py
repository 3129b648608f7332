"""What a run leaves in its folder (state, log, sample sheets), and what a new run can begin with."""

import csv
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dpmrecon.errors import BadInputError, first_line
from dpmrecon.files import replacing
from dpmrecon.physics.scale import RULE
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.prior.denoiser import Denoiser

from ..files import writing
from .batches import Batches
from .recipe import learning_rate
from .sheet import write_sheet

MAY_DIFFER = ("steps", "save_every", "sheet_every")  # between a state and the recipe it goes on with
LOG_COLUMNS = ("step", "images", "loss", "rate", "images_per_second", "waiting")


@dataclass(frozen=True)
class Start:
    """What a run begins with instead of random weights.

    config: of the model; weights, ema: its state dicts; optimizers: their states, or None where only weights exist;
    made_with: name of those optimizers; sampling: the sampler's defaults; history: of the card, or None; gate: its
    limits, of these weights, or None; data: what its card says of those, or None.
    """

    model_id: str
    checksum: str
    config: dict
    weights: dict
    ema: dict
    optimizers: list[dict] | None
    made_with: str | None
    sampling: dict
    history: dict | str | None
    gate: dict | None = None
    data: dict | None = None

    def optimizers_for(self, name: str) -> list[dict] | None:
        """The states to go on with, where they are of these optimizers."""
        return self.optimizers if self.made_with == name else None


def read_start(path: Path | None, *, volume: bool = False) -> Start:
    """A model (.safetensors with its card; None: the one that ships), or the folder of a run, which has the optimizers'
    state as well. volume: that of 3D scans, where a model has another for those.

    Raises CheckpointError and BadInputError where it is damaged or follows another scale rule.
    """
    if path is None or not path.is_dir():
        checkpoint = load_checkpoint(path).of_scan(volume=volume)
        weights, card = checkpoint.denoiser.state_dict(), checkpoint.card
        return Start(
            checkpoint.model_id, card["checksum_sha256"], checkpoint.denoiser.config, weights, weights, None, None,
            card.get("sampling", {}), card.get("history"), card.get("gate"), card.get("data"),
        )  # fmt: skip
    file = path / "state.pt"
    if not file.is_file():
        raise BadInputError(f"{path} has no state.pt: give a model (.safetensors) or the folder of a run")
    state, digest = read_state(file), hashlib.sha256(file.read_bytes()).hexdigest()
    recipe = state["recipe"]
    history = {
        "images": state["step"] * recipe["train"]["batch"], "note": recipe.get("history"),
        "start_checksum_sha256": state["start"],
    }  # fmt: skip
    return Start(
        f"run {path.resolve().name}, step {state['step']}", digest, recipe["model"], state["model"], state["ema"],
        state["optimizers"], recipe["train"]["optimizer"], recipe.get("sampling", {}), history,
    )  # fmt: skip


class Keeper:
    """What a run leaves in its folder. Only one process writes."""

    def __init__(self, run: Path, recipe: dict, start: str | None, data: str, writes: bool):
        """start: checksum of what the run began with; data: digest of the volumes that it is trained on."""
        self.run, self.recipe, self.start, self.data, self.writes = run, recipe, start, data, writes
        self.file = run / "state.pt"
        self.plans: list[list[int]] = []
        self.losses: list[float] = []
        self.waited = 0.0
        self.since = time.perf_counter()
        self.board: Any = None

    def go_on(self) -> tuple[int, dict | None]:
        """The first step to do, and the state, if any, to go on with."""
        steps, first, state = self.recipe["train"]["steps"], 0, None
        if self.file.exists():
            state = read_state(self.file)
            self._compare(state)
            first, self.plans = state["step"], state["plans"]
            if first > steps:
                raise BadInputError(
                    f"the state in {self.run} is of step {first} and the recipe has {steps} steps: give another --run"
                )
        if not self.plans or self.plans[-1][1] != steps:
            # rate and crops follow the number of steps: the card tells changes
            self.plans = [*self.plans, [first, steps]]
        if self.writes:
            with writing(self.file):
                self._begin_log(first)
        self.since = time.perf_counter()
        return first, state

    def _compare(self, state: dict) -> None:
        pairs = [
            (key, state["recipe"].get(table, {}).get(key), value)
            for table in ("model", "train", "target")
            for key, value in self.recipe.get(table, {}).items()
            if key not in MAY_DIFFER
        ]
        pairs.append(("the start's checksum", state["start"], self.start))
        pairs.append(("the scale rule", state["scale_rule"], RULE))
        for name, old, new in pairs:
            if old != new:
                raise BadInputError(
                    f"the state in {self.run} is of another recipe: {name} is {old!r} there and {new!r} here; take "
                    "that recipe, or another --run"
                )
        if state.get("data", self.data) != self.data:  # states of earlier versions do not say
            raise BadInputError(
                f"the state in {self.run} is of other volumes than --data has now, which the card would name: take "
                "those, or another --run"
            )

    def _begin_log(self, first: int) -> None:
        """Rows of steps that are to be repeated go away."""
        log, rows = self.run / "log.csv", []
        if first and log.exists():
            with log.open(newline="") as file:
                rows = [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= first]
        with replacing(log) as part, part.open("w", newline="") as file:
            csv.writer(file).writerows([LOG_COLUMNS, *rows])
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return  # log.csv has the same figures
        self.board = SummaryWriter(self.run / "tensorboard", purge_step=first)

    def note(self, loss: float, waited: float) -> None:
        self.losses.append(loss)
        self.waited += waited

    def save(self, weights: dict, step: int) -> None:
        """State, and a row of the log for the steps since the last one. weights: `model`, `ema` and `optimizers`."""
        settings, count = self.recipe["train"], len(self.losses)
        seconds = time.perf_counter() - self.since
        figures = {
            "step": step + 1,
            "images": (step + 1) * settings["batch"],
            "loss": sum(self.losses) / count,
            "rate": learning_rate(step, settings),
            "images_per_second": round(count * settings["batch"] / seconds, 2),
            "waiting": round(self.waited / seconds, 4),
        }
        if self.writes:
            state = {
                "recipe": self.recipe, "scale_rule": RULE, "start": self.start, "data": self.data,
                "plans": self.plans, "step": step + 1,
                **weights,
            }  # fmt: skip
            with writing(self.file):
                write_state(self.file, state)
                self._log(figures)
        self.losses, self.waited, self.since = [], 0.0, time.perf_counter()

    def _log(self, figures: dict) -> None:
        with (self.run / "log.csv").open("a", newline="") as file:
            csv.writer(file).writerow(figures.values())
        if self.board is not None:
            for name in LOG_COLUMNS[2:]:
                self.board.add_scalar(name, figures[name], figures["step"])
            self.board.flush()

    def sheet(self, ema: Denoiser, batches: Batches, step: int) -> None:
        path = self.run / "sheets" / f"step{step + 1:07d}.png"
        with writing(path):
            write_sheet(path, ema, batches, step)
        self.since = time.perf_counter()


def write_state(path: Path, state: dict) -> None:
    """Whole or not at all: the old file stays until the new one is on the disk. Raises OSError."""
    try:
        with replacing(path) as part, part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        # torch's writer turns what the disk says into a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        raise cause if isinstance(cause, OSError) else OSError(first_line(error)) from error


def read_state(path: Path) -> dict:
    """Raises BadInputError where the file is truncated or no state of a run."""
    state = read_tensors(path, {"recipe", "scale_rule", "start", "plans", "step", "model", "ema", "optimizers"})
    if state["scale_rule"] != RULE:
        raise BadInputError(f"state {path} was trained with scale rule '{state['scale_rule']}', this is '{RULE}'")
    return state


def read_tensors(path: Path, keys: set[str]) -> dict:
    """What `write_state` wrote. Raises BadInputError where the file is truncated or lacks a key."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = keys - set(state)
    except Exception as error:  # whatever a damaged archive makes of itself
        raise BadInputError(
            f"state {path} cannot be read ({first_line(error)}): it is damaged; put a copy in its place, or remove it "
            "to begin anew"
        ) from error
    if missing:
        raise BadInputError(f"state {path} has no {', '.join(sorted(missing))}: it is no state of this version")
    return state
