"""`dpmtrain prepare`: scans, images and label maps to one prepared form, which training memory-maps.

The folder holds one file for each volume, NAME.npy: magnitudes (slices, rows, cols) float16; where the phase was
measured, real and imaginary parts (slices, rows, cols, 2). Both are divided by the 99th percentile over the volume.
Training cuts slices from it, in three directions where its voxels allow it. manifest.json lists the volumes; it is
there when all of them are. done.jsonl has a line for each finished input, from which a run that was cut off goes on.
"""

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from dpmrecon.errors import BadInputError

from .items import Fault, Item, Settings, pseudonym
from .journal import Journal
from .kinds import inspect
from .open_sets import HELD_OUT, KNOWN_SETS
from .volumes import RULE, key_of, prepare_item
from .workers import Workers

# The name of a volume of an item that has several, see `images` and `kspace`
NUMBERED = re.compile(r"(.+?)(_\d{2,}|_repetition\d+|_contrast\d+)+")


def prepare(
    inputs: Sequence[Path],
    out: Path,
    settings: Settings,
    exclude: Sequence[str] = (),
    jobs: int = 1,
    root: Path | None = None,
) -> int:
    """Prepare all inputs into `out`. exclude: subjects or patient IDs to leave out, besides HELD_OUT; root: the folder
    below which paths name scans and patients, None for the one that all inputs are in.

    Returns 0, or 3 where inputs, or parts of them, were left out; they are named on stderr. Raises BadInputError where
    no input serves, DpmreconError where `out` cannot be written.
    """
    common, paths = _files(inputs)
    root = root or common
    with Workers(jobs) as workers:
        found = dict(workers.run(partial(_inspected, root=root, settings=settings), paths, "looking at files"))
        seen = [entry for path in paths for entry in found[path]]
        items = _grouped(_by_study([entry for entry in seen if isinstance(entry, Item)]))
        faults = [entry for entry in seen if isinstance(entry, Fault)]
        wanted, left_out = _split(items, exclude)
        wanted, copies = _without_copies(wanted, left_out)
        faults += copies
        journal = Journal(out)
        keys = {key_of(item): item for item in wanted}
        todo = {key: item for key, item in keys.items() if key not in journal.records}
        if todo:
            journal.manifest.unlink(missing_ok=True)
        kept = len(keys) - len(todo)
        for (key, _), (entries, item_faults) in workers.run(
            partial(prepare_item, out=out), list(todo.items()), "preparing", kept
        ):
            faults += item_faults
            if entries:
                journal.add(key, entries, item_faults)
    records = [journal.records[key] for key in keys if key in journal.records]
    faults += [Fault(**fault) for key in keys if key not in todo for fault in journal.records[key]["faults"]]
    for fault in dict.fromkeys(faults):
        print(f"dpmtrain: {fault.place}: {fault.reason}", file=sys.stderr)
    broken = [fault for fault in dict.fromkeys(faults) if not fault.expected]
    volumes = [entry for record in records for entry in record["volumes"]]
    if not volumes:
        raise BadInputError(
            f"none of {len(paths)} files could be used"
            + (f", {len(left_out)} being of excluded subjects" if left_out else "")
            + (f"; {faults[0].place}: {faults[0].reason}" if faults else "")
        )
    without = sorted({item.subject for item in left_out})
    journal.write_manifest({"scale_rule": RULE, "exclude": without, "volumes": volumes})
    print(_summary(out, volumes, kept, without, broken))
    return 3 if broken else 0


def _files(inputs: Sequence[Path]) -> tuple[Path, list[tuple[Path, bool]]]:
    """The folder that all inputs are in, and their files, each once, with whether a folder was searched for it."""
    searched: dict[Path, bool] = {}
    for path in inputs:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file() and not file.name.startswith("."):
                    searched.setdefault(file.absolute(), True)
        elif path.is_file():
            searched[path.absolute()] = False
        else:
            raise BadInputError(f"{path} does not exist: give files and folders with scans, images or label maps")
    root = os.path.commonpath([(path if path.is_dir() else path.parent).absolute() for path in inputs])
    return Path(root), list(searched.items())


def _inspected(found: tuple[Path, bool], *, root: Path, settings: Settings) -> list[Item | Fault]:
    return inspect(found[0], root, settings, in_folder=found[1])


def _by_study(items: list[Item]) -> list[Item]:
    """Folders stand for patients whose ID tells nothing; those that hold the same study are of one patient."""
    same: dict[str, str] = {}  # subject -> the one it is
    first: dict[str, str] = {}  # study -> a subject

    def whose(subject: str) -> str:
        while subject in same:
            subject = same[subject]
        return subject

    for item in items:
        if (study := item.options.get("study")) is not None:
            one, other = whose(first.setdefault(study, item.subject)), whose(item.subject)
            if one != other:
                same[other] = one
    return [replace(item, subject=whose(item.subject)) for item in items]


def _grouped(items: list[Item]) -> list[Item]:
    """The DICOM files of a series become one item. Names are made unique: they become file names, with a number where
    an item has several volumes."""
    groups: dict[tuple, list[Item]] = {}
    for item in items:
        of_series = (item.kind, item.name, item.subject, item.contrast)
        groups.setdefault(of_series if item.kind == "DICOM" else (item.name, item.files), []).append(item)
    merged = [replace(group[0], files=tuple(f for item in group for f in item.files)) for group in groups.values()]
    names = Counter(item.name for item in merged)
    for number, item in enumerate(merged):
        numbered = NUMBERED.fullmatch(item.name)
        if names[item.name] > 1 or (numbered and names[numbered[1]]):
            place = hashlib.sha256(str(item.files[0]).encode()).hexdigest()[:6]
            merged[number] = replace(item, name=f"{item.name}_{place}")
    return merged


def _split(items: list[Item], exclude: Sequence[str]) -> tuple[list[Item], list[Item]]:
    """Items to prepare, and those of excluded subjects. A name that fits no subject is refused: it may be misspelt."""
    subjects = {item.subject for item in items}
    excluded: set[str] = set()
    for name in exclude:
        fitting = {name, pseudonym(name)} & subjects
        if not fitting and name not in HELD_OUT:
            some = ", ".join(sorted(subjects)[:5])
            raise BadInputError(f"--exclude names {name}, who is not among the subjects ({some} ...)")
        excluded |= fitting
    open_sources = {known.source for known in KNOWN_SETS.values()}
    wanted: list[Item] = []
    left_out: list[Item] = []
    for item in items:
        held_out = item.subject in HELD_OUT and item.source in open_sources
        (left_out if held_out or item.subject in excluded else wanted).append(item)
    return wanted, left_out


def _without_copies(wanted: list[Item], left_out: list[Item]) -> tuple[list[Item], list[Fault]]:
    """Without copies of excluded subjects' files under other names. Files of one size are read and compared."""
    held: dict[int, set[str]] = {}
    sizes = {path.stat().st_size for item in wanted for path in item.files}
    for path in {path for item in left_out for path in item.files}:
        if (size := path.stat().st_size) in sizes:
            held.setdefault(size, set()).add(_content(path))
    kept, faults = [], []
    for item in wanted:
        copied = next((path for path in item.files if _content_in(path, held)), None)
        if copied is None:
            kept.append(item)
        else:
            faults.append(Fault(str(copied), "is a copy of an excluded subject's file: not used", expected=True))
    return kept, faults


def _content_in(path: Path, held: dict[int, set[str]]) -> bool:
    same = held.get(path.stat().st_size)
    return same is not None and _content(path) in same


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _summary(out: Path, volumes: list[dict], kept: int, without: list[str], broken: list[Fault]) -> str:
    slices: Counter = Counter()
    for volume in volumes:
        slices[volume["contrast"]] += sum(end - first for first, end in volume["spans"])
    subjects = {volume["subject"] for volume in volumes}
    told = ", ".join(f"{label} {count}" for label, count in sorted(slices.items()))
    text = f"{out}: {sum(slices.values())} slices ({told}) in {len(volumes)} volumes of {len(subjects)} subjects"
    if kept:
        text += f"; {kept} inputs were done before"
    if without:
        text += f"; left out: {', '.join(without)}"
    return text + (f"; {len(broken)} inputs or parts could not be used" if broken else "")
