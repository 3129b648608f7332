"""What a prior has to beat: CG-SENSE and L1-wavelet with weights that are chosen on validation data."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.physics.cg_sense import cg_sense
from dpmrecon.recon.types import MappedSlice

# where the search for a weight begins; it goes on by factors of 2 while the best one lies at an end
WAVELET_WEIGHTS = (0.005, 0.01, 0.02)
SENSE_WEIGHTS = (5.0, 10.0, 20.0)
MOST_STEPS = 8


def tuned_cg_sense(case: MappedSlice, weight: float) -> torch.Tensor:
    """The product's CG-SENSE with another factor of its weight, which there is 10: (rows, cols)."""
    return cg_sense(case.model, case.zero_filled, case.data.sigma_n, case.scale, weight)


def wavelet_tool(shapes: Sequence[tuple[int, ...]]) -> tuple[str, Callable[[MappedSlice, float], torch.Tensor]]:
    """Name and function of L1-wavelet for slices of these shapes: BART where it is installed and all sizes are even,
    else sigpy. Their weights have different units, so one tool serves a whole comparison."""
    if shutil.which("bart") is not None and not any(size % 2 for shape in shapes for size in shape):
        return "L1-wavelet (BART)", l1_wavelet
    return "L1-wavelet (sigpy)", l1_wavelet_sigpy


def l1_wavelet(case: MappedSlice, weight: float) -> torch.Tensor:
    """`bart pics -l1 -r weight` on the slice's coil maps and k-space: (rows, cols) complex64.

    BART divides by a scale of its own, to which the weight refers, and multiplies by it again (-S). On grids whose
    size is no multiple of 4 its image has a global phase of its own. Raises BadInputError for odd sizes, where
    version 0.8 misplaces k-space against the maps.
    """
    shape = tuple(case.data.kspace.shape[-2:])
    if any(size % 2 for size in shape):
        raise BadInputError(f"the grid is {shape[0]} x {shape[1]}, and BART's pics needs even sizes: leave it out")
    with tempfile.TemporaryDirectory() as folder:
        for name, array in (("kspace", case.data.kspace), ("maps", case.model.coil_maps)):
            n_coils, rows, cols = array.shape
            # BART is column-major: cols, rows, one partition, coils
            Path(folder, f"{name}.hdr").write_text(f"# Dimensions\n{cols} {rows} 1 {n_coils}\n")
            array.cpu().contiguous().numpy().astype(np.complex64).tofile(Path(folder, f"{name}.cfl"))
        command = ["bart", "pics", "-S", "-l1", "-r", f"{weight:g}", "kspace", "maps", "image"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise BadInputError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()[-200:]}")
        image = np.fromfile(Path(folder, "image.cfl"), np.complex64)
    return torch.from_numpy(image.reshape(shape))


def l1_wavelet_sigpy(case: MappedSlice, weight: float) -> torch.Tensor:
    """As `l1_wavelet`, by sigpy: the weight refers to a slice of scale 1."""
    from sigpy.mri.app import L1WaveletRecon

    kspace = (case.data.kspace / case.scale).cpu().numpy()
    maps, mask = case.model.coil_maps.cpu().numpy(), case.model.mask.cpu().numpy()
    # the step size 1: the largest singular value of A is at most 1
    found = L1WaveletRecon(kspace, maps, weight, weights=mask, max_iter=60, alpha=1, show_pbar=False).run()
    return torch.from_numpy(np.asarray(found, np.complex64)) * case.scale


def tuned_weight(error: Callable[[float], float], start: Sequence[float]) -> tuple[float, dict[float, float]]:
    """(best weight, error of every weight tried): those of `start`, then on by factors of 2 while the best one lies
    at an end, MOST_STEPS at most."""
    tried = {weight: error(weight) for weight in start}
    for _ in range(MOST_STEPS):
        best = min(tried, key=lambda weight: tried[weight])
        if best not in (min(tried), max(tried)):
            break
        beyond = best / 2 if best == min(tried) else best * 2
        tried[beyond] = error(beyond)
    return min(tried, key=lambda weight: tried[weight]), tried
