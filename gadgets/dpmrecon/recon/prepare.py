"""From a slice to a problem: coil maps, the conventional image, scale and smooth phase."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from ..data import LostSlice, Slice, Volume
from ..device import DEVICE_ERRORS, synchronize, why_lost
from ..errors import BadInputError, DeviceError, DpmreconError, first_line
from ..mrd.completeness import FEWEST_CALIBRATION_LINES
from ..physics.coil_compression import compressed
from ..physics.coil_maps import CROP, estimate_map_sets
from .conventional import mapped_slice
from .phases import with_phases
from .repairs import despiked, reduced_view, two_sets, with_calibration_as_data
from .types import MappedSlice
from .volumes import with_volume_maps

# Of maps of SWI, whose phase is too quick for the calibration. By the usual crop a percent of the head is missing near
# the sinuses, and more at a slab's edges (training/reports/swi/slices, training/reports/volumes/support)
SWI_CROP = 0.75


def with_coil_maps(
    slices: Iterable[Slice | LostSlice], device: torch.device, contrast: str | None = None
) -> Iterator[MappedSlice | LostSlice]:
    """ESPIRiT maps, scale and CG-SENSE image of every slice; one that has no calibration, or no maps, is lost, and one
    for which the device fails.

    Raises at the end, with the first reason, where such slices are all that came and none had maps: BadInputError, a
    scan without calibration cannot be used, or DeviceError.
    """
    failure: DpmreconError | None = None
    mapped = False
    for data in slices:
        found = mapped_or_lost(data, device, contrast)
        mapped = mapped or isinstance(found, MappedSlice)
        if isinstance(found, LostSlice) and found is not data and failure is None:
            kind = DeviceError if isinstance(found, _LostToDevice) else BadInputError
            failure = kind(f"slice {found.key.slice}: {found.reason}")
        yield found
        del data, found  # a volume is let go before the next one's lines are collected
    if failure is not None and not mapped:
        raise failure


class _LostToDevice(LostSlice):
    """The scan is not to blame."""


def mapped_or_lost(
    data: Slice | LostSlice, device: torch.device, contrast: str | None = None
) -> MappedSlice | LostSlice:
    """`with_maps`; lost where the device fails, so that the other slices go on. Raises DeviceError where it fails for
    good."""
    if isinstance(data, LostSlice):
        return data
    try:
        return with_maps(data, device, contrast)
    except DEVICE_ERRORS as error:
        reason = f"the device failed while coil maps and CG-SENSE image were made ({first_line(error)})"
    lost = why_lost(device)
    if lost is not None:
        raise DeviceError(lost)
    return _LostToDevice(data.key, reason)


def with_maps(data: Slice, device: torch.device, contrast: str | None = None) -> MappedSlice | LostSlice:
    """The slice with ESPIRiT maps of its calibration, scale and CG-SENSE image; lost, with the reason, without them."""
    if data.calibration is None:
        return LostSlice(
            data.key,
            "it has no calibration lines and no fully sampled centre of k-space: coil maps need at least "
            f"{FEWEST_CALIBRATION_LINES} adjacent lines around the centre, embedded or separate",
        )
    if isinstance(data, Volume):
        return with_volume_maps(data, device, SWI_CROP) if contrast == "swi" else with_volume_maps(data, device)
    started = time.perf_counter()
    n_coils = len(data.kspace)
    own, *others = (despiked(part) for part in (replace(data, others=()), *data.others))
    first, others = compressed(own), [compressed(part, own) for part in others]
    assert first.calibration is not None
    calibration = first.calibration.to(device)
    if not others and first.shots is None:  # of several the calibration has the phase of one at most
        first = with_calibration_as_data(first)
    rows, cols = first.mask.shape
    try:
        sets = estimate_map_sets(calibration, (rows, cols), SWI_CROP if contrast == "swi" else CROP)
    except BadInputError as error:
        return LostSlice(data.key, f"it has no coil maps: {error}")
    synchronize(device)
    seconds = {"maps": time.perf_counter() - started}
    if len(sets) > 1:
        reduced = reduced_view(first, sets)
        if reduced is not None and reduced[1]:
            return LostSlice(data.key, reduced[0])
        remarks = [two_sets(first), *([] if reduced is None else [reduced[0]])]
        first = replace(first, remarks=(*first.remarks, *remarks))
    maps = sets if len(sets) > 1 else sets[0]
    if not others and first.shots is None:
        return mapped_slice(first, maps, seconds, n_coils)
    return with_phases([first, *others], maps, seconds, n_coils)
