"""`dpmtrain bench`: the adapters to BART and deepinv give back what the algebra says; tuning, resuming, claims."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from dpmrecon.contrasts import LABELS
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.prior.denoiser import Denoiser
from dpmrecon.prior.problem import NoiseSource
from dpmrecon.prior.samplers.diffusion import initial_image, noise_levels, sample_dps
from dpmrecon.recon.prepare import with_coil_maps
from dpmrecon.recon.sample import problem_of
from dpmtrain.bench.baselines import (
    RealDenoiser,
    as_channels,
    as_complex,
    deepinv_diffpir,
    deepinv_dps,
    dps_sampler,
    gadgetron_images,
    import_deepinv,
    run_dps,
)
from dpmtrain.bench.methods import Ours, dps_settings
from dpmtrain.bench.plan import BenchPlan
from dpmtrain.bench.report import by_method, claims
from dpmtrain.cli import main
from dpmtrain.evaluate.baselines import l1_wavelet
from dpmtrain.evaluate.engine import Tuner
from dpmtrain.evaluate.plan import Condition
from dpmtrain.evaluate.score_lines import ScoreLines
from dpmtrain.evaluate.scoring import Row
from dpmtrain.hardware import network_work

from support.gaussian import SETTINGS
from support.models import TINY
from support.paths import ROOT

_, DEEPINV_REASON = import_deepinv()
needs_deepinv = pytest.mark.skipif(DEEPINV_REASON is not None, reason=str(DEEPINV_REASON))
needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="bart is not installed")


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


def test_the_range_of_photographs_is_ours_moved_and_stretched():
    """An image in [0, 1] that stands for parts from -2 to 2 has a quarter of their noise."""
    seen = []

    def denoise(x, sigma):
        seen.append((x, sigma))
        return 0.5 * x

    x = torch.randn(3, 4, 5, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    found = RealDenoiser(denoise, span=2.0)((as_channels(x) / 2 + 1) / 2, 0.1)
    assert torch.allclose(seen[0][0], x, atol=1e-6) and torch.allclose(seen[0][1], torch.full((3,), 0.4))
    assert torch.allclose(2 * (2 * found - 1), as_channels(0.5 * x), atol=1e-6)


def vp_times(levels):
    """The times at which deepinv's VariancePreservingDiffusion (beta from 0.1 to 20) has the noise `levels`."""
    slope = 20.0 - 0.1
    return ((0.1**2 + 2 * slope * levels.square().log1p()).sqrt() - 0.1) / slope


@needs_deepinv
@pytest.mark.parametrize("zeta", [0.05, 1.0])
def test_deepinv_on_our_noise_levels_is_our_dps_number_by_number(world, zeta):
    """With the published step (Chung et al., ICLR 2023) and DDIM steps, which draw no fresh noise.

    In variance-exploding coordinates the data term of deepinv 0.5 is weight (sigma_i^2 - sigma_i sigma_{i+1})
    grad ||r||; the published algorithm and `sample_dps` take the same 2 zeta grad ||r|| in every step.
    """
    deepinv, _ = import_deepinv()
    settings = dataclasses.replace(SETTINGS, steps=30, zeta=zeta)
    levels = torch.tensor(noise_levels(settings), dtype=torch.float64)
    theirs = deepinv.sampling.VariancePreservingDiffusion().sigma_t(vp_times(levels))
    assert torch.allclose(theirs, levels, rtol=1e-6, atol=1e-12)
    weights = iter((2 * zeta / (levels[:-1] * (levels[:-1] - levels[1:]))).tolist())

    class PublishedStep(deepinv.sampling.DPSDataFidelity):
        def forward(self, *args, **kwargs):
            self.weight = next(weights)  # called once a step
            return super().forward(*args, **kwargs)

    solver = deepinv.sampling.DDIMSolver(timesteps=vp_times(levels), rng=torch.Generator().manual_seed(5))
    sampler = dps_sampler(world.denoise, 5, solver=solver)
    sampler.data_fidelity = PublishedStep(sampler.data_fidelity.denoiser)
    # a variance-preserving state is x / sqrt(1 + sigma^2)
    start = as_channels(initial_image(world.problem(), NoiseSource([5]), settings)).double()
    found = run_dps(sampler, world.problem(), start / (1 + levels[0].square()).sqrt())
    ours = sample_dps(world.problem(), world.prior, settings, NoiseSource([5]))
    assert found.shape == ours.shape
    assert torch.allclose(found, ours, atol=1e-4 * float(ours.abs().max()))


@needs_deepinv
@pytest.mark.parametrize(
    ("baseline", "weight", "without_data"), [(deepinv_dps, 100.0, 1e-6), (deepinv_diffpir, 7.0, 1e6)]
)
def test_deepinv_finds_the_posterior_mean(world, baseline, weight, without_data):
    """With the exact denoiser its mean is near that of the posterior at a good weight; without data it is far."""
    draws = [baseline(world.problem(), world.denoise, 100, weight, seed)[0] for seed in range(8)]
    mean = torch.stack(draws).mean(0).to(torch.complex128)
    assert world.error(mean) < 1.5 * world.error(world.posterior_mean)
    prior = baseline(world.problem(), world.denoise, 100, without_data, 0)[0].to(torch.complex128)
    assert world.error(prior) > 3 * world.error(world.posterior_mean)


@needs_deepinv
@pytest.mark.parametrize("baseline", [deepinv_dps, deepinv_diffpir])
def test_deepinv_evaluates_the_network_as_often_as_asked(world, baseline):
    calls = []

    def counting(x, sigma):
        calls.append(float(sigma[0]))
        return world.denoise(x, sigma)

    baseline(world.problem(), counting, 7, 10.0, 0)
    assert len(calls) == 7 and calls == sorted(calls, reverse=True)


def test_deepinv_that_is_absent_is_named(monkeypatch, world):
    monkeypatch.setattr("dpmtrain.bench.baselines.import_deepinv", lambda: (None, "deepinv cannot be imported (why)"))
    with pytest.raises(BadInputError, match="cannot be imported"):
        deepinv_dps(world.problem(), world.denoise, 3, 1.0, 0)


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


def test_problem_is_the_slice_at_scale_one(simulated_scan):
    mapped = mapped_slice(simulated_scan())
    found = problem_of([mapped] * 3)
    assert found.start.shape == (3, 64, 64)
    assert torch.allclose(found.kspace[0] * mapped.scale, mapped.data.kspace)
    assert torch.allclose(found.sigma_n * mapped.scale, torch.full((3,), float(mapped.data.sigma_n)))


def test_images_of_a_gadgetron_are_read_by_slice(tmp_path):
    import ismrmrd

    dataset = ismrmrd.Dataset(str(tmp_path / "images.h5"), "res")
    for number in (2, 0):
        image = ismrmrd.Image.from_array(np.full((1, 4, 6), 10 + number, np.uint16), transpose=False)
        image.slice = number
        dataset.append_image("image_1", image)
    dataset.close()
    found = gadgetron_images(tmp_path / "images.h5")
    assert {number: (image.shape, float(image.mean())) for number, image in found.items()} == {
        0: ((4, 6), 10.0),
        2: ((4, 6), 12.0),
    }
    with pytest.raises(BadInputError, match="no image file"):
        gadgetron_images(tmp_path / "absent.h5")


def test_work_of_the_network_is_that_of_its_convolutions():
    """Forward: 2 x taps x input channels for each output number; the input's gradient is as much again."""
    config = {**TINY, "widths": [4, 6], "blocks": [1, 2]}
    forward, moved = network_work(config, (45, 66))
    model, counted = Denoiser(config), []

    def count(layer, _, output):
        counted.append(2 * output.numel() * layer.weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(count)
        elif isinstance(layer, torch.nn.ConvTranspose2d):  # every input number meets all taps
            layer.register_forward_hook(lambda m, x, _: counted.append(2 * x[0].numel() * m.weight[0].numel()))
    model(torch.zeros(1, 45, 66, dtype=torch.complex64), torch.ones(1), torch.zeros(1, len(LABELS)))
    assert forward == sum(counted)
    assert network_work(config, (45, 66), gradient=True)[0] == pytest.approx(2 * forward, rel=0.01)
    assert moved > 4 * sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(prox={"cg_steps": 2}, dps={"warm_start": False})


OPTIONS = ["--matrix", "48", "--contrasts", "flair", "--slices", "2", "--dps-steps", "3", "--without", "deepinv"]


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A folder with the results of the command on phantoms."""
    out = tmp_path_factory.mktemp("bench")
    assert main(["bench", "--model", str(model), "--out", str(out), *OPTIONS]) == 0
    return out


def test_the_command_writes_table_and_plot(finished):
    with (finished / "table.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert [rows[f"prox {steps}"]["evaluations"] for steps in (10, 20, 50)] == ["10", "20", "50"]
    assert rows["prox default, mean of 2"]["evaluations"] == "40" and rows["dps 3"]["evaluations"] == "3"
    assert {row["slices"] for row in rows.values()} == {"2"}
    for row in rows.values():
        assert float(row["nrmse_low"]) <= float(row["nrmse"]) <= float(row["nrmse_high"])
        stages = sum(float(row[stage] or 0) for stage in ("maps", "start", "network", "rest"))
        assert float(row["seconds"]) == pytest.approx(stages, rel=1e-3)
        assert "thread" in row["device"]
    # tuned alike on another head: better than untuned zero-filling, and close without a factor
    assert float(rows["CG-SENSE"]["nrmse"]) < float(rows["zero-filled"]["nrmse"])
    assert float(rows["CG-SENSE"]["nrmse_no_factor"]) < 1.5 * float(rows["CG-SENSE"]["nrmse"])
    ratio = float(rows["dps 3"]["gflop"]) / float(rows["prox 10"]["gflop"])
    assert ratio == pytest.approx(0.6, rel=0.02)  # 3 evaluations with a gradient against 10 without
    table = (finished / "table.md").read_text()
    assert "times less network compute" in table and "dps 3, flair, R = 4" in table
    assert (finished / "bench.png").stat().st_size > 10_000


def test_nothing_is_tuned_on_what_is_scored(finished):
    lines = [json.loads(line) for line in (finished / "results.jsonl").read_text().splitlines()]
    tuned = {scan for line in lines if "tuned" in line["key"] for scan, _ in line["value"]["on"]}
    scored = {line["key"]["scan"] for line in lines if "scan" in line["key"]}
    assert tuned == {"phantom1_flair"} and scored == {"phantom0_flair"}


def test_a_second_run_goes_on(finished, model, tmp_path):
    """Only what is missing, here the last score, cut short by a kill, is done again; the rest stays byte for byte."""
    whole = (finished / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(whole[:-1]) + whole[-1][:40])
    assert main(["bench", "--model", str(model), "--out", str(tmp_path), *OPTIONS]) == 0
    again = (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)
    assert again[:-1] == whole[:-1]
    scores = [json.loads(lines[-1])["value"] for lines in (whole, again)]
    assert scores[0]["cross"] == scores[1]["cross"]


def test_the_zeta_of_the_sweep_comes_before_tuning(tmp_path):
    """That of the card, for the contrast, R and number of steps it was swept with; else the validation slices."""
    swept = {"sampler": "dps", "contrast": "flair", "R": 4, "settings": {"zeta": 3.0}}
    card = {"sampling": {"dps": {"steps": 300, "zeta": 1.0}, "by_contrast_R": [swept]}}

    def no_slices(contrast):
        raise LookupError(contrast)

    ours = Ours(Checkpoint(Denoiser(TINY), card, "tiny"), 0)
    tuner = Tuner(no_slices, 1, ScoreLines(tmp_path / "results.jsonl"), torch.device("cpu"))
    assert dps_settings("flair", Condition("regular", 4), BenchPlan(), ours, tuner).zeta == 3.0
    for contrast, acceleration, plan in (
        ("t1", 4, BenchPlan()),
        ("flair", 5, BenchPlan()),
        ("flair", 4, BenchPlan(dps_steps=9)),
    ):
        with pytest.raises(LookupError):
            dps_settings(contrast, Condition("regular", acceleration), plan, ours, tuner)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--R", "4,x"), "--R"),
        (("--slices", "0"), "--slices"),
        (("--contrasts", "pd"), "'pd'"),
        (("--without", "bart"), "'bart'"),
        (("--data", "/nowhere"), "ismrmrd"),
    ],
)
def test_bad_options_are_one_line(model, tmp_path, capsys, options, words):
    assert main(["bench", "--model", str(model), "--out", str(tmp_path), *options]) == 2
    assert words in capsys.readouterr().err


def row(method, errors, seconds, gflop, device="here"):
    """Slices whose NRMSE without a factor is as given: image and truth at right angles otherwise."""
    scores = [
        {"cross": 1.0, "image": 1 + error**2, "truth": 1.0, "device": device, "gflop": gflop,
         "seconds": {"maps": 1.0, "network": seconds, "rest": 0}}
        for error in errors
    ]  # fmt: skip
    return Row(
        "flair", Condition("regular", 4), method, "", [("scan", number) for number in range(len(errors))], scores
    )


def test_claims_are_paired_and_give_both_ratios():
    prox = [row("prox 10", [0.101, 0.201, 0.301], 2.0, 10.0), row("prox 20", [0.12, 0.24, 0.36], 4.0, 20.0)]
    speed, ten, twenty = claims([row("dps 300", [0.1, 0.2, 0.3], 90.0, 600.0), *prox], BenchPlan())
    assert "60 times less network compute" in speed and "45 times less wall time" in speed
    assert "30 times with coil maps" in speed and "NO" not in speed and "here" in speed
    assert ten.endswith("yes") and twenty.endswith("NO")
    elsewhere = row("dps 300", [0.1, 0.2, 0.3], 90.0, 600.0, "there")
    assert "DIFFERENT machines" in claims([elsewhere, *prox], BenchPlan())[0]


def test_contrasts_of_one_method_are_one_row_in_which_each_scan_has_its_factor():
    flair = row("prox 10", [0.1, 0.2], 1.0, 1.0)
    t1 = dataclasses.replace(flair, contrast="t1", slices=[("other", 0), ("other", 1)])
    (both,) = by_method([flair, t1])
    assert both.slices == [*flair.slices, *t1.slices] and both.nrmse == [*flair.nrmse, *t1.nrmse]
    assert len(flair.slices) == 2  # as it was


def test_bench_gpu_times_every_stage_of_both_networks(model, tmp_path, capsys):
    lines = (f"{key} = {json.dumps(value)}" for key, value in {**TINY, "widths": [8, 8]}.items())
    default = ROOT / "training/recipes/default.toml"
    recipe = tmp_path / "wide.toml"
    train = default.read_text().split("[train]")[1]
    recipe.write_text("[model]\n" + "\n".join(lines) + "\n[train]" + train)
    small = ["--matrix", "48", "--coils", "4", "--slices", "2", "--steps", "2,4", "--dps-steps", "3", "--device", "cpu"]
    assert main(["bench-gpu", "--model", str(model), "--recipe", str(recipe), "--out", str(tmp_path), *small]) == 0
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == 2 * ["prox 2", "prox 4", "dps 3"]
    for row in rows:
        stages = [float(row[stage]) for stage in ("maps", "start", "forward", "rest")]
        assert min(stages) > 0 and sum(stages) == pytest.approx(float(row["seconds"]))
        assert float(row["roofline"]) > 0 and "thread" in row["device"]
    flops = [float(row["gflop"]) for row in rows]
    assert flops[1] == pytest.approx(2 * flops[0]) and flops[2] == pytest.approx(3 * flops[0], rel=0.02)
    assert flops[3] > 2 * flops[0]
    assert "wide, random weights: prox 4" in capsys.readouterr().out
    assert main(["bench-gpu", "--out", str(tmp_path), "--matrix", "8"]) == 2
    assert "--matrix is 8" in capsys.readouterr().err
