"""The bench's report: a table (Markdown and CSV), what it says about speed and quality in words, and a plot."""

import csv
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from dpmrecon.errors import DpmreconError
from dpmrecon.prior.checkpoint import Checkpoint

from ..evaluate.metrics import Moments, paired_difference, scan_factor
from .plan import BenchPlan

COMPUTE_RATIO, TIME_RATIO, PARITY = 40.0, 30.0, 1.01
STAGES = ("maps", "start", "network", "rest")


@dataclass(frozen=True)
class Entry:
    """A line of the results file: one slice by one method."""

    scan: str
    slice: int
    contrast: str
    acceleration: int
    method: str
    score: dict[str, Any]


@dataclass
class Row:
    """One method at one R; lists have a value for each slice, in the order of `entries`."""

    acceleration: int
    method: str
    entries: list[Entry] = field(default_factory=list)

    @cached_property
    def moments(self) -> list[Moments]:
        return [Moments(*(entry.score[name] for name in ("cross", "image", "truth"))) for entry in self.entries]

    @cached_property
    def nrmse(self) -> dict[tuple[str, int], float]:
        """By slice; one least-squares factor a scan."""
        scans = [entry.scan for entry in self.entries]
        factors = {scan: scan_factor([m for m, s in zip(self.moments, scans) if s == scan]) for scan in scans}
        return {(e.scan, e.slice): m.nrmse(factors[e.scan]) for e, m in zip(self.entries, self.moments)}

    @cached_property
    def paper(self) -> list[float]:
        """NRMSE without a factor."""
        return [m.nrmse() for m in self.moments]

    def values(self, name: str) -> list[Any]:
        return [entry.score[name] for entry in self.entries if entry.score.get(name) is not None]

    def mean(self, name: str) -> float:
        """nan where no slice has it."""
        values = self.values(name)
        return float(np.mean(values)) if values else float("nan")

    def seconds(self, *stages: str) -> float:
        """Mean over slices, of the stages or of all; nan where they were not measured."""
        found = [entry.score["seconds"] for entry in self.entries if "seconds" in entry.score]
        return float(np.mean([sum(s.get(n, 0.0) for n in stages or s) for s in found])) if found else float("nan")

    @property
    def variance_ratio(self) -> float:
        """V/B over the slices whose complex truth is known; nan without."""
        error = sum(self.values("B"))
        return sum(self.values("V")) / error if error > 0 else float("nan")

    def group(self, name: str) -> float:
        """NRMSE of the scans of one group: the part of a scan's name before a slash."""
        found = [value for (scan, _), value in self.nrmse.items() if scan.split("/")[0] == name]
        return float(np.mean(found)) if found else float("nan")


def rows_of(entries: list[Entry]) -> list[Row]:
    """By R and method, in the order they were run."""
    rows: dict[tuple[int, str], Row] = {}
    for entry in entries:
        rows.setdefault((entry.acceleration, entry.method), Row(entry.acceleration, entry.method)).entries.append(entry)
    return list(rows.values())


def write_report(
    out: Path, entries: list[Entry], plan: BenchPlan, checkpoint: Checkpoint, tuned: dict[str, float]
) -> list[Row]:
    """table.md, table.csv and bench.png in `out`; the table is printed as well."""
    rows = rows_of(entries)
    text = "\n".join([*_head(rows, checkpoint), *_tables(rows, plan), *_tuned(tuned)])
    try:
        (out / "table.md").write_text(text + "\n")
        _write_csv(out / "table.csv", rows, checkpoint)
        plot(out / "bench.png", rows, plan)
    except OSError as error:
        raise DpmreconError(f"the report cannot be written to {out} ({error}): make room and run again") from error
    print(text)
    return rows


def _head(rows: list[Row], checkpoint: Checkpoint) -> list[str]:
    devices = sorted({device for row in rows for device in row.values("device")})
    slices = sorted({place for row in rows for place in row.nrmse})
    lower = {
        re.sub(r",? (\d|default|mean of).*", "", row.method) for row in rows if "bfloat16" in row.values("precision")
    }
    names = {scan: [str(number) for other, number in slices if other == scan] for scan, _ in slices}
    return [
        f"Model {checkpoint.model_id}, on {' and on '.join(devices)}."
        + (f" The network computes in bfloat16 in {' and '.join(sorted(lower))}." if lower else ""),
        "",
        "Slices: " + "; ".join(f"{scan} {', '.join(numbers)}" for scan, numbers in names.items()) + ".",
        "",
        "Regular undersampling with 24 calibration lines; maps of the scan's own calibration. NRMSE with one "
        "least-squares factor a scan, and the paper's without; means over slices with 95 % bootstrap intervals. "
        "Seconds are wall time of a slice: coil maps, start (scale and CG-SENSE), forward passes of the network, and "
        "the rest (data consistency, solvers, gradients of DPS). GRAPPA's unit is fitted; it has the acceptance scans "
        "alone.",
    ]


def _tables(rows: list[Row], plan: BenchPlan) -> list[str]:
    lines = []
    for acceleration in sorted({row.acceleration for row in rows}):
        here = [row for row in rows if row.acceleration == acceleration]
        groups = sorted({scan.split("/")[0] for row in here for scan, _ in row.nrmse})
        lines += ["", f"## R = {acceleration}", ""]
        heads = [
            "method",
            "evaluations",
            "s/slice",
            "NRMSE",
            *groups,
            "PSNR",
            "SSIM",
            "NRMSE, no factor",
            "V/B (samples)",
        ]
        lines += [*_markdown(heads, [_quality(row, groups) for row in here]), ""]
        lines += _markdown(["method", "slices", "TFLOP", *STAGES, "peak MB"], [_cost(row) for row in here])
        lines += ["", *(f"- {line}" for line in claims(here, plan))]
    return lines


def _markdown(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _quality(row: Row, groups: list[str]) -> list[str]:
    ratio = "" if np.isnan(row.variance_ratio) else f"{row.variance_ratio:.2f} ({row.mean('samples'):.0f})"
    return [
        row.method,
        _number(row.mean("evaluations") or float("nan"), ".0f"),
        _number(row.seconds(), ".2f"),
        _interval(list(row.nrmse.values()), ".4f"),
        *(_number(row.group(group), ".4f") for group in groups),
        _interval(row.values("psnr"), ".1f"),
        _interval(row.values("ssim"), ".3f"),
        _interval(row.paper, ".4f"),
        ratio,
    ]


def _cost(row: Row) -> list[str]:
    return [
        row.method,
        str(len(row.entries)),
        _number(row.mean("gflop") / 1000, ".3f"),
        *(_number(row.seconds(stage) or float("nan"), ".2f") for stage in STAGES),
        _number(row.mean("memory_mb"), ".0f"),
    ]


def _number(value: float, form: str) -> str:
    return "" if np.isnan(value) else format(value, form)


def _interval(values: list[float], form: str) -> str:
    mean, low, high = paired_difference(values, [0.0] * len(values))
    return format(mean, form) + ("" if np.isnan(low) else f" ({low:{form}} to {high:{form}})")


def claims(rows: list[Row], plan: BenchPlan) -> list[str]:
    """What the rows of one R say about `prox` against `dps`: speed at the fewest evaluations and its price, and
    quality at each number of them; with yes or NO where a bar is set."""
    by_name = {row.method: row for row in rows}
    dps = by_name.get(f"dps {plan.dps_steps}")
    if dps is None:
        return []
    found = []
    fewest = by_name.get(f"prox {plan.prox_steps[0]}")
    if fewest is not None:
        compute = dps.mean("gflop") / fewest.mean("gflop")
        sampling = dps.seconds("network", "rest") / fewest.seconds("network", "rest")
        whole = dps.seconds() / fewest.seconds()
        devices = {device for row in (dps, fewest) for device in row.values("device")}
        where = devices.pop() if len(devices) == 1 else "DIFFERENT machines, so the times cannot be compared"
        found.append(
            f"prox at {plan.prox_steps[0]} evaluations: {compute:.0f} times less network compute than dps at "
            f"{plan.dps_steps} (at least {COMPUTE_RATIO:g}: {_verdict(compute >= COMPUTE_RATIO)}), {sampling:.0f} "
            f"times less wall time (at least {TIME_RATIO:g}: {_verdict(sampling >= TIME_RATIO)}; {whole:.0f} times "
            f"with coil maps and start), on {where}; its price: {_price(fewest, dps)}"
        )
    found += [
        f"{row.method}: {_price(row, dps)}; no worse than 1 %: {_verdict(_ratio(row, dps) <= PARITY)}"
        for row in rows
        if row.method.startswith("prox")
    ]
    return found


def _common(row: Row, other: Row) -> tuple[list[float], list[float]]:
    places = [place for place in row.nrmse if place in other.nrmse]
    return [row.nrmse[place] for place in places], [other.nrmse[place] for place in places]


def _ratio(row: Row, reference: Row) -> float:
    here, there = _common(row, reference)
    return float(np.mean(here) / np.mean(there))


def _price(row: Row, reference: Row) -> str:
    here, there = _common(row, reference)
    gap, low, high = paired_difference(here, there)
    interval = "" if np.isnan(low) else f", 95 % {low:+.4f} to {high:+.4f}"
    return (
        f"NRMSE {np.mean(here):.4f} against {np.mean(there):.4f} of {reference.method}, "
        f"{100 * _ratio(row, reference) - 100:+.1f} % ({gap:+.4f}{interval})"
    )


def _verdict(holds: bool) -> str:
    return "yes" if holds else "NO"


def _tuned(tuned: dict[str, float]) -> list[str]:
    lines = [f"- {name}: {value:g}" for name, value in tuned.items()]
    return ["", "## Tuned on validation slices", "", *lines] if lines else []


def _write_csv(path: Path, rows: list[Row], checkpoint: Checkpoint) -> None:
    """A line for each method and R, and one for each group of scans."""
    scores = ("nrmse", "nrmse_no_factor", "psnr", "ssim")
    heads = ["model", "device", "precision", "R", "method", "scans", "slices"]
    heads += [name for score in scores for name in (score, f"{score}_low", f"{score}_high")]
    heads += ["V/B", "samples", "evaluations", "gflop", "seconds", *STAGES, "memory_mb"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heads)
        for row in rows:
            groups = sorted({entry.scan.split("/")[0] for entry in row.entries})
            for group in ["all", *(groups if len(groups) > 1 else [])]:
                kept = [entry for entry in row.entries if group in ("all", entry.scan.split("/")[0])]
                part = Row(row.acceleration, row.method, kept)
                words = [" and ".join(sorted(set(part.values(name)))) for name in ("device", "precision")]
                line: list = [checkpoint.model_id, *words, row.acceleration, row.method, group, len(part.entries)]
                for values in (list(part.nrmse.values()), part.paper, part.values("psnr"), part.values("ssim")):
                    line += [_number(value, ".6g") for value in paired_difference(values, [0.0] * len(values))]
                figures = [part.variance_ratio, part.mean("samples"), part.mean("evaluations"), part.mean("gflop")]
                figures += [part.seconds(), *(part.seconds(stage) for stage in STAGES), part.mean("memory_mb")]
                writer.writerow([*line, *(_number(value, ".6g") for value in figures)])


def plot(path: Path, rows: list[Row], plan: BenchPlan) -> None:
    """NRMSE against seconds a slice, a panel for each R; GRAPPA, which was not timed here, is left to the table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator

    accelerations = sorted({row.acceleration for row in rows})
    columns = min(3, len(accelerations))
    lines = -(-len(accelerations) // columns)
    size = (7.6, 4.4) if columns == 1 else (4.4 * columns, 3.7 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False, sharex=True)
    ladder = [f"prox {steps}" for steps in plan.prox_steps]
    others = [name for name in dict.fromkeys(row.method for row in rows if row.seconds() > 0) if name not in ladder]
    for axis, acceleration in zip(axes.flat, accelerations):
        here = {row.method: row for row in rows if acceleration == row.acceleration and row.seconds() > 0}
        points = {name: (row.seconds(), float(np.mean(list(row.nrmse.values())))) for name, row in here.items()}
        steps = [name for name in ladder if name in points]
        axis.plot(*zip(*(points[name] for name in steps)), "o-", color="black", label="prox", markersize=6)
        for name in steps:
            axis.annotate(name.split()[1], points[name], xytext=(0, 6), textcoords="offset points", ha="center")
        for index, name in enumerate(others):
            marker = "o" if name.startswith("prox") else "s" if name.startswith("dps") else "^"
            if name in points:
                axis.plot(*points[name], marker, color=f"C{index}", label=name, markersize=8)
        axis.set(xscale="log", xlabel="seconds a slice", ylabel="NRMSE", title=f"R = {acceleration}")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(accelerations) :]:
        axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    devices = sorted({device for row in rows for device in row.values("device")})
    figure.suptitle(" and ".join(devices), fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)
