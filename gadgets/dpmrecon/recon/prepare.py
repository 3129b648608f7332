"""From a slice to a problem: coil maps, the conventional image, scale and smooth phase."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from ..data import LostSlice, Slice
from ..device import synchronize
from ..errors import BadInputError
from ..mrd.completeness import FEWEST_CALIBRATION_LINES
from ..physics.cg_sense import slice_scale
from ..physics.coil_compression import compressed
from ..physics.coil_maps import estimate_coil_maps
from ..physics.forward import ForwardModel
from ..physics.phase import smooth_phase
from .types import MappedSlice

# Two lines of one row differ by noise alone where the variance of their difference is at most this many times expected
AGREEMENT = 1.5


def with_coil_maps(slices: Iterable[Slice | LostSlice], device: torch.device) -> Iterator[MappedSlice | LostSlice]:
    """ESPIRiT maps, scale and CG-SENSE image of every slice; one that has no calibration, or no maps, is lost.

    Raises BadInputError at the end, with the first reason, where such slices are all that came and none had maps: a
    scan without calibration cannot be used.
    """
    failed: LostSlice | None = None
    mapped = False
    for data in slices:
        found = data if isinstance(data, LostSlice) else with_maps(data, device)
        mapped = mapped or isinstance(found, MappedSlice)
        if isinstance(found, LostSlice) and found is not data:
            failed = failed or found
        yield found
    if failed is not None and not mapped:
        raise BadInputError(f"slice {failed.key.slice}: {failed.reason}")


def with_maps(data: Slice, device: torch.device) -> MappedSlice | LostSlice:
    """The slice with ESPIRiT maps of its calibration, scale and CG-SENSE image; lost, with the reason, without them."""
    if data.calibration is None:
        return LostSlice(
            data.key,
            "it has no calibration lines and no fully sampled centre of k-space: coil maps need at least "
            f"{FEWEST_CALIBRATION_LINES} adjacent lines around the centre, embedded or separate",
        )
    started = time.perf_counter()
    n_coils = len(data.kspace)
    data = compressed(data)
    assert data.calibration is not None
    calibration = data.calibration.to(device)
    data = with_calibration_as_data(data)
    rows, cols = data.mask.shape
    try:
        maps = estimate_coil_maps(calibration, (rows, cols))
    except BadInputError as error:
        return LostSlice(data.key, f"it has no coil maps: {error}")
    synchronize(device)
    seconds = {"maps": time.perf_counter() - started}
    return mapped_slice(data, maps, seconds, n_coils)


def mapped_slice(
    data: Slice, maps: torch.Tensor, seconds: dict[str, float], n_coils: int = 0
) -> MappedSlice | LostSlice:
    """The slice with its conventional images, on the device of `maps` (n_coils, rows, cols), where its image's smooth
    phase goes."""
    started = time.perf_counter()
    data = replace(data, kspace=data.kspace.to(maps.device), mask=data.mask.to(maps.device))
    model = ForwardModel(maps, data.mask)
    zero_filled = model.adjoint(data.kspace)
    scale, conventional = slice_scale(model, zero_filled, data.sigma_n)
    if not (math.isfinite(scale) and scale > 0):
        return LostSlice(data.key, "its k-space holds no signal inside the coil maps' support")
    phase = smooth_phase(conventional)
    model = ForwardModel(maps * phase, data.mask)
    zero_filled, conventional = zero_filled * phase.conj(), conventional * phase.conj()
    synchronize(maps.device)
    seconds = {**seconds, "conventional": time.perf_counter() - started}
    return MappedSlice(data, model, phase, scale, zero_filled, conventional, seconds, n_coils)


def with_calibration_as_data(data: Slice) -> Slice:
    """The slice with its separate calibration lines as image lines too, where they are shown to be the same data.

    A separate calibration may have another contrast. Rows that came both ways tell: their difference is that of
    noise, to AGREEMENT in variance, or the calibration serves the maps alone.
    """
    if data.calibration is None or data.pooled:
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
