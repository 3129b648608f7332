"""`dpmtrain kit`: from a folder of a hospital's scans to a model fine-tuned on them, and what it is worth.

Read `kit` from top to bottom. All it makes lies in one folder, from which a run that was cut off goes on.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from dpmrecon.cli import add_command
from dpmrecon.errors import BadInputError

from ..data.workers import cores


def add_kit(commands) -> None:
    parser = add_command(
        commands,
        "kit",
        "Fine-tune a model on a hospital's own ISMRMRD scans (one contrast, fully sampled or R up to about 2), choose "
        "the length on validation patients, compare with CG-SENSE and L1-wavelet on test patients. Exit code 3: done, "
        "but some files could not be used, each is named. Run again after an interruption: what is done is kept.",
        "dpmtrain kit scans/ --out kit_flair --contrast flair --check   (then the same without --check)",
    )
    parser.add_argument(
        "scans",
        type=Path,
        nargs="+",
        help="folders or files. A patient is the patient ID in the header; without one the first folder, else the file",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for all results; gone on with if there")
    parser.add_argument("--contrast", help="label to fine-tune for (default: the one that all scans have)")
    parser.add_argument("--check", action="store_true", help="look at the files and stop before anything is prepared")
    parser.add_argument("--start", type=Path, help="model, or folder of a run (default: the model that ships)")
    parser.add_argument(
        "--recipe", type=Path, help="of `finetune`; its volumes and target are not used (default: ours)"
    )
    parser.add_argument("--R", default="4", help="accelerations to choose and to compare at (default: 4)")
    parser.add_argument("--acs", type=int, default=24, help="calibration lines kept in the comparison (default: 24)")
    parser.add_argument("--slices", type=int, default=5, help="of each validation and test scan (default: 5)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all)")
    parser.add_argument("--jobs", type=int, default=cores(), help="processes that read scans (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..train.train import Stopped

    for name, least in (("acs", 8), ("slices", 1), ("jobs", 1), ("threads", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise BadInputError(f"--{name} is {getattr(args, name)}: give {least} or more")
    try:
        return kit(args)
    except (Stopped, KeyboardInterrupt):
        print("dpmtrain: interrupted; what is done stays: run the same command again", file=sys.stderr)
        return 130


def kit(args: argparse.Namespace) -> int:
    """The whole way. Returns 0, or 3 where files could not be used."""
    import torch
    from dpmrecon.options import device_of

    from ..evaluate.commands import numbers
    from ..evaluate.evaluation import evaluate
    from ..train.keeper import read_start
    from ..train.pretrain import completed
    from ..train.recipe import read_recipe
    from . import card, data, tuning

    accelerations = numbers("--R", args.R, 2)
    device = device_of(args.device)
    start = read_start(args.start)
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = read_recipe(args.recipe or tuning.default_recipe(), "finetune")

    say("1/5 the files")
    scans = data.check(args.scans, args.contrast)
    if args.check:
        return 3 if scans.broken else 0
    recipe["target"] = tuning.target(scans.contrast, start)

    say("2/5 preparing, and patients for training, validation and test")
    folder = args.out / "prepared"
    broken = data.prepared(scans, folder, args.jobs)
    split = data.split(scans, folder)
    recipe = completed({**recipe, "train": tuning.settings(recipe["train"], split)}, start)
    plan = tuning.plan(accelerations, args.acs)
    same = {"start": start.checksum, "recipe": recipe, "patients": split.patients, "R": args.R, "acs": args.acs}
    data.remember(args.out / "kit.json", {**same, "slices": args.slices})

    say("3/5 fine-tuning; its length is chosen on the validation patients")
    validation = data.references(split.scans["validation"], scans.contrast, args.slices)
    best = tuning.tune(recipe, start, folder, args.out, validation, plan, device)

    say("4/5 the test patients")
    test = data.references(split.scans["test"], scans.contrast, args.slices)
    model = args.out / f"{scans.contrast}.safetensors"
    told = card.card(recipe, start, best, split, plan)
    checkpoint = card.write(model, best.denoiser, told, device)
    rivals = [checkpoint] if best.steps == 0 else [checkpoint, best.start]
    rows = evaluate(test, lambda _: validation, rivals, plan, args.out / "evaluation", device)

    say("5/5 the card")
    found = card.findings(rows, checkpoint)
    card.write(model, best.denoiser, {**told, **found}, device)
    for line in (*found["findings"], f"{model} and its card: dpmrecon replay SCAN.h5 --model {model} --out results"):
        print(line)
    return 3 if broken or scans.broken else 0


def say(title: Any) -> None:
    print(f"--- {title}", flush=True)
