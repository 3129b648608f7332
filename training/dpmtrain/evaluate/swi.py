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
from functools import partial
from pathlib import Path

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.data import SliceKey, Volume
from dpmrecon.errors import DpmreconError
from dpmrecon.options import Options
from dpmrecon.output.swi import LOW_PASS, filtered_phase, minimum_projection, slab_count, weighted
from dpmrecon.physics.fourier import origin_to_corner, to_kspace
from dpmrecon.physics.scale import image_scale
from dpmrecon.physics.volume import hybrid
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.recon.plan import sampling_of
from dpmrecon.recon.stream import sampled
from dpmrecon.recon.types import MappedVolume, Reconstruction
from dpmrecon.recon.volumes import mapped_volume, with_volume_maps
from dpmrecon.tools.simulated_slice import SwiMasks, coil_maps, swi_masks
from dpmrecon.tools.simulated_volume import simulated_volume
from dpmrecon.tools.simulation_settings import VolumeSettings

from .baselines import bart_volume, tuned_weight
from .metrics import Moments, high_band_energy, scan_factor
from .references import CPU
from .report import markdown, write_tables
from .swi_figures import bleed_size, dark_phase, local_contrast, phase_error, picture, slope
from .volumes import HEAD, PENALTIES

VEINS = -1  # sign of their phase in simulated scans
NOISE = 0.03  # per real channel, over the truth's 99th percentile
PATTERNS = {"2 x 2 CAIPIRINHA": (2, 2, 1), "4 x 1": (4, 1, 0)}  # R of rows, of partitions, shift of partitions
WEIGHTS = PENALTIES["L1-wavelet 3D (BART)"][1]
GRE_VOXEL = (1.0, 0.47, 0.47)  # mm
GRE_NOISE, GRE_BLOCK, GRE_FOV = 0.02, 12, 190.0  # of the scale; lines; mm that the coils take the small volume for


@dataclass
class Case:
    """A scan: fully sampled, undersampled, and its truth (partitions, rows, cols) complex64 with the phase that the
    coil maps, which both share, leave it. voxel_mm: along partitions, rows and columns."""

    name: str
    full: MappedVolume
    mapped: MappedVolume
    truth: np.ndarray
    voxel_mm: tuple[float, float, float]


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


NOTES = f"""NRMSE: of the magnitude, one least-squares factor. SWI, minIP: contrast of veins, 1 less their mean over that
of the head within {{window:g}} mm in the plane; vein: the mean of their filtered phase, where the truth's is negative;
in brackets the ratio to the full scan's. Phase error, filtered phase error: root mean square inside the head, weighted
by the truth's magnitude, a constant taken off. Microbleed: contrast of its darkest voxel in the magnitude, and the
diameter of a ball of the volume below half of it. High band: energy in the upper third of |k| along rows and columns,
inside the head, over the truth's. The truth has no noise, the full scan has that of R = 1: {NOISE:g} of the scale a
channel. L1-wavelet has the weight that is best for this very scan. Seconds: on a machine that other jobs share."""
WINDOW_MM = 9.0


def phantom(subject: int, partitions: int, matrix: tuple[int, int]) -> VolumeSettings:
    """Fully sampled, voxels of 2 x .9 x .9 mm."""
    return VolumeSettings(
        contrast="swi",
        subject=subject,
        matrix=matrix,
        fov_mm=(0.9 * matrix[0], 0.9 * matrix[1]),
        partitions=partitions,
        position_mm=(0.0, 2.0, 28.0),
        acceleration=1,
        partition_acceleration=1,
        calibration_lines=min(24, partitions),
        noise=0.0,
    )


def lines_of(settings: VolumeSettings) -> torch.Tensor:
    """(partitions, rows) float32, 1 where acquired."""
    lines = torch.zeros(settings.partitions, settings.rows)
    for place in (*settings.grid_places(), *settings.calibration_places()):
        lines[place] = 1
    return lines


def acquired(kspace: torch.Tensor, lines: torch.Tensor, block: int, noise: float, voxel_mm, factor: float) -> Volume:
    """A Volume of k-space with its noise; block: lines of the calibration each way, at most."""
    shape = kspace.shape[1:]
    centre = tuple(
        slice(size // 2 - min(block, size) // 2, size // 2 + (min(block, size) + 1) // 2) for size in shape[:2]
    )
    mask = lines[..., None].expand(shape).contiguous()
    calibration, count = kspace[(slice(None), *centre)].clone(), int(lines.sum())
    key = SliceKey(0)
    return Volume(
        key, kspace * mask, mask, calibration, noise, "known", factor, count, count, key.seed_key, voxel_mm=voxel_mm
    )  # fmt: skip


def in_map_phase(mapped: MappedVolume, image: torch.Tensor) -> np.ndarray:
    return (image * mapped.phase).numpy()


def mapped(data: Volume) -> MappedVolume:
    found = with_volume_maps(data, CPU)
    if not isinstance(found, MappedVolume):
        raise DpmreconError(f"the scan is lost: {found.reason}")
    return found


def phantom_cases(settings: VolumeSettings, patterns: list[str]) -> Iterator[Case]:
    clean, magnitude = (torch.from_numpy(array) for array in simulated_volume(settings))
    noise = NOISE * image_scale(magnitude)
    generator = torch.Generator().manual_seed(settings.seed)
    noisy = torch.stack([coil + noise * complex_noise(coil.shape, generator) for coil in clean])
    voxel = (settings.slice_thickness_mm, *settings.pixel_mm)
    take = partial(acquired, noisy, block=settings.calibration_lines, noise=noise, voxel_mm=voxel)
    full = mapped(take(torch.ones(noisy.shape[1:3]), factor=1.0))
    truth = in_map_phase(full, full.model.adjoint(hybrid(clean)))
    for name in patterns:
        rows, partitions, shift = PATTERNS[name]
        under = replace(settings, acceleration=rows, partition_acceleration=partitions, caipirinha=shift)
        yield Case(name, full, mapped(take(lines_of(under), factor=float(rows * partitions))), truth, voxel)


def gre_cases(images: Path) -> Iterator[Case]:
    """The first echo of both measured volumes, R = 2 x 2."""
    import nibabel

    for name in ("CLEARSWI", "ROMEO"):
        parts = [
            np.asarray(nibabel.load(images / f"gre_complex/{name}_{kind}.nii").dataobj) for kind in ("Mag", "Phase")
        ]
        for echo in range(parts[0].shape[3] if parts[0].ndim == 4 else 1):
            magnitude, phase = (part[..., echo] if part.ndim == 4 else part for part in parts)
            image = magnitude * np.exp(1j * np.pi * phase / 0.0036743774)
            image = np.ascontiguousarray(image.T[tuple(slice(size // 2 * 2) for size in image.T.shape)])
            yield gre_case(f"{name}, echo {echo + 1}", torch.from_numpy(image.astype(np.complex64)))


def gre_case(name: str, image: torch.Tensor) -> Case:
    """The coils are those of a head: the small volume is taken for one."""
    image = image / image_scale(image.abs())
    shape = tuple(image.shape)
    axes = [(np.arange(size) - size // 2) * GRE_FOV / size for size in shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij")[::-1], -1).astype(np.float32)
    maps = torch.from_numpy(coil_maps(points, 8))
    maps /= torch.linalg.vector_norm(maps, dim=0)
    generator = torch.Generator().manual_seed(0)
    kspace = to_kspace(maps * image, (1, 2, 3)) + GRE_NOISE * complex_noise(maps.shape, generator)
    lines = torch.zeros(shape[:2])
    for row in range(shape[1] // 2 % 2, shape[1], 2):
        lines[(shape[0] // 2 + row // 2) % 2 :: 2, row] = 1
    low, high = ([size // 2 + side * GRE_BLOCK // 2 for size in shape[:2]] for side in (-1, 1))
    lines[low[0] : high[0], low[1] : high[1]] = 1
    found = []
    for some, factor in ((torch.ones(shape[:2]), 1.0), (lines, 4.0)):
        data = acquired(kspace, some, GRE_BLOCK, GRE_NOISE, GRE_VOXEL, factor)
        packed = origin_to_corner(maps.permute(3, 0, 1, 2), (-2, -1)).clone()
        one = mapped_volume(data, packed, {})
        assert isinstance(one, MappedVolume)
        found.append(one)
    return Case(name, found[0], found[1], image.numpy(), GRE_VOXEL)


def nrmse(image: np.ndarray, truth: np.ndarray) -> float:
    moments = Moments.of(image, truth, np.ones(truth.shape, bool))
    return moments.nrmse(scan_factor([moments]))


Found = tuple[str, np.ndarray, float]  # method, image with its phase, seconds


def images_of(
    case: Case, checkpoint: Checkpoint, tries: list[dict[str, float]], samples: int | None
) -> Iterator[Found]:
    """Every method's; tries: settings of the sampler in place of the card's, a method each."""
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
    for changes in tries:
        options = Options() if samples is None else Options(samples=samples)
        plan = sampling_of(options, checkpoint, CPU, "swi", case.mapped.data.acceleration, keep_samples=True)
        plan = replace(plan, settings=replace(plan.settings, **changes))
        (item,) = sampled([case.mapped], checkpoint, "swi", plan)
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
        self.window = tuple(2 * round(WINDOW_MM / side / 2) + 1 for side in case.voxel_mm[1:])
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
            *(value for pair in zip(contrasts, np.divide(contrasts, full).tolist()) for value in pair),
            phase_error(np.angle(image), np.angle(self.truth), self.weight),
            phase_error(phase, self.filtered, self.weight),
            *bleed_size(np.abs(image), self.masks.bleed, self.case.voxel_mm),
            *(high_band_energy(scale * np.abs(image), self.magnitude, self.head, axis) for axis in (1, 2)),
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
            args.out.mkdir(parents=True, exist_ok=True)
            figure.savefig(args.out / "swi.png", dpi=110)
    size = f"{settings.partitions} x {settings.rows} x {settings.cols}"
    text = [
        f"# SWI in three dimensions, {checkpoint.model_id}",
        f"Phantom, subject {settings.subject}, {size} voxels of 2 x .9 x .9 mm, {settings.n_coils} coils, calibration "
        f"block of {settings.calibration_lines}.",
        NOTES.format(window=WINDOW_MM),
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
        f"gre_complex/, every echo, {GRE_NOISE:g} of the scale added as noise to 8 simulated coils, whose maps are known;"
        f" block of {GRE_BLOCK}. Errors as for the phantom, against the measured images, whose own noise counts; slope: "
        "of the filtered phase against the measured one's, weighted by magnitude.",
        "\n".join(markdown([heads, *means, *table])),
    ]
    write_tables(args.out / "measured", PhaseRow, rows, "\n\n".join(text), digits=5)


def changes(text: str) -> dict[str, float]:
    """Settings such as "noise_factor=.6,noise_scale=.4"."""
    return {name: float(value) for name, _, value in (part.partition("=") for part in text.split(","))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and the picture")
    parser.add_argument("--images", type=Path, help="folder with gre_complex/: measured instead of simulated")
    parser.add_argument("--patterns", nargs="+", choices=tuple(PATTERNS), default=list(PATTERNS))
    parser.add_argument("--subject", type=int, default=0, help="of the phantom")
    parser.add_argument("--partitions", type=int, default=40)
    parser.add_argument("--matrix", type=int, nargs=2, default=(224, 176), metavar=("ROWS", "COLS"))
    parser.add_argument("--samples", type=int, help="to average (default: the model's)")
    parser.add_argument("--try", dest="tries", type=changes, nargs="*", default=[], metavar="KEY=VALUE,...")
    parser.add_argument("--model", type=Path, help="checkpoint (default: the one that ships)")
    args = parser.parse_args()
    args.tries = [{}, *args.tries]
    (phantom_report if args.images is None else measured_report)(args, load_model(args.model, "cpu"))


if __name__ == "__main__":
    main()
