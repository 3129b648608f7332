"""From a volume to a problem: as `prepare` does for a slice, with one coil or some lines of it at a time in memory."""

import math
import time
from dataclasses import replace

import torch

from ..data import LostSlice, Volume
from ..device import synchronize
from ..errors import BadInputError
from ..physics.cg_sense import scaled
from ..physics.coil_compression import compressed_volume
from ..physics.fourier import origin_to_corner
from ..physics.phase import smooth_phase
from ..physics.soft_sense import SoftVolume
from ..physics.volume import VolumeModel, hybrid
from ..physics.volume_maps import CROP, central, estimate_volume_maps
from .repairs import despiked, reduced_volume, two_sets, with_calibration_as_data
from .types import MappedVolume

AXES = (-3, -2, -1)


def with_volume_maps(data: Volume, device: torch.device, crop: float = CROP) -> MappedVolume | LostSlice:
    """The volume with ESPIRiT maps of its calibration, scale and CG-SENSE image; lost, with the reason, without them.

    Its k-space is used up: the data that come back are `hybrid`, in the same memory if possible. crop: of the maps, see
    `estimate_volume_maps`.
    """
    assert data.calibration is not None
    started = time.perf_counter()
    n_coils = len(data.kspace)
    data = with_calibration_as_data(despiked(data))
    assert data.calibration is not None
    # a copy: a view would keep the k-space, which is used up
    data = compressed_volume(replace(data, calibration=central(data.calibration).clone()))
    assert data.calibration is not None
    partitions, rows, cols = data.mask.shape
    try:
        reduced = reduced_volume(data)
        if reduced is not None:
            return LostSlice(data.key, reduced)
        maps = estimate_volume_maps(data.calibration.to(device), (partitions, rows, cols), crop)
    except BadInputError as error:
        return LostSlice(data.key, f"it has no coil maps: {error}")
    synchronize(device)
    if maps.ndim == 5:
        data = replace(data, remarks=(*data.remarks, two_sets(data)))
    return mapped_volume(data, maps, {"maps": time.perf_counter() - started}, n_coils)


def mapped_volume(
    data: Volume, maps: torch.Tensor, seconds: dict[str, float], n_coils: int = 0
) -> MappedVolume | LostSlice:
    """The volume with its conventional images on the device of `maps`.

    maps: (cols, n_coils, partitions, rows), see `VolumeModel`, or (cols, n_sets, n_coils, partitions, rows), see
    `SoftVolume`, each of which has its own phase; used up as the k-space is.
    """
    started = time.perf_counter()
    data = replace(data, kspace=hybrid(data.kspace.to(maps.device)), mask=data.mask.to(maps.device))
    model = (VolumeModel if maps.ndim == 4 else SoftVolume)(maps, data.mask)
    zero_filled = model.adjoint(data.kspace)
    scale, conventional = scaled(model, zero_filled, data.sigma_n, go_on=True)
    if not (math.isfinite(scale) and scale > 0):
        return LostSlice(data.key, "its k-space holds no signal inside the coil maps' support")
    phase = smooth_phase(conventional, AXES)
    for position, part in zip(maps, origin_to_corner(phase.movedim(-1, 0))):
        position *= part.unsqueeze(-3)
    zero_filled, conventional = zero_filled * phase.conj(), conventional * phase.conj()
    synchronize(maps.device)
    seconds = {**seconds, "conventional": time.perf_counter() - started}
    phase = phase if phase.ndim == 3 else phase[0]
    return MappedVolume(data, model, phase, scale, zero_filled, conventional, seconds, n_coils)
