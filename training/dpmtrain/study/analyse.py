"""`dpmtrain study analyse`: scores and key to a page, tables and the figure."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dpmrecon.errors import BadInputError

from ..evaluate.tables import write_csv
from ..files import write_text, writing
from .design import Key
from .questions import ACCELERATED, ARMS, QUESTIONS, STANDARD
from .scores import Readings, read_scores
from .statistics import LEVEL, Agreement, Comparison, Estimate, agreements, compare, mean

TEMPLATE = Path(__file__).parent / "page" / "report.html"


def analyse(files: Sequence[Path], key_file: Path, out: Path, margin: float | None) -> None:
    """OUT/report.html, differences.csv, agreement.csv, means.csv and figure.png; the differences are printed too.

    margin: None for the one in the sealed key; another one is said to be chosen afterwards. Raises BadInputError for a
    key or scores that cannot be used.
    """
    key, seal = Key.read(key_file)
    paths = [path for given in files for path in (sorted(given.iterdir()) if given.is_dir() else [given])]
    readings = read_scores(paths, key, seal)
    used = key.margin if margin is None else margin
    if not used > 0:
        raise BadInputError(f"--margin {used:g} is no margin: give how many points worse is still not worse, above 0")
    compared, agreed = compare(readings, used), agreements(readings)
    notes = remarks(readings, used, key.margin, [c.n for c in compared])
    for line in lines(compared, notes):
        print(line)
    with writing(out / "report.html"):
        _write_csv(out / "differences.csv", _differences(compared, used))
        _write_csv(out / "agreement.csv", _agreement(agreed))
        _write_csv(out / "means.csv", _means(readings))
        picture = figure(readings)
        (out / "figure.png").write_bytes(picture)
        write_text(out / "report.html", page(readings, compared, agreed, used, seal, notes, picture))


def remarks(readings: Readings, margin: float, sealed: float, used: Sequence[int]) -> list[str]:
    """What to know of missing scores, the margin and repeats."""
    told = []
    for reader, missing in readings.missing().items():
        if missing:
            told.append(f"{reader} left out {missing} scores: a pair with one of them missing is not used.")
    if min(used) < len(readings.subjects):
        told.append(
            f"Some questions have {min(used)} of {len(readings.subjects)} subjects, where no reader scored both."
        )
    if margin != sealed:
        told.append(
            f"The margin is {margin:g} points, and {sealed:g} was sealed: it was chosen after the key was made, and "
            "non-inferiority is a finding to be confirmed."
        )
    if not readings.repeated:
        told.append("No set was shown twice: agreement within readers is not known.")
    if len(readings.readers) == 1:
        told.append("One reader alone: agreement between readers is not known.")
    return told


def lines(compared: Sequence[Comparison], notes: Sequence[str]) -> list[str]:
    """The differences for a screen."""
    rows = [f"{'':16}{'standard':>9}{'accel.':>8}   difference ({100 * LEVEL:.0f} %)       p     not inferior"]
    for one in compared:
        verdict = f"{'yes' if one.non_inferior else 'not shown'} (p {one.p_inferior:.3f})"
        means = f"{one.standard.value:9.2f}{one.accelerated.value:8.2f}"
        rows.append(f"{QUESTIONS[one.question]:16}{means}   {shown(one.difference):22} {one.p:.3f}   {verdict}")
    return [*rows, *notes]


def shown(estimate: Estimate, sign: str = "+") -> str:
    """-0.15 (-0.30 to +0.01), or a dash."""
    if math.isnan(estimate.value):
        return "–"
    if math.isnan(estimate.low):
        return f"{estimate.value:{sign}.2f}"
    return f"{estimate.value:{sign}.2f} ({estimate.low:{sign}.2f} to {estimate.high:{sign}.2f})"


def by_reader(readings: Readings) -> list[tuple[str, str, str, Estimate]]:
    """(reader, question, arm, mean over subjects with its interval), first readings."""
    found = []
    for row, reader in enumerate(readings.readers):
        for place, question in enumerate(QUESTIONS):
            for column, arm in enumerate(ARMS):
                scores = readings.first[row, :, column, place]
                found.append((reader, question, arm, mean(scores[~np.isnan(scores)])))
    return found


def figure(readings: Readings) -> bytes:
    """As figure 9 of the source paper: both arms of each question, a panel for each reader; PNG."""
    from matplotlib.figure import Figure

    told = by_reader(readings)
    drawn = Figure((9, 2.6 * len(readings.readers)), layout="constrained")
    panels = drawn.subplots(len(readings.readers), squeeze=False, sharex=True)[:, 0]
    for panel, reader in zip(panels, readings.readers):
        for arm, colour, shift in ((STANDARD, "0.6", -0.2), (ACCELERATED, "tab:blue", 0.2)):
            means = [estimate for name, _, kind, estimate in told if (name, kind) == (reader, arm)]
            places, heights = np.arange(len(means)) + shift, [one.value for one in means]
            errors = [one.high - one.value for one in means]
            panel.bar(places, heights, 0.4, yerr=errors, capsize=3, color=colour, label=arm)
        panel.set(title=reader, ylim=(1, 5.2), ylabel="score")
        panel.set_xticks(range(len(QUESTIONS)), list(QUESTIONS.values()), rotation=20)
    panels[0].legend(ncols=2, loc="lower right")
    written = io.BytesIO()
    drawn.savefig(written, dpi=110)
    return written.getvalue()


def page(
    readings: Readings,
    compared: Sequence[Comparison],
    agreed: Sequence[Agreement],
    margin: float,
    seal: str,
    notes: Sequence[str],
    picture: bytes,
) -> str:
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        readers=readings.readers, n_subjects=len(readings.subjects), n_repeats=len(readings.repeated),
        compared=compared, agreed=agreed, margin=margin, seal=seal, notes=notes,
        questions={**QUESTIONS, "all": "All questions"}, shown=shown,
        level=f"{100 * LEVEL:.0f}", picture=base64.b64encode(picture).decode(),
    )  # fmt: skip


def _differences(compared: Sequence[Comparison], margin: float) -> list[dict]:
    return [
        {
            "question": one.question, "subjects": one.n, **_told("standard", one.standard),
            **_told("accelerated", one.accelerated), **_told("difference", one.difference), "p_wilcoxon_holm": one.p,
            "margin": margin, "p_inferior_holm": one.p_inferior, "non_inferior": one.non_inferior,
        }
        for one in compared
    ]  # fmt: skip


def _agreement(agreed: Sequence[Agreement]) -> list[dict]:
    return [
        {"who": one.who, "question": one.question, "pairs": one.n, **_told("kappa", one.kappa), "class": one.named}
        for one in agreed
    ] or [{"who": "", "question": "", "pairs": 0}]


def _means(readings: Readings) -> list[dict]:
    return [
        {"reader": reader, "question": question, "arm": arm, **_told("mean", estimate)}
        for reader, question, arm, estimate in by_reader(readings)
    ]


def _told(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _write_csv(path: Path, rows: list[dict]) -> None:
    lines = ([f"{value:.6g}" if isinstance(value, float) else value for value in row.values()] for row in rows)
    write_csv(path, [list(rows[0]), *lines])
