"""How many subjects a claim of non-inferiority needs."""

import math

from dpmrecon.errors import BadInputError

ALPHA = 0.025  # one-sided


def power(n_subjects: int, margin: float, deviation: float, expected: float = 0.0, n_questions: int = 1) -> float:
    """Chance that the one-sided paired t-test of `analyse` finds non-inferiority.

    margin: how much worse is still not worse, in points, positive; deviation: standard deviation of a subject's
    difference, accelerated minus standard, averaged over readers; expected: true mean difference; n_questions: how many
    share ALPHA (Bonferroni, which Holm never falls below). Raises BadInputError where no number of subjects would do.
    """
    from statsmodels.stats.power import TTestPower

    effect = _effect(margin, deviation, expected)
    return float(TTestPower().power(effect, n_subjects, ALPHA / n_questions, alternative="larger"))


def subjects_needed(chance: float, margin: float, deviation: float, expected: float = 0.0, n_questions: int = 1) -> int:
    """The smallest number of subjects with at least that chance; the rest as in `power`."""
    n_subjects = 2
    while power(n_subjects, margin, deviation, expected, n_questions) < chance:
        n_subjects += 1
    return n_subjects


def _effect(margin: float, deviation: float, expected: float) -> float:
    effect = (expected + margin) / deviation if deviation > 0 else math.nan
    if not effect > 0:
        raise BadInputError(
            f"a margin of {margin:g} with an expected difference of {expected:g} and a deviation of {deviation:g} has "
            "no power: the margin must be larger than the loss that is expected, and the deviation above 0"
        )
    return effect


def told(n_subjects: int | None, margin: float, deviation: float, expected: float, n_questions: int) -> list[str]:
    """Lines of a screen: what subjects can show, and how many do with 80 and 90 %."""
    lines = [
        f"non-inferiority with a margin of {margin:g} points, expected difference {expected:g}, standard deviation of "
        f"a subject's difference {deviation:g}, one-sided alpha {ALPHA:g}:"
    ]
    for count, name in ((1, "one question"), (n_questions, f"each of {n_questions} questions")):
        needed = [subjects_needed(chance, margin, deviation, expected, count) for chance in (0.8, 0.9)]
        line = f"  {name}: {needed[0]} subjects for a power of 80 %, {needed[1]} for 90 %"
        if n_subjects is not None:
            line += f"; {n_subjects} subjects have {100 * power(n_subjects, margin, deviation, expected, count):.0f} %"
        lines.append(line)
    return lines
