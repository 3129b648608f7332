"""`dpmtrain study make`: two folders of subjects become blinded sets, the page they are read on, and a sealed key."""

import argparse
import hashlib
import json
import os
import secrets
from pathlib import Path

import numpy as np
from dpmrecon.errors import BadInputError
from tqdm import tqdm

from ..files import write_text, writing
from .blind import LONG_AGO, check_alike, read_series, write_series
from .design import Design, Key
from .power import told
from .questions import ACCELERATED, ARMS, QUESTIONS, STANDARD


def make(args: argparse.Namespace) -> None:
    """OUT/dicom/set001/1_flair/IM0001.dcm ..., OUT/study.json and the key; see `commands`.

    Everything is read and compared before anything is written. Raises BadInputError where the arms do not match, the
    folder is in use, or the key would lie in it.
    """
    folders = {STANDARD: args.standard, ACCELERATED: args.accelerated}
    subjects, contrasts = find_sets(folders)
    if args.out.exists() and any(args.out.iterdir()):
        raise BadInputError(f"{args.out} is not empty: a study is made once; give a new folder")
    if args.key.resolve().is_relative_to(args.out.resolve()):
        raise BadInputError(f"{args.key} lies in {args.out}, which readers get: keep the key elsewhere")
    if args.key.exists():
        raise BadInputError(f"{args.key} is there already: a key is never replaced; give a new file")
    for line in told(len(subjects), args.margin, args.deviation, args.expected, len(QUESTIONS)):
        print(line)
    for subject in tqdm(subjects, desc="comparing the arms"):
        for contrast in contrasts:
            both = [read_series(folders[arm] / subject / contrast) for arm in ARMS]
            check_alike(f"{contrast} of {subject}", *both)
    key = Key(
        Design.drawn(subjects, args.readers, args.repeats, args.seed), args.margin, args.seed, secrets.token_hex()
    )
    seal = key.write(args.key)
    for number, one in tqdm(key.design.sets.items(), desc="writing sets"):
        for index, contrast in enumerate(contrasts, 1):
            geometry = read_series(folders[STANDARD] / one.subject / contrast)
            shown = geometry if one.arm == STANDARD else read_series(folders[one.arm] / one.subject / contrast)
            # the same grain in a set and in its repeat
            chance = np.random.default_rng(
                list(hashlib.sha256(repr((key.salt, one.subject, one.arm)).encode()).digest())
            )
            with writing(args.out / "study.json"):
                target = args.out / "dicom" / f"set{number:03d}" / f"{index}_{contrast}"
                write_series(target, shown.stored(chance), geometry, seal, number, index, contrast)
    study = {"seal": seal, "contrasts": contrasts, "questions": QUESTIONS, "orders": key.design.orders}
    write_text(args.out / "study.json", json.dumps(study, indent=1) + "\n")
    with writing(args.out / "study.json"):
        for path in sorted(args.out.rglob("*"), reverse=True):
            os.utime(path, (LONG_AGO, LONG_AGO))
    print(f"{len(key.design.sets)} sets of {', '.join(contrasts)} in {args.out}, which readers get.")
    print(f"The key is {args.key}: keep it from them. Its seal, SHA-256, is in study.json: {seal}")


def find_sets(folders: dict[str, Path]) -> tuple[list[str], list[str]]:
    """Subjects and contrasts, the folders' names, which must be the same in both arms. Raises BadInputError."""
    found = {}
    for arm, folder in folders.items():
        found[arm] = {
            f"{subject.name}/{contrast.name}"
            for subject in sorted(folder.glob("*/"))
            for contrast in sorted(subject.glob("*/"))
        }
        if not found[arm]:
            raise BadInputError(f"{folder} holds no SUBJECT/CONTRAST folders: give one for each arm")
    alone = sorted(found[STANDARD] ^ found[ACCELERATED])
    if alone:
        raise BadInputError(f"{alone[0]} is in one arm alone: every subject needs every contrast in both arms")
    subjects = sorted({name.split("/")[0] for name in found[STANDARD]})
    contrasts = sorted({name.split("/")[1] for name in found[STANDARD]})
    for subject in subjects:
        for contrast in contrasts:
            if f"{subject}/{contrast}" not in found[STANDARD]:
                raise BadInputError(f"{subject} has no {contrast}: every subject needs every contrast in both arms")
    return subjects, contrasts
