"""What serves volumes best, on simulated ones: `python -m dpmtrain.evaluate.volumes --images DATA --out DIR`.

schemes: how planes are shown to the prior, beside conventional methods at the weights that are best for that very
volume (BART's where it is installed). settings: of the sampler, one changed at a time. planes: thin slabs and long
voxels, for `planes_of`. support: where the coil maps end. Each writes a table in markdown and CSV to a folder of its
name, schemes pictures as well. Images and scores that are there already are not made again.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.errors import DpmreconError
from dpmrecon.physics.cg_sense import cg_sense
from dpmrecon.physics.volume_maps import CROP
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint, sampler_defaults, volume_defaults
from dpmrecon.prior.kinds import settings_from
from dpmrecon.prior.samplers.diffusion import SamplerSettings
from dpmrecon.recon.prepare import SWI_CROP
from dpmrecon.recon.types import MappedVolume
from dpmrecon.recon.volumes import with_volume_maps
from matplotlib.figure import Figure

from ..arguments import exit_code, read_grid
from ..files import writing
from .baselines import SENSE_WEIGHTS, bart_volume, tuned_weight
from .methods import label_for
from .metrics import high_band_energy, neighbour_nrmse, nrmse, on_scale
from .score_lines import ScoreLines
from .tables import fields_of, markdown, write_tables
from .validation_volumes import COARSE, VOLUMES, ReferenceVolume, slab_with_field, validation_volume
from .volume_schemes import Scheme, sampled_volume

R = 4
HEAD = 0.1  # of the truth's scale, which is 1: what is brighter is head
MAGNIFIED, BRIGHTEST = 4, 0.9  # of pictures: errors, and the share of the head that is not shown white
TURNS = (0, 1, 2)
SCHEMES = {
    "planes 0": Scheme((0,)),
    "planes 1": Scheme((1,)),
    "planes 2": Scheme((2,)),
    "planes 0, 1 in turn": Scheme((0, 1)),
    "planes 0, 1, 2 in turn": Scheme(TURNS),
    "planes 0, noise shared .8": Scheme((0,), correlation=0.8),
    "in turn, noise shared .8": Scheme(TURNS, correlation=0.8),
}
TV_STRENGTHS = (0.05, 0.1, 0.2)
PENALTIES = {"L1-wavelet 3D (BART)": ("W", (0.007, 0.014, 0.028)), "TV 3D (BART)": ("T", (0.004, 0.008, 0.016))}
CONTRASTS = ("t1", "flair", "swi")
GRID: dict[str, tuple[float | int, ...]] = {
    "steps": (10, 15, 30),
    "sigma_max": (0.3, 0.8),
    "noise_scale": (0.2, 0.6),
    "noise_factor": (0.6, 0.9),
    "cg_steps": (2, 8),
    "cg_tolerance": (0.08,),
}
SAMPLES = 3
# the voxel in mm and the partitions of slabs of SWI
SLABS = [
    ((2.0, 2.0, 2.0), 16),
    ((2.0, 2.0, 2.0), 24),
    ((2.0, 2.0, 2.0), 40),
    ((3.0, 2.0, 2.0), 16),
    ((3.0, 2.0, 2.0), 32),
    ((4.0, 2.0, 2.0), 24),
    ((4.0, 2.0, 2.0), 30),
    ((6.0, 2.0, 2.0), 20),
]
SLAB_AXES = ((0,), (0, 1), TURNS)
CROPS = (0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
CROPPED_SLABS = [((2.0, 2.0, 2.0), 24), ((3.0, 2.0, 2.0), 32)]
FIELD_SUBJECT = 1
PICTURED = ["CG-SENSE", *PENALTIES, "planes 0", "planes 0, TV across", "planes 0, 1, 2 in turn"]
NOTES = """NRMSE: of the volume, one least-squares factor. Neighbours: NRMSE of the differences of neighbouring slices
along partitions, rows and columns. High band: energy in the upper third of |k| along each of them, inside the head,
over the truth's; noise counts too, so that 1 alone says nothing. Conventional methods and TV across the planes have the
weight that is best for that very volume. Ours: one sample by the card's settings. Seconds: on a machine that other jobs
share."""


class Case:
    """A simulated volume, mapped when it is first used."""

    def __init__(self, reference: ReferenceVolume):
        self.reference, self.contrast, self.truth = reference, reference.contrast, reference.truth

    @property
    def name(self) -> str:
        """Such as "t1 90x118x112, 2x2x2 mm"."""
        size = "x".join(map(str, self.truth.shape))
        return f"{self.contrast} {size}, {'x'.join(f'{side:g}' for side in self.reference.data.voxel_mm)} mm"

    @cached_property
    def mapped(self) -> MappedVolume:
        return self.mapped_with(SWI_CROP if self.contrast == "swi" else CROP)

    def mapped_with(self, crop: float) -> MappedVolume:
        """crop: of the coil maps."""
        data = self.reference.data
        mapped = with_volume_maps(replace(data, kspace=data.kspace.clone()), torch.device("cpu"), crop)
        if not isinstance(mapped, MappedVolume):
            raise DpmreconError(f"the simulated volume of {self.contrast} is lost: {mapped.reason}")
        return mapped

    def scored(self, image: torch.Tensor | np.ndarray) -> np.ndarray:
        """The magnitude, times its least-squares factor."""
        return on_scale(np.abs(np.asarray(image)).astype(np.float32), self.truth)

    def nrmse(self, image: torch.Tensor | np.ndarray) -> float:
        return nrmse(np.asarray(image), self.truth)

    def card_settings(self, checkpoint: Checkpoint) -> SamplerSettings:
        """What the card has for volumes of such a contrast."""
        label = label_for(checkpoint, self.contrast)
        own = volume_defaults(checkpoint.card, "prox", label)
        return settings_from(own[0] if own else sampler_defaults(checkpoint.card, "prox", label, R)[0])

    def bart(self, penalty: str, weight: float) -> torch.Tensor:
        return bart_volume(self.mapped, penalty, weight)

    def cg_sense(self, weight: float) -> torch.Tensor:
        mapped = self.mapped
        return cg_sense(mapped.model, mapped.zero_filled, mapped.data.sigma_n, mapped.scale, weight)


@dataclass(frozen=True)
class VolumeRow:
    """A line of the table of schemes; neighbours and high band along partitions, rows and columns."""

    volume: str
    method: str
    weight: float
    nrmse: float
    neighbours: str
    high_band: str
    seconds: float


Best = tuple[torch.Tensor, float, float]  # image, weight, seconds of it alone


def once(run: Callable[[], torch.Tensor]) -> Best:
    started = time.perf_counter()
    return run(), float("nan"), time.perf_counter() - started


def best(case: Case, run: Callable[[float], torch.Tensor], weights: tuple[float, ...]) -> Best:
    """With the weight that is best for the volume."""
    found: dict[float, Best] = {}

    def error(weight: float) -> float:
        image, _, seconds = once(lambda: run(weight))
        found[weight] = image, weight, seconds
        return case.nrmse(image)

    return found[tuned_weight(error, weights)[0]]


def methods(case: Case, checkpoint: Checkpoint) -> dict[str, Callable[[], Best]]:
    settings = case.card_settings(checkpoint)

    def ours(scheme: Scheme) -> torch.Tensor:
        return sampled_volume(case.mapped, checkpoint, case.contrast, settings, scheme)

    found: dict[str, Callable[[], Best]] = {
        "zero-filled": lambda: once(lambda: case.mapped.zero_filled),
        "CG-SENSE": lambda: best(case, case.cg_sense, SENSE_WEIGHTS),
        **{name: partial(once, partial(ours, scheme)) for name, scheme in SCHEMES.items()},
        "planes 0, TV across": lambda: best(case, lambda tv: ours(Scheme((0,), tv=tv)), TV_STRENGTHS),
    }
    if shutil.which("bart") is not None:
        for name, (penalty, weights) in PENALTIES.items():
            found[name] = partial(best, case, partial(case.bart, penalty), weights)
    return found


def scheme_rows(case: Case, checkpoint: Checkpoint, folder: Path) -> Iterator[tuple[VolumeRow, np.ndarray]]:
    """Every method's row and scaled magnitude, which is kept in a file of `folder`."""
    head = case.truth > HEAD
    for name, run in methods(case, checkpoint).items():
        path = folder / f"{case.name} {name}.npz"
        if not path.exists():
            _ = case.mapped
            image, weight, seconds = run()
            with writing(path):
                np.savez(path, image=case.scored(image).astype(np.float16), weight=weight, seconds=seconds)
        kept = np.load(path)
        image = kept["image"].astype(np.float32)
        row = VolumeRow(
            case.name,
            name,
            float(kept["weight"]),
            case.nrmse(image),
            ", ".join(f"{neighbour_nrmse(image, case.truth, axis):.3f}" for axis in range(3)),
            ", ".join(f"{high_band_energy(image, case.truth, head, axis):.2f}" for axis in range(3)),
            float(kept["seconds"]),
        )
        print(f"{row.volume}, {row.method}: {row.nrmse:.4f}, {row.seconds:.0f} s", flush=True)
        yield row, image


def schemes(cases: list[Case], checkpoint: Checkpoint, out: Path) -> None:
    rows = []
    for case in cases:
        pictures = {"truth": case.truth}
        for row, image in scheme_rows(case, checkpoint, out / "schemes" / "images"):
            rows.append(row)
            if row.method in PICTURED:
                pictures[row.method] = image
        voxel = case.reference.data.voxel_mm
        picture(pictures, voxel).savefig(out / "schemes" / f"{case.contrast}.png", dpi=60)
    head = ["volume", "method", "weight", "NRMSE", "neighbours", "high band", "seconds"]
    lines = [
        [
            row.volume,
            row.method,
            "" if np.isnan(row.weight) else f"{row.weight:g}",
            f"{row.nrmse:.4f}",
            row.neighbours,
            row.high_band,
            f"{row.seconds:.0f}",
        ]
        for row in rows
    ]
    text = "\n\n".join([f"# Volumes, {checkpoint.model_id}", NOTES, "\n".join(markdown([head, *lines]))])
    write_tables(out / "schemes", fields_of(VolumeRow, rows, digits=5), text)


def picture(volumes: dict[str, np.ndarray], voxel_mm: tuple[float, ...]) -> Figure:
    """The middle planes across three axes, a column a volume, MAGNIFIED errors below. The first one is the truth."""
    made = Figure((2.2 * len(volumes), 13.2), layout="constrained")
    axes = made.subplots(6, len(volumes), squeeze=False)
    truth = next(iter(volumes.values()))
    white = float(np.quantile(truth[truth > HEAD], BRIGHTEST))
    for column, (name, volume) in enumerate(volumes.items()):
        axes[0, column].set_title(name, fontsize=8)
        for axis in range(3):
            down, across = np.delete(voxel_mm, axis)
            middle = volume.shape[axis] // 2
            error = MAGNIFIED * np.abs(volume - truth)
            for row, image in ((axis, volume), (axis + 3, error)):
                plane = image.take(middle, axis)
                panel = axes[row, column]
                panel.imshow(plane, cmap="gray", vmin=0, vmax=white, aspect=down / across, interpolation="nearest")
                panel.set_axis_off()
    return made


@dataclass(frozen=True)
class SettingsRow:
    """NRMSE of one sample of a volume, and of the mean of SAMPLES of them (nan where one alone was drawn)."""

    volume: str
    key: str
    value: float
    present: bool
    nrmse: float
    nrmse_mean: float
    seconds: float


def settings_row(
    case: Case, checkpoint: Checkpoint, lines: ScoreLines, changes: dict[str, float | int], samples: int
) -> SettingsRow:
    """One sample, and the mean of `samples` where there are more, by the card's settings with `changes`."""
    settings = replace(case.card_settings(checkpoint), **changes)  # type: ignore[arg-type]

    def make() -> dict[str, Any]:
        _ = case.mapped
        started = time.perf_counter()
        draws = [
            sampled_volume(case.mapped, checkpoint, case.contrast, settings, Scheme(TURNS), sample)
            for sample in range(samples)
        ]
        seconds = (time.perf_counter() - started) / samples
        return {"one": case.nrmse(draws[0]), "mean": case.nrmse(torch.stack(draws).mean(0)), "seconds": seconds}

    voxel = case.reference.data.voxel_mm
    place = {"contrast": case.contrast, "voxel": voxel, "shape": case.truth.shape, "model": checkpoint.model_id}
    found = lines.get({**place, "settings": vars(settings), "samples": samples}, make)
    ((key, value),) = changes.items() or [("card", float("nan"))]
    mean = found["mean"] if samples > 1 else float("nan")
    row = SettingsRow(case.name, key, value, not changes, found["one"], mean, found["seconds"])
    print(f"{row.volume}, {key} {value:g}: {row.nrmse:.4f}, mean {mean:.4f}, {row.seconds:.0f} s", flush=True)
    return row


def settings(cases: list[Case], checkpoint: Checkpoint, out: Path, grid: Mapping[str, Sequence[float | int]]) -> None:
    lines = ScoreLines(out / "settings" / "scores.jsonl")
    volumes, rows = [case.name for case in cases], []
    for case in cases:
        rows.append(settings_row(case, checkpoint, lines, {}, SAMPLES))
        for key, values in grid.items():
            rows += [settings_row(case, checkpoint, lines, {key: value}, 1) for value in values]
    base = {row.volume: row.nrmse for row in rows if row.present}
    head = ["setting", "value", *volumes, "mean change"]
    table = [head]
    for key, value in dict.fromkeys((row.key, row.value) for row in rows if not row.present):
        here = [row for row in rows if (row.key, row.value) == (key, value)]
        change = np.mean([row.nrmse / base[row.volume] - 1 for row in here])
        table.append([key, f"{value:g}", *(f"{row.nrmse:.4f}" for row in here), f"{100 * change:+.1f} %"])
    present = [["card", "", *(f"{base[volume]:.4f}" for volume in volumes), ""]]
    means = [row.nrmse_mean for row in rows if row.present]
    change = np.mean([mean / base[volume] - 1 for volume, mean in zip(volumes, means)])
    present.append([f"card, {SAMPLES} samples", "", *(f"{mean:.4f}" for mean in means), f"{100 * change:+.1f} %"])
    text = "\n\n".join(
        [
            f"# Settings for volumes, {checkpoint.model_id}",
            "NRMSE of one sample by the card's settings with one of them changed; planes in turn.",
            "\n".join(markdown([head, *present, *table[1:]])),
        ]
    )
    write_tables(out / "settings", fields_of(SettingsRow, rows, digits=5), text)


@dataclass(frozen=True)
class SlabRow:
    slab: str
    axes: str
    nrmse: float
    seconds: float


def planes(images: Path, checkpoint: Checkpoint, out: Path) -> None:
    lines = ScoreLines(out / "planes" / "scores.jsonl")
    rows = []
    for voxel, partitions in SLABS:
        case = Case(validation_volume(images, "swi", voxel, partitions))
        name = f"{partitions} partitions of {voxel[0]:g} mm, pixels of {voxel[1]:g} mm"
        for axes in SLAB_AXES:

            def make(case: Case = case, name: str = name, axes: tuple[int, ...] = axes) -> SlabRow:
                mapped, by_card = case.mapped, case.card_settings(checkpoint)
                run = partial(sampled_volume, mapped, checkpoint, case.contrast, by_card, Scheme(axes))
                image, _, seconds = once(run)
                return SlabRow(name, " ".join(map(str, axes)), case.nrmse(image), seconds)

            rows.append(lines.row(SlabRow, {"slab": name, "axes": axes, "model": checkpoint.model_id}, make))
            print(f"{name}, axes {rows[-1].axes}: {rows[-1].nrmse:.4f}", flush=True)
    table = [["slab", *(f"planes {' '.join(map(str, axes))}" for axes in SLAB_AXES)]]
    for name in dict.fromkeys(row.slab for row in rows):
        table.append([name, *(f"{row.nrmse:.4f}" for row in rows if row.slab == name)])
    text = "\n\n".join(
        [
            f"# Which planes of a slab help, {checkpoint.model_id}",
            "SWI, axial partitions: NRMSE of one sample by the card's settings with planes cut across these axes in "
            "turn. Planes 0 are the acquired ones; planes 1 and 2 have the partitions as their rows.",
            "\n".join(markdown(table)),
        ]
    )
    write_tables(out / "planes", fields_of(SlabRow, rows, digits=5), text)


@dataclass(frozen=True)
class SupportRow:
    """NRMSE of one sample and of CG-SENSE by its usual weight; lost: share of the head where the maps are 0."""

    volume: str
    crop: float
    nrmse: float
    cg_sense: float
    lost: float


def support(cases: list[Case], checkpoint: Checkpoint, out: Path) -> None:
    lines = ScoreLines(out / "support" / "scores.jsonl")
    rows = []
    for case in cases:
        head = case.truth > HEAD
        for crop in CROPS:

            def make(case: Case = case, crop: float = crop, head: np.ndarray = head) -> SupportRow:
                mapped = case.mapped_with(crop)
                image = sampled_volume(mapped, checkpoint, case.contrast, case.card_settings(checkpoint), Scheme(TURNS))
                lost = float((mapped.model.support.numpy() == 0)[head].mean())
                return SupportRow(case.name, crop, case.nrmse(image), case.nrmse(mapped.conventional), lost)

            key = {"volume": case.name, "crop": crop, "model": checkpoint.model_id}
            rows.append(lines.row(SupportRow, key, make))
            print(f"{case.name}, crop {crop:g}: {rows[-1].nrmse:.4f}", flush=True)
    table = [["volume", *(f"{crop:g}" for crop in CROPS)]]
    for name in dict.fromkeys(row.volume for row in rows):
        here = [row for row in rows if row.volume == name]
        table.append([name, *(f"{row.nrmse:.4f} ({row.cg_sense:.4f}), {100 * row.lost:.1f} %" for row in here)])
    text = "\n\n".join(
        [
            f"# Where the coil maps of volumes end, {checkpoint.model_id}",
            "NRMSE of one sample (of CG-SENSE), and the part of the head that no coil sees, by the eigenvalue below "
            f"which maps are 0; the product takes {CROP:g}, of SWI {SWI_CROP:g}.",
            "\n".join(markdown(table)),
        ]
    )
    write_tables(out / "support", fields_of(SupportRow, rows, digits=5), text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("schemes", "settings", "planes", "support"), help="what to choose")
    parser.add_argument("--images", type=Path, required=True, help="folder with synthseg_labels/")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and images; gone on with if there")
    parser.add_argument("--contrasts", nargs="+", choices=tuple(VOLUMES), default=list(CONTRASTS), help="volumes")
    parser.add_argument(
        "--coarse", nargs="+", choices=tuple(VOLUMES), default=[], help="volumes with voxels of 3 mm, or 4 x 2 x 2 mm"
    )
    parser.add_argument("--grid", nargs="+", metavar="KEY=V1,V2", help="settings to change instead of the usual ones")
    parser.add_argument("--model", type=Path, help="checkpoint (default: the one that ships)")
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.model)
    if args.part == "planes":
        planes(args.images, checkpoint, args.out)
        return
    voxels = {name: COARSE[name] for name in args.coarse}
    cases = [Case(validation_volume(args.images, name, voxels.get(name))) for name in args.contrasts]
    if args.part == "support":
        slabs = [validation_volume(args.images, "swi", *slab) for slab in CROPPED_SLABS]
        support([*cases, *map(Case, [*slabs, slab_with_field(FIELD_SUBJECT)])], checkpoint, args.out)
    elif args.part == "schemes":
        schemes(cases, checkpoint, args.out)
    else:
        settings(cases, checkpoint, args.out, read_grid(args.grid) if args.grid else GRID)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
