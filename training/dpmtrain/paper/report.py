"""Table and figures 2, 4 and 5 of the paper's experiments."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluate.metrics import paired_difference
from ..evaluate.tables import write_tables
from ..files import save_figure
from .arms import ARMS, SCRATCH, Candidate, candidates
from .scores import ACCELERATIONS, CHOSEN_AT, DPS, ZETAS, Results, mean


def write_report(out: Path, results: Results, best: dict[str, Candidate]) -> None:
    """All of it to the folder `out`."""
    write_table(out, results, best)
    figure_lengths(out / "figure2_length.png", results)
    figure_methods(out / "figure4_methods.png", results, best)
    figure_zeta(out / "figure5_zeta.png", results)


def write_table(out: Path, results: Results, best: dict[str, Candidate]) -> None:
    """table.csv and table.md: mean NRMSE on patient12, and the paired differences to the fine-tuned-on-few arm."""
    compared = (CHOSEN_AT, 8)
    head = [f"difference to 4 at R={r} (95 %)" for r in compared]
    rows = [["method", "rate", "steps", *(f"R={r}" for r in ACCELERATIONS), *head]]
    reference = best["ft_few"].name
    chosen = [("CG-SENSE", "CG-SENSE", "", "")]
    for arm in sorted(ARMS, key=lambda arm: arm.title):
        candidate = best[arm.name]
        chosen.append((candidate.name, arm.title, f"{candidate.rate:g}", str(candidate.length)))
    for name, title, rate, length in chosen:
        means = [f"{mean(results, 'test', name, r):.4f}" for r in ACCELERATIONS]
        gaps = ["" if name == reference else difference(results, name, reference, r) for r in compared]
        rows.append([title, rate, length, *means, *gaps])
    write_tables(out, rows, rows)


def difference(results: Results, name: str, reference: str, acceleration: int) -> str:
    """Mean of the paired differences over the test slices and its bootstrap interval."""
    here, there = (results.of("test", which, acceleration) for which in (name, reference))
    gap, low, high = paired_difference(here, there)
    return f"{gap:+.4f} ({low:+.4f} to {high:+.4f})"


def figure_lengths(path: Path, results: Results) -> None:
    """Figure 2: validation error against the length of fine-tuning, a line for each rate, a panel for each R."""
    arm = next(arm for arm in ARMS if arm.name == "ft_few")
    pre = candidates(ARMS[0])[0].name
    figure = Figure((9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, acceleration in zip(axes, (CHOSEN_AT, 8)):
        for rate in arm.rates:
            points = [mean(results, "validation", f"{arm.name}_{rate:g}_{n}", acceleration) for n in arm.lengths]
            axis.plot([n * SCRATCH["batch"] for n in arm.lengths], points, "o-", label=f"rate {rate:g}")
        axis.axhline(mean(results, "validation", pre, acceleration), color="grey", label="pre-trained")
        axis.set(xscale="log", xlabel="images of fine-tuning", ylabel="NRMSE", title=f"validation, R = {acceleration}")
        label_ticks(axis, [n * SCRATCH["batch"] for n in arm.lengths])
    axes[0].legend()
    save_figure(path, figure, 110)


def figure_methods(path: Path, results: Results, best: dict[str, Candidate]) -> None:
    """Figure 4: methods 1 to 6 on the test patient against R, as what they differ from method 4."""
    figure = Figure((9, 4.2), layout="constrained")
    axis = figure.subplots()
    reference = best["ft_few"].name
    for arm in sorted(ARMS, key=lambda arm: arm.title):
        gaps = [
            100 * (mean(results, "test", best[arm.name].name, r) / mean(results, "test", reference, r) - 1)
            for r in ACCELERATIONS
        ]
        axis.plot(ACCELERATIONS, gaps, "o-", label=arm.title)
    axis.set(xlabel="R", ylabel="NRMSE, % above method 4", title="FLAIR of the test patient")
    figure.legend(loc="outside right upper", fontsize="small")
    save_figure(path, figure, 110)


def figure_zeta(path: Path, results: Results) -> None:
    """Figure 5: DPS's error against zeta, a line for each R; the best zeta is marked."""
    figure = Figure((6, 4), layout="constrained")
    axis = figure.subplots()
    for acceleration in ACCELERATIONS:
        points = [mean(results, "zeta", f"{zeta:g}", acceleration) for zeta in ZETAS]
        (line,) = axis.plot(ZETAS, points, "-", label=f"R = {acceleration}")
        axis.plot(ZETAS[int(np.argmin(points))], min(points), "o", color=line.get_color())
    axis.set(xscale="log", xlabel="zeta", ylabel="NRMSE", title=f"DPS, {DPS.steps} steps, validation")
    label_ticks(axis, ZETAS)
    axis.legend()
    save_figure(path, figure, 110)


def label_ticks(axis: Axes, values: Sequence[float]) -> None:
    """The values tried, and no others, along a logarithmic axis."""
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.minorticks_off()
