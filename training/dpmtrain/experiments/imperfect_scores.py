"""What the networks of `imperfect` are worth, as a table and a plot. Scores are of (arm, seed)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from dpmrecon.errors import DpmreconError
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint
from dpmrecon.recon.types import MappedSlice
from matplotlib.figure import Figure
from tqdm import tqdm

from ..evaluate.lesions import Make, pair_of, scores, summary
from ..evaluate.methods import by_card
from ..evaluate.metrics import nrmse, paired_difference
from ..evaluate.plan import CALIBRATION_LINES
from ..evaluate.references import standard_of_care
from ..evaluate.score_lines import ScoreLines
from ..evaluate.scoring import Undersampled
from ..evaluate.tables import write_tables
from ..files import save_figure
from .capacity import SIGMAS, denoising_errors
from .scans import CONTRAST, LABEL_MAP, Site

SIGNAL = 0.525  # of the head in the scans with lesions, median, over the scale
# how far the data are trusted, see SamplerSettings: what is best depends on the network
FACTORS = (0.45, 0.57, 0.75, 1.0)
KEPT = ("mean", "lowest", "AUC", "invented")
Name = tuple[str, int]


@dataclass(frozen=True)
class Scores:
    """denoising: rms error over sigma, for each of SIGMAS, empty where there is no network; simulated: whether a
    held-out slice is the label map's; for each factor, of each slice, nrmse, own: the same against the image that
    the site has, missed: of the lines left out, rms over the noise's; and lesions: see `evaluate/lesions.py`."""

    denoising: list[float]
    simulated: list[bool]
    nrmse: list[list[float]]
    own: list[list[float]]
    missed: list[list[float]]
    lesions: list[dict[str, float]]


def all_scores(
    images: Path, paths: dict[Name, Path], file: Path, cases: list[Undersampled], site: Site, draws: int
) -> dict[Name, Scores]:
    """Of every network and of CG-SENSE; those in `file` are not made again."""
    lines = ScoreLines(file)
    lesions = [(images, CONTRAST, SIGNAL / site.sigma_n, draw) for draw in range(draws)]
    found = {("CG-SENSE", 0): scores_of(None, cases, lesions, lines, FACTORS)}
    for name, path in tqdm(paths.items(), desc="scores", mininterval=10):
        found[name] = scores_of(load_checkpoint(path), cases, lesions, lines, FACTORS)
    return found


def scores_of(
    checkpoint: Checkpoint | None,
    cases: list[Undersampled],
    lesions: list[tuple[Path, str, float, int]],
    lines: ScoreLines,
    factors: Sequence[float],
) -> Scores:
    """checkpoint: None for CG-SENSE, to which the factors are nothing; cases: of one contrast; lesions: draws, as
    `pair_of` takes them."""
    contrast = cases[0].full.contrast

    def denoising() -> dict:
        assert checkpoint is not None
        truths = [(contrast, torch.from_numpy(case.full.truth).to(torch.complex64)) for case in cases]
        errors = [denoising_errors(checkpoint.denoiser, truths, sigma) for sigma in SIGMAS]
        return {"error": [math.sqrt(np.square(of).mean()) for of in errors]}

    def errors(make: Make) -> dict:
        found: dict[str, list[float]] = {"nrmse": [], "own": [], "missed": []}
        for case in cases:
            image = make(case.mapped)
            found["nrmse"].append(nrmse(image.abs().numpy(), case.full.truth))
            found["own"].append(nrmse(image.abs().numpy(), own_image(case)))
            found["missed"].append(case.missed(image))
        return found

    def of_draw(make: Make, draw: tuple[Path, str, float, int]) -> dict:
        return scores(pair_of(*draw), make)

    name = "CG-SENSE" if checkpoint is None else checkpoint.model_id
    at_factors, kept = [], []
    for factor in factors:
        key = {"model": name} if checkpoint is None else {"model": name, "factor": factor}
        make = partial(image_of, checkpoint=checkpoint, contrast=contrast, factor=factor)
        at_factors.append(lines.get({**key, "slices": len(cases)}, partial(errors, make)))
        drawn = [lines.get({**key, "draw": draw[-1]}, partial(of_draw, make, draw)) for draw in lesions]
        kept.append(summary(drawn) if drawn else {})
    return Scores(
        lines.get({"model": name, "denoising": len(cases)}, denoising)["error"] if checkpoint else [],
        [case.full.scan.startswith(LABEL_MAP) for case in cases],
        [each["nrmse"] for each in at_factors],
        [each["own"] for each in at_factors],
        [each["missed"] for each in at_factors],
        kept,
    )


@lru_cache(None)
def own_image(case: Undersampled) -> np.ndarray:
    """The site's own image, magnitude (rows, cols)."""
    return standard_of_care(case.full, case.condition.scan_R, CALIBRATION_LINES).truth


def image_of(mapped: MappedSlice, checkpoint: Checkpoint | None, contrast: str, factor: float) -> torch.Tensor:
    """One sample by the card's settings but for the factor, or the CG-SENSE image. Raises DpmreconError where the
    sampler failed."""
    if checkpoint is None:
        return mapped.conventional
    found = by_card(mapped, checkpoint, contrast, {"noise_factor": factor}, samples=1)
    if found.fallback:
        raise DpmreconError(f"{checkpoint.model_id}: {found.fallback}; lower the rate of its training")
    return found.image


def over_seeds(found: dict[Name, Scores], arm: str, value: Callable[[Scores], list]) -> np.ndarray:
    """(seeds, ...)."""
    return np.array([value(scores) for (name, _), scores in found.items() if name == arm])


def report(found: dict[Name, Scores], titles: dict[str, str], out: Path) -> None:
    """table.csv, each arm at all FACTORS; table.md, at the one that is best for it on the label map; imperfect.png.

    titles: of the arms; "sense" is what the others are compared with.
    """
    heads = ["tuned on", "noise_factor", "NRMSE, patient09", "label map", "all, less CG-SENSE images' (95 %)",
             "against the site's images", "missed of lines left out",
             *(f"error at {sigma:g}" for sigma in SIGMAS), *(f"lesions: {name}" for name in KEPT)]  # fmt: skip
    simulated = np.array(next(iter(found.values())).simulated)
    nrmses = {arm: over_seeds(found, arm, lambda scores: scores.nrmse) for arm in titles}
    best = {arm: int(of[..., simulated].mean((0, 2)).argmin()) for arm, of in nrmses.items()}
    reference = nrmses["sense"][:, best["sense"]].mean(0)
    lines, chosen = [heads], [heads]
    for arm, title in titles.items():
        levels = over_seeds(found, arm, lambda scores: scores.denoising)
        lesions = over_seeds(found, arm, lambda scores: [[of[name] for name in KEPT] for of in scores.lesions])
        seen = [over_seeds(found, arm, lambda scores: scores.own), over_seeds(found, arm, lambda scores: scores.missed)]
        for number, factor in enumerate(FACTORS if levels.size else ("",)):
            errors = nrmses[arm][:, number]  # (seeds, slices)
            cells = [
                title,
                f"{factor}",
                *(ranged(errors[:, which].mean(1), ".4f") for which in (~simulated, simulated)),
                "{:+.4f} ({:+.4f} to {:+.4f})".format(*paired_difference(errors.mean(0), reference)),
                *(ranged(of[:, number].mean(1), ".4f") for of in seen),
                *([ranged(of, ".3f") for of in levels.T] or [""] * len(SIGMAS)),
                *(ranged(of, ".3g") for of in lesions[:, number].T),
            ]
            lines.append(cells)
            if number == best[arm]:
                chosen.append(cells)
    write_tables(out, lines, chosen)
    picture(found, titles, out / "imperfect.png")


def ranged(values: np.ndarray, form: str) -> str:
    """Mean over seeds, with the lowest and the highest where they differ in what is shown."""
    low, high = (format(value, form) for value in (values.min(), values.max()))
    return format(values.mean(), form) + (f" ({low} to {high})" if low != high else "")


def picture(found: dict[Name, Scores], titles: dict[str, str], path: Path) -> None:
    """Denoising error over the start's, a line for each seed; lesion contrast against NRMSE, a line along FACTORS."""
    figure = Figure((10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    start = np.array(found["start", 0].denoising)
    for arm, title in titles.items():
        errors = over_seeds(found, arm, lambda scores: [float(np.mean(of)) for of in scores.nrmse])
        kept = over_seeds(found, arm, lambda scores: [of["mean"] for of in scores.lesions])
        (drawn,) = right.plot(errors.mean(0), kept.mean(0), "o-", label=title)
        for levels in over_seeds(found, arm, lambda scores: scores.denoising):
            if len(levels):
                left.plot(SIGMAS, levels / start, ".-", color=drawn.get_color())
    left.set(xscale="log", xlabel="sigma", ylabel="denoising error over the start's", title="held-out FLAIR")
    factors = ", ".join(f"{factor:g}" for factor in FACTORS)
    right.set(xlabel="NRMSE", ylabel="contrast kept of lesions", title=f"R = 4, noise_factor {factors}")
    left.set_xticks(SIGMAS, [f"{sigma:g}" for sigma in SIGMAS])
    left.minorticks_off()
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    save_figure(path, figure, 110)
