"""BART as an oracle for coil maps."""

import subprocess

import numpy as np
import torch


def bart_maps(folder, kspace, *options):
    """`bart ecalib` of k-space (n_coils, rows, cols) or (n_coils, partitions, rows, cols): maps like it, with -m2 two
    sets of them."""
    n_coils, *sizes = kspace.shape
    # BART is column-major: cols, rows, partitions, coils, sets
    dimensions = [*sizes[::-1], *([1] if len(sizes) == 2 else []), n_coils]
    (folder / "kspace.hdr").write_text(f"# Dimensions\n{' '.join(map(str, dimensions))}\n")
    kspace.contiguous().numpy().tofile(folder / "kspace.cfl")
    subprocess.run(["bart", "ecalib", *options, "kspace", "maps"], cwd=folder, check=True, capture_output=True)
    return torch.from_numpy(np.fromfile(folder / "maps.cfl", np.complex64).reshape(-1, *kspace.shape)).squeeze(0)
