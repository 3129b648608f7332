"""`dpmrecon protocol` end to end on four small scans of one head, and what happens where one of them fails."""

import json
import os
import re
import shutil
import signal

import matplotlib.image
import numpy as np
import pydicom
import pytest
from dpmrecon import protocol as module
from dpmrecon.cli import main
from dpmrecon.output.images_file import ImagesFile
from dpmrecon.protocol import WORST, files_of

from support.edited import edited
from support.forked import forked
from support.protocols import SCANS, protocol, protocol_folder, rows, with_header

QUICK = ("--samples", "1", "--steps", "1")
pytestmark = pytest.mark.usefixtures("short_kernel_throughout")


def dicom(out):
    return {path: pydicom.dcmread(path) for path in sorted(out.rglob("*.dcm"))}


def contents(out):
    """Of all results but those that tell seconds."""
    told = ("report.json", "protocol.json")
    return {
        path.relative_to(out): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in told and path.suffix != ".h5"  # HDF5 has times in it
    }


@pytest.fixture
def undrawn(monkeypatch):
    """No overview is drawn: it takes longer than a small scan."""
    monkeypatch.setattr("dpmrecon.protocol.write_overview", lambda path, scans, rows: None)


@pytest.fixture(scope="module")
def patient(simulated_scan, tmp_path_factory):
    """Four scans of one head."""
    return protocol_folder(tmp_path_factory.mktemp("patient"), simulated_scan)


@pytest.fixture(scope="module")
def result(patient, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("protocol")
    assert protocol(patient, out, model) == 0
    return out


def test_every_scan_has_its_folder_and_its_row(result):
    assert sorted(path.name for path in result.iterdir()) == sorted([*SCANS, "overview.png", "protocol.json"])
    found = rows(result)
    assert list(found) == sorted(SCANS)
    assert {name: row["contrast"] for name, row in found.items()} == {
        "dwi": "dwi",
        "flair": "flair",
        "mprage": "t1",
        "swi": "swi",
    }
    assert found["flair"]["matrix"] == [40, 48]
    assert found["mprage"]["matrix"] == [12, 26, 24]
    assert found["dwi"]["verdicts"] == {"model": 6, "fallback": 0, "missing": 0, "not trusted": 0, "caution": 0}
    for name, row in found.items():
        assert (row["exit_code"], row["error"]) == (0, None)
        own = json.loads((result / name / "report.json").read_text())
        assert row["seconds"] == own["seconds"]
        assert row["files"]["dicom"] == own["dicom_files"] > 0
    assert "SIMULATED0" not in (result / "protocol.json").read_text()  # no patient's data


def test_all_files_are_of_one_study_and_one_frame(result):
    files = dicom(result).values()
    assert {file.StudyInstanceUID for file in files} == {
        json.loads((result / "protocol.json").read_text())["StudyInstanceUID"]
    }
    assert {file.FrameOfReferenceUID for file in files} == {row["frame_of_reference"] for row in rows(result).values()}
    assert len({file.FrameOfReferenceUID for file in files}) == 1
    assert len({(file.PatientID, file.StudyID, file.StudyDate) for file in files}) == 1
    assert len({file.SeriesNumber for file in files}) == len({file.SeriesInstanceUID for file in files})
    assert len({file.SOPInstanceUID for file in files}) == len(files)


def test_what_is_done_is_not_done_again_until_content_or_options_change(patient, result, model, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(result, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("report.json")}
    assert protocol(patient, out, model) == 0
    assert capsys.readouterr().out.count("done before") == 4
    assert {path: path.stat().st_mtime_ns for path in out.rglob("report.json")} == before
    (out / "swi" / "preview.png").unlink()  # somebody took a file
    scans = tmp_path / "scans"
    shutil.copytree(patient, scans)
    with_header(scans / "flair.h5", ("<TR>9000", "<TR>8000"))
    assert protocol(scans, out, model) == 0
    assert capsys.readouterr().out.count("done before") == 2
    changed = {path.parent.name for path in out.rglob("report.json") if path.stat().st_mtime_ns != before[path]}
    assert changed == {"swi", "flair"}
    assert protocol(scans / "flair.h5", out, model, "--seed", "1") == 0
    printed = capsys.readouterr().out
    assert "done before" not in printed
    assert "remark: dwi/ is of an earlier run and none of these scans" in printed


def test_a_run_that_was_killed_goes_on_and_ends_as_one_that_was_not(patient, result, model, tmp_path, capsys):
    add, calls = ImagesFile.add, []

    def last(self, item, images):
        calls.append(item)
        if len(calls) == 8:  # the second of three slices of the second scan
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, item, images)

    command = ["protocol", str(patient), "--out", str(tmp_path), "--model", str(model), "--device", "cpu"]
    killed = forked(main, *command, before=lambda: setattr(ImagesFile, "add", last))
    assert killed.returncode == -signal.SIGKILL
    assert list(rows(tmp_path)) == ["dwi"]
    assert not (tmp_path / "flair" / "report.json").exists()
    first = (tmp_path / "dwi" / "report.json").stat().st_mtime_ns
    assert protocol(patient, tmp_path, model) == 0
    assert capsys.readouterr().out.count("done before") == 1
    assert (tmp_path / "dwi" / "report.json").stat().st_mtime_ns == first
    assert contents(tmp_path) == contents(result)


def test_a_scan_that_fails_does_not_stop_the_others(patient, model, tmp_path, capsys, monkeypatch):
    scans, out = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(patient, scans, ignore=shutil.ignore_patterns("mprage*"))
    (scans / "flair.h5").write_bytes((patient / "flair.h5").read_bytes()[:20_000])

    def cut(number, line):
        return None if line.idx.slice == 1 and line.idx.kspace_encode_step_1 > 25 and line.idx.contrast == 1 else line

    os.replace(edited(scans / "dwi.h5", tmp_path, cut), scans / "dwi.h5")
    assert protocol(scans, out, model) == 2
    found = rows(out)
    assert {name: row["exit_code"] for name, row in found.items()} == {"dwi": 4, "flair": 2, "swi": 0}
    assert "flair.h5" in found["flair"]["error"]
    assert found["dwi"]["verdicts"]["missing"] == 1
    assert "of the 20 lines" in found["dwi"]["missing"][0]
    assert "FAILED: " in capsys.readouterr().out
    assert (out / "overview.png").stat().st_size > 5000

    def broken(*args, **more):
        raise RuntimeError("a mistake of ours")

    # in one scan's own writer: the others never get there
    monkeypatch.setattr("dpmrecon.output.swi.SwiSeries._image", broken)
    shutil.rmtree(out / "swi")
    assert protocol(scans, out, model) == 1
    assert rows(out)["swi"]["error"] == "unexpected: a mistake of ours"
    assert "RuntimeError" in capsys.readouterr().err  # with its traceback
    assert rows(out)["dwi"]["exit_code"] == 4


def test_no_picture_of_an_earlier_run_stays_where_nothing_can_be_drawn(patient, model, tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    shutil.copy(patient / "flair.h5", scans)
    assert protocol(scans, out, model, *QUICK) == 0
    assert (out / "overview.png").exists()
    (scans / "flair.h5").write_bytes((patient / "flair.h5").read_bytes()[:20_000])
    assert protocol(scans, out, model, *QUICK) == 2
    assert not (out / "overview.png").exists()


def test_the_worst_exit_code_is_the_one_that_tells_most():
    assert max((0, 4, 3, 0), key=WORST.index) == 4
    assert max((4, 2, 3), key=WORST.index) == 2


def test_a_fallback_is_in_row_picture_and_exit_code(patient, model, tmp_path):
    assert protocol(patient / "flair.h5", tmp_path, model, "--deadline", "0") == 3
    row = rows(tmp_path)["flair"]
    assert row["verdicts"] == {"model": 0, "fallback": 3, "missing": 0, "not trusted": 0, "caution": 0}
    assert "deadline" in row["fallback"][0]


def test_patients_are_not_mixed(patient, model, tmp_path, capsys):
    scans = tmp_path / "scans"
    shutil.copytree(patient, scans)
    with_header(scans / "swi.h5", ("SIMULATED0", "SIMULATED1"))
    assert protocol(scans, tmp_path / "out", model) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "different patients (dwi and swi have different patient IDs)" in error
    assert "SIMULATED1" not in error
    assert not (tmp_path / "out").exists()
    assert protocol(scans, tmp_path / "out", model, "--same-patient") == 2  # what headers say cannot be unsaid


def without_subject(path):
    xml = r"<subjectInformation>.*?</subjectInformation>"
    return with_header(path, (re.search(xml, _xml(path), re.DOTALL)[0], ""))


def _xml(path):
    import h5py

    with h5py.File(path) as file:
        return file["dataset/xml"][0].decode()


def test_a_scan_without_patient_data_needs_a_word(undrawn, patient, model, tmp_path, capsys):
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("flair", "dwi"):
        shutil.copy(patient / f"{name}.h5", scans)
    without_subject(scans / "dwi.h5")
    assert protocol(scans, tmp_path / "out", model) == 2
    assert "nothing in the headers tells that dwi is of the same patient" in capsys.readouterr().err
    assert protocol(scans, tmp_path / "out", model, "--same-patient", *QUICK) == 0
    (told,) = json.loads((tmp_path / "out" / "protocol.json").read_text())["remarks"]
    assert told.endswith("that dwi is of the same patient as the other scans: it is taken from --same-patient")
    files = dicom(tmp_path / "out").values()
    assert {file.PatientID for file in files} == {"SIMULATED0"}
    without_subject(scans / "flair.h5")
    assert protocol(scans, tmp_path / "none", model, *QUICK) == 0
    assert "no scan names its patient" in capsys.readouterr().out
    ids = {file.PatientID for file in dicom(tmp_path / "none").values()}
    assert len(ids) == 1
    assert ids.pop().startswith("SCAN-")


def test_scans_that_name_no_patient_keep_the_study_of_an_earlier_run_of_them(undrawn, patient, model, tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for name in ("flair", "dwi"):
        without_subject(shutil.copy(patient / f"{name}.h5", scans))

    def study(inputs, folder, *options):
        assert protocol(inputs, folder, model, *QUICK, *options) == 0
        return json.loads((folder / "protocol.json").read_text())["StudyInstanceUID"]

    first = study(scans / "flair.h5", out)
    assert study(scans, out) == study(scans / "dwi.h5", out) == first  # one more scan, and one again
    assert {file.StudyInstanceUID for file in dicom(out).values()} == {first}
    assert study(scans / "dwi.h5", tmp_path / "alone") != first
    # another patient's, and what is to tell nothing
    shutil.copytree(out, tmp_path / "other")
    other = with_header(scans / "flair.h5", ("<TR>9000", "<TR>8000"))
    assert study(other, tmp_path / "other") != first
    assert study(scans / "dwi.h5", out, "--anonymize") != first


def test_anonymous_results_tell_neither_patient_nor_file(patient, model, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(patient / "flair.h5", scans / "DOE_JANE.h5")
    (scans / "DOE_JOHN.h5").write_text("no scan")
    out = tmp_path / "out"
    assert protocol(scans, out, model, "--anonymize") == 2
    assert sorted(rows(out)) == ["flair", "scan"]
    for path in out.rglob("*"):
        assert "DOE" not in path.name
        if path.is_file() and path.suffix != ".png":
            content = path.read_bytes()
            assert b"DOE" not in content
            assert b"SIMULATED0" not in content


def test_a_reference_stands_above_its_counterpart(patient, simulated_scan, model, tmp_path):
    reference = protocol_folder(tmp_path / "full", simulated_scan, ("flair", "swi"), acceleration=1, seed=1)
    scans = [patient / "flair.h5", patient / "dwi.h5"]
    out = tmp_path / "out"
    assert protocol(scans, out, model, "--reference", str(reference), *QUICK) == 0
    assert list(rows(out)) == ["flair", "dwi", "reference/flair", "reference/swi"]
    assert rows(out)["reference/flair"]["set"] == "reference"
    files = dicom(out)
    assert len({file.StudyInstanceUID for file in files.values()}) == 1
    for path, file in files.items():
        assert file.SeriesDescription.endswith("REFERENCE") == ("reference" in path.parts)
    height, width, _ = matplotlib.image.imread(out / "overview.png").shape
    # trace, ADC, SWI and FLAIR in two rows
    assert height / width == pytest.approx((2 * 3.05 + 0.2) / (4 * 2.5), rel=0.02)


def test_files_without_images_and_folders_without_scans(patient, model, tmp_path, capsys):
    with pytest.raises(module.BadInputError, match="holds no scan"):
        files_of([tmp_path])
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".hidden.h5").write_text("")
    assert main(["protocol", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no scan" in capsys.readouterr().err
    noise = edited(patient / "flair.h5", tmp_path, lambda number, line: line if number < 64 else None)
    assert protocol([noise, patient / "flair.h5"], tmp_path / "out", model) == 0
    assert list(rows(tmp_path / "out")) == ["flair"]
    assert "edited.h5 holds no line of an image: left out" in capsys.readouterr().out
    assert protocol(noise, tmp_path / "none", model) == 2
    assert "none of the files holds a line of an image" in capsys.readouterr().err


def test_two_scans_of_one_name_and_one_called_reference(undrawn, patient, model, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(patient / "flair.h5", again / "flair.h5")
    shutil.copy(patient / "flair.h5", again / "reference.h5")
    out = tmp_path / "out"
    assert protocol([patient / "flair.h5", again], out, model, *QUICK) == 0
    assert list(rows(out)) == ["flair", "flair_2", "reference_2"]
    files = dicom(out).values()  # equal contents, and yet files of their own
    assert len({file.SOPInstanceUID for file in files}) == len(files)


def test_b_values_are_for_diffusion_alone(undrawn, patient, model, tmp_path):
    scans = [patient / "dwi.h5", patient / "flair.h5"]
    assert protocol(scans, tmp_path, model, "--b-values", "contrast:0,500", *QUICK) == 0
    assert {int(file.DiffusionBValue) for path, file in dicom(tmp_path / "dwi").items() if "01_DPM" in str(path)} == {
        0,
        500,
    }
    assert rows(tmp_path)["flair"]["remarks"] == []
    assert not any("DiffusionBValue" in file for file in dicom(tmp_path / "flair").values())


def test_an_alien_protocol_json_is_left_alone(patient, model, tmp_path, capsys):
    (tmp_path / "protocol.json").write_text("[]")
    assert protocol(patient, tmp_path, model) == 2
    assert "is not of an earlier run" in capsys.readouterr().err
    assert np.array_equal(sorted(path.name for path in tmp_path.iterdir()), ["protocol.json"])


def test_files_of_equal_names_get_folders_of_their_own(undrawn, simulated_scan, model, tmp_path):
    """Also where a file has the name that another one would get."""
    one, two = (protocol_folder(tmp_path / name, simulated_scan, ["flair"]) for name in ("one", "two"))
    scan = one / "flair.h5"
    shutil.copy(scan, one / "flair_2.h5")
    out = tmp_path / "out"
    assert protocol([one, two], out, model, *QUICK) == 0
    assert sorted(rows(out)) == ["flair", "flair_2", "flair_3"]
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"flair", "flair_2", "flair_3"}
