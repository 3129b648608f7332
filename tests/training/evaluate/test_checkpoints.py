"""Checkpoints side by side, on slices that need no data."""

import re
import sys

import numpy as np
import pytest
import torch
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmtrain.evaluate import checkpoints as command
from dpmtrain.evaluate.validation import full_slice


@pytest.fixture
def slices(monkeypatch):
    rows, cols = np.mgrid[:61, :48]
    disc = ((rows - 30) / 25) ** 2 + ((cols - 24) / 18) ** 2 < 1
    found = [
        full_slice("disc", n, "t1", torch.from_numpy(disc * (1 + 0.3 * np.cos(rows / (2 + n)))).float(), 0.01)
        for n in range(3)
    ]
    monkeypatch.setattr(command.validation, "validation_scan", lambda *args: found)
    return found


def test_a_row_is_the_mean_over_slices():
    """NRMSE .1 and .3 against .2 and .4; all sums alike."""
    sums = np.ones_like(command.scores(np.ones((16, 12)), torch.ones(16, 12, dtype=torch.complex64))[1])
    first, second = command.cells([[(0.2, sums), (0.1, sums)], [(0.4, sums), (0.3, sums)]])
    assert first.startswith("0.3000 (") and second.startswith("0.2000 -33.3 % (")


def test_the_one_that_ships_beside_itself_and_with_other_settings(slices, tiny_model, monkeypatch, capsys):
    shipped = load_checkpoint(tiny_model(samples=1, prox={"steps": 2}), torch.device("cpu"))
    monkeypatch.setattr(command, "load_model", lambda *args: shipped)
    options = ["--images", "x", "--checkpoint", "y", "--set", "{}", '{"samples": 1}', '{"noise_factor": 2.0}']
    monkeypatch.setattr(sys, "argv", ["x", *options, "--contrasts", "t1", "--R", "3", "--sigma", "0.01"])
    command.main()
    *_, row = capsys.readouterr().out.strip().splitlines()
    contrast, acceleration, sigma, own, same, alike, other = (cell.strip() for cell in row.strip("|").split("|"))
    assert (contrast, acceleration, sigma) == ("t1", "3", "0.01")
    assert same == alike == re.sub(r" \(", " +0.0 % (", own)  # one sample is what its card says
    assert other.split()[0] != own.split()[0]
    error = np.mean([command.error_and_gain(slices[n], "t1", 3, [(shipped, {})])[0][0] for n in (0, 2)])
    assert own.startswith(f"{error:.4f} (")
