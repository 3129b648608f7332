"""A patient's slice by each method: which slice, which window, on whose scale; refusals. The picture of README.md."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from dpmrecon.errors import BadInputError
from dpmtrain.evaluate import overview, patient, validation


@pytest.fixture
def run(folders, tmp_path, monkeypatch):
    """The command on small slices; returns the rows of the picture."""
    shown = []

    def command(*options):
        monkeypatch.setattr(sys, "argv", ["patient", "--images", str(folders[1]), "--out", str(tmp_path), *options])
        patient.main()
        return shown[-1]

    monkeypatch.setattr(validation, "MATRIX", (52, 46))
    monkeypatch.setattr(patient, "WEIGHTS", (0.01,))
    monkeypatch.setattr(patient, "load_model", lambda path, device: SimpleNamespace(model_id="a model"))
    monkeypatch.setattr(
        patient, "by_card", lambda mapped, *_: SimpleNamespace(image=3 * mapped.model.combined(mapped.conventional))
    )
    monkeypatch.setattr(patient, "panels", lambda rows, inches: shown.append(rows))
    monkeypatch.setattr(patient, "save_figure", lambda *_: None)
    return command


def test_a_slice_has_a_row_for_each_R_and_all_are_on_its_truths_scale(run, folders, capsys):
    rows = run("--slice", "5", "--R", "2", "3", "--window", "3", "40", "10", "31")
    (full,) = validation.volume_slices(folders[1] / "open_ms/patient12/study1_FLAIR.nii.gz", [5])
    for row, acceleration in zip(rows, (2, 3), strict=True):
        titles, images, _, whites = zip(*row)
        assert titles[0] == "patient12/study1_FLAIR" and titles[1] == f"R = {acceleration}: CG-SENSE"
        np.testing.assert_array_equal(images[0], full.truth[3:40, 10:31])
        np.testing.assert_allclose(images[3], images[1], rtol=1e-5)  # the model's is three times as bright
        assert set(whites) == {patient.WHITE * float(images[0].max())}
    cells = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[2] for row in cells] == [" 2 ", " 3 "]
    assert all(0 < float(row[3]) == float(row[5]) < 1 for row in cells)
    assert float(cells[0][3]) < float(cells[1][3])


def test_numbered_slices_are_those_of_the_middle(folders):
    middle = list(validation.subject_slices(folders[1], "patient12", 2))
    named = list(
        validation.volume_slices(folders[1] / "open_ms/patient12/study1_FLAIR.nii.gz", [s.number for s in middle])
    )
    assert [s.key for s in named] == [s.key for s in middle] and len(named) == 2
    assert [s.digest for s in named] == [s.digest for s in middle]


@pytest.mark.parametrize(
    "options, said",
    [
        (["--subject", "nobody"], "nobody has no FLAIR"),
        (["--slice", "12"], "slices 0 to 11"),
        (["--window", "0", "53", "0", "20"], "--window is"),
        (["--window", "9", "9", "0", "20"], "--window is"),
    ],
)
def test_what_is_not_there_is_refused(run, options, said):
    with pytest.raises(BadInputError, match=said):
        run("--window", "0", "20", "0", "20", *options)


def test_the_picture_of_the_readme_has_errors_and_spread_on_the_truths_scale(folders, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(validation, "MATRIX", (52, 46))
    monkeypatch.setattr(overview, "SLICE", 5)
    monkeypatch.setattr(overview, "load_model", lambda path, device: None)

    def found(mapped, model, contrast, mode):
        assert (contrast, mode) == ("flair", "uncertainty")
        image = 2 * mapped.model.combined(mapped.conventional)
        return SimpleNamespace(image=image, spread=image.abs())

    monkeypatch.setattr(overview, "by_card", found)
    monkeypatch.setattr(overview, "panels", lambda rows, inches: shown.extend(rows))
    monkeypatch.setattr(overview, "save_figure", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["overview", "--images", str(folders[1]), "--out", str(tmp_path / "a.png")])
    overview.main()
    images, below = ([image for _, image, _, _ in row] for row in shown)
    (full,) = validation.volume_slices(folders[1] / "open_ms/patient12/study1_FLAIR.nii.gz", [5])
    np.testing.assert_array_equal(images[3], full.truth)
    np.testing.assert_allclose(images[2], images[1], rtol=1e-5)  # the model's is twice as bright, as is its spread
    np.testing.assert_allclose(below[3], images[2], rtol=1e-5)
    for image, error in zip(images[:3], below[:3], strict=True):
        np.testing.assert_allclose(error, abs(image - full.truth), rtol=1e-5)
    assert np.linalg.norm(below[1]) < np.linalg.norm(below[0])
