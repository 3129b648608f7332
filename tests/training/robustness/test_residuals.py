"""The command that the gate's limits come from."""

import csv

from dpmtrain.cli import main


def test_the_command_writes_both_tables(tmp_path, model):
    assert (
        main(
            ["residuals", "--scans", "1", "--kinds", "sound,wrap,spike", "--out", str(tmp_path), "--model", str(model)]
        )
        == 0
    )
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["scan"] for row in rows] == ["sound", "wrap", "spike"]
    assert all(float(row["expected"]) >= 1 for row in rows)
    assert "| sound |" in (tmp_path / "table.md").read_text()


def test_an_unknown_kind_is_refused(tmp_path, capsys):
    assert main(["residuals", "--kinds", "zipper", "--out", str(tmp_path)]) == 2
    assert "'zipper' is none of sound" in capsys.readouterr().err
