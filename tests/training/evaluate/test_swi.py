"""What SWI is judged by, on veins, phases and balls that are known; the command on a small phantom."""

import csv

import numpy as np
import pytest
import torch
from dpmrecon.physics.soft_sense import SoftVolume
from dpmtrain.evaluate import swi
from dpmtrain.evaluate.baselines import volume_arrays
from dpmtrain.evaluate.swi_cases import gre_cases, phantom, phantom_cases
from dpmtrain.evaluate.swi_figures import bleed_size, dark_phase, local_contrast, phase_error, slope

SHAPE = (5, 31, 26)


def vein() -> np.ndarray:
    veins = np.zeros(SHAPE, bool)
    veins[:, 12, 4:20] = True
    return veins


def test_a_veins_contrast_is_that_to_what_is_around_it_alone():
    veins, head = vein(), np.ones(SHAPE, bool)
    head[:, :, 22:] = False
    volume = np.where(head, 2.0, 90.0)  # what is outside the head does not count
    volume *= np.arange(1, 6)[:, None, None]  # nor do other partitions
    volume[veins] *= 0.7
    assert local_contrast(volume, veins, head, (7, 5)) == pytest.approx(0.3)
    assert local_contrast(17 * volume, veins, head, (7, 5)) == pytest.approx(0.3)
    other = np.roll(veins, 9, 1)  # where there are none
    assert local_contrast(volume, other, head, (7, 5)) == pytest.approx(0)


def test_the_phase_of_veins_is_their_mean_where_the_truths_is_dark():
    veins = vein()
    truth = np.where(veins, -0.8, 0.5)
    truth[:, 12, 10:] = 0.6  # these lie across the field
    assert dark_phase(0.75 * truth, truth, veins) == pytest.approx(-0.6)


def test_the_error_of_phase_knows_turns_and_no_constant():
    rng = np.random.default_rng(2)
    truth, weight = rng.uniform(-np.pi, np.pi, SHAPE), rng.uniform(0, 1, SHAPE)
    wrong = np.where(rng.random(SHAPE) < 0.5, 0.2, -0.2)
    wrong -= (weight * wrong).sum() / weight.sum()
    wanted = np.sqrt((weight * wrong**2).sum() / weight.sum())
    turned = np.angle(np.exp(1j * (truth + wrong + 2.5)))
    assert phase_error(turned, truth, weight) == pytest.approx(wanted, rel=1e-2)
    weight[wrong > 0] = 0
    assert phase_error(turned, truth, weight) == pytest.approx(0, abs=1e-6)
    assert slope(0.9 * truth, truth, weight) == pytest.approx(0.9)


@pytest.mark.parametrize("diameter", [5.0, 6.2])
def test_a_dark_balls_diameter_and_contrast(diameter):
    voxel, centre = (2.0, 0.9, 0.8), (17.0, 16.3, 15.2)
    grid = np.meshgrid(*[np.arange(n) * v for n, v in zip((17, 37, 39), voxel)], indexing="ij")
    away = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre)))
    depth = np.clip((diameter / 2 - away) / 2 + 0.5, 0, 1)  # half of it at the ball's surface
    found = bleed_size(3 * (1 - 0.8 * depth), depth > 0.9, voxel)
    assert found == pytest.approx((0.8, diameter), abs=0.15)


def test_a_baseline_gets_the_first_of_two_sets_of_maps():
    (case,) = phantom_cases(phantom(0, 10, (36, 40)), ["2 x 2 CAIPIRINHA"])  # within a head, cut off all around
    assert isinstance(case.mapped.model, SoftVolume)
    kspace, maps = volume_arrays(case.mapped)
    assert maps.shape == kspace.shape == (len(kspace), *case.truth.shape)
    first = case.mapped.model.coil_maps[:, 0]
    norms = torch.linalg.vector_norm(first, dim=1).sum(), torch.linalg.vector_norm(maps, dim=0).sum()
    assert norms[0] == pytest.approx(float(norms[1]), rel=1e-4)


def test_the_command_compares_with_the_full_scan(short_kernel, model, tmp_path, monkeypatch, capsys):
    args = ["--patterns", "2 x 2 CAIPIRINHA", "--partitions", "10", "--matrix", "88", "82", "--samples", "1"]
    args += ["--model", str(model)]
    cases = list(phantom_cases(phantom(0, 10, (88, 82)), ["2 x 2 CAIPIRINHA"]))
    monkeypatch.setattr(swi, "phantom_cases", lambda *_: cases)
    monkeypatch.setattr("sys.argv", ["swi", "--out", str(tmp_path), *args, "--try", "noise_factor=.5,steps=2"])
    monkeypatch.setattr(swi.shutil, "which", lambda name: None)  # without BART
    swi.main()
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    methods = ["full scan", "truth, without noise", "CG-SENSE", "dpmrecon", "dpmrecon, noise_factor 0.5, steps 2"]
    assert [row["method"] for row in rows] == methods
    full, truth, sense = ({name: float(value) for name, value in list(row.items())[2:]} for row in rows[:3])
    assert truth["nrmse"] == 0 and truth["phase_rad"] < 1e-3
    assert (full["swi_ratio"], full["minip_ratio"], full["vein_ratio"]) == (1, 1, 1)
    assert full["nrmse"] < sense["nrmse"] and full["phase_rad"] < sense["phase_rad"]
    assert (tmp_path / "swi.png").stat().st_size > 10_000
    first = capsys.readouterr().out
    assert "| dpmrecon |" in first
    monkeypatch.setattr(swi, "ours", lambda *_: pytest.fail("made again"))
    swi.main()
    assert capsys.readouterr().out == first


def test_measured_echoes_become_cases(tmp_path):
    import nibabel

    rng = np.random.default_rng(3)
    magnitude = 100 + 10 * rng.random((14, 15, 12, 2))
    phase = rng.uniform(-np.pi, np.pi, magnitude.shape)
    (tmp_path / "gre_complex").mkdir()
    for name in ("CLEARSWI", "ROMEO"):
        for kind, array in (("Mag", magnitude), ("Phase", phase * 0.0036743774 / np.pi)):
            nibabel.Nifti1Image(array, np.eye(4)).to_filename(tmp_path / f"gre_complex/{name}_{kind}.nii")
    cases = list(gre_cases(tmp_path))
    assert [case.name for case in cases] == [f"{name}, echo {n}" for name in ("CLEARSWI", "ROMEO") for n in (1, 2)]
    truth = cases[1].truth
    assert truth.shape == (12, 14, 14)
    assert np.angle(truth) == pytest.approx(phase[:, :14, :, 1].T, abs=1e-4)
