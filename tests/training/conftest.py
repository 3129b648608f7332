"""Small prepared volumes, and images of those who are held out, for whole experiments."""

import json

import nibabel
import numpy as np
import pytest
from dpmrecon.physics.scale import RULE
from dpmtrain.data.open_sets import HELD_OUT

VOLUMES = {"patient01_study1_FLAIR": "flair", "patient03_study1_FLAIR": "flair", "patient01_study1_T1W": "t1"}


def head(rng, shape):
    """A bright ellipse with structure, magnitude."""
    grids = np.meshgrid(*[np.linspace(-1.1, 1.1, size) for size in shape], indexing="ij")
    inside = sum(grid**2 for grid in grids) < 1
    return (inside * (0.6 + 0.4 * rng.random(shape))).astype(np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(prepared slices of two patients, images of the validation and the test patient and of the held-out label map)"""
    rng = np.random.default_rng(0)
    prepared, images = tmp_path_factory.mktemp("prepared"), tmp_path_factory.mktemp("images")
    entries = []
    for name, contrast in VOLUMES.items():
        np.save(prepared / f"{name}.npy", np.stack([head(rng, (44, 40)) for _ in range(3)]).astype(np.float16))
        entries.append(
            {"file": f"{name}.npy", "contrast": contrast, "subject": name[:9], "source": "a test", "licence": "none",
             "reference": "none", "simulated": False, "voxel_mm": [3.0, 1.0, 1.0], "shape": [3, 44, 40],
             "spans": [[0, 3]]}
        )  # fmt: skip
    manifest = {"scale_rule": RULE, "exclude": list(HELD_OUT), "volumes": entries}
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    for patient in ("patient09", "patient12"):
        (images / "open_ms" / patient).mkdir(parents=True)
        volume = nibabel.Nifti1Image(head(rng, (44, 40, 12)), np.diag([0.9, 0.9, 3, 1]))
        nibabel.save(volume, images / "open_ms" / patient / "study1_FLAIR.nii.gz")
    (images / "synthseg_labels").mkdir()
    labels = np.zeros((40, 44, 36), np.uint8)
    labels[6:-6, 6:-6, 4:-4] = 3
    labels[10:-10, 10:-10, 8:-8] = 2
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), images / "synthseg_labels/training_seg_02.nii.gz")
    return prepared, images
