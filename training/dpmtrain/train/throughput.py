"""`dpmtrain throughput`: images a second of a recipe, and the share of the time that waits for data."""

import argparse
import copy
import time
from pathlib import Path

from dpmrecon.cli import add_command
from dpmrecon.errors import BadInputError, DpmreconError

WARM_UP = 2  # steps that are not counted


def add_throughput(commands) -> None:
    parser = add_command(
        commands,
        "throughput",
        "Images a second and share of the time waiting for data, without and with loader processes",
        "dpmtrain throughput training/recipes/default.toml --data prepared --steps 20 --workers 2",
    )
    parser.add_argument("recipe", type=Path, help="of `pretrain`")
    parser.add_argument("--data", type=Path, help="folder that `prepare` wrote; without it only the size is printed")
    parser.add_argument("--steps", type=int, default=20, help="counted ones, on the recipe's last crop (default: 20)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of the second row (default: 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    import torch
    from dpmrecon.prior.denoiser import Denoiser

    from ..data.dataset import read_manifest
    from ..hardware import PeakMemory, device_name, network_work
    from .recipe import read_recipe
    from .train import Trainer

    for name, smallest in (("steps", 1), ("workers", 0)):
        if getattr(args, name) < smallest:
            raise BadInputError(f"--{name} is {getattr(args, name)}: give {smallest} or more")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise BadInputError("--device is cuda, and this machine has no GPU that torch can use: leave it out")
    recipe = copy.deepcopy(read_recipe(args.recipe))
    settings = recipe["train"]
    settings["crops"] = settings["crops"][-1:]
    side = settings["crops"][0]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Denoiser(recipe["model"]).parameters())
    work, _ = network_work(recipe["model"], (side, side))
    print(
        f"{args.recipe.name}: {parameters / 1e6:.1f} M parameters, {work / 1e9:.1f} GFLOP forward for an image of "
        f"{side}x{side}",
        flush=True,
    )
    if args.data is None:
        return 0
    read_manifest(args.data)
    if args.threads:
        torch.set_num_threads(args.threads)
    trainer = Trainer(recipe, device=args.device)
    device = trainer.accelerator.device
    how = f"batch {settings['batch']}, {settings['optimizer']}, {settings['precision']}"
    print(f"training: {how}, on {device_name(device)}")
    print(f"{'workers':>8}{'images/s':>10}{'waiting':>9}{'s/step':>8}{'peak memory':>13}")
    for workers in sorted({0, args.workers}):
        memory = PeakMemory(device)
        seconds, waited = measure(trainer, args.data, workers, args.steps)
        peak = memory.read()
        rate = args.steps * settings["batch"] / seconds
        print(
            f"{workers:8d}{rate:10.2f}{waited / seconds:9.1%}{seconds / args.steps:8.3f}"
            + ("" if peak is None else f"{peak / 2**20:10.0f} MB"),
            flush=True,
        )
    return 0


def measure(trainer, data: Path, workers: int, steps: int) -> tuple[float, float]:
    """Seconds of `steps` steps of training, and those of them spent waiting for data."""
    from dpmrecon.prior.denoiser import synchronize

    from .batches import Batches, load

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
