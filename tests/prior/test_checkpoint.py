"""The checkpoint: weights and card, whole or refused in one sentence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dpmrecon.errors import CheckpointError
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint, write_card
from dpmrecon.prior.denoiser import Denoiser
from dpmrecon.prior.samplers.diffusion import SamplerSettings

from support.models import THREE_LEVELS, random_denoiser


def test_checkpoint_round_trip(tmp_path):
    model = random_denoiser()
    save_checkpoint(tmp_path / "m.safetensors", model, {"sampling": {"samples": 2}})
    loaded = load_checkpoint(tmp_path / "m.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.denoiser.state_dict()[name], value)
    assert loaded.card["sampling"] == {"samples": 2}
    assert loaded.model_id.startswith("m-")


def test_the_model_that_ships_has_another_one_for_volumes(tmp_path):
    shipped = load_checkpoint()
    assert shipped.of_scan(volume=False) is shipped and shipped.model_id.startswith("default-")
    assert shipped.of_scan(volume=True).model_id.startswith("volumes-")
    save_checkpoint(tmp_path / "m.safetensors", random_denoiser(), {})
    own = load_checkpoint(tmp_path / "m.safetensors")
    assert own.of_scan(volume=True) is own


def test_slices_ask_the_model_of_volumes_above_the_noise_that_their_settings_say(tmp_path):
    for name in ("m", "v"):
        save_checkpoint(tmp_path / f"{name}.safetensors", random_denoiser(), {})
    own, volumes = (load_checkpoint(tmp_path / f"{name}.safetensors") for name in ("m", "v"))
    both, settings = replace(own, volumes=volumes), SamplerSettings(volumes_above=0.1)
    counted: list[int] = []
    relay = both.of_contrast("t1", settings, counted.append)
    image = torch.zeros(2, 16, 16, dtype=torch.complex64)
    for sigma, asked in ((0.2, volumes), (0.1, own)):
        prior = relay.at(sigma)
        assert prior.denoiser is asked.denoiser and torch.equal(prior.label, asked.denoiser.one_hot(["t1"]))
        prior(image, torch.full((2,), sigma))
    assert counted == [2, 2] and relay.sigma_data == own.denoiser.sigma_data
    assert (
        both.id_by(settings) == f"{own.model_id}+{volumes.model_id}" and both.id_by(SamplerSettings()) == own.model_id
    )
    # without another model, or where nothing asks for it, a model asks itself
    assert own.of_contrast("t1", settings).denoiser is own.denoiser
    assert both.of_contrast("t1", SamplerSettings()).denoiser is own.denoiser


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
        (lambda f: (f / "m.json").unlink() or (f / "m.json").mkdir(), "m.json is a folder: a model is"),
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


def test_the_shipped_checkpoint_names_its_data():
    checkpoint = load_checkpoint()
    card = checkpoint.card
    assert not {"patient09", "patient12"} & set(card["data"]["subjects"])
    assert any("CC-BY" in source for source in card["data"]["sources"])
    assert {"flair", "t1", "t2", "dwi", "swi"} <= set(checkpoint.denoiser.labels)


def test_a_card_is_written_beside_a_file_alone(tmp_path, monkeypatch):
    """By its name, the model that ships was found, and its card begun in the working folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="default is no file, and nothing is written"):
        write_card(Path("default"), more=1)
    assert not list(tmp_path.iterdir())


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
