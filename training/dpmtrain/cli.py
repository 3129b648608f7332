"""The command line of the training package: prepare, pretrain, sweep, bench."""

import argparse
import json
import sys
from pathlib import Path

from dpmrecon.cli import add_command
from dpmrecon.errors import BadInputError, DpmreconError

from .evaluate import add_evaluate
from .paper import add_paper
from .prepare import add_prepare
from .pretrain import add_finetune, add_pretrain
from .throughput import add_throughput


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Exit code 2 on bad input, with one line and no traceback."""
    parser = argparse.ArgumentParser("dpmtrain", description="Train the diffusion priors that dpmrecon samples from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_prepare(commands)
    add_pretrain(commands)
    add_finetune(commands)
    add_throughput(commands)
    add_paper(commands)
    add_evaluate(commands)
    _add_sweep(commands)
    _add_bench(commands)
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except DpmreconError as error:
        print(f"dpmtrain: {error}", file=sys.stderr)
        return 2


def _add_sweep(commands) -> None:
    parser = add_command(
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


def _add_bench(commands) -> None:
    parser = add_command(
        commands,
        "bench",
        "Every method on one scan with known truth: NRMSE and seconds, with BART and deepinv where they are installed",
        "dpmtrain bench scan.h5 --truth scan_truth.npy --slices 1 --zeta 1,2,3",
    )
    parser.add_argument("scan", type=Path, help="ISMRMRD file with raw acquisitions")
    parser.add_argument("--truth", type=Path, required=True, help=".npy (slices, rows, cols) to score against")
    parser.add_argument("--mask", type=Path, help=".npy, where to score")
    parser.add_argument("--model", type=Path, help="checkpoint (default: the one that ships)")
    parser.add_argument("--contrast", help="flair, t1, t2, dwi or swi (default: from the scan's protocol name)")
    parser.add_argument("--slices", type=int, metavar="N", help="only the first N slices (default: all)")
    parser.add_argument("--zeta", default="0.5,1,2,3", metavar="Z1,Z2", help="step sizes of dps to try")
    parser.add_argument(
        "--deepinv-weight", default="300,1000,3000", metavar="W1,W2", help="weights of deepinv's own DPS to try"
    )
    parser.add_argument("--steps", type=int, default=300, help="evaluations of the network in DPS, ours and deepinv's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.set_defaults(run=_bench)


def _bench(args: argparse.Namespace) -> int:
    from dpmrecon.checkpoint import load_checkpoint

    from .bench import BenchSettings, bench

    for name in ("slices", "steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise BadInputError(f"--{name} is {getattr(args, name)}: give 1 or more")
    checkpoint = load_checkpoint(args.model)
    if args.contrast is not None and args.contrast not in checkpoint.denoiser.labels:
        valid = ", ".join(checkpoint.denoiser.labels)
        raise BadInputError(f"contrast '{args.contrast}' is unknown to the model: valid ones are {valid}")
    settings = BenchSettings(
        zetas=_numbers("--zeta", args.zeta),
        deepinv_weights=_numbers("--deepinv-weight", args.deepinv_weight),
        dps_steps=args.steps,
        seed=args.seed,
    )
    report = bench(args.scan, args.truth, args.mask, checkpoint, args.contrast, settings, args.slices)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """Positive numbers separated by commas."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) <= 0:
        raise BadInputError(f"{option} {text} cannot be read: write positive numbers with commas between them")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
