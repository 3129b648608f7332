"""Some planes across a volume's readout, which a full readout makes slices of their own."""

from dataclasses import dataclass

import torch

from ..data import Slice
from ..physics.forward import ForwardModel
from ..physics.fourier import origin_to_centre
from ..physics.soft_sense import SoftSense
from .types import MappedSlice, MappedVolume

N_PLANES = 5


@dataclass
class MappedPlane(MappedSlice):
    """A position along the readout of a volume: a slice (partitions, rows) in the volume's units and at its scale, both
    of whose directions are phase-encoded. pixel_mm: along partitions and rows; block: partitions and rows of the
    calibration."""

    pixel_mm: tuple[float, float] = (1.0, 1.0)
    block: tuple[int, int] = (0, 0)


def planes_across_readout(mapped: MappedVolume) -> list[MappedPlane]:
    """N_PLANES, with as much of the head between each two; none where the echo is cut, which couples them, and none
    without a calibration, whose lines are not asked about."""
    if mapped.model.columns is not None or mapped.data.calibration is None:
        return []
    support = mapped.model.support
    head = support.reshape(-1, *support.shape[-3:])[0].sum((0, 1)).cumsum(0)
    wanted = head[-1] * (torch.arange(N_PLANES, device=head.device) + 0.5) / N_PLANES
    return [_plane(mapped, position) for position in dict.fromkeys(torch.searchsorted(head, wanted).tolist())]


def _plane(mapped: MappedVolume, position: int) -> MappedPlane:
    data = mapped.data
    maps = origin_to_centre(mapped.model.coil_maps[position])
    form = ForwardModel if maps.ndim == 3 else SoftSense
    lines = mapped.model.mask.amax(-1)
    own = Slice(
        data.key, data.kspace[..., position].contiguous(), lines, None, data.sigma_n, data.noise_source,
        data.acceleration, data.n_lines_got, data.n_lines_needed, data.seed_key,
    )  # fmt: skip
    images = (image[..., position].contiguous() for image in (mapped.phase, mapped.zero_filled, mapped.conventional))
    phase, zero_filled, conventional = images
    assert data.calibration is not None
    block = data.calibration.shape[1], data.calibration.shape[2]
    model = form(maps, lines)
    return MappedPlane(
        own, model, phase, mapped.scale, zero_filled, conventional, {}, mapped.n_coils, data.voxel_mm[:2], block
    )
