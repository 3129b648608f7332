"""The conventional images of a slice whose coil maps are known, with its scale and smooth phase."""

import math
import time
from dataclasses import replace

import torch

from ..data import LostSlice, Slice
from ..device import synchronize
from ..physics.cg_sense import scaled
from ..physics.forward import ForwardModel
from ..physics.phase import smooth_phase
from ..physics.soft_sense import SoftSense
from .types import MappedSlice


def mapped_slice(
    data: Slice, maps: torch.Tensor, seconds: dict[str, float], n_coils: int = 0, mask: torch.Tensor | None = None
) -> MappedSlice | LostSlice:
    """The slice with its conventional images, on the device of `maps`, where the image's smooth phase goes.

    maps: (n_coils, rows, cols), or (n_sets, n_coils, rows, cols) for several, of which each has its own phase; mask:
    (n_coils, rows, cols) where coils have one each, else that of the data.
    """
    started = time.perf_counter()
    data = replace(data, kspace=data.kspace.to(maps.device), mask=data.mask.to(maps.device))
    mask = data.mask if mask is None else mask
    form = ForwardModel if maps.ndim == 3 else SoftSense
    model = form(maps, mask)
    zero_filled = model.adjoint(data.kspace)
    scale, conventional = scaled(model, zero_filled, data.sigma_n)
    if not (math.isfinite(scale) and scale > 0):
        return LostSlice(data.key, "its k-space holds no signal inside the coil maps' support")
    phase = smooth_phase(conventional)
    model = form(maps * phase.unsqueeze(-3), mask)
    zero_filled, conventional = zero_filled * phase.conj(), conventional * phase.conj()
    synchronize(maps.device)
    seconds = {**seconds, "conventional": time.perf_counter() - started}
    phase = phase if maps.ndim == 3 else phase[0]
    return MappedSlice(data, model, phase, scale, zero_filled, conventional, seconds, n_coils)
