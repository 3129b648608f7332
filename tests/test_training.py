"""The training package on a few synthetic slices: data, loop, resume, and the way to a checkpoint."""

import json

import nibabel
import numpy as np
import pytest
import torch
from dpmrecon.checkpoint import load_checkpoint
from dpmrecon.scale import image_scale
from dpmtrain import labelmaps, train
from dpmtrain.cli import main
from dpmtrain.dataset import PreparedSlices, random_phase
from dpmtrain.validation import HELD_OUT, acquire

RECIPE = """
[model]
widths = [4, 6]
blocks = [1, 1]
embedding = 8
labels = ["flair", "t1", "t2", "dwi", "swi"]
sigma_data = 0.25
[train]
seed = 3
steps = 6
batch = 2
crops = [16, 24]
rate = 1e-3
warmup = 2
decay_fraction = 0.5
clip = 1.0
ema_half_life = 2
label_dropout = 0.1
p_mean = -1.2
p_std = 1.2
real_fraction = 0.5
save_every = 3
[sampling]
samples = 2
[sampling.prox]
steps = 10
[sampling.dps]
steps = 30
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder like the open data: two patients, one of them held out, one label map with oblique axes."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    inside = np.hypot(*np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 44), indexing="ij")) < 0.8
    for patient, name in (("patient01", "study1_FLAIR"), ("patient01", "study1_T2W"), ("patient12", "study1_FLAIR")):
        (folder / "open_ms" / patient).mkdir(parents=True, exist_ok=True)
        volume = (rng.uniform(300, 900, (40, 44, 5)) * inside[..., None]).astype(np.uint16)
        volume[..., -1] = 0  # an empty slice at the end of the volume
        image = nibabel.Nifti1Image(volume, np.diag([-0.7, -0.7, 3, 1]))
        nibabel.save(image, folder / "open_ms" / patient / f"{name}.nii.gz")
    (folder / "synthseg_labels").mkdir()
    labels = np.zeros((48, 48, 48), np.int32)
    labels[4:44, 4:44, 4:44] = 507
    labels[10:38, 10:38, 10:38] = 3
    labels[14:34, 14:34, 14:34] = 2
    labels[20:28, 20:28, 20:28] = 4
    image = nibabel.Nifti1Image(labels, np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]]))
    nibabel.save(image, folder / "synthseg_labels" / "training_seg_01.nii.gz")
    return folder


@pytest.fixture(scope="module")
def prepared(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    assert main(["prepare", str(images), "--out", str(folder), "--slices", "3"]) == 0
    return folder


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_prepare_holds_the_test_patient_back_and_scales_each_slice(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    subjects = {volume["subject"] for volume in manifest["volumes"]}
    assert subjects == {"patient01", "training_seg_01"}
    assert "patient12" in HELD_OUT
    assert "patient12" in manifest["exclude"]
    for volume in manifest["volumes"]:
        slices = np.load(prepared / volume["file"])
        assert list(slices.shape) == list(volume["shape"])
        for image in slices.astype(np.float32):
            assert image_scale(torch.from_numpy(image)) == pytest.approx(1, rel=2e-3)
    real = next(volume for volume in manifest["volumes"] if volume["subject"] == "patient01")
    assert real["shape"][0] == 4  # the empty slice is dropped


def test_examples_are_reproducible_crops_at_the_scale(prepared):
    slices = PreparedSlices(prepared, real_fraction=0.5)
    assert float(slices.weights.sum()) == pytest.approx(1)
    for crop in (16, 24):
        image, contrast = slices.example(crop, torch.Generator().manual_seed(crop))
        again, _ = slices.example(crop, torch.Generator().manual_seed(crop))
        assert image.shape == (crop, crop)
        assert torch.equal(image, again)
        assert contrast in ("flair", "t1", "t2", "dwi", "swi")
        assert 0.3 < float(image.abs().max()) < 10


def test_phase_is_smooth_and_has_magnitude_one():
    phase = random_phase((40, 33), 1.0, torch.Generator().manual_seed(0))
    assert torch.allclose(phase.abs(), torch.ones(40, 33), atol=1e-5)
    steps = torch.angle(phase[1:] * phase[:-1].conj()).abs()
    assert float(steps.max()) < 1.0


def test_an_interrupted_run_continues_bit_for_bit(prepared, recipe, tmp_path, monkeypatch):
    settings = train.read_recipe(recipe)
    straight = train.train(settings, prepared, tmp_path / "a", threads=1)
    step_loss, calls = train.step_loss, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step_loss(*arguments)

    monkeypatch.setattr(train, "step_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train(settings, prepared, tmp_path / "b", threads=1)
    resumed = train.train(settings, prepared, tmp_path / "b", threads=1)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_training_lowers_the_loss(prepared, recipe, tmp_path):
    settings = train.read_recipe(recipe)
    settings["train"].update(steps=150, rate=5e-3, batch=4, save_every=50)
    train.train(settings, prepared, tmp_path / "run", threads=1)
    losses = [float(line.split(",")[1]) for line in (tmp_path / "run/log.csv").read_text().splitlines()]
    assert losses[-1] < 0.9 * losses[0]


def test_pretrain_writes_a_checkpoint_with_its_card(prepared, recipe, tmp_path):
    out = tmp_path / "model.safetensors"
    arguments = ["pretrain", str(recipe), "--data", str(prepared), "--run", str(tmp_path / "run"), "--out", str(out)]
    assert main([*arguments, "--threads", "1"]) == 0
    card = load_checkpoint(out).card
    assert card["sampling"]["prox"] == {"steps": 10}
    assert card["data"]["subjects"] == ["patient01", "training_seg_01"]
    assert any("CC-BY" in source for source in card["data"]["sources"])


@pytest.mark.parametrize(
    ("change", "words"),
    [("seed = 3\n", "missing seed"), ("[train]\n", "cannot be read|unknown or missing")],
)
def test_a_wrong_recipe_is_refused(recipe, tmp_path, prepared, capsys, change, words):
    recipe.write_text(RECIPE.replace(change, ""))
    arguments = ["pretrain", str(recipe), "--data", str(prepared), "--run", str(tmp_path), "--out", "x.safetensors"]
    assert main(arguments) == 2
    assert "recipe" in capsys.readouterr().err


def test_simulated_contrasts_have_the_right_order(images):
    labels = np.asarray(nibabel.load(images / "synthseg_labels/training_seg_01.nii.gz").dataobj).astype(np.int16)
    means = {}
    for contrast in ("t1", "t2", "flair"):
        volume = labelmaps.simulate(labels, contrast, np.random.default_rng(1))
        means[contrast] = {tissue: np.median(volume[labels == tissue]) for tissue in (2, 3, 4)}
    white, grey, fluid = 2, 3, 4
    assert means["t1"][white] > means["t1"][grey] > means["t1"][fluid]
    assert means["t2"][fluid] > means["t2"][grey] > means["t2"][white]
    assert means["flair"][grey] > means["flair"][fluid]


def test_validation_scan_has_the_noise_and_truth_it_claims():
    magnitude = torch.zeros(40, 36)
    magnitude[8:32, 8:28] = 3.0
    data, truth = acquire(magnitude, 0.05, 2, 12, torch.Generator().manual_seed(0))
    assert truth.max() == pytest.approx(1, rel=1e-3)
    assert data.calibration.shape == (8, 12, 36)
    clean, _ = acquire(magnitude, 0.0, 2, 12, torch.Generator().manual_seed(0))
    noise = torch.view_as_real(data.kspace - clean.kspace)[:, data.mask > 0]
    assert float(noise.std()) == pytest.approx(0.05, rel=0.03)
