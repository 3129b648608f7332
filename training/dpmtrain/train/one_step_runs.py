"""`dpmtrain one-step` and `dpmtrain distil`: from a recipe and prepared slices to checkpoints of the kind one-step."""

import argparse
import copy
from functools import partial

import torch
from dpmrecon.device import device_of
from dpmrecon.errors import BadInputError
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.prior.conditional import ConditionalDenoiser

from ..arguments import checkpoint_path, numbers
from ..data.dataset import read_manifest
from ..files import writing
from .one_step import TIMES, Run, Stage, begin_with, distillation_loss, regression_loss, teacher_loss
from .recipe import read_recipe

LOSSES = {"teacher": teacher_loss, "regression": regression_loss}
TEACHER_STEPS = 8  # evaluations of an undistilled teacher by default


def _run(args: argparse.Namespace) -> tuple[dict, Run]:
    recipe = read_recipe(args.recipe, "one-step")
    read_manifest(args.data)
    checkpoint_path(args.out)
    if args.minutes <= 0:
        raise BadInputError(f"--minutes is {args.minutes:g}: give a time above 0")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    return recipe, Run(recipe, args.data, args.folder, device_of(args.device), args.workers)


def train_stage(args: argparse.Namespace) -> None:
    """The teacher, or the twin by regression, from random weights or those of a denoiser."""
    recipe, run = _run(args)
    torch.manual_seed(recipe["train"]["seed"])
    model = ConditionalDenoiser(recipe["model"]).to(run.device)
    begun = "random weights"
    if args.start is not None:
        start = load_checkpoint(args.start)
        begin_with(model, start.denoiser)
        begun = start.model_id
    stage = Stage(args.stage, model, LOSSES[args.stage], args.minutes, recipe["train"])
    found = run.train(stage)
    own = {"noise_scale": 0.0} if args.stage == "regression" else {"steps": TEACHER_STEPS}
    sampling = {**recipe["sampling"], "one-step": {**recipe["sampling"]["one-step"], **own}}
    with writing(args.out):
        run.save(args.out, found.cpu(), f"{args.stage}: {stage.done} steps from {begun}", sampling)


def distil(args: argparse.Namespace) -> None:
    """Students one after the other, each with an equal share of the minutes; all are kept beside --out, the last is
    it. A stage that is done is not repeated."""
    recipe, run = _run(args)
    counts = numbers("--evaluations", args.evaluations, 1)
    for before, after in zip((TIMES, *counts), counts):
        if after >= before or before % after:
            raise BadInputError(f"--evaluations {args.evaluations}: {after} does not divide {before}, give a divisor")
    start = load_checkpoint(args.start)
    if not isinstance(start.model, ConditionalDenoiser) or start.model.config != recipe["model"]:
        raise BadInputError(f"{args.start} is no network of the recipe's [model]: give the teacher of this recipe")
    teacher, known = start.model.to(run.device), TIMES
    for steps in counts:
        model = copy.deepcopy(teacher).requires_grad_(True)
        loss = partial(distillation_loss, teacher=teacher, steps=steps, substeps=known // steps)
        stage = Stage(f"student_{steps}", model, loss, args.minutes / len(counts), recipe["train"])
        teacher, known = run.train(stage), steps
        sampling = {**recipe["sampling"], "one-step": {**recipe["sampling"]["one-step"], "steps": steps}}
        last = steps == counts[-1]
        path = args.out if last else args.out.with_name(f"{args.out.stem}_{steps}.safetensors")
        with writing(path):
            run.save(path, teacher, f"distilled to {steps} evaluations from {start.model_id}", sampling)
