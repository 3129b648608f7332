"""The scale rule, one for training and reconstruction: the 99th percentile of |x| over the slice becomes 1."""

import torch

PERCENTILE = 99.0
RULE = "99th percentile of |x| over the whole slice is 1"


def image_scale(image: torch.Tensor) -> float:
    """The factor that a slice (rows, cols), complex or magnitude, is divided by. Zero for an empty slice."""
    magnitude = image.abs().float().flatten()
    # kthvalue, unlike quantile, has no limit on the number of elements
    rank = max(1, round(PERCENTILE / 100 * magnitude.numel()))
    return float(magnitude.kthvalue(rank).values)
