"""A piece of work, the volumes that are read from it, and what had to be left out; names of contrasts and patients."""

import hashlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Settings:
    """What `prepare` is asked for, as far as it changes what the readers make.

    contrast: label of all inputs, None to find it in each; drop_last: slices at the end of a fastMRI volume that are
    left out; volumes: simulated ones of a label map and sequence; seed: of the simulation; source, licence: of data
    that are no known set;
    patients: what tells patients of ISMRMRD scans apart: "folder", the first one below the input, else the file's name;
    "id", the header's patient ID; "measurement", serial number and patient of the header's measurementID, as
    siemens_to_ismrmrd writes it; None is the ID where it is no placeholder, else the folder; prior: file of a model,
    whose images of ISMRMRD scans are prepared in place of conventional ones.
    """

    contrast: str | None = None
    drop_last: int = 5
    volumes: int = 1
    seed: int = 0
    source: str = "own data"
    licence: str = "not stated"
    patients: str | None = None
    prior: Path | None = None


@dataclass(frozen=True)
class Item:
    """One piece of work: files that are read together. options: what else its reader needs."""

    kind: str
    name: str
    subject: str
    contrast: str
    source: str
    licence: str
    files: tuple[Path, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Volume:
    """Slices (slices, rows, cols) as read: complex64 with the measured phase, or float32 magnitudes without any.

    name: of the volume; voxel_mm: from slice to slice, row to row, column to column; reference: how the image came
    about; coherent: whether neighbouring slices have one phase, as magnitudes and 3D scans have, and none lacks.
    """

    name: str
    slices: np.ndarray
    voxel_mm: tuple[float, float, float]
    reference: str
    coherent: bool = True


@dataclass(frozen=True)
class Fault:
    """Why an input, or a part of it, is left out: a sentence about `place`. expected: it never was an image to train
    on, such as the maps and localizers in every hospital's export."""

    place: str
    reason: str
    expected: bool = False


@cache
def pseudonym(patient_id: str) -> str:
    """A name for a patient that groups a patient's scans and does not give the ID away.

    Many rounds: patient numbers are few enough to try them all with a plain hash. It is no protection against
    someone with days of computing time: a folder of prepared images stays inside the hospital all the same.
    """
    return "id-" + hashlib.pbkdf2_hmac("sha256", patient_id.strip().encode(), b"dpmtrain", 200_000).hex()[:10]
