"""The command line of the training package: prepare, pretrain, sweep."""

import argparse
import json
import sys
from pathlib import Path

from dpmrecon.errors import BadInputError, DpmreconError

from .validation import HELD_OUT


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Exit code 2 on bad input, with one line and no traceback."""
    parser = argparse.ArgumentParser("dpmtrain", description="Train the diffusion priors that dpmrecon samples from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_prepare(commands)
    _add_pretrain(commands)
    _add_sweep(commands)
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except DpmreconError as error:
        print(f"dpmtrain: {error}", file=sys.stderr)
        return 2


def _command(commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_prepare(commands) -> None:
    parser = _command(
        commands,
        "prepare",
        "Images and label maps to prepared slices",
        "dpmtrain prepare images --out prepared",
    )
    parser.add_argument("images", type=Path, help="folder with open_ms/, flair_1mm/ and synthseg_labels/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--exclude", nargs="*", default=list(HELD_OUT), help="patients and label maps to leave out")
    parser.add_argument("--slices", type=int, default=14, help="slices per simulated volume")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=_prepare)


def _prepare(args: argparse.Namespace) -> int:
    from .prepare import prepare

    if not (args.images / "open_ms").is_dir():
        raise BadInputError(f"{args.images} has no folder open_ms: give the folder that holds the image sets")
    prepare(args.images, args.out, args.exclude, args.slices, args.seed)
    return 0


def _add_pretrain(commands) -> None:
    parser = _command(
        commands,
        "pretrain",
        "Train a denoiser from scratch, or go on where the run stopped",
        "dpmtrain pretrain training/recipes/default.toml --data prepared --run runs/default --out model.safetensors",
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder that `prepare` wrote")
    parser.add_argument("--run", type=Path, required=True, dest="folder", help="state and log; resumed when it exists")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write (.safetensors)")
    parser.add_argument("--threads", type=int, default=2)
    parser.set_defaults(run=_pretrain)


def _pretrain(args: argparse.Namespace) -> int:
    from dpmrecon.checkpoint import save_checkpoint

    from .train import read_recipe, train

    recipe = read_recipe(args.recipe)
    manifest_file = args.data / "manifest.json"
    if not manifest_file.is_file():
        raise BadInputError(f"{args.data} has no manifest.json: run `dpmtrain prepare` first")
    manifest = json.loads(manifest_file.read_text())
    denoiser = train(recipe, args.data, args.folder, args.threads)
    card = {
        "recipe": recipe["train"],
        "sampling": recipe["sampling"],
        "data": {
            "sources": sorted({volume["source"] for volume in manifest["volumes"]}),
            "subjects": sorted({volume["subject"] for volume in manifest["volumes"]}),
            "excluded": manifest["exclude"],
            "slices": sum(volume["shape"][0] for volume in manifest["volumes"]),
        },
    }
    save_checkpoint(args.out, denoiser, card)
    return 0


def _add_sweep(commands) -> None:
    parser = _command(
        commands,
        "sweep",
        "Compare sampler settings on the validation scans (patient09 and a held-out label map)",
        "dpmtrain sweep --images images --grid steps=10,20 sigma_max=1,5",
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="checkpoint (default: the one that ships)")
    parser.add_argument("--sampler", choices=("prox", "dps"), default="prox")
    parser.add_argument("--grid", nargs="+", required=True, metavar="KEY=V1,V2", help="settings to combine")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--R", type=int, default=4, dest="acceleration")
    parser.set_defaults(run=_sweep)


def _sweep(args: argparse.Namespace) -> int:
    from dpmrecon.checkpoint import load_checkpoint

    from .sweep import sweep

    try:
        pairs = [entry.split("=") for entry in args.grid]
        grid = {key: [json.loads(value) for value in values.split(",")] for key, values in pairs}
    except ValueError as error:
        raise BadInputError(f"--grid {' '.join(args.grid)} cannot be read: write KEY=V1,V2 ...") from error
    rows = sweep(load_checkpoint(args.model), args.images, args.sampler, grid, args.samples, args.acceleration)
    print("best:", rows[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
