"""`dpmrecon estimate`: the cost model, and what a deadline chooses."""

import re
import time
from dataclasses import replace

import pytest
import torch
from dpmrecon.cli import main
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.physics.coil_compression import compressed
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.prior.samplers.diffusion import SamplerSettings
from dpmrecon.recon.prepare import with_coil_maps
from dpmrecon.recon.stream import sampled
from dpmrecon.recon.types import Sampling
from dpmrecon.tools.estimate import Load, cost_model

SCAN = {"matrix": (48, 64), "n_slices": 4}


def test_the_estimate_grows_with_the_load_and_is_near_a_small_run(simulated_scan, slow_model):
    device, checkpoint = torch.device("cpu"), load_checkpoint(slow_model)
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


def test_estimate_prints_seconds_memory_and_what_a_deadline_chooses(simulated_scan, slow_model, capsys):
    scan = str(simulated_scan(**SCAN))
    assert main(["estimate", scan, "--model", str(slow_model), "--device", "cpu", "--deadline", "30"]) == 0
    printed = capsys.readouterr().out
    assert "4 slices of 48 x 64, 6 coils; prox, mode fast: 3 samples of 4000 steps" in printed
    assert re.search(r"the scan: \d+\.\d s, about \d+ MB", printed)
    assert re.search(r"deadline of 30 s: [123] x \d+ steps for every slice", printed)


def test_estimate_counts_virtual_coils_and_survives_a_deadline_that_is_too_short(simulated_scan, slow_model, capsys):
    scan = str(simulated_scan(**SCAN, n_coils=24))
    assert main(["estimate", scan, "--model", str(slow_model), "--device", "cpu", "--deadline", "0"]) == 0
    printed = capsys.readouterr().out
    with open_scan(scan) as opened:
        kept = len(compressed(next(slices(opened.acquisitions(), opened.header))).kspace)
    assert kept < 24
    assert f"24 coils ({kept} virtual ones)" in printed
    assert "deadline of 0 s: no time for the model: CG-SENSE for every slice" in printed
