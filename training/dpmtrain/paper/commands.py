"""`dpmtrain paper`: the source paper's experiments in kind."""

import argparse

from dpmrecon.cli import add_command

from ..arguments import add_usual


def add_paper(commands) -> None:
    parser = add_command(
        commands,
        "paper",
        "The source paper's experiments in kind: train every arm, choose, test; hours, resumable",
        "dpmtrain paper --data prepared --images images --run runs/paper --out training/reports/paper",
    )
    add_usual(parser, "images", "data", "run", "out", "threads")
    parser.set_defaults(run=_paper)


def _paper(args: argparse.Namespace) -> int:
    from .paper import paper

    paper(args.data, args.images, args.folder, args.out, args.threads)
    return 0
