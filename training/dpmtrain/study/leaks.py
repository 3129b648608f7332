"""Can a machine tell the arms of a blinded study without looking at the images?

`accuracy` trains a classifier on everything but what the images show: names, sizes, dates and number of files; every
element of the headers; counts of byte values outside the pixels; how pixels are stored: the lowest bit and unused
values. What the images themselves show is what readers are asked about, and cannot be blinded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def accuracy(folders: Sequence[Path], subjects: Sequence[str], arms: Sequence[str], seed: int = 0) -> float:
    """The share of sets whose arm a classifier tells that has not seen their subject. folders: one for each set."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.model_selection import GroupKFold, cross_val_predict

    told = [features(folder) for folder in folders]
    names = sorted({name for one in told for name in one})
    values = [[str(one.get(name, "")) for name in names] for one in told]
    numbers = np.array([[_number(text) for text in row] for row in values])
    codes = np.array([np.unique(column, return_inverse=True)[1] for column in zip(*values)], float).T
    guesses = cross_val_predict(
        ExtraTreesClassifier(50, random_state=seed), np.hstack([numbers, codes]), np.array(arms),
        groups=np.array(subjects), cv=GroupKFold(min(5, len(set(subjects)))),
    )  # fmt: skip
    return float((guesses == np.array(arms)).mean())


def features(folder: Path) -> dict[str, Any]:
    """What is to be known of a set's files without looking at its images, by name."""
    from pydicom import dcmread

    found: dict[str, Any] = {}
    counts = np.zeros(256)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for number, path in enumerate(paths):
        place = f"{path.parent.name[:1]} {number}"
        found |= {
            f"size {place}": path.stat().st_size,
            f"date {place}": path.stat().st_mtime,
            f"name {place}": path.name,
        }
        content = path.read_bytes()
        if content[128:132] == b"DICM":
            file = dcmread(path)
            pixels = file.pixel_array
            found |= {
                f"{element.tag} {place}": str(element.value)[:200] for element in file if element.keyword != "PixelData"
            }
            found |= {f"{element.tag} {place}": str(element.value) for element in file.file_meta}
            found[f"odd {place}"] = round(float((pixels % 2).mean()), 2)
            found[f"unused {place}"] = round(1 - len(np.unique(pixels)) / min(pixels.size, int(np.ptp(pixels)) + 1), 1)
            content = content[: -len(file.PixelData)]
        counts += np.bincount(np.frombuffer(content, np.uint8), minlength=256)
    return found | {f"byte {value}": int(count) for value, count in enumerate(counts)} | {"files": len(paths)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0
