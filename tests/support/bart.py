"""BART as an oracle for coil maps."""

import subprocess

import numpy as np
import torch


def bart_maps(folder, kspace, *options):
    """`bart ecalib` of k-space (n_coils, rows, cols): (n_coils, rows, cols), with -m2 (2, n_coils, rows, cols)."""
    n_coils, rows, cols = kspace.shape
    # BART is column-major: cols, rows, one partition, coils, sets
    (folder / "kspace.hdr").write_text(f"# Dimensions\n{cols} {rows} 1 {n_coils}\n")
    kspace.contiguous().numpy().tofile(folder / "kspace.cfl")
    subprocess.run(["bart", "ecalib", *options, "kspace", "maps"], cwd=folder, check=True, capture_output=True)
    return torch.from_numpy(np.fromfile(folder / "maps.cfl", np.complex64).reshape(-1, *kspace.shape)).squeeze(0)
