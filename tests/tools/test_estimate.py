"""The deadline and the cost model, with a small network."""

import re
import time
from dataclasses import replace

import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.cli import main
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.header import open_scan
from dpmrecon.physics.coil_compression import compressed
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.prior.samplers import SamplerSettings
from dpmrecon.recon.deadline import Deadline, chosen, most
from dpmrecon.recon.sample import Sampling, sampled, with_coil_maps
from dpmrecon.tools.estimate import Load, cost_model
from dpmtrain.calibrate import prior_fit

from support.results import replay, report

SCAN = {"matrix": (48, 64), "n_slices": 4}
UNCERTAINTY = {"samples": 4, "steps": 6, "eta": 0.0, "warm_start": False, "prior_std": 0.1, "prior_power": 0.4}


@pytest.fixture(scope="module")
def model(tiny_model):
    """An untrained network that takes about 10 ms for an image: a sample of 4000 steps never fits a deadline."""
    return tiny_model({"widths": [16, 16]}, samples=3, prox={"steps": 4000}, uncertainty=UNCERTAINTY)


def test_a_deadline_is_kept_with_fewer_steps(simulated_scan, model):
    sampling = Sampling("prox", SamplerSettings(steps=4000), 3, 0, 4, fallback=False)
    with open_scan(simulated_scan(**SCAN)) as scan:
        deadline = Deadline(4.0, scan.n_slices, time.monotonic())
        stream = with_coil_maps(slices(scan.acquisitions(), scan.header), torch.device("cpu"))
        found = list(sampled(stream, load_checkpoint(model), "flair", sampling, deadline=deadline))
    # the step under way is finished, and the last residual worked out
    assert 2.0 < 4.0 - deadline.left() < 4.5
    assert len(found) == 4
    for item in found:
        assert 1 <= item.samples <= 3
        assert 1 <= item.steps < 4000
        assert item.samples <= item.evaluations <= item.samples * item.steps


def test_replay_says_whether_the_deadline_was_kept(simulated_scan, model, tmp_path, capsys):
    assert replay(simulated_scan(**SCAN), tmp_path, model, "--deadline", "90", "--steps", "2") == 0
    assert "deadline of 90 s kept" in capsys.readouterr().err
    entries = report(tmp_path)["slices"]
    assert [(entry["samples"], entry["steps"], entry["evaluations"]) for entry in entries] == [(3, 2, 6)] * 4


def test_most_of_what_fits():
    assert most(1000, 6, 20) == (6, 20)
    assert most(90, 6, 20) == (5, 18)
    assert most(35, 6, 20) == (3, 11)
    assert most(7, 6, 20) == (1, 7)
    assert most(1, 6, 5) == (1, 1)
    for evaluations in range(1, 200):
        samples, steps = most(evaluations, 6, 20)
        assert samples * steps <= evaluations


def test_a_slower_machine_gets_fewer_steps_and_none_are_left_for_nothing():
    sampling = Sampling("prox", SamplerSettings(steps=20), 6, 0, 4, True, deadline=60)
    deadline = Deadline(60, 10, time.monotonic())
    share = deadline.share(1, other=1.0)
    assert share == pytest.approx((60 - 9) / 10, abs=0.1)
    deadline.note(0, 2, 0.04)
    assert deadline.plan(sampling, 1, share).settings.steps == 20
    deadline.note(0, 2, 0.2)  # now .1 s an evaluation
    plan = deadline.plan(sampling, 1, share)
    assert plan.samples * plan.settings.steps * 0.1 < share
    deadline.note(0, 1, 60.0)
    assert deadline.plan(sampling, 1, share) is None


def test_the_estimate_grows_with_the_load_and_is_near_a_small_run(simulated_scan, model):
    device, checkpoint = torch.device("cpu"), load_checkpoint(model)
    sampling = Sampling("prox", SamplerSettings(steps=15), 3, 0, 4, fallback=False)
    load = Load(64, 80, 6, 3, 3, 15, 4)
    cost = cost_model(checkpoint, sampling, load, device)
    assert cost.base < cost.peak(load)
    for name in ("rows", "cols", "n_coils", "n_slices", "samples", "steps"):
        more = replace(load, **{name: 2 * getattr(load, name)})
        assert cost.seconds(more) >= cost.seconds(load)
        assert cost.peak(more) >= cost.peak(load)
    assert cost.seconds(replace(load, n_slices=6)) == pytest.approx(2 * cost.seconds(load))
    scan = simulated_scan(matrix=(64, 80), n_slices=3)
    with open_scan(scan) as opened:
        began = time.monotonic()
        found = list(
            sampled(with_coil_maps(slices(opened.acquisitions(), opened.header), device), checkpoint, "flair", sampling)
        )
        seconds = time.monotonic() - began
    assert len(found) == 3
    assert 1 / 4 < cost.seconds(load) / seconds < 4  # machines that do other things as well


def test_estimate_prints_seconds_memory_and_what_a_deadline_chooses(simulated_scan, model, capsys):
    scan = str(simulated_scan(**SCAN))
    assert main(["estimate", scan, "--model", str(model), "--device", "cpu", "--deadline", "30"]) == 0
    printed = capsys.readouterr().out
    assert "4 slices of 48 x 64, 6 coils; prox, mode fast: 3 samples of 4000 steps" in printed
    assert re.search(r"the scan: \d+\.\d s, about \d+ MB", printed)
    assert re.search(r"deadline of 30 s: [123] x \d+ steps for every slice", printed)


def test_estimate_counts_virtual_coils_and_survives_a_deadline_that_is_too_short(simulated_scan, model, capsys):
    scan = str(simulated_scan(**SCAN, n_coils=24))
    assert main(["estimate", scan, "--model", str(model), "--device", "cpu", "--deadline", "0"]) == 0
    printed = capsys.readouterr().out
    with open_scan(scan) as opened:
        kept = len(compressed(next(slices(opened.acquisitions(), opened.header))).kspace)
    assert kept < 24
    assert f"24 coils ({kept} virtual ones)" in printed
    assert "deadline of 0 s: no time for the model: CG-SENSE for every slice" in printed


def test_the_uncertainty_mode_gives_up_samples_before_steps():
    settings = SamplerSettings(steps=30)
    sampling = Sampling("prox", settings, 16, 0, 4, True, mode="uncertainty")
    assert chosen(sampling, 100.0, 0.01) == sampling
    fewer = chosen(sampling, 2.0, 0.01)
    assert (fewer.samples, fewer.settings) == (6, settings)
    least = chosen(sampling, 0.5, 0.01)
    assert least.samples * least.settings.steps <= 50
    fast = chosen(replace(sampling, mode="fast"), 2.0, 0.01)
    assert (fast.samples, fast.settings.steps) == (10, 18)
    assert chosen(sampling, 0.02, 0.01) is None
    assert chosen(replace(sampling, settings=SamplerSettings(steps=1)), 0.02, 0.01).settings.steps == 1


def test_the_uncertainty_mode_has_its_settings_and_its_series(simulated_scan, model, tmp_path, capsys):
    scan = simulated_scan(**SCAN)
    assert replay(scan, tmp_path, model, "--mode", "uncertainty") == 0
    found = report(tmp_path)
    assert (found["mode"], found["samples"], found["settings"]["steps"]) == ("uncertainty", 4, 6)
    assert found["settings_source"] == "model card, for the uncertainty mode"
    dataset = ismrmrd.Dataset(str(tmp_path / "images.h5"), "dataset", create_if_needed=False)
    assert dataset.number_of_images("image_2") == 4
    for index in range(4):
        image, spread = (dataset.read_image(f"image_{series}", index) for series in (1, 2))
        assert (spread.meta["DataRole"], spread.meta["dpmrecon_mode"]) == ("Uncertainty", "uncertainty")
        assert (spread.meta["dpmrecon_samples"], spread.meta["RescaleSlope"]) == ("4", image.meta["RescaleSlope"])
        assert (spread.image_series_index, spread.slice, spread.image_index) == (2, index, index + 1)
        assert list(spread.position) == list(image.position)
        assert 0 < spread.data.max() < image.data.max()
    dataset.close()
    assert main(["replay", str(scan), "--out", str(tmp_path), "--mode", "uncertainty", "--sampler", "dps"]) == 2
    assert "mode uncertainty is for the sampler prox" in capsys.readouterr().err


def test_the_fit_of_the_prior_finds_a_white_one():
    sigma = np.geomspace(0.01, 1.2, 8)
    error = sigma * 0.2 / np.sqrt(sigma**2 + 0.2**2)
    assert prior_fit(np.stack([sigma, error, error], 1)) == {"prior_std": 0.2, "prior_power": 0.0}


def test_compression_to_virtual_coils_keeps_the_forward_model(simulated_scan):
    with open_scan(simulated_scan(matrix=(48, 64), n_coils=20)) as scan:
        (data,) = slices(scan.acquisitions(), scan.header)
    fewer = compressed(data)
    assert 12 <= len(fewer.kspace) < 20
    assert fewer.kspace.shape[1:] == data.kspace.shape[1:]
    assert fewer.calibration.shape == (len(fewer.kspace), *data.calibration.shape[1:])
    image = complex_noise((1, 48, 64), torch.Generator().manual_seed(0))
    whole, small = (next(with_coil_maps([part], torch.device("cpu"))) for part in (replace(data, sigma_n=1e-9), fewer))
    assert (len(whole.data.kspace), len(small.data.kspace)) == (20, len(fewer.kspace))
    inside = image * whole.model.support * small.model.support
    difference = whole.model.normal(inside) - small.model.normal(inside)
    assert difference.norm() < 0.03 * whole.model.normal(inside).norm()
    assert compressed(replace(data, kspace=data.kspace[:12], calibration=data.calibration[:12])).kspace.shape[0] == 12
