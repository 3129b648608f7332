"""The examples run as they stand, and print what their first lines promise."""

import re
import runpy
import sys

import pytest

from support.forked import forked
from support.paths import ROOT


@pytest.mark.parametrize(
    ("name", "words"),
    [("arrays", rb"NRMSE dpmrecon: 0\.0\d+"), ("scan", rb"slice 1: .* by the model")],
)
def test_an_example_runs(name, words, tmp_path):
    def program(arguments: list[str]) -> int:
        sys.argv = [name]
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        return 0

    done = forked(program, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(words, done.stdout), done.stdout
