"""`dpmtrain gate`: cases that are what they are called, limits that sound slices keep, and the table."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from dpmrecon.data import LostSlice, Slice, SliceKey, Volume
from dpmrecon.physics.fourier import to_kspace
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.recon.agreement import ANY, NAMES, SLICES, VOLUMES, Limits
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.slices import simulated_kspace
from dpmtrain.cli import main
from dpmtrain.evaluate.score_lines import ScoreLines
from dpmtrain.robustness import gate, gate_cases, gate_volumes
from dpmtrain.robustness.gate import (
    SAID,
    Row,
    Scan,
    judge,
    limits_of,
    numbers_of,
    slice_row,
    slice_scans,
    table,
    volume_row,
    volume_scans,
)
from dpmtrain.robustness.gate_cases import KINDS, PAINTED, PATHOLOGY, SOUND, Head, case_of, slice_of

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
    scans = slice_scans(heads, 5, checkpoint.model.device)
    entry = limits_of(numbers_of(checkpoint, scans, SLICES, 5), SLICES)
    labelled, together = entry["fits"]
    assert set(labelled["levels"]) == {"flair", "t1"} and set(together["levels"]) == {ANY}
    limits = Limits.of({"gate": entry}, "swi")
    assert limits.expected[0].tolist() == together["levels"][ANY] and limits.expected.shape[1] == len(NAMES)
    judged = type(checkpoint)(checkpoint.model, {**checkpoint.card, "gate": entry}, "tiny", checkpoint.kind)
    kinds = [SOUND] * 6 + ["wrong centre", "alternate shots moved", "wrap, one map"]
    make = partial(slice_row, judged, heads, SLICES)
    rows = list(judge(judged, kinds, make, 1, ScoreLines(tmp_path / "scores.jsonl")))
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


def test_a_run_goes_on_with_what_was_judged(tmp_path, checkpoint):
    rows = {SOUND: row(SOUND, 0.25, "trusted"), "spike": row("spike", 3.0, "caution", residual=math.nan)}
    path, refused = tmp_path / "scores.jsonl", lambda *_: pytest.fail("judged again")
    first = list(judge(checkpoint, list(rows), lambda kind, rng: rows[kind], 0, ScoreLines(path)))
    again = list(judge(checkpoint, list(rows), refused, 0, ScoreLines(path)))
    assert [repr(one) for one in again] == [repr(one) for one in first]  # nan is not nan
    others = [
        replace(checkpoint, model_id="other"),
        replace(checkpoint, card={**checkpoint.card, "gate": {"fits": []}}),
        replace(checkpoint, card={**checkpoint.card, "sampling": {"samples": 9}}),
    ]
    for other, heads in [*((other, 0) for other in others), (checkpoint, 12)]:
        with pytest.raises(pytest.fail.Exception, match="judged again"):
            list(judge(other, list(rows), refused, 0, ScoreLines(path), heads))


def test_limits_are_of_the_scans_that_are_asked_for(checkpoint, tmp_path, monkeypatch):
    """With more --heads the first numbers were those of other slices."""
    monkeypatch.setattr(gate, "agreement", lambda *given: {})
    path, found = tmp_path / "scores.jsonl", []
    for count in (2, 3):
        scans = slice_scans([head(count * 10 + n, (66, 54), "t1") for n in range(count)], 5, checkpoint.model.device)
        made = [Scan(f"{count}", scan.contrast, scan.make) for scan in scans]
        found.append([one["subject"] for one in numbers_of(checkpoint, made, SLICES, 5, ScoreLines(path))])
    assert found == [["2"] * 2, ["3"] * 3]


def test_refused_scans_count_as_found(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr("dpmtrain.robustness.gate.slice_of", lambda case: LostSlice(SliceKey(0), "its lines are lost"))
    make = partial(slice_row, checkpoint, [head()], SLICES)
    (found,) = judge(checkpoint, ["spike"], make, 0, ScoreLines(tmp_path / "scores.jsonl"))
    assert (found.verdict, found.score, found.text) == ("lost", SAID, "its lines are lost")


def test_the_command_says_what_it_lacks(tmp_path, capsys):
    model = str(saved_model(tmp_path / "tiny.safetensors"))
    common = ["gate", "--images", str(tmp_path), "--model", model]
    for more, word in (
        (["--keep", "--out", str(tmp_path)], "has no limits to keep"),
        (["--each", "5"], "the tables need a folder"),
        (["--of", "volumes", "--keep", "--out", str(tmp_path)], "has no limits to keep"),
        (["--of", "folded", "--out", str(tmp_path)], "give --keep with --of folded"),
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


def test_a_smaller_field_of_view_folds():
    """Every other line of k-space is that of half of the field of view; a larger one changes nothing."""
    image = torch.randn(3, 24, 7, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    half = to_kspace(gate_cases.folded(image, 12, 1))
    torch.testing.assert_close(half, to_kspace(image)[:, ::2] * math.sqrt(2))
    assert torch.equal(gate_cases.folded(image, 30, 1)[:, 3:27], image)
    third = gate_cases.folded(image, 9, 1)
    assert third.shape == (3, 9, 7) and torch.allclose(third.sum(1), image.sum(1), atol=1e-5)
    assert gate_cases.extent_of(head().image, 0) < 90


def test_a_folded_head_comes_with_two_sets_and_a_remark(checkpoint):
    rng = np.random.default_rng(2)
    case, truth = case_of(head(matrix=(128, 96)), SOUND, 2, 0.01, rng, 0.8)
    assert case.kspace.shape[1] < truth.shape[0] == 128
    found = gate._mapped(case, checkpoint.model.device)
    assert found.n_sets == 2 and found.data.remarks[0].startswith(gate.TWO_SETS)
    case.one_map = True
    one = gate._mapped(case, checkpoint.model.device)
    assert (
        one.n_sets == 1
        and one.data.remarks == ()
        and one.residual(one.conventional) > found.residual(found.conventional)
    )


SMALL = gate_volumes.Protocol((20, 24, 22), (9.0, 9.0, 9.0), True, (2, 1), 12, 0.0, 0.01)


@pytest.fixture(scope="module")
def solid() -> torch.Tensor:
    return gate_volumes.head_volume(None, "phantom", "t1", 0)


@pytest.mark.parametrize("kind", gate_volumes.KINDS)
def test_every_kind_is_a_volume_of_its_own(kind, solid):
    def made(name: str):
        return gate_volumes.volume_case(solid, name, SMALL, "t1", np.random.default_rng(3), None)

    (case, truth), (sound, whole) = made(kind), made(SOUND)
    assert truth.shape == SMALL.size and np.isfinite(truth).all()
    if kind in gate_volumes.PAINTED:
        assert np.abs(truth - whole).max() > 0.05
    elif kind in gate_volumes.FAULTS:
        same = np.array_equal(case.kspace, sound.kspace)
        assert not same or (case.center, case.one_map) != (sound.center, sound.one_map)
    found = gate_volumes.volume_of(case)
    assert isinstance(found, Volume), found.reason
    assert found.voxel_mm == pytest.approx(SMALL.voxel_mm) and found.acceleration == 2
    expected = {"wrong centre": "is not the k-space centre", "noise-only coil": "holds noise alone"}.get(kind)
    assert expected is None or expected in " ".join(found.remarks)


@pytest.mark.parametrize("axial", [True, False])
def test_a_volume_holds_the_head_where_its_protocol_says(axial, solid):
    """A point of the head at 1 mm is found at its place: to the left, the back and the head."""
    point = torch.zeros_like(solid)
    up, back, left = (side // 2 + off for side, off in zip(solid.shape, (18, 36, -27)))
    point[up - 3 : up + 4, back - 3 : back + 4, left - 3 : left + 4] = 1
    protocol = gate_volumes.Protocol((20, 24, 22), (9.0, 9.0, 9.0), axial, (1, 1), 12, 0.0, 0.01)
    seen = gate_volumes.seen_by(point, protocol)
    where = np.unravel_index(int(seen.argmax()), seen.shape)
    x, y, z = gate_volumes.points_of(protocol)[where].tolist()
    assert abs(x + 27) < 9 and abs(y - 36) < 9 and abs(z - 18) < 9


def test_limits_of_volumes_leave_out_whole_subjects(checkpoint):
    """What is peculiar to a subject, but known from its other volumes, counts as far in one that is left out."""
    scans = volume_scans(None, 4, 0, checkpoint.model.device)
    subjects = {scan.subject for scan in scans}
    assert sum(not subject.startswith("phantom") for subject in subjects) == gate.HEADS
    assert {scan.contrast for scan in scans} == set(gate_volumes.CONTRASTS)
    rng = np.random.default_rng(0)
    peculiar = {subject: (rng.uniform(1, 2, 3), rng.normal(0, 9, len(NAMES))) for subject in sorted(subjects)}

    def numbers(scan: Scan) -> dict:
        parts = []
        for _ in range(5):
            known = dict(zip(("head", "pixel_mm", "ratio"), peculiar[scan.subject][0]), sets=1.0)
            known |= {"sigma_n": rng.uniform(0.01, 0.05), "R": rng.uniform(1, 4)}
            values = dict(zip(NAMES, peculiar[scan.subject][1] + rng.standard_normal(len(NAMES))))
            parts.append({"known": known, "matrix": 900, "values": values})
        return {"subject": scan.subject, "contrast": scan.contrast, "parts": parts}

    found = [*map(numbers, scans), {"subject": "lost", "contrast": "t1", "parts": []}]
    entry = limits_of(found, VOLUMES)
    assert entry["measured"].startswith(f"`dpmtrain gate`, {len(scans)} sound volumes")
    limits = Limits.of({"gate": {VOLUMES: entry}}, "t1", VOLUMES)
    assert limits.ranges["matrix"] == (900, 900) and limits.ranges["R"] == (1, 6)
    scan_by_scan = [{**scan, "subject": f"{number}"} for number, scan in enumerate(found)]
    assert limits.largest > 2 * limits_of(scan_by_scan, VOLUMES)["fits"][0]["largest"]["t1"]


def test_volumes_are_judged_by_limits_of_their_own(checkpoint, monkeypatch, solid):
    monkeypatch.setattr(gate, "protocol_of", lambda *given: SMALL)
    monkeypatch.setattr(gate, "head_volume", lambda *given: solid)
    known = {"sigma_n": [0.004, 0.06], "R": [1, 8], "head": [1, 999], "matrix": [1, 999], "pixel_mm": [1, 9]}
    fit = {
        "levels": {ANY: [0.0] * len(NAMES)},
        "slopes": np.zeros((12, len(NAMES))).tolist(),
        "precision": {ANY: np.eye(len(NAMES)).tolist()},
        "largest": {ANY: 1e-3},
    }
    entry = {"fits": [fit], **known, "ratio": [1, 2], "sets": [1, 2]}
    judged = type(checkpoint)(checkpoint.model, {**checkpoint.card, "gate": {VOLUMES: entry}}, "tiny", checkpoint.kind)
    row = volume_row(judged, None, 0, SOUND, np.random.default_rng(0))
    assert (row.kind, row.matrix, row.verdict) == (SOUND, "20x24x22", "not trusted")
    assert row.agreement > 1 and row.remarks == 0 and math.isnan(row.spread)
    assert "two sets of maps" in table([row], "tiny", 0, VOLUMES)
    other = type(checkpoint)(checkpoint.model, checkpoint.card, "tiny", checkpoint.kind)
    assert math.isnan(volume_row(other, None, 0, SOUND, np.random.default_rng(0)).agreement)


def test_a_fold_that_is_not_seen_is_no_sound_scan(checkpoint, monkeypatch):
    heads = [head(matrix=(128, 96))]
    seen = slice_row(checkpoint, heads, gate.FOLDED, SOUND, np.random.default_rng(0))
    assert (seen.kind, seen.remarks) == (SOUND, 0) and int(seen.matrix.partition("x")[0]) < 128

    def one_map(case, device):
        case.one_map = True
        return mapped(case, device)

    mapped = gate._mapped
    monkeypatch.setattr(gate, "_mapped", one_map)
    unseen = slice_row(checkpoint, heads, gate.FOLDED, SOUND, np.random.default_rng(0))
    assert unseen.kind == gate.WRAP_ONE_MAP and unseen.residual > seen.residual
