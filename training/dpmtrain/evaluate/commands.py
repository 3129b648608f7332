"""`dpmtrain evaluate`, `sweep`, `calibrate`: what a model is worth, and what serves it."""

import argparse
from dataclasses import replace
from pathlib import Path

from dpmrecon.cli import add_command
from dpmrecon.contrasts import CONTRAST_LABELS
from dpmrecon.errors import BadInputError

from ..arguments import add_usual, at_least, numbers, read_grid, words, writable
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

    at_least(args, slices=1, samples=1, seed=0)
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
    labels = {*CONTRAST_LABELS, *(label for checkpoint in checkpoints for label in checkpoint.model.labels)}
    if args.contrast is not None and args.contrast not in labels:
        raise BadInputError(
            f"--contrast is {args.contrast}, which no model knows: give one of {', '.join(sorted(labels))}"
        )
    slices: list[ReferenceSlice] = []
    files = zip(args.scans, _of_each(args, "truth"), _of_each(args, "mask"))
    for name, (path, truth, mask) in zip(scan_names(args.scans), files):
        slices += [replace(full, scan=name) for full in measured_slices(path, truth, mask, args.contrast)]
    for subject in dict.fromkeys(args.subjects):
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
    if args.write:
        writable(*(args.model or [None]))
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
    if args.write:
        writable(args.model)
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
