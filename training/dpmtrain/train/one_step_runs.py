"""`dpmtrain one-step` and `dpmtrain distil`: from a recipe and prepared slices to checkpoints of the kind one-step."""

import argparse
import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from dpmrecon.errors import BadInputError
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint
from dpmrecon.prior.conditional import ConditionalDenoiser
from dpmrecon.prior.kinds import ONE_STEP

from ..arguments import numbers
from ..files import writing
from .one_step import (
    TIMES,
    begin_with,
    distillation_loss,
    regression_loss,
    teacher_loss,
)
from .pretrain import data_card
from .refiner import both_of, refiner_loss, together_loss, with_refiner
from .scan_runs import Loss, ScanRun, blend, check_kept, kept_text

LOSSES: dict[str, Loss] = {
    "teacher": teacher_loss,
    "regression": regression_loss,
    "refiner": refiner_loss,
    "together": together_loss,
}
REFINED = ("refiner", "together")  # stages that go on from a model of the kind
TEACHER_STEPS = 8  # evaluations of an undistilled teacher by default


def train_stage(args: argparse.Namespace) -> None:
    """The teacher, the twin by regression, or a refiner, from random weights or those of a denoiser; or a network and
    its refiner together."""
    if (args.stage in REFINED) != (args.refine is not None):
        raise BadInputError(
            f"the stages {' and '.join(REFINED)} need --refine, a model to go on from, others take none"
        )
    if args.stage == "together" and args.start is not None:
        raise BadInputError("together goes on from --refine: leave out --start")
    check_kept(args.keep)
    if args.keep and args.stage != "together":
        raise BadInputError(f"--keep is {args.keep:g}: it is for the stage together alone")
    run = ScanRun(args, ONE_STEP)
    torch.manual_seed(run.settings["seed"])
    model = ConditionalDenoiser(run.recipe["model"])
    begun, data = "random weights", []
    if args.start is not None:
        start = load_checkpoint(args.start)
        begin_with(model, start.denoiser)
        begun = start.model_id
        data.append(start.card.get("data"))
    begun_with, made_by = {"the start": begun}, begun
    if args.refine is not None:
        refined = load_checkpoint(args.refine)
        data.append(refined.card.get("data"))
        together = args.stage == "together"
        model = both_of(refined, run.recipe["model"]) if together else with_refiner(refined, model)
        begun_with["the model to refine"] = refined.model_id
        made_by = refined.model_id if together else f"{begun}, after {refined.model_id}"
    found, steps = run.train(args.stage, model.to(run.device), LOSSES[args.stage], args.minutes, begun_with)
    if args.stage == "refiner":
        found.network = model.network  # an average of equal numbers loses the sign of zeros
    if args.keep:
        begun_model = load_checkpoint(args.refine).model
        assert isinstance(begun_model, ConditionalDenoiser)
        blend(found.cpu(), begun_model.state_dict(), args.keep)
        made_by += kept_text(args.keep)
    own: dict[str, Any] = {"steps": TEACHER_STEPS} if args.stage == "teacher" else {"noise_scale": 0.0}
    known = data_card(args.data, run.settings, *data)
    save(run, args.out, found.cpu(), f"{args.stage}: {steps} steps from {made_by}", known, **own)


def save(run: ScanRun, path: Path, model: ConditionalDenoiser, history: str, data: dict[str, Any], **own: Any) -> None:
    """data: of the card; own: sampler settings that are not the recipe's."""
    sampling = {**run.recipe["sampling"], ONE_STEP: {**run.recipe["sampling"][ONE_STEP], **own}}
    card = {"kind": ONE_STEP, "recipe": run.settings, "history": history, "sampling": sampling, "data": data}
    with writing(path):
        save_checkpoint(path, model, card)


def distil(args: argparse.Namespace) -> None:
    """Students one after the other, each with an equal share of the minutes; all are kept beside --out, the last is
    it. A stage that is done is not repeated."""
    run = ScanRun(args, ONE_STEP)
    counts = numbers("--evaluations", args.evaluations, 1)
    for before, after in zip((TIMES, *counts), counts):
        if after >= before or before % after:
            raise BadInputError(f"--evaluations {args.evaluations}: {after} does not divide {before}, give a divisor")
    start = load_checkpoint(args.start)
    if not isinstance(start.model, ConditionalDenoiser) or start.model.config != run.recipe["model"]:
        raise BadInputError(f"{args.start} is no network of the recipe's [model]: give the teacher of this recipe")
    data = data_card(args.data, run.settings, start.card.get("data"))
    teacher, known = start.model.to(run.device), TIMES
    for number, steps in enumerate(counts):
        model = copy.deepcopy(teacher).requires_grad_(True)
        loss = partial(distillation_loss, teacher=teacher, steps=steps, substeps=known // steps)
        begun_with = {"the start": start.model_id, "the evaluations before": list(counts[:number])}
        teacher, _ = run.train(f"student_{steps}", model, loss, args.minutes / len(counts), begun_with)
        known = steps
        last = steps == counts[-1]
        path = args.out if last else args.out.with_name(f"{args.out.stem}_{steps}.safetensors")
        save(run, path, teacher, f"distilled to {steps} evaluations from {start.model_id}", data, steps=steps)
