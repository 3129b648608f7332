"""One item of `prepare`'s work: its volumes are read, scaled and written."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.errors import BadInputError, DpmreconError, first_line
from dpmrecon.files import replacing
from dpmrecon.physics.scale import RULE, image_scale

from ..files import writing
from .items import Fault, Item, Volume
from .kinds import read

FORMAT = 3  # of what the readers make: a new number has everything read anew
# Share of a slice above a tenth of its scale; less is none
HEAD_SHARE = 0.08
# Slices no thicker, and as many, may be cut across
THROUGH_MM, FEWEST = 2.5, 32


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
            slices, spans = stored(volume)
        except BadInputError as error:
            named = "" if len(volumes) == 1 else f"volume {volume.name}: "
            faults.append(Fault(place, named + str(error)))
            continue
        _write(out / f"{volume.name}.npy", slices)
        entries.append(_entry(item, volume, slices, spans))
    return entries, faults


def stored(volume: Volume) -> tuple[np.ndarray, list[list[int]]]:
    """The volume by its 99th percentile: (slices, rows, cols) float16 magnitudes, or real and imaginary parts as last
    axis; and the spans that may be cut.

    A span is the first slice with a head and their end: of the volume's own slices, and, where they are no thicker than
    THROUGH_MM, those across its rows and its columns. Of a volume that is cut in its own plane alone, slices with
    hardly any head are dropped. Raises BadInputError where none is left.
    """
    slices = volume.slices
    scale = image_scale(torch.from_numpy(np.ascontiguousarray(slices)))
    heads = [_with_head(slices, axis) for axis in range(3)]
    if not scale > 0 or not heads[0].any():
        raise BadInputError(f"its {len(slices)} slices are empty, or hold hardly anything but background")
    slices = slices / np.float32(scale)
    beyond = ~(abs(slices).max((1, 2)) < np.finfo(np.float16).max)
    if beyond.any():
        raise BadInputError(f"slice {beyond.argmax()} has values far beyond the 99th percentile, {scale:.3g}: damaged")
    across = volume.coherent and volume.voxel_mm[0] <= THROUGH_MM and all(head.sum() >= FEWEST for head in heads)
    if not across:
        slices, heads = slices[heads[0]], [heads[0][heads[0]]]
    spans = [[int(head.argmax()), int(len(head) - head[::-1].argmax())] for head in heads]
    if np.iscomplexobj(slices):
        slices = np.stack([slices.real, slices.imag], -1)
    return slices.astype(np.float16), spans


def _with_head(slices: np.ndarray, axis: int) -> np.ndarray:
    """Of each slice along `axis`: whether HEAD_SHARE of it is brighter than a tenth of its scale."""
    found = []
    for image in np.moveaxis(abs(slices), axis, 0):
        scale = image_scale(torch.from_numpy(np.ascontiguousarray(image)))
        found.append(scale > 0 and (image > 0.1 * scale).mean() > HEAD_SHARE)
    return np.array(found)


def _kind_and_text(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _entry(item: Item, volume: Volume, slices: np.ndarray, spans: list[list[int]]) -> dict[str, Any]:
    return {
        "file": f"{volume.name}.npy",
        "contrast": item.contrast,
        "subject": item.subject,
        "source": item.source,
        "licence": item.licence,
        "reference": volume.reference,
        "simulated": item.kind == "label map",
        "voxel_mm": [round(size, 4) for size in volume.voxel_mm],
        "shape": list(slices.shape[:3]),
        "spans": spans,
        "sha256": hashlib.sha256(slices.tobytes()).hexdigest(),
    }


def _write(path: Path, slices: np.ndarray) -> None:
    with writing(path), replacing(path) as part, part.open("wb") as file:
        np.save(file, slices)
