"""Veins, phase and a microbleed after undersampling: `python -m dpmtrain.evaluate.swi --out DIR`.

Simulates SWI of the phantom in three dimensions, fully sampled and at R = 4. Writes a table in markdown and CSV, and a
picture. With --images, the same of measured gradient echoes (gre_complex/) with simulated coils: their phase. --try
measures other settings of the sampler beside the card's. Images of the same scan that are there already are not made
again.
"""

import argparse
import re
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from dpmrecon.api import load_model
from dpmrecon.errors import DpmreconError
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.simulation.slices import swi_masks

from ..arguments import exit_code, module_parser
from ..files import kept, save_figure
from .baselines import bart_volume, tuned_weight
from .methods import by_card
from .metrics import nrmse
from .swi_cases import GRE_BLOCK, GRE_NOISE, PATTERNS, Case, gre_cases, in_map_phase, phantom, phantom_cases
from .swi_figures import HEADS, NOTES, Found, Judge, PhaseRow, SwiRow, phase_row, picture, told
from .tables import fields_of, write_tables

WAVELET = "L1-wavelet 3D (BART)"
TRUTH = "truth, without noise"
WEIGHTS = (0.014, 0.028, 0.056)  # where the search for the best one begins

Changes = dict[str, float | int]  # settings of the sampler in place of the card's


def images_of(
    case: Case, checkpoint: Checkpoint, tries: list[Changes], samples: int | None, folder: Path
) -> Iterator[Found]:
    """Every method's, ours for each of `tries`; those that are in the folder already are not made again."""
    yield "full scan", in_map_phase(case.full, case.full.zero_filled), case.full.seconds["conventional"]
    yield TRUTH, case.truth, 0.0
    yield "CG-SENSE", in_map_phase(case.mapped, case.mapped.conventional), case.mapped.seconds["conventional"]

    def wavelet(weight: float) -> list[Found]:
        name, started = f"{WAVELET}, {weight:g}", time.perf_counter()
        image = in_map_phase(case.mapped, bart_volume(case.mapped, "W", weight))
        return [(name, image, time.perf_counter() - started)]

    def stored(name: str, make: Callable[[], list[Found]]) -> list[Found]:
        def arrays() -> dict[str, np.ndarray]:
            found = make()
            told = np.array([(name, str(time)) for name, _, time in found])
            return {"told": told, **{f"arr_{n}": image for n, (_, image, _) in enumerate(found)}}

        held = kept(folder / f"{case.name}, {name}.npz", arrays)
        return [(str(name), held[f"arr_{n}"], float(time)) for n, (name, time) in enumerate(held["told"])]

    if shutil.which("bart") is not None:
        images: dict[float, list[Found]] = {}

        def error(weight: float) -> float:
            images[weight] = stored(f"{WAVELET}, {weight:g}", partial(wavelet, weight))
            return nrmse(images[weight][0][1], case.truth)

        yield from images[tuned_weight(error, WEIGHTS)[0]]
    for changes in tries:
        said = "".join(f", {name} {value:g}" for name, value in changes.items())
        name = f"{checkpoint.model_id}{said}, {samples or 'default'} samples"
        yield from stored(name, partial(ours, case, checkpoint, changes, samples, said))


def ours(case: Case, checkpoint: Checkpoint, changes: Changes, samples: int | None, said: str) -> list[Found]:
    """One sample's image and the mean of all, of which there may be one."""
    item = by_card(case.mapped, checkpoint, "swi", changes, samples=samples, keep_samples=True)
    assert item.draws is not None
    if item.fallback:
        raise DpmreconError(f"the sampler's image is not used: {item.fallback}")
    seconds = item.seconds["sampling"]
    mean = f"dpmrecon{said}", in_map_phase(case.mapped, item.image), seconds
    one = f"dpmrecon, 1 sample{said}", in_map_phase(case.mapped, item.draws[0]), seconds / len(item.draws)
    return [one, mean] if len(item.draws) > 1 else [mean]


def phantom_report(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    settings = phantom(args.subject, args.partitions, tuple(args.matrix))
    masks, rows = swi_masks(settings), []
    for case in phantom_cases(settings, args.patterns):
        judge = Judge(case, masks)
        columns = {}
        for found in images_of(case, checkpoint, args.tries, args.samples, args.out / "images"):
            rows.append(judge.row(found))
            print(" | ".join(told(rows[-1])), flush=True)
            if found[0] != TRUTH and ", 1 sample" not in found[0]:
                columns[without_weight(found[0])] = judge.pictures(found[1])
        if case.name.endswith(args.patterns[0]):
            save_figure(args.out / "swi.png", picture(columns), 72)
    size = f"{settings.partitions} x {settings.rows} x {settings.cols}"
    write_tables(
        args.out,
        fields_of(SwiRow, rows, digits=5),
        f"# SWI in three dimensions, {checkpoint.model_id}",
        f"Phantom, subject {settings.subject}, {size} voxels of 2 x .9 x .9 mm, {settings.n_coils} coils, calibration "
        f"block of {settings.calibration_lines}.",
        NOTES,
        [HEADS, *map(told, rows)],
    )


def measured_report(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    rows = []
    for case in gre_cases(args.images):
        for found in images_of(case, checkpoint, args.tries, args.samples, args.out / "images"):
            if found[0] != TRUTH:
                rows.append(phase_row(case, found))
                print(rows[-1], flush=True)
    heads = ["scan", "method", "NRMSE", "phase error, rad", "filtered phase error, rad", "slope of filtered phase"]
    table = [
        [row.scan, row.method, *(f"{value:.3f}" for value in (row.nrmse, row.phase_rad, row.filtered_rad, row.slope))]
        for row in rows
    ]
    numbers, means = ("nrmse", "phase_rad", "filtered_rad", "slope"), []
    for method in dict.fromkeys(without_weight(row.method) for row in rows):
        here = [row for row in rows if without_weight(row.method) == method]
        means.append(["mean", method, *(f"{np.mean([getattr(row, name) for row in here]):.3f}" for name in numbers)])
    write_tables(
        args.out / "measured",
        fields_of(PhaseRow, rows, digits=5),
        f"# Measured gradient echoes, R = 2 x 2 CAIPIRINHA, {checkpoint.model_id}",
        f"Every echo of gre_complex/, 8 simulated coils of known maps with noise of {GRE_NOISE:g} of the scale, a "
        f"calibration block of {GRE_BLOCK}. Errors as for the phantom, but against the measured images, whose own "
        "noise counts. Slope: of the filtered phase against the measured one's, weighted by magnitude.",
        [heads, *means, *table],
    )


def without_weight(method: str) -> str:
    return re.sub(r", [0-9.]+$", "", method)


def changes_of(text: str) -> Changes:
    """Settings such as "noise_factor=.6,noise_scale=.4"."""
    pairs = (part.partition("=") for part in text.split(","))
    return {name: int(value) if value.isdecimal() else float(value) for name, _, value in pairs}


def main() -> None:
    parser = module_parser(__doc__, "out", "model")
    parser.add_argument("--images", type=Path, help="folder with gre_complex/: measured instead of simulated")
    parser.add_argument("--patterns", nargs="+", choices=tuple(PATTERNS), default=list(PATTERNS)[:1])
    parser.add_argument("--subject", type=int, default=0, help="of the phantom")
    parser.add_argument("--partitions", type=int, default=40)
    parser.add_argument("--matrix", type=int, nargs=2, default=(224, 176), metavar=("ROWS", "COLS"))
    parser.add_argument("--samples", type=int, help="to average (default: the model's)")
    parser.add_argument("--try", dest="tries", type=changes_of, nargs="*", default=[], metavar="KEY=VALUE,...")
    args = parser.parse_args()
    args.tries = [{}, *args.tries]
    checkpoint = load_model(args.model, "cpu").of_scan(volume=True)
    (phantom_report if args.images is None else measured_report)(args, checkpoint)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
