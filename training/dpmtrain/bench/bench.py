"""`dpmtrain bench`: every method on the same scans in one run: same weights, coil maps, scale, noise level, scoring.

A line of OUT/results.jsonl for every score: a run that was stopped goes on where it was, and the report is made from
the file. Nothing is tuned on what is scored.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from dpmrecon.errors import BadInputError
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.simulate import simulate, truth_path

from ..evaluate.engine import Group, Tuner, compare
from ..evaluate.metrics import Moments
from ..evaluate.plan import Condition
from ..evaluate.references import CPU, ReferenceSlice, measured_slices
from ..evaluate.score_lines import ScoreLines
from ..evaluate.scoring import Undersampled
from ..evaluate.undersampling import with_maps
from ..evaluate.validation import subject_slices, validation_scan
from .baselines import import_deepinv
from .methods import Ours, methods
from .plan import BenchPlan
from .report import write_report

TEST_PATIENT = "patient12"

Sources = tuple[list[ReferenceSlice], Callable[[str], list[ReferenceSlice]]]


def shared_data(data: Path, plan: BenchPlan) -> Sources:
    """The acceptance scans and the test patient's slices, and each contrast's validation slices."""
    if not (data / "ismrmrd").is_dir():
        raise BadInputError(f"{data} has no folder ismrmrd: give the folder that holds it, or leave --data out")
    found: list[ReferenceSlice] = []
    for scan in sorted((data / "ismrmrd").glob("*_full.h5")):
        stem = scan.name.removesuffix("_full.h5")
        mask = scan.with_name(f"{stem}_mask.npy")
        truth = scan.with_name(f"{stem}_truth.npy")
        slices = list(measured_slices(scan, truth, mask if mask.is_file() else None))
        found += sorted(slices, key=lambda full: full.number)[: plan.slices]
    if plan.patient_slices:
        found += subject_slices(data / "images", TEST_PATIENT, plan.patient_slices)
    found = [full for full in found if full.contrast in plan.contrasts]
    return found, lambda contrast: validation_scan(data / "images", contrast)[: plan.tuning_slices]


def phantoms(folder: Path, plan: BenchPlan) -> Sources:
    """Simulated scans, written to `folder`: one head for the bench, another for tuning."""

    def scan(contrast: str, subject: int, n_slices: int) -> list[ReferenceSlice]:
        path = folder / f"phantom{subject}_{contrast}.h5"
        if not path.exists():
            size = (plan.matrix, plan.matrix)
            simulate(
                path,
                SimulationSettings(contrast, size, n_slices=n_slices, acceleration=1, subject=subject, seed=subject),
            )
        slices = list(measured_slices(path, truth_path(path), contrast=contrast))
        for full in slices:  # a phantom's truth is the object, in units of its own
            combined = Moments.of(full.picture(with_maps(full.data, CPU).zero_filled), full.truth, full.mask)
            full.truth = full.truth * (combined.cross / combined.truth)
        return slices

    found = [full for contrast in plan.contrasts for full in scan(contrast, 0, plan.slices)]
    return found, lambda contrast: scan(contrast, 1, plan.tuning_slices)


def bench(
    slices: list[ReferenceSlice],
    validation: Callable[[str], list[ReferenceSlice]],
    checkpoint: Checkpoint,
    plan: BenchPlan,
    out: Path,
) -> None:
    """Score what `out`/results.jsonl does not hold yet, then write and print the report."""
    if not slices:
        raise BadInputError(f"no slice has one of the contrasts {', '.join(plan.contrasts)}: name others")
    missing = import_deepinv()[1] if "deepinv" not in plan.without else "left out by --without"
    if missing:
        print(f"deepinv's DPS and DiffPIR are left out: {missing}")
    # first calls are slower: keep them out of the times
    shape = slices[0].data.kspace.shape[-2:]
    denoiser = checkpoint.denoiser
    denoiser(torch.zeros(1, *shape, dtype=torch.complex64), torch.ones(1), denoiser.one_hot([None]))
    _ = Undersampled(slices[0], Condition("regular", plan.accelerations[0]), CPU).mapped
    lines, ours = ScoreLines(out / "results.jsonl"), Ours(checkpoint, plan.seed)
    tuner = Tuner(validation, plan.tuning_slices, lines, CPU)

    def groups() -> Iterator[Group]:
        for condition in (Condition("regular", R) for R in plan.accelerations):
            for contrast in plan.contrasts:
                here = [full for full in slices if full.contrast == contrast]
                if here:
                    chosen = list(methods(contrast, condition, here, plan, ours, tuner))
                    yield (Undersampled(full, condition, CPU) for full in here), chosen

    write_report(out, compare(groups(), lines), plan, checkpoint, tuner.found)
