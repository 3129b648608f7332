"""The paper's experiments, whole, with tiny networks on tiny heads: arms, choice, test, table and figures."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from dpmrecon.errors import BadInputError
from dpmtrain.cli import main
from dpmtrain.evaluate import validation
from dpmtrain.paper import arms as paper_arms
from dpmtrain.paper import paper
from dpmtrain.paper import report as paper_report
from dpmtrain.paper import scores as paper_scores
from dpmtrain.train.keeper import Keeper


@pytest.fixture
def small(monkeypatch):
    """Every arm as it is, but with tiny networks, lengths and samplers."""
    arms = [dataclasses.replace(arm, lengths=tuple(range(1, len(arm.lengths) + 1))) for arm in paper_arms.ARMS]
    for module in (paper, paper_arms, paper_report):
        monkeypatch.setattr(module, "ARMS", tuple(arms))
    monkeypatch.setitem(paper_arms.MODEL, "widths", [4, 6])
    monkeypatch.setitem(paper_arms.MODEL, "blocks", [1, 1])
    monkeypatch.setitem(paper_arms.MODEL, "embedding", 8)
    monkeypatch.setitem(paper_arms.SCRATCH, "crops", [16])
    monkeypatch.setitem(paper_arms.SCRATCH, "steps", 1)
    monkeypatch.setattr(Keeper, "sheet", lambda *given: None)  # 22 of them
    monkeypatch.setattr(validation, "MATRIX", (46, 40))
    monkeypatch.setattr(paper_scores, "PROX", dataclasses.replace(paper_scores.PROX, steps=2))
    monkeypatch.setattr(paper_scores, "CALIBRATION_LINES", 16)
    monkeypatch.setattr(paper_scores, "N_SLICES", 2)
    monkeypatch.setattr(paper_scores, "DPS", dataclasses.replace(paper_scores.DPS, steps=2))
    for module in (paper_scores, paper_report):
        monkeypatch.setattr(module, "ZETAS", (0.5, 1.0))


def test_the_whole_comparison_and_a_second_run_that_finds_it_done(folders, small, tmp_path, capsys):
    prepared, images = folders
    command = ["paper", "--data", prepared, "--images", images, "--run", tmp_path / "run", "--out", tmp_path / "out"]
    command = [str(word) for word in command]
    assert main(command) == 0
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"][:1] for row in rows] == ["C", "1", "2", "3", "4", "5", "6", "p"]
    lines = map(json.loads, (tmp_path / "run" / "scores.jsonl").read_text().splitlines())
    places = ((line["key"], line["value"]["nrmse"]) for line in lines)
    scores = {f"{key['part']} {key['name']} R={key['R']}": errors for key, errors in places}
    fine_tuned = next(row for row in rows if row["method"].startswith("4"))
    candidates = {key: np.mean(value) for key, value in scores.items() if key.startswith("validation ft_few")}
    at_4 = {key: value for key, value in candidates.items() if key.endswith("R=4")}
    assert len(at_4) == 6
    assert min(at_4, key=at_4.get) == f"validation ft_few_{fine_tuned['rate']}_{fine_tuned['steps']} R=4"
    few = next(row for row in rows if row["method"].startswith("5"))
    names = [f"test {arm}_{row['rate']}_{row['steps']} R=8" for arm, row in (("few_only", few), ("ft_few", fine_tuned))]
    gap = np.mean(scores[names[0]]) - np.mean(scores[names[1]])
    assert few["difference to 4 at R=8 (95 %)"].startswith(f"{gap:+.4f} (")
    assert fine_tuned["difference to 4 at R=8 (95 %)"] == ""
    for name in ("figure2_length", "figure4_methods", "figure5_zeta"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000

    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    printed = capsys.readouterr().out
    assert main(command) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before
    assert capsys.readouterr().out == printed


def test_arms_keep_to_what_they_may_see():
    few = {"patient01", "patient03"}
    for arm in paper_arms.ARMS:
        assert not any(name in pattern for pattern in arm.volumes for name in ("12", "09", "_02"))
        if arm.name in ("few_only", "ft_few"):
            assert {pattern[:9] for pattern in arm.volumes} == few
        if arm.name == "pre":
            assert not any("flair" in pattern.lower() for pattern in arm.volumes)
    budgets = {arm.name: len(paper_arms.candidates(arm)) for arm in paper_arms.ARMS}
    assert budgets["ft_few"] == budgets["few_only"] == 6


def test_images_without_the_test_patient_are_refused(folders, tmp_path):
    with pytest.raises(BadInputError, match="no open_ms/patient09/"):
        paper.paper(folders[0], tmp_path, tmp_path, tmp_path, None)
