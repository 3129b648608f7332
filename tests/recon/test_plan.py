"""From the options and the model's card to how a scan is sampled."""

from types import SimpleNamespace

import pytest
import torch
from dpmrecon.errors import BadInputError, CheckpointError
from dpmrecon.options import Options
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint
from dpmrecon.prior.samplers.diffusion import SamplerSettings
from dpmrecon.recon.plan import asked, contrast_of, sampling_of

from support.hand_made import header as slice_header
from support.hand_made import volume_header
from support.models import THREE_LEVELS, random_denoiser


@pytest.mark.parametrize("card", [{}, {"sampling": {}}, {"sampling": {"prox": {"steps": 3}}}])
def test_a_card_without_sampler_defaults_gets_those_of_the_samplers(tmp_path, card):
    save_checkpoint(tmp_path / "m.safetensors", random_denoiser(), card)
    checkpoint = load_checkpoint(tmp_path / "m.safetensors")
    sampling = sampling_of(Options(sampler="dps"), checkpoint, torch.device("cpu"))
    assert sampling.settings == SamplerSettings() and sampling.samples == 1


def test_a_3d_scan_is_sampled_by_the_model_of_volumes():
    shipped = load_checkpoint()
    for found, header in ((shipped, slice_header()), (shipped.of_scan(volume=True), volume_header())):
        checkpoint, contrast, sampling = asked(Options(contrast="t1"), shipped, header)
        assert checkpoint is found and contrast == "t1"
        assert ("volumes" in sampling.source) == (found is not shipped)


def test_a_label_that_the_model_lacks_is_not_used(tmp_path):
    save_checkpoint(tmp_path / "m.safetensors", random_denoiser({**THREE_LEVELS, "labels": ["t1", "t2"]}), {})
    checkpoint = load_checkpoint(tmp_path / "m.safetensors")

    def label(protocol):
        measurement = SimpleNamespace(protocolName=protocol)
        return contrast_of(Options(), checkpoint, SimpleNamespace(measurementInformation=measurement))

    assert label("T2_TSE") == "t2" and label("T2_FLAIR") is None and label("localizer") is None


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
        sampling_of(Options(mode=mode), checkpoint, torch.device("cpu"))


def test_a_contrast_may_have_its_own_settings_of_the_uncertainty_mode(tmp_path):
    entry = {"sampler": "uncertainty", "contrast": "t1", "R": 4, "settings": {"steps": 4}}
    sampling = {"uncertainty": {"samples": 5, "steps": 9, "eta": 0.0}, "by_contrast_R": [entry]}
    save_checkpoint(tmp_path / "m.safetensors", random_denoiser(), {"sampling": sampling})
    checkpoint, options = load_checkpoint(tmp_path / "m.safetensors"), Options(mode="uncertainty")
    found = [sampling_of(options, checkpoint, torch.device("cpu"), contrast, 4.0) for contrast in ("t1", "t2")]
    assert [(one.samples, one.settings.steps, one.settings.eta) for one in found] == [(5, 4, 0.0), (5, 9, 0.0)]


def test_volumes_have_settings_of_the_uncertainty_mode(tmp_path):
    """What is measured of slices of a contrast at R is not theirs."""
    entry = {"sampler": "uncertainty", "contrast": "t1", "R": 4, "settings": {"steps": 4}}
    sampling = {"uncertainty": {"samples": 5, "steps": 9, "eta": 0.0}, "by_contrast_R": [entry]}
    volumes = {"t2": {"steps": 7}}
    for volume, told in (({"samples": 1}, (5, 4, 0.0)), ({"uncertainty": volumes}, (5, 9, 0.0))):
        save_checkpoint(tmp_path / "m.safetensors", random_denoiser(), {"sampling": {**sampling, "volume": volume}})
        checkpoint, options = load_checkpoint(tmp_path / "m.safetensors"), Options(mode="uncertainty")
        found = sampling_of(options, checkpoint, torch.device("cpu"), "t1", 4.0, volume=True)
        assert (found.samples, found.settings.steps, found.settings.eta) == told
        found = sampling_of(options, checkpoint, torch.device("cpu"), "t1", 4.0)
        assert (found.samples, found.settings.steps) == (5, 4)
    found = sampling_of(options, checkpoint, torch.device("cpu"), "t2", 4.0, volume=True)
    assert found.settings.steps == 7 and "for volumes of t2" in found.source


def test_samples_that_would_be_alike_are_one(tmp_path):
    row = {"sampler": "prox", "contrast": "t2", "R": 4, "settings": {"noise_scale": 0.3}}
    sampling = {"samples": 3, "prox": {"noise_scale": 0.0}, "by_contrast_R": [row]}
    save_checkpoint(tmp_path / "m.safetensors", random_denoiser(), {"sampling": sampling})
    checkpoint, cpu = load_checkpoint(tmp_path / "m.safetensors"), torch.device("cpu")
    for asked_for in (None, 8):
        found = sampling_of(Options(samples=asked_for), checkpoint, cpu, "t1", 4.0)
        assert found.samples == 1 and found.source.endswith("; one sample, as all would be alike")
        assert sampling_of(Options(samples=asked_for), checkpoint, cpu, "t2", 4.0).samples == (asked_for or 3)


def test_volumes_have_settings_of_their_own(tmp_path):
    volume = {"samples": 1, "prox": {"noise_scale": 0.2}, "by_contrast": {"swi": {"noise_factor": 0.6}}}
    sampling = {"samples": 3, "prox": {"steps": 7, "noise_scale": 0.4}, "volume": volume}
    save_checkpoint(tmp_path / "m.safetensors", random_denoiser(), {"sampling": sampling})
    checkpoint, cpu = load_checkpoint(tmp_path / "m.safetensors"), torch.device("cpu")
    found = sampling_of(Options(), checkpoint, cpu, "t1", 4.0, volume=True)
    assert (found.samples, found.settings.steps, found.settings.noise_scale) == (1, 7, 0.2)
    assert found.settings.noise_factor == 1.0 and found.source == "model card, for volumes"
    found = sampling_of(Options(samples=2), checkpoint, cpu, "swi", 4.0, volume=True)
    assert (found.samples, found.settings.noise_factor) == (2, 0.6) and found.source.endswith("volumes of swi")
    assert sampling_of(Options(), checkpoint, cpu, "t1", 4.0).samples == 3
    with pytest.raises(BadInputError, match="the sampler dps is for slices, and the scan is a volume: choose prox"):
        sampling_of(Options(sampler="dps"), checkpoint, cpu, "t1", 4.0, volume=True)
