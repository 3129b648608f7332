"""From a slice to a problem: coil maps, the conventional image, scale and smooth phase."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from ..data import ESTIMATED, LostSlice, Slice
from ..device import synchronize
from ..errors import BadInputError
from ..mrd.completeness import FEWEST_CALIBRATION_LINES
from ..physics.cg_sense import slice_scale
from ..physics.coil_compression import compressed
from ..physics.coil_maps import estimate_map_sets
from ..physics.forward import ForwardModel
from ..physics.noise import estimated_sigma
from ..physics.phase import smooth_phase
from ..physics.soft_sense import SoftSense
from ..physics.spikes import Spike, without_spikes
from .types import MappedSlice

# Two lines of one row differ by noise alone where the variance of their difference is at most this many times expected
AGREEMENT = 1.5
FOLDS = (
    "two sets of coil maps are used: the head folds into its field of view along the lines, or calibration lines "
    "contradict each other"
)
TOLD = 3  # spikes whose places a remark has room for


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
    data = compressed(despiked(data))
    assert data.calibration is not None
    calibration = data.calibration.to(device)
    data = with_calibration_as_data(data)
    rows, cols = data.mask.shape
    try:
        sets = estimate_map_sets(calibration, (rows, cols))
    except BadInputError as error:
        return LostSlice(data.key, f"it has no coil maps: {error}")
    synchronize(device)
    seconds = {"maps": time.perf_counter() - started}
    if len(sets) > 1:
        return mapped_slice(replace(data, remarks=(*data.remarks, FOLDS)), sets, seconds, n_coils)
    return mapped_slice(data, sets[0], seconds, n_coils)


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


def despiked(data: Slice) -> Slice:
    """The slice without spikes in its k-space and calibration, and a remark; the same object where there are none."""
    kspace, found = without_spikes(data.kspace, data.mask, data.sigma_n)
    calibration = data.calibration
    apart: list[Spike] = []
    if calibration is not None:
        rows, cols = (
            slice(size // 2 - part // 2, size // 2 - part // 2 + part)
            for size, part in zip(kspace.shape[1:], calibration.shape[1:])
        )
        if torch.equal(calibration, data.kspace[:, rows, cols]):  # embedded
            calibration = kspace[:, rows, cols]
        elif calibration.shape[2] == kspace.shape[2]:
            calibration, apart = without_spikes(calibration, torch.ones(calibration.shape[1:]), data.sigma_n)
    remarks = [_spike_remark(*part) for part in ((found, "k-space"), (apart, "the calibration")) if part[0]]
    if not remarks:
        return data
    sigma_n = data.sigma_n
    if found and data.noise_source == ESTIMATED:
        sigma_n = estimated_sigma(kspace, data.mask)
    return replace(data, kspace=kspace, calibration=calibration, sigma_n=sigma_n, remarks=(*data.remarks, *remarks))


def _spike_remark(spikes: list[Spike], where: str) -> str:
    places = [str(spike) for spike in spikes[:TOLD]] + ["..."] * (len(spikes) > TOLD)
    what = "1 spike" if len(spikes) == 1 else f"{len(spikes)} spikes"
    verb = "was" if len(spikes) == 1 else "were"
    return (
        f"{what} in {where} ({'; '.join(places)}) {verb} left out and filled in from the samples beside: have the "
        "scanner room checked for discharges"
    )


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
