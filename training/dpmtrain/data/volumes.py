"""One item of `prepare`'s work: its volumes are read, scaled and written."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.errors import BadInputError, DpmreconError, first_line
from dpmrecon.physics.scale import RULE, image_scale

from .items import Fault, Item, Volume
from .journal import unwritable
from .kinds import read

FORMAT = 2  # of what the readers make: a new number has everything read anew
# A slice is kept where this share of it is brighter than a tenth of its scale: the ends of a volume hold no head
HEAD_SHARE = 0.08


def key_of(item: Item) -> str:
    """Of an item's files and settings: equal keys give equal volumes."""
    facts = {**asdict(item), "files": []}
    for path in item.files:
        stat = path.stat()
        facts["files"].append([path.name, stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps([FORMAT, RULE, facts], sort_keys=True).encode()).hexdigest()


def prepare_item(task: tuple[str, Item], out: Path) -> tuple[list[dict], list[Fault]]:
    """Read one item, given with its key, and write its volumes: their entries of the manifest, and what had to be left
    out. Raises DpmreconError where `out` cannot be written."""
    _, item = task
    place = str(item.files[0] if len(item.files) == 1 else item.files[0].parent)
    try:
        volumes, faults = read(item)
    except Exception as error:  # readers of foreign formats raise all kinds
        told = str(error) if isinstance(error, DpmreconError) else f"cannot be read ({_kind_and_text(error)})"
        return [], [Fault(place, told.removeprefix(place).lstrip(": "))]
    entries = []
    for volume in volumes:
        try:
            slices = scaled(volume.slices)
        except BadInputError as error:
            named = "" if len(volumes) == 1 else f"volume {volume.name}: "
            faults.append(Fault(place, named + str(error)))
            continue
        _write(out / f"{volume.name}.npy", slices)
        entries.append(_entry(item, volume, slices.shape[:3]))
    return entries, faults


def scaled(slices: np.ndarray) -> np.ndarray:
    """Each slice by the scale rule: (slices, rows, cols) float16 magnitudes, or with a last axis of real and imaginary
    part. Slices with hardly any head in them are dropped. Raises BadInputError where none is left."""
    kept = []
    for number, image in enumerate(slices):
        scale = image_scale(torch.from_numpy(np.ascontiguousarray(image)))
        if scale > 0 and (abs(image) > 0.1 * scale).mean() > HEAD_SHARE:
            kept.append(image / scale)
            if not abs(kept[-1]).max() < np.finfo(np.float16).max:
                raise BadInputError(f"slice {number} has values far beyond its 99th percentile, {scale:.3g}: damaged")
    if not kept:
        raise BadInputError(f"its {len(slices)} slices are empty, or hold hardly anything but background")
    stack = np.stack(kept)
    if np.iscomplexobj(stack):
        stack = np.stack([stack.real, stack.imag], -1)
    return stack.astype(np.float16)


def _kind_and_text(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _entry(item: Item, volume: Volume, shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "file": f"{volume.name}.npy",
        "contrast": item.contrast,
        "subject": item.subject,
        "source": item.source,
        "licence": item.licence,
        "reference": volume.reference,
        "simulated": item.kind == "label map",
        "pixel_mm": round(volume.pixel_mm, 4),
        "shape": list(shape),
    }


def _write(path: Path, slices: np.ndarray) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            np.save(file, slices)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise unwritable(path, error) from error
