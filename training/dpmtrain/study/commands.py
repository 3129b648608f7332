"""`dpmtrain study`: blinded sets, how many subjects are needed, and the statistics."""

import argparse
from pathlib import Path

from dpmrecon.cli import add_command

from ..arguments import at_least


def add_study(commands) -> None:
    parser = add_command(
        commands,
        "study",
        "A blinded reader study: make the sets, compute its power, analyse the scores",
        "dpmtrain study make --help",
    )
    kinds = parser.add_subparsers(required=True, metavar="WHAT")
    _add_make(kinds)
    _add_page(kinds)
    _add_power(kinds)
    _add_analyse(kinds)


def _add_make(commands) -> None:
    parser = add_command(
        commands,
        "make",
        "Blinded, randomised sets from two folders SUBJECT/CONTRAST/ with a DICOM series in each, and a sealed key",
        "dpmtrain study make --standard clinic/ --accelerated results/ --out study/ --key key.json --seed 'a phrase'",
    )
    parser.add_argument("--standard", type=Path, required=True, help="standard of care: SUBJECT/CONTRAST/ folders")
    parser.add_argument("--accelerated", type=Path, required=True, help="the same of the accelerated arm")
    parser.add_argument("--out", type=Path, required=True, help="new folder, which readers get")
    parser.add_argument("--key", type=Path, required=True, help="new file that tells the arms, outside of --out")
    parser.add_argument("--seed", required=True, help="of the order and numbers; it is kept in the key")
    parser.add_argument("--readers", type=int, default=2, help="each gets an order of their own (default: 2)")
    parser.add_argument("--repeats", type=int, default=0, help="sets shown twice, for agreement within readers")
    _add_assumptions(parser)
    parser.set_defaults(run=_make)


def _add_page(commands) -> None:
    parser = add_command(
        commands,
        "page",
        "The page that readers open in a browser without a network, in the folder that `study make` wrote",
        "dpmtrain study page study/",
    )
    parser.add_argument("study", type=Path, help="folder that `study make` wrote")
    parser.add_argument(
        "--viewer", type=Path, help="package of the viewer as `npm pack` makes it (default: npm fetches it)"
    )
    parser.set_defaults(run=_page)


def _add_power(commands) -> None:
    parser = add_command(
        commands,
        "power",
        "How many subjects non-inferiority needs",
        "dpmtrain study power --margin .5 --deviation .7 --subjects 20",
    )
    parser.add_argument("--subjects", type=int, help="also tell what these can show")
    _add_assumptions(parser)
    parser.set_defaults(run=_power)


def _add_assumptions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--margin", type=float, default=0.5, help="points worse that are not worse (default: 0.5)")
    parser.add_argument(
        "--deviation",
        type=float,
        default=0.7,
        help="standard deviation of a subject's difference, averaged over readers, as it is assumed (default: 0.7)",
    )
    parser.add_argument("--expected", type=float, default=0.0, help="true mean difference that is assumed (default: 0)")


def _add_analyse(commands) -> None:
    parser = add_command(
        commands,
        "analyse",
        "Means, paired tests, non-inferiority and agreement from the page's exports and the key: HTML and CSV",
        "dpmtrain study analyse scores/*.json --key key.json --out report/",
    )
    parser.add_argument(
        "scores", type=Path, nargs="+", help="exports of the reading page, JSON or CSV, or their folder"
    )
    parser.add_argument("--key", type=Path, required=True, help="the key that `study make` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--margin", type=float, help="another one than the key's; the report says so")
    parser.set_defaults(run=_analyse)


def _make(args: argparse.Namespace) -> int:
    from .make import make

    at_least(args, readers=1, repeats=0)
    make(args)
    return 0


def _page(args: argparse.Namespace) -> int:
    from .page import page

    page(args.study, args.viewer)
    return 0


def _power(args: argparse.Namespace) -> int:
    from .power import told
    from .questions import QUESTIONS

    at_least(args, subjects=2)
    print("\n".join(told(args.subjects, args.margin, args.deviation, args.expected, len(QUESTIONS))))
    return 0


def _analyse(args: argparse.Namespace) -> int:
    from .analyse import analyse

    analyse(args.scores, args.key, args.out, args.margin)
    return 0
