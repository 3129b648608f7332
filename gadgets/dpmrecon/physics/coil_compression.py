"""Fewer, virtual coils where there are many: maps cost their square, every step of the sampler their number.

Principal components of the calibration (Buehrer et al., Magnetic Resonance in Medicine 57:1131, 2007); unitary, so
that whitened noise stays white.
"""

from dataclasses import replace

import torch

from ..data import AnySlice

FEWEST = 12  # coils; as many or fewer stay as they are
SIGNAL = 3.0  # a component is kept where it holds this many times the energy of noise alone


def compressed(data: AnySlice) -> AnySlice:
    """The slice in the virtual coils whose calibration stands out from the noise, at least FEWEST of them."""
    calibration = data.calibration
    if calibration is None or len(calibration) <= FEWEST:
        return data
    samples = calibration.flatten(1).to(torch.complex128)
    energies, components = torch.linalg.eigh(samples @ samples.mH)
    kept = max(FEWEST, int((energies > SIGNAL * 2 * data.sigma_n**2 * samples.shape[1]).sum()))
    if kept >= len(calibration):
        return data
    mixing = components[:, -kept:].flip(1).mH.to(torch.complex64)
    parts = [(mixing @ part.flatten(1)).view(kept, *part.shape[1:]) for part in (data.kspace, calibration)]
    return replace(data, kspace=parts[0], calibration=parts[1])
