"""`dpmtrain pretrain`, `finetune`, `in-sampler`, `one-step`, `distil` and `latent`: a recipe is trained."""

import argparse
from pathlib import Path

from dpmrecon.cli import add_command
from dpmrecon.errors import BadInputError

from ..arguments import add_usual, at_least, checkpoint_path
from . import launch


def add_pretrain(commands) -> None:
    parser = add_command(
        commands,
        "pretrain",
        "Train a denoiser, or go on where the run stopped",
        "dpmtrain pretrain training/recipes/default.toml --data prepared --run runs/default --out model.safetensors",
    )
    _add_arguments(parser)
    parser.add_argument("--start", type=Path, help="model, or folder of a run, to go on from (default: random weights)")
    parser.set_defaults(run=_train, kind="pretrain")


def add_finetune(commands) -> None:
    parser = add_command(
        commands,
        "finetune",
        "Fine-tune all weights of a model for one contrast",
        "dpmtrain finetune training/recipes/finetune.toml --start model.safetensors --data prepared --run runs/flair "
        "--out flair.safetensors",
    )
    _add_arguments(parser)
    parser.add_argument(
        "--start",
        type=Path,
        required=True,
        help="model (.safetensors), or the folder of its run, whose optimizer goes on as well",
    )
    parser.set_defaults(run=_train, kind="finetune")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path)
    add_usual(parser, "data", "run")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write (.safetensors)")
    launch.add_arguments(parser)


def _train(args: argparse.Namespace) -> int:
    """All that can be found wrong before several processes begin is found here."""
    from ..data.dataset import read_manifest
    from .keeper import read_start
    from .pretrain import completed, run
    from .recipe import read_recipe

    recipe = read_recipe(args.recipe, args.kind)
    read_manifest(args.data)
    checkpoint_path(args.out, args.start)
    if args.start is not None:
        completed(recipe, read_start(args.start))
    return launch.launch(run, args)


def add_in_sampler(commands) -> None:
    parser = add_command(
        commands,
        "in-sampler",
        "Train a denoiser on inside the sampler, on the images that it is shown there",
        "dpmtrain in-sampler training/recipes/in_sampler.toml --start model.safetensors --minutes 120 --data prepared "
        "--run runs/in_sampler --out model.safetensors",
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--start", type=Path, help="denoiser to go on from (default: the one that ships)")
    _add_keep(parser, "of the weights of --start")
    _add_timed(parser, "threads")
    parser.set_defaults(run=_in_sampler)


def add_one_step(commands) -> None:
    parser = add_command(
        commands,
        "one-step",
        "Train the conditional denoiser of the kind one-step (teacher), its twin by regression, a refiner, or the two",
        "dpmtrain one-step training/recipes/one_step.toml teacher --minutes 300 --data prepared --run runs/one_step "
        "--out teacher.safetensors",
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("stage", choices=("teacher", "regression", "refiner", "together"))
    parser.add_argument(
        "--start", type=Path, help="denoiser of the same widths to begin with (default: random weights)"
    )
    parser.add_argument(
        "--refine", type=Path, help="model of the kind one-step to go on from, for a refiner or together"
    )
    _add_keep(parser, "together: of the weights of --refine")
    _add_timed(parser, "threads")
    parser.set_defaults(run=_one_step)


def add_distil(commands) -> None:
    parser = add_command(
        commands,
        "distil",
        "Distil a teacher of the kind one-step into students of fewer and fewer evaluations",
        "dpmtrain distil training/recipes/one_step.toml --start teacher.safetensors --minutes 60 --data prepared "
        "--run runs/distil --out student.safetensors",
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--start", type=Path, required=True, help="teacher (.safetensors)")
    parser.add_argument(
        "--evaluations", default="32,8,4,2,1", help="of each student, which divide those of the one before (first: 128)"
    )
    _add_timed(parser, "threads")
    parser.set_defaults(run=_distil)


def _add_keep(parser: argparse.ArgumentParser, of: str) -> None:
    parser.add_argument(
        "--keep", type=float, default=0.0, metavar="SHARE", help=f"{of}, the rest being those trained (default: 0)"
    )


def _add_timed(parser: argparse.ArgumentParser, *more: str) -> None:
    parser.add_argument("--minutes", type=float, required=True, help="of training; the rate falls to 0 at their end")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write (.safetensors)")
    add_usual(parser, "data", "run", "device", "workers", *more)


def _in_sampler(args: argparse.Namespace) -> int:
    from .in_sampler_runs import train_in_sampler

    at_least(args, workers=0)
    train_in_sampler(args)
    return 0


def _one_step(args: argparse.Namespace) -> int:
    from .one_step_runs import train_stage

    at_least(args, workers=0)
    train_stage(args)
    return 0


def _distil(args: argparse.Namespace) -> int:
    from .one_step_runs import distil

    at_least(args, workers=0)
    distil(args)
    return 0


def add_latent(commands) -> None:
    parser = add_command(
        commands,
        "latent",
        "Train a stage of a latent model for some minutes, or go on where the run stopped",
        "dpmtrain latent training/recipes/latent_autoencoder.toml --data prepared --run runs/autoencoder --minutes 60 "
        "--out autoencoder.safetensors",
    )
    parser.add_argument("recipe", type=Path, help="of a stage: autoencoder, then denoiser, then control")
    parser.add_argument("--start", type=Path, help="model of the stage before (autoencoder: default random weights)")
    _add_timed(parser)
    parser.set_defaults(run=_latent)


def _latent(args: argparse.Namespace) -> int:
    from dpmrecon.device import device_of

    from .latent import train_stage

    at_least(args, workers=0)
    if not args.minutes > 0:
        raise BadInputError(f"--minutes is {args.minutes:g}: give more than 0")
    checkpoint_path(args.out, args.start)
    train_stage(
        args.recipe, args.data, args.folder, args.out, args.start, args.minutes, device_of(args.device), args.workers
    )
    return 0
