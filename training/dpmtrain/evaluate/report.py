"""Table and plots of `dpmtrain evaluate`: table.csv, report.md, and NRMSE against R for each contrast."""

import csv
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..files import writing
from .metrics import paired_difference
from .scoring import Row

HEAD = [
    "contrast", "sampling", "R", "method", "slices", "NRMSE", "NRMSE no factor", "PSNR dB", "SSIM", "V/B", "samples",
    "fallbacks", "seconds", "difference", "low", "high", "setting",
]  # fmt: skip
FEWEST = 5  # slices that make an interval worth a mark: two or three agree by chance too often
NOTES = """NRMSE: with one least-squares factor a scan; "no factor" is the paper's form. SSIM and PSNR: range max - min
of the truth, no factor. V/B: posterior variance over squared error of the mean, 1 where the spread tells the error,
which the fast mode does not aim at (only where a noise-free complex truth is known). Difference: mean over slices of
NRMSE less that of `{reference}` on the same slice, with its 95 % bootstrap interval; slices of one volume are not
independent, so the interval is rather too narrow. R of 1D masks is nominal, the calibration lines come on top; so is
that of the regular ones of volumes, of both directions together; R of other 2D ones is net. Without ACS the coil maps
come from the full data."""


def write_report(
    out: Path, rows: Sequence[Row], model_ids: Sequence[str], weights: dict[tuple[str, str, int, str], float]
) -> None:
    """Write it all to `out` and print the summary. The first model's first sampler is what others differ from."""
    conventional = {row.method for row in rows if row.setting == "" or row.setting.startswith("weight")}
    own = [row.method for row in rows if row.method not in conventional]
    reference = own[0] if own else rows[-1].method
    table = [cells(row, rows, reference) for row in rows]
    with writing(out / "table.csv"), (out / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEAD, *table])
    tuned = [[contrast, how, str(R), name, f"{weight:g}"] for (contrast, how, R, name), weight in weights.items()]
    slices = sorted({place for row in rows for place in row.slices})
    text = [
        f"# {', '.join(model_ids)}",
        f"{len(slices)} slices: " + "; ".join(f"{scan} {_numbers(slices, scan)}" for scan in dict(slices)) + ".",
        NOTES.format(reference=reference),
        *summary(rows, reference),
        "## All figures",
        "\n".join(markdown([HEAD[:-1], *(line[:-1] for line in table)])),
        "## Weights of the conventional methods, by validation data",
        "\n".join(markdown([["contrast", "sampling", "R", "method", "weight"], *tuned])),
    ]
    with writing(out / "report.md"):
        (out / "report.md").write_text("\n\n".join(text) + "\n")
        for contrast in dict.fromkeys(row.contrast for row in rows):
            figure(rows, contrast).savefig(out / f"nrmse_{contrast}.png", dpi=110)
    print("\n\n".join([*summary(rows, reference), f"written to {out}"]))


def _numbers(slices: list[tuple[str, int]], scan: str) -> str:
    return ", ".join(str(number) for name, number in slices if name == scan)


def cells(row: Row, rows: Sequence[Row], reference: str) -> list[str]:
    """One line of the table."""
    gap = difference(row, rows, reference)
    return [
        row.contrast,
        row.condition.sampling(),
        str(row.condition.R),
        row.method,
        str(len(row.slices)),
        *(f"{np.mean(values):.4f}" for values in (row.nrmse, row.nrmse_paper)),
        f"{np.mean(row.psnr):.2f}",
        f"{np.mean(row.ssim):.4f}",
        "" if row.variance_ratio is None else f"{row.variance_ratio:.2f}",
        str(row.samples),
        str(row.fallbacks),
        f"{row.seconds:.2f}",
        *("" if gap is None or np.isnan(value) else f"{value:+.4f}" for value in gap or (0, 0, 0)),
        row.setting,
    ]


def difference(row: Row, rows: Sequence[Row], reference: str) -> tuple[float, float, float] | None:
    """Paired, to the reference method in the same condition; None for that method itself."""
    if row.method == reference:
        return None
    same = [r for r in rows if (r.contrast, r.condition, r.method) == (row.contrast, row.condition, reference)]
    return paired_difference(row.nrmse, same[0].nrmse)


def summary(rows: Sequence[Row], reference: str) -> list[str]:
    """A table of NRMSE against R for each contrast; * where the difference's interval leaves out zero."""
    found = []
    for contrast in dict.fromkeys(row.contrast for row in rows):
        of_contrast = [row for row in rows if row.contrast == contrast]
        every = sorted({row.condition.R for row in of_contrast})
        lines = [["sampling", "method", *(f"R={R}" for R in every)]]
        for sampling, method in dict.fromkeys((row.condition.sampling(), row.method) for row in of_contrast):
            line = [sampling, method]
            for R in every:
                here = [
                    row for row in of_contrast
                    if (row.condition.sampling(), row.condition.R, row.method) == (sampling, R, method)
                ]  # fmt: skip
                line.append(_marked(here[0], rows, reference) if here else "")
            lines.append(line)
        title = f"## {contrast}: NRMSE, * where it differs from {reference} (95 %, {FEWEST} slices or more)"
        found += [title, "\n".join(markdown(lines))]
    return found


def _marked(row: Row, rows: Sequence[Row], reference: str) -> str:
    gap = difference(row, rows, reference)
    sure = gap is not None and len(row.slices) >= FEWEST and (gap[1] > 0 or gap[2] < 0)
    return f"{np.mean(row.nrmse):.4f}" + ("*" if sure else "")


def markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    """A table whose first line is its head."""
    rule = "|" + "---|" * len(lines[0])
    texts = ["| " + " | ".join(line) + " |" for line in lines]
    return [texts[0], rule, *texts[1:]]


def write_tables(out: Path, kind: type, rows: Sequence[Any], text: str, *, digits: int) -> None:
    """table.csv of all rows, dataclasses of one kind, and table.md with the text, which is printed too."""
    with writing(out / "table.csv"), (out / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([field.name for field in fields(kind)])
        table.writerows(
            [f"{value:.{digits}g}" if isinstance(value, float) else value for value in astuple(row)] for row in rows
        )
    with writing(out / "table.md"):
        (out / "table.md").write_text(text + "\n")
    print(text)


def figure(rows: Sequence[Row], contrast: str) -> Figure:
    """NRMSE against R, a panel for each way of sampling, a line for each method; bars: 95 % of the mean over slices."""
    rows = [row for row in rows if row.contrast == contrast]
    panels = list(dict.fromkeys(row.condition.sampling() for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    columns = min(3, len(panels))
    made = Figure((4.2 * columns, 3.6 * -(-len(panels) // columns)), layout="constrained")
    axes = made.subplots(-(-len(panels) // columns), columns, squeeze=False).flat
    for axis, sampling in zip(axes, panels):
        for number, method in enumerate(methods):
            here = sorted(
                (row for row in rows if (row.condition.sampling(), row.method) == (sampling, method)),
                key=lambda row: row.condition.R,
            )
            bars = np.array([paired_difference(row.nrmse, [0.0] * len(row.nrmse)) for row in here])
            if not len(bars):
                continue
            low, high = (np.nan_to_num(np.abs(bars[:, i] - bars[:, 0])) for i in (1, 2))
            shift = 0.06 * (number - len(methods) / 2)  # so that bars do not hide each other
            where = [row.condition.R + shift for row in here]
            axis.errorbar(where, bars[:, 0], [low, high], marker="o", markersize=4, capsize=2, label=method)
        axis.set(
            title=sampling.replace(" (", "\n("),
            xlabel="R",
            ylabel="NRMSE",
            xticks=sorted({row.condition.R for row in rows}),
        )
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    for axis in list(axes)[len(panels) :]:
        axis.set_axis_off()
    made.axes[0].legend(fontsize="small")
    made.suptitle(contrast)
    return made
