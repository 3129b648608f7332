"""Training on a few synthetic slices: recipes, the loop and what interrupts it, fine-tuning, and the way to a model."""

import csv
import inspect
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError, DpmreconError
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint
from dpmrecon.prior.denoiser import Denoiser
from dpmtrain.cli import main
from dpmtrain.data.dataset import PreparedSlices
from dpmtrain.train.batches import Batches
from dpmtrain.train.keeper import Start, read_start, read_state
from dpmtrain.train.muon import Muon, orthogonal
from dpmtrain.train.pretrain import completed, target_labels
from dpmtrain.train.recipe import ema_decay, learning_rate, read_recipe
from dpmtrain.train.train import Stopped, Trainer, denoising_loss, train

from support.paths import ROOT

RECIPES = ROOT / "training" / "recipes"
TRAIN = """
[train]
seed = 3
optimizer = "muon"
precision = "float32"
steps = 6
batch = 4
draws = 2
crops = [16, 24]
rate = 1e-3
warmup = 2
decay_fraction = 0.5
clip = 1.0
ema_half_life = 8
label_dropout = 0.25
p_mean = -1.2
p_std = 1.2
volumes = ["*"]
real_fraction = 1.0
focus_weight = 3.0
save_every = 2
sheet_every = 0
"""
PRETRAIN = (
    """
[model]
widths = [4, 6]
blocks = [1, 1]
embedding = 8
labels = ["flair", "t1", "t2", "dwi", "spare1"]
sigma_data = 0.25
"""
    + TRAIN
    + """
[sampling]
samples = 2
[sampling.prox]
steps = 10
[sampling.dps]
steps = 30
"""
)
FINETUNE = '[target]\nlabel = "site"\nslot = "spare1"\n' + TRAIN.replace('["*"]', '["*FLAIR"]')


@pytest.fixture
def recipe(tmp_path):
    return written(tmp_path / "recipe.toml", PRETRAIN)


@pytest.fixture(scope="module")
def straight(prepared, tmp_path_factory):
    """(run folder, averaged model) of the recipe, trained without interruption."""
    folder = tmp_path_factory.mktemp("straight")
    settings = read_recipe(written(folder / "recipe.toml", PRETRAIN))
    return folder / "run", train(settings, prepared, folder / "run", 1, device="cpu")


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def command(recipe: Path, prepared: Path, run: Path, *more: str, kind: str = "pretrain") -> list[str]:
    arguments = ["--data", prepared, "--run", run, "--out", run / "model.safetensors", "--device", "cpu"]
    return [kind, str(recipe), *map(str, arguments), "--threads", "1", *more]


def rows(run: Path) -> list[dict]:
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# --- recipes


@pytest.mark.parametrize("name", ["default", "paper", "wide", "wide_decay", "finetune"])
def test_the_recipes_in_the_tree_are_read(name):
    recipe = read_recipe(RECIPES / f"{name}.toml", "finetune" if name == "finetune" else "pretrain")
    assert recipe["train"]["steps"] > 100


def test_the_fine_tuning_recipe_keeps_a_quarter_of_the_pre_trained_weights():
    settings = read_recipe(RECIPES / "finetune.toml", "finetune")["train"]
    assert ema_decay(0, settings, random_start=False) ** settings["steps"] == pytest.approx(0.25)
    assert settings["rate"] == pytest.approx(read_recipe(RECIPES / "default.toml")["train"]["rate"] / 10, rel=0.5)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seed = 3\n", "", "missing seed"),
        ("seed = 3\n", "seed = 3\nspeed = 4\n", "unknown or missing speed"),
        ("[train]\n", "", "unknown or missing"),
        ("[train]\n", "[train\n", "cannot be read"),
        ("[model]\n", "[target]\n[model]\n", "unknown target"),
        ("batch = 4", "batch = 0", "batch is 0, give a whole number of 1 or more"),
        ("batch = 4", "batch = 4.5", "batch is 4.5, give a whole number"),
        ("rate = 1e-3", "rate = nan", "rate is nan, give a number of 1e-12 or more"),
        ("crops = [16, 24]", "crops = []", "crops is [], give a list of 1 or more entries"),
        ("crops = [16, 24]", "crops = [16, 0]", "crops is [16, 0], give whole numbers of 1 or more"),
        ('["*"]', "[1]", "volumes is [1], give texts"),
        ("clip = 1.0", "clip = 0", "clip is 0, give a number of 1e-12 or more"),
        ("label_dropout = 0.25", "label_dropout = 25", "label_dropout is 25, give a share of 1 at most"),
        ("real_fraction = 1.0", "real_fraction = 100", "real_fraction is 100, give a share of 1 at most"),
        ('"muon"', '"sgd"', "optimizer is 'sgd', give adam or muon"),
        ('"float32"', '"fp8"', "precision is 'fp8', give float32 or bf16"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, prepared, capsys, old, new, words):
    recipe = written(tmp_path / "recipe.toml", PRETRAIN.replace(old, new, 1))
    assert main(command(recipe, prepared, tmp_path / "run")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert str(recipe) in line


def test_volumes_that_the_recipe_takes_none_of_are_refused(prepared, recipe):
    settings = read_recipe(recipe)["train"]
    with pytest.raises(BadInputError, match="real_fraction = 0 takes none of the 3 volumes, which are real"):
        PreparedSlices(prepared, 0.0, settings["volumes"])


def test_the_rate_rises_stays_and_falls_to_nothing():
    settings = {"steps": 100, "rate": 2.0, "warmup": 10, "decay_fraction": 0.4}
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10:60] == [2.0] * 50
    assert rates[60:] == pytest.approx([2.0 * (100 - step) / 40 for step in range(60, 100)])
    assert learning_rate(99, {**settings, "decay_fraction": 0}) == 2.0


# --- the loop


def test_the_examples_of_a_step_do_not_depend_on_the_processes(prepared, recipe):
    settings, labels = read_recipe(recipe)["train"], ["flair", "t1", "t2"]
    for step in (0, 5):
        whole = Batches(prepared, settings, labels, None)[step]
        shares = [Batches(prepared, settings, labels, None, 2, rank)[step] for rank in (0, 1)]
        assert whole.clean.shape == (4, *2 * [settings["crops"][step % 2]])
        assert whole.noisy.shape == (4 * settings["draws"], *whole.clean.shape[1:])
        for tensor, one, other in zip(whole, *shares):
            assert torch.equal(tensor, torch.cat([one, other]))


def test_the_loss_is_that_of_each_draw_and_foci_count_more(prepared, recipe):
    """A network that answers nothing has the error |clean|^2, with the weight of each pixel."""
    settings = {**read_recipe(recipe)["train"], "batch": 3, "draws": 4, "focus_weight": 5.0, "crops": [48]}
    batches = (Batches(prepared, settings, ["t1"], None)[step] for step in range(40))
    batch = next(batch for batch in batches if batch.weight.max() > 1)
    nothing = denoising_loss(lambda noisy, sigma, label: torch.zeros_like(noisy), batch, 0.25)
    factor = ((batch.sigma**2 + 0.25**2) / (batch.sigma * 0.25) ** 2).reshape(3, 4).mean(1)
    assert set(batch.weight.unique().tolist()) == {1.0, 5.0}
    expected = (factor * (batch.weight * batch.clean.abs() ** 2).mean((1, 2)) / 2).mean()
    torch.testing.assert_close(nothing, expected)


def test_label_dropout_and_target(prepared, recipe):
    settings = {**read_recipe(recipe)["train"], "batch": 200, "crops": [8]}
    labels = Batches(prepared, settings, ["flair", "swi"], "swi")[0].label
    dropped = 1 - labels.sum(1)
    assert set(dropped.tolist()) == {0.0, 1.0}
    assert float(dropped.mean()) == pytest.approx(0.25, abs=0.1)  # three standard errors
    assert float(labels[:, 0].abs().max()) == 0


def test_the_average_is_what_one_step_makes_it(prepared, recipe):
    settings = read_recipe(recipe)
    model = Denoiser(settings["model"]).state_dict()
    start = Start("start", "0" * 64, settings["model"], model, model, None, None, {}, None)
    trainer = Trainer(settings, start, "cpu")
    trainer.step(3, Batches(prepared, settings["train"], settings["model"]["labels"], None)[3])
    decay = 0.5 ** (4 / 8)
    for name, value in trainer.ema.state_dict().items():
        expected = decay * model[name] + (1 - decay) * trainer.model.state_dict()[name]
        torch.testing.assert_close(value, expected, msg=name)
    # random weights are forgotten sooner
    assert ema_decay(0, settings["train"], random_start=True) == pytest.approx(0.1)


def test_training_lowers_the_loss(prepared, recipe, tmp_path):
    settings = read_recipe(recipe)
    settings["train"].update(steps=160, rate=5e-3, save_every=40, crops=[16])
    train(settings, prepared, tmp_path / "run", 1, device="cpu")
    losses = [float(row["loss"]) for row in rows(tmp_path / "run")]
    assert losses[-1] < 0.9 * losses[0]


def test_bf16_trains_about_as_float32_does(prepared, recipe, tmp_path, straight):
    settings = read_recipe(recipe)
    settings["train"]["precision"] = "bf16"
    train(settings, prepared, tmp_path / "run", 1, device="cpu")
    exact, rounded = ([float(row["loss"]) for row in rows(run)] for run in (straight[0], tmp_path / "run"))
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact


def test_a_diverging_run_ends_with_a_sentence(prepared, recipe, tmp_path):
    settings = read_recipe(recipe)
    settings["train"].update(rate=1e12, steps=40, warmup=1)
    with pytest.raises(DpmreconError, match="lower the rate"):
        train(settings, prepared, tmp_path / "run", 1, device="cpu")


@pytest.mark.parametrize("shape", [(5, 7), (31, 9), (9, 81), (1, 6), (12, 12)])
def test_muon_makes_its_matrix_orthogonal(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    matrix = left @ torch.diag(values.clamp_min(0.3 * float(values[0]))) @ right  # none too small for five iterations
    (found,) = orthogonal(matrix[None])
    assert found.shape == shape
    singular = torch.linalg.svdvals(found)
    assert 0.6 < float(singular.min()) <= float(singular.max()) < 1.3
    # the same singular vectors: U^T found V is diagonal
    core = left.T @ found @ right.T
    assert float((core - torch.diag(core.diagonal())).abs().max()) < 0.01
    torch.testing.assert_close(orthogonal(matrix.T[None])[0], found.T, atol=1e-4, rtol=0)


def test_a_step_of_muon_is_as_long_as_one_of_adam():
    weight = torch.nn.Parameter(torch.zeros(12, 5, 3, 3))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    Muon([weight], lr=0.5).step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.5, rel=0.25)


# --- what a run leaves, and what may go wrong


def test_pretrain_writes_a_checkpoint_with_its_card(prepared, recipe, tmp_path):
    run = tmp_path / "run"
    assert main(command(recipe, prepared, run)) == 0
    checkpoint = load_checkpoint(run / "model.safetensors")
    card = checkpoint.card
    assert card["sampling"]["prox"] == {"steps": 10}
    assert card["data"]["subjects"] == ["patient01", "patient03"]
    assert any("CC-BY" in source for source in card["data"]["sources"])
    assert card["history"] == {"images": 24, "start": "random weights"}
    assert_equal(checkpoint.denoiser.state_dict(), read_state(run / "state.pt")["ema"])
    assert [row["step"] for row in rows(run)] == ["2", "4", "6"]
    assert [row["images"] for row in rows(run)] == ["8", "16", "24"]
    assert (run / "sheets" / "step0000006.png").stat().st_size > 1000
    assert list((run / "tensorboard").glob("events*"))


def signalled(number: int, at: int):
    """Trainer.step, but at step `at` this process gets the signal first."""
    whole = Trainer.step

    def step(self, now, *rest):
        if now == at:
            os.kill(os.getpid(), number)
        return whole(self, now, *rest)

    return step


KILLED = f"""
import os, signal, sys
from dpmtrain.cli import main
from dpmtrain.train.train import Trainer
{inspect.getsource(signalled)}
Trainer.step = signalled(signal.SIGKILL, 11)
main(sys.argv[1:])
"""


def test_kill_9_loses_the_last_interval_and_the_rest_continues_bit_for_bit(prepared, tmp_path):
    text = PRETRAIN.replace("steps = 6", "steps = 16").replace("save_every = 2", "save_every = 4")
    recipe, run = written(tmp_path / "recipe.toml", text), tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", KILLED, *command(recipe, prepared, run)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_state(run / "state.pt")["step"] == 8
    assert [row["step"] for row in rows(run)] == ["4", "8"]
    settings = read_recipe(recipe)
    resumed = train(settings, prepared, run, 1, device="cpu", workers=1)  # a loader process changes no number
    uninterrupted = train(settings, prepared, tmp_path / "straight", 1, device="cpu")
    assert_equal(resumed.state_dict(), uninterrupted.state_dict())
    one, other = read_state(run / "state.pt"), read_state(tmp_path / "straight" / "state.pt")
    assert_equal(one["model"], other["model"])
    columns = ("step", "images", "loss", "rate")
    assert [[row[c] for c in columns] for row in rows(run)] == [
        [row[c] for c in columns] for row in rows(tmp_path / "straight")
    ]


def test_sigterm_saves_the_state_and_says_how_to_go_on(prepared, tmp_path, recipe, monkeypatch):
    settings = read_recipe(recipe)
    settings["train"].update(steps=40, save_every=20)
    run = tmp_path / "run"
    monkeypatch.setattr(Trainer, "step", signalled(signal.SIGTERM, 7))
    with pytest.raises(Stopped, match="stopped after step 9 of 40: .* goes on from there"):
        train(settings, prepared, run, 1, device="cpu")
    assert read_state(run / "state.pt")["step"] == 9  # step 7 of 0, 1, ... was at work: all are asked in the next one


def test_a_full_disk_keeps_the_last_state(prepared, recipe, tmp_path):
    run, settings = tmp_path / "run", read_recipe(recipe)
    settings["train"]["steps"] = 2
    train(settings, prepared, run, 1, device="cpu")
    before = (run / "state.pt").read_bytes()
    settings["train"]["steps"] = 4
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(DpmreconError, match="cannot be written.*what is done stays"):
            train(settings, prepared, run, 1, device="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (run / "state.pt").read_bytes() == before
    assert not list(run.glob("*.part"))
    train(settings, prepared, run, 1, device="cpu")
    assert read_state(run / "state.pt")["plans"] == [[0, 2], [2, 4]]


def test_a_model_that_cannot_be_written_is_said_and_the_state_is_kept(straight, prepared, recipe, tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    arguments = command(recipe, prepared, straight[0], "--out", str(tmp_path / "taken" / "model.safetensors"))
    assert main(arguments) == 2
    assert "cannot be written" in capsys.readouterr().err.splitlines()[-1]
    assert read_state(straight[0] / "state.pt")["step"] == 6


@pytest.mark.parametrize("damage", ["truncated", "other", "text"])
def test_a_damaged_state_is_named(straight, prepared, recipe, tmp_path, capsys, damage):
    run = tmp_path / "run"
    run.mkdir()
    whole = (straight[0] / "state.pt").read_bytes()
    if damage == "truncated":
        (run / "state.pt").write_bytes(whole[: len(whole) // 2])
    elif damage == "text":
        (run / "state.pt").write_text("a note\n")
    else:
        torch.save({"step": 3}, run / "state.pt")
    assert main(command(recipe, prepared, run)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(run / "state.pt") in line
    assert "Traceback" not in line


def test_a_state_of_another_recipe_is_not_gone_on_with(straight, prepared, recipe):
    settings = read_recipe(recipe)
    settings["train"]["rate"] = 2e-3
    with pytest.raises(BadInputError, match="rate is 0.001 there and 0.002 here"):
        train(settings, prepared, straight[0], 1, device="cpu")
    with pytest.raises(BadInputError, match="checksum"):
        train(read_recipe(recipe), prepared, straight[0], 1, read_start(straight[0]), device="cpu")


def test_a_state_of_other_volumes_is_not_gone_on_with(prepared, recipe, tmp_path):
    """A finished run was not trained on what had been added, and its card named it."""
    data, run, settings = tmp_path / "data", tmp_path / "run", read_recipe(recipe)
    settings["train"]["steps"] = 2
    shutil.copytree(prepared, data)
    train(settings, data, run, 1, device="cpu")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["volumes"].append({**manifest["volumes"][0], "file": "more_FLAIR.npy", "subject": "more"})
    shutil.copy(data / manifest["volumes"][0]["file"], data / "more_FLAIR.npy")
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInputError, match="is of other volumes than --data has now"):
        train(settings, data, run, 1, device="cpu")
    state = torch.load(run / "state.pt", weights_only=True)
    torch.save({name: value for name, value in state.items() if name != "data"}, run / "state.pt")
    train(settings, data, run, 1, device="cpu")  # a state of an earlier version


def test_a_state_of_volumes_of_the_same_name_and_size_is_not_gone_on_with(recipe, tmp_path):
    images, data, run, settings = tmp_path / "images", tmp_path / "data", tmp_path / "run", read_recipe(recipe)
    settings["train"]["steps"] = 2

    def prepare(seed):
        images.mkdir(exist_ok=True)
        volume = np.random.default_rng(seed).uniform(300, 900, (40, 44, 4)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([-0.7, -0.7, 3, 1])), images / "patient1_flair.nii.gz")
        assert main(["prepare", str(images), "--out", str(data), "--jobs", "1"]) == 0

    prepare(1)
    train(settings, data, run, 1, device="cpu")
    prepare(2)
    with pytest.raises(BadInputError, match="is of other volumes than --data has now"):
        train(settings, data, run, 1, device="cpu")


def test_two_processes_train_as_one_does(straight, prepared, recipe, tmp_path):
    run = tmp_path / "run"
    assert main(command(recipe, prepared, run, "--processes", "2")) == 0
    for row, expected in zip(rows(run), rows(straight[0])):
        assert float(row["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-4)
    for name, value in load_checkpoint(run / "model.safetensors").denoiser.state_dict().items():
        torch.testing.assert_close(value, straight[1].state_dict()[name], atol=1e-4, rtol=0, msg=name)


def test_a_batch_that_cannot_be_shared_is_refused(prepared, tmp_path, capfd):
    recipe = written(tmp_path / "recipe.toml", PRETRAIN.replace("batch = 4", "batch = 3"))
    assert main(command(recipe, prepared, tmp_path / "run", "--processes", "0")) == 2
    assert "--processes is 0: give 1 or more" in capfd.readouterr().err


# --- fine-tuning


def test_fine_tuning_goes_on_from_a_run_with_its_optimizer(straight, prepared, tmp_path):
    state = read_state(straight[0] / "state.pt")
    start = read_start(straight[0])
    recipe = completed(read_recipe(written(tmp_path / "r.toml", FINETUNE), "finetune"), start)
    assert recipe["model"]["labels"] == ["flair", "t1", "t2", "dwi", "site"]
    assert recipe["sampling"] == read_recipe(written(tmp_path / "p.toml", PRETRAIN))["sampling"]
    trainer = Trainer(recipe, start, "cpu")
    assert start.history["images"] == 24
    assert_equal(trainer.model.state_dict(), state["model"])
    assert_equal(trainer.ema.state_dict(), state["ema"])
    for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
        now = optimizer.state_dict()["state"]
        assert now.keys() == saved["state"].keys() != set()
        for number, values in saved["state"].items():
            assert_equal(now[number], values)


def test_fine_tuning_from_a_model_alone_says_that_the_optimizer_begins_afresh(straight, prepared, tmp_path):
    model = tmp_path / "model.safetensors"
    known = {"sources": ["open_ms, CC-BY"], "subjects": ["patient07"]}
    save_checkpoint(model, straight[1], {"history": {"images": 24}, "sampling": {"samples": 3}, "data": known})
    recipe, run = written(tmp_path / "r.toml", FINETUNE), tmp_path / "run"
    assert main(command(recipe, prepared, run, "--start", str(model), kind="finetune")) == 0
    tuned = load_checkpoint(run / "model.safetensors")
    assert tuned.card["model"]["labels"][4] == "site"
    assert tuned.card["sampling"] == {"samples": 3}
    history = tuned.card["history"]
    assert history["images"] == 24 + 24
    assert history["target"] == {"label": "site", "slot": "spare1"}
    assert history["start_checksum_sha256"] == load_checkpoint(model).card["checksum_sha256"]
    assert "begun afresh" in history["optimizer"]
    assert tuned.card["data"]["begun_with"] == [known] and "patient01" in tuned.card["data"]["subjects"]
    assert not torch.equal(tuned.denoiser.unet.head.weight, straight[1].unet.head.weight)
    # the run's folder is a start as well, whose optimizer goes on
    again = tmp_path / "again"
    more = ["--start", str(run)]
    recipe.write_text(FINETUNE.replace('slot = "spare1"', 'slot = "site"'))
    assert main(command(recipe, prepared, again, *more, kind="finetune")) == 0
    assert "gone on with" in load_checkpoint(again / "model.safetensors").card["history"]["optimizer"]


@pytest.mark.parametrize(
    ("label", "slot", "words"),
    [
        ("swi", "spare9", "no slot 'spare9': it has flair, t1, spare1"),
        ("swi", "t1", "'t1' is not free for 'swi'"),
        ("flair", "spare1", "a slot 'flair' already"),
        ("spare2", "spare1", "a slot 'spare2' already|another label"),
    ],
)
def test_a_slot_that_is_not_free_is_refused(label, slot, words):
    with pytest.raises(BadInputError, match=words):
        target_labels(["flair", "t1", "spare1"], label, slot)


def test_a_target_of_several_contrasts_is_refused(straight, prepared, tmp_path):
    recipe = written(tmp_path / "r.toml", FINETUNE.replace('["*FLAIR"]', '["*"]'))
    start = read_start(straight[0])
    with pytest.raises(BadInputError, match="the volumes are of flair, t2"):
        train(completed(read_recipe(recipe, "finetune"), start), prepared, tmp_path / "run", 1, start, device="cpu")


def test_a_target_of_another_contrast_is_refused(straight, prepared, tmp_path):
    """The recipe's label stayed, its volumes were others: T2 was learnt as FLAIR."""
    text = FINETUNE.replace('label = "site"\nslot = "spare1"', 'label = "flair"\nslot = "flair"')
    recipe = written(tmp_path / "r.toml", text.replace('["*FLAIR"]', '["*T2W"]'))
    start = read_start(straight[0])
    with pytest.raises(BadInputError, match="examples are to be 'flair', and the volumes are of t2"):
        train(completed(read_recipe(recipe, "finetune"), start), prepared, tmp_path / "run", 1, start, device="cpu")


def test_the_model_that_a_training_begins_with_stays(straight, prepared, tmp_path, capsys):
    model, recipe = tmp_path / "run" / "model.safetensors", written(tmp_path / "r.toml", FINETUNE)
    model.parent.mkdir()
    save_checkpoint(model, straight[1], {})
    before = model.read_bytes()
    assert main(command(recipe, prepared, model.parent, "--start", str(model), kind="finetune")) == 2
    assert "with which training begins and which would be lost" in capsys.readouterr().err
    assert model.read_bytes() == before


def test_the_model_that_ships_is_a_start():
    start = read_start(None)
    assert start.model_id.startswith("default-")
    assert start.optimizers_for("muon") is None
    assert "t1" in start.config["labels"]


def test_only_an_equal_network_can_be_gone_on_with(straight, recipe):
    settings = read_recipe(recipe)
    settings["model"]["widths"] = [4, 8]
    with pytest.raises(BadInputError, match="widths"):
        completed(settings, read_start(straight[0]))


@pytest.mark.parametrize("change", ["weights", "scale_rule"])
def test_a_start_that_is_damaged_or_follows_another_scale_rule_is_refused(straight, prepared, tmp_path, capsys, change):
    model = tmp_path / "model.safetensors"
    save_checkpoint(model, straight[1], {})
    if change == "weights":
        data = bytearray(model.read_bytes())
        data[-1] ^= 1
        model.write_bytes(bytes(data))
    else:
        card = json.loads(model.with_suffix(".json").read_text())
        model.with_suffix(".json").write_text(json.dumps({**card, "scale_rule": "the maximum is 1"}))
    recipe = written(tmp_path / "r.toml", FINETUNE)
    arguments = command(recipe, prepared, tmp_path / "run", "--start", str(model), kind="finetune")
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert {"weights": "checksum", "scale_rule": "scale rule 'the maximum is 1'"}[change] in line
    assert not (tmp_path / "run").exists()
