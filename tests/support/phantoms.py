"""A head for those who score images."""

from functools import lru_cache

import numpy as np
import torch
from dpmtrain.evaluate.references import ReferenceSlice
from dpmtrain.evaluate.validation import full_slice


@lru_cache
def head(rows: int, cols: int, number: int = 0, contrast: str = "flair") -> ReferenceSlice:
    """A noisy, fully sampled slice of an ellipse with structure in it."""
    down, along = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, cols), indexing="ij")
    inside = (down / 0.85) ** 2 + (along / 0.7) ** 2 < 1
    magnitude = inside * (0.6 + 0.3 * torch.sin((7 + number) * down) * torch.cos(5 * along))
    return full_slice("head", number, contrast, magnitude)


def even_head() -> np.ndarray:
    """(128, 128) float32: an ellipse of one tissue, .8 bright."""
    down, along = np.meshgrid(np.linspace(-1, 1, 128), np.linspace(-1, 1, 128), indexing="ij")
    return (0.8 * ((down / 0.85) ** 2 + (along / 0.7) ** 2 < 1)).astype(np.float32)
