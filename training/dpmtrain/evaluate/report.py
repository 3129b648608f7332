"""Table and plots of `dpmtrain evaluate`: table.csv, report.md, and NRMSE against R for each contrast."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..files import save_figure, write_text
from .plan import Condition
from .scoring import FEWEST, Row
from .tables import formatted, joined, write_csv

HEAD = [
    "contrast", "sampling", "R", "method", "slices", "subjects", "NRMSE", "NRMSE no factor", "PSNR dB", "SSIM", "V/B",
    "samples", "fallbacks", "seconds", "difference", "low", "high", "setting",
]  # fmt: skip
NOTES = """NRMSE: with one least-squares factor a scan; "no factor" is the paper's form. SSIM and PSNR: range max - min
of the truth, no factor. V/B: posterior variance over squared error of the mean, 1 where the spread tells the error,
which the fast mode does not aim at (only where a noise-free complex truth is known). Difference: mean over slices of
NRMSE less that of `{reference}` on the same slice, with its 95 % bootstrap interval: of subjects where there are two or
more, each with all its slices; else of slices of one subject, which tells nothing of others. A scan whose header names
no patient counts as one subject. R of 1D masks is nominal, the calibration lines come on top; so is
that of the regular ones of volumes, of both directions together; R of other 2D ones is net. Without ACS the coil maps
come from the full data."""


def write_report(
    out: Path,
    rows: Sequence[Row],
    model_ids: Sequence[str],
    weights: dict[tuple[str, Condition, str], float],
    remarks: Sequence[str] = (),
) -> None:
    """Write it all to `out` and print the summary. The first model's first sampler is what others differ from."""
    conventional = {row.method for row in rows if row.setting == "" or row.setting.startswith("weight")}
    own = [row.method for row in rows if row.method not in conventional]
    reference = own[0] if own else rows[-1].method
    table = [cells(row, rows, reference) for row in rows]
    write_csv(out / "table.csv", [HEAD, *table])
    tuned = [
        [contrast, condition.sampling(), str(condition.R), name, f"{weight:g}"]
        for (contrast, condition, name), weight in weights.items()
    ]
    slices = sorted({place for row in rows for place in row.slices})
    text = joined(
        f"# {', '.join(model_ids)}",
        f"{len(slices)} slices: " + "; ".join(f"{scan} {_numbers(slices, scan)}" for scan in dict(slices)) + ".",
        *remarks,
        NOTES.format(reference=reference),
        *summary(rows, reference),
        "## All figures",
        [HEAD[:-1], *(line[:-1] for line in table)],
        "## Weights of the conventional methods, by validation data",
        [["contrast", "sampling", "R", "method", "weight"], *tuned],
    )
    write_text(out / "report.md", text + "\n")
    for contrast in dict.fromkeys(row.contrast for row in rows):
        save_figure(out / f"nrmse_{contrast}.png", figure(rows, contrast), 110)
    print("\n\n".join([*remarks, *summary(rows, reference), f"written to {out}"]))


def _numbers(slices: list[tuple[str, int]], scan: str) -> str:
    return ", ".join(str(number) for name, number in slices if name == scan)


def cells(row: Row, rows: Sequence[Row], reference: str) -> list[str]:
    """One line of the table."""
    gap = difference(row, rows, reference)
    return [
        str(row.contrast),
        row.condition.sampling(),
        str(row.condition.R),
        row.method,
        str(len(row.slices)),
        str(row.n_subjects),
        *(f"{np.mean(values):.4f}" for values in (row.nrmse, row.nrmse_paper)),
        f"{row.mean('psnr'):.2f}",
        f"{row.mean('ssim'):.4f}",
        formatted(row.variance_ratio, ".2f"),
        str(row.scores[0]["samples"]),
        str(row.fallbacks),
        f"{row.seconds('network', 'rest'):.2f}",
        *(formatted(value, "+.4f") for value in gap or (None, None, None)),
        row.setting,
    ]


def difference(row: Row, rows: Sequence[Row], reference: str) -> tuple[float, float, float] | None:
    """Paired, to the reference method in the same condition; None for that method itself."""
    if row.method == reference:
        return None
    same = [r for r in rows if (r.contrast, r.condition, r.method) == (row.contrast, row.condition, reference)]
    return row.less(same[0])


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
        of = max(of_contrast, key=lambda row: row.n_subjects).sampled
        title = f"## {contrast}: NRMSE, * where it differs from {reference} (95 % {of}; {FEWEST} or more)"
        found += [title, joined(lines)]
    return found


def _marked(row: Row, rows: Sequence[Row], reference: str) -> str:
    gap = difference(row, rows, reference)
    sure = gap is not None and row.enough and (gap[1] > 0 or gap[2] < 0)
    return f"{np.mean(row.nrmse):.4f}" + ("*" if sure else "")


def figure(rows: Sequence[Row], contrast: str | None) -> Figure:
    """NRMSE against R, a panel for each sampling, a line for each method; bars: 95 % of the mean, see NOTES."""
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
            bars = np.array([row.less(None) for row in here])
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
    made.suptitle(str(contrast))
    return made
