"""Limits of the gate for tiny models."""

import numpy as np
from dpmrecon.recon.agreement import ANY, COVARIATES, NAMES, SLICES, VOLUMES


def gate_entry(largest: float, level: float = 0.0, by_noise: float = 0.0, kind: str = SLICES) -> dict:
    """Of a card: every number is expected to be `level` plus `by_noise` times the noise's logarithm."""
    slopes = np.zeros((COVARIATES[kind] - 1, len(NAMES)))
    slopes[0] = by_noise
    fit = {
        "levels": {ANY: [level] * len(NAMES)},
        "slopes": slopes.tolist(),
        "precision": {ANY: np.eye(len(NAMES)).tolist()},
        "largest": {ANY: largest},
    }
    found = {"fits": [fit], "sigma_n": [0.004, 0.06], "R": [1, 8], "head": [100, 9999], "matrix": [100, 9999]}
    return found | ({"pixel_mm": [1, 9], "ratio": [1, 2], "sets": [1, 2]} if kind == VOLUMES else {})
