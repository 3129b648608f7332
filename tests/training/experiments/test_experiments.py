"""Both experiments, whole, with tiny networks on tiny heads: a second run finds everything done."""

import csv
import sys
from functools import cache

import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmtrain.evaluate import lesions, validation
from dpmtrain.evaluate.methods import by_card
from dpmtrain.experiments import capacity, imperfect, imperfect_scores, per_target, scans

TINY = {"blocks": [1, 1], "embedding": 8}


def run(module, monkeypatch, **options):
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", [module.__name__, *words])
    module.main()


@pytest.fixture
def small_capacity(monkeypatch):
    monkeypatch.setattr(capacity, "WIDTHS", {"one": [4, 6], "two": [6, 8]})
    monkeypatch.setattr(capacity, "MODEL", {**capacity.MODEL, **TINY})
    monkeypatch.setattr(capacity, "SIDE", 33)
    monkeypatch.setattr(capacity, "SHORTEST", 1)
    monkeypatch.setattr(capacity, "FITTING", 40)  # errors of nothing learnt follow no law
    monkeypatch.setattr(validation, "MATRIX", (46, 40))
    settings = {"steps": 4, "batch": 8, "crop": 16, "pool": 16, "precision": "float32"}
    monkeypatch.setattr(capacity, "TRAIN", {**capacity.TRAIN, **settings})


@pytest.fixture
def small_imperfect(small_capacity, monkeypatch):
    monkeypatch.setattr(imperfect, "TRAIN", {**imperfect.TRAIN, "batch": 2, "precision": "float32"})
    monkeypatch.setattr(scans, "MATRIX", (45, 42))
    monkeypatch.setattr(scans, "PIXEL_MM", 1.0)
    monkeypatch.setattr(scans, "SLICES", 1)
    head = np.zeros((128, 128), np.float32)
    head[14:-14, 20:-20] = 0.7
    monkeypatch.setattr(lesions, "tissue_of", lambda images, contrast: head)
    quick = {"steps": 1, "cg_steps": 1}
    monkeypatch.setattr(imperfect_scores, "FACTORS", (0.5,))
    monkeypatch.setattr(imperfect_scores, "pair_of", cache(imperfect_scores.pair_of))  # the same for every network

    def few_steps(*args, samples):
        *args, changes = args
        return by_card(*args, {**changes, **quick}, samples=samples)

    monkeypatch.setattr(imperfect_scores, "by_card", few_steps)


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_capacity_has_a_row_for_each_network_and_doubling(folders, small_capacity, monkeypatch, tmp_path, capsys):
    prepared, images = folders
    places = {"data": prepared, "images": images, "run": tmp_path / "run", "out": tmp_path}
    run(capacity, monkeypatch, **places)
    found = rows(tmp_path / "table.csv")
    seen = [(row["network"], row["images"]) for row in found]
    assert seen[:-1] == [(name, images) for images in ("8", "16", "32") for name in ("one", "two")]
    assert seen[-1][0] == "ships"
    assert (tmp_path / "capacity.png").stat().st_size > 5000
    text = capsys.readouterr().out
    monkeypatch.setattr(capacity, "CropPool", None)  # nothing is trained again
    monkeypatch.setattr(capacity, "denoising_errors", None)  # nor scored
    run(capacity, monkeypatch, **places)
    assert capsys.readouterr().out == text


def test_capacity_goes_on_from_its_state(folders, small_capacity, monkeypatch, tmp_path):
    pools = []

    class Pool(capacity.CropPool):
        def __init__(self, *args):
            pools.append(args[-1])
            super().__init__(*args)

        def draw(self, batch):
            if len(pools) == 1 and self.drawn == 3:
                raise KeyboardInterrupt
            return super().draw(batch)

    monkeypatch.setattr(capacity, "CropPool", Pool)
    with pytest.raises(KeyboardInterrupt):
        capacity.trained(folders[0], tmp_path)
    capacity.trained(folders[0], tmp_path)
    assert [text.split()[1] for text in pools] == ["0", "2"]
    assert capacity.path_of(tmp_path, "two", 4).exists()


def test_the_fit_finds_the_law_it_was_made_of():
    wanted = np.log([0.3, 0.12, 0.9, 0.05, 0.6])
    places = [(n, m) for n in (1e5, 4e5, 2e6) for m in (8e3, 3e4, 1e5)]
    made = [{"parameters": n, "images": m, "all": capacity.law(wanted, n, m)} for n, m in places]
    fit = capacity.fitted(made)
    assert np.allclose(fit, wanted, atol=0.01)
    assert capacity.law(fit, 1e5, 1e4) == pytest.approx(0.3 + 0.12 + 0.05, abs=1e-3)


def test_a_network_that_gives_the_truth_has_no_error_and_one_that_does_nothing_has_that_of_the_noise():
    image = torch.polar(torch.rand(33, 28), torch.rand(33, 28))

    class Given:
        def __init__(self, found):
            self.found = found

        def one_hot(self, labels):
            return labels

        def __call__(self, noisy, sigma, label):
            return self.found(noisy)

    for found, wanted in ((lambda noisy: image[None], 0), (lambda noisy: noisy, 1)):
        (error,) = capacity.denoising_errors(Given(found), [("t1", image)], 0.3)
        assert error == pytest.approx(wanted, abs=0.05)


def test_every_arm_is_tuned_and_scored_and_a_second_run_finds_it_done(
    folders, small_imperfect, monkeypatch, tmp_path, capsys
):
    prepared, images = folders
    capacity.trained(prepared, tmp_path / "capacity")
    start = capacity.path_of(tmp_path / "capacity", "one", 4)
    places = {"start": start, "data": prepared, "images": images, "run": tmp_path / "run", "out": tmp_path}
    command = {**places, "steps": 2, "seeds": 2, "slices": 1, "draws": 2}
    run(imperfect, monkeypatch, **command)
    found = rows(tmp_path / "table.csv")
    assert [row["tuned on"] for row in found] == [
        "(CG-SENSE)",
        "not tuned",
        *(title for title, _ in imperfect.ARMS.values()),
    ]
    assert found[0]["error at 0.1"] == ""
    assert (tmp_path / "imperfect.png").stat().st_size > 5000
    files = list((tmp_path / "run").glob("*/*/*.pt"))
    assert {file.stem for file in files} == {"clean", "sense", "drawn", "mean", "modes"}
    assert {len(torch.load(file, weights_only=True)["image"]) for file in files} == {2}  # FLAIR of the two patients
    text = capsys.readouterr().out
    for name in ("training_slices", "write_state"):
        monkeypatch.setattr(scans, name, None)
    monkeypatch.setattr(imperfect_scores, "scores", None)
    run(imperfect, monkeypatch, **command)
    assert capsys.readouterr().out == text


def test_every_target_is_scored_on_every_contrast(folders, small_imperfect, monkeypatch, tmp_path, capsys):
    prepared, images = folders
    monkeypatch.setattr(per_target, "CROPS", {**per_target.CROPS, "batch": 8, "crop": 16, "pool": 8})
    monkeypatch.setattr(per_target, "TRAIN", {**per_target.TRAIN, "precision": "float32"})
    monkeypatch.setattr(per_target, "FACTORS", (0.5,))
    monkeypatch.setattr(per_target, "TARGETS", ("flair", "t1"))
    monkeypatch.setattr(per_target, "ARMS", ("before", "all", "flair", "t1"))
    monkeypatch.setattr(per_target, "WITHOUT_LESIONS", "t1")
    capacity.trained(prepared, tmp_path / "capacity")
    places = {"data": prepared, "images": images, "run": tmp_path / "run", "out": tmp_path}
    places["start"] = capacity.path_of(tmp_path / "capacity", "one", 4)
    command = {**places, "steps": 1, "seeds": 2, "slices": 1, "draws": 2}
    run(per_target, monkeypatch, **command)
    found = rows(tmp_path / "table.csv")
    assert [(row["contrast"], row["trained last on"]) for row in found] == [
        (contrast, arm) for contrast in ("flair", "t1") for arm in ("before", "all", "flair", "t1")
    ]
    assert all(row["lesions: mean"] for row in found[:4]) and not any(row["lesions: mean"] for row in found[4:])
    assert found[1]["of each slice, less that of all (95 %)"].startswith("+0.0000 (+0.0000")
    assert (tmp_path / "per_target.png").stat().st_size > 5000
    text = capsys.readouterr().out
    monkeypatch.setattr(per_target, "CropPool", None)  # nothing is trained again
    run(per_target, monkeypatch, **command)
    assert capsys.readouterr().out == text


def test_each_arm_is_reported_at_its_best_factor_on_the_label_map(tmp_path, monkeypatch):
    monkeypatch.setattr(imperfect_scores, "FACTORS", (0.57, 0.75, 1.0))
    kept = dict.fromkeys(imperfect_scores.KEPT, 0.5)
    levels = [0.1] * len(capacity.SIGMAS)

    def scores(*errors):
        # on the label map, then on the patient
        pairs = [[error, 2 * error, 3 * error] for error in errors]
        return imperfect_scores.Scores(
            levels, [True, True, False], pairs, pairs, pairs, [{**kept, "mean": 10 * e} for e in errors]
        )  # fmt: skip

    found = {
        ("start", 0): scores(0.05, 0.04, 0.06), ("sense", 0): scores(0.05, 0.03, 0.01),
        ("modes", 0): scores(0.02, 0.03, 0.04), ("modes", 1): scores(0.01, 0.06, 0.08),
    }  # fmt: skip
    titles = {"start": "not tuned", "sense": "SENSE", "modes": "aware"}
    imperfect_scores.report(found, titles, tmp_path)
    found = {(row["tuned on"], row["noise_factor"]): row for row in rows(tmp_path / "table.csv")}
    best = [("not tuned", "0.75"), ("SENSE", "1.0"), ("aware", "0.57")]
    assert len(found) == 9
    told = [line.split(" | ")[:2] for line in (tmp_path / "table.md").read_text().splitlines()[2:]]
    assert [(title.strip("| "), factor) for title, factor in told] == best
    start, sense, modes = (found[name] for name in best)
    assert modes["NRMSE, patient09"] == "0.0450 (0.0300 to 0.0600)"
    assert modes["label map"] == "0.0225 (0.0150 to 0.0300)"
    assert (sense["lesions: mean"], sense["NRMSE, patient09"]) == ("0.1", "0.0300")
    assert start["all, less CG-SENSE images' (95 %)"].startswith("+0.0600 (+0.0300")


def test_prepared_volumes_without_flair_are_refused(folders):
    with pytest.raises(BadInputError, match="none of the volumes"):
        next(scans.training_slices(folders[0], scans.Site(volumes=("nothing*",))))


def test_what_is_learnt_from_is_never_what_is_held_out():
    patterns = [*scans.VOLUMES, *capacity.TRAIN["volumes"]]
    assert not any(number in pattern for pattern in patterns for number in ("09", "12", "_02", "[0", "0[2"))
