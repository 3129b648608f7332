"""What dcm2niix, the usual converter, makes of a folder of DICOM files."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest


def dcm2niix(dicom: Path, out: Path, *options: str) -> dict[int, Any]:
    """Its images by series number, one a series; skips where it is not installed."""
    if shutil.which("dcm2niix") is None:
        pytest.skip("dcm2niix is not installed (Debian package dcm2niix): its NIfTI files are the oracle")
    out.mkdir()
    command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "%s", "-o", str(out), *options, str(dicom)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {int(path.stem.split("_")[0]): nibabel.load(path) for path in out.glob("*.nii")}
    assert found, done.stdout
    return found


def same(theirs: Any, ours: Any, unit: float = 1.0) -> None:
    """Equal affines, and voxels but for the rounding of what a DICOM file stores. unit: theirs in ours."""
    assert theirs.shape == ours.shape
    for name in ("affine", "get_qform", "get_sform"):
        values = [getattr(image, name) for image in (theirs, ours)]
        mine, other = (value() if callable(value) else value for value in values)
        assert np.abs(mine - other).max() < 2e-4, name  # float32 in both headers, mm
    voxels = theirs.get_fdata() * unit
    step = np.diff(np.unique(voxels)).min()
    assert np.abs(voxels - ours.get_fdata()).max() <= 0.501 * step
