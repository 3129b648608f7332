"""What the networks of `imperfect` are worth, as a table and a plot. Scores are of (arm, seed)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from dpmrecon.errors import DpmreconError
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint
from dpmrecon.recon.types import MappedSlice
from matplotlib.figure import Figure

from ..evaluate.lesions import pair_of, scores, summary
from ..evaluate.methods import by_card
from ..evaluate.metrics import nrmse, paired_difference
from ..evaluate.score_lines import ScoreLines
from ..evaluate.scoring import Undersampled
from ..evaluate.tables import markdown, write_tables
from ..files import writing
from .capacity import SIGMAS, denoising_errors
from .scans import CONTRAST, LABEL_MAP

SNR = 15.0  # of the scans with lesions
KEPT = ("mean", "lowest", "AUC", "invented")
Name = tuple[str, int]


@dataclass(frozen=True)
class Scores:
    """denoising: rms error over sigma, for each of SIGMAS, empty where there is no network; nrmse: of each held-out
    slice; simulated: whether it is the label map's; lesions: see `evaluate/lesions.py`."""

    denoising: list[float]
    nrmse: list[float]
    simulated: list[bool]
    lesions: dict[str, float]


def all_scores(
    images: Path, paths: dict[Name, Path], file: Path, cases: list[Undersampled], draws: int
) -> dict[Name, Scores]:
    """Of every network and of CG-SENSE; those in `file` are not made again."""
    lines = ScoreLines(file)
    found = {("CG-SENSE", 0): scores_of(None, images, cases, lines, draws)}
    for name, path in paths.items():
        found[name] = scores_of(load_checkpoint(path), images, cases, lines, draws)
    return found


def scores_of(
    checkpoint: Checkpoint | None, images: Path, cases: list[Undersampled], lines: ScoreLines, draws: int
) -> Scores:
    """checkpoint: None for CG-SENSE."""

    def make(mapped: MappedSlice) -> torch.Tensor:
        if checkpoint is None:
            return mapped.conventional
        found = by_card(mapped, checkpoint, CONTRAST, samples=1)
        if found.fallback:
            raise DpmreconError(f"{checkpoint.model_id}: {found.fallback}: lower the rate of its training")
        return found.image

    def denoising() -> dict:
        if checkpoint is None:
            return {"error": []}
        truths = [(CONTRAST, torch.from_numpy(case.full.truth).to(torch.complex64)) for case in cases]
        errors = [denoising_errors(checkpoint.denoiser, truths, sigma) for sigma in SIGMAS]
        return {"error": [math.sqrt(np.square(of).mean()) for of in errors]}

    def errors() -> dict:
        return {"nrmse": [nrmse(make(case.mapped).abs().numpy(), case.full.truth) for case in cases]}

    key = {"model": "CG-SENSE" if checkpoint is None else checkpoint.model_id}
    drawn = []
    for draw in range(draws):

        def of_draw(draw=draw) -> dict:
            return scores(pair_of(images, CONTRAST, SNR, draw), make)

        drawn.append(lines.get({**key, "draw": draw}, of_draw))
    return Scores(
        lines.get({**key, "denoising": len(cases)}, denoising)["error"],
        lines.get({**key, "slices": len(cases)}, errors)["nrmse"],
        [case.full.scan.startswith(LABEL_MAP) for case in cases],
        summary(drawn),
    )


def over_seeds(found: dict[Name, Scores], arm: str, value: Callable[[Scores], list[float]]) -> np.ndarray:
    """(seeds, values)."""
    return np.array([value(scores) for (name, _), scores in found.items() if name == arm])


def report(found: dict[Name, Scores], titles: dict[str, str], out: Path) -> None:
    """table.csv, table.md and imperfect.png. titles: of the arms; "sense" is what the others are compared with."""
    heads = ["tuned on", "NRMSE", "patient09", "label map", "less that of CG-SENSE images (95 %)",
             *(f"error at {sigma:g}" for sigma in SIGMAS), *(f"lesions: {name}" for name in KEPT)]  # fmt: skip
    simulated = np.array(next(iter(found.values())).simulated)
    reference = over_seeds(found, "sense", lambda scores: scores.nrmse).mean(0)
    rows = []
    for arm, title in titles.items():
        errors = over_seeds(found, arm, lambda scores: scores.nrmse)
        gap = "{:+.4f} ({:+.4f} to {:+.4f})".format(*paired_difference(errors.mean(0), reference))
        levels = over_seeds(found, arm, lambda scores: scores.denoising)
        kept = over_seeds(found, arm, lambda scores: [scores.lesions[name] for name in KEPT])
        rows.append(
            [
                title, _range(errors.mean(1), ".4f"),
                *(f"{errors[:, which].mean():.4f}" for which in (~simulated, simulated)),
                "" if arm == "sense" else gap,
                *([_range(of, ".4f") for of in levels.T] or [""] * len(SIGMAS)),
                *(_range(of, ".3g") for of in kept.T),
            ]
        )  # fmt: skip
    write_tables(out, [heads, *rows], "\n".join(markdown([heads, *rows])))
    picture(found, titles, out / "imperfect.png")


def _range(values: np.ndarray, form: str) -> str:
    """Mean over seeds, the lowest and the highest."""
    seeds = f" ({values.min():{form}} to {values.max():{form}})" if len(values) > 1 else ""
    return f"{values.mean():{form}}{seeds}"


def picture(found: dict[Name, Scores], titles: dict[str, str], path: Path) -> None:
    """Denoising error over the start's; lesion contrast against NRMSE, a point for each seed."""
    figure = Figure((10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    start = np.array(found["start", 0].denoising)
    for arm, title in titles.items():
        points = over_seeds(found, arm, lambda scores: [float(np.mean(scores.nrmse)), scores.lesions["mean"]])
        (drawn,) = right.plot(*points.T, "o", label=title)
        for errors in over_seeds(found, arm, lambda scores: scores.denoising):
            if len(errors):
                left.plot(SIGMAS, errors / start, ".-", color=drawn.get_color())
    left.set(xscale="log", xlabel="sigma", ylabel="denoising error over the start's", title="held-out FLAIR")
    right.set(xlabel="NRMSE", ylabel="contrast kept of lesions", title="reconstructions, R = 4")
    right.legend(fontsize="small")
    with writing(path):
        figure.savefig(path, dpi=110)
