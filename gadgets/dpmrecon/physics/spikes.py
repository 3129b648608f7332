"""Spikes: single readout samples, of some coils, that a discharge made bright. They are taken out.

The field of view is limited and coils see the same object. So a sample follows from its neighbours along the readout in
all coils. The weights are the same all over k-space (as in SPIRiT, Lustig and Pauly, Magnetic Resonance in Medicine
64:457, 2010). A sample that is far from what they say, in units of their own size, is a spike.
"""

import math
from dataclasses import dataclass

import torch

from .fourier import to_image, to_kspace

REACH = 2  # neighbours on either side
# A sample's distance from the prediction over the size of its neighbours: at most 4.3 in 900 simulated sound slices,
# 6.4 in an even object that fills the field of view and is seen by two coils
LARGEST = 9.0
# Where one coil has a spike, another has it from this distance on
SHARED = 3.0
# It has to be that large itself; where no sample is, nothing is predicted
WORTH_A_LOOK = 6.0
CLIP = 6.0  # of a sample over its neighbours: a spike spoils nothing else
FITTED = 2**13  # samples that the weights are fitted to
ROUNDS = 8  # of search; each finds one spike a line and coil
REFINED = 3  # times that the size of spikes is told again from data without them
RIDGE = 1e-4


@dataclass(frozen=True)
class Spike:
    """coils: that have it, the brightest first; row: of k-space; col: a half where the oversampled readout had a sample
    between two.

    Whitening has mixed the coils: a spike of one is in those too that share noise with it, weaker.
    """

    coils: tuple[int, ...]
    row: int
    col: float

    def __str__(self) -> str:
        more = f" and {len(self.coils) - 1} more" if len(self.coils) > 1 else ""
        return f"coil {self.coils[0]}{more}, line {self.row}, sample {self.col:g}"


def without_spikes(kspace: torch.Tensor, mask: torch.Tensor, sigma_n: float) -> tuple[torch.Tensor, list[Spike]]:
    """The k-space (n_coils, rows, cols) without its spikes, and what they were; the same object where there are none.

    mask: (rows, cols), 1 where acquired; samples that lack some of their neighbours along the readout, its ends among
    them, are left as they are. What a spike covered is what its neighbours say.
    """
    rows = mask.amax(1).nonzero().squeeze(1)
    lines, acquired = kspace[:, rows], mask[rows] > 0
    known = (acquired & (_neighbours(acquired.float()).amin(0) > 0)).repeat(1, 2)
    halves = _halves(lines)
    size = torch.cat([_expected(half, sigma_n) for half in halves], -1)
    if not bool((known & (torch.cat(halves, -1).abs() > WORTH_A_LOOK * size).any(0)).any()):
        return kspace, []
    lines = lines.clone()
    found: dict[tuple[int, int, int], float] = {}  # (coil, line, place) -> size
    for _ in range(ROUNDS):
        distance, score = _distance(lines, sigma_n)
        score *= known
        coils, numbers = (score.amax(2) > LARGEST).nonzero(as_tuple=True)
        if not len(coils):
            break
        for coil, number in zip(coils.tolist(), numbers.tolist()):
            place = int(score[coil, number].argmax())
            found[coil, number, place] = float(distance[coil, number, place].abs())
            lines[coil, number] -= distance[coil, number, place] * _shape(place, lines[0, 0]) * acquired[number]
    for _ in range(REFINED if found else 0):
        distance, score = _distance(lines, sigma_n)
        for number, place in {(number, place) for _, number, place in found}:
            for coil in (score[:, number, place] > SHARED).nonzero().flatten().tolist():
                found.setdefault((coil, number, place), float(distance[coil, number, place].abs()))
        for coil, number, place in found:
            lines[coil, number] -= distance[coil, number, place] * _shape(place, lines[0, 0]) * acquired[number]
    if not found:
        return kspace, []
    cleaned = kspace.clone()
    cleaned[:, rows] = lines
    cols = kspace.shape[2]
    places: dict[tuple[int, float], list[int]] = {}
    for coil, number, place in sorted(found, key=lambda key: -found[key]):
        places.setdefault((int(rows[number]), place % cols + place // cols / 2), []).append(coil)
    return cleaned, [Spike(tuple(coils), row, col) for (row, col), coils in sorted(places.items())]


def _halves(lines: torch.Tensor) -> list[torch.Tensor]:
    """The samples, and those half a sample further, where an oversampled readout had one."""
    cols = lines.shape[-1]
    place = torch.arange(cols, device=lines.device) - cols // 2
    ramp = torch.polar(torch.ones(cols, device=lines.device), -math.pi * place / cols)
    return [lines, to_kspace(to_image(lines, (-1,)) * ramp, (-1,))]


def _shape(place: int, like: torch.Tensor) -> torch.Tensor:
    """(cols,): a spike of size 1 at an index of both halves in turn, as the samples have it."""
    cols = len(like)
    unit = torch.zeros_like(like)
    unit[place % cols] = 1
    if place < cols:
        return unit
    # half a sample further is half a sample back, and one on
    ramp = torch.arange(cols, device=like.device) - cols // 2
    ramp = torch.polar(torch.ones(cols, device=like.device), math.pi * ramp / cols)
    return to_kspace(to_image(unit, (-1,)) * ramp, (-1,))


def _neighbours(samples: torch.Tensor) -> torch.Tensor:
    """(2 REACH, ...): of every sample along the readout; 0 beyond its ends."""
    cols = samples.shape[-1]
    padded = samples.new_zeros((*samples.shape[:-1], cols + 2 * REACH))
    padded[..., REACH : REACH + cols] = samples
    offsets = [offset for offset in range(2 * REACH + 1) if offset != REACH]
    return torch.stack([padded[..., offset : offset + cols] for offset in offsets])


def _size(lines: torch.Tensor) -> torch.Tensor:
    """(n_lines, cols): of a sample's neighbours, root mean square over coils, the larger middle one."""
    energy = _neighbours(torch.view_as_real(lines).square().sum(-1).mean(0))
    return energy.sort(0).values[REACH].sqrt()


def _expected(half: torch.Tensor, sigma_n: float) -> torch.Tensor:
    """(n_lines, cols): the size of a sample's neighbours, not below the noise: what it may differ from them by."""
    return _size(half).clamp_min(math.sqrt(2) * sigma_n)


def _clipped(samples: torch.Tensor) -> torch.Tensor:
    return samples * (CLIP / samples.abs().clamp_min(CLIP))


def _features(lines: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """(2 REACH n_coils, n_lines cols): neighbours in all coils, in units of their size."""
    return _clipped(_neighbours(lines) / size).flatten(2).flatten(0, 1)


def _weights(lines: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """(n_coils, 2 REACH n_coils): what predicts a sample, by least squares over all of k-space alike."""
    step = max(1, math.ceil(size.numel() / FITTED))
    lines, size = lines[:, ::step], size[::step]
    features = _features(lines, size)
    gram = features @ features.mH
    gram = gram + RIDGE * gram.diagonal().real.mean() * torch.eye(len(gram), device=gram.device)
    return torch.linalg.solve(gram, features @ _clipped(lines / size).flatten(1).mH).mH


def _distance(lines: torch.Tensor, sigma_n: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(n_coils, n_lines, 2 cols): samples of both halves less what their neighbours predict; the same in their size."""
    found, weights = [], None
    for half in _halves(lines):
        size = _expected(half, sigma_n)
        weights = _weights(half, size) if weights is None else weights
        distance = half - (weights @ _features(half, size)).view(half.shape) * size
        found.append((distance, distance.abs() / size))
    return torch.cat([distance for distance, _ in found], -1), torch.cat([score for _, score in found], -1)
