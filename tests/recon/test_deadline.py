"""The deadline: how many samples and steps fit into what is left of it."""

import time
from dataclasses import replace

import pytest
import torch
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.prior.samplers.diffusion import SamplerSettings
from dpmrecon.recon.deadline import Deadline, chosen, most
from dpmrecon.recon.prepare import with_coil_maps
from dpmrecon.recon.stream import sampled
from dpmrecon.recon.types import Sampling

from support.results import replay, report

SCAN = {"matrix": (48, 64), "n_slices": 4}


def test_a_deadline_is_kept_with_fewer_steps(simulated_scan, slow_model):
    sampling = Sampling("prox", SamplerSettings(steps=4000), 3, 0, 4, fallback=False)
    with open_scan(simulated_scan(**SCAN)) as scan:
        deadline = Deadline(4.0, scan.n_slices, time.monotonic())
        stream = with_coil_maps(slices(scan.acquisitions(), scan.header), torch.device("cpu"))
        found = list(sampled(stream, load_checkpoint(slow_model), "flair", sampling, deadline=deadline))
    # the step under way is finished, and the last residual worked out
    assert 2.0 < 4.0 - deadline.left() < 4.5
    assert len(found) == 4
    for item in found:
        assert 1 <= item.samples <= 3
        assert 1 <= item.steps < 4000
        assert item.samples <= item.evaluations <= item.samples * item.steps


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


def test_replay_says_whether_the_deadline_was_kept(simulated_scan, slow_model, tmp_path, capsys):
    assert replay(simulated_scan(**SCAN), tmp_path, slow_model, "--deadline", "90", "--steps", "2") == 0
    assert "deadline of 90 s kept" in capsys.readouterr().err
    entries = report(tmp_path)["slices"]
    assert [(entry["samples"], entry["steps"], entry["evaluations"]) for entry in entries] == [(3, 2, 6)] * 4
