"""`dpmtrain gate`: the limits of the gate from sound scans, and how well it tells unsound ones, on other scans.

Volumes have limits of their own; those of slices serve heads that fold too. Cases are painted or mistreated by
`gate_cases.py` and `gate_volumes.py` and come as a scanner's lines: what collector, repairs and checks say of them a
user gets. The network runs at default settings but for two samples of four steps, of a volume one.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.data import LostSlice, Volume
from dpmrecon.options import Options
from dpmrecon.physics.fourier import to_kspace
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.recon.agreement import (
    ANY,
    HELD_BACK,
    NAMES,
    SLICES,
    VOLUMES,
    agreed,
    agreement,
    covariates,
    known_of,
    middle,
    parts_of,
)
from dpmrecon.recon.conventional import mapped_slice
from dpmrecon.recon.gate import judged, over
from dpmrecon.recon.plan import sampling_of
from dpmrecon.recon.prepare import with_maps
from dpmrecon.recon.sample import draw
from dpmrecon.recon.types import MappedSlice, MappedVolume, Reconstruction
from dpmrecon.recon.volumes import mapped_volume

from ..evaluate.lesion_scores import auc
from ..evaluate.metrics import nrmse
from ..evaluate.score_lines import ScoreLines
from ..evaluate.tables import fields_of, joined, write_tables
from . import gate_cases, gate_volumes
from .gate_cases import CALIBRATION, PATHOLOGY, PHANTOM, SOUND, WRAP_ONE_MAP, Case, Head, case_of, slice_of
from .gate_volumes import VolumeCase, head_volume, protocol_of, volume_case, volume_of

R, SIGMA_N = (1, 2, 3, 4, 6, 8), (0.004, 0.06)  # that the limits are measured for; sigma_n over the scale
FALSE_ALARMS = 0.01  # share of either group's sound slices beyond the largest distance
RIDGE, FOLDS = 1e-2, 10  # of the variance of each number; of cross-validation
SHRINK = 0.1  # see `_fitted`; of volumes, of which few subjects were seen
SOME, MORE = 0.05, 1.15  # of a contrast, of which few slices and subjects were seen
FOLDED = "folded"  # slices of heads that fold, which the limits of slices serve
HIGHEST_FOLDED, PART = 4, (0.72, 0.94)  # R of heads that fold; what the field of view holds of them
FAR_TOO_SMALL = (0.5, 0.7)  # and where one map alone is used
TWO_SETS = "two sets of coil maps are used"  # how the remark on every head that folds begins
# scans that are judged, by kind
KINDS = {
    SLICES: gate_cases.KINDS,
    FOLDED: (
        SOUND, "tumour-like mass", "cavity", "shunt", *(f"object: {name}" for name in gate_cases.OBJECTS), "spike",
        "wrong centre", "alternate shots moved", "second half moved", "noise-only coil", WRAP_ONE_MAP,
    ),
    VOLUMES: gate_volumes.KINDS,
}  # fmt: skip
SAID = 3.0  # what a remark of the steps before counts as
BOOTSTRAP = 400
HEADS, FOLDING = 8, 4  # label maps whose volumes set limits, every so many-th of which folds
DRAWN: dict[str, dict[str, list[float]]] = {
    SLICES: {"sigma_n": [*SIGMA_N], "R": [min(R), max(R)]},
    VOLUMES: {"sigma_n": [*gate_volumes.SIGMA_N], "R": [1, max(map(math.prod, gate_volumes.FACTORS))]},
}
PARTS = ("agreement", "held back", "denoised", "residual", "rows", "channels", "remarks", "spread")


@dataclass(frozen=True)
class Row:
    """One scan. The parts are what the checks measure over where they speak, spread the share of the samples' spread
    that no line measures; score: the largest of those that the gate uses; verdict: a word, lost where no image came."""

    kind: str
    subject: str
    contrast: str
    R: int
    sigma_n: float
    matrix: str
    agreement: float
    held_back: float
    denoised: float
    residual: float
    rows: float
    channels: float
    remarks: float
    spread: float
    score: float
    nrmse: float
    verdict: str
    text: str


@dataclass(frozen=True)
class Scan:
    """A sound one that sets limits, made when it is asked. folds: so that two sets of maps must be found."""

    subject: str
    contrast: str
    make: Callable[[], MappedSlice | LostSlice]
    folds: bool = False


def _mapped(case: Case, device: torch.device) -> MappedSlice | LostSlice:
    data = volume_of(case) if isinstance(case, VolumeCase) else slice_of(case)
    found = data if isinstance(data, LostSlice) else with_maps(data, device, case.label)
    if not case.one_map or isinstance(found, LostSlice) or found.n_sets == 1:
        return found
    if isinstance(found, MappedVolume):
        kspace = to_kspace(found.data.kspace, (-1,))
        own: Volume = replace(found.data, kspace=kspace, remarks=())
        return mapped_volume(own, found.model.coil_maps[:, 0].contiguous(), {}, found.n_coils)
    maps = found.model.coil_maps[0] * found.phase.conj()
    return mapped_slice(replace(found.data, remarks=()), maps, {}, found.n_coils)


def _drawn(rng: np.random.Generator) -> tuple[int, float]:
    return int(rng.choice(R)), float(np.exp(rng.uniform(*np.log(SIGMA_N))))


def slice_scans(heads: Sequence[Head], seed: int, device: torch.device) -> list[Scan]:
    """Of each head one."""

    def make(number: int, head: Head) -> MappedSlice | LostSlice:
        rng = np.random.default_rng([seed, number])
        acceleration, sigma = _drawn(rng)
        return _mapped(case_of(head, SOUND, acceleration, sigma, rng)[0], device)

    return [Scan(head.subject, head.contrast, partial(make, number, head)) for number, head in enumerate(heads)]


def _part(kind: str, rng: np.random.Generator) -> float:
    return float(rng.uniform(*(FAR_TOO_SMALL if kind == WRAP_ONE_MAP else PART)))


def _slice_case(
    head: Head, name: str, kind: str, acceleration: int, sigma: float, rng: np.random.Generator
) -> tuple[Case, np.ndarray]:
    if kind == SLICES:
        return case_of(head, name, acceleration, sigma, rng)
    painted = SOUND if name == WRAP_ONE_MAP else name
    part = _part(name, rng)
    case, truth = case_of(head, painted, min(acceleration, HIGHEST_FOLDED), sigma, rng, part)
    case.one_map = name == WRAP_ONE_MAP
    return case, truth


def volume_scans(images: Path, each: int, seed: int, device: torch.device) -> list[Scan]:
    """`each` of HEADS label maps that set limits, in one contrast after the other, and of a phantom of each; of every
    FOLDING-th the head folds."""

    def make(number: int, subject: str, contrast: str) -> MappedSlice | LostSlice:
        rng = np.random.default_rng([seed, number])
        head = head_volume(images, subject, contrast, seed)
        protocol = protocol_of(head, contrast, False, rng)
        part = float(rng.uniform(*PART)) if number % FOLDING == 0 else None
        return _mapped(volume_case(head, SOUND, protocol, contrast, rng, part)[0], device)

    contrasts, maps = gate_volumes.CONTRASTS, gate_cases.LABEL_MAPS
    heads = [(maps[number % len(maps)], contrasts[number % len(contrasts)]) for number in range(HEADS)]
    heads += [(PHANTOM, contrast) for contrast in contrasts]
    return [
        Scan(f"{subject}/{contrast}", contrast, partial(make, number, subject, contrast), number % FOLDING == 0)
        for number, (subject, contrast) in enumerate(head for head in heads for _ in range(each))
    ]


def numbers_of(
    checkpoint: Checkpoint, scans: Sequence[Scan], kind: str, seed: int, lines: ScoreLines | None = None
) -> Iterator[dict[str, Any]]:
    """Of each scan {"subject", "contrast", "parts"}: of each part what is known, its matrix and numbers; none of a scan
    that is lost, or one whose folding is not seen. Those that the results file holds are not made again."""
    denoiser = checkpoint.denoiser

    def asked(scan: Scan) -> dict[str, Any]:
        mapped, parts = scan.make(), []
        if not isinstance(mapped, LostSlice) and mapped.n_sets >= 1 + scan.folds:
            for part in parts_of(mapped):
                values = agreement(part, denoiser.of_contrast(scan.contrast))
                parts.append({"known": known_of(part), "matrix": part.model.mask.numel(), "values": values})
        return {"subject": scan.subject, "contrast": scan.contrast, "parts": parts}

    for number, scan in enumerate(scans):
        key = {"model": checkpoint.model_id, "seed": seed, "limits": kind, "of": len(scans), "number": number}
        yield asked(scan) if lines is None else lines.get(key, partial(asked, scan))


def limits_of(found: Iterable[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The card's entry `gate`, or what it has of a kind, from `numbers_of` sound scans. Limits of any contrast serve
    scans of no known one: the numbers of the labelled prior, of all contrasts together."""
    scans = [scan for scan in found if scan["parts"]]
    parts = [(number, scan, part) for number, scan in enumerate(scans) for part in scan["parts"]]
    number_of = np.array([number for number, _, _ in parts])
    subjects = np.unique([scan["subject"].partition("/")[0] for _, scan, _ in parts], return_inverse=True)[1]
    group = subjects if kind == VOLUMES else number_of
    names = sorted({scan["contrast"] for scan in scans})
    is_contrast = np.array([[float(scan["contrast"] == name) for name in names] for _, scan, _ in parts])
    is_real = np.array([not scan["subject"].startswith(PHANTOM) for _, scan, _ in parts])
    slopes = np.array([covariates(**part["known"])[1:] for _, _, part in parts])
    values = np.array([[part["values"][name] for name in NAMES] for _, _, part in parts])
    shrink = SHRINK if kind == VOLUMES else 0.0
    by_contrast = _fitted(names, np.concatenate([is_contrast, slopes], 1), values, is_real, number_of, group, shrink)
    whole = np.concatenate([np.ones((len(parts), 1)), slopes], 1)
    together = _fitted([ANY], whole, values, is_real, number_of, group, shrink)
    known = {name: [part["known"][name] for _, _, part in parts] for name in parts[0][2]["known"]}
    known["matrix"] = [part["matrix"] for _, _, part in parts]
    return {
        "fits": [by_contrast, together],
        **{name: [round(min(part), 4), round(max(part), 4)] for name, part in known.items()},
        **DRAWN[kind],
        "measured": f"`dpmtrain gate`, {len(scans)} sound {kind}, {100 * FALSE_ALARMS:g} % of which are beyond",
    }


def _fitted(
    names: list[str],
    design: np.ndarray,
    values: np.ndarray,
    is_real: np.ndarray,
    scan: np.ndarray,
    group: np.ndarray,
    shrink: float,
) -> dict[str, Any]:
    """A fit of the card, see `Limits.of`, by least squares. design: a column for each of the names, which is 1 where
    the slice is of that contrast, then the covariates; scan: number of each slice's, a volume has several; group:
    number of what is left out together; shrink: weight of a penalty on the slopes, over that of the slices.

    Distances are those of groups that were left out of the fit, a FOLDS-th of them at a time. Phantoms have less
    detail: they are not fitted to, but FALSE_ALARMS of them alone are beyond as well. Of a contrast few were seen: its
    limit is MORE times that distance, or the one that SOME of its own exceed.
    """
    real, phantoms = np.flatnonzero(is_real), np.flatnonzero(~is_real)
    contrast = design[:, : len(names)].argmax(1)

    def fitted(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients, and the precision of each contrast: half of its covariance is its own, half is of all."""
        slopes = design[some][:, len(names) :]
        penalty = np.zeros((slopes.shape[1], design.shape[1]))
        penalty[:, len(names) :] = math.sqrt(shrink * len(some)) * np.diag(slopes.std(0))
        wanted = np.concatenate([values[some], np.zeros((len(penalty), values.shape[1]))])
        fit = np.linalg.lstsq(np.concatenate([design[some], penalty]), wanted, rcond=None)[0]
        left = values[some] - design[some] @ fit
        common = np.cov(left.T) + 2 * RIDGE * np.diag(left.var(0))
        parts = [left[contrast[some] == number] for number in range(len(names))]
        own = [np.cov(part.T) if len(part) > 1 else common for part in parts]
        return fit, np.linalg.inv((np.array(own) + common) / 2)

    def distances(some: np.ndarray, fit: np.ndarray, precision: np.ndarray) -> tuple[list[float], list[int]]:
        """Of each scan, that of its slices which stands for all, and the scan's contrast."""
        left = values[some] - design[some] @ fit
        far = np.sqrt(np.einsum("ni,nij,nj->n", left, precision[contrast[some]], left))
        scans = [np.flatnonzero(scan[some] == number) for number in dict.fromkeys(scan[some].tolist())]
        return [float(np.sort(far[own])[middle(len(own))]) for own in scans], [
            int(contrast[some][own[0]]) for own in scans
        ]

    fit, precision = fitted(real)
    groups = np.array(list(dict.fromkeys(group[real].tolist())))
    apart: list[float] = []
    order: list[int] = []  # contrasts
    for fold in range(FOLDS):
        out = np.isin(group[real], groups[fold::FOLDS])
        if out.any():
            left_out = distances(real[out], *fitted(real[~out]))
            apart, order = apart + left_out[0], order + left_out[1]
    of_phantoms, theirs = distances(phantoms, fit, precision)
    common = max(float(np.quantile(group, 1 - FALSE_ALARMS)) for group in (apart, of_phantoms) if group)
    far, whose = np.array(apart + of_phantoms), np.array(order + theirs)
    own = [np.quantile(far[whose == number], 1 - SOME) for number in range(len(names))]
    limits = [MORE * max(common, float(limit)) for limit in own] if len(names) > 1 else [common]
    return {
        "levels": dict(zip(names, np.round(fit[: len(names)], 4).tolist())),
        "slopes": np.round(fit[len(names) :], 4).tolist(),
        "precision": dict(zip(names, np.round(precision, 2).tolist())),
        "largest": dict(zip(names, np.round(limits, 3).tolist())),
    }


def judge(
    checkpoint: Checkpoint,
    kinds: Sequence[str],
    row: Callable[[str, np.random.Generator], Row],
    seed: int,
    lines: ScoreLines,
    heads: int = 0,
) -> Iterator[Row]:
    """A row for each kind, but for those that the results file holds by the same limits and settings. row: makes one,
    with what it draws; heads: how many it draws from."""
    by = json.dumps([checkpoint.card.get(name) for name in ("gate", "sampling")], sort_keys=True)
    known = {"model": checkpoint.model_id, "card": sha256(by.encode()).hexdigest()[:12], "heads": heads, "seed": seed}
    for number, kind in enumerate(kinds):
        rng = np.random.default_rng([seed, 1, number])
        key = {**known, "number": number, "kind": kind}
        yield lines.row(Row, key, partial(row, kind, rng))


def slice_row(checkpoint: Checkpoint, heads: Sequence[Head], of: str, kind: str, rng: np.random.Generator) -> Row:
    """One case, with a head drawn for it, through collector, repairs, sampler and gate. of: SLICES or FOLDED."""
    head = heads[int(rng.integers(len(heads)))]
    if kind in PATHOLOGY and head.subject.startswith(PHANTOM):  # has no brain worth painting into
        head = heads[0]
    acceleration, sigma = _drawn(rng)
    if kind.startswith("wrap") and of == SLICES:
        acceleration = min(acceleration, 3)  # of half as many lines
    case, truth = _slice_case(head, kind, of, acceleration, sigma, rng)
    return _row(checkpoint, case, (kind, head.subject, head.contrast, case.acceleration, sigma), truth, of != SLICES)


def volume_row(checkpoint: Checkpoint, images: Path, seed: int, kind: str, rng: np.random.Generator) -> Row:
    """The same of a volume of all of the head: of the label map that is held out, or of a phantom."""
    contrast = str(rng.choice(gate_volumes.CONTRASTS))
    subject = gate_volumes.HELD_OUT if kind in PATHOLOGY or rng.random() < 0.6 else PHANTOM
    head = head_volume(images, subject, contrast, seed)
    protocol = protocol_of(head, contrast, True, rng)
    part = None if kind not in (gate_volumes.FOLDS, WRAP_ONE_MAP) else _part(kind, rng)
    case, truth = volume_case(head, kind, protocol, contrast, rng, part)
    known = (kind, f"{subject}/{contrast}", contrast, math.prod(protocol.factors), protocol.sigma)
    return _row(checkpoint, case, known, truth, part is not None)


def _row(
    checkpoint: Checkpoint, case: Case, known: tuple[str, str, str, int, float], truth: np.ndarray, folds: bool
) -> Row:
    """folds: the head does, so that it is no sound scan where one set of maps is found."""
    mapped = _mapped(case, checkpoint.model.device)
    unseen = (
        folds
        and known[0] in (SOUND, gate_volumes.FOLDS, *PATHOLOGY)
        and isinstance(mapped, MappedSlice)
        and mapped.n_sets == 1
    )
    about = (WRAP_ONE_MAP if unseen else known[0], *known[1:], "x".join(map(str, case.kspace.shape[1:])))
    if isinstance(mapped, LostSlice):
        no = math.nan
        return Row(*about, no, no, no, no, no, no, SAID, no, SAID, no, "lost", mapped.reason)
    if folds or isinstance(mapped, MappedVolume):
        remarks = tuple(remark for remark in mapped.data.remarks if not remark.startswith(TWO_SETS))
        mapped.data = replace(mapped.data, remarks=remarks)
    item = _reconstructed(checkpoint, mapped, case.label, known[3])
    measured = over(item)
    deviations = {} if item.agreement is None else item.agreement.deviations
    beyond = item.agreement is not None and item.agreement.beyond is not None
    said = SAID if mapped.data.remarks or beyond else 0.0
    used = [measured.get(name, 0.0) for name in ("agreement", "residual", "rows", "channels")]
    seen, reason = judged(item)
    found = item.image.abs().cpu().numpy()
    return Row(
        *about,
        agreement=measured.get("agreement", math.nan),
        held_back=abs(deviations.get(HELD_BACK, math.nan)),
        denoised=max((abs(value) for name, value in deviations.items() if name != HELD_BACK), default=math.nan),
        residual=measured.get("residual", math.nan),
        rows=measured.get("rows", math.nan),
        channels=measured.get("channels", math.nan),
        remarks=said,
        spread=_spread(item),
        score=max([*used, said]),
        nrmse=nrmse(found, truth) if found.shape == truth.shape else math.nan,
        verdict="not trusted" if reason is not None else seen.verdict.partition(":")[0],
        text=reason or seen.verdict.partition(": ")[2],
    )


def _reconstructed(checkpoint: Checkpoint, mapped: MappedSlice, label: str, acceleration: int) -> Reconstruction:
    model, samples = checkpoint.model, 1 if isinstance(mapped, MappedVolume) else 2
    sampling = sampling_of(Options(samples=samples, steps=4), checkpoint, model.device, label, acceleration)
    (draws,), _ = draw([mapped], checkpoint, label, sampling)
    image = draws.mean(0) * mapped.scale
    misfit, found = mapped.misfit(image), agreed(mapped, checkpoint, label)
    return Reconstruction(
        mapped, mapped.model.combined(image), None, None, misfit.residual,
        draws=draws, misfit=misfit, agreement=None if isinstance(found, str) else found,
    )  # fmt: skip


def _spread(item: Reconstruction) -> float:
    """Of the difference of two samples, the energy that no line measures over that of the image; of one sample nan."""
    assert item.draws is not None
    if len(item.draws) < 2:
        return math.nan
    mapped = item.mapped
    apart = item.draws[0] - item.draws[1]
    whole, measured = (float(part.abs().square().sum()) for part in (apart, mapped.model.forward(apart)))
    return max(0.0, whole - measured) / max(1e-30, float(item.draws[0].abs().square().sum()))


_NOISES = [f"sigma_n {low:g} to {high:g} of the scale" for low, high in (SIGMA_N, gate_volumes.SIGMA_N)]
ABOUT = {
    SLICES: f"""R {min(R)} to {max(R)}, {_NOISES[0]}, pixels of .9 to 1.8 mm, 8 coils,
{CALIBRATION} calibration lines.""",
    FOLDED: f"""which are those of slices: the field of view holds {PART[0]:g} to {PART[1]:g} of the head along the
lines, and the rest folds.
R {min(R)} to {HIGHEST_FOLDED}, {_NOISES[0]}, pixels of .9 to 1.8 mm, 8 coils, {CALIBRATION} calibration lines.
That two sets of maps are used is said of each of them, and does not count here. One map: the second is left out, and
the field of view holds {FAR_TOO_SMALL[0]:g} to {FAR_TOO_SMALL[1]:g}; or the folding is not seen.""",
    VOLUMES: f"""volumes of a head at 3 to 5 mm, of sagittal or axial partitions that are up to 2.6 times as thick.
R 1 to {DRAWN[VOLUMES]["R"][1]:g}, {_NOISES[1]}, 5 coils, a block of 16 or 20 lines each way.
Of those that fold the field of view holds {PART[0]:g} to {PART[1]:g} of the head; that two sets of maps are used
is said of each of them, and does not count here. One map: the second is left out, and the field of view holds
{FAR_TOO_SMALL[0]:g} to {FAR_TOO_SMALL[1]:g}; or the folding is not seen.""",
}
NOTES = """Sound heads, and such as are painted, mistreated or none, from other scans than those that set the limits;
{about} AUROC: of sound scans against those of the kind, with its 95 % bootstrap interval, of
the gate's score and of each number alone (agreement: of held back, denoised and kept together; denoised: the largest
deviation of the latter two; remarks: of the collector and the repairs; spread: not used by the gate). Found: above
the score that 2 % of the sound ones exceed. Flagged, not trusted: at the limits of the card; caution counts as flagged.
A scan that is refused is found and flagged."""


def table(rows: Sequence[Row], model_id: str, seed: int, of: str = SLICES) -> str:
    """Of all kinds of slices, folded heads or volumes, and of the sound ones by contrast and R."""
    sound = [row for row in rows if row.kind == SOUND]
    limit = float(np.quantile([row.score for row in sound], 0.98))
    head = ["kind", "scans", "AUROC", "95 %", *PARTS, "found", "flagged", "not trusted", "NRMSE"]
    lines = [head]
    for kind in [kind for kind in KINDS[of] if any(row.kind == kind for row in rows)]:
        some = [row for row in rows if row.kind == kind]
        lines.append(_line(kind, some, sound, limit, seed))
    objects = [row for row in rows if row.kind.startswith("object: ")]
    if objects:
        lines.append(_line("object, all", objects, sound, limit, seed))
    pathology = [row for row in rows if row.kind in PATHOLOGY]
    if pathology:
        lines.append(_line("pathology, all", pathology, sound, limit, seed))
    by = [["sound", "scans", "flagged"]]
    for name in sorted({row.contrast for row in sound}):
        by.append(_share(name, [row for row in sound if row.contrast == name]))
    for number in sorted({row.R for row in sound}):
        by.append(_share(f"R = {number}", [row for row in sound if number == row.R]))
    for group in sorted({row.subject.partition("/")[0] for row in sound}):
        by.append(_share(group, [row for row in sound if row.subject.startswith(group)]))
    flagged = [f"- {row.subject}, R = {row.R}: {row.verdict}: {row.text}" for row in sound if row.verdict != "trusted"]
    return joined(f"# The gate, {model_id}", NOTES.format(about=ABOUT[of]), lines, by, "\n".join(flagged))


def _share(name: str, rows: Sequence[Row]) -> list[str]:
    return [name, str(len(rows)), f"{np.mean([row.verdict != 'trusted' for row in rows]):.1%}"]


def _line(kind: str, rows: Sequence[Row], sound: Sequence[Row], limit: float, seed: int) -> list[str]:
    def areas(name: str) -> str:
        ours, others = ([getattr(row, name) for row in some] for some in (rows, sound))
        ours, others = ([v for v in values if not math.isnan(v)] for values in (ours, others))
        return f"{auc(ours, others):.2f}" if ours and others and kind != SOUND else "-"

    scores, others = np.array([row.score for row in rows]), np.array([row.score for row in sound])
    total, interval = "-", "-"
    if kind != SOUND:
        rng = np.random.default_rng(seed)
        drawn = [auc(*(rng.choice(some, len(some)).tolist() for some in (scores, others))) for _ in range(BOOTSTRAP)]
        low, high = np.quantile(drawn, (0.025, 0.975))
        total, interval = f"{auc(scores.tolist(), others.tolist()):.3f}", f"{low:.2f} to {high:.2f}"
    errors = [row.nrmse for row in rows if not math.isnan(row.nrmse)]
    return [
        kind,
        str(len(rows)),
        total,
        interval,
        *(areas(name.replace(" ", "_")) for name in PARTS),
        f"{np.mean(scores > limit):.0%}",
        f"{np.mean([row.verdict != 'trusted' for row in rows]):.0%}",
        f"{np.mean([row.verdict in ('not trusted', 'lost') for row in rows]):.0%}",
        f"{np.median(errors):.3f}" if errors else "-",
    ]


def write_gate(out: Path, rows: Sequence[Row], model_id: str, seed: int, of: str) -> None:
    """table.csv of all scans and table.md, which is printed too."""
    write_tables(out, fields_of(Row, rows, digits=4), table(rows, model_id, seed, of))
