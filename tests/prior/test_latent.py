"""The kind `latent`: its networks on odd sizes, its files and what is refused, its samplers' identities."""

import json
from dataclasses import replace

import pytest
import torch
from dpmrecon.cli import main
from dpmrecon.errors import CheckpointError
from dpmrecon.physics.forward import ForwardModel
from dpmrecon.prior import checkpoint as checkpoints
from dpmrecon.prior import latent
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint, shipped_sketcher
from dpmrecon.prior.conditional import ConditionalDenoiser
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.prior.problem import NoiseSource, Problem
from dpmrecon.prior.samplers import latent as samplers
from dpmrecon.prior.samplers.latent import LatentSettings, Sketcher, sample_latent, sample_latent_hard
from dpmrecon.prior.samplers.one_step import OneStepSettings, sample_one_step
from safetensors.torch import save_file

from support.gaussian import random_model
from support.latent import CONFIG, SCHEDULE, latent_model
from support.models import TINY
from support.paths import ROOT
from support.results import report

ROWS, COLS = 21, 37


def problem_of(batch: int = 1, sigma_n: float = 1e-4, n_coils: int = 3) -> tuple[Problem, torch.Tensor]:
    """Random images, their data without noise, a start that is wrong, and the images."""
    generator = torch.Generator().manual_seed(1)
    model = random_model(ROWS, COLS, n_coils, generator)
    truth = 0.3 * complex_noise((batch, ROWS, COLS), generator) * model.support
    kspace = model.forward(truth)
    start = truth + 0.1 * complex_noise((batch, ROWS, COLS), generator)
    return Problem(model, kspace, model.adjoint(kspace), torch.full((batch,), sigma_n), start), truth


@pytest.mark.parametrize(("rows", "cols"), [(21, 37), (16, 16), (33, 8)])
def test_shapes_on_odd_and_unequal_sizes(rows, cols):
    model = latent_model()
    images = complex_noise((3, rows, cols), torch.Generator().manual_seed(0))
    z = model.encode(images)
    assert z.shape == (3, *model.latent_shape(rows, cols))
    assert model.decode(z, rows, cols).shape == images.shape and model.decode(z, rows, cols).dtype == torch.complex64
    clean, noise = model.of_contrast("t1").clean_and_noise(z, 500, z)
    signal, share = model.signal_and_noise(torch.tensor([500] * 3))
    torch.testing.assert_close(signal * clean + share * noise, z)


def test_the_sketch_begins_without_effect_and_then_has_one():
    model = latent_model()
    generator = torch.Generator().manual_seed(0)
    z, one, other = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(3))
    t, contrast = torch.tensor([300]), model.contrasts(["t2"])
    assert torch.equal(model.predict(z, t, contrast, one), model.predict(z, t, contrast, other))
    assert model.controlnet.conv_in.weight[:, 4:].abs().max() == 0
    torch.nn.init.normal_(model.controlnet.conv_in.weight, std=0.1)
    assert (model.predict(z, t, contrast, one) - model.predict(z, t, contrast, other)).abs().max() > 1e-4


def test_a_new_controlnet_changes_nothing():
    model = latent_model()
    for layer in [*model.controlnet.controlnet_down_blocks, model.controlnet.controlnet_mid_block]:
        torch.nn.init.zeros_(layer.weight)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t, contrast = torch.tensor([3, 700]), model.contrasts(["dwi", None])
    torch.testing.assert_close(model.predict(z, t, contrast, z), model.predict(z, t, contrast, None))


@pytest.mark.parametrize("sample", [sample_latent, sample_latent_hard])
def test_without_data_and_guidance_it_is_ddim(sample, monkeypatch):
    from diffusers import DDIMScheduler

    model = latent_model()
    problem, settings = Problem.without_data(2, ROWS, COLS, torch.device("cpu")), LatentSettings(5, 1000, 1000, 0.0)
    seen = []
    monkeypatch.setattr(samplers, "near_data", lambda problem, image, std, cg_steps: seen.append(image) or image)
    monkeypatch.setattr(samplers, "on_data", lambda problem, image: seen.append(image) or image)
    found = sample(problem, model.of_contrast("t1"), settings, NoiseSource([3, 4]))
    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=True)
    scheduler.num_inference_steps = 5
    shown = model.encode(problem.start)
    drawn = NoiseSource([3, 4]).draw(2, *model.latent_shape(ROWS, COLS)[1:])
    z = torch.view_as_real(drawn).permute(0, 1, 4, 2, 3).reshape(2, 4, *drawn.shape[-2:])
    for t in (999, 799, 599, 399, 199):
        z = scheduler.step(model.predict(z, torch.tensor([t, t]), model.contrasts(["t1"] * 2), shown), t, z).prev_sample
    expected = model.decode(z, ROWS, COLS)
    if sample is sample_latent:  # the change of the sketch
        expected = problem.start + expected - model.decode(shown, ROWS, COLS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(seen) == 1  # at the end alone


def test_soft_consistency_without_data_keeps_the_latent():
    model = latent_model()
    problem = Problem.without_data(1, ROWS, COLS, torch.device("cpu"))
    z = torch.randn(1, *model.latent_shape(ROWS, COLS), generator=torch.Generator().manual_seed(0))
    found = samplers.soft(problem, model.of_contrast(None), LatentSettings(), z, 0.5)
    torch.testing.assert_close(found, z, rtol=1e-4, atol=1e-4)


def test_the_result_holds_the_sampled_lines():
    model = latent_model()
    problem, _ = problem_of(batch=2)
    settings = LatentSettings(steps=3, p=500, final_std=0.5)
    found = sample_latent(problem, model.of_contrast("t1"), settings, NoiseSource([1, 2]))
    missed = problem.model.forward(found) - problem.kspace
    assert missed.norm() < 0.01 * problem.kspace.norm()


def test_hard_consistency_replaces_the_sampled_k_space_of_one_coil():
    generator = torch.Generator().manual_seed(2)
    mask = (torch.rand(ROWS, 1, generator=generator) < 0.4).float().expand(ROWS, COLS)
    one = ForwardModel(torch.ones(1, ROWS, COLS, dtype=torch.complex64), mask)
    everything = ForwardModel(one.coil_maps, torch.ones(ROWS, COLS))
    truth, other = (complex_noise((1, ROWS, COLS), generator).abs().to(torch.complex64) for _ in range(2))
    kspace = one.forward(truth)
    problem = Problem(one, kspace, one.adjoint(kspace), torch.ones(1), other)
    found = everything.forward(samplers.on_data(problem, other))
    torch.testing.assert_close(found, torch.where(mask > 0, kspace, everything.forward(other)), rtol=1e-4, atol=1e-5)


def test_guidance_lowers_the_residual():
    model = latent_model()
    problem, truth = problem_of()
    prior, z = model.of_contrast(None), model.encode(truth)

    def residual(z: torch.Tensor) -> float:
        return float((problem.model.forward(model.decode(z, ROWS, COLS)) - problem.kspace).norm())

    assert residual(samplers.guided(problem, prior, LatentSettings(guidance=0.002), z)) < residual(z)
    assert samplers.guided(problem, prior, LatentSettings(guidance=0.0), z) is z


def test_batching_changes_nothing_and_stop_ends_it():
    model, counted = latent_model(), []
    problem, _ = problem_of()
    settings = LatentSettings(steps=4, first=600, eta=0.5)
    single = [sample_latent(problem, model.of_contrast("t1"), settings, NoiseSource([seed])) for seed in (5, 6)]
    both = Problem(problem.model, problem.kspace, problem.zero_filled, problem.sigma_n, problem.start.expand(2, -1, -1))
    together = sample_latent(both, model.of_contrast("t1", counted.append), settings, NoiseSource([5, 6]))
    torch.testing.assert_close(together, torch.cat(single), rtol=1e-3, atol=1e-5)
    assert counted == [2] * 4 and (single[0] - single[1]).abs().max() > 3e-4
    sample_latent(both, model.of_contrast("t1", counted.append), settings, NoiseSource([5, 6]), lambda: True)
    assert counted == [2] * 5


def test_the_sketch_is_the_regression_networks_own_image_of_the_contrast():
    torch.manual_seed(0)
    denoiser = ConditionalDenoiser({**TINY, "conditioning": "cg-sense"}).eval().requires_grad_(False)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    settings, model = OneStepSettings(steps=2, a_round=1, noise_scale=0.0), latent_model()
    problem, _ = problem_of(batch=2)
    assert samplers.sketch(problem, model.of_contrast("t1"), NoiseSource([0, 0])) is problem.start
    model.sketcher = Sketcher(denoiser, settings)
    found = samplers.sketch(problem, model.of_contrast("t1"), NoiseSource([0, 0]))
    own = sample_one_step(problem, denoiser.of_contrast("t1"), settings, NoiseSource([0, 0]))
    assert torch.equal(found, own) and not torch.equal(found, problem.start)
    few = LatentSettings(2, first=100)
    image = sample_latent(problem, model.of_contrast("t1"), few, NoiseSource([0, 0]))
    noise, model.sketcher = NoiseSource([0, 0]), None
    for _ in range(settings.steps):  # what the Sketcher drew
        noise.draw(ROWS, COLS)
    assert torch.equal(image, sample_latent(replace(problem, start=own), model.of_contrast("t1"), few, noise))


def test_a_card_names_the_sketcher_and_another_ones_is_refused(tmp_path):
    sketcher, shipped = shipped_sketcher()
    assert sketcher.denoiser.refiner is not None and sketcher.settings.steps == 1
    assert shipped == json.loads((ROOT / "models/latent.json").read_text())["sketcher"]
    path = tmp_path / "latent.safetensors"
    save_checkpoint(path, latent_model(), {"kind": "latent", "sketcher": shipped})
    model = load_checkpoint(path).model
    assert model.sketcher is not None and not any(name.startswith("sketcher") for name in model.state_dict())
    save_checkpoint(path, latent_model(), {"kind": "latent", "sketcher": "one_step-000"})
    with pytest.raises(CheckpointError, match="trained on sketches of one_step-000, this version ships one_step-"):
        load_checkpoint(path)


def test_without_its_noise_a_start_at_the_sketch_is_the_same_for_every_seed():
    model = latent_model()
    problem, _ = problem_of()

    def image(seed: int, noise_scale: float) -> torch.Tensor:
        settings = LatentSettings(steps=2, first=300, noise_scale=noise_scale)
        return sample_latent(problem, model.of_contrast("t1"), settings, NoiseSource([seed]))

    assert torch.equal(image(1, 0.0), image(2, 0.0)) and not torch.equal(image(1, 1.0), image(2, 1.0))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "latent.safetensors"
    card = {"kind": "latent", "sampling": {"samples": 2, "latent": {"steps": 3}}}
    save_checkpoint(path, latent_model(), card)
    return path


def test_a_saved_model_comes_back_in_bfloat16(saved):
    loaded = load_checkpoint(saved)
    for name, value in latent_model().state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value.to(torch.bfloat16).float()), name
    assert loaded.kind.sampler(None)[0] == "latent" and len(loaded.model.alphas) == 1000


def test_a_damaged_or_pickled_file_is_refused(saved):
    data = saved.read_bytes()
    saved.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="has checksum .* its card says"):
        load_checkpoint(saved)
    pickled = saved.with_suffix(".bin")
    torch.save({}, pickled)
    with pytest.raises(CheckpointError, match="is pickled, which can run any code"):
        load_checkpoint(pickled)


def test_a_missing_part_is_refused(tmp_path):
    model, path = latent_model(), tmp_path / "part.safetensors"
    del model.controlnet
    save_checkpoint(path, model, {"kind": "latent"})
    with pytest.raises(CheckpointError, match="does not hold the network its card describes"):
        load_checkpoint(path)


def test_without_diffusers_the_sentence_names_the_extra(saved, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(CheckpointError, match=r"needs diffusers.*pip install dpmrecon\[latent\]"):
        load_checkpoint(saved)


def test_replay_finds_the_model_by_its_name(simulated_scan, saved, tmp_path, monkeypatch, capsys):
    scan, out = str(simulated_scan(matrix=(48, 64))), tmp_path / "out"
    monkeypatch.setattr(checkpoints, "MODELS", tmp_path / "none")
    assert main(["replay", scan, "--out", str(out), "--model", "latent"]) == 2
    assert "the model latent is not in" in capsys.readouterr().err
    monkeypatch.setattr(checkpoints, "MODELS", saved.parent)
    assert main(["replay", scan, "--out", str(out), "--model", "latent"]) == 0
    found = report(out)
    assert found["sampler"] == "latent" and found["settings"]["steps"] == 3
    assert [(entry["samples"], entry["evaluations"], entry["fallback"]) for entry in found["slices"]] == [(2, 6, None)]


def stable_diffusion_folder(folder):
    """A folder as Stable Diffusion 2.1-base has it, with small random weights and the autoencoder's old names."""
    vae = {**CONFIG["autoencoder"], "in_channels": 3, "out_channels": 3, "mid_block_add_attention": True}
    unet = {**CONFIG["unet"]}
    del unet["num_class_embeds"]
    model = latent_model({**CONFIG, "autoencoder": vae, "unet": unet})
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = model.autoencoder.state_dict()
    for new, name in old.items():
        weights = {key.replace(new, name): value for key, value in weights.items()}
    scheduler = {"_class_name": "PNDMScheduler", **SCHEDULE, "prediction_type": "epsilon", "skip_prk_steps": True}
    for part, config, state in (
        ("vae", {"_class_name": "AutoencoderKL", **vae, "scaling_factor": 0.25}, weights),
        ("unet", {"_class_name": "UNet2DConditionModel", **unet}, model.unet.state_dict()),
        ("scheduler", scheduler, None),
    ):
        (folder / part).mkdir(parents=True)
        name = "scheduler_config.json" if state is None else "config.json"
        (folder / part / name).write_text(json.dumps(config))
        if state is not None:
            save_file({k: v.contiguous() for k, v in state.items()}, folder / part / latent.WEIGHTS)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return model


def test_stable_diffusion_from_a_folder(tmp_path):
    written = stable_diffusion_folder(tmp_path / "sd")
    checksum = latent.folder_checksum(tmp_path / "sd")
    model = latent.load_stable_diffusion(tmp_path / "sd", checksum, ["t1"])
    for part in ("autoencoder", "unet"):
        for name, value in getattr(written, part).state_dict().items():
            assert torch.equal(getattr(model, part).state_dict()[name], value), name
    assert not model.velocity and float(model.std[0, 0, 0, 0]) == 4.0
    save_checkpoint(tmp_path / "sd.safetensors", model, {"kind": "latent"})
    kept = load_checkpoint(tmp_path / "sd.safetensors").model
    assert float(kept.std[0, 0, 0, 0]) == 4.0 and not kept.velocity
    problem, _ = problem_of()
    assert sample_latent(problem, model.of_contrast("t1"), LatentSettings(2), NoiseSource([0])).isfinite().all()


def test_stable_diffusion_that_is_not_what_was_trusted_is_refused(tmp_path):
    folder = tmp_path / "sd"
    stable_diffusion_folder(folder)
    with pytest.raises(CheckpointError, match="has checksum .* where 000 is expected"):
        latent.load_stable_diffusion(folder, "000", ["t1"])
    weights = folder / "unet" / latent.WEIGHTS
    whole = weights.read_bytes()
    save_file({"conv_in.weight": torch.zeros(1)}, weights)
    with pytest.raises(CheckpointError, match="does not hold Stable Diffusion 2.1-base"):
        latent.load_stable_diffusion(folder, latent.folder_checksum(folder), ["t1"])
    weights.unlink()
    with pytest.raises(CheckpointError, match="has no unet/diffusion_pytorch_model.safetensors: take"):
        latent.folder_checksum(folder)
    weights.with_suffix(".bin").write_bytes(whole)
    with pytest.raises(CheckpointError, match="only pickled weights .diffusion_pytorch_model.bin."):
        latent.folder_checksum(folder)
