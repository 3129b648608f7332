"""`python -m dpmtrain.study.check --out training/reports/study`: what is known beforehand is found again.

Prints, and writes to table.md: how often the intervals of simulated studies hold the truth; what the analysis makes of
scores that were drawn to given means and classes of kappa; whether a classifier tells the arms of a blinded study.
"""

import argparse
import contextlib
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
from dpmrecon.errors import BadInputError
from tqdm import tqdm

from ..arguments import at_least, exit_code, module_parser
from ..files import write_text
from .analyse import analyse
from .design import Design, Key
from .leaks import accuracy
from .made_up import write_sources
from .make import make
from .questions import ARMS, QUESTIONS
from .scores import Readings, read_scores, write_scores
from .simulated import READERS, simulated_scores
from .statistics import CLASSES, agreements, compare, counts, weighted_kappa

EFFECT = -0.2  # points that acceleration takes from the true quality
MARGIN, N_SUBJECTS, N_REPEATS = 0.5, 20, 10
# question -> mean of the standard, of the accelerated arm, class of kappa
Targets = dict[str, tuple[float, float, str]]
# They go over what a figure of such a study can show
TARGETS: Targets = {
    "grey_matter": (4.4, 4.3, "moderate"),
    "white_matter": (4.2, 4.2, "fair"),
    "ventricles": (4.6, 4.6, "slight"),
    "snr": (3.9, 4.3, "fair"),
    "contrast": (4.1, 4.0, "moderate"),
    "sharpness": (3.8, 3.5, "substantial"),
    "artefacts": (3.2, 3.4, "almost perfect"),
    "overall": (4.0, 3.9, "moderate"),
}
# The source paper's first reader, and its classes, by a published summary (arXiv 2603.13007)
PAPER: Targets = {
    "grey_matter": (4.8, 4.9, "slight or fair"),
    "white_matter": (4.8, 4.9, "slight or fair"),
    "ventricles": (4.8, 4.9, "slight or fair"),
    "snr": (4.2, 4.7, "slight or fair"),
    "contrast": (4.7, 4.8, "slight or fair"),
    "sharpness": (4.7, 4.8, "slight or fair"),
    "artefacts": (4.1, 4.3, "slight or fair"),
    "overall": (4.5, 4.8, "slight or fair"),
}
PAPER_SUBJECTS = 80
DRAWS = 2000


def simulated(folder: Path, n_subjects: int, n_repeats: int, effect: float, seed: int) -> Readings:
    """A study of scripted readers, written to files and read again."""
    design = Design.drawn([f"subject{n:04d}" for n in range(n_subjects)], len(READERS), n_repeats, str(seed))
    seal = Key(design, MARGIN, str(seed), "").write(folder / "key.json")
    scores = simulated_scores(design, effect, READERS, np.random.default_rng(seed))
    for reader, given in scores.items():
        write_scores(folder / f"{reader}.csv", seal, reader, given)
    key, seal = Key.read(folder / "key.json")
    return read_scores(sorted(folder.glob("*.csv")), key, seal)


def coverage(n_studies: int, folder: Path) -> list[str]:
    """How many intervals of n_studies studies hold the truth, which is taken from one study of very many subjects."""
    truth = simulated(folder, 20000, 10000, EFFECT, 10**6)
    differences = [one.difference.value for one in compare(truth, MARGIN)]
    kappas = {(one.who, one.question): one.kappa.value for one in agreements(truth, n_resamples=1)}
    held: dict[str, list[bool]] = {"difference": [], "kappa between readers": [], "kappa within readers": []}
    non_inferior = 0
    for seed in tqdm(range(n_studies), desc="studies"):
        readings = simulated(folder, N_SUBJECTS, N_REPEATS, EFFECT, seed)
        compared = compare(readings, MARGIN)
        held["difference"] += [one.difference.holds(true) for one, true in zip(compared, differences)]
        non_inferior += sum(one.non_inferior for one in compared)
        for one in agreements(readings):
            name = "kappa within readers" if one.who.endswith("again") else "kappa between readers"
            held[name].append(one.kappa.holds(kappas[one.who, one.question]))
    rows = [f"| {name} | {len(told)} | {100 * np.mean(told):.1f} % |" for name, told in held.items()]
    return [
        f"{n_studies} studies of {N_SUBJECTS} subjects, {len(READERS)} scripted readers and {N_REPEATS} repeats; "
        f"acceleration takes {-EFFECT:g} points, of which whole points from 1 to 5 leave "
        f"{-np.mean(differences):.3f}. With a margin of {MARGIN:g}, "
        f"{100 * non_inferior / n_studies / len(QUESTIONS):.0f} % of the questions are found non-inferior, as all are.",
        "",
        "| 95 % intervals | number | hold the truth |",
        "|---|---|---|",
        *rows,
    ]


def drawn_to(targets: Targets, n_subjects: int, chance: np.random.Generator) -> Readings:
    """Two readers whose scores have these means within .05 and these classes of kappa. Raises BadInputError for targets
    that DRAWS draws do not meet."""
    first = np.zeros((2, n_subjects, 2, len(QUESTIONS)))
    for place, question in enumerate(QUESTIONS):
        first[..., place] = _drawn_question(question, targets[question], n_subjects, chance)
    names = [f"subject{n:02d}" for n in range(n_subjects)]
    return Readings(["R1", "R2"], names, first, np.zeros((2, 0, 2, len(QUESTIONS))), [])


def _drawn_question(
    question: str, target: tuple[float, float, str], n_subjects: int, chance: np.random.Generator
) -> np.ndarray:
    """(2 readers, subjects, 2 arms): of draws of any agreement, the first that is as the target says."""
    *means, named = target
    bounds = {name: (lowest, highest) for (lowest, name), highest in zip(CLASSES, (1.0, 0.8, 0.6, 0.4, 0.2))}
    ranges = [bounds.get(name, (-1.0, 0.0)) for name in named.split(" or ")]
    lowest, highest = min(ranges)[0], max(ranges)[1]
    for _ in range(DRAWS):
        shared = np.clip((lowest + highest) / 2 + 0.3 * chance.random(), 0, 1)
        latent = np.sqrt(shared) * chance.standard_normal((1, n_subjects, 2))
        latent = latent + np.sqrt(1 - shared) * chance.standard_normal((2, n_subjects, 2))
        scores = np.stack([_with_mean(latent[..., arm], means[arm]) for arm in range(2)], axis=-1)
        pairs = np.moveaxis(scores, 0, -1)
        kappa = float(weighted_kappa(counts(pairs).sum(axis=0)))
        near = np.abs(scores.mean(axis=(0, 1)) - means).max() <= 0.05
        if near and lowest < kappa <= highest:
            return scores
    raise BadInputError(f"no scores of {n_subjects} subjects have the means and the {named} kappa of {question}")


def _with_mean(latent: np.ndarray, wanted: float) -> np.ndarray:
    """Whole points from 1 to 5 in the order of latent values, with a mean as near as a common shift makes it."""
    shifts = np.linspace(0, 7, 701)
    means = np.rint(shifts[:, None] + latent.ravel()).clip(1, 5).mean(axis=1)
    return np.rint(latent + shifts[np.abs(means - wanted).argmin()]).clip(1, 5)


def reproduced(targets: Targets, n_subjects: int) -> list[str]:
    """The targets beside what the analysis finds of scores drawn to them."""
    readings = drawn_to(targets, n_subjects, np.random.default_rng(0))
    found = {one.question: one.named for one in agreements(readings)}
    rows = []
    for one in compare(readings, MARGIN):
        standard, accelerated, named = targets[one.question]
        means = f"{standard:g}, {accelerated:g} | {one.standard.value:.2f}, {one.accelerated.value:.2f}"
        rows.append(f"| {QUESTIONS[one.question]} | {means} | {named} | {found[one.question]} |")
    head = ["| question | means drawn to | means found | kappa drawn to | kappa found |", "|---|---|---|---|---|"]
    return [*head, *rows]


def blinded(folder: Path, n_studies: int, n_subjects: int) -> list[str]:
    """A classifier on the source files and on the blinded sets of studies that have nothing in common: the mean of the
    share of arms it tells, and the interval of that mean, to which each study adds one number."""
    from scipy.stats import t

    shares = np.array([_told(folder / f"{n}", n_subjects, n) for n in tqdm(range(n_studies), desc="blinded studies")])
    rows = []
    for name, told in zip(("source files", "blinded sets"), shares.T):
        wide = t.ppf(0.975, n_studies - 1) * told.std(ddof=1) / np.sqrt(n_studies)
        low, high = 100 * (told.mean() - wide), 100 * (told.mean() + wide)
        rows.append(f"| {name} | {100 * told.mean():.0f} % | {low:.0f} to {high:.0f} % |")
    return [
        f"| {n_studies} studies of {2 * n_subjects} sets | arms told | 95 % interval; chance is 50 % |",
        "|---|---|---|",
        *rows,
    ]


def _told(folder: Path, n_subjects: int, study: int) -> tuple[float, float]:
    """The shares of one study, whose files are made and removed."""
    subjects = [f"subject{n:02d}" for n in range(n_subjects)]
    write_sources(folder, subjects, ("flair", "t2"), (3, 32, 30), study)
    sources = [folder / arm / subject for subject in subjects for arm in ARMS]
    in_sources = accuracy(sources, np.repeat(subjects, 2).tolist(), list(ARMS) * n_subjects)
    out, key_file = folder / "study", folder / "key.json"
    with contextlib.redirect_stdout(io.StringIO()):
        make(
            argparse.Namespace(
                standard=folder / ARMS[0], accelerated=folder / ARMS[1], out=out, key=key_file, seed=f"{study}",
                readers=2, repeats=0, margin=MARGIN, deviation=0.7, expected=0.0,
            )
        )  # fmt: skip
    sets = Key.read(key_file)[0].design.sets
    found = [out / "dicom" / f"set{number:03d}" for number in sets]
    in_sets = accuracy(found, [one.subject for one in sets.values()], [one.arm for one in sets.values()])
    shutil.rmtree(folder)
    return in_sources, in_sets


def main() -> None:
    parser = module_parser(__doc__, "out")
    parser.add_argument("--studies", type=int, default=24, help="that are simulated (default: 24)")
    args = parser.parse_args()
    at_least(args, studies=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sources").mkdir()
        text = ["## Simulated studies", "", *coverage(args.studies, folder)]
        simulated(folder, N_SUBJECTS, N_REPEATS, EFFECT, 0)
        analyse(sorted(folder.glob("*.csv")), folder / "key.json", args.out / "simulated", None)
        text += ["", "## Scores drawn to means and classes of kappa", "", *reproduced(TARGETS, N_SUBJECTS)]
        text += ["", "## Scores drawn to the source paper's", "", *reproduced(PAPER, PAPER_SUBJECTS)]
        text += [
            "",
            "## Are the arms told by anything but the images?",
            "",
            *blinded(folder / "sources", args.studies, N_SUBJECTS),
        ]
    write_text(args.out / "table.md", "\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
