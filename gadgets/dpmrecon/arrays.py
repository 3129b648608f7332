"""Arrays that were given, as a slice or a volume; what cannot be one is said in one sentence."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .data import ESTIMATED, Slice, SliceKey, Volume
from .errors import BadInputError, first_line
from .mrd.completeness import FEWEST_CALIBRATION_LINES, central_block, regular_acceleration
from .mrd.header import Limits
from .mrd.volumes import central_box
from .options import plain, shown
from .physics.noise import estimated_sigma, estimated_volume_sigma
from .recon.types import Reconstruction

UNIT = 0.05  # sum |s|^2 of coil maps that were given may be this far from 1
# The middle partition's amplitude over the median one's, of samples within NEAR of the centre along rows and columns:
# simulated volumes have 9 or more, 2.2 where noise is as strong as the image; 8 to 32 coils taken for partitions 1.35
# at most. FEWEST_PARTITIONS show it, fewer have no calibration
PEAK, NEAR, FEWEST_PARTITIONS = 2.0, 2, 8

# A line, or column, that was not acquired and has been through Fourier transforms in single precision holds some 1e-7
# of the root mean square of all: less than ROUNDING, and GAP times less than those that were. Noise has 1e-4 or more
ROUNDING, GAP = 1e-5, 10.0

# A noise level that was given is wrong where it is WRONG times the estimated one or more and the image misses its data
# by less than TOO_LITTLE times it, or that much less and the image misses its data by AS_MUCH of the estimated one:
# signal beside the head, of a tight field of view, misleads the estimate alone
WRONG, TOO_LITTLE, AS_MUCH = 3.0, 0.5, 0.7


def slice_of_arrays(kspace: Any, mask: Any, calibration: Any, noise_std: Any) -> Slice:
    """The arrays of `reconstruct` as a slice or a volume. Raises BadInputError."""
    samples = complex_of(
        kspace,
        "the k-space",
        "(n_coils, rows, cols) of a slice or (n_coils, partitions, rows, cols)",
        dimensions=(3, 4),
    ).cpu()
    n_coils, *shape = samples.shape
    if samples.ndim == 4 and _is_flat(samples):
        raise BadInputError(
            f"the k-space of shape {tuple(samples.shape)} has no peak at the middle of its second axis, as a volume's "
            "(n_coils, partitions, rows, cols) has: of slices (slices, n_coils, rows, cols) give one at a time"
        )
    acquired, remarks = _acquired(samples) if mask is None else _marked(samples, _mask(mask, tuple(shape)))
    if not bool(acquired.any()) or not bool((samples[:, acquired] != 0).any()):
        raise BadInputError("the k-space is zero wherever it was acquired: give the measured samples")
    samples = samples * acquired
    noise_std = _noise_level(noise_std)
    block = _centre(samples, acquired)
    if calibration is not None:
        block = calibration_of(calibration, samples.ndim).cpu()
        if len(block) != n_coils:
            raise BadInputError(
                f"the calibration has {len(block)} coils and the k-space {n_coils}: give the same coils"
            )
        if any(size > all_of_them for size, all_of_them in zip(block.shape, samples.shape)):
            raise BadInputError(
                f"the calibration is {_size(block)} and the k-space {_size(samples)}: give its centre alone, of the "
                "image's field of view"
            )
    key, mask = SliceKey(0), acquired.float()
    lines = acquired.any(-1)
    net, kind = acquired.numel() / int(acquired.sum()), Slice
    if samples.ndim == 4:
        kind = Volume
    elif (pattern := regular_acceleration(np.flatnonzero(lines.numpy()), Limits(0, shape[0] - 1, shape[0] // 2))) > 1:
        net = float(pattern)
    return kind(
        key=key,
        kspace=samples,
        mask=mask,
        calibration=block,
        sigma_n=noise_std or _level(samples, mask),
        noise_source="given" if noise_std else ESTIMATED,
        acceleration=net,
        n_lines_got=int(lines.sum()),
        n_lines_needed=int(lines.sum()),
        seed_key=key.seed_key,
        remarks=remarks,
    )


def calibration_of(calibration: Any, dimensions: int = 3) -> torch.Tensor:
    """(n_coils, lines, samples), or with partitions before the lines. Raises BadInputError, of lines that are empty
    too: they would be measured zeros."""
    wanted = "(n_coils, lines, samples)" if dimensions == 3 else "(n_coils, partitions, lines, samples)"
    found = complex_of(calibration, "the calibration", wanted, dimensions=(dimensions,))
    came = ((found != 0).any(0) & ~_rounding(found)).any(-1)
    if not bool(came.all()):
        raise BadInputError(
            f"{int((~came).sum())} of the calibration's {came.numel()} lines are zero: give fully sampled lines alone"
        )
    return found


def estimated_level(data: Slice) -> float:
    """The noise level that would be taken where none was given."""
    return _level(data.kspace, data.mask)


def _level(kspace: torch.Tensor, mask: torch.Tensor) -> float:
    return (estimated_volume_sigma if kspace.ndim == 4 else estimated_sigma)(kspace, mask)


def with_noise_doubt(item: Reconstruction, estimated: float) -> Reconstruction:
    """With a remark on a noise level that was given and that k-space and the image contradict."""
    given = item.mapped.data.sigma_n
    too_high = given >= WRONG * estimated and item.residual < TOO_LITTLE
    too_low = given <= estimated / WRONG and item.residual * given > AS_MUCH * estimated
    if not (too_high or too_low):
        return item
    doubt = (
        f"noise_std is {given:.3g}, and the periphery of k-space has {estimated:.3g}: give the standard deviation of a "
        "real channel, in the units of the k-space, or None to have it estimated"
    )
    return replace(item, remarks=(*item.remarks, doubt))


def _noise_level(noise_std: Any) -> float | None:
    level = plain(noise_std)
    number = isinstance(level, int | float) and not isinstance(level, bool)
    if level is not None and not (number and 0 < level < float("inf")):
        raise BadInputError(f"noise_std is {shown(level)}: give a number above 0, or None to have it estimated")
    return level


def _size(array: torch.Tensor) -> str:
    """Without the coils, such as 24 x 64."""
    return " x ".join(map(str, array.shape[1:]))


def _is_flat(kspace: torch.Tensor) -> bool:
    """Whether (n_coils, partitions, rows, cols) have no peak at the middle partition, or one beside it: the head's
    phase moves it."""
    row, col = (size // 2 for size in kspace.shape[2:])
    near = kspace[..., max(0, row - NEAR) : row + NEAR + 1, max(0, col - NEAR) : col + NEAR + 1]
    amplitude = torch.linalg.vector_norm(near, dim=(0, 2, 3))
    middle = len(amplitude) // 2
    found = amplitude[amplitude > 0]
    if len(found) < FEWEST_PARTITIONS:
        return False
    return float(amplitude[middle - 1 : middle + 2].max()) < PEAK * float(found.median())


def _acquired(kspace: torch.Tensor) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Where samples came, and what is to be said of those that hold nothing but rounding."""
    rounding = _rounding(kspace)
    found = _nonzero(kspace) & ~rounding
    if not bool(rounding.any()):
        return found, ()
    return found, (
        f"{int(rounding.sum())} of {found.numel()} samples of k-space hold nothing but rounding, as a Fourier "
        "transform and its inverse leave where nothing was acquired: they are left out, give k-space as it was taken",
    )


def _marked(kspace: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Where samples came that the mask marks, and what is to be said of the others."""
    found = mask & _nonzero(kspace) & ~_rounding(kspace)
    if torch.equal(found, mask):
        return found, ()
    return found, (
        f"{int((mask & ~found).sum())} of the {int(mask.sum())} samples that the mask marks as acquired are zero: they "
        "are left out, see whether the mask is of this k-space",
    )


def _nonzero(kspace: torch.Tensor) -> torch.Tensor:
    """Where samples are: of a volume, the columns that its lines have, in every line that came."""
    came = (kspace != 0).any(0)
    return came if came.ndim == 2 else came.any(-1, keepdim=True) & came.any(0).any(0)


def _rounding(kspace: torch.Tensor) -> torch.Tensor:
    """Samples of lines, or columns, that hold nothing but rounding, without the coils."""
    energy = torch.zeros(kspace.shape[1:], dtype=torch.float64, device=kspace.device)
    for coil in kspace:
        energy += coil.abs().double().square()
    return _is_rounding(energy.mean(-1))[..., None] | _is_rounding(energy.flatten(0, -2).mean(0))


def _is_rounding(energy: torch.Tensor) -> torch.Tensor:
    found = (energy > 0) & (energy < ROUNDING**2 * energy.mean())
    if not bool(found.any()) or energy[~found & (energy > 0)].min() < GAP**2 * energy[found].max():
        return torch.zeros_like(found)
    return found


def _mask(mask: Any, shape: tuple[int, ...]) -> torch.Tensor:
    given = _tensor(mask, "the mask")
    found = given.cpu()
    if found.shape == shape[:-1]:
        found = found[..., None].expand(shape)
    if found.shape != shape or not bool(((found == 0) | (found == 1)).all()):
        raise BadInputError(
            f"the mask has shape {tuple(given.shape)}: zeros and ones of shape {shape} or {shape[:-1]} are needed, "
            "1 where k-space was acquired"
        )
    found = found != 0
    if found.ndim == 3 and not torch.equal(found, found.any(-1, keepdim=True) & found.any(0).any(0)):
        raise BadInputError(
            "the mask of the volume has other columns in some lines than in others: every acquired line needs the same"
        )
    return found


def voxel_of(voxel_mm: Any) -> tuple[float, float, float]:
    if voxel_mm is None:
        return 1.0, 1.0, 1.0
    try:
        sides = () if isinstance(voxel_mm, str | bytes) else tuple(float(side) for side in voxel_mm)
    except (TypeError, ValueError):
        sides = ()
    if len(sides) != 3 or not all(0 < side < float("inf") for side in sides):
        raise BadInputError(
            f"voxel_mm is {voxel_mm!r}: three lengths above 0, of partitions, rows and cols, are needed"
        )
    return sides


def _centre(kspace: torch.Tensor, acquired: torch.Tensor) -> torch.Tensor | None:
    """The fully sampled centre: whole lines, else a square, as with 2D undersampling; None where it is too small."""
    if acquired.ndim == 3:
        box = central_box(acquired.any(-1).numpy())
        return None if box is None else kspace[:, box[0], box[1]]
    rows, cols = acquired.shape
    columns = acquired.any(0)
    block = central_block(np.flatnonzero((acquired | ~columns).all(1).numpy()).tolist(), rows // 2)
    if len(block) >= FEWEST_CALIBRATION_LINES:
        return kspace[:, block.start : block.stop]
    half = 0
    while half < min(rows, cols) // 2 and bool(_square(acquired, half + 1).all()):
        half += 1
    return _square(kspace, half) if 2 * half >= FEWEST_CALIBRATION_LINES else None


def _square(array: torch.Tensor, half: int) -> torch.Tensor:
    row, col = array.shape[-2] // 2, array.shape[-1] // 2
    return array[..., row - half : row + half, col - half : col + half]


def maps_of(maps: Any, data: Slice) -> torch.Tensor:
    found = complex_of(maps, "the coil maps", str(tuple(data.kspace.shape)), dimensions=(data.kspace.ndim,))
    if found.shape != data.kspace.shape:
        raise BadInputError(
            f"the coil maps have shape {tuple(found.shape)} and the k-space {tuple(data.kspace.shape)}: give the same"
        )
    energy = found.abs().square().sum(0)
    inside = energy > 0
    if not bool(inside.any()) or float((energy[inside] - 1).abs().max()) > UNIT:
        raise BadInputError(
            f"the coil maps have sum |s|^2 from {float(energy.min()):.3g} to {float(energy.max()):.3g}: divide them by "
            "its root on the head, and set them to 0 outside it"
        )
    return found


def complex_of(array: Any, what: str, shape: str, dimensions: tuple[int, ...] = (3,)) -> torch.Tensor:
    """A complex64 tensor of so many dimensions and finite values. Raises BadInputError."""
    if not isinstance(array, np.ndarray | torch.Tensor):
        raise BadInputError(f"{what} is a {type(array).__name__}: a numpy array or torch tensor {shape} is needed")
    found = _tensor(array, what)
    if found.ndim not in dimensions or 0 in found.shape:
        raise BadInputError(f"{what} has shape {tuple(found.shape)}: {shape} is needed")
    if not found.is_complex():
        raise BadInputError(f"{what} is {found.dtype}: complex values are needed")
    found = found.to(torch.complex64)
    if not bool(torch.isfinite(torch.view_as_real(found)).all()):
        raise BadInputError(f"{what} has values that are not finite: leave out what was not measured")
    return found


def _tensor(array: Any, what: str) -> torch.Tensor:
    """A view of it, where torch can have one. Raises BadInputError for anything but numbers."""
    if isinstance(array, torch.Tensor):
        return array.detach().resolve_conj().resolve_neg()
    try:
        found = np.asarray(array)
    except ValueError as error:
        raise BadInputError(
            f"{what} is no array of numbers ({first_line(error)}): give rows of equal length"
        ) from error
    if found.dtype.kind not in "biufc":
        raise BadInputError(f"{what} is an array of type {found.dtype}: numbers are needed")
    wide = {"f": np.float64, "c": np.complex128}.get(found.dtype.kind, found.dtype)
    native = np.dtype(wide) if found.dtype.itemsize > np.dtype(wide).itemsize else found.dtype.newbyteorder("=")
    as_it_is = native == found.dtype and found.flags.writeable
    if not as_it_is or any(step < 0 or step % found.itemsize for step in found.strides):
        found = np.array(found, native, order="C")
    return torch.from_numpy(found)
