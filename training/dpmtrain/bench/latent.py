"""LDPM's experiments in kind:

    python -m dpmtrain.bench.latent --images DATA --model LATENT --run FOLDER --out REPORT [--untuned AUTOENCODER] \
      [--scan flair_3slices_r4.h5 --truth flair_3slices_truth.npy] [--controls FOLDER]

The test patient's volumes, SLICES of each, and an object that is no head, at R = 8 and 4, lines at random, 24
calibration lines: conventional images, the Sketcher, also without data consistency, the pixel prior, the latent prior
by its card. At the first R, from noise alone as in the paper (T, p and number of steps: PAPER), the latent prior
without its parts. FOLDER keeps each image, so that a run that was stopped goes on. REPORT: table.md, table.csv,
worst.png, round_trip.png. --untuned: the autoencoder as its training began; --scan: replayed by three models, for
seconds and memory; --controls: of `dpmtrain.bench.controls`, for its unrolled network.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.errors import BadInputError
from dpmrecon.options import Options
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint, shipped_sketcher
from dpmrecon.prior.kinds import KINDS, LATENT, ONE_STEP
from dpmrecon.prior.latent import LatentModel
from dpmrecon.prior.problem import NoiseSource
from dpmrecon.prior.samplers.latent import LatentSettings, sample_latent, sample_latent_hard
from dpmrecon.prior.samplers.one_step import OneStepSettings, sample_one_step
from dpmrecon.recon.plan import sampling_of
from dpmrecon.recon.sample import problem_of, sample_seed
from dpmrecon.recon.types import MappedSlice

from ..arguments import exit_code, module_parser
from ..evaluate.methods import by_card, label_for
from ..evaluate.plan import CALIBRATION_LINES, Condition
from ..evaluate.references import CPU, ReferenceSlice
from ..evaluate.scoring import Undersampled, true_image
from ..evaluate.validation import full_slice, subject_slices
from ..files import kept
from ..robustness.objects import OBJECTS
from ..train.recipe import read_recipe
from .controls import image_of, trained
from .latent_report import FROM_NOISE, OURS, Case, Replayed, replayed, write_report

SUBJECT, OBJECT, OBJECT_SIDE, OBJECT_SIGMA = "patient12", "knee", 256, 0.015
PAPER = {"first": 1000, "p": 200, "steps": 20}
ALWAYS, NEVER = -1, 1000  # as the time p: guidance at no step, at every one
EXACT = 1e-6  # as the error that a network leaves: the data move nothing
Make = Callable[[MappedSlice, str], torch.Tensor]  # image at scale 1, (rows, cols); the contrast


@dataclass(frozen=True)
class Models:
    """What is compared. untuned, unrolled: None where they are not given."""

    latent: Checkpoint
    one_step: Checkpoint
    pixel: Checkpoint
    untuned: LatentModel | None
    unrolled: torch.nn.Module | None

    @cached_property
    def network(self) -> LatentModel:
        assert isinstance(self.latent.model, LatentModel)
        return self.latent.model


def sketching() -> Checkpoint:
    """The Sketcher that ships, as a model of its own."""
    sketcher, name = shipped_sketcher()
    card = {"sampling": {"samples": 1, ONE_STEP: vars(sketcher.settings)}}
    return Checkpoint(sketcher.denoiser, card, name, KINDS[ONE_STEP])


@dataclass(frozen=True)
class Method:
    """made_with: all that its images depend on beside the scan, in words."""

    make: Make
    made_with: str = ""


def compared(models: Models) -> dict[str, Method]:
    """Table I, names as in the report."""

    def zero_filled(mapped: MappedSlice, contrast: str) -> torch.Tensor:
        return mapped.zero_filled / mapped.scale

    def cg_sense(mapped: MappedSlice, contrast: str) -> torch.Tensor:
        return mapped.conventional / mapped.scale

    def pixel(mapped: MappedSlice, contrast: str) -> torch.Tensor:
        return by_card(mapped, models.pixel, contrast).image / mapped.scale

    def unrolled(mapped: MappedSlice, contrast: str) -> torch.Tensor:
        assert models.unrolled is not None
        return image_of(models.unrolled, problem_of([mapped]), contrast, 0.0)  # type: ignore[arg-type]

    found = {
        "zero-filled": Method(zero_filled),
        "CG-SENSE": Method(cg_sense),
        "U-Nets by regression, no data consistency": _one_step(models, error=EXACT),
        "Sketcher": _one_step(models),
        "pixel prior": Method(pixel, models.pixel.model_id),
        OURS: _latent(models),
        "latent prior, zero-filled for the sketch": _latent(models, sketcher=False),
    }
    if models.unrolled is not None:
        weights = sum(float(values.double().sum()) for values in models.unrolled.parameters())
        found["unrolled, .36 M parameters"] = Method(unrolled, f"{weights}")
    return found


def ablations(models: Models) -> dict[str, Method]:
    """Table II: as the paper samples, without one part after the other."""
    found = {
        FROM_NOISE: _latent(models, PAPER),
        "without Sketcher: zero-filled": _latent(models, PAPER, sketcher=False),
        "single stage: guidance": _latent(models, {**PAPER, "p": NEVER}),
        "single stage: consistency": _latent(models, {**PAPER, "p": ALWAYS}),
        "hard consistency of a magnitude image": _latent(models, PAPER, hard=True),
    }
    if models.untuned is not None:
        found["without tuning of the autoencoder"] = _latent(models, PAPER, network=models.untuned)
    return found


def _one_step(models: Models, **changes: float) -> Method:
    settings = OneStepSettings(**{**models.one_step.card["sampling"][ONE_STEP], **changes})

    def make(mapped: MappedSlice, contrast: str) -> torch.Tensor:
        prior = models.one_step.model.of_contrast(label_for(models.one_step, contrast))
        return sample_one_step(problem_of([mapped]), prior, settings, _noise(mapped))[0]

    return Method(make, f"{models.one_step.model_id} {settings}")


def _latent(
    models: Models,
    changes: Mapping[str, int] = MappingProxyType({}),
    *,
    network: LatentModel | None = None,
    sketcher: bool = True,
    hard: bool = False,
) -> Method:
    """With the card's settings and changes; sketcher False: the zero-filled image is the sketch."""
    own = network or models.network

    def make(mapped: MappedSlice, contrast: str) -> torch.Tensor:
        label = label_for(models.latent, contrast)
        chosen = sampling_of(Options(), models.latent, CPU, label, mapped.data.acceleration).settings
        assert isinstance(chosen, LatentSettings)
        problem, kept = problem_of([mapped]), own.sketcher
        if not sketcher:
            problem, own.sketcher = replace(problem, start=problem.zero_filled), None
        sample = sample_latent_hard if hard else sample_latent
        try:
            return sample(problem, own.of_contrast(label), replace(chosen, **changes), _noise(mapped))[0]
        finally:
            own.sketcher = kept

    card = json.dumps(models.latent.card.get("sampling", {}), sort_keys=True)
    return Method(make, f"{models.latent.model_id} {card} {dict(changes)} {sketcher} {hard} {network is None}")


def _noise(mapped: MappedSlice) -> NoiseSource:
    """That of the product's first sample."""
    return NoiseSource([sample_seed(0, mapped.data.seed_key, 0)])


def slices_of(images: Path, count: int) -> Iterator[ReferenceSlice]:
    """`count` of each volume of the test patient, and as many of the object."""
    yield from subject_slices(images, SUBJECT, count)
    for number in range(count):
        blank, rng = torch.zeros(OBJECT_SIDE, OBJECT_SIDE), np.random.default_rng(number)
        yield full_slice(OBJECT, number, "none", OBJECTS[OBJECT](blank, rng), OBJECT_SIGMA)


def made(folder: Path, case: Undersampled, name: str, method: Method) -> tuple[np.ndarray, float]:
    """Magnitude on the truth's grid, and seconds of the processor; from `folder` where it is there."""
    full, mapped = case.full, case.mapped
    key = f"{full.scan} {full.number} {case.condition} {name} {method.made_with}"

    def arrays() -> dict[str, np.ndarray]:
        began = time.process_time()
        found = method.make(mapped, full.contrast)  # with all sets of maps, but for the pixel prior
        image = found if found.ndim == 2 else mapped.model.combined(found)
        return {"seconds": np.array(time.process_time() - began), "image": full.picture(image * mapped.scale)}

    held = kept(folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.npz", arrays)
    return held["image"], float(held["seconds"])


def complex_truth(case: Undersampled) -> torch.Tensor:
    """As a sampler sees it: (rows, cols) at scale 1, smooth phase taken off."""
    assert case.full.coil_images is not None
    return case.mapped.model.combined(true_image(case.mapped, case.full.coil_images)) / case.mapped.scale


def loaded(args: argparse.Namespace) -> Models:
    """Raises BadInputError and CheckpointError."""
    latent = load_model(args.model, "cpu")
    if not isinstance(latent.model, LatentModel):
        kind = latent.card.get("kind")
        raise BadInputError(f"--model {args.model} is of kind '{kind}': give a model of kind {LATENT}")
    untuned: LatentModel | None = None
    unrolled: torch.nn.Module | None = None
    if args.untuned is not None:
        other = load_checkpoint(args.untuned).model
        if not isinstance(other, LatentModel) or other.config != latent.model.config:
            raise BadInputError(f"--untuned {args.untuned} is another network: give the first stage of {args.model}")
        again = load_checkpoint(args.model).model
        assert isinstance(again, LatentModel)
        again.autoencoder, untuned = other.autoencoder, again
    if args.controls is not None:
        recipe = read_recipe(args.controls_recipe, ONE_STEP)
        unrolled, _ = trained(recipe, "unrolled", [], args.controls, 0.1)
    return Models(latent, sketching(), load_model(None, "cpu"), untuned, unrolled)


def main() -> None:
    parser = module_parser(__doc__, "images", "out")
    parser.add_argument("--model", type=Path, default=Path(LATENT), help="of kind latent (default: the installed one)")
    parser.add_argument("--run", type=Path, required=True, dest="folder", help="images; gone on with if there")
    parser.add_argument("--slices", type=int, default=1, help="of each volume (default: 1)")
    parser.add_argument("--R", type=int, nargs="+", default=(8, 4))
    parser.add_argument("--untuned", type=Path, help="the autoencoder as its training began")
    parser.add_argument("--scan", type=Path, help="an ISMRMRD scan to replay")
    parser.add_argument("--truth", type=Path, help="its truth (.npy)")
    parser.add_argument("--controls", type=Path, help="states of dpmtrain.bench.controls")
    parser.add_argument("--controls-recipe", type=Path, default=Path("training/recipes/controls.toml"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    models = loaded(args)
    cases = []
    for acceleration in args.R:
        chosen = compared(models) | (ablations(models) if acceleration == args.R[0] else {})
        for full in slices_of(args.images, args.slices):
            here = Undersampled(full, Condition("random", acceleration, CALIBRATION_LINES), CPU)
            found = {name: made(args.folder, here, name, method) for name, method in chosen.items()}
            pictures = {name: image for name, (image, _) in found.items()}
            seconds = {name: value for name, (_, value) in found.items()}
            cases.append(Case(full, acceleration, pictures, seconds, complex_truth(here)))
            print(f"R = {acceleration}, {full.scan} {full.number}", flush=True)
    replays: list[Replayed] = []
    if args.scan is not None:
        replays = [replayed(args.scan, args.truth, name) for name in ("default", ONE_STEP, str(args.model))]
    autoencoders = {"tuned": models.network} | ({"untuned": models.untuned} if models.untuned is not None else {})
    write_report(args.out, cases, autoencoders, models.latent, replays)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
