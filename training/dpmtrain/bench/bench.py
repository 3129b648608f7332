"""`dpmtrain bench`: every method on the same scans in one run: same weights, coil maps, scale, noise level, scoring.

A line of OUT/results.jsonl for every score: a run that was stopped goes on where it was, and the report is made from
the file. Nothing is tuned on what is scored.
"""

import argparse
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dpmrecon.cli import add_command
from dpmrecon.errors import BadInputError

if TYPE_CHECKING:
    from dpmrecon.prior.checkpoint import Checkpoint

    from ..evaluate.references import ReferenceSlice

TEST_PATIENT = "patient12"
# deepinv whole, or its DPS alone: as slow as ours, and far off with a network that was not trained at its sigma of 152
LEFT_OUT = ("deepinv", "deepinv-dps")


@dataclass(frozen=True)
class BenchPlan:
    """What to run. slices: of each scan at most; patient_slices: of each volume of the test patient;
    tuning_slices: validation slices of each contrast; prox_steps, dps_steps, diffpir_steps: evaluations of the network;
    samples: of a mean beside the card's own; dps_samples: the same of `dps`; grappa: folder of a Gadgetron's images;
    matrix: of the phantoms where there are no scans; without: some of LEFT_OUT."""

    accelerations: tuple[int, ...] = (4,)
    contrasts: tuple[str, ...] = ("flair", "t1", "t2")
    slices: int = 3
    patient_slices: int = 1
    tuning_slices: int = 1
    prox_steps: tuple[int, ...] = (10, 20, 50)
    dps_steps: int = 300
    diffpir_steps: int = 100
    samples: int = 1
    dps_samples: int = 1
    seed: int = 0
    grappa: Path | None = None
    matrix: int = 256
    without: tuple[str, ...] = ()


def add_bench(commands) -> None:
    plan = BenchPlan()
    parser = add_command(
        commands,
        "bench",
        "dps, prox, CG-SENSE, L1-wavelet, GRAPPA and deepinv side by side: quality, seconds by stage, memory",
        "dpmtrain bench --data DATA --R 4 --out bench",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder with ismrmrd/ (scans and truth), images/ (test patient and validation) and gadgetron_grappa/; "
        "without it simulated head phantoms are the scans, and others are tuned on",
    )
    parser.add_argument("--out", type=Path, required=True, help="results.jsonl, table.md, table.csv, bench.png")
    parser.add_argument("--model", type=Path, help="checkpoint (default: the one that ships)")
    parser.add_argument("--R", default="4", help="such as 3,4,6 (default: 4)")
    parser.add_argument("--contrasts", default=",".join(plan.contrasts), help="default: flair,t1,t2")
    parser.add_argument("--slices", type=int, default=plan.slices, help="of each scan at most (default: 3)")
    parser.add_argument("--patient-slices", type=int, default=plan.patient_slices, help="of each test volume (1)")
    parser.add_argument("--tuning-slices", type=int, default=plan.tuning_slices, help="of each contrast (1)")
    parser.add_argument("--dps-steps", type=int, default=plan.dps_steps, help="our DPS and deepinv's (300)")
    parser.add_argument("--diffpir-steps", type=int, default=plan.diffpir_steps, help="deepinv's DiffPIR (100)")
    parser.add_argument("--samples", type=int, default=plan.samples, help="a mean of so many beside the model's own")
    parser.add_argument("--dps-samples", type=int, default=plan.dps_samples, help="also a mean of so many of dps")
    parser.add_argument("--matrix", type=int, default=plan.matrix, help="of the phantoms (256)")
    parser.add_argument("--without", default="", help=f"some of {', '.join(LEFT_OUT)}: leave it out although installed")
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from dpmrecon.prior.checkpoint import load_checkpoint

    from ..evaluate.commands import numbers, words

    checkpoint = load_checkpoint(args.model)
    least = {"slices": 1, "patient_slices": 0, "tuning_slices": 1, "dps_steps": 1, "diffpir_steps": 2, "samples": 1}
    for name, smallest in {**least, "dps_samples": 1}.items():
        if getattr(args, name) < smallest:
            raise BadInputError(f"--{name.replace('_', '-')} is {getattr(args, name)}: give {smallest} or more")
    plan = BenchPlan(
        accelerations=numbers("--R", args.R, 2),
        contrasts=words("--contrasts", args.contrasts, checkpoint.denoiser.labels),
        slices=args.slices,
        patient_slices=args.patient_slices,
        tuning_slices=args.tuning_slices,
        dps_steps=args.dps_steps,
        diffpir_steps=args.diffpir_steps,
        samples=args.samples,
        dps_samples=args.dps_samples,
        seed=args.seed,
        grappa=None if args.data is None else args.data / "gadgetron_grappa",
        matrix=args.matrix,
        without=words("--without", args.without, LEFT_OUT),
    )
    with ExitStack() as stack:
        if args.data is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            slices, validation = phantoms(folder, plan)
        else:
            slices, validation = shared_data(args.data, plan)
        bench(slices, validation, checkpoint, plan, args.out)
    return 0


Sources = tuple[list["ReferenceSlice"], Callable[[str], list["ReferenceSlice"]]]


def shared_data(data: Path, plan: BenchPlan) -> Sources:
    """The acceptance scans and the test patient's slices, and each contrast's validation slices."""
    from ..evaluate.references import measured_slices
    from ..evaluate.validation import subject_slices, validation_scan

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
    """Simulated scans of one head for the bench, and of another for tuning, written to `folder`."""
    from dpmrecon.tools.simulate import SimulationSettings, simulate, truth_path

    from ..evaluate.metrics import Moments
    from ..evaluate.references import CPU, measured_slices
    from ..evaluate.undersampling import with_maps

    def scan(contrast: str, subject: int, n_slices: int) -> list["ReferenceSlice"]:
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
    slices: "list[ReferenceSlice]",
    validation: "Callable[[str], list[ReferenceSlice]]",
    checkpoint: "Checkpoint",
    plan: BenchPlan,
    out: Path,
) -> None:
    """Score what `out`/results.jsonl does not hold yet, then write and print the report."""
    import torch
    from tqdm import tqdm

    from ..evaluate.score_lines import ScoreLines
    from .methods import Tuner, measure, methods, undersampled_slice
    from .peers import import_deepinv
    from .report import Entry, write_report

    if not slices:
        raise BadInputError(f"no slice has one of the contrasts {', '.join(plan.contrasts)}: name others")
    missing = import_deepinv()[1] if "deepinv" not in plan.without else "left out by --without"
    if missing:
        print(f"deepinv's DPS and DiffPIR are left out: {missing}")
    lines = ScoreLines(out / "results.jsonl")
    tuner = Tuner(validation, checkpoint, lines)
    # first calls are slower: keep them out of the times
    shape = slices[0].data.kspace.shape[-2:]
    denoiser = checkpoint.denoiser
    denoiser(torch.zeros(1, *shape, dtype=torch.complex64), torch.ones(1), denoiser.one_hot([None]))
    _ = undersampled_slice(slices[0], plan.accelerations[0]).mapped
    entries = []
    with tqdm(unit="image") as bar:
        for acceleration in plan.accelerations:
            for contrast in plan.contrasts:
                here_slices = [full for full in slices if full.contrast == contrast]
                if not here_slices:
                    continue
                cases = [undersampled_slice(full, acceleration) for full in here_slices]
                for method in methods(contrast, acceleration, here_slices, plan, tuner):
                    for here in cases:
                        if method.only is not None and (here.full.scan, here.full.number) not in method.only:
                            continue
                        bar.set_description(f"R={acceleration} {here.full.scan} {here.full.number} {method.name}")
                        key = {"scan": here.full.scan, "slice": here.full.number, "contrast": contrast}
                        key |= {"R": acceleration, "method": method.name, "setting": method.setting}
                        score = lines.get(key, partial(measure, method, here, checkpoint))
                        place = (here.full.scan, here.full.number, contrast, acceleration)
                        entries.append(Entry(*place, method.name, score))
                        bar.update()
    write_report(out, entries, plan, checkpoint, tuner.found)
