"""A reader study: sets that tell nothing, a sealed key, and statistics that find what was put in."""

import json
import re
import shutil

import numpy as np
import pytest
from dpmtrain.cli import main
from dpmtrain.study.design import Design, Key
from dpmtrain.study.questions import ARMS, QUESTIONS
from pydicom import dcmread
from pydicom.uid import generate_uid

pytest.importorskip("statsmodels", reason="statsmodels is not installed: pip install -e .[study]")

from dpmtrain.study import check, power, statistics  # noqa: E402
from dpmtrain.study.leaks import accuracy  # noqa: E402
from dpmtrain.study.made_up import write_sources  # noqa: E402
from dpmtrain.study.scores import write_scores  # noqa: E402

SUBJECTS = ["amber", "birch", "cedar", "dune", "elm"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder with standard/ and accelerated/, the readers' folder, the key's file)"""
    folder = tmp_path_factory.mktemp("study")
    write_sources(folder, SUBJECTS, ("flair", "t2"), (3, 15, 12))
    assert main(command(folder)) == 0
    return folder, folder / "out", folder / "key.json"


def command(folder, **changes):
    options = {"standard": folder / "standard", "accelerated": folder / "accelerated", "out": folder / "out"}
    options |= {"key": folder / "key.json", "seed": "a phrase", "readers": 3, "repeats": 2, **changes}
    return ["study", "make", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]


@pytest.mark.parametrize("n_subjects, n_repeats", [(2, 1), (5, 3), (20, 10), (21, 0)])
def test_both_arms_of_a_subject_lie_apart_and_repeats_come_last(n_subjects, n_repeats):
    design = Design.drawn([f"s{n}" for n in range(n_subjects)], 3, n_repeats, "seed")
    assert sorted(design.sets) == list(range(1, 2 * n_subjects + n_repeats + 1))
    assert design == Design.drawn([f"s{n}" for n in range(n_subjects)], 3, n_repeats, "seed")
    firsts = [one for one in design.sets.values() if one.repeat_of is None]
    assert {(one.subject, one.arm) for one in firsts} == {(f"s{n}", arm) for n in range(n_subjects) for arm in ARMS}
    for order in design.orders:
        assert sorted(order) == sorted(design.sets)
        shown = [design.sets[number] for number in order]
        assert all(one.repeat_of is None for one in shown[: 2 * n_subjects])
        for one in shown:
            places = [place for place, other in enumerate(shown) if other.subject == one.subject]
            assert min(np.diff(places)) >= n_subjects // 2
        standard = sum(one.arm == "standard" for one in shown[:n_subjects])
        assert abs(2 * standard - n_subjects) <= 2
    if n_subjects >= 20:
        assert design.orders[0] != design.orders[1]
    for number, one in design.sets.items():
        if one.repeat_of is not None:
            assert (one.subject, one.arm) == (design.sets[one.repeat_of].subject, design.sets[one.repeat_of].arm)
            assert design.orders[0].index(number) > design.orders[0].index(one.repeat_of)


def test_sets_hold_the_images_and_nothing_that_tells_the_arm(made):
    folder, out, key_file = made
    key, seal = Key.read(key_file)
    assert json.loads((out / "study.json").read_text())["seal"] == seal
    everything = b"".join(path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file())
    for word in (
        b"Doe",
        b"amber",
        b"dpmrecon",
        b"Scanner",
        b"RESEARCH",
        b"diffusion",
        b"20260105",
        b"20260301",
        b"a phrase",
    ):
        assert word not in everything
    files = sorted(out.rglob("*.dcm"))
    assert len(files) == 12 * 2 * 3
    assert len({path.stat().st_mtime for path in out.rglob("*")}) == 1
    headers = set()
    for path in files:
        file = dcmread(path)
        headers.add((path.parent.name, path.name, path.stat().st_size, file.BitsStored, file.WindowWidth,
                     str(file.ImagePositionPatient), file.SeriesDescription))  # fmt: skip
    assert len(headers) == 2 * 3  # alike in all sets
    for number, one in key.design.sets.items():
        stored = dcmread(out / "dicom" / f"set{number:03d}" / "2_t2" / "IM0002.dcm").pixel_array
        name = "001.dcm" if one.arm == "standard" else "IM0001"
        source = dcmread(folder / one.arm / one.subject / "t2" / name).pixel_array
        assert np.corrcoef(stored.ravel(), source.ravel())[0, 1] > 0.9999
        if one.repeat_of is not None:
            again = dcmread(out / "dicom" / f"set{one.repeat_of:03d}" / "2_t2" / "IM0002.dcm").pixel_array
            np.testing.assert_array_equal(stored, again)


def test_a_classifier_knows_the_sources_and_guesses_the_sets(tmp_path):
    """The share of one study of 12 guesses has a spread of .15; three of those of the mean are allowed."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install -e .[study]")
    rows = [row.split("|") for row in check.blinded(tmp_path, 4, 6)[2:]]
    source, blind = (int(row[2].split()[0]) for row in rows)
    assert source == 100
    assert 25 <= blind <= 75


def test_a_classifier_tells_the_arms_by_one_date(made, tmp_path):
    """That its guesses are chance says something: one element of the headers that differs is enough."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install -e .[study]")
    sets = Key.read(made[2])[0].design.sets
    shutil.copytree(made[1] / "dicom", tmp_path / "dicom")
    folders = [tmp_path / "dicom" / f"set{number:03d}" for number in sets]
    for folder, one in zip(folders, sets.values()):
        for path in folder.rglob("*.dcm"):
            file = dcmread(path)
            file.StudyDate = "20260105" if one.arm == "standard" else "20260301"
            file.save_as(path)
    assert accuracy(folders, [one.subject for one in sets.values()], [one.arm for one in sets.values()]) == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"key": "out/key.json"}, "keep the key elsewhere"),
        ({"repeats": 4}, "cannot be kept apart: give 3 at most"),
        ({"margin": 0}, "the margin must be larger"),
        ({"accelerated": "nothing"}, "holds no SUBJECT/CONTRAST folders"),
        ({"standard": "cropped"}, "which tells the arms"),
        ({"standard": "moved"}, "mm apart, which tells them"),
        ({"standard": "fewer"}, "is in one arm alone"),
        ({"standard": "echoes"}, "several images of one place"),
        ({"standard": "two"}, r"holds 2 series \(flair_tse, t2_tse\)"),
    ],
)
def test_what_would_tell_the_arms_is_refused_before_anything_is_written(made, tmp_path, capsys, change, message):
    folder = made[0]
    write_sources(tmp_path / "source", SUBJECTS, ("flair", "t2"), (3, 14 if "cropped" in change.values() else 15, 12))
    changed = tmp_path / "source" / "standard"
    if "moved" in change.values():
        for path in changed.rglob("*.dcm"):
            file = dcmread(path)
            file.ImagePositionPatient[0] += 2
            file.save_as(path)
    if "fewer" in change.values():
        (changed / "elm").rename(tmp_path / "elm")
    if "echoes" in change.values():  # they were shown by turns, as one volume
        for path in sorted((changed / "elm" / "t2").iterdir()):
            file = dcmread(path)
            file.SOPInstanceUID = generate_uid()
            file.save_as(path.with_name(f"echo{path.name}"))
    if "two" in change.values():
        for path in (changed / "elm" / "t2").iterdir():
            path.rename(changed / "elm" / "flair" / f"t2{path.name}")
    places = {"out": tmp_path / "out", "key": tmp_path / "key.json"}
    change = {
        name: changed if name == "standard" else tmp_path / str(value) if name in ("key", "accelerated") else value
        for name, value in change.items()
    }
    assert main(command(folder, **{**places, **change})) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "key.json").exists()


def test_analysis_finds_what_scripted_readers_were_given(tmp_path):
    truth = check.simulated(tmp_path, 2000, 1000, check.EFFECT, 99)
    differences = [one.difference.value for one in statistics.compare(truth, 0.5)]
    kappas = {(one.who, one.question): one.kappa.value for one in statistics.agreements(truth, 1)}
    held = []
    for seed in range(2):
        readings = check.simulated(tmp_path, 20, 10, check.EFFECT, seed)
        held += [one.difference.holds(true) for one, true in zip(statistics.compare(readings, 0.5), differences)]
        found = statistics.agreements(readings, 300)
        assert {one.who for one in found} == {"R1 and R2", "R1 and R3", "R2 and R3", "R1 again", "R2 again", "R3 again"}
        held += [one.kappa.holds(kappas[one.who, one.question]) for one in found]
    assert np.mean(held) > 0.85
    assert np.allclose(differences, check.EFFECT, atol=0.06)  # whole points from 1 to 5 take a little


@pytest.mark.parametrize(
    ("targets", "n_subjects"), [(check.TARGETS, check.N_SUBJECTS), (check.PAPER, check.PAPER_SUBJECTS)]
)
def test_means_and_classes_that_scores_are_drawn_to_are_reproduced(targets, n_subjects):
    for row in check.reproduced(targets, n_subjects)[2:]:
        _, _, wanted, found, wanted_class, found_class, _ = (cell.strip() for cell in row.split("|"))
        assert found_class in wanted_class.split(" or ")
        apart = [abs(float(a) - float(b)) for a, b in zip(wanted.split(","), found.split(","))]
        assert max(apart) <= 0.055


def test_kappa_is_that_of_statsmodels():
    from statsmodels.stats.inter_rater import cohens_kappa

    rng = np.random.default_rng(1)
    tables = rng.integers(0, 6, (7, 5, 5)).astype(float)
    ours = statistics.weighted_kappa(tables)
    assert np.allclose(ours, [cohens_kappa(table, wt="quadratic", return_results=False) for table in tables])
    only = np.zeros((5, 5))
    only[3, 3] = 9
    assert np.isnan(statistics.weighted_kappa(only))


def test_power_is_what_simulated_tests_find():
    rng = np.random.default_rng(0)
    n_subjects = power.subjects_needed(0.8, 0.5, 0.7)
    assert power.power(n_subjects - 1, 0.5, 0.7) < 0.8 <= power.power(n_subjects, 0.5, 0.7)
    found = [statistics.p_inferior(0.7 * rng.standard_normal(n_subjects), 0.5) < power.ALPHA for _ in range(1500)]
    assert abs(np.mean(found) - power.power(n_subjects, 0.5, 0.7)) < 0.04
    at_margin = [statistics.p_inferior(-0.5 + 0.7 * rng.standard_normal(n_subjects), 0.5) < 0.025 for _ in range(1500)]
    assert np.mean(at_margin) < 0.04


def test_missing_scores_are_left_out_in_pairs_and_said(made, tmp_path, capsys):
    key, seal = Key.read(made[2])
    rng = np.random.default_rng(3)
    for reader in ("ann", "bob"):
        scores = {number: {q: int(rng.integers(2, 6)) for q in QUESTIONS} for number in key.design.sets}
        number = next(n for n, one in key.design.sets.items() if one.subject == "dune" and one.repeat_of is None)
        del scores[number]["snr"]
        write_scores(tmp_path / f"{reader}.csv", seal, reader, scores)
    words = ["study", "analyse", str(tmp_path / "ann.csv"), str(tmp_path / "bob.csv"), "--key", str(made[2])]
    assert main([*words, "--out", str(tmp_path / "report"), "--margin", "0.3"]) == 0
    told = capsys.readouterr().out
    assert "ann left out 1 scores" in told and "4 of 5 subjects" in told and "chosen after the key was made" in told
    page = (tmp_path / "report" / "report.html").read_text()
    assert "ann left out 1 scores" in page and seal in page
    rows = (tmp_path / "report" / "differences.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [[q, "4" if q == "snr" else "5"] for q in QUESTIONS]
    assert len((tmp_path / "report" / "agreement.csv").read_text().splitlines()) == 1 + 3 * 9


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda row: {**row, "seal": "0" * 64}, "it was changed or is of another study"),
        (lambda row: {**row, "set": "99"}, "and set 99, which is none"),
        (lambda row: {**row, "snr": "6"}, "with 6: 1 to 5 is needed"),
        (lambda row: {**row, "snr": "3.5"}, "with 3.5: 1 to 5 is needed"),
        (lambda row: {key: value for key, value in row.items() if key != "reader"}, "lacks rows or the columns"),
    ],
)
def test_scores_that_cannot_be_used_are_refused(made, tmp_path, capsys, change, message):
    import csv

    _, seal = Key.read(made[2])
    row = change({"seal": seal, "reader": "ann", "set": "1", **dict.fromkeys(QUESTIONS, "3")})
    with (tmp_path / "ann.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    words = ["study", "analyse", str(tmp_path / "ann.csv"), "--key", str(made[2]), "--out", str(tmp_path / "report")]
    assert main(words) == 2
    assert message in capsys.readouterr().err
