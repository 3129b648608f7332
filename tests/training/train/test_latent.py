"""Training of a latent model: two steps of each stage, one after the other, on tiny sizes; what is refused."""

import json

import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmtrain.cli import main
from dpmtrain.train import scans
from dpmtrain.train.crop_pool import AT_ONCE, RENEWED, CropPool
from dpmtrain.train.latent import psnr, train_stage
from dpmtrain.train.latent_recipe import KEYS, read_latent_recipe
from dpmtrain.train.recipe import timed_factor

from support.latent import CONFIG
from support.paths import ROOT

CPU = torch.device("cpu")
TRAIN = {
    "seed": 1, "precision": "float32", "batch": 2, "crop": 32, "pool": 12, "rate": 1e-3, "warmup": 1,
    "decay_fraction": 0.5, "clip": 1.0, "volumes": ["some*"], "held_back": ["other*"], "real_fraction": 1.0,
    "save_seconds": 0, "draws": 2, "label_dropout": 0.5, "time_power": 2.0, "l1": 1.0, "log_rms": 0.05,
    "perceptual": 0.2, "kl": 1e-6, "adversarial": 0.1, "adversarial_from": 0.4,
}  # fmt: skip
SWIN = {"labels": ["t1"], "embed_dim": 6, "depths": [1], "num_heads": [2], "window_size": 8, "mlp_ratio": 2.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two prepared volumes of a smooth blob, uneven in size."""
    folder, shape = tmp_path_factory.mktemp("prepared"), (3, 41, 36)
    rows, cols = np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-1, 1, 36), indexing="ij")
    blob = np.exp(-3 * (rows**2 + cols**2)) * np.ones((3, 1, 1))
    volumes = []
    for name in ("some", "other"):
        np.save(folder / f"{name}.npy", blob.astype(np.float16))
        volumes.append(
            {
                "file": f"{name}.npy",
                "contrast": "t1",
                "simulated": False,
                "spans": [[0, 3]],
                "shape": list(shape),
                "voxel_mm": [5.0, 1.0, 1.0],
                "source": "made up",
                "licence": "none",
                "subject": name,
            }  # fmt: skip
        )
    (folder / "manifest.json").write_text(json.dumps({"volumes": volumes}))
    return folder


def recipe(folder, stage, **changes):
    """A recipe's file."""
    text = [f'stage = "{stage}"', "[train]"]
    text += [f"{key} = {json.dumps(value)}" for key, value in {**TRAIN, **changes}.items() if key in KEYS[stage]]
    if stage in ("autoencoder", "sketcher"):
        model = SWIN if stage == "sketcher" else CONFIG
        text.append("[model]")
        text += [f"{key} = {json.dumps(value)}" for key, value in model.items() if not isinstance(value, dict)]
        for table, values in model.items():
            if isinstance(values, dict):
                text += [f"[model.{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    if stage == "control":
        text += ["[sampling]", "samples = 1", "[sampling.latent]", "steps = 7"]
    path = folder / f"{stage}.toml"
    path.write_text("\n".join(text))
    return path


def ticking():
    """A clock that a second passes on at each look."""
    now = iter(range(10_000))
    return lambda: float(next(now))


def run(folder, data, stage, start=None, seconds=2.0):
    """So many steps as seconds: one look at the clock a step."""
    out = folder / f"{stage}.safetensors"
    train_stage(recipe(folder, stage), data, folder / stage, out, start, seconds / 60, CPU, 0, ticking())
    return out


def rows(folder):
    return (folder / "log.csv").read_text().splitlines()


def test_a_volume_that_is_held_back_is_not_trained_on(tmp_path, data):
    """The round trip was measured on it all the same."""
    path = recipe(tmp_path, "autoencoder", volumes=["*"])
    with pytest.raises(BadInputError, match="other is of volumes and held_back: leave it out of one of them"):
        train_stage(path, data, tmp_path, tmp_path / "m.safetensors", None, 1.0, CPU, 0)


def test_two_steps_of_each_stage_and_then_two_more(tmp_path, data, capsys):
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e .[latent]")
    before = run(tmp_path, data, "autoencoder")
    assert len(rows(tmp_path / "autoencoder")) == 2 and "discriminator" in rows(tmp_path / "autoencoder")[-1]
    assert "round trip of 16 crops of held-back volumes: PSNR" in capsys.readouterr().out
    trained = {"denoiser": "unet", "control": "controlnet"}
    for stage, part in trained.items():
        after = run(tmp_path, data, stage, before)
        old, new = (load_checkpoint(path).model.state_dict() for path in (before, after))
        changed = {name.partition(".")[0] for name in old if not torch.equal(old[name], new[name])}
        own = {"mean", "std", "prompt"} if stage == "denoiser" else set()
        assert part in changed and changed <= {part} | own, changed
        before = after
    card = load_checkpoint(before).card
    assert card["sampling"]["latent"] == {"steps": 7} and card["history"]["start"]["start"]["stage"] == "autoencoder"
    assert card["data"]["subjects"] == ["some"] and card["steps"] == card["history"]["start"]["steps"] == 2
    run(tmp_path, data, "control", tmp_path / "denoiser.safetensors", seconds=4.0)
    assert [row.split(",")[1] for row in rows(tmp_path / "control")] == ["1", "2", "3", "4"]


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # in spandrel
def test_two_steps_of_the_sketcher(tmp_path, data):
    pytest.importorskip("spandrel", reason="spandrel is not installed: pip install -e .[sketcher]")
    out = run(tmp_path, data, "sketcher")
    assert out.is_file() and len(rows(tmp_path / "sketcher")) == 2


def test_a_stage_without_its_start_or_with_another_recipes_state_is_refused(tmp_path, data, capsys):
    with pytest.raises(BadInputError, match="stage denoiser needs --start"):
        run(tmp_path, data, "denoiser")
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e .[latent]")
    run(tmp_path, data, "autoencoder", seconds=1.0)
    other = recipe(tmp_path, "autoencoder", seed=2)
    arguments = ["latent", str(other), "--data", str(data), "--run", str(tmp_path / "autoencoder"), "--minutes", "1"]
    assert main([*arguments, "--device", "cpu", "--out", str(tmp_path / "a.safetensors")]) == 2
    assert (
        "is of another recipe (seed is 1 there and 2 here): take that recipe, or another --run"
        in capsys.readouterr().err
    )
    (tmp_path / "autoencoder" / "autoencoder.pt").write_bytes(b"torn")
    with pytest.raises(BadInputError, match="cannot be read .* remove it to begin anew"):
        run(tmp_path, data, "autoencoder")


@pytest.mark.parametrize("stage", KEYS)
def test_the_recipes_can_be_read_and_a_wrong_one_is_refused(stage, tmp_path):
    assert read_latent_recipe(ROOT / f"training/recipes/latent_{stage}.toml")["stage"] == stage
    path = recipe(tmp_path, stage, batch=0)
    with pytest.raises(BadInputError, match="batch is 0, give a whole number of 1 or more"):
        read_latent_recipe(path)
    path.write_text(path.read_text().replace("batch", "bach"))
    with pytest.raises(BadInputError, match="unknown or missing bach, batch"):
        read_latent_recipe(path)
    path.write_text('stage = "other"')
    with pytest.raises(BadInputError, match="stage is 'other', give one of sketcher, autoencoder"):
        read_latent_recipe(path)


def test_the_rate_rises_and_falls_to_zero():
    settings = {"warmup": 4, "decay_fraction": 0.5}
    found = [timed_factor(share, step, settings) for share, step in ((0, 0), (0.1, 3), (0.5, 99), (0.75, 99), (1, 99))]
    assert found == [0.25, 1.0, 1.0, 0.5, 0.0]


def test_the_pool_keeps_the_newest_crops_and_tells_their_contrasts(data):
    torch.manual_seed(0)
    pool = CropPool(data, TRAIN, ["t2", "t1"], CPU, 0, "seed")
    assert pool.taken == 8 and pool.classes.tolist() == [1] * 8 + [2] * 4
    images, classes = pool.draw(5)
    assert images.shape == (5, 32, 32) and set(classes.tolist()) == {1} and pool.taken == 16
    assert pool.images.abs().amax((1, 2)).min() > 0  # the ring is full
    for _ in range(RENEWED):
        pool.draw(2)
    assert pool.taken == 16 + AT_ONCE
    with pytest.raises(BadInputError, match="none of the volumes"):
        CropPool(data, {**TRAIN, "volumes": ["nobody*"]}, ["t1"], CPU, 0, "seed")


def test_scans_of_crops_are_those_of_unit_coils_and_their_sketch_is_near():
    torch.manual_seed(0)
    maps = scans.coil_maps(3, 33, CPU)
    torch.testing.assert_close(maps.abs().square().sum(1), torch.ones(3, 33, 33))
    line = torch.linspace(-1, 1, 32)
    images = torch.exp(-4 * (line[:, None] ** 2 + line**2)).to(torch.complex64).expand(3, -1, -1)
    problem = scans.scanned(images)
    assert problem.zero_filled.shape == problem.start.shape == images.shape and problem.sigma_n.shape == (3,)
    mask = problem.model.mask
    assert bool((mask == mask[:, :1]).all()) and 0 < mask.mean() < 1
    assert problem.kspace[..., mask == 0].abs().max() == 0
    assert (scans.sketches(images, ["t1"] * 3, None) - images).norm() < 0.5 * images.norm()


def test_psnr_is_in_db_of_the_99_9th_percentile():
    truth = torch.full((20, 50), 2.0, dtype=torch.complex64)
    assert psnr(truth + 0.02j, truth) == pytest.approx(40.0, abs=1e-3)
