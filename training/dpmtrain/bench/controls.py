r"""What a one-step network should be conditioned on, and an unrolled network as the control: three small networks of
equal size, trained for equal times of one core on the same prepared scans.

    python -m dpmtrain.bench.controls training/recipes/controls.toml --data PREPARED --images IMAGES --run FOLDER \
      --minutes 15 --scans 300

By regression on CG-SENSE and on the zero-filled image, and unrolled (`train/unrolled.py`). Scans (coils, noise, masks,
conventional images) are made once, before the time begins, and drawn again and again. FOLDER keeps them and the state
of each training, which goes on where it was stopped; times are of the processor, so that others on the machine change
nothing. Printed in markdown: NRMSE on the validation slices. Each network has the error (standard deviation of what it
leaves) of ERRORS that is best for it.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.errors import BadInputError, DpmreconError
from dpmrecon.physics.forward import ForwardModel
from dpmrecon.prior.conditional import ConditionalDenoiser
from dpmrecon.prior.problem import NoiseSource, Problem
from dpmrecon.prior.samplers.one_step import OneStepSettings, net_acceleration, sample_one_step
from dpmrecon.recon.sample import problem_of

from ..arguments import exit_code, module_parser
from ..data.dataset import read_manifest
from ..evaluate.plan import CALIBRATION_LINES, Condition
from ..evaluate.references import CPU
from ..evaluate.scoring import Undersampled as Case
from ..evaluate.tables import show
from ..evaluate.trust import scores
from ..evaluate.validation import SIGMA_N, validation_scan
from ..files import writing
from ..train.keeper import read_tensors, write_state
from ..train.one_step import regression_loss
from ..train.recipe import read_recipe
from ..train.scan_runs import CropBatches, ScanStage
from ..train.timed import TimedRun
from ..train.undersampled import Undersampled, undersampled
from ..train.unrolled import MODEL_ERROR, NOISE_FACTOR, Unrolled, unrolled_loss

ARMS = ("cg-sense", "zero-filled", "unrolled")
SCANS = 200  # batches
ERRORS = (0.02, 0.03, 0.045, 0.07, 0.1)
KEPT = ("clean", "weight", "conventional", "acceleration", "sigma_n", "zero_filled")


def scans(recipe: dict, data: Path, file: Path, count: int) -> list[dict[str, torch.Tensor]]:
    """`count` batches of scans, conditioned on CG-SENSE, from `file` or made and kept there."""
    if not file.exists():
        settings, generator = recipe["train"], torch.Generator().manual_seed(recipe["train"]["seed"])
        batches = CropBatches(data, settings, recipe["model"]["labels"], None)
        made: list[dict[str, torch.Tensor]] = []
        for number in range(count):
            crops = batches[number]
            if isinstance(crops, DpmreconError):
                raise crops
            batch = undersampled(crops.clean, crops.weight, crops.mask, "cg-sense", generator)
            of_model = {"coil_maps": batch.model.coil_maps, "mask": batch.model.mask, "label": crops.label}
            made.append({name: getattr(batch, name) for name in KEPT} | of_model)
        with writing(file):
            write_state(file, {"recipe": recipe["train"], "scans": made})
    found = read_tensors(file, {"recipe", "scans"})
    if found["recipe"] != recipe["train"]:
        raise BadInputError(f"{file} is of another recipe: take that recipe, or another --run")
    return found["scans"]


def examples(found: list[dict[str, torch.Tensor]], arm: str, first: int) -> Iterator[tuple[Undersampled, torch.Tensor]]:
    """The scans in turn, without end, from number `first` on."""
    while True:
        scan = found[first % len(found)]
        model = ForwardModel(scan["coil_maps"], scan["mask"])
        kept = {name: scan[name] for name in KEPT}
        if arm == "zero-filled":
            kept["conventional"] = kept["zero_filled"]
        yield Undersampled(**kept, model=model), scan["label"]
        first += 1


def trained(
    recipe: dict, arm: str, found: list[dict[str, torch.Tensor]], folder: Path, minutes: float
) -> tuple[ConditionalDenoiser, TimedRun]:
    """The averaged weights, in evaluation mode, and their run."""
    settings = recipe["train"]
    torch.manual_seed(settings["seed"])
    config = {**recipe["model"], "conditioning": "zero-filled" if arm == "zero-filled" else "cg-sense"}
    loss: Any = unrolled_loss if arm == "unrolled" else regression_loss
    model = Unrolled(config) if arm == "unrolled" else ConditionalDenoiser(config)
    stage = ScanStage(model, loss, settings, torch.Generator())
    run = TimedRun(folder / f"{arm}.pt", stage, {"recipe": recipe}, settings, minutes, time.process_time)
    run.train(examples(found, arm, run.steps))
    return stage.average.eval(), run


@torch.no_grad()
def image_of(model: ConditionalDenoiser, problem: Problem, contrast: str, error: float) -> torch.Tensor:
    """(rows, cols) at scale 1."""
    if isinstance(model, Unrolled):
        label = model.one_hot([contrast])
        told = (problem.start, net_acceleration(problem), problem.sigma_n, label)
        return model.reconstructed(problem.model, problem.zero_filled, *told)[0]
    settings = OneStepSettings(noise_scale=0.0, error=error, noise_factor=NOISE_FACTOR, model_error=MODEL_ERROR)
    return sample_one_step(problem, model.of_contrast(contrast), settings, NoiseSource([0]))[0]


def main() -> None:
    parser = module_parser(__doc__, "images", "data")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--run", type=Path, required=True, dest="folder", help="scans and states")
    parser.add_argument("--minutes", type=float, required=True, help="of one core for each network")
    parser.add_argument("--scans", type=int, default=SCANS, help=f"batches to draw from (default: {SCANS})")
    parser.add_argument("--contrasts", default=("flair", "t1", "dwi"), nargs="+", choices=tuple(SIGMA_N))
    parser.add_argument("--R", type=int, nargs="+", default=(4, 8))
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = read_recipe(args.recipe, "one-step")
    read_manifest(args.data)
    found = scans(recipe, args.data, args.folder / "scans.pt", args.scans)
    models = {arm: trained(recipe, arm, found, args.folder, args.minutes) for arm in ARMS}
    pairs = [(contrast, acceleration) for contrast in args.contrasts for acceleration in args.R]
    cases = {
        pair: [
            Case(full, Condition("regular", pair[1], CALIBRATION_LINES), CPU)
            for full in validation_scan(args.images, pair[0])
        ]
        for pair in pairs
    }

    def nrmse(model: ConditionalDenoiser, error: float) -> list[float]:
        rows = []
        for contrast, acceleration in pairs:
            group = cases[(contrast, acceleration)]
            images = [
                case.mapped.model.combined(image_of(model, problem_of([case.mapped]), contrast, error))
                for case in group
            ]
            rows.append(float(np.mean([scores(case.full.truth, image)[0] for case, image in zip(group, images)])))
        return rows

    def rows() -> Iterator[list[str]]:
        for arm, (model, run) in models.items():
            errors = ERRORS if arm != "unrolled" else ERRORS[:1]  # it has its own
            best = min(((nrmse(model, error), error) for error in errors), key=lambda pair: np.mean(pair[0]))
            figures = [f"{value:.4f}" for value in (*best[0], float(np.mean(best[0])))]
            chosen = "learnt" if arm == "unrolled" else f"{best[1]:g}"
            yield [arm, f"{run.steps}", chosen, *figures]

    heads = [f"{contrast} R = {acceleration}" for contrast, acceleration in pairs]
    count = sum(value.numel() for value in models["cg-sense"][0].parameters())
    print(f"# {count / 1e6:.2f} M parameters, {args.minutes:g} minutes of one core each, validation slices\n")
    show(["", "steps", "error", *heads, "mean"], rows())


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
