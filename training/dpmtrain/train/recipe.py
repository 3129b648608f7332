"""Recipes: what they may say, and what they say of one step of training."""

import math
from pathlib import Path
from typing import Any

from dpmrecon.errors import BadInputError

from .muon import OPTIMIZERS

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

LEAST = 1e-12  # of what would train nothing at 0
SHARES = ("decay_fraction", "label_dropout", "real_fraction", "volume_shapes", "volume_share")  # 1 at most
ENTRIES = {"crops": int, "volumes": str, "held_back": str}  # of lists
# of table [train]: kind of value, and the smallest one
TRAIN_KEYS: dict[str, tuple[type, float | None]] = {
    "seed": (int, 0),
    "optimizer": (str, None),
    "precision": (str, None),
    "steps": (int, 1),
    "batch": (int, 1),  # examples of a step, over all processes
    "draws": (int, 1),  # of noise, for each example
    "crops": (list, 1),
    "rate": (float, LEAST),
    "warmup": (int, 1),  # steps
    "decay_fraction": (float, 0),
    "clip": (float, LEAST),
    "ema_half_life": (float, 1),  # images
    "label_dropout": (float, 0),
    "p_mean": (float, None),
    "p_std": (float, 0),
    "volumes": (list, 1),
    "real_fraction": (float, 0),
    "focus_weight": (float, 0),  # of the squared error at painted foci
    "save_every": (int, 1),  # steps
    "sheet_every": (int, 0),  # steps; 0: at the end only
    "save_seconds": (float, 0),
    "slice_weight": (float, 0),  # of runs on slices; 0: of volumes alone, and of plain denoising
    "volume_scans": (int, 0),  # 0: of slices alone
    "volume_shapes": (float, 0),  # share of the scans: of random shapes, no heads
    "volume_share": (float, 0),  # of the steps that have one
    "volume_weight": (float, 0),  # of their loss
}
# of training for a number of steps, for a time, and inside the sampler
COUNTED = ("steps", "ema_half_life", "p_mean", "p_std", "save_every", "sheet_every")
IN_SAMPLER = ("slice_weight", "volume_scans", "volume_shapes", "volume_share", "volume_weight")
TIMED = ("save_seconds", *IN_SAMPLER)
RECIPE_TABLES = {
    "pretrain": {
        "model": ("widths", "blocks", "embedding", "labels", "sigma_data"),
        "train": tuple(key for key in TRAIN_KEYS if key not in TIMED),
        "sampling": ("samples", "prox", "dps"),
    },
    "finetune": {"target": ("label", "slot"), "train": tuple(key for key in TRAIN_KEYS if key not in TIMED)},
    "one-step": {
        "model": ("widths", "blocks", "embedding", "labels", "conditioning"),
        "train": tuple(key for key in TRAIN_KEYS if key not in (*COUNTED, *IN_SAMPLER)),
        "sampling": ("samples", "one-step"),
    },
    "in-sampler": {"train": tuple(key for key in TRAIN_KEYS if key not in COUNTED)},
}
OPTIONAL = {"sampling": {"uncertainty"}}
PRECISIONS = {"float32": "no", "bf16": "bf16"}  # and their names in accelerate


def read_recipe(path: Path, kind: str = "pretrain") -> dict:
    """A recipe of `kind`: its RECIPE_TABLES, each with exactly the keys that are used, and `history`; OPTIONAL ones may
    be missing.

    Raises BadInputError for a file that cannot be read, for unknown or missing keys, and for values out of range.
    """
    recipe = read_toml(path)
    tables = RECIPE_TABLES[kind]
    strange = set(recipe) - set(tables) - {"history"}
    if strange:
        raise BadInputError(f"recipe {path}: unknown {', '.join(sorted(strange))}; {kind} has {', '.join(tables)}")
    for table, valid in tables.items():
        found = set(recipe.get(table, {})) - OPTIONAL.get(table, set())
        if found != set(valid):
            wrong = ", ".join(sorted(found ^ set(valid)))
            raise BadInputError(
                f"recipe {path}, table [{table}]: unknown or missing {wrong}; it has {', '.join(valid)}"
            )
    for key in tables["train"]:
        check(path, key, recipe["train"][key], *TRAIN_KEYS[key])
    for key, value in recipe.get("target", {}).items():
        check(path, key, value, str, None)
    for key, valid in (("optimizer", OPTIMIZERS), ("precision", tuple(PRECISIONS))):
        if recipe["train"][key] not in valid:
            raise BadInputError(f"recipe {path}: {key} is '{recipe['train'][key]}', give {' or '.join(valid)}")
    return recipe


def read_toml(path: Path) -> dict:
    """The tables of the file. Raises BadInputError where it cannot be read."""
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInputError(f"recipe {path} cannot be read ({error})") from error


def check(path: Path, key: str, value: Any, wanted: type, smallest: float | None) -> None:
    """Raises BadInputError where the value is of another kind than wanted, or too small."""
    kinds = (int, float) if wanted is float else (wanted,)
    right = isinstance(value, kinds) and not isinstance(value, bool)
    size = len(value) if right and wanted is list else value
    if not right or (smallest is not None and not smallest <= size < math.inf):
        needed = {int: "a whole number", float: "a number", str: "a text", list: "a list"}[wanted]
        least = "" if smallest is None else f" of {smallest:g} or more" + (" entries" if wanted is list else "")
        raise BadInputError(f"recipe {path}: {key} is {value!r}, give {needed}{least}")
    if key in SHARES and value > 1:
        raise BadInputError(f"recipe {path}: {key} is {value!r}, give a share of 1 at most")
    if wanted is list and not all(_fits(entry, ENTRIES[key]) for entry in value):
        needed = {int: "whole numbers of 1 or more", str: "texts"}[ENTRIES[key]]
        raise BadInputError(f"recipe {path}: {key} is {value!r}, give {needed}")


def _fits(entry: Any, kind: type) -> bool:
    return isinstance(entry, str) if kind is str else type(entry) is int and entry > 0


def learning_rate(step: int, settings: dict) -> float:
    """Linear warm-up, constant, then linear to zero over the last `decay_fraction`."""
    decay = settings["steps"] * settings["decay_fraction"]
    remaining = (settings["steps"] - step) / decay if decay > 0 else 1.0
    return settings["rate"] * min(1.0, (step + 1) / settings["warmup"], remaining)


def timed_factor(share: float, step: int, settings: dict) -> float:
    """Of the rate where a time and not a number of steps is given: linear warm-up over steps, constant, then linear to
    zero over the last `decay_fraction` of the budget."""
    remaining = (1 - share) / settings["decay_fraction"] if settings["decay_fraction"] > 0 else 1.0
    return min(1.0, (step + 1) / settings["warmup"], remaining)


def ema_decay(step: int, settings: dict, random_start: bool) -> float:
    """What one step keeps of the average: half of it over `ema_half_life` images. Random weights are forgotten
    sooner; those that a run starts with are worth remembering."""
    decay = 0.5 ** (settings["batch"] / settings["ema_half_life"])
    return min(decay, (1 + step) / (10 + step)) if random_start else decay
