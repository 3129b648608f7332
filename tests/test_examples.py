"""The examples run as they stand, and print what their first lines promise."""

import os
import re
import subprocess
import sys

import pytest

from support.paths import ROOT


@pytest.mark.parametrize(
    ("name", "words"),
    [("arrays", r"NRMSE dpmrecon: 0\.0\d+"), ("scan", r"slice 1: .* by the model")],
)
def test_an_example_runs(name, words):
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert re.search(words, done.stdout), done.stdout
