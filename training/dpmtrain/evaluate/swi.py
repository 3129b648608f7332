"""Veins, phase and a microbleed after undersampling: `python -m dpmtrain.evaluate.swi --out DIR`.

Simulates SWI of the phantom in three dimensions, fully sampled and at R = 4, and writes a table in markdown and CSV and
a picture. With --images, the same of the measured gradient echoes of gre_complex/, whose coils are simulated: their
phase. --try measures other settings of the sampler beside the card's.
"""

import argparse
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.errors import DpmreconError
from dpmrecon.options import Options
from dpmrecon.output.swi import LOW_PASS, filtered_phase, minimum_projection, slab_count, weighted
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.prior.kinds import settings_from
from dpmrecon.recon.plan import sampling_of
from dpmrecon.recon.stream import sampled
from dpmrecon.recon.types import Reconstruction
from dpmrecon.tools.simulated_slice import SwiMasks, swi_masks

from ..files import writing
from .baselines import bart_volume, tuned_weight
from .methods import label_for
from .metrics import Moments, high_band_energy, scan_factor
from .references import CPU
from .report import markdown, write_tables
from .swi_cases import GRE_BLOCK, GRE_NOISE, NOISE, PATTERNS, Case, gre_cases, in_map_phase, phantom, phantom_cases
from .swi_figures import bleed_size, dark_phase, local_contrast, phase_error, picture, slope
from .volumes import HEAD, PENALTIES

VEINS = -1  # sign of their phase in simulated scans
WEIGHTS = PENALTIES["L1-wavelet 3D (BART)"][1]


@dataclass(frozen=True)
class SwiRow:
    """Ratios are over the full scan's. See NOTES."""

    scan: str
    method: str
    nrmse: float
    swi: float
    swi_ratio: float
    minip: float
    minip_ratio: float
    vein_rad: float
    vein_ratio: float
    phase_rad: float
    filtered_rad: float
    bleed: float
    bleed_mm: float
    high_rows: float
    high_cols: float
    seconds: float


@dataclass(frozen=True)
class PhaseRow:
    scan: str
    method: str
    nrmse: float
    phase_rad: float
    filtered_rad: float
    slope: float
    seconds: float


WINDOW_MM = 9.0  # in the plane, of what is around a vein
NOTES = f"""NRMSE: of the magnitude, one least-squares factor. Veins in SWI and in its minIP: 1 less their mean over
that of the head around them, within {WINDOW_MM:g} mm in the plane. Vein phase: mean filtered phase of veins, where the
truth's is negative. In brackets: over the full scan's. Phase errors, of the image and of the filtered phase: root mean
square inside the head, weighted by the truth's magnitude, but for a constant. Microbleed: 1 less its darkest voxel over
what is around it, in the magnitude, and the diameter of a ball of the volume that is darker than half way. High band:
energy in the upper third of |k| along rows and along columns, inside the head, over the truth's. The full scan has the
noise of R = 1, {NOISE:g} of the scale a channel. L1-wavelet has the weight that is best for this very scan. Seconds:
one thread of a machine that other jobs share."""


def nrmse(image: np.ndarray, truth: np.ndarray) -> float:
    moments = Moments.of(image, truth, np.ones(truth.shape, bool))
    return moments.nrmse(scan_factor([moments]))


Changes = dict[str, float | int]  # settings of the sampler in place of the card's
Found = tuple[str, np.ndarray, float]  # method, image with its phase, seconds


def images_of(case: Case, checkpoint: Checkpoint, tries: list[Changes], samples: int | None) -> Iterator[Found]:
    """Every method's; a method for each of `tries`."""
    yield "full scan", in_map_phase(case.full, case.full.zero_filled), case.full.seconds["conventional"]
    yield "truth, without noise", case.truth, 0.0
    yield "CG-SENSE", in_map_phase(case.mapped, case.mapped.conventional), case.mapped.seconds["conventional"]
    if shutil.which("bart") is not None:
        images: dict[float, tuple[np.ndarray, float]] = {}

        def error(weight: float) -> float:
            started = time.perf_counter()
            image = in_map_phase(case.mapped, bart_volume(case.mapped, "W", weight))
            images[weight] = image, time.perf_counter() - started
            return nrmse(image, case.truth)

        weight = tuned_weight(error, WEIGHTS)[0]
        yield f"L1-wavelet 3D (BART), {weight:g}", *images[weight]
    label = label_for(checkpoint, "swi")
    for changes in tries:
        options = Options() if samples is None else Options(samples=samples)
        plan = sampling_of(options, checkpoint, CPU, label, case.mapped.data.acceleration, keep_samples=True)
        plan = replace(plan, settings=settings_from({**vars(plan.settings), **changes}))
        (item,) = sampled([case.mapped], checkpoint, label, plan)
        assert isinstance(item, Reconstruction) and item.draws is not None
        if item.fallback:
            raise DpmreconError(f"the sampler's image is not used: {item.fallback}")
        said = "".join(f", {name} {value:g}" for name, value in changes.items())
        seconds = item.seconds["sampling"]
        if plan.samples > 1:
            yield f"dpmrecon, 1 sample{said}", in_map_phase(case.mapped, item.draws[0]), seconds / plan.samples
        yield f"dpmrecon{said}", in_map_phase(case.mapped, item.image), seconds


def widths(shape: tuple[int, ...]) -> tuple[int, int]:
    return round(LOW_PASS * shape[1]), round(LOW_PASS * shape[2])


def filtered(image: np.ndarray) -> np.ndarray:
    return filtered_phase(torch.from_numpy(image), widths(image.shape)).numpy()


class Judge:
    """Of a case's images against its truth and its full scan, the first one that is asked for."""

    def __init__(self, case: Case, masks: SwiMasks):
        self.case, self.masks, self.truth = case, masks, case.truth
        self.magnitude = np.abs(case.truth)
        self.head = self.magnitude > HEAD * np.percentile(self.magnitude, 99)
        self.weight = self.magnitude * self.head
        self.filtered = filtered(case.truth)
        self.count = slab_count(case.voxel_mm[0], len(case.truth))
        rows, cols = (2 * round(WINDOW_MM / side / 2) + 1 for side in case.voxel_mm[1:])
        self.window = rows, cols
        self.of_full: tuple[float, float, float] | None = None

    def swi(self, image: np.ndarray) -> np.ndarray:
        return weighted(np.abs(image), filtered(image), VEINS)

    def minip(self, volume: np.ndarray) -> np.ndarray:
        return minimum_projection(volume, self.count)

    def row(self, found: Found) -> SwiRow:
        method, image, seconds = found
        phase, swi = filtered(image), self.swi(image)
        veins = -minimum_projection(-self.masks.veins.astype(np.int8), self.count) > 0
        contrasts = (
            local_contrast(swi, self.masks.veins, self.head, self.window),
            local_contrast(self.minip(swi), veins, self.minip(self.head), self.window),
            dark_phase(phase, self.filtered, self.masks.veins & self.head),
        )
        self.of_full = full = self.of_full or contrasts
        scale = scan_factor([Moments.of(image, self.truth, np.ones(image.shape, bool))])
        return SwiRow(
            self.case.name,
            method,
            nrmse(image, self.truth),
            contrasts[0],
            contrasts[0] / full[0],
            contrasts[1],
            contrasts[1] / full[1],
            contrasts[2],
            contrasts[2] / full[2],
            phase_error(np.angle(image), np.angle(self.truth), self.weight),
            phase_error(phase, self.filtered, self.weight),
            *bleed_size(np.abs(image), self.masks.bleed, self.case.voxel_mm),
            high_band_energy(scale * np.abs(image), self.magnitude, self.head, 1),
            high_band_energy(scale * np.abs(image), self.magnitude, self.head, 2),
            seconds,
        )

    def pictures(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Projection through the microbleed, and magnitude and phase around veins and it."""
        partition, row, col = (int(round(places.mean())) for places in self.masks.bleed.nonzero())
        first = min(max(partition - self.count // 2, 0), len(image) - self.count)
        near = (partition, slice(max(row - 48, 0), row + 32), slice(max(col - 16, 0), col + 72))
        scale = scan_factor([Moments.of(image, self.truth, np.ones(image.shape, bool))])
        return {
            "projection of SWI": scale * self.minip(self.swi(image))[first],
            "magnitude": scale * np.abs(image)[near],
            "filtered phase": filtered(image)[near],
        }


def phase_row(case: Case, found: Found) -> PhaseRow:
    method, image, seconds = found
    magnitude = np.abs(case.truth)
    weight = magnitude * (magnitude > HEAD * np.percentile(magnitude, 99))
    phase, true_phase = filtered(image), filtered(case.truth)
    return PhaseRow(
        case.name,
        method,
        nrmse(image, case.truth),
        phase_error(np.angle(image), np.angle(case.truth), weight),
        phase_error(phase, true_phase, weight),
        slope(phase, true_phase, weight),
        seconds,
    )


def told(row: SwiRow) -> list[str]:
    return [
        row.scan,
        row.method,
        f"{row.nrmse:.4f}",
        f"{row.swi:.3f} ({row.swi_ratio:.2f})",
        f"{row.minip:.3f} ({row.minip_ratio:.2f})",
        f"{row.vein_rad:.3f} ({row.vein_ratio:.2f})",
        f"{row.phase_rad:.3f}",
        f"{row.filtered_rad:.3f}",
        f"{row.bleed:.3f}",
        f"{row.bleed_mm:.2f}",
        f"{row.high_rows:.2f}, {row.high_cols:.2f}",
        f"{row.seconds:.0f}",
    ]


HEADS = ["R = 4", "method", "NRMSE", "veins in SWI", "in the minIP", "vein phase, rad", "phase error, rad",
         "filtered phase error, rad", "microbleed", "its diameter, mm", "high band", "seconds"]  # fmt: skip


def phantom_report(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    settings = phantom(args.subject, args.partitions, tuple(args.matrix))
    masks, rows = swi_masks(settings), []
    for case in phantom_cases(settings, args.patterns):
        judge = Judge(case, masks)
        columns = {}
        for found in images_of(case, checkpoint, args.tries, args.samples):
            rows.append(judge.row(found))
            print(" | ".join(told(rows[-1])), flush=True)
            columns[found[0].split(",")[0]] = judge.pictures(found[1])
        if case.name == args.patterns[0]:
            figure = picture(columns)
            with writing(args.out / "swi.png"):
                figure.savefig(args.out / "swi.png", dpi=80)
    size = f"{settings.partitions} x {settings.rows} x {settings.cols}"
    text = [
        f"# SWI in three dimensions, {checkpoint.model_id}",
        f"Phantom, subject {settings.subject}, {size} voxels of 2 x .9 x .9 mm, {settings.n_coils} coils, calibration "
        f"block of {settings.calibration_lines}.",
        NOTES,
        "\n".join(markdown([HEADS, *map(told, rows)])),
    ]
    write_tables(args.out, SwiRow, rows, "\n\n".join(text), digits=5)


def measured_report(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    rows = []
    for case in gre_cases(args.images):
        for found in images_of(case, checkpoint, args.tries, args.samples):
            rows.append(phase_row(case, found))
            print(rows[-1], flush=True)
    heads = ["scan", "method", "NRMSE", "phase error, rad", "filtered phase error, rad", "slope of filtered phase"]
    table = [
        [row.scan, row.method, *(f"{value:.3f}" for value in (row.nrmse, row.phase_rad, row.filtered_rad, row.slope))]
        for row in rows
    ]
    means = [
        ["mean", method, *(f"{np.mean([getattr(row, name) for row in rows if row.method.split(', ')[0] == method]):.3f}"
         for name in ("nrmse", "phase_rad", "filtered_rad", "slope"))]
        for method in dict.fromkeys(row.method.split(", ")[0] for row in rows)
    ]  # fmt: skip
    text = [
        f"# Measured gradient echoes, R = 2 x 2 CAIPIRINHA, {checkpoint.model_id}",
        f"Every echo of gre_complex/, 8 simulated coils of known maps with noise of {GRE_NOISE:g} of the scale, a "
        f"calibration block of {GRE_BLOCK}. Errors as for the phantom, but against the measured images, whose own "
        "noise counts. Slope: of the filtered phase against the measured one's, weighted by magnitude.",
        "\n".join(markdown([heads, *means, *table])),
    ]
    write_tables(args.out / "measured", PhaseRow, rows, "\n\n".join(text), digits=5)


def changes_of(text: str) -> Changes:
    """Settings such as "noise_factor=.6,noise_scale=.4"."""
    pairs = (part.partition("=") for part in text.split(","))
    return {name: int(value) if value.isdecimal() else float(value) for name, _, value in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and the picture")
    parser.add_argument("--images", type=Path, help="folder with gre_complex/: measured instead of simulated")
    parser.add_argument("--patterns", nargs="+", choices=tuple(PATTERNS), default=list(PATTERNS))
    parser.add_argument("--subject", type=int, default=0, help="of the phantom")
    parser.add_argument("--partitions", type=int, default=40)
    parser.add_argument("--matrix", type=int, nargs=2, default=(224, 176), metavar=("ROWS", "COLS"))
    parser.add_argument("--samples", type=int, help="to average (default: the model's)")
    parser.add_argument("--try", dest="tries", type=changes_of, nargs="*", default=[], metavar="KEY=VALUE,...")
    parser.add_argument("--model", type=Path, help="checkpoint (default: the one that ships)")
    args = parser.parse_args()
    args.tries = [{}, *args.tries]
    (phantom_report if args.images is None else measured_report)(args, load_model(args.model, "cpu"))


if __name__ == "__main__":
    main()
