"""`dpmtrain kit`: from a folder of a hospital's scans to a model fine-tuned on them, and what it is worth.

Read `kit` from top to bottom. All it makes lies in one folder, from which a run that was cut off goes on.
"""

import argparse
import sys
from typing import Any

import torch
from dpmrecon.device import device_of
from dpmrecon.errors import BadInputError

from ..arguments import numbers
from ..data.dataset import digest_of
from ..evaluate.evaluation import evaluate, subjects_of
from ..train.keeper import read_start
from ..train.pretrain import completed
from ..train.recipe import read_recipe
from . import card, data, tuning


def kit(args: argparse.Namespace) -> int:
    """The whole way. Returns 0, or 3 where files could not be used."""
    accelerations = numbers("--R", args.R, 2)
    device = device_of(args.device)
    start = read_start(args.start)
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = read_recipe(args.recipe or tuning.default_recipe(), "finetune")

    say("1/5 the files")
    scans = data.check(args.scans, args.contrast, args.patients)
    if args.check:
        return 3 if scans.broken else 0
    if data.are_volumes(scans.items):
        start = read_start(args.start, volume=True)
    recipe["target"] = tuning.target(scans.contrast, start)
    if card.tuned_before(start):
        print(f"dpmtrain: {card.TUNED_BEFORE}", file=sys.stderr)

    say("2/5 preparing, and patients for training, validation and test")
    folder = args.out / "prepared"
    broken = data.prepared(scans, folder, args.jobs)
    split = data.split(scans, folder)
    others = split.patients["validation"] + split.patients["test"]
    if seen := sorted(subjects_of(start.data or {}) & set(others)):
        raise BadInputError(
            f"{start.model_id} was trained on {', '.join(seen)}, on whom it is to be judged: begin with another model, "
            "such as the one that ships"
        )
    recipe = completed({**recipe, "train": tuning.settings(recipe["train"], split)}, start)
    plan = tuning.plan(accelerations, args.acs)
    same = {"start": start.checksum, "recipe": recipe, "patients": split.patients, "R": args.R, "acs": args.acs}
    same |= {"slices": args.slices, "images": "of the start", "scans to train on": digest_of(split.volumes["train"])}
    data.remember(args.out / "kit.json", same)

    say("3/5 images to train on, fine-tuning; its length is chosen on the validation patients")
    data.prepared(scans, args.out / "train", args.jobs, tuning.begun(start, args.out), others)
    validation = data.references(split.scans["validation"], scans.contrast, args.slices)
    best = tuning.tune(recipe, start, args.out / "train", args.out, validation, plan, device)

    say("4/5 the test patients")
    test = data.references(split.scans["test"], scans.contrast, args.slices)
    tuning.refuse_worse(best, args.out, test, plan, device)
    model = args.out / f"{scans.contrast}.safetensors"
    told = card.card(recipe, start, best, split, plan)
    checkpoint = card.write(model, best.denoiser, told, device)
    models = [checkpoint] if best.steps == 0 else [checkpoint, best.start]
    rows = evaluate(test, lambda _: validation, models, plan, args.out / "evaluation", device)

    say("5/5 the card")
    found = card.findings(rows, checkpoint, len({item.subject for item in split.scans["test"]}))
    card.write(model, best.denoiser, {**told, **found}, device)
    for line in (*found["findings"], f"{model} and its card: dpmrecon replay SCAN.h5 --model {model} --out results"):
        print(line)
    return 3 if broken or scans.broken else 0


def say(title: Any) -> None:
    print(f"--- {title}", flush=True)
