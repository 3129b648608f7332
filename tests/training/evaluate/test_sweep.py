"""`dpmtrain sweep` chooses, the card remembers, and `replay` takes what the card says for its contrast and R."""

import json

import pytest
import torch
from dpmrecon.cli import main as dpmrecon
from dpmrecon.errors import BadInputError, CheckpointError
from dpmrecon.prior.checkpoint import load_checkpoint, sampler_defaults, save_checkpoint, write_card
from dpmrecon.prior.denoiser import Denoiser
from dpmrecon.prior.kinds import settings_from
from dpmrecon.prior.samplers.diffusion import SamplerSettings
from dpmtrain.arguments import read_grid
from dpmtrain.cli import main
from dpmtrain.evaluate.plan import Condition
from dpmtrain.evaluate.scoring import Row
from dpmtrain.evaluate.sweep import Candidate, Plan, check_grid, ranked, sweep

from support.latent import latent_model
from support.models import TINY, saved_model
from support.phantoms import head
from support.scores import score_of

CPU = torch.device("cpu")


def entry(contrast, R, **settings):
    return {"sampler": "prox", "contrast": contrast, "R": R, "settings": settings}


CARD = {
    "sampling": {
        "samples": 1,
        "prox": {"steps": 3, "noise_factor": 0.7},
        "by_contrast_R": [entry("flair", 4, steps=4), entry("flair", 6, steps=6), entry("t1", 2, noise_factor=1.0)],
    }
}


@pytest.fixture
def model(tmp_path):
    return saved_model(tmp_path / "tiny.safetensors", **CARD)


def test_defaults_are_those_of_the_contrast_and_the_nearest_R():
    def steps(contrast, R, sampler="prox"):
        return sampler_defaults(CARD, sampler, contrast, R)[0].get("steps")

    assert [steps("flair", R) for R in (2, 4, 5, 8)] == [4, 4, 6, 6]  # 5 lies between: the higher one
    assert steps("t2", 4) == steps(None, 4) == steps("flair", None) == 3
    settings, source = sampler_defaults(CARD, "prox", "t1", 3)
    assert settings == {"steps": 3, "noise_factor": 1.0} and source.startswith("model card, for t1 at R = 2")
    assert sampler_defaults(CARD, "dps", "flair", 4) == ({}, "built in")
    assert sampler_defaults(CARD, "prox", "swi", 4)[1] == "model card, for every scan"


def test_writing_the_card_leaves_the_weights_alone(model):
    weights, before = model.read_bytes(), json.loads(model.with_suffix(".json").read_text())
    write_card(model, sampling={"prox": {"steps": 9}})
    after = load_checkpoint(model)
    assert model.read_bytes() == weights and after.card == {**before, "sampling": {"prox": {"steps": 9}}}
    assert sorted(file.name for file in model.parent.iterdir()) == ["tiny.json", "tiny.safetensors"]
    model.write_bytes(weights[:-1])
    with pytest.raises(CheckpointError, match="checksum"):
        write_card(model, sampling={})
    assert json.loads(model.with_suffix(".json").read_text()) == after.card


def candidate(steps, error, fallback=None):
    row = Row("t1", Condition("regular", 4, 24), "", "", [("a", 0)], [score_of(error, fallback=fallback)])
    return Candidate(None, SamplerSettings(steps=steps), str(steps), False), row


def test_few_evaluations_win_where_they_cost_little():
    scored = [
        candidate(50, 0.0500),
        candidate(20, 0.0504),
        candidate(10, 0.0506),
        candidate(5, 0.03, "it misses the data"),
    ]
    assert [pair[0].title for pair in ranked(scored, 0.01)] == ["20", "50", "10", "5"]
    assert [pair[0].title for pair in ranked(scored, 0.0)] == ["50", "20", "10", "5"]


def slices(contrast, count=2):
    return [head(45, 38, number, contrast) for number in range(count)]


def test_a_sweep_chooses_and_writes_the_card(model, tmp_path, capsys):
    plan = Plan("prox", {"warm_start": [False, True]}, (2, 3))
    validation = [*slices("flair"), *slices("t1")]

    def run(write):
        return sweep(validation, {model: load_checkpoint(model)}, plan, tmp_path / "out", CPU, write=write)

    choices = run(write=False)
    assert load_checkpoint(model).card["sampling"] == CARD["sampling"]
    n_lines = (tmp_path / "out/scores.jsonl").read_text().count("\n")
    assert n_lines == len(validation) * 2 * 2  # slices, R, candidates: what the card has is among them
    assert [c.ranked for c in run(write=True)] == [c.ranked for c in choices]
    assert (tmp_path / "out/scores.jsonl").read_text().count("\n") == n_lines
    card = load_checkpoint(model).card
    for choice in choices:
        (chosen, row), (other, other_row) = choice.ranked
        assert sum(row.nrmse) < sum(other_row.nrmse) and chosen.settings.warm_start != other.settings.warm_start
        settings = sampler_defaults(card, "prox", choice.contrast, choice.condition.R)[0]
        assert settings["warm_start"] == chosen.settings.warm_start
        assert settings_from(settings) == chosen.settings  # those of the nearest R before, which it was measured with
    assert entry("flair", 4, steps=4) in card["sampling"]["by_contrast_R"]  # another R's stays
    assert "| flair | 2 | 2 |" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["sweep", "steps", "--out", "sweep"], ["calibrate"]])
def test_the_card_of_the_model_that_ships_is_not_written(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--images", str(tmp_path), "--write"]) == 2
    assert "--write needs --model: name a copy of the shipped model" in capsys.readouterr().err
    assert main([*command, "--images", str(tmp_path), "--write", "--model", "default"]) == 2
    assert "and default is none: name a copy of that model" in capsys.readouterr().err


def test_a_latent_model_is_swept_with_the_settings_of_its_kind(tmp_path):
    path = tmp_path / "latent.safetensors"
    save_checkpoint(path, latent_model(), {"kind": "latent", "sampling": {"samples": 1, "latent": {"steps": 2}}})
    plan = Plan("latent", {"first": [60, 100]}, (2,))
    sweep([head(33, 32, contrast="t1")], {path: load_checkpoint(path)}, plan, tmp_path, CPU, write=True)
    (chosen,) = load_checkpoint(path).card["sampling"]["by_contrast_R"]
    assert chosen["sampler"] == "latent" and set(chosen["settings"]) == {"first"}


def test_the_best_of_several_checkpoints_is_named_and_says_what_it_was_chosen_from(model, tmp_path):
    other = tmp_path / "worse.safetensors"
    broken = Denoiser(TINY)
    for parameter in broken.parameters():
        torch.nn.init.normal_(parameter)
    save_checkpoint(other, broken, {"sampling": CARD["sampling"], "recipe": {"rate": 1}})
    checkpoints = {path: load_checkpoint(path) for path in (other, model)}
    plan = Plan("prox", {}, (2,))
    (choice,) = sweep(slices("t2"), checkpoints, plan, tmp_path / "out", CPU, write=True)
    assert choice.chosen[0].path == model and [row.fallbacks for _, row in choice.ranked] == [0, 2]
    found = load_checkpoint(model).card["selection"]
    assert [entry["rate"] for entry in found] == [1, None] and "t2 R=2" in found[0]["validation_nrmse"]
    assert "selection" not in load_checkpoint(other).card
    assert "tiny.safetensors" in (tmp_path / "out/table.md").read_text()


def test_replay_takes_the_card_at_its_word_and_says_so(model, simulated_scan, tmp_path):
    def report(scan, *options):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        assert dpmrecon(["replay", str(scan), "--out", str(out), "--model", str(model), *options]) == 0
        return json.loads((out / "report.json").read_text())

    found = report(simulated_scan(contrast="flair", acceleration=3))
    assert (
        found["settings"]["steps"] == 4 and "for flair at R = 4 (the scan announces R = 3)" in found["settings_source"]
    )
    found = report(simulated_scan(contrast="flair", acceleration=3), "--steps", "2")
    assert found["settings"]["steps"] == 2 and found["settings_source"].endswith("; steps by option")
    assert report(simulated_scan(contrast="t2", acceleration=3))["settings_source"] == "model card, for every scan"


def test_bad_requests_are_one_sentence(tmp_path, capsys):
    with pytest.raises(BadInputError, match="write KEY=V1,V2"):
        read_grid(["steps=10,x"])
    assert read_grid(["zeta=.35,1.5,-.5", "turns=true"]) == {"zeta": [0.35, 1.5, -0.5], "turns": [True]}
    for grid, words in (
        (["steps=-1"], "steps=-1: give a whole number of 1 or more"),
        (["steps=2.5"], "steps=2.5: give a whole number"),
        (["eta=null"], "eta=null: give a number"),
        (["turns=1"], "turns=1: give true or false"),
        (["speed=1"], "'speed'. are unknown: valid ones are steps"),
    ):
        with pytest.raises(BadInputError, match=words):
            check_grid(read_grid(grid), SamplerSettings)
    with pytest.raises(BadInputError, match="steps=1 steps=2 cannot be read"):
        read_grid(["steps=1", "steps=2"])
    common = ["--images", str(tmp_path), "--out", str(tmp_path / "out")]
    for options, message in (
        (["models"], "at least two"),
        (["steps", "--contrasts", "pd"], "'pd' is none of"),
        (["steps", "--R", "1"], "2 or more"),
        (["steps", "--contrasts", "flair"], "open_ms"),
        (["zeta", "--slices", "0"], "--slices is 0"),
    ):
        assert main(["sweep", *options, *common]) == 2
        assert message in capsys.readouterr().err
