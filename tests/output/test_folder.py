"""The folder of results: what a full disk leaves, what a second run removes, and what is never touched."""

import errno
import fcntl
import os
import resource
import shutil

import h5py
import ismrmrd
import numpy as np
import pytest
from dpmrecon.cli import main
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.header import read_header
from dpmrecon.output.images_file import without_patient
from dpmrecon.output.preview import Preview
from dpmrecon.simulation.simulate import truth_path

from support.edited import edited
from support.forked import forked
from support.results import images, replay, report

SCAN = {"matrix": (48, 64), "n_slices": 3, "acceleration": 2}


def test_full_disk_keeps_what_was_done(simulated_scan, model, tmp_path, monkeypatch, capsys):
    append = ismrmrd.Dataset.append_image
    stored = []

    def limited(self, name, image):
        if len(stored) == 2:
            raise OSError(28, "No space left on device")
        stored.append(name)
        append(self, name, image)

    monkeypatch.setattr(ismrmrd.Dataset, "append_image", limited)
    assert replay(simulated_scan(**SCAN), tmp_path, model) == 2
    assert "No space left" in capsys.readouterr().err
    assert len(images(tmp_path)) == 1
    assert len(report(tmp_path)["slices"]) == 1


@pytest.mark.parametrize(("kilobytes", "stored"), [(80, 0), (160, 2)])
def test_a_file_that_cannot_grow_is_one_line_and_stays_readable(simulated_scan, model, tmp_path, kilobytes, stored):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024))

    arguments = ["--out", str(tmp_path), "--model", str(model), "--device", "cpu"]
    done = forked(main, "replay", str(simulated_scan(**SCAN)), *arguments, before=limit)
    assert done.returncode == 2  # HDF5 that runs into the limit crashes instead
    assert b"Traceback" not in done.stderr
    assert b"File too large" in done.stderr.splitlines()[-1]
    assert "File too large" in report(tmp_path)["error"]
    assert len(report(tmp_path)["slices"]) == stored
    with h5py.File(tmp_path / "images.h5") as file:
        assert len(file["dataset"].get("image_1/data", ())) >= stored


def test_a_file_system_without_fallocate_takes_the_images(simulated_scan, model, tmp_path, monkeypatch):
    fallocate = os.posix_fallocate

    def emulated(file, offset, size):
        """As glibc does it on NFS."""
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_APPEND:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        fallocate(file, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", emulated)
    assert replay(simulated_scan(**SCAN), tmp_path, model) == 0
    assert len(images(tmp_path)) == 3


@pytest.mark.parametrize("options", [("--fallback", "off", "--deadline", "0"), ()])
def test_a_run_that_fails_leaves_nothing_of_the_one_before(simulated_scan, model, tmp_path, capsys, options):
    scan = tmp_path / "scan.h5"
    shutil.copy(simulated_scan(**SCAN), scan)
    assert replay(scan, tmp_path / "out", model) == 0
    assert (tmp_path / "out" / "preview.png").exists()
    assert any((tmp_path / "out" / "dicom").rglob("*.dcm"))
    assert report(tmp_path / "out")["error"] is None
    if not options:
        with h5py.File(scan, "r+") as file:
            file["dataset/xml"][0] = file["dataset/xml"][0].replace(b">cartesian<", b">epi<")
    assert replay(scan, tmp_path / "out", model, *options) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["images.h5", "report.json"]
    assert report(tmp_path / "out")["error"] in capsys.readouterr().err


@pytest.mark.parametrize("name", ["images.h5", "dicom/scan.h5"])
def test_the_scan_is_never_removed(simulated_scan, model, tmp_path, capsys, name):
    scan = tmp_path / name
    scan.parent.mkdir(exist_ok=True)
    shutil.copy(simulated_scan(**SCAN), scan)
    assert replay(scan, tmp_path, model) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert scan.read_bytes() == simulated_scan(**SCAN).read_bytes()


def test_another_programs_images_are_kept_and_those_of_a_replay_that_was_killed_are_not(
    simulated_scan, model, tmp_path, capsys
):
    scan, others = simulated_scan(**SCAN), tmp_path / "images.h5"
    with h5py.File(others, "w") as file:
        file["2026-11-28/image_0/data"] = np.ones((1, 1, 5, 7))
    content = others.read_bytes()
    assert replay(scan, tmp_path, model) == 2
    assert "images.h5 is there and no replay wrote it" in capsys.readouterr().err
    assert others.read_bytes() == content and [path.name for path in tmp_path.iterdir()] == ["images.h5"]
    assert replay(scan, tmp_path / "ours", model) == 0
    for name in ("report.json", "preview.png"):  # what a killed one has not got to
        (tmp_path / "ours" / name).unlink()
    shutil.rmtree(tmp_path / "ours" / "dicom")
    assert replay(scan, tmp_path / "ours", model) == 0


@pytest.mark.parametrize(
    ("option", "array", "words"),
    [
        ("--truth", np.ones((3, 40, 64)), "(48, 64)"),
        ("--truth", np.ones((1, 3, 48, 64)), "(48, 64)"),
        ("--truth", np.ones((3, 48, 64), complex), "real numbers"),
        ("--truth", {"a": np.ones((3, 48, 64))}, ".npy"),
        (
            "--truth",
            np.array([None]),
            "given.npy is not a readable .npy file: give one (slices, rows, cols) of numbers",
        ),
        ("--mask", np.ones((3, 40, 64)), "(48, 64)"),
        ("--mask", np.ones((2, 48, 64)), "as many slices"),
    ],
)
def test_truth_and_mask_that_do_not_fit_are_refused_first(
    simulated_scan, model, tmp_path, capsys, option, array, words
):
    scan, file = simulated_scan(**SCAN), tmp_path / "given.npy"
    with open(file, "wb") as opened:
        np.savez(opened, **array) if isinstance(array, dict) else np.save(opened, array)
    truth = () if option == "--truth" else ("--truth", str(truth_path(scan)))
    assert replay(scan, tmp_path / "out", model, *truth, option, str(file)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_truth_and_mask_of_one_slice_may_be_images(simulated_scan, model, tmp_path):
    scan = simulated_scan(**{**SCAN, "n_slices": 1})
    np.save(tmp_path / "truth.npy", np.load(truth_path(scan))[0])
    np.save(tmp_path / "mask.npy", np.load(truth_path(scan))[0] > 0.1)
    options = ("--truth", str(tmp_path / "truth.npy"), "--mask", str(tmp_path / "mask.npy"))
    assert replay(scan, tmp_path / "out", model, *options) == 0
    assert report(tmp_path / "out")["nrmse"]["DPM"]["mean"] < 0.25


@pytest.mark.parametrize("announced", [(0, 2), (1, 3)])
def test_the_truth_of_slices_that_are_counted_from_1_begins_with_the_first(simulated_scan, model, tmp_path, announced):
    def edit(number, line):
        line.idx.slice += not line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        return line

    scan, place = simulated_scan(**SCAN), "encoding.encodingLimits.slice"
    counted_from_1 = edited(scan, tmp_path, edit)
    limits = ";".join(f"{place}.{name}={value}" for name, value in zip(("minimum", "maximum"), announced))
    truth = np.load(truth_path(scan))
    np.save(tmp_path / "mask.npy", truth > 0.1 * np.arange(1, 4)[:, None, None])  # another one for each slice
    options = ("--truth", str(truth_path(scan)), "--mask", str(tmp_path / "mask.npy"))
    assert replay(scan, tmp_path / "from_0", model, *options) == 0
    assert replay(counted_from_1, tmp_path / "from_1", model, *options, "--set", limits) == 0
    wanted, found = (report(tmp_path / name)["nrmse"] for name in ("from_0", "from_1"))
    for method in ("zero-filled", "CG-SENSE"):  # DPM draws noise by the slice's number
        assert len(wanted[method]["slices"]) == 3
        assert found[method]["slices"] == pytest.approx(wanted[method]["slices"], rel=1e-6)


def test_a_run_names_only_what_it_wrote(simulated_scan, model, tmp_path, capsys):
    def cut(number, line):
        noise = line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        return None if not noise and line.idx.kspace_encode_step_1 > 30 else line

    assert replay(edited(simulated_scan(**SCAN), tmp_path, cut), tmp_path / "out", model) == 4
    assert capsys.readouterr().out.endswith("out/images.h5, report.json\n")


def test_the_report_of_an_anonymous_run_does_not_name_the_file(simulated_scan, model, tmp_path):
    scan = truncated_lines(simulated_scan(**SCAN), tmp_path)
    assert replay(scan, tmp_path / "out", model, "--anonymize") == 2
    assert "the scan: line" in report(tmp_path / "out")["error"]


def test_an_anonymous_report_keeps_no_values_that_may_name_the_patient(simulated_scan, model, tmp_path):
    scan, name = simulated_scan(**SCAN), "subjectInformation.patientName"
    told = []
    for number, value in enumerate(("DOE^JANE", "DOE^JOHN")):
        out = tmp_path / str(number)
        assert replay(scan, out, model, "--anonymize", "--coils", "0-2", "--set", f"{name}={value}") == 0
        assert b"DOE" not in (out / "report.json").read_bytes() + (out / "images.h5").read_bytes()
        told.append(report(out)["taken"])
    assert told[0]["coils"] == "0-2" and told[0]["set"] != told[1]["set"]  # two runs, which differ


def test_anonymous_images_do_not_tell_the_time_of_day(simulated_scan, model, tmp_path):
    scan = simulated_scan(**SCAN)
    assert replay(scan, tmp_path / "named", model) == 0
    assert replay(scan, tmp_path / "anonymous", model, "--anonymize", "--conventional") == 0
    for number in (1, 3):
        for image in images(tmp_path / "anonymous", number):
            assert image.getHead().acquisition_time_stamp == 0 and "acquisition_time_stamp" not in image.meta
            assert "physiology_time_stamp" in image.meta  # since the trigger
    assert all(image.getHead().acquisition_time_stamp > 0 for image in images(tmp_path / "named"))


def truncated_lines(scan, folder):
    """A line that holds fewer samples than its head announces."""
    path = folder / "DOE_JANE.h5"
    shutil.copy(scan, path)
    with h5py.File(path, "r+") as file:
        line = file["dataset/data"][40]
        line["data"] = line["data"][:10]
        file["dataset/data"][40] = line
    return path


def test_somebody_elses_dicom_folder_is_left_alone(simulated_scan, model, tmp_path, capsys):
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "original.dcm").write_text("from the scanner")
    assert replay(simulated_scan(**SCAN), tmp_path, model) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert (tmp_path / "dicom" / "original.dcm").exists()


@pytest.mark.parametrize("name", ["dicom/01_DPM/notes.txt", "dicom/IM0001.dcm", "nifti/mask.nii.gz"])
def test_a_users_files_among_the_results_are_left_alone(simulated_scan, model, tmp_path, capsys, name):
    scan = simulated_scan(**SCAN)
    assert [replay(scan, tmp_path, model, "--nifti", "--conventional") for _ in range(2)] == [0, 0]
    before = report(tmp_path)
    (tmp_path / name).write_text("my own")
    assert replay(scan, tmp_path, model) == 2
    assert f"files that no replay wrote ({name.partition('/')[2]})" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "my own" and report(tmp_path) == before
    (tmp_path / name).rename(tmp_path / "elsewhere")
    (tmp_path / "dicom" / ".DS_Store").touch()
    assert replay(scan, tmp_path, model) == 0
    assert not (tmp_path / "nifti").exists()


def test_an_anonymous_header_lacks_the_patient_and_nothing_else(simulated_scan):
    with open_scan(simulated_scan(**SCAN)) as scan:
        xml, header = scan.xml, scan.header
    xml = xml.replace(
        b"</acquisitionSystemInformation>",
        b"<institutionName>Ward</institutionName>\n<stationName/><deviceID>S12</deviceID></acquisitionSystemInformation>",
    )
    own = b"<userParameterString><name>%s</name><value>%s</value></userParameterString>"
    parameters = own % (b"kept", b"this") + own % (b"PatientLOID", b"loid-7") + own % (b"strPatientAge", b"061Y")
    xml = xml.replace(b"</ismrmrdHeader>", b"<userParameters>" + parameters + b"</userParameters></ismrmrdHeader>")
    xml = xml.replace(  # of Siemens scans: serial number, patient, study and measurement
        b"<measurementID>simulated_0_0</measurementID>",
        b"<measurementID>45387_30100_30103_12</measurementID>\n<measurementDependency><dependencyType>Noise"
        b"</dependencyType><measurementID>45387_30100_30103_11</measurementID></measurementDependency>",
    )
    bare = without_patient(xml)
    secrets = (b"SIMULATED^", b"SIMULATED0", b"1970-01-01", b"2000-01-01", b"Ward", b"station", b"45387_30100", b"S12")
    for secret in (*secrets, b"loid-7", b"061Y"):
        assert secret in xml
        assert secret not in bare
    found = read_header(bare)
    assert found.subjectInformation is None
    assert found.encoding == header.encoding
    assert found.sequenceParameters == header.sequenceParameters
    assert found.measurementInformation.protocolName == "T2_FLAIR"
    assert [one.value for one in found.userParameters.userParameterString] == ["this"]
    assert without_patient(bare) == bare


def test_a_second_run_to_a_folder_is_refused_and_the_first_goes_on(
    simulated_scan, model, tmp_path, capsys, monkeypatch
):
    codes, scan = [], simulated_scan(**SCAN)
    finished = Preview.close

    def close(self, failure):
        if not codes:
            codes.append(replay(scan, tmp_path, model))
        finished(self, failure)

    monkeypatch.setattr(Preview, "close", close)
    codes.append(replay(scan, tmp_path, model))
    assert codes == [2, 0]
    assert f"another run writes to {tmp_path}: wait for its end" in capsys.readouterr().err
    assert len(list((tmp_path / "dicom").rglob("*.dcm"))) > 0
