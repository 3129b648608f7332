"""Fewer, virtual coils where there are many: maps cost their square, every step of the sampler their number.

Principal components of the calibration (Buehrer et al., Magnetic Resonance in Medicine 57:1131, 2007); unitary, so
that whitened noise stays white.
"""

from dataclasses import replace

import torch

from ..data import Slice, Volume

FEWEST = 12  # coils; as many or fewer stay as they are
SIGNAL = 3.0  # a component is kept from this many times the noise's energy on


def compressed(data: Slice, like: Slice | None = None) -> Slice:
    """The slice in the virtual coils whose calibration stands out from the noise, at least FEWEST of them.

    like: the slice whose calibration makes them; None is `data` itself.
    """
    mixing = _mixing(data if like is None else like)
    if mixing is None:
        return data

    def mixed(part: torch.Tensor) -> torch.Tensor:
        return (mixing @ part.flatten(1)).view(-1, *part.shape[1:])

    calibration = None if data.calibration is None else mixed(data.calibration)
    return replace(data, kspace=mixed(data.kspace), calibration=calibration)


def compressed_volume(data: Volume) -> Volume:
    """The same of a volume, whose k-space is used up: the virtual coils take the place of the first ones."""
    mixing = _mixing(data)
    if mixing is None or data.calibration is None:
        return data
    calibration = (mixing @ data.calibration.flatten(1)).view(-1, *data.calibration.shape[1:])
    virtual = data.kspace[: len(mixing)]
    for partition in range(data.kspace.shape[1]):
        part = data.kspace[:, partition]
        virtual[:, partition] = (mixing @ part.flatten(1)).view(-1, *part.shape[1:])
    return replace(data, kspace=virtual, calibration=calibration)


def n_kept(data: Slice) -> int:
    """Coils that are left, virtual or its own."""
    mixing = _mixing(data)
    return len(data.kspace) if mixing is None else len(mixing)


def _mixing(data: Slice) -> torch.Tensor | None:
    """(n_kept, n_coils) complex64, or None where all coils stay."""
    calibration = data.calibration
    if calibration is None or len(calibration) <= FEWEST:
        return None
    samples = calibration.flatten(1).to(torch.complex128)
    energies, components = torch.linalg.eigh(samples @ samples.mH)
    kept = max(FEWEST, int((energies > SIGNAL * 2 * data.sigma_n**2 * samples.shape[1]).sum()))
    if kept >= len(calibration):
        return None
    return components[:, -kept:].flip(1).mH.to(torch.complex64)
