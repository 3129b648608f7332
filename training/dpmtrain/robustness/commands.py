"""`dpmtrain residuals`, `faults`, `gate`: whether unsound scans are told from sound ones."""

import argparse
import random
from dataclasses import replace
from pathlib import Path

from dpmrecon.cli import add_command
from dpmrecon.errors import BadInputError

from ..arguments import add_usual, at_least, words, writable


def add_residuals(commands) -> None:
    parser = add_command(
        commands,
        "residuals",
        "Data residuals of simulated scans, sound ones and such as contradict themselves, for the gate's limits",
        "dpmtrain residuals --scans 200 --out residuals",
    )
    parser.add_argument("--scans", type=int, default=100, help="of every kind")
    parser.add_argument("--kinds", default="sound,few lines,wrap,ghost,centre,spike", help="which, with commas between")
    add_usual(parser, "out", "model", "seed", "device")
    parser.set_defaults(run=_residuals)


def _residuals(args: argparse.Namespace) -> int:
    from dpmrecon.device import device_of
    from dpmrecon.prior.checkpoint import load_checkpoint

    from .residuals import SCANS, residuals, write_residuals

    at_least(args, scans=1, seed=0)
    kinds = words("--kinds", args.kinds, tuple(SCANS))
    checkpoint = load_checkpoint(args.model, device_of(args.device))
    write_residuals(args.out, list(residuals(checkpoint, args.scans, kinds, args.seed)), checkpoint.model_id)
    return 0


def add_faults(commands) -> None:
    parser = add_command(
        commands,
        "faults",
        "Put one random fault into each of many random sound scans, and see which come out without a word",
        "dpmtrain faults --scans 200 --out faults",
    )
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="seed of the first scan, others follow")
    add_usual(parser, "out", "model")
    parser.set_defaults(run=_faults)


def _faults(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..evaluate.score_lines import ScoreLines
    from .fault_injection import injected, write_faults

    at_least(args, scans=1, first=0)
    rows = injected(range(args.first, args.first + args.scans), args.model, ScoreLines(args.out / "scores.jsonl"))
    write_faults(args.out, list(tqdm(rows, total=args.scans, unit="scan")))
    return 0


def add_gate(commands) -> None:
    parser = add_command(
        commands,
        "gate",
        "Set the gate's limits on sound scans, and see on others how well it tells unsound ones",
        "dpmtrain gate --images images --model model.safetensors --write --out gate",
    )
    parser.add_argument(
        "--of",
        choices=("slices", "folded", "volumes"),
        default="slices",
        help="scans; folded: slices of heads that fold, with --keep",
    )
    parser.add_argument(
        "--heads",
        type=int,
        default=18,
        help="sound slices of each subject, or volumes of each contrast of one, for limits",
    )
    parser.add_argument("--sound", type=int, default=110, help="sound scans that are judged")
    parser.add_argument("--each", type=int, default=10, help="scans of every other kind; 0 sets the limits alone")
    parser.add_argument("--out", type=Path, help="folder for the tables; gone on with if there")
    parser.add_argument("--keep", action="store_true", help="judge with the limits of the card, set none")
    parser.add_argument("--write", action="store_true", help="put the limits into the card of --model")
    add_usual(parser, "images", "model", "seed", "device")
    parser.set_defaults(run=_gate)


def _gate(args: argparse.Namespace) -> int:
    from functools import partial

    from dpmrecon.device import device_of
    from dpmrecon.prior.checkpoint import load_checkpoint, write_card
    from tqdm import tqdm

    from ..evaluate.score_lines import ScoreLines
    from .gate import KINDS, judge, limits_of, numbers_of, slice_row, slice_scans, volume_row, volume_scans, write_gate
    from .gate_cases import JUDGING, SETTING, SOUND, Head, heads

    at_least(args, heads=1, sound=1, each=0, seed=0)
    if args.write:
        writable(args.model)
    if args.each and args.out is None:
        raise BadInputError("the tables need a folder: give --out, or --each 0")
    checkpoint = load_checkpoint(args.model, device_of(args.device)).of_scan(volume=args.of == "volumes")
    card = checkpoint.card.get("gate", {})
    if args.of == "folded" and not args.keep:
        raise BadInputError("heads that fold are judged with the limits of slices: give --keep with --of folded")
    if args.keep and not (card.get("volumes") if args.of == "volumes" else card):
        raise BadInputError(f"the card of {checkpoint.model_id} has no limits to keep: leave --keep out")
    lines = None if args.out is None else ScoreLines(args.out / "scores.jsonl")
    if not args.keep:
        device = checkpoint.model.device
        if args.of == "volumes":
            scans = volume_scans(args.images, args.heads, args.seed, device)
        else:
            scans = slice_scans(list(heads(args.images, SETTING, args.heads, args.seed)), args.seed, device)
        found = numbers_of(checkpoint, scans, args.of, args.seed, lines)
        entry = limits_of(tqdm(found, total=len(scans), unit="scan"), args.of)
        gate = {**card, "volumes": entry} if args.of == "volumes" else {**card, **entry}
        checkpoint = replace(checkpoint, card={**checkpoint.card, "gate": gate})
        if args.write:
            write_card(args.model, gate=gate)
            print(f"written to the card of {args.model}: {entry['measured']}")
    if args.each and lines is not None:
        kinds = [SOUND] * args.sound
        kinds += [kind for kind in KINDS[args.of] if kind != SOUND for _ in range(args.each)]
        random.Random(args.seed).shuffle(kinds)
        others: list[Head] = []
        if args.of == "volumes":
            row = partial(volume_row, checkpoint, args.images, args.seed + 2)
        else:
            others = list(heads(args.images, JUDGING, args.heads, args.seed + 1))
            row = partial(slice_row, checkpoint, others, args.of)
        judged = tqdm(judge(checkpoint, kinds, row, args.seed, lines, len(others)), total=len(kinds), unit="scan")
        write_gate(args.out, list(judged), checkpoint.model_id, args.seed, args.of)
    return 0
