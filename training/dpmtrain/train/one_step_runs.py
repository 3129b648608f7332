"""`dpmtrain one-step` and `dpmtrain distil`: from a recipe and prepared slices to checkpoints of the kind one-step."""

import argparse
import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from dpmrecon.device import device_of
from dpmrecon.errors import BadInputError, DpmreconError
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint
from dpmrecon.prior.conditional import ConditionalDenoiser
from dpmrecon.prior.kinds import ONE_STEP

from ..arguments import checkpoint_path, numbers
from ..data.dataset import read_manifest
from ..files import writing
from .batches import load
from .one_step import (
    TIMES,
    CropBatches,
    Loss,
    OneStepStage,
    begin_with,
    distillation_loss,
    regression_loss,
    teacher_loss,
)
from .recipe import read_recipe
from .refiner import both_of, refiner_loss, together_loss, with_refiner
from .timed import TimedRun
from .undersampled import Undersampled, undersampled

LOSSES: dict[str, Loss] = {
    "teacher": teacher_loss,
    "regression": regression_loss,
    "refiner": refiner_loss,
    "together": together_loss,
}
REFINED = ("refiner", "together")  # stages that go on from a model of the kind
TEACHER_STEPS = 8  # evaluations of an undistilled teacher by default
ENDLESS = 10**9  # steps: the time ends a stage
T = TypeVar("T", bound=torch.nn.Module)


class Run:
    """Stages, one after the other, on the examples of a recipe; `folder` holds the state of each.

    kind, model: of a recipe that trains on another model than one-step, and that model's configuration; calibrated: the
    scans' maps, see `undersampled`.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        kind: str = ONE_STEP,
        model: dict[str, Any] | None = None,
        *,
        calibrated: bool = False,
    ):
        self.calibrated = calibrated
        self.recipe = read_recipe(args.recipe, kind)
        self.recipe.setdefault("model", model)
        read_manifest(args.data)
        checkpoint_path(args.out)
        if args.minutes <= 0:
            raise BadInputError(f"--minutes is {args.minutes:g}: give a time above 0")
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        self.folder, self.device, self.workers = args.folder, device_of(args.device), args.workers
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        self.settings = self.recipe["train"]
        self.batches = CropBatches(args.data, self.settings, self.recipe["model"]["labels"], None)
        self.crops: Iterator[Any] | None = None  # begun once: loader processes take seconds to start

    def train(self, name: str, model: T, loss: Loss, minutes: float, begun_with: dict[str, Any]) -> tuple[T, int]:
        """The averaged weights, once the stage's minutes are spent, and its steps."""
        generator = torch.Generator(self.device)
        stage = OneStepStage(model, loss, self.settings, generator)
        made_with = {table: self.recipe[table] for table in ("model", "train")} | begun_with
        made_with["the data"] = self.batches.slices.digest[:12]
        run = TimedRun(self.folder / f"{name}.pt", stage, made_with, self.settings, minutes)
        generator.manual_seed(self.settings["seed"] + run.steps)
        run.train(self._examples(run.steps, generator))
        return stage.average, run.steps

    def _examples(
        self, done: int, generator: torch.Generator
    ) -> Iterator[tuple[Undersampled, torch.Tensor] | DpmreconError]:
        conditioning = self.recipe["model"].get("conditioning", "cg-sense")
        self.crops = self.crops or iter(load(self.batches, range(done, ENDLESS), self.workers, self.device))
        for crops in self.crops:
            if isinstance(crops, DpmreconError):
                yield crops
            clean, weight, mask, label = (part.to(self.device, non_blocking=True) for part in crops)
            scans = undersampled(clean, weight, mask, conditioning, generator, calibrated=self.calibrated)
            yield scans, label

    def save(self, path: Path, model: ConditionalDenoiser, history: str, **own: Any) -> None:
        """own: sampler settings that are not the recipe's."""
        sampling = {**self.recipe["sampling"], "one-step": {**self.recipe["sampling"]["one-step"], **own}}
        card = {"kind": ONE_STEP, "recipe": self.settings, "history": history, "sampling": sampling}
        with writing(path):
            save_checkpoint(path, model, card)


def train_stage(args: argparse.Namespace) -> None:
    """The teacher, the twin by regression, or a refiner, from random weights or those of a denoiser; or a network and
    its refiner together."""
    if (args.stage in REFINED) != (args.refine is not None):
        raise BadInputError(
            f"the stages {' and '.join(REFINED)} need --refine, a model to go on from, others take none"
        )
    if args.stage == "together" and args.start is not None:
        raise BadInputError("together goes on from --refine: leave out --start")
    if not 0 <= args.keep < 1 or (args.keep and args.stage != "together"):
        raise BadInputError(f"--keep is {args.keep:g}: give a share below 1, for the stage together alone")
    run = Run(args)
    torch.manual_seed(run.settings["seed"])
    model = ConditionalDenoiser(run.recipe["model"])
    begun = "random weights"
    if args.start is not None:
        start = load_checkpoint(args.start)
        begin_with(model, start.denoiser)
        begun = start.model_id
    begun_with, made_by = {"the start": begun}, begun
    if args.refine is not None:
        refined = load_checkpoint(args.refine)
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
        blend(found.cpu(), begun_model, args.keep)
        made_by += f", of whose weights {args.keep:g} are kept"
    own: dict[str, Any] = {"steps": TEACHER_STEPS} if args.stage == "teacher" else {"noise_scale": 0.0}
    run.save(args.out, found.cpu(), f"{args.stage}: {steps} steps from {made_by}", **own)


def blend(model: ConditionalDenoiser, start: ConditionalDenoiser, share: float) -> None:
    """Moves the weights that the model was trained to back towards those that it was begun with, by a share of the way
    (WiSE-FT: Wortsman et al., CVPR 2022)."""
    begun = start.state_dict()
    model.load_state_dict({name: value.lerp(begun[name], share) for name, value in model.state_dict().items()})


def distil(args: argparse.Namespace) -> None:
    """Students one after the other, each with an equal share of the minutes; all are kept beside --out, the last is
    it. A stage that is done is not repeated."""
    run = Run(args)
    counts = numbers("--evaluations", args.evaluations, 1)
    for before, after in zip((TIMES, *counts), counts):
        if after >= before or before % after:
            raise BadInputError(f"--evaluations {args.evaluations}: {after} does not divide {before}, give a divisor")
    start = load_checkpoint(args.start)
    if not isinstance(start.model, ConditionalDenoiser) or start.model.config != run.recipe["model"]:
        raise BadInputError(f"{args.start} is no network of the recipe's [model]: give the teacher of this recipe")
    teacher, known = start.model.to(run.device), TIMES
    for number, steps in enumerate(counts):
        model = copy.deepcopy(teacher).requires_grad_(True)
        loss = partial(distillation_loss, teacher=teacher, steps=steps, substeps=known // steps)
        begun_with = {"the start": start.model_id, "the evaluations before": list(counts[:number])}
        teacher, _ = run.train(f"student_{steps}", model, loss, args.minutes / len(counts), begun_with)
        known = steps
        last = steps == counts[-1]
        path = args.out if last else args.out.with_name(f"{args.out.stem}_{steps}.safetensors")
        run.save(path, teacher, f"distilled to {steps} evaluations from {start.model_id}", steps=steps)
