"""Field and susceptibility against what was put in; the command on a small head of labels."""

import csv
import sys

import nibabel
import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.physics.fourier import to_image, to_kspace
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint
from dpmrecon.prior.conditional import ConditionalDenoiser
from dpmrecon.prior.kinds import ONE_STEP
from dpmtrain.data.veins import LARMOR_HZ_PER_PPM, PALLIDUM_PPM, dipole, field_phase
from dpmtrain.one_step import qsm, qsm_cases
from dpmtrain.one_step.qsm_cases import ECHOES_MS, IRON, NUCLEI, Scan, head

SHAPE = (15, 22, 17)
CONFIG = {"widths": [4, 6], "blocks": [1, 1], "embedding": 8, "labels": ["swi"], "conditioning": "cg-sense"}


def test_the_field_of_echoes_is_found_beyond_a_turn_of_their_phase():
    rng = np.random.default_rng(1)
    field, first = rng.uniform(-110, 110, SHAPE), rng.uniform(-np.pi, np.pi, SHAPE)  # Hz; 32 ms make 3.5 turns
    decay = rng.uniform(10, 60, SHAPE)
    times = np.reshape(ECHOES_MS, (-1, 1, 1, 1))
    echoes = np.exp(-times / decay + 1j * (first + 2e-3 * np.pi * field * times))
    assert qsm.field_hz(echoes, ECHOES_MS) == pytest.approx(field, abs=1e-2)
    # a weak echo with a wrong phase counts for little
    echoes[-1] *= 0.01 * np.exp(2j)
    assert np.abs(qsm.field_hz(echoes, ECHOES_MS) - field).max() < 0.2


def test_what_the_dipole_keeps_is_inverted():
    rng = np.random.default_rng(2)
    response = dipole(SHAPE, 0)
    response[tuple(size // 2 for size in SHAPE)] = 0
    kspace = to_kspace(torch.from_numpy(rng.normal(size=SHAPE)).to(torch.complex64), (0, 1, 2))
    seen = torch.where(response.abs() >= 0.1, kspace, 0)
    ppm, field = (to_image(part, (0, 1, 2)).real for part in (seen, seen * response))
    kept = (response.abs() / response.abs().clamp_min(0.1)).mean()
    found = qsm.inverted(LARMOR_HZ_PER_PPM * field.numpy(), 0.1)
    assert found * float(kept) == pytest.approx(ppm.numpy(), abs=1e-4)


def test_the_main_field_runs_along_partitions():
    ball = sum(axis**2 for axis in np.ogrid[-12:13, -13:14, -14:14]) < 16
    ppm = ball.astype(np.float32)
    field = field_phase(ppm.T.copy(), 1.0).T / (2e-3 * np.pi)  # that runs along the last axis
    assert field[12 + 6, 13, 14] > 0 > field[12, 13 + 6, 14]
    error = [np.abs(qsm.inverted(np.moveaxis(field, axis, 0)) - np.moveaxis(ppm, axis, 0)).mean() for axis in (0, 2)]
    assert error[0] < 0.5 * error[1]


@pytest.fixture(scope="module")
def label_map(tmp_path_factory):
    """White matter with two of each nucleus, in a skin; RAS."""
    labels = np.zeros((60, 56, 52), np.int16)
    x, y, z = np.ogrid[-30:30, -28:28, -26:26]
    labels[(x / 28) ** 2 + (y / 26) ** 2 + (z / 24) ** 2 < 1] = 511
    labels[(x / 25) ** 2 + (y / 23) ** 2 + (z / 21) ** 2 < 1] = 2
    labels[(x / 3) ** 2 + (y / 20) ** 2 + (z / 5) ** 2 < 1] = 4  # a ventricle, which veins run to
    for number, numbers in enumerate(NUCLEI.values()):
        for side, label in zip((-1, 1), numbers):
            labels[(x - 9 * side) ** 2 + (y - 11 * (number - 1.5)) ** 2 + z**2 < 20] = label
    path = tmp_path_factory.mktemp("labels") / "synthseg_labels" / "training_seg_02.nii.gz"
    path.parent.mkdir()
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), path)
    return path


def test_the_echoes_have_the_field_of_their_susceptibility(label_map, monkeypatch):
    monkeypatch.setattr(qsm_cases, "veins", lambda labels, rng: np.zeros(labels.shape, np.float32))
    of = head(label_map, 0)
    assert of.echoes.shape == (len(ECHOES_MS), *of.ppm.shape) and len(of.places) == 2 + 2 * len(NUCLEI)
    for name, iron in IRON.items():
        for side in ("left", "right"):  # partial volume at the edge
            middle = np.median(of.ppm[of.places[f"{name}, {side}"]])
            assert middle == pytest.approx(PALLIDUM_PPM * iron, rel=0.3, abs=0.01)
    wanted = field_phase(of.ppm.T.copy(), 1.0).T / (2e-3 * np.pi)
    found = qsm.field_hz(of.echoes.numpy(), ECHOES_MS)
    near = of.brain & (np.abs(wanted) < 5)
    assert np.corrcoef(found[near], wanted[near])[0, 1] > 0.9
    assert (of.echoes.abs()[-1] < of.echoes.abs()[0])[of.places["bleed"]].all()


def test_a_map_without_nuclei_is_refused(tmp_path):
    path = tmp_path / "labels.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.full((9, 9, 9), 2, np.int16), np.eye(4)), path)
    with pytest.raises(BadInputError, match="no deep grey matter"):
        head(path, 0)


def test_one_set_of_maps_keeps_the_phase_between_echoes(label_map):
    scan = Scan(head(label_map, 0))
    first, last = (scan.mapped(echo, 1) for echo in (0, 2))
    turned = [qsm.in_map_phase(mapped, mapped.zero_filled) for mapped in (first, last)]
    between = np.angle(turned[1] * turned[0].conj() * (scan.head.echoes[0] * scan.head.echoes[2].conj()).numpy())
    bright = scan.head.brain & (first.model.support.numpy() > 0)
    assert np.sqrt(np.square(between[bright]).mean()) < 0.1
    assert float(1 / scan.mapped(2, 8).data.mask.mean()) > 3


def test_the_command_compares_and_goes_on(label_map, model, tmp_path, monkeypatch, capsys, short_kernel):
    for module in (qsm, qsm_cases):
        monkeypatch.setattr(module, "ECHOES_MS", ECHOES_MS[:2])
    monkeypatch.setattr(qsm_cases, "FIRST_BLOCK", qsm_cases.BLOCK)
    one_step = tmp_path / "one_step.safetensors"
    torch.manual_seed(0)
    save_checkpoint(one_step, ConditionalDenoiser(CONFIG), {"kind": ONE_STEP, "sampling": {ONE_STEP: {"steps": 2}}})
    monkeypatch.setattr(qsm, "load_model", lambda name, device: load_checkpoint(one_step if name else model))
    monkeypatch.setattr(sys, "argv", ["qsm", "--images", str(label_map.parent.parent), "--out", str(tmp_path / "out")])
    qsm.main()
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert [row["evaluations"] for row in rows.values()] == ["0", "0", "0", "1", "4", rows["default"]["evaluations"]]
    truth, full = rows[qsm.TRUTH], rows[qsm.FULL]
    assert float(truth["first"]) == float(truth["field_hz"]) == 0 and float(truth["r2"]) > 0.5
    assert 0 < float(full["first"]) < float(rows["CG-SENSE"]["first"])
    assert (tmp_path / "out" / "qsm.png").stat().st_size > 10_000
    monkeypatch.setattr(qsm, "_made", lambda *_: pytest.fail("an image is made that is there"))
    table = (tmp_path / "out" / "table.md").read_text()
    qsm.main()
    assert (tmp_path / "out" / "table.md").read_text() == table
