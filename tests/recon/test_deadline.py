"""The deadline: how many samples and steps fit into what is left of it."""

from dataclasses import replace

import pytest
import torch
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.prior.checkpoint import load_checkpoint, write_card
from dpmrecon.prior.samplers.diffusion import SamplerSettings
from dpmrecon.prior.samplers.one_step import OneStepSettings
from dpmrecon.recon import sample
from dpmrecon.recon.deadline import Deadline, chosen, most
from dpmrecon.recon.prepare import with_coil_maps
from dpmrecon.recon.stream import sampled
from dpmrecon.recon.types import Sampling

from support.clock import Clock
from support.gate import gate_entry
from support.models import saved_model
from support.results import replay, report

SCAN = {"matrix": (48, 64), "n_slices": 4}


def test_a_deadline_is_kept_with_fewer_steps(simulated_scan, model):
    """Also where the machine slows down in the middle: one slice is stopped, those after it get fewer steps."""
    sampling = Sampling("prox", SamplerSettings(steps=4000), 3, 0, 4, fallback=False)
    checkpoint, clock = load_checkpoint(model), Clock(per_image=0.02)
    clock.watch(checkpoint.denoiser)

    def prepared(stream):
        for item in with_coil_maps(stream, torch.device("cpu")):
            clock.now += 0.1
            yield replace(item, seconds={"maps": 0.1})

    found = []
    with open_scan(simulated_scan(**SCAN)) as scan:
        deadline = Deadline(4.0, scan.n_slices, clock(), clock=clock)
        stream = prepared(slices(scan.acquisitions(), scan.header))
        for item in sampled(stream, checkpoint, "flair", sampling, deadline=deadline):
            found.append(item)
            if len(found) == 2:
                clock.per_image = 0.06
    assert 3.0 < clock.now <= 4.0 + 3 * 0.06  # the step under way is finished
    assert [item.stopped for item in found] == [False, False, True, False]
    for item in found:
        assert 1 <= item.samples <= 3
        assert 1 <= item.steps < 4000
        assert item.samples <= item.evaluations <= item.samples * item.steps
    assert found[3].evaluations < found[1].evaluations / 2


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
    deadline = Deadline(60, 10, 0.0, clock=Clock())
    share = deadline.share(1, other=1.0)
    assert share == pytest.approx((60 - 9) / 10)
    deadline.note(0, 2, 0.04)
    assert deadline.plan(sampling, 1, share).settings.steps == 20
    deadline.note(0, 2, 0.2)  # now .1 s an evaluation
    plan = deadline.plan(sampling, 1, share)
    assert plan.samples * plan.settings.steps * 0.1 < share
    deadline.note(0, 1, 60.0)
    assert deadline.plan(sampling, 1, share) is None


def test_the_uncertainty_mode_gives_up_samples_then_the_spread_then_the_image():
    settings, image = SamplerSettings(steps=30), Sampling("prox", SamplerSettings(steps=20), 3, 0, 4, True)
    sampling = replace(image, settings=settings, samples=16, mode="uncertainty", image=image)
    assert sampling.evaluations == 16 * 30 + 60 and sampling.told == "3 x 20 steps, 16 x 30 for the spread"
    assert chosen(sampling, 100.0, 0.01) == sampling
    fewer = chosen(sampling, 2.0, 0.01)
    assert (fewer.samples, fewer.settings, fewer.image) == (4, settings, image)
    least = chosen(sampling, 0.7, 0.01)
    assert (least.samples, least.image) == (0, image) and least.told == "3 x 20 steps, no time for a spread"
    cut = chosen(sampling, 0.2, 0.01)
    assert cut.samples == 0 and cut.evaluations <= 18 and cut.image == chosen(image, 0.2, 0.01)
    assert chosen(sampling, 0.02, 0.01) is None


def test_many_samples_are_cut_as_steps_are():
    sampling = Sampling("prox", SamplerSettings(steps=30), 16, 0, 4, True)
    fast = chosen(sampling, 2.0, 0.01)
    assert (fast.samples, fast.settings.steps) == (10, 18)
    assert chosen(replace(sampling, settings=SamplerSettings(steps=1)), 0.02, 0.01).settings.steps == 1


def test_a_single_evaluation_of_one_step_is_worth_having():
    settings = OneStepSettings(steps=4, sigma_max=0.02)
    sampling = Sampling("one-step", settings, 1, 0, 4, True)
    assert [chosen(sampling, seconds, 0.01).settings.steps for seconds in (0.012, 0.03, 9.0)] == [1, 2, 4]
    assert chosen(sampling, 0.01, 0.01) is None


def test_the_gate_has_its_share_and_is_left_out_before_the_steps_are():
    sampling = Sampling("prox", SamplerSettings(steps=20), 3, 0, 4, True, gate="warn")
    deadline = Deadline(60, 10, 0.0, clock=Clock())
    deadline.note(0, 2, 0.2)
    assert deadline.asking(2, 8) == pytest.approx(1.6) and deadline.asking(2, 0) == 0
    whole, cut, none = (deadline.plan(sampling, 1, seconds, 0.8) for seconds in (9.0, 2.4, 1.5))
    assert (whole.samples, whole.settings.steps, whole.asks) == (3, 20, True)
    assert cut.asks and 10 <= cut.samples * cut.settings.steps <= 0.9 * (2.4 - 0.8) / 0.1
    assert not none.asks and 10 <= none.settings.steps <= 0.9 * 1.5 / 0.1
    deadline.note(2, 100, 10.0, asking=3.0)  # measured: no guess any more
    assert deadline.per_evaluation == pytest.approx(0.1) and deadline.asking(1, 8) == pytest.approx(1.5)
    assert deadline.sampling_seconds == pytest.approx(13.2)


@pytest.mark.parametrize(("seconds", "asks"), [(4.0, True), (0.35, False)])
def test_a_deadline_is_kept_by_the_gate_too(simulated_scan, tmp_path, seconds, asks):
    """Or it asks nothing, and says so."""
    model = saved_model(tmp_path / "tiny.safetensors")
    write_card(model, gate=gate_entry(1.0))
    sampling = Sampling("prox", SamplerSettings(steps=4000 if asks else 10), 1, 0, 4, True, gate="warn")
    checkpoint, clock = load_checkpoint(model), Clock(per_image=0.02)
    clock.watch(checkpoint.denoiser)
    with open_scan(simulated_scan(matrix=(48, 64), n_slices=1)) as scan:
        deadline = Deadline(seconds, 1, clock(), clock=clock)
        stream = with_coil_maps(slices(scan.acquisitions(), scan.header), torch.device("cpu"))
        (found,) = sampled(stream, checkpoint, "flair", sampling, deadline=deadline)
    assert found.fallback is None and clock.now <= seconds
    assert (found.agreement is not None) == asks
    assert found.unasked == (None if asks else "the deadline leaves no time for it")


def test_images_that_are_not_trusted_cost_as_much(simulated_scan, model, monkeypatch):
    """What an evaluation takes is that of all that were made, not of those whose image was taken."""
    own = sample.judged
    monkeypatch.setattr(sample, "judged", lambda item, gate="off": (own(item)[0], "a check says so"))
    sampling = Sampling("prox", SamplerSettings(steps=6), 1, 0, 4, fallback=True)
    checkpoint, clock = load_checkpoint(model), Clock(per_image=0.02)
    clock.watch(checkpoint.denoiser)
    with open_scan(simulated_scan(**SCAN)) as scan:
        deadline = Deadline(100.0, 2 * scan.n_slices, clock(), clock=clock)
        stream = with_coil_maps(slices(scan.acquisitions(), scan.header), torch.device("cpu"))
        found = list(sampled(stream, checkpoint, "flair", sampling, deadline=deadline))
    assert all(item.fallback == "a check says so" for item in found)
    assert deadline.per_evaluation == pytest.approx(0.02)


def test_replay_says_whether_the_deadline_was_kept(simulated_scan, model, tmp_path, capsys):
    scan, day = simulated_scan(**SCAN), "86400"  # no machine is too busy for it
    assert replay(scan, tmp_path, model, "--deadline", day, "--steps", "2") == 0
    assert f"deadline of {day} s kept" in capsys.readouterr().err
    entries = report(tmp_path)["slices"]
    assert [(entry["samples"], entry["steps"], entry["evaluations"]) for entry in entries] == [(2, 2, 4)] * 4
    assert replay(scan, tmp_path, model, "--deadline", "0", "--steps", "2") == 3
    assert "deadline of 0 s MISSED" in capsys.readouterr().err
