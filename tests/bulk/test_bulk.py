"""`dpmrecon bulk` end to end on a few small scans, and what happens where a scan, a worker or the driver fails."""

import csv
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
from dpmrecon.bulk import job
from dpmrecon.bulk.engines import Lost
from dpmrecon.bulk.job import PARTS, ROW
from dpmrecon.cli import main
from dpmrecon.errors import UNEXPECTED, BadInputError, DeviceError

from support.forked import Forked
from support.protocols import with_header
from support.results import images, replay
from support.waiting import until

GOOD = ("a__first", "a__second", "volume")
BROKEN = ("cut", "text")


pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of threads: see support/forked.py


@pytest.fixture(scope="module", autouse=True)
def workers_that_have_torch():
    """Workers are forks of this process, which has loaded torch; those that start anew take seconds each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpmrecon.bulk.engines._CONTEXT", multiprocessing.get_context("fork"))
        yield


def bulk(scans, out, model, *options: str) -> int:
    """The command's exit code, with one worker where the options do not say more."""
    given = ["bulk", *map(str, np.ravel(scans)), "--out", str(out), "--model", str(model), "--device", "cpu"]
    return main([*given, "--workers", "1", *options])


def rows(out) -> dict[str, dict[str, str]]:
    """Of bulk.csv, by name: each name is there once."""
    with (out / "bulk.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len({row["name"] for row in found}) == len(found)
    return {row["name"]: row for row in found}


def outcomes(out) -> dict[str, str]:
    return {name: row["outcome"] for name, row in rows(out).items()}


def times(out) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/images.h5")}


@pytest.fixture(scope="module")
def archive(simulated_scan, tmp_path_factory):
    """Two scans of slices, a volume, half a scan and a text."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "a").mkdir()
    shutil.copy(simulated_scan(matrix=(40, 36), n_slices=2), folder / "a/first.h5")
    shutil.copy(simulated_scan(matrix=(36, 44), contrast="t2"), folder / "a/second.h5")
    shutil.copy(simulated_scan(partitions=14), folder / "volume.h5")
    (folder / "cut.h5").write_bytes((folder / "a/first.h5").read_bytes()[:20_000])
    (folder / "text.h5").write_text("no scan")
    return folder


@pytest.fixture(scope="module")
def result(archive, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("bulk")
    assert bulk(archive, out, model, "--workers", "2") == 2
    return out


def test_every_scan_is_in_the_report_once(result, archive):
    found = rows(result)
    assert sorted(found) == sorted([*GOOD, *BROKEN])
    assert {name for name, row in found.items() if row["outcome"] == "done"} == set(GOOD)
    assert {name for name, row in found.items() if row["outcome"] == "failed"} == set(BROKEN)
    assert found["text"]["error"] == f"{archive}/text.h5 is not an HDF5 file; an ISMRMRD (.h5) scan is needed"
    assert "truncated or damaged" in found["cut"]["error"]
    assert (found["a__first"]["contrast"], found["a__first"]["matrix"], found["a__first"]["model"]) == (
        "flair",
        "40 x 36",
        "2",
    )
    assert found["volume"]["matrix"] == "14 x 26 x 24"
    assert found["a__second"]["scan"] == str(archive / "a/second.h5")
    assert len(found["a__second"]["scan_sha256"]) == 64
    assert not (result / PARTS).exists()


def test_images_are_those_of_replay(result, archive, model, tmp_path):
    assert replay(archive / "a/first.h5", tmp_path / "replay", model, "--device", "cpu") == 0
    for wanted, got in zip(images(tmp_path / "replay", 1), images(result / "a__first", 1), strict=True):
        assert np.array_equal(wanted.data, got.data)
    assert sorted(path.name for path in (result / "a__first").iterdir()) == sorted(
        [ROW, "dicom", "images.h5", "preview.png", "report.json"]
    )


def test_the_page_shows_every_row_and_what_a_name_holds_is_text(result, simulated_scan, model, tmp_path):
    page = (result / "bulk.html").read_text()
    assert all(f">{name}<" in page for name in (*GOOD, *BROKEN))
    assert 'href="a__first/preview.png"' in page and "done: 3" in page and "failed: 2" in page
    shutil.copy(simulated_scan(matrix=(40, 36), n_slices=2), tmp_path / "<img src=x>.h5")
    assert bulk(tmp_path / "<img src=x>.h5", tmp_path / "out", model, "--samples", "1", "--steps", "1") == 0
    page = (tmp_path / "out/bulk.html").read_text()
    assert "<img" not in page and "&lt;img src=x&gt;" in page


def test_what_is_done_is_done_again_where_content_or_options_change(archive, result, model, tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(archive, scans)
    for name in BROKEN:
        (scans / f"{name}.h5").unlink()
    assert bulk(scans, out, model) == 0
    before = times(out)
    assert bulk(scans, out, model) == 0
    assert times(out) == before
    os.utime(scans / "volume.h5", ns=(1, 1))  # its time, not its content
    with_header(scans / "a/second.h5", ("<TR>5000", "<TR>4000"))
    (out / "a__first/preview.png").unlink()  # somebody took a file
    assert bulk(scans, out, model) == 0
    assert {name for name, time in times(out).items() if time != before[name]} == {"a__first", "a__second"}
    assert sorted(rows(out)) == sorted(GOOD)
    before = times(out)
    assert bulk(scans, out, model, "--seed", "1") == 0
    assert not set(times(out).values()) & set(before.values())


class Driver(Forked):
    """The command in a process of its own, with one worker."""

    def __init__(self, scans, out, model, held: str | None = None):
        """held: name of a scan whose first worker waits in it for its end."""
        self.out, self.met = out, out.parent / "met"

        def before():
            # as in a terminal, also where pytest is started in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)
            job.replay = waiting(job.replay, held, self.met)

        command = ["bulk", str(scans), "--out", str(out), "--model", str(model), "--device", "cpu", "--workers", "1"]
        super().__init__(main, *command, before=before)

    def waiting(self) -> int:
        """The worker that has the scan `held` in hand."""
        until(lambda: self.met.exists() and self.met.read_text())
        return int(self.met.read_text())

    def worker(self) -> int:
        """Who has a scan in hand."""
        found: list[int] = []

        def look():
            found.extend(int(path.name.split("-")[-2]) for path in self.out.glob(f"{PARTS}/*-*-scan*"))
            return found

        until(look)
        return found[0]


def waiting(replay, held: str | None, met):
    """`replay`, but who has the scan `held` in hand first is named in the file `met`, and waits."""

    def wait(scan, folder, *rest, **options):
        if folder.name.endswith(f"-{held}") and not met.exists():
            met.write_text(str(os.getpid()))
            signal.pause()
        return replay(scan, folder, *rest, **options)

    return wait


def test_a_driver_that_is_killed_takes_its_workers_along_and_the_next_goes_on(
    simulated_scan, model, tmp_path, monkeypatch
):
    """With workers as they are started without tests, and scans that take a while, so that they are met in hand."""
    monkeypatch.setattr("dpmrecon.bulk.engines._CONTEXT", multiprocessing.get_context("spawn"))
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for number in range(3):
        scan = simulated_scan(matrix=(40, 36), n_slices=12, seed=number)
        shutil.copy(scan, scans / f"scan{number}.h5")
    driver = Driver(scans, out, model)
    until(lambda: list(out.glob(f"*/{ROW}")))
    worker = driver.worker()
    os.kill(driver.pid, signal.SIGKILL)
    assert driver.end().returncode == -signal.SIGKILL
    until(lambda: not os.path.exists(f"/proc/{worker}") or "\tZ" in _status(worker))
    first = times(out)
    assert len(first) in (1, 2) and not (out / "bulk.csv").exists()
    monkeypatch.setattr("dpmrecon.bulk.engines._CONTEXT", multiprocessing.get_context("fork"))
    assert bulk(scans, out, model) == 0
    assert outcomes(out) == {"scan0": "done", "scan1": "done", "scan2": "done"}
    assert {name: times(out)[name] for name in first} == first
    assert not (out / PARTS).exists()


def test_an_interrupted_run_reports_what_is_done(archive, model, tmp_path):
    out = tmp_path / "out"
    driver = Driver(archive / "a", out, model, held="second")
    worker = driver.waiting()
    os.kill(driver.pid, signal.SIGINT)
    told = driver.end()
    assert told.returncode == 130
    assert b"interrupted" in told.stderr and b"Traceback" not in told.stderr
    until(lambda: not os.path.exists(f"/proc/{worker}") or "\tZ" in _status(worker))
    assert outcomes(out) == {"first": "done", "second": "not reached"}


def test_a_scan_whose_dicom_found_no_room_is_taken_again(archive, model, tmp_path, monkeypatch):
    def full(*given):
        raise BadInputError("cannot write to dicom (No space left on device): make room") from OSError(28)

    monkeypatch.setattr("dpmrecon.dicom.folder.write_dicom", full)
    assert bulk(archive / "a/first.h5", tmp_path, model) == 2
    (row,) = rows(tmp_path).values()
    assert row["outcome"] == "failed" and row["error"].startswith("no DICOM: cannot write to dicom")
    monkeypatch.undo()
    assert bulk(archive / "a/first.h5", tmp_path, model) == 0
    assert list(tmp_path.rglob("*.dcm"))


def _status(process: int) -> str:
    try:
        with open(f"/proc/{process}/status") as file:
            return file.read()
    except OSError:
        return "State:\tZ"


def test_the_scan_of_a_worker_that_is_killed_is_taken_again(archive, model, tmp_path):
    out = tmp_path / "out"
    driver = Driver(archive / "a", out, model, held="first")
    os.kill(driver.waiting(), signal.SIGKILL)
    assert driver.end().returncode == 0
    assert outcomes(out) == {"first": "done", "second": "done"}


def test_a_scan_whose_worker_ends_each_time_has_a_row_that_says_so(archive, model, tmp_path, monkeypatch):
    lost = [("first", Lost("signal 9"))]
    monkeypatch.setattr("dpmrecon.bulk.run.answers", lambda *given: iter(lost))
    assert bulk(archive / "a/first.h5", tmp_path, model) == UNEXPECTED
    (row,) = rows(tmp_path).values()
    assert row["outcome"] == "failed" and "ended 3 times (signal 9): give it a machine with more memory" in row["error"]
    monkeypatch.undo()
    assert bulk(archive / "a/first.h5", tmp_path, model, "--samples", "1", "--steps", "1") == 0


def test_a_dry_run_tells_the_doctors_verdict_and_writes_nothing(archive, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["bulk", str(archive), "--out", str(out), "--dry-run", "--workers", "2"]) == 2
    printed = capsys.readouterr().out.splitlines()
    assert sorted(line.split(": ")[0] for line in printed[:-1]) == sorted([*GOOD, *BROKEN])
    assert "a__first: supported: 2 of 2 images can be reconstructed by the model" in printed
    assert any(line.startswith("text: refused: it is no HDF5 file") for line in printed)
    assert printed[-1].endswith("2 refused, 3 supported")
    assert not out.exists()


def test_anonymous_results_tell_neither_patient_nor_file(archive, model, tmp_path, capsys):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    shutil.copy(archive / "a/second.h5", scans / "DOE_JANE.h5")
    shutil.copy(archive / "cut.h5", scans / "DOE_JOHN.h5")
    options = ("--anonymize", "--samples", "1", "--steps", "1")
    assert bulk(scans, out, model, *options) == 2
    before = times(out)
    assert bulk(scans, out, model, *options) == 2
    assert times(out) == before and len(before) == 1
    told = capsys.readouterr()
    for text in (told.out, told.err, (out / "bulk.csv").read_text(), (out / "bulk.html").read_text()):
        assert "DOE" not in text
    for path in out.rglob("*"):
        assert "DOE" not in path.name
        if path.suffix == ".json":
            assert "DOE" not in path.read_text()
    assert (out / "bulk.key").stat().st_mode & 0o077 == 0


def test_ray_gives_the_same(archive, result, model, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e .[bulk]")
    assert bulk(archive, tmp_path, model, "--ray", "local") == 2
    found, wanted = rows(tmp_path), rows(result)
    assert list(found) == list(wanted)
    for name in found:
        assert {**found[name], "seconds": ""} == {**wanted[name], "seconds": ""}
    for name in GOOD:
        for one, other in zip(images(tmp_path / name, 1), images(result / name, 1), strict=True):
            np.testing.assert_allclose(one.data, other.data, rtol=0, atol=1e-4 * np.abs(other.data).max())


def test_a_folder_that_is_not_ours_is_left_alone(archive, model, tmp_path, capsys):
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/thesis.tex").write_text("years")
    assert bulk(archive, tmp_path, model) == 2
    assert "volume is there and not of an earlier bulk run" in capsys.readouterr().err
    assert (tmp_path / "volume/thesis.tex").read_text() == "years"


@pytest.mark.parametrize(("name", "told"), [("segmentation.nii", "segmentation.nii"), ("dicom/notes.txt", "dicom")])
def test_what_a_user_adds_to_results_stays(archive, model, tmp_path, name, told):
    few, added = ("--samples", "1", "--steps", "1"), tmp_path / "first" / name
    assert bulk(archive / "a", tmp_path, model, *few) == 0
    added.write_text("hours")
    before = times(tmp_path)
    assert bulk(archive / "a", tmp_path, model, *few) == 0
    assert times(tmp_path) == before
    assert bulk(archive / "a", tmp_path, model, *few, "--seed", "1") == 2
    assert added.read_text() == "hours" and times(tmp_path)["first"] == before["first"]
    assert f"has files that no bulk run wrote ({told})" in rows(tmp_path)["first"]["error"]
    assert outcomes(tmp_path) == {"first": "failed", "second": "done"}


def test_two_drivers_do_not_write_to_one_folder(archive, model, tmp_path, capsys):
    from dpmrecon.bulk.run import alone

    with alone(tmp_path):
        assert bulk(archive, tmp_path, model) == 2
    assert f"another bulk run writes to {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--workers", "0"), "--workers is 0"),
        (("--memory", "nan"), "--memory is nan"),
        (("--ray", "local", "--memory", "4"), "Ray's nodes know their own"),
        (("--contrast", "pd"), "unknown to the model"),
    ],
)
def test_bad_options_are_one_sentence(options, words, archive, model, tmp_path, capsys):
    assert bulk(archive, tmp_path / "out", model, *options) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("lost", "code"), [(True, 0), (False, UNEXPECTED)])
def test_a_process_whose_gpu_is_lost_ends_and_another_does_its_scan(archive, model, tmp_path, monkeypatch, lost, code):
    """By one that is only full the scan has failed."""
    replay, begun = job.replay, tmp_path / "begun"

    def failing(*args, **options):
        if begun.exists():
            return replay(*args, **options)
        begun.touch()
        raise DeviceError("device cuda is lost")

    monkeypatch.setattr(job, "replay", failing)
    monkeypatch.setattr(job, "why_lost", lambda device: "device cuda is lost" if lost else None)
    assert bulk(archive / "a/first.h5", tmp_path / "out", model) == code
    told = rows(tmp_path / "out")["first"]
    assert (told["outcome"], told["error"]) == (("done", "") if lost else ("failed", "device cuda is lost"))
