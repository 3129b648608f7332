"""Prepared slices, for all that trains."""

import nibabel
import numpy as np
import pytest
from dpmtrain.cli import main


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Prepared slices of two patients and two contrasts, 40 x 44 and 44 x 40."""
    folder = tmp_path_factory.mktemp("data")
    images, out = folder / "open_ms", folder / "prepared"
    rng = np.random.default_rng(0)
    inside = np.hypot(*np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 44), indexing="ij")) < 0.8
    for patient, name in (("patient01", "study1_FLAIR"), ("patient01", "study1_T2W"), ("patient03", "study1_FLAIR")):
        (images / patient).mkdir(parents=True, exist_ok=True)
        volume = (rng.uniform(300, 900, (40, 44, 4)) * inside[..., None]).astype(np.uint16)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([-0.7, -0.7, 3, 1])), images / patient / f"{name}.nii.gz")
    assert main(["prepare", str(folder), "--out", str(out), "--jobs", "1"]) == 0
    return out
