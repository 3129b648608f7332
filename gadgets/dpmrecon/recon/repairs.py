"""Repairs of a slice's data before it is reconstructed: spikes are taken out, calibration lines join the image's."""

import math
from dataclasses import replace
from itertools import product

import torch

from ..data import ESTIMATED, AnySlice, Slice, Volume
from ..physics.noise import estimated_sigma, estimated_volume_sigma
from ..physics.spikes import without_spikes
from ..physics.volume_maps import folded_part

# Variance of two equal lines' difference, over what noise alone has, at most
AGREEMENT = 1.5
# And once a common factor is taken off: sound scans have 1.04 at most, b = 1000 beside b = 0 from 1.3 on, by factors of
# .02 to .27; none so far from 1 is drift
DRIFTED, LARGEST_DRIFT = 1.2, 2.2
# Share of the half matrix that the lines of a reduced field of view reach at most, and of the head that folds in one
# from R = 2 on: .46, of volumes .31, of thin slabs .14 along their partitions. .24 and .22 where a field of view of
# 140 mm cuts the head off
REDUCED, FOLDED_OVER, FOLDED_OVER_3D = 0.75, 0.35, 0.25
# Lines or partitions that the numbers of a separate calibration are off by at most; and energy of those that then agree
# with it, over the noise
COUNTED_OFF, SHOWN = 3, 20.0
TOLD = 3  # spikes whose places a remark has room for
LINES = 2048  # of a volume that are searched for spikes at once


def two_sets(data: Slice) -> str:
    """The remark on data that two sets of coil maps are used for."""
    along = "the lines or partitions" if isinstance(data, Volume) else "the lines"
    return (
        f"two sets of coil maps are used: the head reaches beyond its field of view along {along}, or calibration "
        "lines contradict each other"
    )


def reduced_view(data: Slice, maps: torch.Tensor) -> tuple[str, bool] | None:
    """What is said of a head that folds, where lines without a gap leave the outer ones on both sides of the matrix
    empty, and whether it folds too much to be anything else: SENSE lines counted in their reduced field of view.

    maps: two sets, (2, n_coils, rows, cols). None for other lines.
    """
    told = _inner_lines(data.mask)
    if told is None:
        return None
    head, folded = ((one != 0).any(0).sum().item() for one in maps)
    return told, folded > FOLDED_OVER * head


def reduced_volume(data: Volume) -> str | None:
    """The same of a volume whose head folds too much, along its lines, its partitions or both; None of others."""
    told = _inner_lines(data.mask)
    if told is None or data.calibration is None:
        return None
    partitions, rows, cols = data.mask.shape
    return told if folded_part(data.calibration, (partitions, rows, cols)) > FOLDED_OVER_3D else None


def _inner_lines(mask: torch.Tensor) -> str | None:
    """What is said of lines, or partitions, without a gap that leave the outer ones on both sides of the matrix empty,
    where the head folds; None of others."""
    acquired = mask.amax(-1) > 0
    told, values = [], []
    for axis, name, letter in ((-1, "lines", "y"), (-2, "partitions", "z"))[: acquired.ndim]:
        lines = acquired if acquired.ndim == 1 else acquired.any(-1 if axis == -2 else -2)
        came, size = lines.nonzero()[:, 0].tolist(), len(lines)
        reach = max(size // 2 - came[0], came[-1] + 1 - size // 2)
        if len(came) == came[-1] + 1 - came[0] and reach <= REDUCED * size / 2:
            told.append(f"{len(came)} {name} without a gap are of a matrix of {size}")
            values.append(f"encoding.encodedSpace.matrixSize.{letter}={len(came)}")
    if not told:
        return None
    changes = ";".join(values)
    return (
        f"the head folds, and its {' and its '.join(told)}: SENSE lines that are counted in their reduced field of "
        "view give a stretched image, convert the scan again with their places in the whole one, accelerationFactor "
        f"and calibration lines (of a low resolution: --set {changes if len(values) == 1 else repr(changes)})"
    )


def despiked(data: AnySlice) -> AnySlice:
    """The slice or volume without spikes in its k-space and calibration, and remarks; the same object where there are
    none."""
    volume = isinstance(data, Volume)
    without = _without_in_volume if volume else _without_in_slice
    kspace, found = without(data.kspace, data.mask, data.sigma_n)
    calibration, apart = data.calibration, list[str]()
    if calibration is not None:
        block = centre_block(kspace, calibration)
        if torch.equal(calibration, data.kspace[block]):  # embedded
            calibration = kspace[block]
        elif calibration.shape[-1] == kspace.shape[-1]:
            # a volume's may have an asymmetric echo
            came = (calibration != 0).any(0).float() if volume else torch.ones(calibration.shape[1:])
            calibration, apart = without(calibration, came, data.sigma_n)
    remarks = [
        spike_remark(places, where) for places, where in ((found, "k-space"), (apart, "the calibration")) if places
    ]
    if not remarks:
        return data
    sigma_n = data.sigma_n
    if found and data.noise_source == ESTIMATED:
        sigma_n = (estimated_volume_sigma if volume else estimated_sigma)(kspace, data.mask)
    return replace(data, kspace=kspace, calibration=calibration, sigma_n=sigma_n, remarks=(*data.remarks, *remarks))


def _without_in_slice(kspace: torch.Tensor, mask: torch.Tensor, sigma_n: float) -> tuple[torch.Tensor, list[str]]:
    """K-space (n_coils, rows, cols) without its spikes, and where they were; the same object where there are none."""
    cleaned, spikes = without_spikes(kspace, mask, sigma_n)
    return cleaned, [str(spike) for spike in spikes]


def _without_in_volume(kspace: torch.Tensor, mask: torch.Tensor, sigma_n: float) -> tuple[torch.Tensor, list[str]]:
    """The same of (n_coils, partitions, rows, cols). Lines follow from themselves alone, so they are searched some at a
    time."""
    cleaned, places = kspace, []
    for some in mask.amax(-1).nonzero().split(LINES):
        partitions, rows = some.unbind(1)
        part, spikes = without_spikes(kspace[:, partitions, rows], mask[partitions, rows], sigma_n)
        if spikes:
            if cleaned is kspace:
                cleaned = kspace.clone()
            cleaned[:, partitions, rows] = part
            for spike in spikes:
                partition, row = some[spike.row].tolist()
                places.append(f"{replace(spike, row=row)} of partition {partition}")
    return cleaned, places


def centre_block(kspace: torch.Tensor, part: torch.Tensor) -> tuple[slice, ...]:
    """Where `part`, whose centre of k-space is at index n//2 of each axis, lies in `kspace`; the coils come first."""
    sizes = zip(kspace.shape[1:], part.shape[1:])
    return (slice(None), *(slice(size // 2 - n // 2, size // 2 - n // 2 + n) for size, n in sizes))


def spike_remark(spikes: list[str], where: str) -> str:
    """spikes: each in words."""
    places = spikes[:TOLD] + ["..."] * (len(spikes) > TOLD)
    what = "1 spike" if len(spikes) == 1 else f"{len(spikes)} spikes"
    verb = "was" if len(spikes) == 1 else "were"
    return (
        f"{what} in {where} ({'; '.join(places)}) {verb} left out and filled in from the samples beside: have the "
        "scanner room checked for discharges"
    )


def with_calibration_as_data(data: AnySlice) -> AnySlice:
    """The slice with its separate calibration lines as image lines too, where they are shown to be the same data.

    A separate calibration may have another contrast. Rows that came both ways tell: their difference is that of
    noise, to AGREEMENT in variance, or the calibration serves the maps alone. A factor that all have in common is taken
    off first where they differ: phase and size drift from one acquisition to the next. Lines that are the same data
    under numbers COUNTED_OFF apart at most are taken for those of the image, with a remark. Blocks of other columns, or
    with more rows than the k-space has, have no lines of the image.
    """
    if data.calibration is None or data.pooled:
        return data
    beyond = [size - other for size, other in zip(data.calibration.shape[1:], data.kspace.shape[1:])]
    if beyond[-1] != 0 or max(beyond) > 0:
        return data
    centre = centre_block(data.kspace, data.calibration)[1:-1]
    columns = data.mask.flatten(0, -2).amax(0) > 0
    acquired = data.mask[centre].amax(-1) > 0
    if bool(acquired.all()) or not bool(acquired.any()):
        return data
    reach = range(-COUNTED_OFF, COUNTED_OFF + 1)
    for off in sorted(product(*[reach] * len(centre)), key=lambda off: sum(map(abs, off))):
        block = (slice(None), *(slice(rows.start + by, rows.stop + by) for rows, by in zip(centre, off)), slice(None))
        inside = all(rows.start >= 0 and rows.stop <= size for rows, size in zip(block[1:-1], data.kspace.shape[1:]))
        calibration = _same_data(data, block, columns, shown=any(off)) if inside else None
        if calibration is not None:
            told = [_counted_off(off)] if any(off) else []
            return replace(_joined(data, calibration, block, columns), remarks=(*data.remarks, *told))
    return data


def _same_data(data: Slice, block: tuple[slice, ...], columns: torch.Tensor, *, shown: bool) -> torch.Tensor | None:
    """The calibration, times a factor if need be, where it is the same data as the k-space in `block`; else None.
    columns: (cols,) bool, acquired; shown: by more than noise."""
    calibration, acquired = data.calibration, data.mask[block[1:]].amax(-1) > 0
    assert calibration is not None
    own, theirs = (part[:, acquired][..., columns] for part in (data.kspace[block], calibration))
    if shown and float(torch.view_as_real(own).square().mean()) < SHOWN * data.sigma_n**2:
        return None
    if _excess(own, theirs, data) <= AGREEMENT:
        return calibration
    factor = complex(torch.vdot(theirs.flatten(), own.flatten()) / theirs.abs().square().sum().clamp_min(1e-30))
    if not 1 / LARGEST_DRIFT <= abs(factor) <= LARGEST_DRIFT or _excess(own, theirs, data, factor) > DRIFTED:
        return None
    return factor * calibration


def _joined(data: AnySlice, calibration: torch.Tensor, block: tuple[slice, ...], columns: torch.Tensor) -> AnySlice:
    """The slice with the rows of a calibration that did not come otherwise, in `block`."""
    acquired = data.mask[block[1:]].amax(-1) > 0
    kspace, mask = data.kspace, data.mask.clone()
    if not isinstance(data, Volume):  # whose k-space is used up, see `with_volume_maps`
        kspace = kspace.clone()
    kspace[block][:, ~acquired] = calibration[:, ~acquired] * columns
    mask[block[1:]][~acquired] = columns.float()
    lines, joined = int(mask.amax(-1).sum()), int((~acquired).sum())
    sigma_n = data.sigma_n * math.sqrt((lines - joined + joined * data.calibration_noise**2) / lines)
    return replace(data, kspace=kspace, mask=mask, sigma_n=sigma_n, n_lines_got=lines)


def _counted_off(off: tuple[int, ...]) -> str:
    """The remark; off: of the last axis lines, of the one before partitions."""
    names = ("partition", "line")[-len(off) :]
    told = [f"{name} {abs(by)} {'below' if by > 0 else 'above'}" for name, by in zip(names, off) if by]
    return (
        f"calibration lines are counted otherwise than the image's, by their {' and '.join(told)}: they are taken for "
        "those that they agree with"
    )


def _excess(own: torch.Tensor, theirs: torch.Tensor, data: Slice, factor: complex = 1.0) -> float:
    """Variance of the difference of samples, once theirs are taken times a factor, over what noise alone has: their
    noise may have the receiver's gain too, so that less is not expected of it."""
    difference = factor * theirs - own
    expected = (1 + data.calibration_noise**2 * max(1, abs(factor) ** 2)) * data.sigma_n**2
    return float(torch.view_as_real(difference).square().mean()) / expected
