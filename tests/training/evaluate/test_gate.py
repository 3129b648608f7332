"""`dpmtrain gate`: cases that are what they are called, limits that sound slices keep, and the table."""

import math

import numpy as np
import pytest
import torch
from dpmrecon.data import LostSlice, Slice, SliceKey
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.recon.agreement import ANY, NAMES, Limits
from dpmrecon.tools.simulated_slice import simulated_kspace
from dpmrecon.tools.simulation_settings import SimulationSettings
from dpmtrain.cli import main
from dpmtrain.evaluate import gate_cases
from dpmtrain.evaluate.gate import SAID, Row, judge, limits_of, table
from dpmtrain.evaluate.gate_cases import KINDS, PAINTED, PATHOLOGY, SOUND, Head, case_of, slice_of
from dpmtrain.evaluate.score_lines import ScoreLines

from support.models import saved_model

REMARKS = {
    "wrong centre": "is not the k-space centre",
    "noise-only coil": "holds noise alone",
    "dead coil": "is dead and left out",
    "clipped receiver": "is clipped",
}


def head(number: int = 0, matrix=(90, 76), contrast: str = "flair", subject: str = "somebody") -> Head:
    settings = SimulationSettings(matrix=matrix, n_coils=4, n_slices=1, acceleration=1, subject=number)
    truth = np.abs(simulated_kspace(settings)[1]).astype(np.float32)
    return Head(f"{subject}/{number}", contrast, torch.from_numpy(truth))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_slice_of_its_own(kind):
    one, (case, truth) = head(), case_of(head(), kind, 2, 0.01, np.random.default_rng(3))
    sound, whole = case_of(head(), SOUND, 2, 0.01, np.random.default_rng(3))
    assert truth.shape == whole.shape == tuple(one.image.shape) and np.isfinite(truth).all()
    if kind in PAINTED:
        assert np.abs(truth - whole).max() > 0.05
    elif kind != SOUND:
        assert np.array_equal(truth, whole)  # the truth of a fault is the head
        same = case.kspace.shape == sound.kspace.shape and np.array_equal(case.kspace, sound.kspace)
        assert not same or (case.center, case.label) != (sound.center, sound.label)
    found = slice_of(case)
    assert isinstance(found, Slice), found.reason
    expected = REMARKS.get(kind)
    assert bool(found.remarks) == (expected is not None)
    assert expected is None or expected in found.remarks[0]


def test_a_lesion_lies_in_the_head_and_leaves_the_rest():
    for name in PATHOLOGY:
        before = head().image
        after = PATHOLOGY[name](before, np.random.default_rng(0))
        changed = (after - before).abs() > 0.01
        assert 0.001 < changed.float().mean() < 0.3, name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return load_checkpoint(saved_model(tmp_path_factory.mktemp("model") / "tiny.safetensors"))


def test_limits_are_such_that_few_sound_slices_are_beyond(checkpoint, tmp_path):
    contrasts = ("flair", "t1")
    heads = [head(n, (66, 54), contrasts[n % 2], subject="phantom" if n % 4 == 3 else "somebody") for n in range(24)]
    entry = limits_of(checkpoint, heads, 5)
    labelled, together = entry["fits"]
    assert set(labelled["levels"]) == {"flair", "t1"} and set(together["levels"]) == {ANY}
    limits = Limits.of({"gate": entry}, "swi")
    assert limits.expected[0].tolist() == together["levels"][ANY] and limits.expected.shape[1] == len(NAMES)
    judged = type(checkpoint)(checkpoint.model, {**checkpoint.card, "gate": entry}, "tiny", checkpoint.kind)
    kinds = [SOUND] * 6 + ["wrong centre", "alternate shots moved", "wrap, one map"]
    rows = list(judge(judged, heads, kinds, 1, ScoreLines(tmp_path / "scores.jsonl")))
    assert [row.kind for row in rows] == kinds
    centre, moved, _ = rows[6:]
    assert centre.verdict != "trusted" and centre.score >= SAID
    assert moved.score > max(row.score for row in rows[:6])


def row(kind: str, score: float, verdict: str, **parts) -> Row:
    known = dict.fromkeys(
        ("agreement", "held_back", "denoised", "residual", "rows", "channels", "remarks", "spread"), 0.5
    )
    return Row(kind, "patient12/x", "t1", 4, 0.01, "64x64", **{**known, **parts}, score=score, nrmse=0.05,
               verdict=verdict, text="so")  # fmt: skip


def test_the_table_counts_what_is_told_apart():
    sound = [row(SOUND, n / 100, "trusted" if n < 98 else "caution") for n in range(100)]
    spikes = [row("spike", 3.0, "caution", residual=2.0) for _ in range(5)]
    shunts = [row("shunt", 0.495, "trusted", residual=math.nan) for _ in range(4)]
    text = table([*sound, *spikes, *shunts], "tiny", 0)
    cells = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in text.splitlines() if "|" in line
    }
    assert cells["spike"][2:4] == ["1.000", "1.00 to 1.00"] and cells["spike"][7] == "1.00"
    assert cells["spike"][12:15] == ["100%", "100%", "0%"]
    assert cells["shunt"][2] == "0.500" and cells["shunt"][7] == "-" and cells["shunt"][13] == "0%"
    assert cells["t1"] == ["t1", "100", "2.0%"]
    assert text.count("- patient12/x, R = 4: caution: so") == 2


def test_a_run_goes_on_with_what_was_judged(tmp_path, checkpoint, monkeypatch):
    rows = {SOUND: row(SOUND, 0.25, "trusted"), "spike": row("spike", 3.0, "caution", residual=math.nan)}
    monkeypatch.setattr("dpmtrain.evaluate.gate.row_of", lambda checkpoint, head, kind, rng: rows[kind])
    first = list(judge(checkpoint, [head()], list(rows), 0, ScoreLines(tmp_path / "scores.jsonl")))
    monkeypatch.setattr("dpmtrain.evaluate.gate.row_of", lambda *_: pytest.fail("judged again"))
    again = list(judge(checkpoint, [head()], list(rows), 0, ScoreLines(tmp_path / "scores.jsonl")))
    assert [repr(one) for one in again] == [repr(one) for one in first]  # nan is not nan
    other = type(checkpoint)(checkpoint.model, checkpoint.card, "other", checkpoint.kind)
    with pytest.raises(pytest.fail.Exception, match="judged again"):
        list(judge(other, [head()], list(rows), 0, ScoreLines(tmp_path / "scores.jsonl")))


def test_refused_scans_count_as_found(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr("dpmtrain.evaluate.gate.slice_of", lambda case: LostSlice(SliceKey(0), "its lines are lost"))
    (found,) = judge(checkpoint, [head()], ["spike"], 0, ScoreLines(tmp_path / "scores.jsonl"))
    assert (found.verdict, found.score, found.text) == ("lost", SAID, "its lines are lost")


def test_the_command_says_what_it_lacks(tmp_path, capsys):
    model = str(saved_model(tmp_path / "tiny.safetensors"))
    common = ["gate", "--images", str(tmp_path), "--model", model]
    for more, word in (
        (["--keep", "--out", str(tmp_path)], "has no limits to keep"),
        (["--each", "5"], "the tables need a folder"),
    ):
        assert main([*common, *more]) == 2
        assert word in capsys.readouterr().err
    assert main(["gate", "--images", str(tmp_path), "--write", "--each", "0"]) == 2
    assert "--write needs --model" in capsys.readouterr().err


def test_the_slices_of_a_label_map_come_whole(tmp_path, monkeypatch):
    """A head that ends at the edge of the field of view would wrap in a scan."""
    (tmp_path / "synthseg_labels").mkdir()
    (tmp_path / "synthseg_labels/training_seg_99.nii.gz").touch()
    monkeypatch.setattr(gate_cases, "simulated_slices", lambda *given: np.ones((1, 241, 241), np.float32))
    shapes = {tuple(head.image.shape) for head in gate_cases.heads(tmp_path, ("training_seg_99",), 1, 0)}
    assert shapes == {(240, 240), (180, 180), (120, 120)}
