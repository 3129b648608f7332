"""Sound scans come out without a word; with a random fault they are refused, said or as good as before."""

import csv
from functools import cache

import numpy as np
import pytest
from dpmrecon.simulation.simulate import simulate
from dpmtrain.cli import main
from dpmtrain.evaluate.score_lines import ScoreLines
from dpmtrain.robustness import fault_injection
from dpmtrain.robustness.fault_injection import Row, drawn_scan, injected, reordered, row_of
from dpmtrain.robustness.faults import FAULTS, RawScan

from support.models import TINY, saved_model

# nothing in the data tells these from a sound scan: an object that is mirrored; a slice that lies elsewhere
CANNOT_BE_SEEN = {"samples reversed", "shots moved"}


made = cache(row_of)  # `quick` makes each seed's row once


@pytest.fixture
def quick(loaded_once, monkeypatch):
    """Fewer steps than the command takes, and smaller images."""
    monkeypatch.setattr(fault_injection, "row_of", made)
    monkeypatch.setattr(fault_injection, "OPTIONS", (*fault_injection.OPTIONS, "--steps", "2"))
    monkeypatch.setattr(fault_injection, "SIZES", (64, 66, 72, 75, 80, 84, 91))


@pytest.mark.parametrize("seed", range(len(FAULTS)))  # every kind once
def test_a_fault_is_seen_or_harmless(seed, quick):
    row = made(seed, None)
    assert row.sound_exit == 0
    assert row.sound_text == "" or row.sound_text.endswith("it counts as trace-weighted")  # DWI of no direction
    assert row.sound_nrmse < 0.15
    assert row.verdict != "UNSEEN" or row.fault in CANNOT_BE_SEEN, row


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_the_scan_and_nothing_else_does(fault, tmp_path):
    rng = np.random.default_rng(3)
    simulate(tmp_path / "scan.h5", drawn_scan(fault, rng))
    scan = RawScan.read(tmp_path / "scan.h5")
    scan.write(tmp_path / "same.h5")
    same = RawScan.read(tmp_path / "same.h5")
    assert same.header == scan.header and np.array_equal(same.heads, scan.heads)
    assert all(np.array_equal(same.samples(index), scan.samples(index)) for index in range(len(scan.records)))
    assert FAULTS[fault](scan, rng)
    scan.write(tmp_path / "spoilt.h5")
    spoilt = RawScan.read(tmp_path / "spoilt.h5")
    equal = (
        spoilt.header == same.header
        and np.array_equal(spoilt.heads, same.heads)
        and all(np.array_equal(spoilt.samples(index), same.samples(index)) for index in range(len(same.records)))
    )
    assert not equal


def test_other_orders_hold_the_same_lines(tmp_path):
    rng = np.random.default_rng(4)
    simulate(tmp_path / "scan.h5", drawn_scan("line dropped", rng))
    orders = set()
    for _ in range(12):
        scan = RawScan.read(tmp_path / "scan.h5")
        before = sorted(scan.heads["scan_counter"])
        orders.add(reordered(scan, rng))
        assert sorted(scan.heads["scan_counter"]) == before
    assert len(orders) > 3


def test_the_command_writes_both_tables(quick, tmp_path, capsys):
    assert main(["faults", "--scans", "1", "--first", "9", "--out", str(tmp_path)]) == 0
    with (tmp_path / "table.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["fault"] == "noise lost" and "no noise measurement came" in row["text"] and row["verdict"] == "said"
    assert "Without the fault: 1 of 1 with exit 0 and no remark." in capsys.readouterr().out


def test_another_model_of_the_same_name_is_asked_anew(tmp_path, monkeypatch):
    asked = []

    def row_of(seed, model):
        asked.append(seed)
        return Row(seed, "scan", "spike", "it", 0, "", 0.1, 0, 1.0, "harmless", "")

    monkeypatch.setattr(fault_injection, "row_of", row_of)
    model, path = tmp_path / "m.safetensors", tmp_path / "scores.jsonl"
    for embedding in (8, 8, 12):
        saved_model(model, {**TINY, "embedding": embedding})
        list(injected([3], model, ScoreLines(path)))
    assert asked == [3, 3]
