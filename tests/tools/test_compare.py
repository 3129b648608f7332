"""The page of `dpmrecon compare`: what it carries is what the folders hold, and what it shows is what it carries."""

import base64
import json
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from dpmrecon.cli import main
from dpmrecon.tools import compare

from support.results import images, replay, report


@pytest.fixture(scope="module")
def results(simulated_scan, tiny_model, tmp_path_factory):
    """Two results of a scan of 3 slices of 40 x 36, and the model they share: of 2 samples, and of 1 with CG-SENSE."""
    out, scan = tmp_path_factory.mktemp("compare"), simulated_scan(matrix=(40, 36), n_slices=3)
    model = tiny_model()
    assert replay(scan, out / "two", model, "--samples", "2") in (0, 3)
    assert replay(scan, out / "one", model, "--samples", "1", "--seed", "5", "--conventional") in (0, 3)
    return out


def scans_of(page: Path) -> list[dict]:
    """What the page's script reads."""
    return json.loads(re.search(r"const SCANS = (.*), LEVELS", page.read_text()).group(1))


def made(*folders: Path, out: Path) -> list[dict]:
    assert main(["compare", *map(str, folders), "--out", str(out)]) == 0
    return scans_of(out)


def values(panel: dict, place: int) -> np.ndarray:
    """A frame in the units of the panel, (rows, cols)."""
    (frame,) = [frame for frame in panel["frames"] if frame["place"] == place]
    high, low = np.frombuffer(zlib.decompress(base64.b64decode(frame["pixels"])), np.uint8).reshape(2, -1).astype(int)
    first, last = panel["range"]
    return (first + (256 * high + low) * (last - first) / compare.LEVELS).reshape(panel["size"])


def test_the_page_has_the_pixels_of_every_series(results, tmp_path):
    (scan,) = made(results / "two", results / "one", out=tmp_path / "page.html")
    assert [(panel["label"], panel["kind"]) for panel in scan["panels"]] == [
        ("two", "reconstruction"),
        ("two", "spread of the samples"),
        ("one", "reconstruction"),
        ("one", "CG-SENSE"),
    ]
    for panel, folder, series in zip(scan["panels"], ("two", "two", "one", "one"), (1, 2, 1, 3)):
        stored = images(results / folder, series)
        assert len(stored) == len(panel["frames"]) == 3
        level = (panel["range"][1] - panel["range"][0]) / compare.LEVELS
        for image in stored:
            wanted = float(image.meta["RescaleSlope"]) * image.data[0, 0]
            got = values(panel, image.getHead().slice)
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=0.51 * level)
    assert "http" not in (tmp_path / "page.html").read_text()  # nothing is fetched


def test_a_row_says_what_the_report_says(results, tmp_path):
    (scan,) = made(results / "one", out=tmp_path / "page.html")
    (row,) = scan["results"]
    told = report(results / "one")
    assert row["model"] == told["model_id"]
    assert [one["slice"] for one in row["slices"]] == [entry["slice"] for entry in told["slices"]]
    for one, entry in zip(row["slices"], told["slices"]):
        assert f"residual {entry['residual']:.2f}" in one["text"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"fallback": None, "trusted": True, "verdict": "trusted"}, "trusted"),
        ({"fallback": None, "trusted": True, "verdict": "caution: a dead channel"}, "caution"),
        ({"fallback": None, "trusted": False, "verdict": "not trusted: lines contradict"}, "not to be trusted"),
        ({"fallback": "the model gave no number", "trusted": True}, "CG-SENSE fallback"),
        ({"missing": "line 3 is not there", "fallback": None}, "missing"),
    ],
)
def test_verdicts(change, word):
    assert compare.verdict_of(change) == word


def test_a_missing_slice_is_told(results, tmp_path):
    folder = shutil.copytree(results / "two", tmp_path / "two")
    told = report(folder)
    entry = {name: told["slices"][0][name] for name in ("contrast", "phase", "set", "repetition", "average")}
    told["slices"].append({**entry, "slice": 7, "missing": "line 3 is not there", "fallback": None})
    (folder / "report.json").write_text(json.dumps(told))
    (scan,) = made(folder, out=tmp_path / "page.html")
    assert "1 missing" in scan["results"][0]["verdicts"]
    assert scan["results"][0]["slices"][-1]["text"] == "line 3 is not there"


def test_the_steps_of_the_image_are_told_beside_those_of_the_spread(results, tmp_path):
    folder = shutil.copytree(results / "two", tmp_path / "two")
    told = report(folder)
    told["slices"][0] |= {"samples": 16, "steps": 20, "image": {"samples": 3, "steps": 18}}
    (folder / "report.json").write_text(json.dumps(told))
    (scan,) = made(folder, out=tmp_path / "page.html")
    assert "; 3 x 18 steps, 16 x 20 steps for the spread; " in scan["results"][0]["slices"][0]["text"]


def test_scans_of_many_folders_stand_beside_those_of_the_same_name(results, tmp_path):
    for name in ("first/flair", "first/reference/flair", "first/t1", "second/flair"):
        shutil.copytree(results / "one", tmp_path / name)
    scans = made(tmp_path / "first", tmp_path / "second", out=tmp_path / "page.html")
    found = {scan["name"]: [result["label"] for result in scan["results"]] for scan in scans}
    assert found == {"flair": ["first", "first, reference", "second"], "t1": ["first"]}


def test_partitions_of_a_volume_are_places(simulated_scan, tiny_model, tmp_path):
    scan = simulated_scan(partitions=14)
    assert replay(scan, tmp_path / "volume", tiny_model(), "--samples", "1") in (0, 3)
    (found,) = made(tmp_path / "volume", out=tmp_path / "page.html")
    panel = found["panels"][0]
    (image,) = images(tmp_path / "volume")
    assert panel["volume"] and [frame["place"] for frame in panel["frames"]] == list(range(len(image.data[0])))
    slope = float(image.meta["RescaleSlope"])
    np.testing.assert_allclose(values(panel, 4), slope * image.data[0, 4], atol=1e-4 * slope * image.data.max())


def test_what_cannot_be_compared_is_one_sentence(results, tmp_path, capsys):
    page = tmp_path / "page.html"

    def refused(folder: Path, words: str, out: Path = page) -> None:
        assert main(["compare", str(folder), "--out", str(out)]) == 2
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1
        assert not page.exists()

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no report.json: give folders")
    refused(tmp_path / "nowhere", "holds no report.json")
    folder = shutil.copytree(results / "one", tmp_path / "one")
    refused(folder, "cannot be written", out=tmp_path / "no" / "page.html")
    content = (folder / "images.h5").read_bytes()
    (folder / "images.h5").write_bytes(content[:2000])
    refused(folder, "images.h5 cannot be read")
    (folder / "images.h5").unlink()
    refused(folder, "images.h5 cannot be read")
    for text in ("{", "[]", '{"scan": 1}'):
        (folder / "report.json").write_text(text)
        refused(folder, "is no report of a replay")


def test_a_scan_that_broke_off_has_its_reason(results, tmp_path):
    folder = shutil.copytree(results / "one", tmp_path / "one")
    told = report(folder)
    (folder / "report.json").write_text(json.dumps({**told, "error": "</script><b>no line", "slices": []}))
    (folder / "images.h5").unlink()
    (scan,) = made(folder, out=tmp_path / "page.html")
    assert scan["panels"] == [] and scan["results"][0]["remarks"][0] == "</script><b>no line"
    assert "</script><b>" not in (tmp_path / "page.html").read_text()


@pytest.fixture
def opened(results, tmp_path):
    """Chromium with the page of both results; skipped where it is not installed."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    from dpmtrain.study.page_time import browser, wait_ready

    for name in ("chromium", "chromedriver"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed (Debian packages chromium and chromium-driver)")
    made(results / "two", results / "one", out=tmp_path / "page.html")
    with browser(tmp_path) as page:
        page.get((tmp_path / "page.html").as_uri())
        wait_ready(page)
        yield page, wait_ready, scans_of(tmp_path / "page.html")[0]


def test_the_page_in_a_browser(opened):
    from dpmtrain.study.page_time import press
    from selenium.webdriver.common.keys import Keys

    page, wait_ready, scan = opened
    text = "return document.getElementById(arguments[0]).textContent"
    assert page.execute_script(text, "place_told").startswith("1 ")
    press(page, Keys.ARROW_UP)
    wait_ready(page)
    assert page.execute_script(text, "place_told").startswith("2 ")

    # regions: an ellipse of pixels, whose sides differ
    page.execute_script("regions = {A: {x: 90, y: 120, r: 30}, B: {x: 150, y: 100, r: 21}}; draw();")
    wait_ready(page)
    texts = "(row) => [...row.children].map((one) => one.textContent)"
    rows = page.execute_script(f"return [...document.querySelectorAll('#regions tr')].map({texts})")
    panel = scan["panels"][2]
    image = values(panel, 2)
    down, across = (mm / size for mm, size in zip(panel["mm"], panel["size"]))
    y, x = ((np.arange(size) + 0.5) * step for size, step in zip(panel["size"], (down, across)))
    inside = [
        image[(y[:, None] - centre[1]) ** 2 + (x - centre[0]) ** 2 <= radius**2]
        for centre, radius in (((90, 120), 30), ((150, 100), 21))
    ]
    (a, b), (sa, sb) = [part.mean() for part in inside], [part.std(ddof=1) for part in inside]
    wanted = [len(inside[0]), a, sa, a / sa, len(inside[1]), b, sb, b / sb]
    wanted += [(a - b) / b, abs(a - b) / np.sqrt((sa**2 + sb**2) / 2)]
    assert rows[3][0] == "one: reconstruction"
    np.testing.assert_allclose([float(text) for text in rows[3][1:]], wanted, rtol=2e-3)

    # a difference from another result is seen; images of other kinds stay as they are
    shown = "return [...document.querySelectorAll('canvas')].map((one) => one.toDataURL())"
    page.execute_script("regions = {}; draw();")
    wait_ready(page)
    before = page.execute_script(shown)
    page.execute_script("by('reference').value = 0; draw();")
    wait_ready(page)
    after = page.execute_script(shown)
    assert [old == new for old, new in zip(before, after)] == [True, True, False, False]
    assert page.get_log("browser") == []
