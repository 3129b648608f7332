"""The network, its preconditioning and the checkpoint format."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dpmrecon import options
from dpmrecon.errors import CheckpointError
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint, write_card
from dpmrecon.prior.denoiser import Denoiser, complex_noise
from dpmrecon.prior.samplers import SamplerSettings

from support.models import THREE_LEVELS, random_denoiser


@pytest.mark.parametrize("size", [(8, 8), (33, 47), (18, 31), (2, 5)])
def test_any_matrix_size(size):
    x = complex_noise((3, *size), torch.Generator().manual_seed(1))
    model = random_denoiser()
    out = model(x, torch.tensor([0.1, 1.0, 5.0]), model.one_hot(["flair", None, "swi"]))
    assert out.shape == x.shape
    assert out.dtype == torch.complex64
    assert torch.isfinite(torch.view_as_real(out)).all()


def test_preconditioning_at_both_ends():
    """Little noise: D(x) = x. Nothing but noise: D is of the size of the data, whatever the size of x."""
    model = random_denoiser()
    label = model.one_hot([None])
    x = complex_noise((1, 16, 15), torch.Generator().manual_seed(2))
    assert torch.allclose(model(x, torch.tensor([1e-5]), label), x, atol=1e-3)
    far = [model(sigma * x, torch.tensor([sigma]), label).abs().max() for sigma in (1e3, 1e4)]
    assert far[1] < 5 * far[0]


def test_untrained_network_is_the_gaussian_denoiser():
    model = Denoiser(THREE_LEVELS)  # its head is zero: only the skip path is left
    x = complex_noise((1, 9, 6), torch.Generator().manual_seed(3))
    expected = x * 0.25**2 / (0.25**2 + 0.5**2)
    assert torch.allclose(model(x, torch.tensor([0.5]), model.one_hot([None])), expected, atol=1e-6)


def test_bfloat16_changes_little_and_no_gradient():
    model = load_checkpoint().denoiser
    x = complex_noise((2, 64, 47), torch.Generator().manual_seed(5))
    sigma, label = torch.tensor([0.1, 1.0]), model.one_hot(["flair", "t1"])
    found = []
    for model.bf16 in (False, True):
        with torch.no_grad():
            found.append(model(x, sigma, label) - x)
        found.append(model(x, sigma, label) - x)
    exact, with_gradient, reduced, reduced_with_gradient = found
    assert torch.equal(reduced_with_gradient, with_gradient)
    assert 0 < (reduced - exact).norm() < 0.01 * exact.norm()


def test_batching_and_labels():
    model = random_denoiser()
    x = complex_noise((2, 21, 14), torch.Generator().manual_seed(4))
    sigma = torch.tensor([0.2, 0.7])
    both = model(x, sigma, model.one_hot(["t1", "flair"]))
    alone = model(x[1:], sigma[1:], model.one_hot(["flair"]))
    assert torch.allclose(both[1:], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[1:], model(x[1:], sigma[1:], model.one_hot(["t2"])), atol=1e-4)
    unlabelled = model(x[1:], sigma[1:], model.one_hot([None]))
    assert torch.equal(unlabelled, model(x[1:], sigma[1:], model.one_hot(["no such label"])))


def test_checkpoint_round_trip(tmp_path):
    model = random_denoiser()
    save_checkpoint(tmp_path / "m.safetensors", model, {"sampling": {"samples": 2}})
    loaded = load_checkpoint(tmp_path / "m.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.denoiser.state_dict()[name], value)
    assert loaded.card["sampling"] == {"samples": 2}
    assert loaded.model_id.startswith("m-")


def test_a_large_network_is_stored_in_half_precision(tmp_path):
    model = Denoiser({**THREE_LEVELS, "widths": [64, 256, 512]})
    assert sum(p.numel() for p in model.parameters()) > 4_000_000
    save_checkpoint(tmp_path / "m.safetensors", model, {})
    assert (tmp_path / "m.safetensors").stat().st_size < 2.1 * sum(p.numel() for p in model.parameters())


def damage_weights(folder):
    data = bytearray((folder / "m.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "m.safetensors").write_bytes(data)


def truncate_weights(folder):
    path = folder / "m.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def edit_card(folder, **changes):
    card = json.loads((folder / "m.json").read_text())
    (folder / "m.json").write_text(json.dumps({**card, **changes}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage_weights, "damaged"),
        (truncate_weights, "damaged"),
        (lambda f: (f / "m.safetensors").unlink(), "does not exist"),
        (lambda f: (f / "m.json").unlink(), "does not exist"),
        (lambda f: (f / "m.json").write_text("{"), "not a dpmrecon card"),
        (lambda f: (f / "m.json").write_text("[]"), "not a dpmrecon card"),
        (lambda f: edit_card(f, scale_rule="maximum is 1"), "scale rule"),
        (lambda f: edit_card(f, phase_rule="none"), "phase rule"),
        (lambda f: edit_card(f, model={**THREE_LEVELS, "widths": [8, 12, 20]}), "does not hold the network"),
        (lambda f: edit_card(f, model={**THREE_LEVELS, "widths": []}), "does not hold the network"),
        (lambda f: edit_card(f, model={}), "does not hold the network"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(tmp_path, harm, words):
    save_checkpoint(tmp_path / "m.safetensors", random_denoiser(), {})
    harm(tmp_path)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(tmp_path / "m.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("card", [{}, {"sampling": {}}, {"sampling": {"prox": {"steps": 3}}}])
def test_a_card_without_sampler_defaults_gets_those_of_the_samplers(tmp_path, card):
    save_checkpoint(tmp_path / "m.safetensors", random_denoiser(), card)
    checkpoint = load_checkpoint(tmp_path / "m.safetensors")
    sampling = options.sampling_of(options.from_pairs({"sampler": "dps"}), checkpoint, torch.device("cpu"))
    assert sampling.settings == SamplerSettings() and sampling.samples == 1


def test_a_label_that_the_model_lacks_is_not_used(tmp_path):
    save_checkpoint(tmp_path / "m.safetensors", random_denoiser({**THREE_LEVELS, "labels": ["t1", "t2"]}), {})
    checkpoint = load_checkpoint(tmp_path / "m.safetensors")

    def label(protocol):
        measurement = SimpleNamespace(protocolName=protocol)
        return options.contrast_of(
            options.from_pairs({}), checkpoint, SimpleNamespace(measurementInformation=measurement)
        )

    assert label("T2_TSE") == "t2" and label("T2_FLAIR") is None and label("localizer") is None


def test_the_shipped_checkpoint_names_its_data():
    checkpoint = load_checkpoint()
    card = checkpoint.card
    assert not {"patient09", "patient12"} & set(card["data"]["subjects"])
    assert any("CC-BY" in source for source in card["data"]["sources"])
    assert {"flair", "t1", "t2", "dwi", "swi"} <= set(checkpoint.denoiser.labels)


@pytest.mark.parametrize(
    ("sampling", "mode", "words"),
    [
        ({"uncertainty": {"steps": 3}}, "uncertainty", "sampling.uncertainty lacks samples"),
        ({"by_contrast_R": [{"sampler": "prox", "R": 4}]}, "fast", "sampling.by_contrast_R lacks contrast, settings"),
    ],
)
def test_a_card_with_half_an_entry_is_refused_in_one_sentence(tmp_path, sampling, mode, words):
    save_checkpoint(tmp_path / "m.safetensors", random_denoiser(), {"sampling": sampling})
    checkpoint = load_checkpoint(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=words):
        options.sampling_of(options.from_pairs({"mode": mode}), checkpoint, torch.device("cpu"))


def test_a_full_disk_leaves_the_checkpoint_that_was(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, random_denoiser(), {})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    write = Path.write_bytes

    def full(file, data):
        write(file, data[:10])
        if ".json" in file.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, random_denoiser(), {"more": 1})
    with pytest.raises(CheckpointError, match="No space"):
        write_card(path, more=1)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
