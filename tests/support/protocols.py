"""A patient's protocol, small: DWI, FLAIR, MPRAGE and SWI of one head, and `dpmrecon protocol` on it."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
from dpmrecon.cli import main

STRAIGHT = {"rotation_deg": (0.0, 0.0, 0.0)}
SCANS = {
    "dwi": {"contrast": "dwi", "n_slices": 3, "matrix": (40, 36), "b_values": (0.0, 1000.0), **STRAIGHT},
    "flair": {"contrast": "flair", "n_slices": 3, "matrix": (40, 48), **STRAIGHT},
    "mprage": {"contrast": "t1", "orientation": "sagittal", "partitions": 12, "acceleration": 1, **STRAIGHT},
    "swi": {"contrast": "swi", "partitions": 12, "slice_thickness_mm": 3.0, "acceleration": 1, **STRAIGHT},
}


def protocol_folder(folder: Path, simulated_scan, names=tuple(SCANS), **more) -> Path:
    """folder with NAME.h5 of SCANS, copies; more: settings of all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(simulated_scan(**{**SCANS[name], **more}), folder / f"{name}.h5")
    return folder


def protocol(scans, out, model, *options: str) -> int:
    """The command's exit code."""
    return main(
        ["protocol", *map(str, np.ravel(scans)), "--out", str(out), "--model", str(model), "--device", "cpu", *options]
    )


def rows(out: Path) -> dict[str, dict]:
    """Of protocol.json, by name."""
    return {row["name"]: row for row in json.loads((out / "protocol.json").read_text())["scans"]}


def with_header(path: Path, *changes: tuple[str, str]) -> Path:
    """The file, its header's text changed: (what stands there, what shall)."""
    with h5py.File(path, "r+") as file:
        xml = file["dataset/xml"][0].decode()
        for old, new in changes:
            assert old in xml
            xml = xml.replace(old, new)
        file["dataset/xml"][0] = xml.encode()
    return path
