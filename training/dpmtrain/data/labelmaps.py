"""Contrasts simulated from label maps: signal equations, literature tissue values, veins, lesions and texture."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from dpmrecon.errors import BadInputError
from scipy import ndimage

from .items import Fault, Item, Volume
from .lesions import Lesion, foci, lesions, smooth_field
from .veins import WHITE_MATTER, complex_echo, masked_magnitude, susceptibility, veins

# tissue: T1 ms, T2 ms, T2* ms, proton density, ADC 1e-3 mm2/s; typical values at 3 T
# (Stanisz et al., MRM 2005; Wansapura et al., JMRI 1999; Helenius et al., AJNR 2002). Lesions: acute infarcts have a
# low ADC and a longer T2, chronic ones are nearly CSF, gliosis (their rim, small vessel disease, plaques) lies between;
# iron in what is left of a bleed shortens T2* (chosen by eye, so that small ones bloom in SWI)
TISSUES = {
    "csf": (4000, 1800, 1000, 1.00, 3.0),
    "grey": (1400, 95, 60, 0.84, 0.85),
    "white": (850, 74, 50, 0.70, 0.72),
    "deep": (1150, 78, 42, 0.78, 0.75),
    "vein": (1800, 60, 18, 0.90, 2.0),
    "fat": (350, 70, 35, 0.90, 0.05),
    "muscle": (1300, 38, 28, 0.75, 1.4),
    "skin": (900, 35, 20, 0.60, 0.9),
    "bone": (300, 5, 1, 0.08, 0.1),
    "marrow": (450, 60, 12, 0.60, 0.2),
    "fluid": (3500, 600, 300, 1.00, 2.6),
    "mucosa": (1300, 90, 40, 0.80, 1.5),
    "acute": (1550, 135, 75, 0.88, 0.42),
    "chronic": (3600, 1300, 700, 0.99, 2.7),
    "gliosis": (1500, 145, 80, 0.86, 1.15),
    "bleed": (1250, 45, 7, 0.75, 0.6),
}
FATTY = ("fat", "marrow")
# FreeSurfer numbers; 5xx are the extra-cerebral ones, named by looking at them
TISSUE_OF_LABEL = {
    **dict.fromkeys((4, 5, 14, 15, 24, 43, 44, 72, 502), "csf"),
    **dict.fromkeys((2, 7, 16, 28, 41, 46, 60, 85), "white"),
    **dict.fromkeys((10, 11, 12, 13, 26, 49, 50, 51, 52, 58), "deep"),
    **dict.fromkeys((30, 62, 514), "vein"),
    **dict.fromkeys((506, 530), "fluid"),
    **dict.fromkeys((508, 509), "mucosa"),
    **dict.fromkeys((165, 515), "bone"),
    511: "skin",
    512: "fat",
    516: "marrow",
}


@dataclass(frozen=True)
class Sequence:
    """One simulated contrast. TR, TE, TI in ms (ti 0: no inversion), b in s/mm^2; times are drawn within SPREAD, b up
    to most_b where that is given.

    flip_deg: of a spoiled gradient echo, whose decay is T2*, None for spin echoes; turned: share of the slices that
    are sagittal or coronal; spin_echo: another sequence of the same contrast, taken for this share of the volumes;
    field: how the field of veins, iron and air shapes the signal, a function of susceptibility and TE; fat_left: what
    fat suppression leaves of the signal of fat and marrow.
    """

    contrast: str
    tr: float
    te: float
    ti: float = 0.0
    b: float = 0.0
    most_b: float = 0.0
    flip_deg: float | None = None
    turned: float = 0.0
    spin_echo: tuple[float, float, float] = (0.0, 0.0, 0.0)  # share of the volumes, TR, TE
    field: Callable[[np.ndarray, float], np.ndarray] | None = None
    fat_left: float = 1.0


SEQUENCES = {
    "flair": Sequence("flair", tr=9000, te=105, ti=2500),
    "t1": Sequence("t1", tr=2000, te=8, ti=900, turned=1 / 3, spin_echo=(1 / 3, 600, 8)),  # MPRAGE
    "t2": Sequence("t2", tr=4500, te=95),
    "dwi_b0": Sequence("dwi", tr=5000, te=80, fat_left=0.1),
    "dwi_b1000": Sequence("dwi", tr=5000, te=80, b=1000, fat_left=0.1),
    "swi": Sequence("swi", tr=28, te=20, flip_deg=15, field=masked_magnitude),
}
# For training: diffusion at any b-value too, SWI's complex image, an MPRAGE with darker fat
PREPARED = {
    **SEQUENCES,
    "dwi": Sequence("dwi", tr=5000, te=80, b=50, most_b=1200, fat_left=0.1),
    "mprage": Sequence("t1", tr=2300, te=3, ti=1000, fat_left=0.55),
    "gre": Sequence("swi", tr=28, te=20, flip_deg=15, field=complex_echo),
}
SPREAD = (0.9, 1.1)
CEREBELLUM = (7, 46)  # its white matter
UNUSED = 1  # the first number of tissue classes and lesions
VOXEL_TOLERANCE = 0.1  # mm


def read_label_map(item: Item) -> tuple[list[Volume], list[Fault]]:
    """One simulated volume of the label map, with foci besides the lesions, axial: slices upwards, rows to the back,
    columns to the left. Options: sequence, number (of the simulation) and seed.

    What lies further below the brain than 10 to 60 mm is cut off, as a scan's field of view does.
    """
    (path,) = item.files
    sequence, number = item.options["sequence"], item.options["number"]
    rng = np.random.default_rng([item.options["seed"], number, zlib.crc32(f"{path.name}{sequence}".encode())])
    labels = head_labels(path)
    painted = lesions(labels, rng) + foci(labels, item.contrast, rng)
    below = max(0, int(_brain_span(labels)[0] - rng.uniform(10, 60)))
    volume = simulate(labels, sequence, rng, painted)[::-1, ::-1, below:].transpose(2, 1, 0)
    phase = "its phase that of veins, iron and air" if np.iscomplexobj(volume) else "random smooth phase in training"
    return [Volume(item.name, volume, (1.0, 1.0, 1.0), f"simulated from a label map, {phase}")], []


def simulated_slices(path: Path, sequence: str, count: int, seed: int) -> np.ndarray:
    """`count` slices of a simulated volume, 1 to 3 mm thick, (count, size, size) float32: axial, rows to the back and
    columns to the left, or sagittal and coronal for a share of those of some sequences. For validation."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{path.name}{sequence}".encode())])
    labels = head_labels(path)
    volume = simulate(labels, sequence, rng)[::-1, ::-1]
    lowest, highest = _brain_span(labels)  # not the neck
    size = max(volume.shape)
    slices = []
    for _ in range(count):
        axis = int(rng.integers(2)) if rng.random() < SEQUENCES[sequence].turned else 2
        span = (lowest + 5, highest - 5) if axis == 2 else (0.25 * volume.shape[axis], 0.75 * volume.shape[axis])
        first = int(rng.uniform(*span))
        thick = volume.take(range(first, min(first + int(rng.integers(1, 4)), volume.shape[axis])), axis).mean(axis)
        rows, cols = thick.shape[1], thick.shape[0]
        square = np.zeros((size, size), np.float32)
        top, left = (size - rows) // 2, (size - cols) // 2
        square[top : top + rows, left : left + cols] = thick.T if axis == 2 else thick.T[::-1]
        slices.append(square)
    return np.stack(slices)


def head_labels(path: Path) -> np.ndarray:
    """The label map in RAS, int16, with 6 voxels of air around the head. Raises BadInputError for what is no head's."""
    import nibabel

    image: Any = nibabel.as_closest_canonical(nibabel.load(path))
    labels = np.asarray(image.dataobj).astype(np.int16)
    inside = np.argwhere(labels > 0)
    if labels.ndim != 3 or not np.isin(labels, WHITE_MATTER).any():
        raise BadInputError("it is no head's label map in FreeSurfer's numbers (labels 2 and 41, white matter, lack)")
    if (labels == UNUSED).any():
        raise BadInputError(
            f"it holds the label {UNUSED}, which FreeSurfer's maps of heads do not: tissues or lesions were numbered "
            "otherwise"
        )
    voxel = [float(size) for size in image.header.get_zooms()[:3]]
    if any(abs(size - 1) > VOXEL_TOLERANCE for size in voxel):
        told = " x ".join(f"{size:g}" for size in voxel)
        raise BadInputError(f"its voxels have {told} mm: label maps of 1 mm are simulated from, resample it")
    low, high = np.maximum(inside.min(0) - 6, 0), inside.max(0) + 7
    return labels[tuple(slice(a, b) for a, b in zip(low, high))]


def _brain_span(labels: np.ndarray) -> tuple[int, int]:
    """First and last axial slice with white matter."""
    brain = np.flatnonzero(np.isin(labels, WHITE_MATTER + CEREBELLUM).any((0, 1)))
    return brain[0], brain[-1]


def signal(tissue: str, sequence: Sequence, rng: np.random.Generator) -> float:
    """Magnitude signal of one of TISSUES, whose values vary by 10 %."""
    t1, t2, t2s, density, adc = (value * rng.uniform(*SPREAD) for value in TISSUES[tissue])
    density *= sequence.fat_left if tissue in FATTY else 1.0
    if sequence.flip_deg is not None:
        flip, left = np.deg2rad(sequence.flip_deg), np.exp(-sequence.tr / t1)
        steady = np.sin(flip) * (1 - left) / (1 - np.cos(flip) * left)
        return float(density * steady * np.exp(-sequence.te / t2s))
    recovery = 1 - np.exp(-sequence.tr / t1)
    if sequence.ti:
        recovery = 1 - 2 * np.exp(-sequence.ti / t1) + np.exp(-sequence.tr / t1)
    return float(abs(density * recovery * np.exp(-sequence.te / t2 - sequence.b * 1e-3 * adc)))


def drawn(sequence: Sequence, rng: np.random.Generator) -> Sequence:
    """The sequence with the times of one volume."""
    share, tr, te = sequence.spin_echo
    if rng.random() < share:
        sequence = replace(sequence, tr=tr * rng.uniform(*SPREAD), te=te, ti=0.0)
    spread = rng.uniform(*SPREAD)
    if sequence.most_b:
        sequence = replace(sequence, b=rng.uniform(sequence.b, sequence.most_b))
    inversion = sequence.ti * (spread if sequence.ti < 1500 else 1.0)  # FLAIR's must null CSF
    return replace(sequence, te=sequence.te * spread, ti=inversion)


def simulate(
    labels: np.ndarray, sequence: str, rng: np.random.Generator, painted: list[Lesion] | None = None
) -> np.ndarray:
    """Volume of the shape of `labels`, an integer label map at 1 mm in RAS: float32 magnitudes; complex64 where the
    sequence's field gives it a phase; sequence: of PREPARED.

    painted: lesions, random ones unless given.
    """
    timing = drawn(PREPARED[sequence], rng)
    table = np.zeros(int(labels.max()) + 1, np.float32)
    for label in np.unique(labels[labels > 0]):
        table[label] = signal(TISSUE_OF_LABEL.get(int(label), "grey"), timing, rng)
    volume = table[labels]
    # soft tissue (507) is fat and muscle: split by a smooth field
    soft = labels == 507
    fat = soft & (smooth_field(labels.shape, 12, rng) > -0.2)
    volume[fat] = signal("fat", timing, rng)
    volume[soft & ~fat] = signal("muscle", timing, rng)
    bleeds = np.zeros(labels.shape, np.float32)
    for tissue, fraction, box in lesions(labels, rng) if painted is None else painted:
        volume[box] += fraction * (signal(tissue, timing, rng) - volume[box])
        if tissue == "bleed":
            bleeds[box] = np.maximum(bleeds[box], fraction)
    brain = (labels > 0) & (labels < 500)
    texture = 0.035 * smooth_field(labels.shape, 64, rng) + 0.03 * smooth_field(labels.shape, 16, rng)
    volume *= 1 + texture * np.where(brain, 1.0, 3.0).astype(np.float32)
    if timing.field is not None:
        fraction = veins(labels, rng)
        volume += fraction * (signal("vein", timing, rng) - volume)
        volume = volume * timing.field(susceptibility(labels, fat, fraction, bleeds), timing.te)
    volume = ndimage.gaussian_filter(volume, rng.uniform(0.3, 0.6))  # partial volume
    volume = volume * np.exp(0.2 * smooth_field(labels.shape, 4, rng))
    return volume.astype(np.complex64) if np.iscomplexobj(volume) else np.abs(volume).astype(np.float32)
