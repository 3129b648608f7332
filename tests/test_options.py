"""The options, from the command line, from the properties of a chain and from the model's card."""

from pathlib import Path

import pytest
from dpmrecon import options
from dpmrecon.errors import BadInputError


def test_command_line_and_properties_have_one_schema():
    import argparse

    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    given = {"contrast": "t2", "sampler": "dps", "steps": "7", "samples": "3", "seed": "-5", "fallback": "off"}
    given |= {"deadline": "2.5", "model": "x.safetensors", "device": "cuda:1", "batch": "9", "output": "phase"}
    line = [text for name, value in given.items() for text in (f"--{name}", value)]
    from_line = options.from_arguments(parser.parse_args([*line, "--combine-averages"]))
    assert options.from_pairs({**given, "combine-averages": "on"}) == from_line
    assert options.from_arguments(parser.parse_args([])) == options.from_properties(b"<configuration/>\n")
    assert from_line.combine_averages and from_line.model == Path("x.safetensors") and from_line.seed == -5


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
