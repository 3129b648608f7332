"""Averages and shots that have a phase each, as one slice.

A shot alone is undersampled more, and tells its phase badly. All shots together make an image that is wrong where
phases are, and each shot's samples, filled up from it, tell a better phase (as in POCS-MUSE, Chu et al., Magnetic
Resonance in Medicine 74:1336, 2015, with SENSE in the place of its projections).
"""

import math
import time
from dataclasses import replace

import torch

from ..data import LostSlice, Slice
from ..physics.cg_sense import PRIOR_STD
from ..physics.phase import smooth_phase
from .conventional import mapped_slice
from .types import MappedSlice

ROUNDS = 4
# of the joint image over CG-SENSE's own: the smaller, the faster phases move
FILL_WEIGHT = 0.03
# a shot's undersampling over the coils from which on phases may be wrong
SAFE_FOLD = 0.4
UNSAFE = (
    "each of its {n_shots} shots has a phase of its own and is undersampled {fold:g} times, with {n_coils} coils: at "
    "low SNR some phase may be wrong, and its ghosts stay; see whether they do"
)


def with_phases(
    averages: list[Slice], maps: torch.Tensor, seconds: dict[str, float], n_coils: int = 0
) -> MappedSlice | LostSlice:
    """Averages of equal masks, and their shots, as one slice: y_a = P_a F S (phase_a x) + n_a, the coils of each beside
    those of the others, with each one's smooth phase in its maps. maps, n_coils: see `mapped_slice`.

    Maps and k-space are divided by the root of how often a sample was acquired, so that the noise is that of all data
    together, and what is sampled is their posterior.
    """
    started = time.perf_counter()
    apart = [mapped_slice(part, maps, {}) for average in averages for part in _shots_of(average)]
    mapped = [item for item in apart if isinstance(item, MappedSlice)]
    if len(mapped) < len(apart):
        return next(item for item in apart if isinstance(item, LostSlice))
    parts, own = [item.data for item in mapped], [item.model.coil_maps for item in mapped]
    n_shots, n_coils = len(parts) // len(averages), n_coils or maps.shape[-3]
    fold = averages[0].acceleration * n_shots
    if n_shots > 1 and fold > n_coils:
        return LostSlice(
            averages[0].key,
            f"each of its {n_shots} shots has a phase of its own and is undersampled {fold:g} times, which {n_coils} "
            "coils do not unfold: acquire fewer shots, or a lower acceleration",
        )
    if n_shots > 1 and fold > n_coils * SAFE_FOLD:
        remark = UNSAFE.format(n_shots=n_shots, fold=fold, n_coils=n_coils)
        parts = [replace(parts[0], remarks=(*parts[0].remarks, remark)), *parts[1:]]
    joint = _together(parts, own, len(averages))
    for _ in range(ROUNDS if len(parts) > len(averages) else 0):
        if isinstance(joint, LostSlice):
            break
        joint = _together(parts, _with_better_phases(joint, parts, maps), len(averages))
    if isinstance(joint, LostSlice):
        return joint
    took = joint.seconds["conventional"]
    seconds = {**seconds, "averages": time.perf_counter() - started - took, "conventional": took}
    of_first = (maps.conj() * joint.model.coil_maps[..., : len(parts[0].kspace), :, :]).sum(-3)
    angle = (of_first if maps.ndim == 3 else of_first[0]).angle()
    return replace(joint, phase=torch.polar(torch.ones_like(angle), angle), seconds=seconds, n_coils=n_coils)


def _together(parts: list[Slice], maps: list[torch.Tensor], n_averages: int) -> MappedSlice | LostSlice:
    """The parts, whose phases `maps` hold, as one slice."""
    masks = torch.stack([part.mask for part in parts])
    whole = masks.amax(0)
    share = float(masks.sum() / whole.sum()) ** -0.5
    data = replace(
        parts[0],
        kspace=share * torch.cat([part.kspace for part in parts]),
        mask=whole,
        sigma_n=share * math.sqrt(sum(part.sigma_n**2 for part in parts) / len(parts)),
        remarks=tuple(dict.fromkeys(remark for part in parts for remark in part.remarks)),
        n_averages=n_averages,
        ghost=max((part.ghost for part in parts if part.ghost is not None), default=None),
    )
    equal = len(parts) == n_averages
    mask = whole if equal else masks.repeat_interleave(len(parts[0].kspace), 0)
    return mapped_slice(data, share * torch.cat(maps, -3), {}, mask=mask)


def _with_better_phases(joint: MappedSlice, parts: list[Slice], maps: torch.Tensor) -> list[torch.Tensor]:
    """Coil maps of each part, with the phase that its samples, filled up from the joint image, have against it."""
    found, image = [], joint.conventional
    weight = torch.tensor([FILL_WEIGHT * (parts[0].sigma_n / (PRIOR_STD * joint.scale)) ** 2]).clamp_min(1e-4)
    for part, own in zip(parts, joint.model.coil_maps.split(maps.shape[-3], -3)):
        model, phase = type(joint.model)(maps, part.mask), torch.sgn((maps.conj() * own).sum(-3))
        filled = model.prox(model.adjoint(part.kspace), (phase * image)[None], weight, model.cg_steps)[0]
        found.append(maps * smooth_phase(filled * image.conj()).unsqueeze(-3))
    return found


def _shots_of(average: Slice) -> list[Slice]:
    """Itself, or its shots where each has a phase of its own."""
    if average.shots is None:
        return [average]
    shots = [(average.shots == shot).float()[:, None] for shot in average.shots.unique() if shot >= 0]
    return [replace(average, kspace=average.kspace * rows, mask=average.mask * rows) for rows in shots]
