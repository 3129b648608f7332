"""The reading page in headless Chromium: opened from a file, used by keyboard alone, its export analysed."""

import argparse
import json
import shutil

import numpy as np
import pytest
from dpmrecon.errors import BadInputError
from dpmtrain.cli import main
from dpmtrain.study import page as study_page
from dpmtrain.study.made_up import write_sources
from dpmtrain.study.scores import COLUMNS

from support.waiting import until

pytest.importorskip("statsmodels", reason="statsmodels is not installed: pip install -e .[study]")
Keys = pytest.importorskip("selenium.webdriver.common.keys", reason="selenium is not installed").Keys

from dpmtrain.study.make import make  # noqa: E402
from dpmtrain.study.page_time import begin, browser, press, wait_ready  # noqa: E402


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(the readers' folder, the key's file) of two subjects and two contrasts; skipped where there is no viewer."""
    folder = tmp_path_factory.mktemp("page")
    write_sources(folder, ("one", "two"), ("flair", "t2"), (7, 31, 26))
    told = argparse.Namespace(
        standard=folder / "standard", accelerated=folder / "accelerated", out=folder / "study",
        key=folder / "key.json", seed="a", readers=2, repeats=0, margin=0.5, deviation=0.7, expected=0.0,
    )  # fmt: skip
    make(told)
    try:
        study_page.page(told.out, None)
    except BadInputError as error:
        pytest.skip(str(error))
    return told.out, told.key


@pytest.fixture
def opened(study, tmp_path):
    for name in ("chromium", "chromedriver"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed (Debian packages chromium and chromium-driver)")
    with browser(tmp_path) as page:
        page.get((study[0] / "index.html").as_uri())
        yield page


def state(page):
    return page.execute_script("return [set(), slice, question, kept.scores, level, width]")


def test_a_reading_by_keyboard_alone(study, opened, tmp_path, capsys):
    out, key = study
    begin(opened, 2)
    order = json.loads((out / "study.json").read_text())["orders"][1]
    assert state(opened)[:3] == [order[0], 3, 0]
    places = "return views.map((view) => view.frac2vox(view.scene.crosshairPos)[2])"
    assert opened.execute_script(places) == [3, 3]
    press(opened, Keys.ARROW_UP, Keys.ARROW_UP)
    assert opened.execute_script(places) == [5, 5]
    press(opened, Keys.PAGE_DOWN, Keys.ARROW_DOWN)
    assert opened.execute_script(places) == [0, 0]
    before = opened.get_screenshot_as_png()
    press(opened, "w", "w", "b")
    assert opened.get_screenshot_as_png() != before
    press(opened, "+", "l", "r")
    assert state(opened)[4:] == [1000, 2000]
    press(opened, "3", "4", Keys.TAB, "5", "n", "4", 'a note, "quoted"', Keys.ESCAPE)
    scores = {"grey_matter": 3, "white_matter": 4, "snr": 5, "notes": '4a note, "quoted"'}
    assert state(opened)[3] == {str(order[0]): scores}

    opened.refresh()  # as after a crash: what was given is there
    begin(opened, 2)
    assert state(opened)[0] == order[0]
    assert state(opened)[3] == {str(order[0]): scores}
    press(opened, "0")  # the question that lacks a score has the focus
    for _ in order:
        while (missing := opened.execute_script("return lacking(set())")) > 0:
            focus = opened.execute_script("return questions.findIndex((one) => !given()[one])")
            while state(opened)[2] != focus:
                press(opened, Keys.TAB)
            press(opened, "4")
            assert opened.execute_script("return lacking(set())") == missing - 1
        press(opened, "u")
        wait_ready(opened)
    assert "every set is complete" in opened.page_source
    press(opened, "e", "E")
    written = [tmp_path / "scores_R2.json", tmp_path / "scores_R2.csv"]
    until(lambda: all(path.exists() for path in written))
    assert written[1].read_text().splitlines()[0] == ",".join(COLUMNS)
    for path in written:
        assert main(["study", "analyse", str(path), "--key", str(key), "--out", str(tmp_path / path.suffix)]) == 0
        assert "left out" not in capsys.readouterr().out
    tables = [(tmp_path / path.suffix / "means.csv").read_text() for path in written]
    assert tables[0] == tables[1]
    assert opened.get_log("browser") == []


def test_images_are_those_of_the_sets_and_lie_as_they_did(study):
    import base64
    import io

    import nibabel
    from pydicom import dcmread

    out = study[0]
    text = (out / "volumes" / "set003_2.js").read_text()
    content = base64.b64decode(text.split('"')[1])
    image = nibabel.Nifti1Image.from_stream(io.BytesIO(content))
    file = dcmread(out / "dicom" / "set003" / "2_t2" / "IM0003.dcm")
    np.testing.assert_array_equal(np.asarray(image.dataobj)[:, :, 2].T, file.pixel_array)
    there = image.affine @ [4, 9, 2, 1]
    left, back, head = np.array(file.ImagePositionPatient, float) + [4 * 0.8, 9 * 0.9, 0]
    assert np.allclose(there[:3], [-left, -back, head], atol=1e-3)
    assert len({path.stat().st_size for path in (out / "volumes").iterdir()}) == 1
    assert "BSD 2-Clause" in (out / "niivue_license.txt").read_text()


def test_a_viewer_that_cannot_be_had_or_is_another_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "other.tgz").write_bytes(b"something else")
    with pytest.raises(BadInputError, match="by its SHA-512"):
        study_page.viewer_script(tmp_path / "other.tgz")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BadInputError, match="where there is a network, and give its file as --viewer"):
        study_page.viewer_script(None)
    with pytest.raises(BadInputError, match="holds no study"):
        study_page.page(tmp_path, None)
