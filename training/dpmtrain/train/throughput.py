"""`dpmtrain throughput`: a recipe's images a second, and the share of waiting for data."""

import copy
import time
from pathlib import Path

import torch
from dpmrecon.device import synchronize
from dpmrecon.errors import BadInputError, DpmreconError
from dpmrecon.prior.denoiser import Denoiser

from ..data.dataset import read_manifest
from ..hardware import PeakMemory, device_name, network_work
from .batches import Batches, load
from .recipe import read_recipe
from .train import Trainer

WARM_UP = 2  # steps that are not counted


def throughput(
    recipe_file: Path, data: Path | None, steps: int, workers: int, device_type: str | None, threads: int | None
) -> None:
    """Print the network's size; with `data`, images a second without and with loaders."""
    if device_type == "cuda" and not torch.cuda.is_available():
        raise BadInputError("--device is cuda, and this machine has no GPU that torch can use: leave it out")
    recipe = copy.deepcopy(read_recipe(recipe_file))
    settings = recipe["train"]
    settings["crops"] = settings["crops"][-1:]
    side = settings["crops"][0]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Denoiser(recipe["model"]).parameters())
    work, _ = network_work(recipe["model"], (side, side))
    print(
        f"{recipe_file.name}: {parameters / 1e6:.1f} M parameters, {work / 1e9:.1f} GFLOP forward for an image of "
        f"{side}x{side}",
        flush=True,
    )
    if data is None:
        return
    read_manifest(data)
    if threads:
        torch.set_num_threads(threads)
    trainer = Trainer(recipe, device=device_type)
    device = trainer.accelerator.device
    how = f"batch {settings['batch']}, {settings['optimizer']}, {settings['precision']}"
    print(f"training: {how}, on {device_name(device)}")
    print(f"{'workers':>8}{'images/s':>10}{'waiting':>9}{'s/step':>8}{'peak memory':>13}")
    for count in sorted({0, workers}):
        memory = PeakMemory(device)
        seconds, waited = measure(trainer, data, count, steps)
        peak = memory.read()
        rate = steps * settings["batch"] / seconds
        print(
            f"{count:8d}{rate:10.2f}{waited / seconds:9.1%}{seconds / steps:8.3f}"
            + ("" if peak is None else f"{peak / 2**20:10.0f} MB"),
            flush=True,
        )


def measure(trainer, data: Path, workers: int, steps: int) -> tuple[float, float]:
    """Seconds of `steps` steps of training, and those of them spent waiting for data."""
    device = trainer.accelerator.device
    batches = Batches(data, trainer.settings, list(trainer.model.labels), None)
    loader = iter(load(batches, range(WARM_UP + steps), workers, device))
    waited, started = 0.0, time.perf_counter()
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            synchronize(device)
            waited, started = 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(loader)
        waited += time.perf_counter() - asked
        if isinstance(batch, DpmreconError):
            raise batch
        trainer.step(step, batch.to(device))
    synchronize(device)
    return time.perf_counter() - started, waited
