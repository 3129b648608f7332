"""Both commands: their help shows an example."""

import pytest
from dpmrecon.cli import main


def test_both_commands_show_an_example(capsys):
    from dpmtrain import cli

    for command in (main, cli.main):
        with pytest.raises(SystemExit):
            command(["replay" if command is main else "sweep", "--help"])
        assert "example:\n  dpm" in capsys.readouterr().out
