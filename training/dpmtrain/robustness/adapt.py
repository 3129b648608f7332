"""The prior adapted to a scan: `python -m dpmtrain.robustness.adapt --images DATA --out FOLDER`.

Five objects far from heads, two slices each, with the unlabelled prior; validation heads, three slices each, with their
label; R = 4 with 24 calibration lines. CG-SENSE and L1-wavelet have the weight that is best by the truth of the very
slices. The default prior, and the same adapted to the first slice (`--adapt`), with the card's settings. What was
scored is kept in scores.jsonl: a run that was broken off goes on.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from dpmrecon.options import Options
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint
from dpmrecon.recon.plan import sampling_of
from dpmrecon.recon.stream import sampled
from dpmrecon.recon.types import Reconstruction

from ..arguments import exit_code, module_parser, words
from ..evaluate.baselines import SENSE_WEIGHTS, WAVELET_WEIGHTS, tuned_cg_sense, tuned_weight, wavelet_tool
from ..evaluate.methods import label_for
from ..evaluate.metrics import Moments, scan_factor
from ..evaluate.plan import CALIBRATION_LINES, Condition
from ..evaluate.references import CPU, ReferenceSlice
from ..evaluate.score_lines import ScoreLines
from ..evaluate.scoring import Undersampled
from ..evaluate.tables import fields_of, joined, write_tables
from ..evaluate.validation import SIGMA_N, full_slice, validation_scan
from .objects import OBJECTS

R, MATRIX, SIGMA, SLICES = 4, (192, 176), 0.01, 2  # of objects; sigma_n over the scale
MARGIN = 0.02  # of NRMSE, that heads may lose


@dataclass(frozen=True)
class Row:
    """A scan. NRMSE: mean over its slices, one factor a scan; weights: of CG-SENSE and L1-wavelet; gate: the verdict
    on the first slice, before; seconds: of sampling a slice, and of the fit; text: what became of the fit."""

    scan: str
    cg_sense: float
    l1_wavelet: float
    prior: float
    adapted: float
    weights: str
    gate: str
    seconds_sampling: float
    seconds_adaptation: float
    text: str

    @property
    def is_head(self) -> bool:
        return self.scan not in OBJECTS


def object_scan(name: str) -> list[ReferenceSlice]:
    """The slices of an object."""
    blank, rng = torch.zeros(MATRIX), np.random.default_rng([5, len(name)])
    return [full_slice(name, number, "none", OBJECTS[name](blank, rng), SIGMA) for number in range(SLICES)]


def nrmse(cases: Sequence[Undersampled], images: Iterable[torch.Tensor]) -> float:
    """Mean over the slices of a scan, with one factor."""
    moments = [
        Moments.of(case.full.picture(image), case.full.truth, case.full.mask) for case, image in zip(cases, images)
    ]
    factor = scan_factor(moments)
    return float(np.mean([one.nrmse(factor) for one in moments]))


def row_of(scan: str, slices: Sequence[ReferenceSlice], checkpoint: Checkpoint) -> Row:
    """A scan by every method."""
    cases = [Undersampled(full, Condition("regular", R), CPU) for full in slices]
    label = label_for(checkpoint, slices[0].contrast)
    _, wavelet = wavelet_tool([tuple(full.data.mask.shape) for full in slices])

    def tuned(run: Any, start: Sequence[float]) -> tuple[float, float]:
        weight, tried = tuned_weight(lambda w: nrmse(cases, [run(case.mapped, w) for case in cases]), start)
        return weight, tried[weight]

    def model(*, adapt: bool) -> tuple[list[Reconstruction], float]:
        sampling = sampling_of(Options(adapt=adapt), checkpoint, CPU, label, R)
        found = [
            item
            for item in sampled([case.mapped for case in cases], checkpoint, label, sampling)
            if isinstance(item, Reconstruction)
        ]
        return found, nrmse(cases, [item.image for item in found])

    (sense_weight, sense), (wavelet_weight, l1) = tuned(tuned_cg_sense, SENSE_WEIGHTS), tuned(wavelet, WAVELET_WEIGHTS)
    (plain, prior), (fitted, adapted) = model(adapt=False), model(adapt=True)
    return Row(
        scan,
        sense,
        l1,
        prior,
        adapted,
        f"{sense_weight:g}, {wavelet_weight:g}",
        plain[0].verdict.partition(":")[0],
        float(np.mean([item.seconds["sampling"] for item in plain])),
        sum(item.seconds.get("adaptation", 0.0) for item in fitted),
        str(fitted[-1].adaptation),
    )


def table(rows: Sequence[Row], model_id: str) -> str:
    """The rows, and whether what is asked of objects and of heads holds."""
    head = ["scan", "CG-SENSE", "L1-wavelet", "prior", "adapted", "change", "gate", "s a slice", "s adapting", "fit"]
    lines = [head]
    for row in rows:
        numbers = [f"{value:.4f}" for value in (row.cg_sense, row.l1_wavelet, row.prior, row.adapted)]
        seconds = [f"{value:.1f}" for value in (row.seconds_sampling, row.seconds_adaptation)]
        change = f"{row.adapted / row.prior - 1:+.1%}"
        lines.append([row.scan, *numbers, change, row.gate, *seconds, row.text])
    objects, heads = ([row for row in rows if row.is_head == wanted] for wanted in (False, True))
    better = sum(row.adapted <= min(row.cg_sense, row.l1_wavelet) for row in objects)
    within = sum(row.adapted <= (1 + MARGIN) * row.prior for row in heads)
    return joined(
        f"# The prior adapted to a scan, {model_id}",
        f"NRMSE at R = {R} with {CALIBRATION_LINES} calibration lines, one factor a scan; weights of CG-SENSE and "
        "L1-wavelet are the best by the truth. The fit is to the first slice with one set of maps, all are scored. Its "
        "rate and rounds were chosen on such objects and heads. One thread of a machine that others used.",
        lines,
        f"Adapted no worse than the better of CG-SENSE and L1-wavelet: {better} of {len(objects)} objects; within "
        f"{MARGIN:.0%} of the prior as it is: {within} of {len(heads)} heads.",
    )


def main() -> None:
    parser = module_parser(__doc__, "images", "out")
    parser.add_argument("--objects", default=",".join(OBJECTS))
    parser.add_argument("--heads", default=",".join(SIGMA_N), help="contrasts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(None, CPU)
    scans = [(name, object_scan(name)) for name in words("--objects", args.objects, tuple(OBJECTS))]
    scans += [
        (f"head, {name}", validation_scan(args.images, name)) for name in words("--heads", args.heads, tuple(SIGMA_N))
    ]
    lines, rows = ScoreLines(args.out / "scores.jsonl"), []
    for scan, slices in scans:
        key = {"scan": scan, "model": checkpoint.model_id}
        began = time.monotonic()
        rows.append(lines.row(Row, key, partial(row_of, scan, slices, checkpoint)))
        print(f"{scan}: {time.monotonic() - began:.0f} s", flush=True)
    write_tables(args.out, fields_of(Row, rows, digits=4), table(rows, checkpoint.model_id))


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
