"""A checkpoint's kind brings its network, its samplers and their settings."""

import dataclasses
import json

import h5py
import numpy as np
import pytest
import torch
from dpmrecon.cli import main
from dpmrecon.errors import BadInputError, CheckpointError
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint
from dpmrecon.prior.denoiser import Denoiser
from dpmrecon.prior.kinds import KINDS, Kind, Sampler
from dpmrecon.prior.samplers.diffusion import SamplerSettings

from support.models import saved_model
from support.results import report


@dataclasses.dataclass(frozen=True)
class HalvingSettings:
    """Settings that no diffusion sampler has."""

    steps: int = 1
    share: float = 0.5

    @property
    def seeded(self) -> bool:
        return True


class Halving(torch.nn.Module):
    """A trivial model of another kind: the start of the problem, scaled by one learnt number."""

    def __init__(self, config: dict):
        super().__init__()
        self.config, self.labels, self.bf16 = config, tuple(config["labels"]), False
        self.factor = torch.nn.Parameter(torch.tensor([float(config["factor"])]))

    @property
    def device(self) -> torch.device:
        return self.factor.device

    def of_contrast(self, label, count):
        def evaluate(start):
            count(len(start))
            return self.factor * start

        return evaluate

    def warm_up(self) -> None:
        pass


def sample_halving(problem, prior, settings, noise, stop):
    found = problem.start
    for _ in range(settings.steps):
        found = (1 - settings.share) * found + settings.share * prior(problem.start)
    return found + 0 * noise.draw(*found.shape[-2:])


@pytest.mark.parametrize(
    ("kind", "sampler", "model"),
    [("denoiser", "latent", "latent"), ("latent", "dps", "default"), ("latent", "x", None)],
)
def test_a_sampler_of_another_model_names_that_model(kind, sampler, model):
    with pytest.raises(BadInputError, match=f"the model has no sampler '{sampler}': valid ones are") as refused:
        KINDS[kind].sampler(sampler)
    assert str(refused.value).endswith(f"; it is that of --model {model}") == (model is not None)


@pytest.fixture
def halving(monkeypatch, tmp_path):
    """A checkpoint of the kind `halving`, which the card sets to three steps."""
    monkeypatch.setitem(KINDS, "halving", Kind(Halving, {"half": Sampler(HalvingSettings, sample_halving)}))
    network = Halving({"labels": ["flair"], "factor": 1.0})
    card = {"kind": "halving", "sampling": {"samples": 1, "half": {"steps": 3}}}
    save_checkpoint(tmp_path / "half.safetensors", network, card)
    return tmp_path / "half.safetensors"


def test_another_kind_reconstructs_a_scan_with_its_own_sampler_and_settings(simulated_scan, halving, tmp_path):
    scan = simulated_scan(matrix=(48, 64), n_slices=2)
    out = tmp_path / "out"
    assert main(["replay", str(scan), "--out", str(out), "--model", str(halving), "--conventional"]) == 0
    found = report(out)
    assert found["sampler"] == "half" and found["settings"] == {"steps": 3, "share": 0.5}
    assert [(entry["samples"], entry["steps"], entry["evaluations"]) for entry in found["slices"]] == [(1, 3, 3)] * 2
    with h5py.File(out / "images.h5") as file:  # the factor is 1: the image is CG-SENSE's
        np.testing.assert_allclose(file["dataset/image_1/data"], file["dataset/image_3/data"], rtol=1e-4, atol=1e-2)


def test_a_setting_or_a_sampler_of_another_kind_is_refused(simulated_scan, halving, tmp_path, capsys):
    scan = str(simulated_scan(matrix=(48, 64)))
    assert main(["replay", scan, "--out", str(tmp_path / "a"), "--model", str(halving), "--sampler", "prox"]) == 2
    assert "the model has no sampler 'prox': valid ones are half" in capsys.readouterr().err
    with pytest.raises(BadInputError, match="'zeta'.* unknown: valid ones are steps, share"):
        load_checkpoint(halving).kind.samplers["half"].settings_from({"zeta": 1.0})
    with pytest.raises(CheckpointError, match="is no denoiser"):
        _ = load_checkpoint(halving).denoiser


def test_a_card_without_a_kind_is_a_denoisers_and_an_unknown_kind_is_refused(tmp_path):
    path = saved_model(tmp_path / "m.safetensors")
    card = json.loads(path.with_suffix(".json").read_text())
    assert card.pop("kind") == "denoiser"
    path.with_suffix(".json").write_text(json.dumps(card))
    loaded = load_checkpoint(path)
    assert isinstance(loaded.model, Denoiser) and list(loaded.kind.samplers) == ["prox", "dps"]
    assert loaded.kind.sampler(None)[0] == "prox" and loaded.kind.samplers["dps"].settings is SamplerSettings
    path.with_suffix(".json").write_text(json.dumps({**card, "kind": "oracle"}))
    with pytest.raises(CheckpointError, match="is of kind 'oracle', this version knows denoiser"):
        load_checkpoint(path)


def test_a_card_older_than_kinds_is_a_denoisers(tmp_path):
    path = saved_model(tmp_path / "m.safetensors")
    card = json.loads(path.with_suffix(".json").read_text())
    assert card.pop("kind") == "denoiser"
    path.with_suffix(".json").write_text(json.dumps(card))
    assert isinstance(load_checkpoint(path).model, Denoiser)
