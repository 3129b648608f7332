"""What the scores say: means, paired differences, non-inferiority and agreement, each with an interval.

The subject is the unit: its readings are not independent of each other. A subject's difference is the mean over readers
of both its sets; intervals of kappa draw subjects with replacement.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from .power import ALPHA
from .questions import QUESTIONS
from .scores import Readings

LEVEL = 1 - 2 * ALPHA
# Landis and Koch, Biometrics 1977: the lowest kappa of each class
CLASSES = ((0.8, "almost perfect"), (0.6, "substantial"), (0.4, "moderate"), (0.2, "fair"), (0.0, "slight"))
WORST = "poor"
N_RESAMPLES = 1999


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; NaN where there is none to be had."""

    value: float
    low: float
    high: float

    def holds(self, truth: float) -> bool:
        return self.low <= truth <= self.high


@dataclass(frozen=True)
class Comparison:
    """One question. n: subjects with a difference; standard, accelerated: means over them; difference: accelerated
    minus standard; p: two-sided Wilcoxon; p_inferior: one-sided t-test of a loss of the margin; both by Holm over the
    questions."""

    question: str
    n: int
    standard: Estimate
    accelerated: Estimate
    difference: Estimate
    p: float
    p_inferior: float

    @property
    def non_inferior(self) -> bool:
        return self.p_inferior < ALPHA


@dataclass(frozen=True)
class Agreement:
    """Weighted kappa of a pair of readers, or of a reader with themselves, of one question or of all."""

    who: str
    question: str
    n: int
    kappa: Estimate

    @property
    def named(self) -> str:
        """Its class; empty where there is no kappa, as where every score is equal."""
        if np.isnan(self.kappa.value):
            return ""
        return next((name for lowest, name in CLASSES if self.kappa.value > lowest), WORST)


def compare(readings: Readings, margin: float) -> list[Comparison]:
    """Every question, with p-values that hold for all of them together."""
    from statsmodels.stats.multitest import multipletests

    found, raw = [], []
    for place, question in enumerate(QUESTIONS):
        both = readings.first[..., place]  # (readers, subjects, arms)
        scored = ~np.isnan(both).any(axis=2)
        used = scored.any(axis=0)
        weights = scored[:, used, None] / scored[:, used, None].sum(axis=0)
        means = (np.nan_to_num(both[:, used]) * weights).sum(axis=0)  # (subjects, arms)
        difference = means[:, 1] - means[:, 0]
        found.append((question, int(used.sum()), mean(means[:, 0]), mean(means[:, 1]), mean(difference)))
        raw.append((wilcoxon(difference), p_inferior(difference, margin)))
    p, inferior = (multipletests(column, method="holm")[1] for column in np.nan_to_num(np.array(raw).T, nan=1.0))
    return [Comparison(*told, float(one), float(other)) for told, one, other in zip(found, p, inferior)]


def mean(values: np.ndarray) -> Estimate:
    """The mean and its t-interval."""
    if len(values) < 2:
        return Estimate(float(values.mean()) if len(values) else np.nan, np.nan, np.nan)
    half = stats.sem(values) * stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1)
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def wilcoxon(differences: np.ndarray) -> float:
    """p of the two-sided signed-rank test; 1 where no difference is other than 0."""
    differences = np.round(differences, 9)  # means of readers that are equal but for rounding are ties
    if not differences.any():
        return 1.0
    return float(
        stats.wilcoxon(differences[differences != 0], method="approx" if len(differences) > 50 else "auto").pvalue
    )


def p_inferior(differences: np.ndarray, margin: float) -> float:
    """p of the one-sided t-test that the mean lies at -margin or below; 1 where it cannot be tested."""
    if len(differences) < 2:
        return 1.0
    if np.ptp(differences) == 0:
        return float(differences[0] <= -margin)
    return float(stats.ttest_1samp(differences, -margin, alternative="greater").pvalue)


def agreements(readings: Readings, n_resamples: int = N_RESAMPLES) -> list[Agreement]:
    """Each pair of readers on first readings, then each reader on repeats: every question, and all together."""
    found = []
    for one, name in enumerate(readings.readers):
        for other in range(one + 1, len(readings.readers)):
            pairs = np.stack([readings.first[one], readings.first[other]], axis=-1)  # (subjects, arms, questions, 2)
            found += _by_question(f"{name} and {readings.readers[other]}", pairs, n_resamples)
    if readings.again.shape[1]:
        for row, name in enumerate(readings.readers):
            pairs = np.moveaxis(readings.again[row], 1, -1)[:, None]  # (repeats, 1, questions, 2)
            found += _by_question(f"{name} again", pairs, n_resamples)
    return found


def _by_question(who: str, pairs: np.ndarray, n_resamples: int) -> list[Agreement]:
    told = [(question, pairs[:, :, [place]]) for place, question in enumerate(QUESTIONS)] + [("all", pairs)]
    found = []
    for question, some in told:
        tables = counts(some.reshape(len(some), -1, 2))
        found.append(Agreement(who, question, int(tables.sum()), kappa_between(tables, n_resamples)))
    return found


def counts(pairs: np.ndarray) -> np.ndarray:
    """(subjects, n, 2) scores to (subjects, 5, 5) tables; pairs with a missing score are left out."""
    whole = ~np.isnan(pairs).any(axis=2)
    tables = np.zeros((len(pairs), 5, 5))
    for subject, (given, keep) in enumerate(zip(pairs, whole)):
        np.add.at(tables[subject], tuple(given[keep].astype(int).T - 1), 1)
    return tables


def weighted_kappa(table: np.ndarray) -> np.ndarray:
    """Kappa with quadratic weights of tables (..., 5, 5); NaN where chance alone would agree wholly.

    As statsmodels' cohens_kappa(table, wt="quadratic"), for many tables at once.
    """
    apart = (np.arange(5)[:, None] - np.arange(5)) ** 2
    total = table.sum(axis=(-2, -1))
    seen = (apart * table).sum(axis=(-2, -1)) * total
    by_chance = np.einsum("ij,...i,...j->...", apart, table.sum(axis=-1), table.sum(axis=-2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(by_chance > 0, 1 - seen / by_chance, np.nan)


def kappa_between(tables: np.ndarray, n_resamples: int) -> Estimate:
    """Of (subjects, 5, 5) tables, with a bootstrap interval over subjects (percentiles)."""
    value = float(weighted_kappa(tables.sum(axis=0)))
    if np.isnan(value):
        return Estimate(value, np.nan, np.nan)
    n_subjects = len(tables)
    drawn = np.random.default_rng(0).multinomial(n_subjects, np.full(n_subjects, 1 / n_subjects), n_resamples)
    kappas = weighted_kappa((drawn @ tables.reshape(n_subjects, 25)).reshape(-1, 5, 5))
    low, high = np.nanpercentile(kappas, [50 - 50 * LEVEL, 50 + 50 * LEVEL])
    return Estimate(value, float(low), float(high))
