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
from dpmrecon.physics.fourier import crop_or_pad, origin_to_centre, to_kspace
from dpmrecon.physics.soft_sense import SoftSense
from dpmrecon.recon.types import MappedSlice, MappedVolume

# where the search begins; it goes on by factors of 2
WAVELET_WEIGHTS = (0.005, 0.01, 0.02)
SENSE_WEIGHTS = (5.0, 10.0, 20.0)
MOST_STEPS = 8


def with_weight(
    method: Callable[[MappedSlice, float], torch.Tensor], weight: float
) -> Callable[[MappedSlice], torch.Tensor]:
    return lambda case: method(case, weight)


def tuned_cg_sense(case: MappedSlice, weight: float) -> torch.Tensor:
    """The product's CG-SENSE with another factor of its weight, which there is 10: (rows, cols)."""
    return case.model.combined(cg_sense(case.model, case.zero_filled, case.data.sigma_n, case.scale, weight))


def wavelet_tool(shapes: Sequence[tuple[int, ...]]) -> tuple[str, Callable[[MappedSlice, float], torch.Tensor]]:
    """Name and function of L1-wavelet for slices or volumes of these shapes: BART where it is installed and all sizes
    are even, else sigpy. Their weights have different units, so one tool serves a whole comparison."""
    if shutil.which("bart") is not None and not any(size % 2 for shape in shapes for size in shape):
        return "L1-wavelet (BART)", l1_wavelet
    return "L1-wavelet (sigpy)", l1_wavelet_sigpy


def l1_wavelet(case: MappedSlice, weight: float) -> torch.Tensor:
    """`bart pics -l1 -r weight` on the slice's coil maps and k-space: (rows, cols) complex64; in three dimensions on a
    volume's.

    BART divides by a scale of its own, to which the weight refers, and multiplies by it again (-S). On grids whose
    size is no multiple of 4 its image has a global phase of its own. Raises BadInputError for odd sizes, where
    version 0.8 misplaces k-space against the maps.
    """
    if isinstance(case, MappedVolume):
        return bart_volume(case, "W", weight)
    return case.model.combined(bart_pics(case.data.kspace, case.model.coil_maps, weight))


def volume_arrays(case: MappedVolume) -> tuple[torch.Tensor, torch.Tensor]:
    """K-space and coil maps (n_coils, partitions, rows, cols) of a volume, whose model has them in other layouts; the
    first set where there are two."""
    maps = case.model.coil_maps if case.model.coil_maps.ndim == 4 else case.model.coil_maps[:, 0]
    maps = origin_to_centre(maps, (-2, -1)).permute(1, 2, 3, 0)
    return to_kspace(case.data.kspace, (-1,)), maps


def bart_pics(kspace: torch.Tensor, maps: torch.Tensor, weight: float) -> torch.Tensor:
    """L1-wavelet of k-space (n_coils, rows, cols), maps like it or (n_sets, n_coils, rows, cols): an image of each set
    of maps, (rows, cols) or (n_sets, rows, cols) complex64."""
    shape = tuple(kspace.shape[-2:])
    if any(size % 2 for size in shape):
        raise BadInputError(f"the grid is {shape[0]} x {shape[1]}, and BART's pics needs even sizes: leave it out")
    image = bart(f"pics -S -l1 -r {weight:g}", {"kspace": kspace.unsqueeze(-3), "maps": maps.unsqueeze(-3)})
    return torch.from_numpy(image.reshape(*maps.shape[:-3], *shape))


def bart_volume(case: MappedVolume, penalty: str, weight: float) -> torch.Tensor:
    """`bart pics` in three dimensions: (partitions, rows, cols) complex64.

    penalty: "W", wavelets, or "T", total variation, along all three axes; BART's ADMM for the latter needs more than
    its usual 30 iterations. Raises BadInputError for odd sizes.
    """
    kspace, maps = volume_arrays(case)
    shape = tuple(kspace.shape[-3:])
    if any(size % 2 for size in shape):
        raise BadInputError(f"the grid is {shape}, and BART's pics needs even sizes: leave it out")
    iterations = {"W": 30, "T": 100}[penalty]
    command = f"pics -S -i {iterations} -R {penalty}:7:0:{weight:g}"
    return torch.from_numpy(bart(command, {"kspace": kspace, "maps": maps})).view(shape)


def bart_maps(calibration: torch.Tensor, shape: tuple[int, int], options: str) -> torch.Tensor:
    """`bart ecalib` with options such as "-m2" on calibration lines (n_coils, lines, samples): (n_coils, rows, cols)
    complex64, or (n_sets, n_coils, rows, cols)."""
    for axis, size in enumerate(shape, 1):
        calibration = crop_or_pad(calibration, size, axis)
    maps = bart(f"ecalib {options}", {"calibration": calibration.unsqueeze(-3)})
    return torch.from_numpy(maps.reshape(-1, *calibration.shape)).squeeze(0)


def bart(command: str, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """What a BART command makes of arrays (..., n_coils, partitions, rows, cols), flat. Raises BadInputError where it
    fails."""
    with tempfile.TemporaryDirectory() as folder:
        for name, array in inputs.items():
            n_coils, partitions, rows, cols = array.shape[-4:]
            # BART is column-major: cols, rows, partitions, coils, sets of maps
            n_sets = array[..., 0, 0, 0, 0].numel()
            Path(folder, f"{name}.hdr").write_text(f"# Dimensions\n{cols} {rows} {partitions} {n_coils} {n_sets}\n")
            array.cpu().contiguous().numpy().astype(np.complex64).tofile(Path(folder, f"{name}.cfl"))
        words = ["bart", *command.split(), *inputs, "result"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise BadInputError(f"`{' '.join(words)}` failed: {(done.stderr or done.stdout).strip()[-200:]}")
        return np.fromfile(Path(folder, "result.cfl"), np.complex64)


def l1_wavelet_sigpy(case: MappedSlice, weight: float) -> torch.Tensor:
    """As `l1_wavelet`, by sigpy, which takes one set of maps: the weight refers to a slice of scale 1."""
    from sigpy.mri.app import L1WaveletRecon

    kspace, maps = case.data.kspace, first_set(case)
    if isinstance(case, MappedVolume):
        kspace, maps = volume_arrays(case)
    mask = case.model.mask.cpu().numpy()
    # the step size 1: the largest singular value of A is at most 1
    arrays = [array.cpu().numpy() for array in (kspace / case.scale, maps)]
    found = L1WaveletRecon(*arrays, weight, weights=mask, max_iter=60, alpha=1, show_pbar=False).run()
    return torch.from_numpy(np.asarray(found, np.complex64)) * case.scale


def first_set(case: MappedSlice) -> torch.Tensor:
    """Coil maps of a slice, the first set where there are two."""
    return case.model.coil_maps[0] if isinstance(case.model, SoftSense) else case.model.coil_maps


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


def total_variation(case: MappedSlice, weight: float) -> torch.Tensor:
    """TV in both axes of a slice, by sigpy (primal-dual hybrid gradient), which takes one set of maps: the weight
    refers to a slice of scale 1."""
    from sigpy.mri.app import TotalVariationRecon

    arrays = [array.cpu().numpy() for array in (case.data.kspace / case.scale, first_set(case))]
    mask = case.model.mask.cpu().numpy()
    found = TotalVariationRecon(*arrays, weight, weights=mask, max_iter=100, show_pbar=False).run()
    return torch.from_numpy(np.asarray(found, np.complex64)) * case.scale
