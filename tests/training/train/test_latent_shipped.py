"""The latent model that lies in the repository: its parts' sizes, its ceiling, and a scan from end to end."""

import numpy as np
import pytest
import torch
from dpmrecon.cli import main
from dpmrecon.physics.phase import smooth_phase
from dpmrecon.physics.scale import image_scale
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmtrain.train.latent import psnr

from support.paths import ROOT, shared
from support.results import report

MODEL = ROOT / "models" / "latent.safetensors"
pytestmark = pytest.mark.skipif(not MODEL.is_file(), reason=f"{MODEL.name} is not in this checkout: see docs/latent.md")


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e .[latent]")
    return load_checkpoint(MODEL).model


def test_its_parts_are_small(model):
    sizes = {
        part: sum(p.numel() for p in getattr(model, part).parameters())
        for part in ("autoencoder", "unet", "controlnet")
    }
    assert sizes["autoencoder"] <= 3e6 and sizes["unet"] <= 8e6
    assert MODEL.stat().st_size <= 12e6 and model.sketcher is not None


def test_the_round_trip_of_test_slices_has_36_db(model):
    objects = torch.from_numpy(np.load(shared("ismrmrd/flair_3slices_object.npy"))).to(torch.complex64)
    for image in objects:
        image = image * smooth_phase(image).conj() / image_scale(image)
        assert psnr(model.decode(model.encode(image[None]), *image.shape)[0], image) >= 36


def test_it_is_as_near_as_its_sketch_and_nothing_falls_back(model, tmp_path):
    scan, truth = shared("ismrmrd/flair_3slices_r4.h5"), shared("ismrmrd/flair_3slices_truth.npy")
    out = tmp_path / "out"
    assert main(["replay", str(scan), "--truth", str(truth), "--out", str(out), "--model", str(MODEL)]) == 0
    found = report(out)
    assert [entry["fallback"] for entry in found["slices"]] == [None] * 3
    assert found["nrmse"]["DPM"]["mean"] < 1.1 * 0.0728 < found["nrmse"]["CG-SENSE"]["mean"]
