"""Training inside the sampler: which evaluations are trained, on what, and that a run goes on and writes its card."""

import json
from unittest.mock import Mock

import pytest
import torch
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint
from dpmrecon.prior.denoiser import complex_noise, uncounted
from dpmrecon.prior.problem import NoiseSource, Problem
from dpmrecon.prior.samplers.diffusion import SamplerSettings, sample_prox
from dpmtrain.cli import main
from dpmtrain.train import in_sampler
from dpmtrain.train.in_sampler import Shown, slices_loss, squared
from dpmtrain.train.undersampled import calibrated_coils, drawn_coils, undersampled

from support.paths import ROOT
from support.recipes import TIMED
from support.small_denoiser import denoiser


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scans(rows=21, cols=18):
    """Two scans of smooth heads, every third line and a centre."""
    bumps = torch.nn.functional.interpolate(complex_noise((2, 4, 4), generator()).abs()[:, None], (rows, cols))[:, 0]
    mask = torch.zeros(2, rows, cols)
    mask[:, ::3] = mask[:, 8:13] = 1
    return undersampled(bumps.to(torch.complex64), torch.ones(2, rows, cols), mask, "cg-sense", generator(1))


def test_the_sampler_runs_as_with_the_network_itself_and_each_trained_evaluation_is_of_what_it_is_shown():
    batch, model, label = scans(), denoiser(), torch.zeros(2, 2)
    problem = Problem(batch.model, batch.zero_filled, batch.zero_filled, batch.sigma_n, batch.conventional)
    settings = SamplerSettings(steps=5, sigma_max=0.5, noise_scale=0.3)
    seen = []

    class Watched(Shown):
        def __call__(self, x, sigma):
            seen.append((x, sigma))
            return super().__call__(x, sigma)

    prior = Watched(model, label, uncounted, batch, {1, 4})
    found = sample_prox(problem, prior, settings, NoiseSource([5, 6]))
    wanted = sample_prox(problem, Shown(model, label, uncounted, batch, set()), settings, NoiseSource([5, 6]))
    assert torch.equal(found, wanted) and not found.requires_grad
    assert len(seen) == 5 and len(prior.losses) == 2
    for loss, number in zip(prior.losses, (1, 4)):
        x, sigma = seen[number]
        support = batch.model.support
        left = squared((model(x, sigma, label) - batch.clean) * support).mean((1, 2))
        ratio = left / squared((x - batch.clean) * support).mean((1, 2))
        assert loss.requires_grad and loss.item() == pytest.approx(ratio.mean().item(), rel=1e-5)


def test_the_last_evaluation_is_always_trained(monkeypatch):
    made = []

    def noted(*given):
        made.append(Shown(*given))
        return made[-1]

    monkeypatch.setattr(in_sampler, "Shown", noted)
    batch, model = scans(), denoiser()
    for seed in range(4):
        slices_loss(model, batch, torch.zeros(2, 2), generator(seed))
    for prior in made:
        assert next(prior.numbers) - 1 in prior.trained and len(prior.losses) == in_sampler.TRAINED


def test_a_share_of_the_steps_has_a_volume(monkeypatch):
    monkeypatch.setattr(in_sampler, "slices_loss", lambda *given: torch.tensor(1.0))
    monkeypatch.setattr(in_sampler, "plain_loss", lambda *given: torch.tensor(0.0))
    volumes = Mock(return_value=torch.tensor(3.0))
    loss = in_sampler.InSamplerLoss(volumes=volumes, share=0.25, weight=2.0)
    found = [loss(denoiser(), None, None, generator(seed)).item() for seed in range(200)]
    assert set(found) == {1.0, 7.0} and 30 <= found.count(7.0) == volumes.call_count <= 70
    alone = in_sampler.InSamplerLoss(0.0, volumes, share=1.0, weight=2.0)
    assert alone(denoiser(), None, None, generator()).item() == 6.0


def test_training_lowers_the_loss_of_runs_that_it_has_not_seen():
    batch, model, label = scans(), denoiser(), torch.zeros(2, 2)

    def loss():
        with torch.no_grad():
            return sum(slices_loss(model, batch, label, generator(seed)).item() for seed in (100, 101, 102))

    before, optimizer = loss(), torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(40):
        optimizer.zero_grad()
        slices_loss(model, batch, label, generator(step)).backward()
        optimizer.step()
    assert loss() < 0.6 * before


def test_a_run_goes_on_and_its_card_tells_where_it_began(prepared, tmp_path):
    recipe, start, out, run = (tmp_path / name for name in ("r.toml", "start.safetensors", "out.safetensors", "run"))
    recipe.write_text(
        TIMED + "slice_weight = 1.0\nvolume_scans = 0\nvolume_shapes = 0\nvolume_share = 0\nvolume_weight = 0\n"
    )
    save_checkpoint(
        start, denoiser(), {"sampling": {"prox": {"steps": 4}}, "history": "begun", "data": {"subjects": ["a"]}}
    )
    given = [str(recipe), "--start", str(start), "--data", str(prepared), "--run", str(run), "--out", str(out)]
    assert main(["in-sampler", *given, "--minutes", "0.001", "--workers", "0"]) == 0
    first = load_checkpoint(out)
    steps = torch.load(run / "in-sampler.pt", weights_only=True)["steps"]
    assert main(["in-sampler", *given, "--minutes", "0.05", "--workers", "0"]) == 0
    assert torch.load(run / "in-sampler.pt", weights_only=True)["steps"] > steps
    card = json.loads(out.with_suffix(".json").read_text())
    begun = load_checkpoint(start)
    assert card["history"]["start"] == begun.model_id and card["history"]["start_history"] == "begun"
    assert card["sampling"] == begun.card["sampling"] and "gate" not in card
    assert set(card["data"]["subjects"]) == {"patient01", "patient03"}
    assert card["data"]["begun_with"] == [{"subjects": ["a"]}]
    assert load_checkpoint(out).model_id != first.model_id
    weights = zip(load_checkpoint(out).model.state_dict().values(), begun.model.state_dict().values())
    assert not all(torch.equal(one, other) for one, other in weights)


@pytest.mark.parametrize("name", ["in_sampler", "in_sampler_volumes"])
def test_the_recipes_that_come_along_are_read(name, tmp_path, capsys):
    given = [
        "--minutes",
        "1",
        "--data",
        str(tmp_path),
        "--run",
        str(tmp_path),
        "--out",
        str(tmp_path / "m.safetensors"),
    ]
    assert main(["in-sampler", str(ROOT / f"training/recipes/{name}.toml"), *given]) == 2
    assert "has no manifest.json" in capsys.readouterr().err


def test_scans_have_maps_of_their_own_calibration_where_the_head_ends_within_the_crop():
    rows, cols = 44, 39
    inside = torch.hypot(torch.linspace(-1.3, 1.3, rows)[:, None], torch.linspace(-1.3, 1.3, cols)) < 1
    whole = torch.stack([inside.float(), torch.ones(rows, cols)]).to(torch.complex64)
    mask = torch.ones(2, rows, cols)
    plain, own = (
        undersampled(whole, mask, mask, "cg-sense", generator(5), coils(whole, generator(4)))
        for coils in (drawn_coils, calibrated_coils)
    )
    assert torch.equal(own.model.coil_maps[1], plain.model.coil_maps[1])
    assert not torch.equal(own.model.coil_maps[0], plain.model.coil_maps[0])
    assert torch.equal(own.clean[0], whole[0] * own.model.support[0])
    # all lines are there: with the right maps and phase the zero-filled image is the truth, but for noise
    for scan in (plain, own):
        left = squared(scan.zero_filled - scan.clean).mean((1, 2)).sqrt()
        assert bool((left < 3 * scan.sigma_n + 0.06).all())
