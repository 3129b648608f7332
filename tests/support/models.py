"""Small networks in place of a trained one. conftest.py makes fixtures of the tiny one."""

from pathlib import Path
from typing import Any

import torch
from dpmrecon.contrasts import LABELS
from dpmrecon.prior.checkpoint import save_checkpoint
from dpmrecon.prior.denoiser import Denoiser

# Untrained, its head is zero: the exact denoiser of a white Gaussian prior
TINY = {"widths": [4, 4], "blocks": [1, 1], "embedding": 8, "labels": list(LABELS), "sigma_data": 0.25}
SAMPLING = {"samples": 2, "prox": {"steps": 4}, "dps": {"steps": 40, "zeta": 0.2}}
THREE_LEVELS = {**TINY, "widths": [8, 12, 16], "blocks": [1, 1, 1], "embedding": 16}


def saved_model(path: Path, network: dict[str, Any] = TINY, **card: Any) -> Path:
    """An untrained network, always with the same weights, and its card; returns `path`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = Denoiser(network)
    save_checkpoint(path, denoiser, card)
    return path


def random_denoiser(network: dict[str, Any] = THREE_LEVELS) -> Denoiser:
    """Every weight has a part in the output; the last layers of an untrained network are zero."""
    torch.manual_seed(0)
    model = Denoiser(network)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return model.eval().requires_grad_(False)
