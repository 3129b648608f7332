"""What serves volumes best, on simulated ones: `python -m dpmtrain.evaluate.volumes --images DATA --out DIR`.

planes: which planes of thin slabs and of long voxels help, for `planes_of`. support: where the coil maps end. folds:
when two sets of coil maps serve a head that folds along its rows, or is cut off there. slabs: whether the rule for rows
would do for partitions, where slabs cut heads off. Each writes a table in markdown and CSV to a folder of its name.
Scores that are there already are not made again.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.errors import DpmreconError
from dpmrecon.physics.volume_map_sets import DOUBLE, folded_share
from dpmrecon.physics.volume_maps import CROP, central, estimate_volume_maps, grid_of, volume_operator
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint, sampler_defaults, volume_defaults
from dpmrecon.prior.kinds import settings_from
from dpmrecon.prior.problem import NoiseSource, Planes, never
from dpmrecon.prior.samplers.diffusion import SamplerSettings, sample_prox
from dpmrecon.recon.plan import CPU_BATCH
from dpmrecon.recon.prepare import SWI_CROP
from dpmrecon.recon.sample import sample_seed, volume_problem
from dpmrecon.recon.types import MappedVolume
from dpmrecon.recon.volumes import mapped_volume, with_volume_maps
from dpmrecon.simulation.settings import VolumeSettings

from ..arguments import exit_code, module_parser
from .methods import label_for
from .metrics import nrmse
from .score_lines import ScoreLines
from .tables import fields_of, write_tables
from .validation_volumes import COARSE, VOLUMES, ReferenceVolume, phantom_volume, slab_with_field, validation_volume

R = 4
HEAD = 0.1  # of the truth's scale, which is 1: what is brighter is head
TURNS = (0, 1, 2)
CONTRASTS = ("t1", "flair", "swi")
# the voxel in mm and the partitions of slabs of SWI
SLABS = [
    ((2.0, 2.0, 2.0), 16),
    ((2.0, 2.0, 2.0), 24),
    ((2.0, 2.0, 2.0), 40),
    ((3.0, 2.0, 2.0), 16),
    ((4.0, 2.0, 2.0), 24),
]
# axes that planes are cut across, and settings in place of the card's
WAYS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "planes 0": ((0,), {}),
    "planes 0, no total variation": ((0,), {"across": 0.0}),
    "planes 0 1 2": (TURNS, {}),
    "planes 0 1 2, no total variation": (TURNS, {"across": 0.0}),
}
CROPS = (0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
CROPPED_SLABS = [((2.0, 2.0, 2.0), 24), ((3.0, 2.0, 2.0), 32)]
FIELD_SUBJECT = 1
FOLD_VOXEL = (4.0, 3.5, 3.5)
FOLD_HEADS = (("flair", 0.0155), ("t1", 0.003))
CUT_SLABS = ((16, 3.0), (24, 2.0), (24, 4.0), (36, 4.0))  # partitions and their thickness in mm
FOLD_ROWS = ((196.0, True), (210.0, True), (225.0, True), (240.0, True), (196.0, False), (210.0, False))


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

    def nrmse(self, image: torch.Tensor | np.ndarray) -> float:
        return nrmse(np.asarray(image), self.truth)

    def card_settings(self, checkpoint: Checkpoint) -> SamplerSettings:
        """What the card has for volumes of such a contrast."""
        label = label_for(checkpoint, self.contrast)
        own = volume_defaults(checkpoint.card, "prox", label)
        return settings_from(own[0] if own else sampler_defaults(checkpoint.card, "prox", label, R)[0])


def sampled_volume(
    case: Case, mapped: MappedVolume, checkpoint: Checkpoint, axes: tuple[int, ...], changes: dict[str, Any]
) -> torch.Tensor:
    """One sample (partitions, rows, cols) complex64 at scale 1. axes: that planes are cut across in turn; changes: of
    the card's settings."""
    problem = replace(volume_problem(mapped, CPU_BATCH), planes=Planes(axes, CPU_BATCH))
    noise = NoiseSource([sample_seed(0, mapped.data.seed_key, 0)])
    prior = checkpoint.model.of_contrast(label_for(checkpoint, case.contrast))
    settings = replace(case.card_settings(checkpoint), **changes)
    return mapped.model.combined(sample_prox(problem, prior, settings, noise, never)[0])


@dataclass(frozen=True)
class SlabRow:
    """way: of WAYS."""

    slab: str
    way: str
    nrmse: float


def planes(images: Path, checkpoint: Checkpoint, out: Path) -> None:
    lines = ScoreLines(out / "planes" / "scores.jsonl")
    rows = []
    for voxel, partitions in SLABS:
        case = Case(validation_volume(images, "swi", voxel, partitions))
        name = f"{partitions} partitions of {voxel[0]:g} mm, pixels of {voxel[1]:g} mm"
        for way, (axes, changes) in WAYS.items():

            def make(
                case: Case = case, axes: tuple[int, ...] = axes, changes: dict[str, Any] = changes
            ) -> dict[str, float]:
                return {"nrmse": case.nrmse(sampled_volume(case, case.mapped, checkpoint, axes, changes))}

            key = {"slab": name, "axes": axes, "model": checkpoint.model_id, **changes}
            rows.append(SlabRow(name, way, lines.get(key, make)["nrmse"]))
            print(f"{name}, {way}: {rows[-1].nrmse:.4f}", flush=True)
    table = [["slab", *WAYS]]
    for name in dict.fromkeys(row.slab for row in rows):
        table.append([name, *(f"{row.nrmse:.4f}" for row in rows if row.slab == name)])
    write_tables(
        out / "planes",
        fields_of(SlabRow, rows, digits=5),
        f"# Which planes of a slab help, {checkpoint.model_id}",
        "SWI, axial partitions: NRMSE of one sample by the card's settings with planes cut across these axes in "
        "turn. Planes 0 are the acquired ones; planes 1 and 2 have the partitions as their rows. The total variation "
        "across the planes that a step cuts is a setting of the card.",
        table,
    )


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
                image = sampled_volume(case, mapped, checkpoint, TURNS, {})
                lost = float((mapped.model.support.numpy() == 0)[head].mean())
                conventional = case.nrmse(mapped.model.combined(mapped.conventional))
                return SupportRow(case.name, crop, case.nrmse(image), conventional, lost)

            key = {"volume": case.name, "crop": crop, "model": checkpoint.model_id}
            rows.append(lines.row(SupportRow, key, make))
            print(f"{case.name}, crop {crop:g}: {rows[-1].nrmse:.4f}", flush=True)
    table = [["volume", *(f"{crop:g}" for crop in CROPS)]]
    for name in dict.fromkeys(row.volume for row in rows):
        here = [row for row in rows if row.volume == name]
        table.append([name, *(f"{row.nrmse:.4f} ({row.cg_sense:.4f}), {100 * row.lost:.1f} %" for row in here)])
    write_tables(
        out / "support",
        fields_of(SupportRow, rows, digits=5),
        f"# Where the coil maps of volumes end, {checkpoint.model_id}",
        "NRMSE of one sample (of CG-SENSE), and the part of the head that no coil sees, by the eigenvalue below "
        f"which maps are 0; the product takes {CROP:g}, of SWI {SWI_CROP:g}.",
        table,
    )


@dataclass(frozen=True)
class FoldRow:
    """share: of the head, where two of its places meet; of either number of sets NRMSE of one sample, and of
    CG-SENSE."""

    head: str
    rows_mm: float
    beyond: str
    share: float
    one: float
    one_cg_sense: float
    two: float
    two_cg_sense: float


def folding_head(contrast: str, noise: float, rows_mm: float, *, wrap: bool) -> ReferenceVolume:
    """A phantom's head, see `head_settings`."""
    return phantom_volume(head_settings(contrast, noise, rows_mm, wrap=wrap))


def head_settings(contrast: str, noise: float, rows_mm: float, *, wrap: bool) -> VolumeSettings:
    """Coarse voxels, R = 2 x 2, 16 x 16 lines of calibration. rows_mm: the field of view along the rows, beyond which
    the head folds (`wrap`) or is cut off."""
    return VolumeSettings(
        contrast=contrast,
        matrix=(2 * round(rows_mm / FOLD_VOXEL[1] / 2), 64),
        fov_mm=(rows_mm, 64 * FOLD_VOXEL[2]),
        partitions=36,
        slice_thickness_mm=FOLD_VOXEL[0],
        calibration_lines=16,
        noise=noise,
        rotation_deg=(12.0, 0.0, 0.0),
        wrap=wrap,
        subject=FIELD_SUBJECT,
    )


def folds(checkpoint: Checkpoint, out: Path) -> None:
    lines = ScoreLines(out / "folds" / "scores.jsonl")
    rows = []
    for contrast, noise in FOLD_HEADS:
        for rows_mm, wrap in FOLD_ROWS:
            head, beyond = f"{contrast}, noise {noise:g}", "folds" if wrap else "cut off"

            def make(
                contrast: str = contrast, noise: float = noise, rows_mm: float = rows_mm, wrap: bool = wrap,
                head: str = head, beyond: str = beyond,
            ) -> FoldRow:  # fmt: skip
                case = Case(folding_head(contrast, noise, rows_mm, wrap=wrap))
                data, shape = case.reference.data, case.truth.shape
                assert data.calibration is not None
                calibration = central(data.calibration)
                share = folded_share(volume_operator(calibration), grid_of(shape))
                scores = []
                for fold in (math.inf, 0.0):
                    copy = replace(data, kspace=data.kspace.clone())
                    mapped = mapped_volume(copy, estimate_volume_maps(calibration, shape, fold=fold), {})
                    assert isinstance(mapped, MappedVolume)
                    scores.append(case.nrmse(sampled_volume(case, mapped, checkpoint, TURNS, {})))
                    scores.append(case.nrmse(mapped.model.combined(mapped.conventional)))
                return FoldRow(head, rows_mm, beyond, share, *scores)

            key = {"head": head, "rows_mm": rows_mm, "beyond": beyond, "model": checkpoint.model_id}
            rows.append(lines.row(FoldRow, key, make))
            print(rows[-1], flush=True)
    table = [["head", "field of view along the rows", "beyond it", "share", "one set", "two sets"]]
    for row in rows:
        pairs = ((row.one, row.one_cg_sense), (row.two, row.two_cg_sense))
        scores = [f"{ours:.4f} ({conventional:.4f})" for ours, conventional in pairs]
        table.append([row.head, f"{row.rows_mm:g} mm", row.beyond, f"{row.share:.4f}", *scores])
    write_tables(
        out / "folds",
        fields_of(FoldRow, rows, digits=5),
        f"# When two sets of coil maps serve a volume, {checkpoint.model_id}",
        "A phantom's head, voxels of 4 x 3.5 x 3.5 mm, R = 2 x 2: share of the head where two of its places meet, and "
        f"NRMSE of one sample (of CG-SENSE) by one and two sets; the product takes two above {DOUBLE:g}.",
        table,
    )


@dataclass(frozen=True)
class SlabFoldRow:
    """extent_mm: of the slab, or of the field of view along what folds; share: as of FoldRow; one, two: NRMSE of
    CG-SENSE by either number of sets."""

    head: str
    extent_mm: float
    beyond: str
    share: float
    one: float
    two: float


def partitions_as_rows(reference: ReferenceVolume) -> ReferenceVolume:
    data = reference.data
    assert data.calibration is not None
    z, y, x = data.voxel_mm
    turned = replace(
        data,
        kspace=data.kspace.transpose(1, 2).contiguous(),
        mask=data.mask.transpose(0, 1).contiguous(),
        calibration=data.calibration.transpose(1, 2).contiguous(),
        voxel_mm=(y, z, x),
    )
    return replace(reference, data=turned, truth=reference.truth.swapaxes(0, 1).copy())


def cut_slabs(out: Path) -> None:
    lines = ScoreLines(out / "slabs" / "scores.jsonl")
    rows = []
    for contrast, noise in FOLD_HEADS:
        head = f"{contrast}, noise {noise:g}"

        def make(reference: ReferenceVolume, extent: float, beyond: str, head: str = head) -> SlabFoldRow:
            data, truth = reference.data, reference.truth
            assert data.calibration is not None
            calibration = central(data.calibration)
            share = folded_share(volume_operator(calibration), grid_of(truth.shape))
            scores = []
            for fold in (math.inf, 0.0):
                maps = estimate_volume_maps(calibration, truth.shape, fold=fold)
                mapped = mapped_volume(replace(data, kspace=data.kspace.clone()), maps, {})
                assert isinstance(mapped, MappedVolume)
                scores.append(nrmse(mapped.model.combined(mapped.conventional).abs().numpy(), truth))
            return SlabFoldRow(head, extent, beyond, share, *scores)

        for partitions, thickness in CUT_SLABS:
            settings = replace(
                head_settings(contrast, noise, 240.0, wrap=False),
                partitions=partitions, slice_thickness_mm=thickness,
            )  # fmt: skip
            beyond = f"cut off, partitions of {thickness:g} mm"
            slab = partial(make, partitions_as_rows(phantom_volume(settings)), partitions * thickness, beyond)
            rows.append(lines.row(SlabFoldRow, {"head": head, "slab": [partitions, thickness]}, slab))
            print(rows[-1], flush=True)
        for rows_mm in (210.0, 225.0):
            folding = partial(make, folding_head(contrast, noise, rows_mm, wrap=True), rows_mm, "folds")
            rows.append(lines.row(SlabFoldRow, {"head": head, "rows_mm": rows_mm}, folding))
            print(rows[-1], flush=True)
    table = [["head", "extent", "beyond it", "share", "one set", "two sets"]]
    for row in rows:
        numbers = [f"{row.share:.4f}", f"{row.one:.4f}", f"{row.two:.4f}"]
        table.append([row.head, f"{row.extent_mm:g} mm", row.beyond, *numbers])
    write_tables(
        out / "slabs",
        fields_of(SlabFoldRow, rows, digits=5),
        "# Would the rule for rows do for partitions?",
        f"Share of the head that the rule for rows (two sets above {DOUBLE:g}) takes for folded, and NRMSE of CG-SENSE "
        "by one and two sets: sound slabs, which cut a head off, their partitions in the place of rows, beside heads "
        "that fold.",
        table,
    )


def main() -> None:
    parser = module_parser(__doc__, "images", "out", "model")
    parser.add_argument("part", choices=("planes", "support", "folds", "slabs"), help="what to choose")
    parser.add_argument("--contrasts", nargs="+", choices=tuple(VOLUMES), default=list(CONTRASTS), help="volumes")
    parser.add_argument(
        "--coarse", nargs="+", choices=tuple(VOLUMES), default=[], help="volumes with voxels of 3 mm, or 4 x 2 x 2 mm"
    )
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.model).of_scan(volume=True)
    if args.part == "planes":
        planes(args.images, checkpoint, args.out)
        return
    if args.part == "folds":
        folds(checkpoint, args.out)
        return
    if args.part == "slabs":
        cut_slabs(args.out)
        return
    voxels = {name: COARSE[name] for name in args.coarse}
    cases = [Case(validation_volume(args.images, name, voxels.get(name))) for name in args.contrasts]
    slabs = [validation_volume(args.images, "swi", *slab) for slab in CROPPED_SLABS]
    support([*cases, *map(Case, [*slabs, slab_with_field(FIELD_SUBJECT)])], checkpoint, args.out)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
