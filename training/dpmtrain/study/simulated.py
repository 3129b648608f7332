"""Readers that are scripted: what a study of them must find is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .design import Design
from .questions import ACCELERATED, QUESTIONS

QUALITY, SPREAD = 3.4, 0.8  # mean and standard deviation of subjects' true quality, in points


@dataclass(frozen=True)
class Reader:
    """bias: points above the true quality; noise: standard deviation of one reading."""

    name: str
    bias: float
    noise: float

    def scores(self, quality: np.ndarray, chance: np.random.Generator) -> np.ndarray:
        """Whole points, 1 to 5, of true quality of any shape."""
        seen = quality + self.bias + self.noise * chance.standard_normal(quality.shape)
        return np.rint(seen).clip(1, 5).astype(int)


READERS = (Reader("R1", 0.0, 0.4), Reader("R2", -0.4, 0.6), Reader("R3", 0.3, 0.5))


def simulated_scores(
    design: Design, effect: float, readers: Sequence[Reader], chance: np.random.Generator
) -> dict[str, dict[int, dict[str, int]]]:
    """Scores by reader and set. effect: what acceleration adds to the true quality."""
    subjects = sorted({one.subject for one in design.sets.values()})
    quality = dict(zip(subjects, QUALITY + SPREAD * chance.standard_normal((len(subjects), len(QUESTIONS)))))
    found: dict[str, dict[int, dict[str, int]]] = {}
    for reader in readers:
        found[reader.name] = {
            number: dict(
                zip(
                    QUESTIONS, map(int, reader.scores(quality[one.subject] + effect * (one.arm == ACCELERATED), chance))
                )
            )
            for number, one in design.sets.items()
        }
    return found
