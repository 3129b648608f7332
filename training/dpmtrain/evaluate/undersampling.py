"""Sampling masks, and slices as scans with such masks bring them."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from dpmrecon.data import Slice, Volume
from dpmrecon.errors import BadInputError
from dpmrecon.physics.fourier import crop_or_pad
from dpmrecon.recon.conventional import mapped_slice
from dpmrecon.recon.prepare import with_coil_maps
from dpmrecon.recon.types import MappedSlice
from dpmrecon.recon.volumes import mapped_volume
from dpmrecon.simulation.sampling import Pattern

from ..data.masks import drawn_by_density, gaussian

MASKS = ("regular", "random", "gaussian", "poisson", "gaussian 2D")
OF_ROWS = ("regular", "random", "gaussian")  # the others leave out columns too
LEAST_SHARE = 0.7  # of the lines that R leaves: corners may be missing
# rows are drawn by (1 - |k| / k_max) to this power (Lustig 2007)
DENSITY_POWER = 4
GAUSSIAN_WIDTH = 0.25  # standard deviation of Gaussian densities, over the matrix


def sampling_mask(
    kind: str, acquired: torch.Tensor, acceleration: float, calibration_lines: int, seed: int
) -> torch.Tensor:
    """(rows, cols) float32, 1 where sampled: a part of `acquired`, which is 1 where there are data.

    regular: every R-th row, beginning with the first R rows' one that has the most data, the centre where all have
    them; random: rows / R rows, denser at the centre; gaussian: the same by a Gaussian density; in these the
    `calibration_lines` around the centre come on top, so that R is the nominal one. poisson: variable-density Poisson
    disc in both axes by sigpy, gaussian 2D: samples drawn by a Gaussian density, both with a square of calibration
    lines; R is the net one, to 10 %. Equal arguments give equal masks. For volumes see `volume_mask`.
    Raises BadInputError where such a mask cannot be had.
    """
    if acquired.ndim == 3:
        return volume_mask(kind, acquired, int(acceleration), calibration_lines, seed)
    rows, cols = acquired.shape
    if kind in ("poisson", "gaussian 2D"):
        if not bool((acquired > 0).all()):
            raise BadInputError(f"the mask '{kind}' needs fully sampled data: leave it out for an accelerated scan")
        if kind == "poisson":
            return _poisson(rows, cols, acceleration, calibration_lines).clone()
        density = gaussian((rows, cols), GAUSSIAN_WIDTH)
        density[_centre(rows, calibration_lines), _centre(cols, calibration_lines)] = 1e9  # all of these
        rng = np.random.default_rng([seed, rows, cols, round(100 * acceleration)])
        return torch.from_numpy(drawn_by_density(density, acceleration, rng)).float()
    there = (acquired.amax(1) > 0).numpy()
    first, last = np.flatnonzero(there)[[0, -1]]
    count, chosen = last + 1 - first, np.zeros(rows, bool)
    if kind == "regular":
        step = int(acceleration)
        offsets = sorted(range(step), key=lambda offset: (-int(there[offset::step].sum()), offset != rows // 2 % step))
        chosen[offsets[0] :: step] = True
    elif kind in OF_ROWS:
        falling = (1 - np.abs(np.arange(rows) - rows // 2) / (rows // 2 + 1)) ** DENSITY_POWER
        weights = there * (falling if kind == "random" else gaussian((rows,), GAUSSIAN_WIDTH))
        generator = np.random.default_rng([seed, rows, round(100 * acceleration)])
        drawn = min(round(count / acceleration), int(there.sum()))
        chosen[generator.choice(rows, drawn, replace=False, p=weights / weights.sum())] = True
    else:
        raise BadInputError(f"mask '{kind}' is unknown: valid ones are {', '.join(MASKS)}")
    if (chosen & there).sum() < round(0.9 * count / acceleration):
        raise BadInputError(f"R = {acceleration:g} cannot be had from the lines of this scan: give a multiple of its R")
    chosen[_centre(rows, calibration_lines)] = True
    return acquired * torch.from_numpy(chosen).float()[:, None]


def volume_mask(
    kind: str, acquired: torch.Tensor, acceleration: int, calibration_lines: int, seed: int
) -> torch.Tensor:
    """(partitions, rows, cols) float32, a part of `acquired`; a block of calibration lines comes on top.

    caipirinha: R in both directions, as equally as whole numbers allow, or along the one that the data leave;
    partitions move by half a step from row to row; poisson 3D: a Poisson disc of lines. Raises BadInputError as
    `sampling_mask`.
    """
    lines = (acquired.amax(-1) > 0).numpy()
    shape = (lines.shape[0], lines.shape[1])
    if kind == "poisson 3D":
        if not lines.all():
            raise BadInputError("a Poisson-disc mask needs fully sampled data: leave it out for an accelerated scan")
        chosen = Pattern(shape, (1, acceleration), (0, 0), False).poisson(np.random.default_rng([seed, acceleration]))
    else:
        factors = [(n, acceleration // n) for n in range(1, acceleration + 1) if acceleration % n == 0]
        factors.sort(key=lambda pair: (max(pair), pair))
        least = LEAST_SHARE * np.prod(np.ptp(np.argwhere(lines), axis=0) + 1) / acceleration
        lattices = (lattice for pair in factors for lattice in _lattices(shape, *pair))
        fitting = [lattice for lattice in lattices if (lattice & lines).sum() >= least]
        if not fitting:
            raise BadInputError(
                f"R = {acceleration} cannot be had from the lines of this volume: give a multiple of its R"
            )
        chosen = fitting[0]
    block = tuple(_centre(size, min(calibration_lines, size)) for size in shape)
    chosen[block] = True
    return acquired * torch.from_numpy(chosen).float()[..., None]


def _lattices(shape: tuple[int, int], partition_step: int, row_step: int) -> Iterator[np.ndarray]:
    """All copies of a lattice of lines (partitions, rows), the central one first: partitions move by half a step from
    row to row."""
    partition, row = (np.arange(size) - size // 2 for size in shape)
    for first, begin in itertools.product(range(partition_step), range(row_step)):
        number = (row - begin) // row_step
        moved = partition[:, None] - first - partition_step // 2 * number
        yield (moved % partition_step == 0) & ((row - begin) % row_step == 0)


def _centre(size: int, count: int) -> slice:
    return slice(size // 2 - count // 2, size // 2 - count // 2 + count)


@lru_cache
def _poisson(rows: int, cols: int, acceleration: float, calibration_lines: int) -> torch.Tensor:
    from sigpy.mri import poisson  # heavy, and for this alone

    for seed in range(5):  # with some it ends before it began
        try:
            found = poisson((rows, cols), acceleration, calib=(calibration_lines,) * 2, seed=seed, crop_corner=False)
            break
        except ValueError:
            continue
    else:
        raise BadInputError(
            f"no Poisson-disc mask of {rows} x {cols} has R = {acceleration:g} with {calibration_lines} calibration "
            "lines: choose a smaller R or fewer lines"
        )
    mask = torch.from_numpy(np.abs(found).astype(np.float32))
    mask[_centre(rows, calibration_lines), _centre(cols, calibration_lines)] = 1
    return mask


def undersampled(data: Slice, mask: torch.Tensor, acceleration: float, calibration_lines: int) -> Slice:
    """The slice with the samples of the mask alone, and its calibration: the centre, the data's own where that came
    apart, None without calibration lines. The noise level stays that of the data."""
    mask = mask * data.mask
    kspace = mask * data.kspace
    calibration = None
    if isinstance(data, Volume):
        calibration = _block(data, kspace, calibration_lines)
    elif calibration_lines:
        centre = _centre(len(mask), calibration_lines)
        calibration = kspace[:, centre]
        if data.calibration is not None and not bool(data.mask[centre].amax(1).all()):  # it came apart
            calibration = crop_or_pad(data.calibration, min(calibration_lines, data.calibration.shape[1]), 1)
        elif not torch.equal(mask[centre], data.mask[centre]):  # undersampled along the columns too
            calibration = crop_or_pad(calibration, calibration_lines, 2)
    n_lines = int(mask.amax(-1).sum())
    return replace(
        data,
        kspace=kspace,
        mask=mask,
        calibration=calibration,
        acceleration=acceleration,
        n_lines_got=n_lines,
        n_lines_needed=n_lines,
    )


def regular(data: Slice, acceleration: int, calibration_lines: int) -> Slice:
    """Every `acceleration`-th line, and the calibration lines on top."""
    return undersampled(
        data, sampling_mask("regular", data.mask, acceleration, calibration_lines, 0), acceleration, calibration_lines
    )


def _block(data: Volume, kspace: torch.Tensor, calibration_lines: int) -> torch.Tensor | None:
    """The calibration of a volume: as that of a slice, in both directions."""
    if not calibration_lines:
        return None
    block = tuple(_centre(size, min(calibration_lines, size)) for size in data.mask.shape[:2])
    if data.calibration is None or bool(data.mask[block].amax(-1).all()):
        return kspace[(slice(None), *block)]
    calibration = data.calibration  # it came apart
    for axis in (1, 2):
        calibration = crop_or_pad(calibration, min(calibration_lines, calibration.shape[axis]), axis)
    return calibration


def with_maps(
    data: Slice, device: torch.device, maps: torch.Tensor | None = None, contrast: str | None = None
) -> MappedSlice:
    """The slice with maps of its own calibration, as in a reconstruction of the contrast, or with `maps` of elsewhere.

    Raises BadInputError where it cannot be used.
    """
    if isinstance(data, Volume):  # whose k-space is used up
        data = replace(data, kspace=data.kspace.clone())
    if maps is None:
        (found,) = with_coil_maps([data], device, contrast)
    elif isinstance(data, Volume):
        found = mapped_volume(data, maps.to(device), {})
    else:
        found = mapped_slice(data, maps.to(device), {})
    if not isinstance(found, MappedSlice):
        raise BadInputError(f"slice {data.key.slice}: {found.reason}; leave it out")
    return found
