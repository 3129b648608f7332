"""The experiment on conditionings: scans that are made once, three networks that go on, images of each."""

import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.physics.forward import ForwardModel
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.prior.problem import Problem
from dpmtrain.bench import controls
from dpmtrain.train.undersampled import coil_maps

RECIPE = {
    "model": {
        "widths": [4, 6], "blocks": [1, 1], "embedding": 8, "labels": ["flair", "t2"], "conditioning": "cg-sense",
    },
    "train": {
        "seed": 3, "optimizer": "adam", "precision": "float32", "batch": 1, "draws": 2, "crops": [32, 40], "rate": 1e-3,
        "warmup": 1, "decay_fraction": 0.5, "clip": 1.0, "label_dropout": 0.2, "volumes": ["*"], "focus_weight": 1.0,
        "real_fraction": 1.0, "save_seconds": 60,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(1, 1, 31, 26)
    mask[..., ::3, :] = mask[..., 12:20, :] = 1
    model = ForwardModel(coil_maps((1, 4, 31, 26), generator), mask)
    kspace = model.forward(complex_noise((1, 31, 26), generator))
    zero_filled = model.adjoint(kspace)
    return Problem(model, kspace, zero_filled, torch.tensor([0.02]), 0.9 * zero_filled)


def test_scans_are_made_once_and_every_network_goes_on_with_them(prepared, problem, tmp_path):
    file = tmp_path / "run" / "scans.pt"
    made = controls.scans(RECIPE, prepared, file, 3)
    before = file.stat().st_mtime_ns
    again = controls.scans(RECIPE, prepared, file, 3)
    assert file.stat().st_mtime_ns == before and len(again) == 3
    assert all(torch.equal(one[key], other[key]) for one, other in zip(made, again) for key in one)
    images = []
    for arm in controls.ARMS:
        model, run = controls.trained(RECIPE, arm, again, tmp_path / "run", 1e-4)
        assert run.steps >= 1 and run.share == 1
        _, more = controls.trained(RECIPE, arm, again, tmp_path / "run", 1e-4)
        assert more.steps == run.steps
        assert model.config["conditioning"] == ("zero-filled" if arm == "zero-filled" else "cg-sense")
        images.append(controls.image_of(model, problem, "flair", 0.03))
        assert images[-1].shape == (31, 26) and bool(images[-1].isfinite().all())
    assert not torch.allclose(images[0], images[1]) and not torch.allclose(images[0], images[2])
    other = {**RECIPE, "train": {**RECIPE["train"], "seed": 4}}
    with pytest.raises(BadInputError, match="another recipe"):
        controls.scans(other, prepared, file, 3)


def test_the_zero_filled_network_sees_what_the_coils_combine_to(prepared, tmp_path):
    found = controls.scans(RECIPE, prepared, tmp_path / "scans.pt", 2)
    drawn = controls.examples(found, "zero-filled", 3)  # the second scan, and then the first
    for number in (1, 0):
        batch, label = next(drawn)
        assert torch.equal(batch.conventional, found[number]["zero_filled"])
        assert torch.equal(label, found[number]["label"])
        inside = batch.model.support
        assert torch.equal(batch.conventional * inside, batch.conventional)
