"""`dpmtrain gate`: the limits of the gate from sound slices, and how well it tells unsound ones, on other slices.

Cases are painted or mistreated by `gate_cases.py` and come as a scanner's lines: what collector, repairs and checks say
of them a user gets. The network runs at default settings but for two samples of four steps.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.data import LostSlice
from dpmrecon.options import Options
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.prior.denoiser import Denoiser
from dpmrecon.recon.agreement import ANY, HELD_BACK, NAMES, Limits, agreement, covariates
from dpmrecon.recon.conventional import mapped_slice
from dpmrecon.recon.gate import judged, over
from dpmrecon.recon.plan import sampling_of
from dpmrecon.recon.prepare import with_maps
from dpmrecon.recon.sample import draw
from dpmrecon.recon.types import MappedSlice, Reconstruction

from .gate_cases import CALIBRATION, KINDS, PATHOLOGY, PHANTOM, SOUND, Case, Head, case_of, slice_of
from .lesion_scores import auc
from .metrics import nrmse
from .score_lines import ScoreLines
from .tables import fields_of, markdown, write_tables

R, SIGMA_N = (1, 2, 3, 4, 6, 8), (0.004, 0.06)  # that the limits are measured for; sigma_n over the scale
FALSE_ALARMS = 0.01  # share of either group's sound slices beyond the largest distance
RIDGE, FOLDS = 1e-2, 10  # of the variance of each number; of cross-validation
SOME, MORE = 0.05, 1.15  # of a contrast, of which few slices and subjects were seen
SAID = 3.0  # what a remark of the steps before counts as
BOOTSTRAP = 400
PARTS = ("agreement", "held back", "denoised", "residual", "rows", "channels", "remarks", "spread")


@dataclass(frozen=True)
class Row:
    """One slice. The parts are what the checks measure over where they speak, spread the share of the samples' spread
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


def _mapped(case: Case, device: torch.device) -> MappedSlice | LostSlice:
    data = slice_of(case)
    found = data if isinstance(data, LostSlice) else with_maps(data, device, case.label)
    if case.one_map and isinstance(found, MappedSlice) and found.n_sets > 1:
        maps = found.model.coil_maps[0] * found.phase.conj()
        return mapped_slice(replace(found.data, remarks=()), maps, {}, found.n_coils)
    return found


def _drawn(rng: np.random.Generator) -> tuple[int, float]:
    return int(rng.choice(R)), float(np.exp(rng.uniform(*np.log(SIGMA_N))))


def limits_of(checkpoint: Checkpoint, heads: Sequence[Head], seed: int) -> dict[str, Any]:
    """The card's entry `gate`, from each head once. Limits of any contrast serve scans of no known one: the numbers
    of the labelled prior, of all contrasts together."""
    denoiser = checkpoint.denoiser
    known, values, sizes, used = [], [], [], []
    for number, head in enumerate(heads):
        rng = np.random.default_rng([seed, number])
        acceleration, sigma = _drawn(rng)
        case, _ = case_of(head, SOUND, acceleration, sigma, rng)
        mapped = _mapped(case, denoiser.device)
        found = {} if isinstance(mapped, LostSlice) else agreement(mapped, denoiser.of_contrast(head.contrast))
        if isinstance(mapped, LostSlice) or not found:
            continue
        values.append([found[name] for name in NAMES])
        pixels = float(mapped.model.support.sum())
        known.append(covariates(mapped.data.sigma_n / mapped.scale, acceleration, pixels)[1:])
        sizes.append((pixels, mapped.model.mask.numel()))
        used.append(head)
    names = sorted({head.contrast for head in used})
    is_contrast = np.array([[float(head.contrast == name) for name in names] for head in used])
    is_real = np.array([not head.subject.startswith(PHANTOM) for head in used])
    slopes = np.array(known)
    by_contrast = _fitted(names, np.concatenate([is_contrast, slopes], 1), np.array(values), is_real)
    together = _fitted([ANY], np.concatenate([np.ones((len(used), 1)), slopes], 1), np.array(values), is_real)
    return {
        "fits": [by_contrast, together],
        "sigma_n": list(SIGMA_N),
        "R": [min(R), max(R)],
        **{name: [min(part), max(part)] for name, part in zip(("head", "matrix"), zip(*sizes))},
        "measured": f"`dpmtrain gate`, {len(used)} sound slices, {100 * FALSE_ALARMS:g} % of which are beyond",
    }


def _fitted(names: list[str], design: np.ndarray, values: np.ndarray, is_real: np.ndarray) -> dict[str, Any]:
    """A fit of the card, see `Limits.of`, by least squares. design: a column for each of the names, which is 1 where
    the slice is of that contrast, then the covariates.

    Distances are those of slices that were left out of the fit, a FOLDS-th of them at a time. Phantoms have less
    detail: they are not fitted to, but FALSE_ALARMS of them alone are beyond as well. Of a contrast few were seen: its
    limit is MORE times that distance, or the one that SOME of its own exceed.
    """
    real, phantoms = np.flatnonzero(is_real), np.flatnonzero(~is_real)
    contrast = design[:, : len(names)].argmax(1)

    def fitted(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients, and the precision of each contrast: half of its covariance is its own, half is of all."""
        fit = np.linalg.lstsq(design[some], values[some], rcond=None)[0]
        left = values[some] - design[some] @ fit
        common = np.cov(left.T) + 2 * RIDGE * np.diag(left.var(0))
        parts = [left[contrast[some] == number] for number in range(len(names))]
        own = [np.cov(part.T) if len(part) > 1 else common for part in parts]
        return fit, np.linalg.inv((np.array(own) + common) / 2)

    def distances(some: np.ndarray, fit: np.ndarray, precision: np.ndarray) -> np.ndarray:
        left = values[some] - design[some] @ fit
        return np.sqrt(np.einsum("ni,nij,nj->n", left, precision[contrast[some]], left))

    fit, precision = fitted(real)
    apart = [distances(real[n::FOLDS], *fitted(np.delete(real, np.s_[n::FOLDS]))) for n in range(FOLDS)]
    groups = [np.concatenate(apart), distances(phantoms, fit, precision)]
    common = max(float(np.quantile(group, 1 - FALSE_ALARMS)) for group in groups if len(group))
    order = np.concatenate([*(real[n::FOLDS] for n in range(FOLDS)), phantoms])
    far = np.concatenate(groups)
    own = [np.quantile(far[contrast[order] == number], 1 - SOME) for number in range(len(names))]
    limits = [MORE * max(common, float(limit)) for limit in own] if len(names) > 1 else [common]
    return {
        "levels": dict(zip(names, np.round(fit[: len(names)], 4).tolist())),
        "slopes": np.round(fit[len(names) :], 4).tolist(),
        "precision": dict(zip(names, np.round(precision, 2).tolist())),
        "largest": dict(zip(names, np.round(limits, 3).tolist())),
    }


def judge(
    checkpoint: Checkpoint, heads: Sequence[Head], kinds: Sequence[str], seed: int, lines: ScoreLines
) -> Iterator[Row]:
    """A row for each kind, with a head drawn for each, but for those that the results file holds."""
    for number, kind in enumerate(kinds):
        rng = np.random.default_rng([seed, 1, number])
        head = heads[int(rng.integers(len(heads)))]
        if kind in PATHOLOGY and head.subject.startswith(PHANTOM):  # has no brain worth painting into
            head = heads[0]
        key = {"model": checkpoint.model_id, "seed": seed, "number": number, "kind": kind}
        yield lines.row(Row, key, partial(row_of, checkpoint, head, kind, rng))


def row_of(checkpoint: Checkpoint, head: Head, kind: str, rng: np.random.Generator) -> Row:
    """One case through collector, repairs, sampler and gate."""
    acceleration, sigma = _drawn(rng)
    if kind.startswith("wrap"):
        acceleration = min(acceleration, 3)  # of half as many lines
    case, truth = case_of(head, kind, acceleration, sigma, rng)
    rows, cols = case.kspace.shape[1:]
    device = checkpoint.model.device
    mapped = _mapped(case, device)
    known = (kind, head.subject, head.contrast, acceleration, sigma, f"{rows}x{cols}")
    if isinstance(mapped, LostSlice):
        no = math.nan
        return Row(*known, no, no, no, no, no, no, SAID, no, SAID, no, "lost", mapped.reason)
    item = _reconstructed(checkpoint, mapped, case.label, acceleration)
    assert item.draws is not None
    measured = over(item)
    deviations = {} if item.agreement is None else item.agreement.deviations
    beyond = item.agreement is not None and item.agreement.beyond is not None
    remarks = SAID if mapped.data.remarks or beyond else 0.0
    used = [measured.get(name, 0.0) for name in ("agreement", "residual", "rows", "channels")]
    seen, reason = judged(item)
    found = item.image.abs().cpu().numpy()
    return Row(
        *known,
        agreement=measured.get("agreement", math.nan),
        held_back=abs(deviations.get(HELD_BACK, math.nan)),
        denoised=max((abs(value) for name, value in deviations.items() if name != HELD_BACK), default=math.nan),
        residual=measured.get("residual", math.nan),
        rows=measured.get("rows", math.nan),
        channels=measured.get("channels", math.nan),
        remarks=remarks,
        spread=_spread(item),
        score=max([*used, remarks]),
        nrmse=nrmse(found, truth) if found.shape == truth.shape else math.nan,
        verdict="not trusted" if reason is not None else seen.verdict.partition(":")[0],
        text=reason or seen.verdict.partition(": ")[2],
    )


def _reconstructed(checkpoint: Checkpoint, mapped: MappedSlice, label: str, acceleration: int) -> Reconstruction:
    model = checkpoint.model
    sampling = sampling_of(Options(samples=2, steps=4), checkpoint, model.device, label, acceleration)
    (draws,), _ = draw([mapped], checkpoint, label, sampling)
    image = draws.mean(0) * mapped.scale
    misfit = mapped.misfit(image)
    limits = Limits.of(checkpoint.card, label)
    assert isinstance(model, Denoiser) and limits is not None
    values = agreement(mapped, model.of_contrast(label))
    return Reconstruction(
        mapped, mapped.model.combined(image), None, None, misfit.residual,
        draws=draws, misfit=misfit, agreement=limits.judge(values, mapped),
    )  # fmt: skip


def _spread(item: Reconstruction) -> float:
    """Of the difference of two samples, the energy that no line measures over that of the image."""
    assert item.draws is not None
    mapped = item.mapped
    apart = item.draws[0] - item.draws[1]
    whole, measured = (float(part.abs().square().sum()) for part in (apart, mapped.model.forward(apart)))
    return max(0.0, whole - measured) / max(1e-30, float(item.draws[0].abs().square().sum()))


NOTES = f"""Sound heads, and such as are painted, mistreated or none, from other slices than those that set the limits;
R {min(R)} to {max(R)}, sigma_n {SIGMA_N[0]:g} to {SIGMA_N[1]:g} of the scale, pixels of .9 to 1.8 mm, 8 coils,
{CALIBRATION} calibration lines. AUROC: of sound slices against those of the kind, with its 95 % bootstrap interval, of
the gate's score and of each number alone (agreement: of held back, denoised and kept together; denoised: the largest
deviation of the latter two; remarks: of the collector and the repairs; spread: not used by the gate). Found: above
the score that 2 % of the sound ones exceed. Flagged, not trusted: at the limits of the card; caution counts as flagged.
A slice that is refused is found and flagged."""


def table(rows: Sequence[Row], model_id: str, seed: int) -> str:
    """Of all kinds, and of the sound ones by contrast and R."""
    sound = [row for row in rows if row.kind == SOUND]
    limit = float(np.quantile([row.score for row in sound], 0.98))
    head = ["kind", "slices", "AUROC", "95 %", *PARTS, "found", "flagged", "not trusted", "NRMSE"]
    lines = [head]
    for kind in [kind for kind in KINDS if any(row.kind == kind for row in rows)]:
        some = [row for row in rows if row.kind == kind]
        lines.append(_line(kind, some, sound, limit, seed))
    objects = [row for row in rows if row.kind.startswith("object: ")]
    if objects:
        lines.append(_line("object, all", objects, sound, limit, seed))
    pathology = [row for row in rows if row.kind in PATHOLOGY]
    if pathology:
        lines.append(_line("pathology, all", pathology, sound, limit, seed))
    by = [["sound", "slices", "flagged"]]
    for name in sorted({row.contrast for row in sound}):
        by.append(_share(name, [row for row in sound if row.contrast == name]))
    for number in sorted({row.R for row in sound}):
        by.append(_share(f"R = {number}", [row for row in sound if number == row.R]))
    for group in sorted({row.subject.partition("/")[0] for row in sound}):
        by.append(_share(group, [row for row in sound if row.subject.startswith(group)]))
    flagged = [f"- {row.subject}, R = {row.R}: {row.verdict}: {row.text}" for row in sound if row.verdict != "trusted"]
    return "\n\n".join(
        [f"# The gate, {model_id}", NOTES, "\n".join(markdown(lines)), "\n".join(markdown(by)), "\n".join(flagged)]
    )


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


def write_gate(out: Path, rows: Sequence[Row], model_id: str, seed: int) -> None:
    """table.csv of all slices and table.md, which is printed too."""
    write_tables(out, fields_of(Row, rows, digits=4), table(rows, model_id, seed))
