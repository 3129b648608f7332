"""The command line of the training package: one module for each command."""

import argparse
import sys

from dpmrecon.errors import DpmreconError

from .bench.bench import add_bench
from .bench.gpu import add_bench_gpu
from .data.prepare import add_prepare
from .evaluate.calibrate import add_calibrate
from .evaluate.commands import add_evaluate
from .evaluate.sweep_command import add_sweep
from .kit.kit import add_kit
from .study.paper import add_paper
from .train.pretrain import add_finetune, add_pretrain
from .train.throughput import add_throughput


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
    add_sweep(commands)
    add_calibrate(commands)
    add_kit(commands)
    add_bench(commands)
    add_bench_gpu(commands)
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except DpmreconError as error:
        print(f"dpmtrain: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
