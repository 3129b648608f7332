"""`dpmtrain paper`: the source paper's experiments in kind."""

import argparse
from pathlib import Path

from dpmrecon.cli import add_command


def add_paper(commands) -> None:
    parser = add_command(
        commands,
        "paper",
        "The source paper's experiments in kind: train every arm, choose, test; hours, resumable",
        "dpmtrain paper --data prepared --images images --run runs/paper --out training/reports/paper",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that `prepare` wrote")
    parser.add_argument("--images", type=Path, required=True, help="folder with open_ms/ and synthseg_labels/")
    parser.add_argument("--run", type=Path, required=True, dest="folder", help="arms and scores; gone on with if there")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the figures")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all)")
    parser.set_defaults(run=_paper)


def _paper(args: argparse.Namespace) -> int:
    from .paper import paper

    paper(args.data, args.images, args.folder, args.out, args.threads)
    return 0
