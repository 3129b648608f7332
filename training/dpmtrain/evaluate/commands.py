"""`dpmtrain evaluate`: what a model is worth on slices with a reference, against conventional methods."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dpmrecon.cli import add_command
from dpmrecon.errors import BadInputError

CONVENTIONAL = ("zero-filled", "CG-SENSE", "L1-wavelet")


def add_evaluate(commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        "Score models and conventional methods on slices with a reference: a table, plots, confidence intervals",
        "dpmtrain evaluate full_scan.h5 --images images --subjects patient12 --R 3,4,6,8 --sampling regular,poisson "
        "--acs 24,0 --out results",
    )
    parser.add_argument("scans", type=Path, nargs="*", help="ISMRMRD scans, fully sampled or of R about 2")
    parser.add_argument("--truth", nargs="+", metavar="FILE", help=".npy (slices, rows, cols) of each scan, - for none")
    parser.add_argument("--mask", nargs="+", metavar="FILE", help=".npy of each scan, where to score, - for everywhere")
    parser.add_argument("--contrast", help="of the scans (default: from their protocol names)")
    parser.add_argument(
        "--images", type=Path, required=True, help="folder with open_ms/ and synthseg_labels/; weights are tuned there"
    )
    parser.add_argument(
        "--subjects", nargs="*", default=[], metavar="NAME", help="patients of open_ms or label maps to simulate from"
    )
    parser.add_argument("--slices", type=int, default=2, help="of each volume of a subject")
    parser.add_argument("--out", type=Path, required=True, help="folder for report and scores; gone on with if there")
    parser.add_argument("--R", default="4,8", help="accelerations, with commas between them")
    parser.add_argument("--sampling", default="regular,poisson", help="regular (1D), random (1D) and poisson (2D)")
    parser.add_argument("--acs", default="24", help="calibration lines; 0: none, coil maps from the full data")
    parser.add_argument("--scan-R", default="1", dest="scan_R", help="2: undersample a simulated R=2 scan further")
    parser.add_argument("--conventional", default=",".join(CONVENTIONAL), help="methods to compare with")
    parser.add_argument("--model", type=Path, nargs="+", help="checkpoints (default: the one that ships)")
    parser.add_argument("--sampler", default="prox", help="some of prox, dps and uncertainty (prox in that mode)")
    parser.add_argument("--samples", type=int, help="samples of each image (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tuning-slices", type=int, default=2, help="validation slices that weights are tuned on")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from dpmrecon.options import device_of
    from dpmrecon.prior.checkpoint import load_checkpoint

    from .evaluation import Plan, evaluate
    from .references import ReferenceSlice, measured_slices
    from .undersampling import MASKS
    from .validation import subject_slices, validation_scan

    plan = Plan(
        numbers("--R", args.R, 2),
        words("--sampling", args.sampling, MASKS),
        numbers("--acs", args.acs, 0),
        numbers("--scan-R", args.scan_R, 1),
        words("--conventional", args.conventional, CONVENTIONAL),
        words("--sampler", args.sampler, ("prox", "dps", "uncertainty")),
        args.samples,
        args.seed,
        args.tuning_slices,
    )
    device = device_of(args.device)
    checkpoints = [load_checkpoint(path, device) for path in args.model or [None]]
    slices: list[ReferenceSlice] = []
    for path, truth, mask in zip(args.scans, _of_each(args, "truth"), _of_each(args, "mask")):
        slices += measured_slices(path, truth, mask, args.contrast)
    for subject in args.subjects:
        slices += subject_slices(args.images, subject, args.slices)
    if not slices:
        raise BadInputError("there is nothing to evaluate: name scans, or --subjects such as patient12")
    evaluate(slices, lambda contrast: validation_scan(args.images, contrast), checkpoints, plan, args.out, device)
    return 0


def _of_each(args: argparse.Namespace, name: str) -> list[Path | None]:
    given = getattr(args, name) or ["-"] * len(args.scans)
    if len(given) != len(args.scans):
        raise BadInputError(
            f"--{name} names {len(given)} files for {len(args.scans)} scans: give one of each, - for none"
        )
    return [None if text == "-" else Path(text) for text in given]


def numbers(option: str, text: str, least: int) -> tuple[int, ...]:
    """Whole numbers with commas between them."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < least:
        raise BadInputError(f"{option} {text} cannot be read: give whole numbers of {least} or more, with commas")
    return found


def words(option: str, text: str, valid: Sequence[str]) -> tuple[str, ...]:
    """Some of the valid words with commas between them; nothing at all is an empty text."""
    found = tuple(part for part in text.split(",") if part)
    unknown = [word for word in found if word not in valid]
    if unknown:
        raise BadInputError(f"{option} {text} cannot be read: '{unknown[0]}' is none of {', '.join(valid)}")
    return found
