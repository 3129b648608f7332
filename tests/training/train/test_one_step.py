"""Training of the one-step network: examples, targets of distillation, and runs that go on."""

import csv
import inspect
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from itertools import count

import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.physics.cg_sense import cg_sense as one_slice
from dpmrecon.physics.forward import ForwardModel
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dpmrecon.prior.conditional import RESIDUAL, ConditionalDenoiser, ddim_step, signal_and_noise
from dpmrecon.prior.denoiser import Denoiser, complex_noise
from dpmtrain.cli import main
from dpmtrain.data.masks import FAMILIES, _plane, _rows, drawn_mask
from dpmtrain.train import scan_runs
from dpmtrain.train.keeper import read_tensors
from dpmtrain.train.one_step import begin_with, distilled_target, velocity_loss
from dpmtrain.train.recipe import read_recipe
from dpmtrain.train.refiner import refiner_loss, together_loss, with_refiner
from dpmtrain.train.scan_runs import CropBatches, ScanStage
from dpmtrain.train.timed import TimedRun
from dpmtrain.train.undersampled import cg_sense, coil_maps, head, undersampled, with_errors

from support.paths import ROOT
from support.recipes import TIMED

MODEL = """
[model]
widths = [4, 6]
blocks = [1, 1]
embedding = 8
labels = ["flair", "t1", "t2"]
conditioning = "CONDITIONING"
"""
SAMPLING = """
[sampling]
samples = 1
[sampling.one-step]
error = 0.05
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text((MODEL + TIMED + SAMPLING).replace("CONDITIONING", "cg-sense"))
    return path


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("side", [48, 61])
def test_masks_hold_the_centre_and_leave_out_about_what_they_should(side):
    rng = np.random.default_rng(1)
    masks = [drawn_mask(side, rng) for _ in range(80)]
    assert all(mask.shape == (side, side) and mask[side // 2, side // 2] for mask in masks)
    net = [1 / mask.mean() for mask in masks]
    assert min(net) > 1.2 and max(net) < 16 and np.median(net) > 2
    for family in FAMILIES:
        draw = _rows if family in ("regular", "random", "gaussian") else _plane
        found = [1 / draw(family, side, 4.0, rng).mean() for _ in range(20)]
        assert 3 < np.mean(found) < 5.5, family


def test_coils_have_unit_sum_of_squares_and_errors_keep_it():
    maps = coil_maps((2, 5, 23, 31), generator())
    for found in (maps, with_errors(maps, generator(1))):
        assert torch.allclose(found.abs().square().sum(1), torch.ones(2, 23, 31), atol=1e-5)
    relative = (with_errors(maps, generator(1)) - maps).abs().max()
    assert 0 < float(relative) < 0.2


def test_the_conventional_image_is_the_products():
    maps = coil_maps((2, 6, 40, 32), generator())
    mask = torch.zeros(2, 1, 40, 32)
    mask[0, 0, ::2] = mask[1, 0, ::3] = mask[:, 0, 16:24] = 1
    image = complex_noise((2, 40, 32), generator(2))
    model = ForwardModel(maps, mask)
    zero_filled = model.adjoint(model.forward(image))
    sigma_n = torch.tensor([0.1, 0.05])
    found = cg_sense(model, zero_filled, sigma_n)
    for number in range(2):
        alone = ForwardModel(maps[number], mask[number, 0])
        expected = one_slice(alone, zero_filled[number], float(sigma_n[number]), 1.0)
        assert float((found[number] - expected).norm() / expected.norm()) < 0.03  # half of its iterations


@pytest.mark.parametrize("conditioning", ["cg-sense", "zero-filled"])
def test_a_scan_of_a_crop(conditioning):
    disc = (torch.linspace(-1, 1, 45)[:, None].square() + torch.linspace(-1, 1, 45).square() < 0.4).float()
    clean = torch.polar(disc, 0.3 * disc).expand(3, -1, -1)
    mask = torch.ones(3, 45, 45)
    mask[1, 1::2] = 0
    weight = 1 + 4 * disc.expand(3, -1, -1)
    found = undersampled(clean, weight, mask, conditioning, generator(4))
    assert torch.equal(found.weight, weight)
    assert torch.allclose(found.acceleration, torch.tensor([1.0, 45 / 23, 1.0]))
    assert bool(((found.sigma_n > 0.003) & (found.sigma_n < 0.12)).all())
    assert torch.equal(found.clean, clean)  # the head is inside the support
    assert float((found.conventional[0] - clean[0]).norm() / clean[0].norm()) < 0.6
    inside = head(clean, generator(4))
    assert float(inside.mean()) < 1 and bool((inside * disc == disc).all())


def gaussian(noisy, now):
    """v of z ~ N(.4, .3^2)."""
    alpha, sigma = (value.view(-1, 1, 1) for value in signal_and_noise(now))
    total = alpha**2 * 0.09 + sigma**2
    clean = 0.4 + alpha * 0.09 / total * (noisy - alpha * 0.4)
    return alpha * (noisy - alpha * clean) / sigma - sigma * clean


@pytest.mark.parametrize("substeps", [1, 2, 4])
def test_one_step_of_the_student_ends_where_the_teachers_end(substeps):
    """Salimans and Ho: with the target as its clean image, DDIM over the whole length lands on the same z."""
    noisy = complex_noise((3, 5, 7), generator(5))
    begin, length = torch.tensor([1.0, 0.75, 0.5]), 0.25
    target = distilled_target(gaussian, noisy, begin, length, substeps)
    current, now = noisy, begin
    for number in range(substeps):
        following = begin - length * (number + 1) / substeps
        current, now = ddim_step(current, gaussian(current, now), now, following), following
    alpha, sigma = (value.view(-1, 1, 1) for value in signal_and_noise(begin))
    landed = ddim_step(noisy, (alpha * noisy - target) / sigma, begin, begin - length)
    assert torch.allclose(landed, current, atol=1e-5)
    if substeps == 1:  # its own clean image
        assert torch.allclose(target, alpha * noisy - sigma * gaussian(noisy, begin), atol=1e-5)


def test_the_last_halving_has_the_teachers_image_as_its_target():
    noisy, ones = complex_noise((2, 4, 4), generator(6)), torch.ones(2)
    target = distilled_target(gaussian, noisy, ones, 1.0, 2)
    half = ddim_step(noisy, gaussian(noisy, ones), ones, 0.5 * ones)
    assert torch.allclose(target, ddim_step(half, gaussian(half, 0.5 * ones), 0.5 * ones, 0 * ones), atol=1e-5)


def test_examples_count_by_their_residual():
    residual = torch.stack([torch.full((4, 4), 2 + 0j), torch.full((4, 4), 0.02 + 0j)])
    error = 0.1 * residual
    expected = 0.5 * sum(0.005 * size**2 / (size**2 / 2 + 0.01) for size in (2, 0.02))
    none, ones = torch.zeros_like(error), torch.ones(2, 4, 4)
    assert float(velocity_loss(error, none, residual, ones)) == pytest.approx(expected, rel=1e-4)
    ones[:, 1, 2] = 5  # a sixteenth of the pixels
    assert float(velocity_loss(error, none, residual, ones)) == pytest.approx(expected * 20 / 16, rel=1e-4)


def test_painted_foci_count_more_in_every_draw_of_a_crop(prepared, recipe):
    settings = {**read_recipe(recipe, "one-step")["train"], "focus_weight": 5.0, "crops": [48]}
    batches = (CropBatches(prepared, settings, ["t1"], None)[step] for step in range(40))
    crops = next(crops for crops in batches if crops.weight.max() > 1)
    assert set(crops.weight.unique().tolist()) == {1.0, 5.0} and crops.weight.shape == crops.clean.shape
    for drawn in (crops.clean, crops.weight):
        assert torch.equal(drawn[::2], drawn[1::2])  # draws of one crop


def test_a_denoiser_to_begin_with_takes_the_conventional_image_for_a_noisy_one():
    torch.manual_seed(0)
    common = {"widths": [4, 6], "blocks": [1, 1], "embedding": 8, "labels": ["t1"]}
    denoiser, model = (
        Denoiser({**common, "sigma_data": 0.25}),
        ConditionalDenoiser({**common, "conditioning": "cg-sense"}),
    )
    torch.nn.init.normal_(denoiser.unet.head.weight)
    begin_with(model, denoiser)
    image, ones, label = complex_noise((1, 9, 12), generator(7)), torch.ones(1), torch.ones(1, 1)
    sigma, total = 0.05 * ones, (0.05**2 + 0.25**2) ** 0.5
    found = model(complex_noise((1, 9, 12), generator(8)), ones, image, 4 * ones, sigma, label)
    skipped = denoiser(total / 0.25 * image, sigma, label) - 0.25**2 / total**2 * total / 0.25 * image
    assert torch.allclose(found, -skipped / (0.05 * 0.25 / total) * 0.05 / RESIDUAL, atol=1e-5)
    with pytest.raises(BadInputError, match="other widths"):
        begin_with(model, Denoiser({**common, "widths": [4, 8], "sigma_data": 0.25}))


def arguments(recipe, prepared, out, *more):
    return [str(recipe), *more, "--data", str(prepared), "--run", str(out.with_suffix("")), "--out", str(out),
            "--device", "cpu", "--threads", "1"]  # fmt: skip


def test_from_slices_to_a_student_and_on_after_a_stop(prepared, recipe, tmp_path, capsys):
    teacher, twin, student = (tmp_path / f"{name}.safetensors" for name in ("teacher", "twin", "student"))
    minutes = ("--minutes", "0.01")
    assert main(["one-step", *arguments(recipe, prepared, teacher, "teacher", *minutes)]) == 0
    assert main(["one-step", *arguments(recipe, prepared, twin, "regression", *minutes)]) == 0
    assert load_checkpoint(twin).card["sampling"]["one-step"] == {"error": 0.05, "noise_scale": 0.0}
    distil = ["distil", *arguments(recipe, prepared, student, "--start", str(teacher), "--minutes", "0.02"),
              "--evaluations", "4,1"]  # fmt: skip
    assert main(distil) == 0
    card = load_checkpoint(student).card
    assert card["data"]["begun_with"] == [load_checkpoint(teacher).card["data"]]
    assert card["sampling"]["one-step"]["steps"] == 1 and card["kind"] == "one-step"
    assert load_checkpoint(tmp_path / "student_4.safetensors").card["sampling"]["one-step"]["steps"] == 4
    with (tmp_path / "student" / "log.csv").open() as file:
        before = list(csv.reader(file))
    assert {row[0] for row in before} == {"student_4", "student_1"}
    weights = student.read_bytes()
    (tmp_path / "student" / "student_1.pt").unlink()  # killed in the second stage, before its first state
    assert main(distil) == 0
    with (tmp_path / "student" / "log.csv").open() as file:
        assert [row[0] for row in csv.reader(file)][len(before) :] == ["student_1"]
    assert main(distil) == 0  # all is done: the weights are those
    assert student.read_bytes() != weights and load_checkpoint(student).card["sampling"]["one-step"]["steps"] == 1
    (tmp_path / "student" / "student_4.pt").write_bytes(b"half a file")
    assert main(distil) == 2 and "student_4.pt cannot be read" in capsys.readouterr().err


def test_a_refiner_is_trained_after_a_network_that_stays(prepared, recipe, tmp_path, capsys):
    twin, refined, again = (tmp_path / f"{name}.safetensors" for name in ("twin", "refined", "again"))
    assert main(["one-step", *arguments(recipe, prepared, twin, "regression", "--minutes", "0.001")]) == 0
    recipe.write_text(recipe.read_text().replace("widths = [4, 6]", "widths = [6, 4]"))

    def trained(model, out):
        return main(["one-step", *arguments(recipe, prepared, out, "refiner", "--minutes", "0.02"), "--refine", model])

    assert trained(str(twin), refined) == 0
    before, after = (load_checkpoint(path).model.state_dict() for path in (twin, refined))
    assert all(value.numpy().tobytes() == after[name].numpy().tobytes() for name, value in before.items())
    assert after["refiner.head.weight"].abs().max() > 0  # where it begins
    card = load_checkpoint(refined).card
    assert card["data"]["subjects"] == ["patient01", "patient03"] and "CC-BY" in card["data"]["licences"]
    assert card["data"]["begun_with"] == [load_checkpoint(twin).card["data"]]
    assert card["model"]["refiner"] == {"widths": [6, 4], "blocks": [1, 1], "embedding": 8}
    assert card["history"].startswith("refiner: ") and "twin-" in card["history"]
    assert trained(str(refined), again) == 0 and "refined-" in load_checkpoint(again).card["history"]
    for model, words in (("default", "is of another kind than one-step"), ("one-step", "--refine has labels")):
        assert trained(model, again) == 2
        assert words in capsys.readouterr().err
    assert main(["one-step", *arguments(recipe, prepared, again, "refiner", "--minutes", "1")]) == 2
    assert "the stages refiner and together need --refine" in capsys.readouterr().err


def test_a_network_and_its_refiner_are_trained_on_together(prepared, recipe, tmp_path, capsys):
    twin, refined, both = (tmp_path / f"{name}.safetensors" for name in ("twin", "refined", "both"))
    minutes = ("--minutes", "0.02")
    assert main(["one-step", *arguments(recipe, prepared, twin, "regression", *minutes)]) == 0
    assert main(["one-step", *arguments(recipe, prepared, refined, "refiner", *minutes), "--refine", str(twin)]) == 0
    together = ["one-step", *arguments(recipe, prepared, both, "together", *minutes), "--refine"]
    assert main([*together, str(refined)]) == 0
    before, after = (load_checkpoint(path) for path in (refined, both))
    moved = {
        name.partition(".")[0]
        for name, value in before.model.state_dict().items()
        if not value.equal(after.model.state_dict()[name])
    }
    assert moved == {"network", "refiner"} and before.model.config == after.model.config
    assert after.card["history"].startswith("together: ") and f"from {before.model_id}" in after.card["history"]
    assert main([*together, str(refined), "--keep", "0.25"]) == 0  # of the same training
    kept = load_checkpoint(both)
    for name, value in kept.model.state_dict().items():
        trained, begun = after.model.state_dict()[name], before.model.state_dict()[name]
        assert torch.allclose(value, 0.75 * trained + 0.25 * begun, atol=1e-6)
    assert "0.25 are kept" in kept.card["history"] and kept.model_id != after.model_id
    assert main([*together, str(refined), "--keep", "1"]) == 2 and "and below 1" in capsys.readouterr().err
    assert main([*together, str(twin)]) == 2 and "has no refiner" in capsys.readouterr().err
    assert main([*together, str(refined), "--start", str(twin)]) == 2 and "leave out --start" in capsys.readouterr().err
    recipe.write_text(recipe.read_text().replace("widths = [4, 6]", "widths = [6, 4]"))
    assert main([*together, str(refined)]) == 2 and "no network of the recipe's [model]" in capsys.readouterr().err


@pytest.fixture
def two_networks():
    """A one-step network with a refiner that begins as the identity, a batch and its label."""
    config = {"widths": [4, 6], "blocks": [1, 1], "embedding": 8, "labels": ["t1"], "conditioning": "cg-sense"}
    torch.manual_seed(0)
    one = ConditionalDenoiser(config)
    torch.nn.init.normal_(one.network.head.weight, std=0.05)
    model = with_refiner(Checkpoint(one, {}, "one"), ConditionalDenoiser(config))
    clean, mask = torch.polar(torch.ones(2, 33, 28), 0 * torch.ones(2, 33, 28)), torch.ones(2, 33, 28)
    mask[:, ::2, 2:] = 0
    found = undersampled(clean, torch.ones(2, 33, 28), mask, "cg-sense", generator(1))
    return model, found, torch.ones(2, 1)


def test_the_refiner_starts_as_the_identity_and_its_loss_teaches_it_alone(two_networks):
    model, batch, label = two_networks
    image, ones = complex_noise((2, 9, 12), generator(7)), torch.ones(2)
    assert not model.refine(image, ones, image, 4 * ones, 0.1 * ones, label).abs().any()
    loss = refiner_loss(model, batch, label, generator(2))
    loss.backward()
    assert 0 < loss.item() < 1  # the identity leaves the error that it is measured by
    assert all(value.grad is None for value in model.network.parameters())
    assert model.refiner.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["network", "refiner"])
def test_together_both_are_taught_through_both_proximal_steps(two_networks, name):
    """The gradient is the loss's own, by central differences along it."""
    model, batch, label = two_networks
    torch.nn.init.normal_(model.refiner.head.weight, std=0.05)
    weight = getattr(model, name).head.weight.requires_grad_(True)
    together_loss(model, batch, label, generator(2)).backward()
    direction, losses = weight.grad / weight.grad.norm(), []
    for step in (-0.01, 0.01):
        with torch.no_grad():
            weight += step * direction
            losses.append(together_loss(model, batch, label, generator(2)).item())
            weight -= step * direction
    assert (losses[1] - losses[0]) / 0.02 == pytest.approx(float(weight.grad.norm()), rel=0.02)


def ticking():
    """TimedRun by a clock that a second passes on at each look, one a step."""
    return partial(TimedRun, clock=partial(next, count()))


def killed_at(number):
    """A stage's step that is killed in the call of this number."""
    step, calls = ScanStage.step, count(1)

    def wrapped(*given):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*given)

    return wrapped


KILLED = f"""
import os, signal, sys
from functools import partial
from itertools import count
from dpmtrain.cli import main
from dpmtrain.train import scan_runs
from dpmtrain.train.recipe import read_recipe
from dpmtrain.train.refiner import refiner_loss, together_loss, with_refiner
from dpmtrain.train.scan_runs import ScanStage
from dpmtrain.train.timed import TimedRun
{inspect.getsource(ticking)}
{inspect.getsource(killed_at)}
scan_runs.TimedRun, ScanStage.step = ticking(), killed_at(27)
main(sys.argv[1:])
"""


def progress(run):
    """(stage, steps, seconds) of each line of the log."""
    with (run / "log.csv").open(newline="") as file:
        return [(row[0], int(row[1]), float(row[2])) for row in csv.reader(file)]


@pytest.mark.parametrize(
    ("command", "before", "after"),
    [
        (["one-step", "teacher"], [("teacher", n, n) for n in (10, 20)], [("teacher", n, n) for n in (30, 40)]),
        (
            ["distil", "--evaluations", "8,1"],
            [("student_8", 10, 10), ("student_8", 20, 20)],
            [("student_1", 10, 10), ("student_1", 20, 20)],
        ),
    ],
    ids=["one-step", "distil"],
)
def test_kill_9_loses_the_last_interval_of_a_stage_and_no_stage_that_is_done(
    prepared, recipe, tmp_path, monkeypatch, command, before, after
):
    teacher, out = tmp_path / "teacher.safetensors", tmp_path / "out.safetensors"
    monkeypatch.setattr(scan_runs, "TimedRun", ticking())
    if command[0] == "distil":
        assert main(["one-step", *arguments(recipe, prepared, teacher, "teacher", "--minutes", "0.01")]) == 0
        command = [*command, "--start", str(teacher)]
    whole = [command[0], *arguments(recipe, prepared, out, *command[1:], "--minutes", str(40 / 60))]
    done = subprocess.run([sys.executable, "-c", KILLED, *whole], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = tmp_path / "out"
    assert progress(run) == before and not out.exists()
    assert read_tensors(run / f"{before[-1][0]}.pt", {"steps"})["steps"] == before[-1][1]
    assert main(whole) == 0
    assert progress(run) == before + after and load_checkpoint(out).card["kind"] == "one-step"


@pytest.mark.parametrize(
    ("other", "words"),
    [(("rate = 1e-3", "rate = 2e-3"), "rate is 0.001 there and 0.002 here"), (None, "the start is 'random weights'")],
)
def test_a_state_of_another_recipe_or_start_is_refused(prepared, recipe, tmp_path, capsys, other, words):
    out = tmp_path / "teacher.safetensors"
    minutes = ("teacher", "--minutes", "0.001")
    assert main(["one-step", *arguments(recipe, prepared, out, *minutes)]) == 0
    begun = []
    if other is None:
        common = {"widths": [4, 6], "blocks": [1, 1], "embedding": 8, "labels": ["flair", "t1", "t2"]}
        begun = ["--start", str(tmp_path / "denoiser.safetensors")]
        save_checkpoint(tmp_path / "denoiser.safetensors", Denoiser({**common, "sigma_data": 0.25}), {})
    else:
        recipe.write_text(recipe.read_text().replace(*other))
    assert main(["one-step", *arguments(recipe, prepared, out, *minutes, *begun)]) == 2
    error = capsys.readouterr().err
    assert words in error and "take that recipe, or another --run" in error and "Traceback" not in error


def test_a_state_of_other_volumes_is_refused_and_one_that_does_not_say_goes_on(prepared, recipe, tmp_path, capsys):
    """A stage that was done was not trained on what had been added, and its card named it."""
    out, data = tmp_path / "teacher.safetensors", tmp_path / "data"
    shutil.copytree(prepared, data)
    command = ["one-step", *arguments(recipe, data, out, "teacher", "--minutes", "0.001")]
    assert main(command) == 0
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["volumes"].pop()
    (data / "manifest.json").write_text(json.dumps(manifest))
    assert main(command) == 2
    assert "is of another recipe (the data is '" in capsys.readouterr().err
    (file,) = out.with_suffix("").glob("*.pt")
    state = torch.load(file, weights_only=True)
    del state["made_with"]["the data"]
    torch.save(state, file)
    assert main(command) == 0


def test_a_student_of_other_halvings_is_refused(prepared, recipe, tmp_path, capsys):
    teacher, out = tmp_path / "teacher.safetensors", tmp_path / "student.safetensors"
    assert main(["one-step", *arguments(recipe, prepared, teacher, "teacher", "--minutes", "0.001")]) == 0
    distil = ["distil", *arguments(recipe, prepared, out, "--start", str(teacher), "--minutes", "0.001")]
    assert main([*distil, "--evaluations", "4,1"]) == 0
    assert main([*distil, "--evaluations", "8,1"]) == 2
    assert "the evaluations before is [4] there and [8] here" in capsys.readouterr().err


def test_a_full_disk_keeps_the_state_and_is_one_sentence(prepared, recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scan_runs, "TimedRun", ticking())
    out = tmp_path / "teacher.safetensors"
    given = ["one-step", *arguments(recipe, prepared, out, "teacher"), "--minutes"]
    assert main([*given, str(10 / 60)]) == 0
    state = tmp_path / "teacher" / "teacher.pt"
    before = state.read_bytes()
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        assert main([*given, str(20 / 60)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert "cannot be written" in error and "what is done stays; make room" in error
    assert len(error.strip().splitlines()) == 1
    assert state.read_bytes() == before
    assert main([*given, str(20 / 60)]) == 0 and progress(tmp_path / "teacher")[-1] == ("teacher", 20, 20)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--minutes", "0"], "--minutes is 0: give a time above 0"),
        (["--minutes", "1", "--evaluations", "5"], "5 does not divide 128"),
        (["--minutes", "1", "--start", "DEFAULT"], "no network of the recipe"),
    ],
)
def test_what_distillation_refuses(prepared, recipe, tmp_path, capsys, more, words):
    default = ROOT / "gadgets/dpmrecon/checkpoints/default.safetensors"
    more = [str(default) if word == "DEFAULT" else word for word in more]
    begun = [] if "--start" in more else ["--start", str(default)]
    assert main(["distil", *arguments(recipe, prepared, tmp_path / "s.safetensors", *begun, *more)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["one_step", "one_step_paper", "one_step_refiner"])
def test_the_recipes_in_the_tree_make_networks(name):
    from dpmrecon.prior.conditional import ConditionalDenoiser
    from dpmtrain.train.recipe import read_recipe

    recipe = read_recipe(ROOT / f"training/recipes/{name}.toml", "one-step")
    with torch.device("meta"):
        count = sum(p.numel() for p in ConditionalDenoiser(recipe["model"]).parameters())
    assert count == pytest.approx(
        {"one_step": 10.1e6, "one_step_paper": 67.9e6, "one_step_refiner": 2.35e6}[name], rel=0.06
    )


def test_volumes_without_a_label_are_refused(prepared, recipe, tmp_path, capsys):
    """They were trained on as scans of no known contrast."""
    recipe.write_text(recipe.read_text().replace('"t1", "t2"]', '"t1"]'))
    given = ["--minutes", "0.001", "--data", str(prepared), "--run", str(tmp_path)]
    given += ["--out", str(tmp_path / "m.safetensors")]
    assert main(["one-step", str(recipe), "regression", *given]) == 2
    assert "the model has no label for t2: name other volumes" in capsys.readouterr().err


def test_a_recipe_without_conditioning_is_refused(recipe):
    from dpmtrain.train.recipe import read_recipe

    recipe.write_text(recipe.read_text().replace('conditioning = "cg-sense"\n', ""))
    with pytest.raises(BadInputError, match="unknown or missing conditioning"):
        read_recipe(recipe, "one-step")
