"""The deadline and the cost model, with a small network."""

import json
import time

import pytest
import torch
from dpmrecon.acquisitions import slices
from dpmrecon.checkpoint import load_checkpoint, save_checkpoint
from dpmrecon.cli import main
from dpmrecon.deadline import Deadline, most
from dpmrecon.denoiser import LABELS, Denoiser
from dpmrecon.mrd import open_scan
from dpmrecon.reconstruct import Sampling, sampled, with_coil_maps
from dpmrecon.samplers import SamplerSettings

SCAN = {"matrix": (48, 64), "n_slices": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained network that takes about 10 ms for an image: a sample of 4000 steps never fits a deadline."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    config = {"widths": [16, 16], "blocks": [1, 1], "embedding": 8, "labels": list(LABELS), "sigma_data": 0.25}
    torch.manual_seed(0)
    save_checkpoint(path, Denoiser(config), {"sampling": {"samples": 3, "prox": {"steps": 4000}}})
    return path


def replay(scan, out, model, *options: str) -> tuple[int, dict]:
    code = main(["replay", str(scan), "--out", str(out), "--model", str(model), "--device", "cpu", *options])
    return code, json.loads((out / "report.json").read_text())


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
    code, report = replay(simulated_scan(**SCAN), tmp_path, model, "--deadline", "90", "--steps", "2")
    assert "deadline of 90 s kept" in capsys.readouterr().err
    assert code == 0
    assert [(entry["samples"], entry["steps"], entry["evaluations"]) for entry in report["slices"]] == [(3, 2, 6)] * 4


def test_most_of_what_fits():
    assert most(1000, 6, 20) == (6, 20)
    assert most(90, 6, 20) == (6, 15)
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
