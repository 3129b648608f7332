"""`dpmtrain sweep`: which settings are best on validation data, per contrast and R; the winner goes into the card."""

import argparse
import json
import re
from pathlib import Path

from dpmrecon.cli import add_command
from dpmrecon.errors import BadInputError

from .commands import numbers, words

# What each grid runs: the sampler, and the settings that it combines
GRIDS: dict[str, tuple[str, dict[str, list]]] = {
    "steps": ("prox", {"steps": [10, 20, 50], "noise_factor": [0.5, 0.7, 1.0]}),
    "zeta": ("dps", {"zeta": [0.35, 0.5, 0.7, 1.0, 1.4]}),
    "models": ("prox", {}),
}


def add_sweep(commands) -> None:
    parser = add_command(
        commands,
        "sweep",
        "Choose settings, or a checkpoint of a fine-tuning, on validation data (patient09 and a held-out label map): "
        "steps (of prox x R), zeta (of dps x R) or models (length x rate of fine-tuning)",
        "dpmtrain sweep steps --images images --R 4,8 --grid steps=10,20 noise_factor=0.5,0.7,1 --out sweep --write",
    )
    parser.add_argument("name", choices=tuple(GRIDS), metavar="steps|zeta|models")
    parser.add_argument("--images", type=Path, required=True, help="folder with open_ms/ and synthseg_labels/")
    parser.add_argument("--out", type=Path, required=True, help="folder for table and scores; gone on with if there")
    parser.add_argument("--model", type=Path, nargs="+", help="checkpoint, or those of `models` (default: the shipped)")
    parser.add_argument("--R", default="4,8", help="accelerations, with commas between them")
    parser.add_argument("--contrasts", default="flair,t1,t2,dwi,swi", help="labels, with commas between them")
    parser.add_argument("--slices", type=int, default=2, help="validation slices of each contrast, 3 at most")
    parser.add_argument("--grid", nargs="+", metavar="KEY=V1,V2", help="settings to combine instead of the usual ones")
    parser.add_argument("--samples", type=int, default=1, help="samples of each image")
    parser.add_argument("--within", type=float, default=1.0, help="percent of NRMSE given for fewer evaluations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    parser.add_argument("--write", action="store_true", help="write what was chosen into the checkpoint's card")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from dpmrecon.options import device_of
    from dpmrecon.prior.checkpoint import default_path, load_checkpoint

    from ..data.labelmaps import SEQUENCES
    from .sweep import Plan, sweep
    from .validation import validation_scan

    for name in ("slices", "samples"):
        if getattr(args, name) < 1:
            raise BadInputError(f"--{name} is {getattr(args, name)}: give 1 or more")
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
        within=args.within / 100,
    )
    device = device_of(args.device)
    contrasts = words("--contrasts", args.contrasts, sorted({s.contrast for s in SEQUENCES.values()}))
    slices = [full for name in contrasts for full in validation_scan(args.images, name)[: args.slices]]
    checkpoints = {path: load_checkpoint(path, device) for path in paths}
    sweep(slices, checkpoints, plan, args.out, device, write=args.write)
    return 0


def read_grid(texts: list[str]) -> dict[str, list]:
    """KEY=V1,V2 ... as JSON values, .5 as well. Raises BadInputError where it cannot be read."""
    try:
        pairs = [text.split("=") for text in texts]
        zero = re.compile(r"(?<!\d)\.")
        return {key: [json.loads(zero.sub("0.", value)) for value in values.split(",")] for key, values in pairs}
    except ValueError as error:
        raise BadInputError(f"--grid {' '.join(texts)} cannot be read: write KEY=V1,V2 ...") from error
