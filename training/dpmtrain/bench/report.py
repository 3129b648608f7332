"""The bench's report: a table (Markdown and CSV), what it says about speed and quality in words, and a plot."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from dpmrecon.prior.checkpoint import Checkpoint
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from ..evaluate.metrics import paired_difference
from ..evaluate.plan import Condition
from ..evaluate.scoring import Row
from ..evaluate.tables import formatted, interval, markdown, write_tables
from ..files import save_figure
from .plan import BenchPlan

COMPUTE_RATIO, TIME_RATIO, PARITY = 40.0, 30.0, 1.01
STAGES = ("maps", "start", "network", "rest")


def by_method(rows: Sequence[Row]) -> list[Row]:
    """A row for each R and method, of all contrasts, in order."""
    found: dict[tuple[int, str], Row] = {}
    for row in rows:
        place = row.condition.R, row.method
        both = found.setdefault(place, Row(None, row.condition, row.method, ""))
        both.slices.extend(row.slices)
        both.scores.extend(row.scores)
    return list(found.values())


def by_slice(row: Row) -> dict[tuple[str, int], float]:
    """NRMSE by scan and number."""
    return dict(zip(row.slices, row.nrmse))


def part_of(row: Row, group: str) -> Row:
    """The scans of one group, the part of their names before a slash; "all" of them."""
    kept = [number for number, (scan, _) in enumerate(row.slices) if group in ("all", scan.split("/")[0])]
    slices, scores = [row.slices[number] for number in kept], [row.scores[number] for number in kept]
    return Row(None, row.condition, row.method, "", slices, scores)


def write_report(
    out: Path,
    rows: Sequence[Row],
    plan: BenchPlan,
    checkpoint: Checkpoint,
    tuned: dict[tuple[str, Condition, str], float],
) -> None:
    """table.md, table.csv and bench.png in `out`; the table is printed as well."""
    rows = by_method(rows)
    text = "\n".join([*_head(rows, checkpoint), *_tables(rows, plan), *_tuned(tuned)])
    write_tables(out, _csv(rows, checkpoint), text)
    save_figure(out / "bench.png", plot(rows, plan), 110)


def _head(rows: Sequence[Row], checkpoint: Checkpoint) -> list[str]:
    devices = sorted({device for row in rows for device in row.values("device")})
    slices = sorted({place for row in rows for place in row.slices})
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


def _tables(rows: Sequence[Row], plan: BenchPlan) -> list[str]:
    lines = []
    for acceleration in sorted({row.condition.R for row in rows}):
        here = [row for row in rows if acceleration == row.condition.R]
        groups = sorted({scan.split("/")[0] for row in here for scan, _ in row.slices})
        lines += ["", f"## R = {acceleration}", ""]
        heads = ["method", "evaluations", "s/slice", "NRMSE", *groups, "PSNR", "SSIM", "NRMSE, no factor"]
        heads.append("V/B (samples)")
        lines += [*markdown([heads, *(_quality(row, groups) for row in here)]), ""]
        lines += markdown([["method", "slices", "TFLOP", *STAGES, "peak MB"], *map(_cost, here)])
        lines += ["", *(f"- {line}" for line in claims(here, plan))]
    return lines


def _quality(row: Row, groups: list[str]) -> list[str]:
    ratio = "" if row.variance_ratio is None else f"{row.variance_ratio:.2f} ({row.mean('samples'):.0f})"
    return [
        row.method,
        formatted(row.mean("evaluations") or float("nan"), ".0f"),
        formatted(row.seconds(), ".2f"),
        interval(row.nrmse, ".4f"),
        *(formatted(_mean(part_of(row, group).nrmse), ".4f") for group in groups),
        interval(row.values("psnr"), ".1f"),
        interval(row.values("ssim"), ".3f"),
        interval(row.nrmse_paper, ".4f"),
        ratio,
    ]


def _cost(row: Row) -> list[str]:
    return [
        row.method,
        str(len(row.slices)),
        formatted(row.mean("gflop") / 1000, ".3f"),
        *(formatted(row.seconds(stage) or float("nan"), ".2f") for stage in STAGES),
        formatted(row.mean("memory_mb"), ".0f"),
    ]


def claims(rows: Sequence[Row], plan: BenchPlan) -> list[str]:
    """What the rows of one R say about `prox` against `dps`: speed at the fewest evaluations, its price, and quality at
    each number; with yes or NO where a bar is set."""
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
    here, there = by_slice(row), by_slice(other)
    places = [place for place in here if place in there]
    return [here[place] for place in places], [there[place] for place in places]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


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


def _tuned(tuned: dict[tuple[str, Condition, str], float]) -> list[str]:
    lines = [f"- {name}, {contrast}, R = {where.R}: {value:g}" for (contrast, where, name), value in tuned.items()]
    return ["", "## Tuned on validation slices", "", *lines] if lines else []


def _csv(rows: Sequence[Row], checkpoint: Checkpoint) -> Iterator[list]:
    """A line for each method and R, and one for each group of scans."""
    scores = ("nrmse", "nrmse_no_factor", "psnr", "ssim")
    heads = ["model", "device", "precision", "R", "method", "scans", "slices"]
    heads += [name for score in scores for name in (score, f"{score}_low", f"{score}_high")]
    yield heads + ["V/B", "samples", "evaluations", "gflop", "seconds", *STAGES, "memory_mb"]
    for row in rows:
        groups = sorted({scan.split("/")[0] for scan, _ in row.slices})
        for group in ["all", *(groups if len(groups) > 1 else [])]:
            part = part_of(row, group)
            words = [" and ".join(sorted(set(part.values(name)))) for name in ("device", "precision")]
            line: list = [checkpoint.model_id, *words, row.condition.R, row.method, group, len(part.slices)]
            for values in (part.nrmse, part.nrmse_paper, part.values("psnr"), part.values("ssim")):
                line += [formatted(value, ".6g") for value in paired_difference(values, [0.0] * len(values))]
            figures = [part.variance_ratio, part.mean("samples"), part.mean("evaluations"), part.mean("gflop")]
            figures += [part.seconds(), *(part.seconds(stage) for stage in STAGES), part.mean("memory_mb")]
            yield [*line, *(formatted(value, ".6g") for value in figures)]


def plot(rows: Sequence[Row], plan: BenchPlan) -> Figure:
    """NRMSE against seconds a slice, a panel for each R; GRAPPA, which was not timed here, is left to the table."""
    accelerations = sorted({row.condition.R for row in rows})
    columns = min(3, len(accelerations))
    lines = -(-len(accelerations) // columns)
    size = (7.6, 4.4) if columns == 1 else (4.4 * columns, 3.7 * lines)
    figure = Figure(size, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True)
    ladder = [f"prox {steps}" for steps in plan.prox_steps]
    others = [name for name in dict.fromkeys(row.method for row in rows if row.seconds() > 0) if name not in ladder]
    for axis, acceleration in zip(axes.flat, accelerations):
        here = {row.method: row for row in rows if acceleration == row.condition.R and row.seconds() > 0}
        points = {name: (row.seconds(), _mean(row.nrmse)) for name, row in here.items()}
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
    return figure
