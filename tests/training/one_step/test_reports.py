"""The one-step network's reports: what is known of their figures beforehand, and the commands with tiny networks."""

import csv
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.options import Options
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint, write_card
from dpmrecon.prior.conditional import ConditionalDenoiser
from dpmrecon.prior.kinds import ONE_STEP
from dpmrecon.prior.samplers.one_step import OneStepSettings
from dpmrecon.recon.plan import sampling_of
from dpmrecon.recon.sample import problem_of
from dpmtrain.evaluate.methods import by_card
from dpmtrain.evaluate.plan import Condition
from dpmtrain.evaluate.references import CPU
from dpmtrain.evaluate.score_lines import ScoreLines
from dpmtrain.evaluate.scoring import Undersampled
from dpmtrain.evaluate.validation import full_slice
from dpmtrain.one_step import around, distillation, paper, volumes
from dpmtrain.one_step.settings import Case, Remembering
from dpmtrain.one_step.settings import nrmse as errors_of

CONFIG = {"widths": [4, 6], "blocks": [1, 1], "embedding": 8, "labels": ["flair", "t1"], "conditioning": "cg-sense"}
SHAPE = (61, 48)


def disc(number: int = 0, contrast: str = "flair"):
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    inside = ((rows - 30) / 26) ** 2 + ((cols - 24) / 19) ** 2 < 1
    magnitude = torch.from_numpy(inside * (1 + 0.3 * np.cos(rows / (3 + number)))).float()
    return full_slice(f"disc {contrast}", number, contrast, magnitude, 0.02)


def network(seed: int) -> ConditionalDenoiser:
    torch.manual_seed(seed)
    found = ConditionalDenoiser(CONFIG).eval().requires_grad_(False)
    for parameter in found.parameters():  # so that all it is told counts
        torch.nn.init.normal_(parameter, std=0.1)
    return found


@pytest.fixture
def one_step(tmp_path):
    path = tmp_path / "one.safetensors"
    settings = {"steps": 2, "a_round": 1, "noise_scale": 0.0}
    save_checkpoint(path, network(2), {"kind": ONE_STEP, "sampling": {"samples": 1, ONE_STEP: settings}})
    return path


@pytest.fixture
def case() -> Case:
    full, model = disc(), network(2)
    mapped = Undersampled(full, Condition("regular", 4, 12), CPU).mapped
    prior = Remembering(model, model.one_hot(["flair"]), lambda images: None)
    return Case(("flair", 4), 0.02, full.truth, mapped, problem_of([mapped]), prior)


def test_a_single_coil_sees_the_combined_image():
    full = disc()
    single = paper.single_coil(full)
    assert single.coil_images.shape == (1, *SHAPE)
    assert single.coil_images[0].abs().numpy() == pytest.approx(full.truth, abs=1e-5)
    again = paper.with_noise(single, 7)
    difference = torch.view_as_real(again.data.kspace - single.data.kspace)
    assert float(difference.std()) == pytest.approx(2**0.5 * full.data.sigma_n, rel=0.05)
    assert torch.equal(again.data.kspace, again.data.calibration)
    assert torch.equal(paper.with_noise(single, 7).data.kspace, again.data.kspace)


def test_the_deviation_is_that_of_the_scans():
    rng = np.random.default_rng(0)
    truth = np.where(rng.random((40, 37)) < 0.8, 1.0, 0.0)
    images = truth + 0.02 * rng.normal(size=(200, 40, 37))
    maps, lines = paper.deviations({"truth": truth, "made": images})
    assert maps["made"].mean() == pytest.approx(0.02, rel=0.02)
    _, (name, share, one, mean) = lines
    assert name == "made" and float(share) == pytest.approx(0.02, abs=1e-3)
    assert float(one) == pytest.approx(0.02 / 0.8**0.5, rel=0.05) and float(mean) < 0.2 * float(one)


def test_the_papers_experiments_go_on_where_they_stopped(one_step, model, tmp_path, monkeypatch, capsys):
    slices = {contrast: [disc(number, contrast) for number in range(2)] for contrast in paper.CONTRASTS}
    monkeypatch.setattr(paper, "validation_scan", lambda images, contrast: slices[contrast])
    monkeypatch.setattr(paper, "load_model", lambda name, device: load_checkpoint(one_step if name else model))
    monkeypatch.setattr(paper, "TABLE_R", (4,))
    monkeypatch.setattr(paper, "SINGLE_R", (4,))
    monkeypatch.setattr(paper, "FIGURE_R", (4, 8))
    monkeypatch.setattr(paper, "MASKS", ("gaussian", "gaussian 2D"))
    monkeypatch.setattr(paper, "REPEATS", 2)
    monkeypatch.setattr(paper, "conventional", lambda *_: [])  # whose weights would take a while
    monkeypatch.setattr(sys, "argv", ["paper", "--images", "here", "--out", str(tmp_path / "out"), "--slices", "2"])
    paper.main()
    out = tmp_path / "out"
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["coils"] for row in rows} == {"1", "8"} and {row["R"] for row in rows} == {"4", "8"}
    methods = {row["method"] for row in rows if row["coils"] == "8" and row["sampling"].startswith("1D Gaussian")}
    assert methods == {"CG-SENSE", paper.QUICK, *paper.STEPS, paper.DEFAULT}
    assert all((out / f"figure{number}.png").stat().st_size > 5000 for number in (3, 7, 8))
    text, files = (out / "table.md").read_text(), {path: path.read_bytes() for path in out.glob("*.jsonl")}
    paper.main()
    assert (out / "table.md").read_text() == text
    assert {path: path.read_bytes() for path in out.glob("*.jsonl")} == files


def test_the_mean_with_flipped_images_is_the_mean(case):
    prior = case.prior
    noisy, beside = torch.zeros(1, *SHAPE, dtype=torch.complex64), case.problem.start
    told = torch.full((1,), 4.0), torch.full((1,), 0.02)
    flipped = around.with_prior(case, around.Flipped, axes=(-1,)).prior
    turned = prior(noisy, 1.0, beside.flip(-1), *told).flip(-1)
    wanted = (prior(noisy, 1.0, beside, *told) + turned) / 2
    assert torch.allclose(flipped(noisy, 1.0, beside, *told), wanted, atol=1e-6)
    every = around.with_prior(case, around.Flipped, axes=(-1, -2)).prior(noisy, 1.0, beside, *told)
    symmetric = around.with_prior(case, around.Flipped, axes=(-1, -2)).prior(noisy, 1.0, beside.flip(-2), *told)
    assert torch.allclose(every, symmetric.flip(-2), atol=1e-6)


def test_changes_of_nothing_change_nothing(case):
    variant = around.Variant("plain", OneStepSettings(a_round=1, noise_scale=0.0))
    plain = errors_of(case, variant)
    same = [
        around.with_cg_steps(case, type(case.mapped.model).cg_steps),
        around.with_scale(case, 1.0),
        around.with_prior(case, around.Told),
    ]
    assert np.array([errors_of(one, variant) for one in same]) == pytest.approx(np.array([plain] * 3), abs=2e-4)
    assert errors_of(around.with_cg_steps(case, 1), variant) != pytest.approx(plain, rel=0.01)
    assert errors_of(around.with_prior(case, around.Told, noise=9.0), variant) != pytest.approx(plain, rel=1e-4)


def test_cases_of_one_key_share_an_error():
    values = np.array([[1.0, 2.0, 3.0], [4.0, 1.0, 9.0], [5.0, 6.0, 1.0]])
    assert around.chosen(values, ["a", "a", "b"]).tolist() == [2, 1, 1]
    assert around.chosen(values, [1, 2, 3]).tolist() == [1, 1, 1]


def test_a_students_image_is_that_of_its_weights(one_step, tmp_path, model, monkeypatch, capsys):
    """A student with the teacher's weights and noise makes the teacher's image of as many evaluations."""
    monkeypatch.setattr(distillation, "validation_scan", lambda images, contrast: [disc(0, contrast)])
    monkeypatch.setattr(
        distillation, "load_model", lambda name, device: load_checkpoint(one_step if name == ONE_STEP else name)
    )
    monkeypatch.setattr(distillation, "EVALUATIONS", (4, 2, 1))
    teacher = tmp_path / "teacher.safetensors"
    save_checkpoint(teacher, network(3), {"kind": ONE_STEP, "sampling": {ONE_STEP: {"steps": 4}}})
    student = tmp_path / "student.safetensors"
    save_checkpoint(student, network(3), {"kind": ONE_STEP, "sampling": {ONE_STEP: {"steps": 2}}})
    args = ["--images", "here", "--teacher", str(teacher), "--students", str(student), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["distillation", *args])
    distillation.main()
    with (tmp_path / "out" / "table.csv").open() as file:
        _, *lines = csv.reader(file)
    by_name = {(name, count): figures for name, count, *figures in lines}
    assert by_name[distillation.STUDENTS, "2"] == by_name[distillation.TEACHER, "2"]
    assert by_name[distillation.TEACHER, "4"] != by_name[distillation.TEACHER, "2"]
    assert (tmp_path / "out" / "distillation.png").stat().st_size > 5000
    with pytest.raises(BadInputError, match="kind one-step is needed"):
        distillation.asked_of(teacher, [model])


def test_the_best_error_for_volumes_goes_into_the_card(one_step, tmp_path, monkeypatch):
    monkeypatch.setattr(volumes, "ERRORS", (0.01, 0.3))
    small = replace(volumes.settings_of("t1", 0), matrix=(36, 30), fov_mm=(216.0, 180.0), partitions=24)
    monkeypatch.setattr(volumes, "settings_of", lambda contrast, seed: small)
    case, checkpoint = volumes.simulated_case("t1"), load_checkpoint(one_step)
    card = OneStepSettings(**checkpoint.card["sampling"][ONE_STEP])
    lines = ScoreLines(tmp_path / "scores.jsonl")
    row = volumes.measured([case], checkpoint, "in turn", replace(card, steps=1), lines)
    assert row.values.shape == (1, 2) and row.figures == row.values.min(1)
    across = volumes.measured([case], checkpoint, "across partitions", replace(card, steps=1), lines)
    assert across.values == pytest.approx(row.values)  # one evaluation turns to no other planes
    entry = volumes.card_entry([row])
    write_card(one_step, sampling={**checkpoint.card["sampling"], "volume": entry})
    found = load_checkpoint(one_step)
    chosen = sampling_of(Options(), found, CPU, "t1", 4, volume=True)
    assert chosen.settings == replace(card, steps=1, error=row.errors["t1"])
    image = by_card(case.mapped, found, "t1").image
    assert volumes.nrmse(image.abs().numpy(), case.made[1]) == pytest.approx(row.figures[0], rel=1e-3)
    assert by_card(case.mapped, found, "t1", {"steps": 3}).evaluations == 3
