"""The command line of the training package. The rooms' commands.py are light: work is imported when it is asked for."""

import argparse
import sys

from .arguments import exit_code
from .bench.commands import add_bench, add_bench_gpu
from .data.commands import add_prepare
from .evaluate.commands import add_calibrate, add_evaluate, add_sweep
from .kit.commands import add_kit
from .paper.commands import add_paper
from .robustness.commands import add_faults, add_gate, add_residuals
from .study.commands import add_study
from .train.commands import add_distil, add_finetune, add_in_sampler, add_latent, add_one_step, add_pretrain


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Exit code 2 on bad input, with one line and no traceback."""
    parser = argparse.ArgumentParser("dpmtrain", description="Train the diffusion priors that dpmrecon samples from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_prepare(commands)
    add_pretrain(commands)
    add_finetune(commands)
    add_in_sampler(commands)
    add_one_step(commands)
    add_distil(commands)
    add_latent(commands)
    add_paper(commands)
    add_evaluate(commands)
    add_sweep(commands)
    add_calibrate(commands)
    add_residuals(commands)
    add_faults(commands)
    add_gate(commands)
    add_kit(commands)
    add_study(commands)
    add_bench(commands)
    add_bench_gpu(commands)
    args = parser.parse_args(arguments)
    return exit_code(lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())
