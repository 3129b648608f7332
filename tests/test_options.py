"""The options, from the command line, from the properties of a chain and from the model's card."""

from types import SimpleNamespace

import pytest
import torch
from dpmrecon import options
from dpmrecon.errors import BadInputError, CheckpointError
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint
from dpmrecon.prior.samplers.diffusion import SamplerSettings

from support.models import THREE_LEVELS, random_denoiser


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


def test_command_line_and_properties_have_one_schema():
    import argparse

    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    given = {"contrast": "t2", "sampler": "dps", "steps": "7", "samples": "3", "seed": "-5", "fallback": "off"}
    given |= {"deadline": "2.5", "model": "x.safetensors", "device": "cuda:1", "batch": "9"}
    line = [text for name, value in given.items() for text in (f"--{name}", value)]
    from_line = options.from_arguments(parser.parse_args([*line, "--combine-averages"]))
    assert options.from_pairs({**given, "combine-averages": "on"}) == from_line
    assert options.from_arguments(parser.parse_args([])) == options.from_properties(b"<configuration/>\n")
    assert set(from_line) == {option.name for option in options.OPTIONS}


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        ("<configuration><property name='deadline' value='nan'/></configuration>", "deadline' is nan: give 0 or more"),
        ("<configuration><property name='sampler' value='ddim'/></configuration>", "valid ones are prox, dps"),
        ("<configuration><property name='seed'/></configuration>", "<property name= value=/> alone"),
        ("<configuration><gadget/></configuration>", "holds <gadget>"),
        ("<konfiguration/>", "is a <konfiguration>"),
        ("<configuration>", "is no XML"),
        (
            "<configuration><property name='seed' value='1'/><property name='seed' value='2'/></configuration>",
            "'seed' stands there twice",
        ),
        ("<configuration><property name='a\u00e9\n' value=''/></configuration>", r"property 'a\?\?' is unknown"),
    ],
)
def test_a_bad_configuration_is_refused(xml, words):
    with pytest.raises(BadInputError, match=words):
        options.from_properties(xml)
