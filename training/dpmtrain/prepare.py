"""Open magnitude images and label maps to one prepared form: float16 slices, memory-mapped, with a manifest."""

import json
import zlib
from pathlib import Path

import nibabel
import numpy as np
import torch
from dpmrecon.scale import RULE, image_scale
from tqdm import tqdm

from .labelmaps import simulate

OPEN_MS = "open_ms, CC-BY, Lesjak et al., Neuroinformatics 2016"
SYNTHSEG = "SynthSeg label maps, Apache-2.0, Billot et al., Medical Image Analysis 2023"
FLAIR_1MM = {
    "py_synthsr": "SynthSR example FLAIR, Apache-2.0",
    "torchio_fernando": "TorchIO example FLAIR, MIT",
}
CONTRAST_OF_NAME = {"FLAIR": "flair", "T1W": "t1", "T2W": "t2"}


def prepare(images: Path, out: Path, exclude: list[str], slices_per_simulation: int, seed: int) -> None:
    """Write `out`/NAME.npy, (slices, rows, cols) float16 magnitudes scaled by the rule, and `out`/manifest.json.

    images: folder with open_ms/, flair_1mm/ and synthseg_labels/; exclude: names (patients or label maps) to
    leave out. Volumes already there are kept, so that a run goes on where it stopped.
    """
    out.mkdir(parents=True, exist_ok=True)
    entries = []

    def add(name: str, contrast: str, subject: str, source: str, pixel_mm: float, make) -> None:
        path = out / f"{name}.npy"
        if not path.exists():
            np.save(path.with_suffix(".tmp.npy"), scaled(make()))
            path.with_suffix(".tmp.npy").rename(path)
        shape = np.load(path, mmap_mode="r").shape
        entries.append(
            {
                "file": path.name,
                "contrast": contrast,
                "subject": subject,
                "source": source,
                "pixel_mm": pixel_mm,
                "shape": shape,
            }
        )

    for path in tqdm(sorted(images.glob("open_ms/*/*.nii.gz")), desc="open_ms"):
        subject = path.parent.name
        if subject not in exclude:
            name, contrast = (
                f"{subject}_{path.name.split('.')[0]}",
                CONTRAST_OF_NAME[path.name.split(".")[0].split("_")[1]],
            )
            add(name, contrast, subject, OPEN_MS, pixel_size(path), lambda p=path: axial(p))
    for path in sorted(images.glob("flair_1mm/*.nii.gz")):
        subject = path.name.rsplit("_", 1)[0]
        if subject not in exclude:
            add(subject, "flair", subject, FLAIR_1MM[subject], pixel_size(path), lambda p=path: axial(p))
    for path in tqdm(sorted(images.glob("synthseg_labels/*.nii.gz")), desc="label maps"):
        subject = path.name.split(".")[0]
        if subject not in exclude:
            for contrast in ("flair", "t1", "t2", "dwi", "swi"):
                add(
                    f"{subject}_{contrast}", contrast, subject, SYNTHSEG, 1.0,
                    lambda p=path, c=contrast: simulated_slices(p, c, slices_per_simulation, seed),
                )  # fmt: skip
    manifest = {"scale_rule": RULE, "exclude": exclude, "volumes": entries}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1))


def pixel_size(path: Path) -> float:
    """In-plane pixel size in mm."""
    return float(nibabel.load(path).header.get_zooms()[0])  # type: ignore[attr-defined]


def axial(path: Path) -> np.ndarray:
    """Axial slices (slices, rows, cols): columns run to the patient's left, rows to the back."""
    volume = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj, dtype=np.float32)  # RAS
    return np.ascontiguousarray(volume[::-1, ::-1].transpose(2, 1, 0))


def simulated_slices(path: Path, contrast: str, count: int, seed: int) -> np.ndarray:
    """`count` slices of a simulated volume, 2 to 4 mm thick; the T1 ones are sagittal or coronal one time in three."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{path.name}{contrast}".encode())])
    image = nibabel.as_closest_canonical(nibabel.load(path))
    labels = np.asarray(image.dataobj).astype(np.int16)
    inside = np.argwhere(labels > 0)
    low, high = np.maximum(inside.min(0) - 6, 0), inside.max(0) + 7
    labels = labels[tuple(slice(a, b) for a, b in zip(low, high))]
    volume = simulate(labels, contrast, rng)[::-1, ::-1]
    brain = np.flatnonzero(((labels > 0) & (labels < 500)).any((0, 1)))
    size = max(volume.shape)
    slices = []
    for _ in range(count):
        axis = 2 if contrast != "t1" or rng.random() < 2 / 3 else int(rng.integers(2))
        span = (brain[0] + 5, brain[-1] - 5) if axis == 2 else (0.25 * volume.shape[axis], 0.75 * volume.shape[axis])
        first = int(rng.uniform(*span))
        thick = volume.take(range(first, min(first + int(rng.integers(1, 4)), volume.shape[axis])), axis).mean(axis)
        rows, cols = thick.shape[1], thick.shape[0]
        square = np.zeros((size, size), np.float32)
        top, left = (size - rows) // 2, (size - cols) // 2
        square[top : top + rows, left : left + cols] = thick.T if axis == 2 else thick.T[::-1]
        slices.append(square)
    return np.stack(slices)


def scaled(slices: np.ndarray) -> np.ndarray:
    """Each slice by the scale rule; slices with hardly any head in them (ends of a volume) are dropped."""
    kept = []
    for image in slices:
        scale = image_scale(torch.from_numpy(np.ascontiguousarray(image)))
        if scale > 0 and (image > 0.1 * scale).mean() > 0.08:
            kept.append((image / scale).astype(np.float16))
    return np.stack(kept)
