"""The scans of `dpmtrain kit`: which serve, whose they are, and who is trained, validated, tested on."""

import glob
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.averages import have_phases
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.header import acceleration, check_supported, n_partitions
from tqdm import tqdm

from ..data.dataset import read_manifest
from ..data.items import Fault, Item, Settings
from ..data.kinds import inspect
from ..data.kspace import LARGEST_ACCELERATION
from ..data.prepare import prepare
from ..evaluate.references import ReferenceSlice, measured_slices
from ..files import write_text

PARTS = ("train", "validation", "test")
FEWEST_PATIENTS = 3
ENOUGH_PATIENTS = 10  # with fewer, one unusual patient decides what is chosen and what is found


@dataclass
class Scans:
    """Files that can be used, all of one contrast. root: the folder below which their paths name scans and patients;
    broken: whether others should have been, and could not; patients: what tells them apart, see `Settings`."""

    contrast: str
    items: list[Item]
    root: Path
    broken: bool
    patients: str | None = None


@dataclass
class Split:
    """patients, scans, volumes (entries of the manifest) of each of PARTS."""

    patients: dict[str, list[str]]
    scans: dict[str, list[Item]]
    volumes: dict[str, list[dict]]


def check(inputs: Sequence[Path], contrast: str | None, patients: str | None = None) -> Scans:
    """Look at the headers of all files; print what is wrong with which one, and whose the others are.

    contrast: None where all scans have the same; patients: what tells them apart, see `Settings`. Raises BadInputError
    where no scan, or too few patients, are left.
    """
    paths = _files(inputs)
    root = Path(os.path.commonpath([path.parent for path in paths]))
    found = [(path, entry) for path in tqdm(paths, desc="files") for entry in _look_at(path, root, contrast, patients)]
    faults = [entry for _, entry in found if isinstance(entry, Fault)]
    items = [entry for _, entry in found if isinstance(entry, Item)]
    others = [item for item in items if contrast not in (None, item.contrast)]
    items = [item for item in items if contrast in (None, item.contrast)]
    faults += [Fault(str(i.files[0]), f"is a scan of {i.contrast}: not used", expected=True) for i in others]
    items, copies = _once(items)
    faults += copies
    for fault in faults:
        print(f"dpmtrain: {fault.place}: {fault.reason}", file=sys.stderr)
    counts = Counter(item.contrast for item in items)
    if not items:
        raise BadInputError(f"none of {len(paths)} files is an ISMRMRD scan that can be used")
    if len(counts) > 1:
        told = ", ".join(f"{label} ({count})" for label, count in counts.most_common())
        raise BadInputError(f"the scans are of {told}: say with --contrast which of them to fine-tune for")
    found_patients: dict[str, list[str]] = {}
    for item in items:
        found_patients.setdefault(item.subject, []).append(str(item.files[0].relative_to(root)))
    for subject, names in sorted(found_patients.items()):
        print(f"patient {subject}: {', '.join(names)}")
    _say_whose(items, patients)
    _enough(found_patients, items[0].contrast)
    return Scans(items[0].contrast, items, root, any(not fault.expected for fault in faults), patients)


def _once(items: Sequence[Item]) -> tuple[list[Item], list[Fault]]:
    """Each scan once, and its copies, whatever their names and headers: under another patient's name one would be
    trained and tested on."""
    first: dict[str, Item] = {}
    copies = []
    for item in items:
        before = first.setdefault(_content(item), item)
        if before is not item:
            copies.append(
                Fault(str(item.files[0]), f"holds the same scan as {before.files[0]}: not used", expected=True)
            )
    return list(first.values()), copies


def _content(item: Item) -> str:
    """What tells a scan from all others: its first line of an image that is not empty; else its file."""
    try:
        with open_scan(item.files[0]) as scan:
            for line in scan.acquisitions():
                if not line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT) and line.data.any():
                    return hashlib.sha256(line.data.tobytes()).hexdigest()
    except BadInputError:  # it is named when it is prepared
        pass
    return str(item.files[0])


def _say_whose(items: Sequence[Item], patients: str | None) -> None:
    """Where patients are told apart by names of folders and files, say why, and what that means."""
    by_name = [item for item in items if not item.subject.startswith("id-")]
    if not by_name:
        return
    reason = "have no patient ID in their header"
    placeholders = Counter(_placeholder(item) for item in by_name)
    del placeholders[None]
    if patients == "folder":
        reason = "are told apart by --patients folder"
    elif placeholders:
        told = ", ".join(f"'{text}' ({count})" for text, count in placeholders.most_common(3))
        reason = f"have no patient ID in their header, or a placeholder that anonymisation left there, {told}"
    advice = "" if patients else " (--patients measurement tells them apart by the header's measurementID)"
    print(
        f"dpmtrain: {len(by_name)} scans {reason}: folders or file names above stand for patients{advice}. Make sure "
        "that no patient has two of them, or the comparison means nothing",
        file=sys.stderr,
    )


def _placeholder(item: Item) -> str | None:
    """What stands in the header where the patient ID should."""
    with open_scan(item.files[0]) as scan:
        return getattr(scan.header.subjectInformation, "patientID", None) or None


def _files(inputs: Sequence[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for path in inputs:
        if not path.exists():
            raise BadInputError(f"{path} does not exist: give the folder that holds the scans")
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found |= dict.fromkeys(p.absolute() for p in inside if p.is_file() and not p.name.startswith("."))
    if not found:
        raise BadInputError(f"{inputs[0]} is empty: give the folder that holds the scans")
    return list(found)


def _look_at(path: Path, root: Path, contrast: str | None, patients: str | None) -> list[Item | Fault]:
    """By its headers alone."""
    entries = inspect(path, root, Settings(patients=patients), in_folder=True)
    if contrast is not None and any(isinstance(entry, Fault) for entry in entries):
        # a protocol whose name tells nothing is what the option says
        entries = inspect(path, root, Settings(contrast=contrast, patients=patients), in_folder=True)
    return [_checked(entry) if isinstance(entry, Item) else entry for entry in entries]


def _checked(item: Item) -> Item | Fault:
    path = str(item.files[0])
    if item.kind != "ISMRMRD":
        return Fault(path, f"is {item.kind}, not an ISMRMRD scan: not used", expected=True)
    with open_scan(path) as scan:
        try:
            check_supported(scan.header)
        except BadInputError as error:
            return Fault(path, str(error))
        announced, averages = acceleration(scan.header) or 1, 1 + scan.last("average")
        apart = averages > 1 and have_phases(scan.header)
    if apart:
        return Fault(
            path,
            f"has {averages} averages with a phase each, which are not undersampled here: give scans of one average",
        )
    if announced > LARGEST_ACCELERATION:
        return Fault(
            path, f"is accelerated R = {announced}: references need full sampling, or R up to {LARGEST_ACCELERATION:g}"
        )
    return item


def _enough(patients: Sequence[str] | dict, contrast: str) -> None:
    if len(patients) < FEWEST_PATIENTS:
        raise BadInputError(
            f"{contrast} scans of {len(patients)} patient{'s' * (len(patients) != 1)} can be used: {FEWEST_PATIENTS} "
            "are needed at least, for training, validation and test, and about 20 are advised (--patients says what "
            "tells patients apart)"
        )


def are_volumes(items: Sequence[Item]) -> bool:
    """Whether all scans are 3D."""
    for item in items:
        with open_scan(item.files[0]) as scan:
            if n_partitions(scan.header) == 1:
                return False
    return True


def prepared(scans: Scans, data: Path, jobs: int, prior: Path | None = None, exclude: Sequence[str] = ()) -> bool:
    """Read every scan into `data`; what is wrong with which file is printed. Returns whether something was.

    prior: see `Settings`; exclude: patients to leave out.
    """
    settings = Settings(contrast=scans.contrast, source="own scans", patients=scans.patients, prior=prior)
    return prepare([item.files[0] for item in scans.items], data, settings, exclude, jobs, scans.root) != 0


def split(scans: Scans, data: Path) -> Split:
    """Patients by the hash of their names: a fifth each for validation and test, at least one. Never by slice.

    Raises BadInputError where too few are left.
    """
    volumes = read_manifest(data)["volumes"]
    subjects = sorted({v["subject"] for v in volumes}, key=lambda name: hashlib.sha256(name.encode()).digest())
    _enough(subjects, scans.contrast)
    share = max(1, round(len(subjects) / 5))
    patients = {"test": subjects[:share], "validation": subjects[share : 2 * share], "train": subjects[2 * share :]}
    files = [v["file"] for v in volumes]
    read = [
        item for item in scans.items if any(f == f"{item.name}.npy" or f.startswith(f"{item.name}_") for f in files)
    ]
    found = Split(
        patients,
        {part: [item for item in read if item.subject in patients[part]] for part in PARTS},
        {part: [volume for volume in volumes if volume["subject"] in patients[part]] for part in PARTS},
    )
    for part in PARTS:
        slices = n_slices(found.volumes[part])
        print(f"{part}: {len(patients[part])} patients, {slices} slices ({', '.join(patients[part])})")
    if len(subjects) < ENOUGH_PATIENTS:
        print(f"dpmtrain: {len(subjects)} patients are few: the comparison can only be rough", file=sys.stderr)
    return found


def n_slices(volumes: Sequence[dict]) -> int:
    """That training may cut from these volumes, those of 3D scans in three directions."""
    return sum(end - first for volume in volumes for first, end in volume["spans"])


def patterns(volumes: Sequence[dict]) -> list[str]:
    """Of a recipe, for exactly these volumes."""
    return [glob.escape(volume["file"].removesuffix(".npy")) for volume in volumes]


def references(items: Sequence[Item], contrast: str, count: int) -> list[ReferenceSlice]:
    """`count` slices of each scan, evenly from the middle half with a head; from more where it has fewer. Of a 3D scan
    its volume. Of the b-values, echoes and repetitions of a place each has its turn.

    A scan with incomplete slices is left out and named. Raises BadInputError where no scan is left.
    """
    found: list[ReferenceSlice] = []
    for scan, item in enumerate(tqdm(items, desc="references")):
        try:
            numbered: dict[int, list[ReferenceSlice]] = {}
            for full in measured_slices(item.files[0], contrast=contrast):
                numbered.setdefault(full.number, []).append(full)
        except BadInputError as error:
            print(f"dpmtrain: {item.files[0]} cannot serve as a reference: {error}", file=sys.stderr)
            continue
        numbers = sorted(numbered)
        wanted = min(count, len(numbers))
        span = max(wanted, len(numbers) / 2)
        places = ((len(numbers) - span) / 2 + span / wanted * (np.arange(wanted) + 0.5)).astype(int)
        for turn, place in enumerate(places):
            here = numbered[numbers[place]]
            full = here[-1 - (scan + turn * max(1, len(here) // wanted)) % len(here)]
            # files in different folders may have the same name
            found.append(replace(full, scan=item.name, subject=item.subject))
    if not found:
        raise BadInputError(f"none of {len(items)} scans of these patients is complete: scan more, or leave them out")
    return found


def remember(path: Path, plan: dict[str, Any]) -> None:
    """Write down what this folder is made of. Raises BadInputError where it is made of something else already."""
    text = json.dumps(plan, indent=1)
    if path.exists():
        try:
            before = json.loads(path.read_text())
        except ValueError:
            before = {}
        named = json.loads(text).items()  # of which those of earlier versions have fewer
        changed = [name for name, value in named if (name in before or not before) and before.get(name) != value]
        if changed:
            raise BadInputError(
                f"{path.parent} was begun with other {', '.join(changed)}: give another --out, or what it was begun "
                "with"
            )
    write_text(path, text + "\n")


def hardware(items: Sequence[Item]) -> dict[str, list[str]]:
    """What the headers say of scanner and protocol: for the card."""
    found: dict[str, set[str]] = {"scanners": set(), "protocols": set(), "matrices": set()}
    for item in items:
        with open_scan(item.files[0]) as scan:
            system, measurement = scan.header.acquisitionSystemInformation, scan.header.measurementInformation
            recon = scan.header.encoding[0].reconSpace.matrixSize
        field = getattr(system, "systemFieldStrength_T", None)
        names = [getattr(system, name, None) for name in ("systemVendor", "systemModel")]
        names.append(f"{field:g} T" if field else None)
        found["scanners"].add(" ".join(str(name) for name in names if name) or "not said")
        found["protocols"].add(str(getattr(measurement, "protocolName", None) or "not said"))
        found["matrices"].add("x".join(str(size) for size in (recon.z, recon.y, recon.x) if size > 1))
    return {name: sorted(values) for name, values in found.items()}
