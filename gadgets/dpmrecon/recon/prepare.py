"""From a slice to a problem: coil maps, the conventional image, scale and smooth phase."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from ..data import LostSlice, Slice
from ..device import synchronize
from ..errors import BadInputError
from ..physics.cg_sense import slice_scale
from ..physics.coil_compression import compressed
from ..physics.coil_maps import estimate_map_sets
from ..physics.forward import ForwardModel
from ..physics.phase import smooth_phase
from ..physics.soft_sense import SoftSense
from .types import MappedSlice

# Two lines of one row differ by noise alone where the variance of their difference is at most this many times expected
AGREEMENT = 1.5


def with_coil_maps(slices: Iterable[Slice | LostSlice], device: torch.device) -> Iterator[MappedSlice | LostSlice]:
    """ESPIRiT maps, scale and CG-SENSE image of every slice; a scan without calibration is refused."""
    for data in slices:
        if isinstance(data, LostSlice):
            yield data
            continue
        if data.calibration is None:
            raise BadInputError(
                f"slice {data.key.slice} has no calibration lines and no fully sampled centre of k-space: coil maps "
                "need at least 8 adjacent lines around the centre, embedded or separate"
            )
        started = time.perf_counter()
        n_coils = len(data.kspace)
        data = compressed(data)
        assert data.calibration is not None
        calibration = data.calibration.to(device)
        data = with_calibration_as_data(data)
        rows, cols = data.mask.shape
        sets = estimate_map_sets(calibration, (rows, cols))
        maps = sets if len(sets) > 1 else sets[0]
        synchronize(device)
        seconds = {"maps": time.perf_counter() - started}
        yield mapped_slice(data, maps, seconds, n_coils)


def mapped_slice(
    data: Slice, maps: torch.Tensor, seconds: dict[str, float], n_coils: int = 0
) -> MappedSlice | LostSlice:
    """The slice with its conventional images, on the device of `maps`, where the image's smooth phase goes.

    maps: (n_coils, rows, cols), or (n_sets, n_coils, rows, cols) for several, of which each has its own phase.
    """
    started = time.perf_counter()
    data = replace(data, kspace=data.kspace.to(maps.device), mask=data.mask.to(maps.device))
    form = ForwardModel if maps.ndim == 3 else SoftSense
    model = form(maps, data.mask)
    zero_filled = model.adjoint(data.kspace)
    scale, conventional = slice_scale(model, zero_filled, data.sigma_n)
    if not (math.isfinite(scale) and scale > 0):
        return LostSlice(data.key, "its k-space holds no signal inside the coil maps' support")
    phase = smooth_phase(conventional)
    model = form(maps * phase.unsqueeze(-3), data.mask)
    zero_filled, conventional = zero_filled * phase.conj(), conventional * phase.conj()
    synchronize(maps.device)
    seconds = {**seconds, "conventional": time.perf_counter() - started}
    phase = phase if maps.ndim == 3 else phase[0]
    return MappedSlice(data, model, phase, scale, zero_filled, conventional, seconds, n_coils)


def with_calibration_as_data(data: Slice) -> Slice:
    """The slice with its separate calibration lines as image lines too, where they are shown to be the same data.

    A separate calibration may have another contrast. Rows that came both ways tell: their difference is that of
    noise, to AGREEMENT in variance, or the calibration serves the maps alone.
    """
    if data.calibration is None:
        return data
    n_rows = data.calibration.shape[1]
    first = data.kspace.shape[1] // 2 - n_rows // 2
    block = slice(first, first + n_rows)
    columns, acquired = data.mask.amax(0) > 0, data.mask[block].amax(1) > 0
    if bool(acquired.all()) or not bool(acquired.any()):
        return data
    difference = (data.calibration - data.kspace[:, block])[:, acquired][..., columns]
    if float(torch.view_as_real(difference).square().mean()) > AGREEMENT * 2 * data.sigma_n**2:
        return data
    kspace, mask = data.kspace.clone(), data.mask.clone()
    kspace[:, block][:, ~acquired] = data.calibration[:, ~acquired] * columns
    mask[block][~acquired] = columns.float()
    return replace(data, kspace=kspace, mask=mask, n_lines_got=int(mask.amax(1).sum()))
