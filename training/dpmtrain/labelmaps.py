"""Contrasts simulated from label maps: signal equations on literature tissue values, with lesions and texture."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

# tissue: T1 ms, T2 ms, T2* ms, proton density, ADC 1e-3 mm2/s; typical values at 3 T
# (Stanisz et al., MRM 2005; Wansapura et al., JMRI 1999; Helenius et al., AJNR 2002)
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
}
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


def signal(contrast: str, tissue: tuple[float, ...], rng: np.random.Generator, timing: dict) -> float:
    """Magnitude signal of one tissue; `timing` is drawn once per volume by `draw_timing`."""
    t1, t2, t2s, density, adc = (v * rng.uniform(0.9, 1.1) for v in tissue)
    tr, te, ti, b = timing["tr"], timing["te"], timing["ti"], timing["b"]
    recovery = 1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1) if ti else 1 - np.exp(-tr / t1)
    decay = np.exp(-te / (t2s if contrast == "swi" else t2)) * np.exp(-b * 1e-3 * adc)
    return float(abs(density * recovery * decay))


def draw_timing(contrast: str, rng: np.random.Generator) -> dict:
    """TR, TE, TI in ms and b in s/mm2 for one volume."""
    spread = rng.uniform(0.9, 1.1)
    if contrast == "flair":
        return {"tr": 9000.0, "te": 105 * spread, "ti": 2500.0, "b": 0.0}
    if contrast == "t1":  # MPRAGE, or spin echo for one in three
        spin_echo = rng.random() < 1 / 3
        return {
            "tr": 600 * spread if spin_echo else 2000.0,
            "te": 8 * spread,
            "ti": 0 if spin_echo else 900 * spread,
            "b": 0.0,
        }
    if contrast == "t2":
        return {"tr": 4500.0, "te": 95 * spread, "ti": 0, "b": 0.0}
    if contrast == "dwi":
        return {"tr": 5000.0, "te": 80 * spread, "ti": 0, "b": float(rng.choice([0.0, 1000.0]))}
    return {"tr": 28.0 * 20, "te": 20 * spread, "ti": 0, "b": 0.0}  # swi


def smooth_field(shape: tuple[int, int, int], points: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random field of about unit standard deviation: a coarse grid of normals, interpolated."""
    coarse = torch.from_numpy(rng.standard_normal([1, 1] + [points] * len(shape)).astype(np.float32))
    return F.interpolate(coarse, shape, mode="trilinear", align_corners=True)[0, 0].numpy()


def simulate(labels: np.ndarray, contrast: str, rng: np.random.Generator) -> np.ndarray:
    """Float32 magnitude volume of the shape of `labels` (integer label map at 1 mm, RAS)."""
    timing = draw_timing(contrast, rng)
    table = np.zeros(int(labels.max()) + 1, np.float32)
    for label in np.unique(labels[labels > 0]):
        table[label] = signal(contrast, TISSUES[TISSUE_OF_LABEL.get(int(label), "grey")], rng, timing)
    volume = table[labels]
    # soft tissue (507) is one label for fat and muscle: split it by a smooth field
    soft = labels == 507
    fat = smooth_field(labels.shape, 12, rng) > -0.2
    volume[soft & fat] = signal(contrast, TISSUES["fat"], rng, timing)
    volume[soft & ~fat] = signal(contrast, TISSUES["muscle"], rng, timing)
    _paint_lesions(volume, labels, contrast, timing, rng)
    brain = (labels > 0) & (labels < 500)
    texture = 0.035 * smooth_field(labels.shape, 64, rng) + 0.03 * smooth_field(labels.shape, 16, rng)
    volume *= 1 + texture * np.where(brain, 1.0, 3.0).astype(np.float32)
    volume = ndimage.gaussian_filter(volume, rng.uniform(0.3, 0.6))  # partial volume
    return np.abs(volume * np.exp(0.2 * smooth_field(labels.shape, 4, rng))).astype(np.float32)


def _paint_lesions(
    volume: np.ndarray, labels: np.ndarray, contrast: str, timing: dict, rng: np.random.Generator
) -> None:
    """Ellipsoids in white and deep matter: acute (bright in DWI and FLAIR) or chronic (dark in T1, bright in T2)."""
    white = np.argwhere(np.isin(labels, (2, 41, 10, 49)))
    if not len(white):
        return
    gain = {"flair": 1.7, "t2": 1.6, "t1": 0.75, "swi": 0.8, "dwi": 2.0 if timing["b"] else 1.2}[contrast]
    for _ in range(rng.integers(1, 12)):
        centre, radii = white[rng.integers(len(white))], rng.uniform(1.5, 9, 3)
        box = tuple(slice(max(0, int(c - r)), int(c + r) + 2) for c, r in zip(centre, radii))
        grid = np.meshgrid(*[np.arange(b.start, min(b.stop, n)) for b, n in zip(box, volume.shape)], indexing="ij")
        inside = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii)) < 1
        brain = (labels[box] > 0) & (labels[box] < 500) & ~np.isin(labels[box], (4, 43, 24, 14, 15))
        volume[box][inside & brain] *= 1 + (gain - 1) * rng.uniform(0.5, 1.0)
