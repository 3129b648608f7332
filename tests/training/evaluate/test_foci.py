"""The contrast of small foci, by the formula that the scans come with, and the command's table and refusals."""

import sys

import numpy as np
import pytest
from dpmrecon.api import Result
from dpmrecon.errors import BadInputError
from dpmtrain.evaluate import foci

PLACES = np.array([[12.0, 15.0, 1.0], [25.0, 30.0, 1.5]])


def phantom(heights):
    image = np.full((41, 48), 2.0, np.float32)
    down, along = np.indices(image.shape)
    for (row, col, radius), height in zip(PLACES, heights):
        image[np.hypot(down - row, along - col) <= radius] += height
    return image


def test_the_contrast_is_what_a_focus_has_over_its_ring():
    assert foci.contrasts(phantom((0.8, -0.4)), PLACES) == pytest.approx([0.8, -0.4])
    assert foci.contrasts(phantom((0.0, 0.0)), PLACES) == pytest.approx([0.0, 0.0])


def test_foci_are_covered_where_the_truth_is_within_three_spreads_of_their_centre():
    truth, spread = phantom((0.8, 0.4)), np.full((41, 48), 0.1)
    spread[25, 30] = 0.2
    assert foci.covered(truth, spread, truth, PLACES) == 2
    assert foci.covered(phantom((0.35, -0.15)), spread, truth, PLACES) == 1


def run(folder, monkeypatch, image, spread=None):
    result = Result(image, spread, 0.5 * image, 1.0, None, None)
    monkeypatch.setattr(foci, "reconstruct_scan", lambda path, **options: iter([result]))
    monkeypatch.setattr(sys, "argv", ["foci", "--scans", str(folder), "--out", str(folder / "out")])
    foci.main()


def test_each_image_is_scored_on_its_truths_scale(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "foci.npy", PLACES)
    np.save(tmp_path / "mask.npy", np.ones((1, 41, 48)))
    np.save(tmp_path / "a_truth.npy", phantom((0.8, 0.4))[None])
    (tmp_path / "a.h5").touch()
    run(tmp_path, monkeypatch, 3 * phantom((0.4, 0.4)).astype(np.complex64), np.full((41, 48), 0.6))
    conventional, own = (line.split("|") for line in capsys.readouterr().out.splitlines()[2:])
    assert conventional[1:3] == [" a ", " CG-SENSE "] and conventional[3:7] == own[3:7]
    assert conventional[7] == "  " and own[7] == " 2 of 2 "
    assert [float(cell) for cell in own[4:7]] == pytest.approx([0.75, 0.5, 1.0], abs=0.01)
    assert 0 < float(own[3]) < 0.1
    assert (tmp_path / "out/foci.png").stat().st_size > 1000


def test_a_folder_without_scans_or_truths_is_refused(tmp_path, monkeypatch):
    with pytest.raises(BadInputError, match="NAME_truth"):
        run(tmp_path, monkeypatch, phantom((0, 0)))
    for name in ("foci", "mask"):
        np.save(tmp_path / f"{name}.npy", PLACES)
    with pytest.raises(BadInputError, match="no scan NAME.h5"):
        run(tmp_path, monkeypatch, phantom((0, 0)))
