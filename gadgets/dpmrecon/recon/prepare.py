"""From a slice to a problem: coil maps, the conventional image, scale and smooth phase."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from ..data import LostSlice, Slice, Volume
from ..device import synchronize
from ..errors import BadInputError
from ..mrd.completeness import FEWEST_CALIBRATION_LINES
from ..physics.cg_sense import slice_scale
from ..physics.coil_compression import compressed
from ..physics.coil_maps import estimate_map_sets
from ..physics.forward import ForwardModel
from ..physics.phase import smooth_phase
from ..physics.soft_sense import SoftSense
from .repairs import despiked, with_calibration_as_data
from .types import MappedSlice
from .volumes import with_volume_maps

FOLDS = (
    "two sets of coil maps are used: the head folds into its field of view along the lines, or calibration lines "
    "contradict each other"
)


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
        del data, found  # a volume's lines are collected while the one before is held no longer than it must
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
    if isinstance(data, Volume):
        return with_volume_maps(data, device)
    started = time.perf_counter()
    n_coils = len(data.kspace)
    own, *others = (despiked(part) for part in (replace(data, others=()), *data.others))
    first, others = compressed(own), [compressed(part, own) for part in others]
    assert first.calibration is not None
    calibration = first.calibration.to(device)
    if not others:  # of several the calibration has the phase of one at most
        first = with_calibration_as_data(first)
    rows, cols = first.mask.shape
    try:
        sets = estimate_map_sets(calibration, (rows, cols))
    except BadInputError as error:
        return LostSlice(data.key, f"it has no coil maps: {error}")
    synchronize(device)
    seconds = {"maps": time.perf_counter() - started}
    if len(sets) > 1:
        first = replace(first, remarks=(*first.remarks, FOLDS))
    maps = sets if len(sets) > 1 else sets[0]
    if not others:
        return mapped_slice(first, maps, seconds, n_coils)
    return with_phases([first, *others], maps, seconds, n_coils)


def with_phases(
    averages: list[Slice], maps: torch.Tensor, seconds: dict[str, float], n_coils: int = 0
) -> MappedSlice | LostSlice:
    """Averages of equal masks as one slice: y_a = P F S (phase_a x) + n_a, the coils of each beside those of the
    others, with each one's smooth phase in its maps. maps, n_coils: see `mapped_slice`.

    Maps and k-space are divided by the root of the number of averages: the maps stay normalised, and what is sampled
    is the posterior of all data together.
    """
    started = time.perf_counter()
    found = [mapped_slice(part, maps, {}) for part in averages]
    mapped = [item for item in found if isinstance(item, MappedSlice)]
    if len(mapped) < len(found):
        return next(item for item in found if isinstance(item, LostSlice))
    share = len(mapped) ** -0.5
    data = replace(
        mapped[0].data,
        kspace=share * torch.cat([item.data.kspace for item in mapped]),
        sigma_n=math.hypot(*(item.data.sigma_n for item in mapped)) / len(mapped),
        remarks=tuple(dict.fromkeys(remark for item in mapped for remark in item.data.remarks)),
        n_averages=len(mapped),
        ghost=max((item.data.ghost for item in mapped if item.data.ghost is not None), default=None),
    )
    seconds = {**seconds, "averages": time.perf_counter() - started}
    joint = mapped_slice(data, share * torch.cat([item.model.coil_maps for item in mapped], -3), seconds, n_coils)
    return joint if isinstance(joint, LostSlice) else replace(joint, phase=mapped[0].phase * joint.phase)


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
