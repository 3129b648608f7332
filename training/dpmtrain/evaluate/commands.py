"""`dpmtrain evaluate`, `sweep`, `calibrate`, `residuals`, `gate`, `faults`: what a model is worth, what serves it."""

import argparse
import random
from dataclasses import replace
from pathlib import Path

from dpmrecon.cli import add_command
from dpmrecon.contrasts import CONTRAST_LABELS
from dpmrecon.errors import BadInputError

from ..arguments import add_usual, at_least, numbers, read_grid, words
from .plan import CONVENTIONAL

# What each grid runs: the sampler, and the settings that it combines
GRIDS: dict[str, tuple[str, dict[str, list]]] = {
    "steps": ("prox", {"steps": [10, 20, 50], "noise_factor": [0.5, 0.7, 1.0]}),
    "zeta": ("dps", {"zeta": [0.35, 0.5, 0.7, 1.0, 1.4]}),
    "latent": ("latent", {"first": [200, 400, 1000], "p": [100, 200], "guidance": [0.0, 0.1]}),
    "models": ("prox", {}),
}


def add_evaluate(commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        "Score models and conventional methods on slices and volumes with a reference: a table, plots, intervals",
        "dpmtrain evaluate full_scan.h5 --images images --subjects patient12 --R 3,4,6,8 --sampling regular,poisson "
        "--acs 24,0 --out results",
    )
    parser.add_argument("scans", type=Path, nargs="*", help="ISMRMRD scans, fully sampled or of R about 2")
    parser.add_argument(
        "--truth", nargs="+", metavar="FILE", help=".npy (slices or partitions, rows, cols) of each scan, - for none"
    )
    parser.add_argument("--mask", nargs="+", metavar="FILE", help=".npy of each scan, where to score, - for everywhere")
    parser.add_argument("--contrast", help="of the scans (default: from their protocol names)")
    parser.add_argument(
        "--images", type=Path, required=True, help="folder with open_ms/ and synthseg_labels/; weights are tuned there"
    )
    parser.add_argument(
        "--subjects", nargs="*", default=[], metavar="NAME", help="patients of open_ms or label maps to simulate from"
    )
    parser.add_argument("--slices", type=int, default=2, help="of each volume of a subject")
    parser.add_argument("--R", default="4,8", help="accelerations, with commas between them")
    parser.add_argument(
        "--sampling",
        default="regular,poisson",
        help="regular (1D; 2D of volumes), random, gaussian (1D), poisson, gaussian 2D (2D)",
    )
    parser.add_argument("--acs", default="24", help="calibration lines; 0: none, coil maps from the full data")
    parser.add_argument("--scan-R", default="1", dest="scan_R", help="2: undersample a simulated R=2 scan further")
    parser.add_argument("--conventional", default=",".join(CONVENTIONAL), help="methods to compare with")
    parser.add_argument("--model", type=Path, nargs="+", help="checkpoints (default: the one that ships)")
    parser.add_argument(
        "--sampler", default="prox", help="some of prox, dps, one-step and uncertainty (prox in that mode)"
    )
    parser.add_argument("--samples", type=int, help="samples of each image (default: the model's own)")
    add_usual(parser, "out", "seed", "device")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from dpmrecon.device import device_of
    from dpmrecon.prior.checkpoint import load_checkpoint

    from .evaluation import evaluate
    from .plan import Plan
    from .references import ReferenceSlice, measured_slices, scan_names
    from .undersampling import MASKS
    from .validation import subject_slices, validation_scan
    from .validation_volumes import full_volume

    plan = Plan(
        numbers("--R", args.R, 2),
        words("--sampling", args.sampling, MASKS),
        numbers("--acs", args.acs, 0),
        numbers("--scan-R", args.scan_R, 1),
        words("--conventional", args.conventional, CONVENTIONAL),
        words("--sampler", args.sampler, ("prox", "dps", "one-step", "uncertainty")),
        args.samples,
        args.seed,
    )
    device = device_of(args.device)
    checkpoints = [load_checkpoint(path, device) for path in args.model or [None]]
    slices: list[ReferenceSlice] = []
    files = zip(args.scans, _of_each(args, "truth"), _of_each(args, "mask"))
    for name, (path, truth, mask) in zip(scan_names(args.scans), files):
        slices += [replace(full, scan=name) for full in measured_slices(path, truth, mask, args.contrast)]
    for subject in args.subjects:
        slices += subject_slices(args.images, subject, args.slices)
    if not slices:
        raise BadInputError("there is nothing to evaluate: name scans, or --subjects such as patient12")
    volumes = any(full.is_volume for full in slices)

    def tuning(contrast: str) -> list[ReferenceSlice]:
        found = validation_scan(args.images, contrast)
        return [*found, full_volume(args.images, contrast)] if volumes else found

    evaluate(slices, tuning, checkpoints, plan, args.out, device)
    return 0


def _of_each(args: argparse.Namespace, name: str) -> list[Path | None]:
    given = getattr(args, name) or ["-"] * len(args.scans)
    if len(given) != len(args.scans):
        raise BadInputError(
            f"--{name} names {len(given)} files for {len(args.scans)} scans: give one of each, - for none"
        )
    return [None if text == "-" else Path(text) for text in given]


def add_sweep(commands) -> None:
    parser = add_command(
        commands,
        "sweep",
        "Choose settings, or a checkpoint of a fine-tuning, on validation data (patient09 and a held-out label map): "
        "steps (of prox x R), zeta (of dps x R), latent (of latent x R) or models (length x rate of fine-tuning)",
        "dpmtrain sweep steps --images images --R 4,8 --grid steps=10,20 noise_factor=0.5,0.7,1 --out sweep "
        "--model site.safetensors --write",
    )
    parser.add_argument("name", choices=tuple(GRIDS), metavar="steps|zeta|latent|models")
    parser.add_argument("--model", type=Path, nargs="+", help="checkpoint, or those of `models` (default: the shipped)")
    parser.add_argument("--R", default="4,8", help="accelerations, with commas between them")
    parser.add_argument("--contrasts", default="flair,t1,t2,dwi,swi", help="labels, with commas between them")
    parser.add_argument("--slices", type=int, default=2, help="validation slices of each contrast, 3 at most")
    parser.add_argument("--grid", nargs="+", metavar="KEY=V1,V2", help="settings to combine instead of the usual ones")
    parser.add_argument("--samples", type=int, default=1, help="samples of each image")
    parser.add_argument("--write", action="store_true", help="write what was chosen into the card of --model")
    add_usual(parser, "images", "out", "seed", "device")
    parser.set_defaults(run=_sweep)


def _sweep(args: argparse.Namespace) -> int:
    from dpmrecon.device import device_of
    from dpmrecon.prior.checkpoint import default_path, load_checkpoint

    from ..data.labelmaps import SEQUENCES
    from .sweep import Plan, sweep
    from .validation import validation_scan

    at_least(args, slices=1, samples=1)
    if args.write and args.model is None:
        raise BadInputError("--write needs --model: name a copy of the shipped model")
    paths = args.model or [default_path()]
    if args.name == "models" and len(paths) < 2:
        raise BadInputError("the grid `models` compares checkpoints: name at least two as --model")
    if args.name != "models" and len(paths) > 1:
        raise BadInputError(f"the grid `{args.name}` is for one checkpoint: name one as --model")
    sampler, grid = GRIDS[args.name]
    plan = Plan(
        sampler=sampler,
        grid=read_grid(args.grid) if args.grid else grid,
        accelerations=numbers("--R", args.R, 2),
        samples=args.samples,
        seed=args.seed,
    )
    device = device_of(args.device)
    contrasts = words("--contrasts", args.contrasts, sorted({s.contrast for s in SEQUENCES.values()}))
    slices = [full for name in contrasts for full in validation_scan(args.images, name)[: args.slices]]
    checkpoints = {path: load_checkpoint(path, device) for path in paths}
    sweep(slices, checkpoints, plan, args.out, device, write=args.write)
    return 0


def add_calibrate(commands) -> None:
    parser = add_command(
        commands,
        "calibrate",
        "Settings with which the spread of the samples tells their error (V/B near 1), on the validation scans",
        "dpmtrain calibrate --images images --grid prior_std=0.07,0.1 steps=50,100",
    )
    parser.add_argument("--grid", nargs="*", default=[], metavar="KEY=V1,V2", help="settings to combine")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--R", type=int, default=4)
    parser.add_argument("--contrasts", default="flair,t1,t2", help="of the validation scans, with commas")
    parser.add_argument("--slices", type=int, default=3, help="of each scan")
    parser.add_argument(
        "--write", action="store_true", help="put the best into the card of --model, of one contrast for its R"
    )
    add_usual(parser, "images", "model")
    parser.set_defaults(run=_calibrate)


def _calibrate(args: argparse.Namespace) -> int:
    from dpmrecon.prior.checkpoint import load_checkpoint, write_card

    from .calibrate import calibrate, with_chosen
    from .validation import validation_scan

    at_least(args, samples=2, slices=1, R=2)
    if args.write and args.model is None:
        raise BadInputError("--write needs --model: name a copy of the shipped model")
    grid = read_grid(args.grid)
    names = words("--contrasts", args.contrasts, CONTRAST_LABELS)
    slices = [found for name in names for found in validation_scan(args.images, name)[: args.slices]]
    checkpoint = load_checkpoint(args.model)
    chosen = calibrate(checkpoint, slices, grid, args.samples, args.R)
    if args.write:
        sampling = checkpoint.card.get("sampling", {})
        alone = names[0] if len(names) == 1 else None
        write_card(args.model, sampling=with_chosen(sampling, chosen, alone, args.R))
        print(f"written to the card of {args.model}")
    return 0


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

    from .fault_injection import injected, write_faults
    from .score_lines import ScoreLines

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

    from .gate import KINDS, judge, limits_of, numbers_of, slice_row, slice_scans, volume_row, volume_scans, write_gate
    from .gate_cases import JUDGING, SETTING, SOUND, heads
    from .score_lines import ScoreLines

    at_least(args, heads=1, sound=1, each=0, seed=0)
    if args.write and args.model is None:
        raise BadInputError("--write needs --model: name a copy of the shipped model")
    if args.each and args.out is None:
        raise BadInputError("the tables need a folder: give --out, or --each 0")
    checkpoint = load_checkpoint(args.model, device_of(args.device))
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
        if args.of == "volumes":
            row = partial(volume_row, checkpoint, args.images, args.seed + 2)
        else:
            others = list(heads(args.images, JUDGING, args.heads, args.seed + 1))
            row = partial(slice_row, checkpoint, others, args.of)
        judged = tqdm(judge(checkpoint, kinds, row, args.seed, lines), total=len(kinds), unit="scan")
        write_gate(args.out, list(judged), checkpoint.model_id, args.seed, args.of)
    return 0
