"""The adapted prior beside the conventional methods, on objects that are no heads."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint
from dpmrecon.recon import adapt as fitting
from dpmtrain.evaluate.baselines import tuned_cg_sense
from dpmtrain.evaluate.plan import Condition
from dpmtrain.evaluate.references import CPU
from dpmtrain.evaluate.scoring import Undersampled
from dpmtrain.robustness import adapt
from dpmtrain.robustness.adapt import Row, nrmse, object_scan, row_of, table
from dpmtrain.robustness.objects import OBJECTS

from support.models import SAMPLING, random_denoiser


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_fills_what_it_is_asked_to_and_differs_by_the_draw(name):
    blank = torch.zeros(96, 75)
    first, again, other = (OBJECTS[name](blank, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == blank.shape and first.dtype == torch.float32
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() >= 0 and 0.3 < first.max() < 2 and (first > 0.02).float().mean() > 0.15


def test_the_error_has_one_factor_a_scan(monkeypatch):
    monkeypatch.setattr(adapt, "MATRIX", (48, 40))
    cases = [Undersampled(full, Condition("regular", 2, 24), CPU) for full in object_scan("bars")]
    truths = [torch.from_numpy(case.full.truth) for case in cases]
    assert nrmse(cases, [3 * truth for truth in truths]) == pytest.approx(0, abs=1e-6)
    assert nrmse(cases, [truths[0], 2 * truths[1]]) > 0.1


def test_a_scan_by_every_method(tmp_path, monkeypatch):
    monkeypatch.setattr(adapt, "MATRIX", (64, 48))
    monkeypatch.setattr(adapt, "wavelet_tool", lambda shapes: ("another", tuned_cg_sense))
    monkeypatch.setattr(fitting, "RATE", 0.02)
    save_checkpoint(tmp_path / "random.safetensors", random_denoiser(), {"sampling": SAMPLING})
    checkpoint = load_checkpoint(tmp_path / "random.safetensors", CPU)
    row = row_of("fruit", object_scan("fruit"), checkpoint)
    assert row.gate == "trusted" and "adapted" in row.text and row.seconds_adaptation > 0
    assert all(0 < value < 1 for value in (row.cg_sense, row.l1_wavelet, row.prior, row.adapted))
    assert (row.adapted == row.prior) == ("not adapted" in row.text)


def test_the_table_counts_what_holds():
    row = Row("knee", 0.3, 0.2, 0.25, 0.19, "5, .01", "caution", 2.0, 20.0, "prior adapted")
    heads = [replace(row, scan="head, t1", prior=0.1, adapted=value) for value in (0.1019, 0.1021)]
    text = table([row, replace(row, scan="bars", adapted=0.21), *heads], "tiny")
    assert "1 of 2 objects" in text and "2%" in text and "1 of 2 heads" in text
    assert "-24.0%" in text
