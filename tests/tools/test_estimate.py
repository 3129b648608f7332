"""`dpmrecon estimate`: the cost model, and what a deadline chooses."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from dpmrecon.cli import main
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.physics.coil_compression import compressed
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.prior.samplers.diffusion import SamplerSettings
from dpmrecon.recon.types import Sampling
from dpmrecon.tools import estimate
from dpmrecon.tools.estimate import CostModel, Load, Measurement, cost_model, measure, volume_cost_model

from support.clock import Clock

SCAN = {"matrix": (48, 64), "n_slices": 4}


SAMPLING = Sampling("prox", SamplerSettings(steps=15), 3, 0, 4, fallback=False)
CPU = torch.device("cpu")


def cost(load: Load) -> Measurement:
    """What a machine of our own takes: 500 MB without a slice, and an evaluation of 48 x 64 and 6 coils 1 s."""
    size, images = load.megapixels, load.megapixels * load.images_at_once
    return Measurement(
        load,
        maps=0.05 + 2 * size * load.n_coils**2,
        conventional=0.02 + 3 * size * load.n_coils,
        evaluation=(20 * size + size * load.n_coils) / (26 * 48 * 64e-6),
        peak=500 + 900 * images + 200 * size * load.n_coils,
    )


@pytest.fixture
def machine(monkeypatch):
    """That machine in place of this one."""
    monkeypatch.setattr(estimate, "measure", lambda checkpoint, sampling, load, device: cost(load))
    monkeypatch.setattr(estimate, "memory_peak", lambda device: 500.0)


def test_the_estimate_of_any_load_is_what_the_machine_takes(machine):
    load = Load(64, 80, 6, 3, 3, 15, 4)
    model = cost_model(None, SAMPLING, load, CPU, start=7.0)
    assert model.error < 1e-6
    assert model.peak(load) == pytest.approx(cost(load).peak)
    for name in ("rows", "cols", "n_coils", "n_slices", "samples", "steps"):
        more = replace(load, **{name: 2 * getattr(load, name)})
        true = cost(more)
        slice_seconds = true.maps + true.conventional + more.samples * more.steps * true.evaluation
        assert model.seconds(more) == pytest.approx(7 + more.n_slices * slice_seconds)
        assert model.seconds(more) > model.seconds(load)
        assert model.peak(more) >= model.peak(load) > model.base


def test_an_adaptation_is_paid_once_a_scan():
    load = Load(64, 80, 6, 3, 3, 15, 4)
    nothing = np.zeros(3)
    model = CostModel(nothing[:2], nothing[:2], nothing[:2], nothing, start=2.0, base=0.0, error=0.0, adaptation=1000.0)
    once = 1000 * 64 * 80e-6 * 15
    assert model.once(load) == pytest.approx(once) and model.seconds(load) == pytest.approx(2 + once)
    assert model.seconds(replace(load, n_slices=9, samples=7)) == model.seconds(load)
    assert model.once(replace(load, steps=30, rows=128)) == pytest.approx(4 * once)


def test_a_volume_is_estimated_from_smaller_ones(monkeypatch):
    """Costs that go as the features of volumes do are found again, and the memory is counted."""
    tried: list[Load] = []

    def volume_cost(checkpoint, sampling, load, device):
        tried.append(load)
        size = load.megapixels
        maps = float(estimate._maps(load) @ np.array([0.1, 0.2, 0.3]))
        return Measurement(load, maps, 0.1 + 3 * size * load.n_coils, 20 * size + size * load.n_coils, 0.0)

    monkeypatch.setattr(estimate, "measure", volume_cost)
    load = Load(256, 256, 16, 1, 2, 15, 4, partitions=176)
    model = volume_cost_model(None, SAMPLING, load, CPU, 0.0, 500.0)
    assert max(one.megapixels for one in tried) < 0.5 and {one.n_coils for one in tried} == {8, 16}
    found, exact = model.stages(load), volume_cost(None, None, load, None)
    assert found["maps"] == pytest.approx(exact.maps, rel=0.05)
    assert found["conventional"] == pytest.approx(exact.conventional, rel=1e-3)
    assert found["sampling"] == pytest.approx(30 * exact.evaluation, rel=1e-3)
    assert 500 + 2 * 8 * 16 * load.megapixels < model.peak(load) < 8000
    # samples are kept, and put together
    one, sixteen = (model.peak(replace(load, samples=samples)) for samples in (1, 16))
    assert sixteen - one > 15 * 2 * 8 * load.megapixels


def test_estimate_of_a_volume(short_kernel, simulated_scan, model, capsys):
    scan = str(simulated_scan(partitions=20))
    assert main(["estimate", scan, "--model", str(model), "--device", "cpu", "--samples", "1"]) == 0
    printed = capsys.readouterr().out
    assert "1 volumes of 20 x 26 x 24, 5 coils; prox, mode fast: 1 samples of 4 steps" in printed
    assert re.search(r"sampling +\d+\.\d+ s a volume", printed) and "reading" in printed


def test_an_evaluation_is_measured_for_one_image_and_step(model):
    checkpoint, clock = load_checkpoint(model), Clock(per_image=0.02)
    clock.watch(checkpoint.denoiser)
    load = Load(48, 64, 6, 3, 2, 15, 4)
    assert load.slices_at_once == 2
    found = measure(checkpoint, SAMPLING, load, CPU, clock)
    assert found.evaluation == pytest.approx(0.02)
    assert min(found.maps, found.conventional, found.peak) > 0


def test_estimate_prints_seconds_memory_and_what_a_deadline_chooses(machine, simulated_scan, tiny_model, capsys):
    scan, model = str(simulated_scan(**SCAN)), str(tiny_model(samples=3, prox={"steps": 4000}))
    # hours, beside which the start of the command, a real one, is nothing
    assert main(["estimate", scan, "--model", model, "--device", "cpu", "--deadline", "20000"]) == 0
    printed = capsys.readouterr().out
    assert "4 slices of 48 x 64, 6 coils; prox, mode fast: 3 samples of 4000 steps" in printed
    assert "the fit misses them by 0%" in printed
    assert re.search(r"sampling +12000\.000 s a slice", printed)
    assert re.search(r"the scan: 48\d\d\d\.\d s, about 5\d\d MB", printed)
    assert re.search(r"deadline of 20000 s: 2 x 2\d\d\d steps for every slice", printed)


def test_estimate_counts_virtual_coils_and_survives_a_deadline_that_is_too_short(simulated_scan, model, capsys):
    scan = str(simulated_scan(**SCAN, n_coils=24))
    assert main(["estimate", scan, "--model", str(model), "--device", "cpu", "--deadline", "0"]) == 0
    printed = capsys.readouterr().out
    with open_scan(scan) as opened:
        kept = len(compressed(next(slices(opened.acquisitions(), opened.header))).kspace)
    assert kept < 24
    assert f"24 coils ({kept} virtual ones)" in printed
    assert "deadline of 0 s: no time for the model: CG-SENSE for every slice" in printed
