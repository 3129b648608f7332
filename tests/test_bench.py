"""`dpmtrain bench`: the adapters to BART and deepinv give back what the algebra says, and the table's claims."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from dpmrecon.acquisitions import slices
from dpmrecon.checkpoint import save_checkpoint
from dpmrecon.denoiser import LABELS, Denoiser
from dpmrecon.errors import BadInputError
from dpmrecon.mrd import open_scan
from dpmrecon.reconstruct import with_coil_maps
from dpmrecon.samplers import NoiseSource, noise_levels, sample_dps
from dpmrecon.simulate import truth_path
from dpmtrain.bench import (
    RealDenoiser,
    Row,
    as_channels,
    as_complex,
    claims,
    deepinv_dps,
    deepinv_published_dps,
    import_deepinv,
    l1_wavelet,
    mark_best,
    problem,
    vp_times,
)
from dpmtrain.cli import main
from test_samplers import SETTINGS, SIGMA_DATA, GaussianWorld

_, DEEPINV_REASON = import_deepinv()
needs_deepinv = pytest.mark.skipif(DEEPINV_REASON is not None, reason=str(DEEPINV_REASON))
needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="bart is not installed")


@pytest.fixture(scope="module")
def world():
    return GaussianWorld()


def mapped_slice(scan):
    with open_scan(scan) as opened:
        (mapped,) = with_coil_maps(slices(opened.acquisitions(), opened.header), torch.device("cpu"))
    return mapped


def test_channels_are_real_and_imaginary_parts():
    array = torch.randn(2, 3, 5, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    channels = as_channels(array)
    assert channels.shape == (2, 2, 3, 5)
    assert torch.equal(channels[:, 0], array.real) and torch.equal(channels[:, 1], array.imag)
    assert torch.equal(as_complex(channels), array)


def test_the_wrapped_denoiser_keeps_range_and_sigma():
    seen = []

    def denoise(x, sigma):
        seen.append(sigma)
        return 2j * x

    x = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    found = RealDenoiser(denoise)(x, torch.tensor(0.3, dtype=torch.float64))
    assert torch.equal(seen[0], torch.full((3,), 0.3))
    assert torch.allclose(as_complex(found), 2j * as_complex(x))


@needs_deepinv
def test_deepinv_has_our_noise_levels():
    deepinv, _ = import_deepinv()
    levels = torch.tensor(noise_levels(SETTINGS), dtype=torch.float64)
    theirs = deepinv.sampling.VariancePreservingDiffusion().sigma_t(vp_times(levels))
    assert torch.allclose(theirs, levels, rtol=1e-6, atol=1e-12)


@needs_deepinv
@pytest.mark.parametrize("zeta", [0.05, 1.0])
def test_deepinv_without_fresh_noise_is_our_dps_number_by_number(world, zeta):
    settings = dataclasses.replace(SETTINGS, steps=30, zeta=zeta)
    ours = sample_dps(world.problem(), world.denoise, NoiseSource([5]), settings, SIGMA_DATA)
    theirs = deepinv_published_dps(world.problem(), world.denoise, settings, 5, ancestral=False)
    assert theirs.shape == ours.shape
    assert torch.allclose(theirs, ours, atol=1e-4 * float(ours.abs().max()))
    # and with it, another draw of the same quality
    fresh = deepinv_published_dps(world.problem(), world.denoise, settings, 5)
    assert not torch.allclose(fresh, ours, atol=1e-2 * float(ours.abs().max()))


@needs_deepinv
def test_deepinv_as_it_comes_finds_the_posterior_mean(world):
    """With the exact denoiser its mean is near that of the posterior at a good weight; without data it is far."""
    draws = [deepinv_dps(world.problem(), world.denoise, 100, 100.0, seed)[0] for seed in range(8)]
    mean = torch.stack(draws).mean(0).to(torch.complex128)
    assert world.error(mean) < 1.5 * world.error(world.posterior_mean)
    prior = deepinv_dps(world.problem(), world.denoise, 100, 1e-6, 0)[0].to(torch.complex128)
    assert world.error(prior) > 3 * world.error(world.posterior_mean)


@needs_deepinv
def test_deepinv_evaluates_the_network_as_often_as_asked(world):
    calls = []

    def counting(x, sigma):
        calls.append(float(sigma[0]))
        return world.denoise(x, sigma)

    deepinv_dps(world.problem(), counting, 7, 10.0, 0)
    assert len(calls) == 7
    calls.clear()
    settings = dataclasses.replace(SETTINGS, steps=7)
    deepinv_published_dps(world.problem(), counting, settings, 0)
    assert calls == pytest.approx(noise_levels(settings)[:-1])


def distance(found, wanted):
    """Relative, after the one global phase that BART leaves free."""
    inner = (found.conj() * wanted).sum()
    return float((found * inner / inner.abs() - wanted).norm() / wanted.norm())


@needs_bart
@pytest.mark.parametrize("matrix", [(64, 64), (46, 66)])
def test_bart_without_weight_gives_the_sense_combination(simulated_scan, matrix):
    """Fully sampled data: A^H A is 1 on the support, so least squares is the coil combination A^H y."""
    mapped = mapped_slice(simulated_scan(matrix=matrix, acceleration=1, oversampling=1))
    found = l1_wavelet(mapped, 1e-7)
    combined = mapped.model.adjoint(mapped.data.kspace)
    assert found.shape == combined.shape
    assert distance(found, combined) < 1e-3
    assert distance(l1_wavelet(mapped, 0.1), combined) > 0.01


def test_odd_grids_are_not_for_bart(simulated_scan):
    with pytest.raises(BadInputError, match="45 x 66"):
        l1_wavelet(mapped_slice(simulated_scan(matrix=(45, 66), acceleration=1)), 0.01)


def row(group: str, nrmse: float, seconds: float = 1.0) -> Row:
    return Row(group, "", 1, nrmse, [nrmse], seconds)


def verdicts(rows: list[Row]) -> list[str]:
    mark_best(rows)
    return [line.split()[0] for line in claims(rows)]


def test_claims_take_the_best_of_each_group():
    good = [
        row("L1-wavelet", 0.3),
        row("L1-wavelet", 0.11),
        row("prox", 0.09),
        row("dps", 0.2, 99),
        row("dps", 0.1, 15),
        row("deepinv DPS", 0.3),
        row("deepinv DPS, published step", 0.098),
    ]
    assert verdicts(good) == ["yes", "yes", "yes", "yes"]
    bad = [row("L1-wavelet", 0.05), row("prox", 0.11), row("dps", 0.1, 14), row("deepinv DPS", 0.09)]
    assert verdicts(bad) == ["NO", "NO", "NO", "NO"]
    assert verdicts([row("prox", 0.1), row("dps", 0.1, 15)]) == ["yes", "yes"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    config = {"widths": [4, 4], "blocks": [1, 1], "embedding": 8, "labels": list(LABELS), "sigma_data": 0.25}
    save_checkpoint(path, Denoiser(config), {"sampling": {"samples": 1, "prox": {}, "dps": {"warm_start": False}}})
    return path


def test_the_command_prints_and_writes_the_table(simulated_scan, model, tmp_path, capsys):
    scan = simulated_scan(n_slices=2)
    arguments = ["bench", str(scan), "--truth", str(truth_path(scan)), "--model", str(model), "--steps", "3"]
    out = tmp_path / "bench.json"
    assert main([*arguments, "--slices", "1", "--zeta", "1,2", "--deepinv-weight", "10", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert (report["slices"], report["contrast"]) == ([0], "flair")
    rows = {(entry["group"], entry["setting"]): entry for entry in report["rows"]}
    assert rows["prox", "1 sample"]["evaluations"] == 20
    assert rows["prox, mean of 4", "4 samples"]["evaluations"] == 80
    assert rows["dps", "zeta 2"]["evaluations"] == 3
    assert rows["CG-SENSE", ""]["nrmse"] < rows["zero-filled", ""]["nrmse"]
    assert sum(entry["best"] for entry in report["rows"] if entry["group"] == "dps") == 1
    printed = capsys.readouterr().out
    assert "best by the truth" in printed and "times faster" in printed
    for needed, present in (("L1-wavelet", shutil.which("bart")), ("deepinv DPS", DEEPINV_REASON is None)):
        assert any(group == needed for group, _ in rows) == bool(present)
        assert present or f"{needed}" in printed.replace("deepinv's DPS", "deepinv DPS")  # its absence is said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--zeta", "1,x"), "--zeta"),
        (("--zeta", "-1"), "positive"),
        (("--slices", "0"), "--slices"),
        (("--contrast", "pd"), "contrast 'pd'"),
        (("--truth", "/nowhere.npy"), "nowhere.npy"),
    ],
)
def test_bad_options_are_one_line(simulated_scan, model, capsys, options, words):
    scan = simulated_scan(n_slices=2)
    assert main(["bench", str(scan), "--truth", str(truth_path(scan)), "--model", str(model), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_truth_of_another_scan_is_refused(simulated_scan, model, tmp_path, capsys):
    wrong = tmp_path / "wrong.npy"
    np.save(wrong, np.ones((1, 64, 63), np.float32))
    assert main(["bench", str(simulated_scan(n_slices=2)), "--truth", str(wrong), "--model", str(model)]) == 2
    assert "the scan needs 2 slices of (64, 64)" in capsys.readouterr().err


def test_problem_is_the_slice_at_scale_one(simulated_scan):
    mapped = mapped_slice(simulated_scan())
    found = problem(mapped, 3)
    assert found.start.shape == (3, 64, 64)
    assert torch.allclose(found.kspace[0] * mapped.scale, mapped.data.kspace)
    assert torch.allclose(found.sigma_n * mapped.scale, torch.full((3,), float(mapped.data.sigma_n)))


def test_deepinv_that_is_absent_is_named(monkeypatch, world):
    monkeypatch.setattr("dpmtrain.bench.import_deepinv", lambda: (None, "deepinv cannot be imported (why)"))
    with pytest.raises(BadInputError, match="cannot be imported"):
        deepinv_dps(world.problem(), world.denoise, 3, 1.0, 0)
