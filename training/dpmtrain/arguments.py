"""What the options of commands say, and what is wrong with them."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpmrecon.errors import BadInputError, DpmreconError

# options of many commands
USUAL: dict[str, dict[str, Any]] = {
    "images": {"type": Path, "required": True, "help": "folder with open_ms/ and synthseg_labels/"},
    "data": {"type": Path, "required": True, "help": "folder that `prepare` wrote"},
    "run": {"type": Path, "required": True, "dest": "folder", "help": "state and log; gone on with if there"},
    "out": {"type": Path, "required": True, "help": "folder for tables and scores; gone on with if there"},
    "model": {"type": Path, "help": "checkpoint (default: the one that ships)"},
    "seed": {"type": int, "default": 0},
    "device": {"help": "cpu, cuda, cuda:1 ... (default: cuda where there is one)"},
    "workers": {"type": int, "default": 0, "help": "loader processes (default: 0)"},
    "threads": {"type": int, "help": "of the CPU (default: all)"},
}


def add_usual(parser: argparse.ArgumentParser, *names: str) -> argparse.ArgumentParser:
    """Some of USUAL, by name."""
    for name in names:
        parser.add_argument(f"--{name}", **USUAL[name])
    return parser


def module_parser(text: str | None, *usual: str) -> argparse.ArgumentParser:
    """Of a module that is a command of its own. text: its docstring; usual: some of USUAL."""
    form = argparse.RawDescriptionHelpFormatter
    return add_usual(argparse.ArgumentParser(description=text, formatter_class=form), *usual)


def exit_code(work: Callable[[], int | None]) -> int:
    """Of a command's work: 2 on bad input or where a package is missing, with one sentence and no traceback."""
    try:
        return work() or 0
    except DpmreconError as error:
        print(f"dpmtrain: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("dpmtrain", "dpmrecon"):
            raise
        print(f"dpmtrain: {error.name} is not installed: pip install -e .[train,study]", file=sys.stderr)
    return 2


def at_least(args: argparse.Namespace, **least: int) -> None:
    """Raises BadInputError for the first named option below its smallest value."""
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            raise BadInputError(f"--{name.replace('_', '-')} is {value}: give {smallest} or more")


def checkpoint_path(path: Path, *begun: Path | None) -> None:
    """Raises BadInputError where --out is no name of a checkpoint, or that of a model which training begins with."""
    if path.suffix != ".safetensors":
        raise BadInputError(f"--out is {path}: give a name that ends in .safetensors")
    if path.resolve() in [start.resolve() for start in begun if start is not None]:
        raise BadInputError(f"--out is {path}, with which training begins and which would be lost: give another name")


def writable(*models: Path | None) -> None:
    """Raises BadInputError where --write would find no file whose card it could change."""
    if None in models:
        raise BadInputError("--write needs --model: name a copy of the shipped model")
    for path in filter(None, models):
        if not path.is_file():
            raise BadInputError(f"--write changes the card of a file, and {path} is none: name a copy of that model")


def changes_from(text: str) -> dict[str, float | int]:
    """Raises BadInputError for what is no object of JSON, as --set of some evaluations wants it."""
    try:
        changes = json.loads(text)
    except ValueError:
        changes = None
    if not isinstance(changes, dict):
        raise BadInputError(f"""--set is {text!r}: give changes as '{{"noise_factor": 0.56, "samples": 1}}'""")
    return changes


def numbers(option: str, text: str, least: int) -> tuple[int, ...]:
    """Whole numbers with commas between them."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < least:
        raise BadInputError(f"{option} {text} cannot be read: give whole numbers of {least} or more, with commas")
    return found


def words(option: str, text: str, valid: Sequence[str]) -> tuple[str, ...]:
    """Some of the valid words with commas between them; nothing at all is an empty text."""
    found = tuple(part for part in text.split(",") if part)
    unknown = [word for word in found if word not in valid]
    if unknown:
        raise BadInputError(f"{option} {text} cannot be read: '{unknown[0]}' is none of {', '.join(valid)}")
    return found


def read_grid(texts: list[str]) -> dict[str, list]:
    """KEY=V1,V2 ... as JSON values, .5 as well. Raises BadInputError where it cannot be read."""
    try:
        pairs = [text.split("=") for text in texts]
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a setting is named twice")
        zero = re.compile(r"(?<!\d)\.")
        return {key: [json.loads(zero.sub("0.", value)) for value in values.split(",")] for key, values in pairs}
    except ValueError as error:
        raise BadInputError(f"--grid {' '.join(texts)} cannot be read: write KEY=V1,V2 ...") from error


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
