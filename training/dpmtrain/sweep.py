"""Choose sampler settings on validation scans: every combination of a grid, one table."""

import itertools
import time
from pathlib import Path

import numpy as np
from dpmrecon.checkpoint import Checkpoint
from dpmrecon.output import nrmse
from dpmrecon.reconstruct import Reconstruction, Sampling, sampled
from dpmrecon.samplers import settings_from

from .validation import validation_slices


def sweep(
    checkpoint: Checkpoint, images: Path, sampler: str, grid: dict[str, list], samples: int, acceleration: int
) -> list[dict]:
    """Print and return NRMSE (mean per contrast, and of CG-SENSE) and seconds for each combination of `grid`."""
    cases = validation_slices(images, acceleration, 24)
    contrasts = sorted({contrast for contrast, _, _ in cases})
    print("CG-SENSE", _summary(contrasts, [(c, _score(m.conventional, t)) for c, m, t in cases]))
    rows = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values))
        settings = settings_from({**checkpoint.card["sampling"][sampler], **chosen})
        sampling = Sampling(sampler, settings, samples, seed=0, batch=samples, fallback=False)
        started, scores = time.perf_counter(), []
        for contrast, mapped, truth in cases:
            (result,) = sampled([mapped], checkpoint, contrast, sampling)
            assert isinstance(result, Reconstruction), result.reason
            scores.append((contrast, _score(result.image, truth)))
        seconds = (time.perf_counter() - started) / len(cases)
        print(chosen, _summary(contrasts, scores), f"{seconds:.1f} s a slice", flush=True)
        rows.append({**chosen, "nrmse": float(np.mean([score for _, score in scores])), "seconds": seconds})
    return sorted(rows, key=lambda row: row["nrmse"])


def _score(image, truth: np.ndarray) -> float:
    return float(nrmse(image.abs().numpy()[None], truth[None], np.ones_like(truth, dtype=bool)[None])[0])


def _summary(contrasts: list[str], scores: list[tuple[str, float]]) -> str:
    means = [f"{name} {np.mean([s for c, s in scores if c == name]):.4f}" for name in contrasts]
    return ", ".join([*means, f"mean {np.mean([s for _, s in scores]):.4f}"])
