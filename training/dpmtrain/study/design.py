"""Which sets there are, in which order they are read, and the key that is sealed before anyone reads."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpmrecon.errors import BadInputError
from dpmrecon.files import from_json

from ..files import write_text
from .questions import ARMS


@dataclass(frozen=True)
class ReadingSet:
    """All contrasts of a subject in one arm. repeat_of: the number of the set that it shows again, None for a first
    reading."""

    subject: str
    arm: str
    repeat_of: int | None = None


@dataclass(frozen=True)
class Design:
    """sets: by their random number; orders: of set numbers, one for each reader."""

    sets: dict[int, ReadingSet]
    orders: list[list[int]]

    @classmethod
    def drawn(cls, subjects: Sequence[str], n_readers: int, n_repeats: int, seed: str) -> "Design":
        """Both arms of each subject, and n_repeats sets shown again.

        A reader meets each subject once before any twice, half in either arm. Subjects keep to the early or the late
        half of each round, so that at least len(subjects) // 2 sets lie between two of one subject; repeats are of the
        early half and come last. Within halves each reader has an order of their own. Raises BadInputError for fewer
        than 2 subjects, or too many repeats.
        """
        n_early = (len(subjects) + 1) // 2
        if len(subjects) < 2:
            raise BadInputError(f"{len(subjects)} subject came, and a study compares subjects: give 2 at least")
        if n_repeats > n_early:
            raise BadInputError(
                f"{n_repeats} repeats of {len(subjects)} subjects cannot be kept apart: give {n_early} at most"
            )
        chance = random.Random(seed)
        mixed = chance.sample(list(subjects), len(subjects))
        halves = [mixed[:n_early], mixed[n_early:]]
        blocks: list[list[ReadingSet]] = [[], [], [], []]  # early and late half of the first and of the second round
        for place, half in enumerate(halves):
            turned = chance.random() < 0.5
            for index, subject in enumerate(half):
                arms = ARMS[::-1] if (index % 2 == 0) == turned else ARMS
                blocks[place].append(ReadingSet(subject, arms[0]))
                blocks[2 + place].append(ReadingSet(subject, arms[1]))
        numbers = chance.sample(range(1, 2 * len(subjects) + n_repeats + 1), 2 * len(subjects) + n_repeats)
        numbered = [[(numbers.pop(), one) for one in block] for block in blocks]
        shown_again = chance.sample(numbered[0], n_repeats)
        numbered.append([(numbers.pop(), ReadingSet(one.subject, one.arm, number)) for number, one in shown_again])
        orders = [
            [number for block in numbered for number, _ in chance.sample(block, len(block))] for _ in range(n_readers)
        ]
        return cls(dict(sorted(pair for block in numbered for pair in block)), orders)


@dataclass(frozen=True)
class Key:
    """What tells the arms. margin: of non-inferiority, in points of the scale, settled before anyone reads; salt: makes
    the seal say nothing of the rest; seed: of the design."""

    design: Design
    margin: float
    seed: str
    salt: str

    def write(self, path: Path) -> str:
        """The key's file; returns its seal, the SHA-256 of its bytes."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        write_text(path, text)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> tuple["Key", str]:
        """The key and its seal. Raises BadInputError for a file that is no key."""
        try:
            content = path.read_bytes()
            told: dict[str, Any] = from_json(content)
            design = told["design"]
            sets = {int(number): ReadingSet(**one) for number, one in design["sets"].items()}
            key = cls(Design(sets, design["orders"]), float(told["margin"]), told["seed"], told["salt"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInputError(f"{path} cannot be read as a key ({error}): give the one `study make` wrote") from error
        return key, hashlib.sha256(content).hexdigest()
