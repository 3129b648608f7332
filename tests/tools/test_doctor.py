"""What the doctor says of scans, of what is no scan, and that it says nothing of the patient."""

import gzip
import json
import os
import subprocess
import sys

import dpmrecon
import h5py
import ismrmrd
import numpy as np
import pytest
from dpmrecon.cli import main
from dpmrecon.options import Options
from dpmrecon.tools.doctor import foreign

from support.acquisitions import read_lines
from support.edited import edited, with_spike
from support.results import replay, report

IMAGES = [("header", "u1"), ("data", "f4")]


def test_a_sound_scan_is_supported_and_told_in_full(simulated_scan, model, tmp_path):
    scan = simulated_scan(matrix=(61, 48), acceleration=3, n_slices=2, n_coils=7, calibration_lines=17)
    found = dpmrecon.doctor(scan)
    assert (found.verdict, found.exit_code, found.repairs) == ("supported", 0, [])
    assert replay(scan, tmp_path / "out", model) == 0
    (entry, _) = report(tmp_path / "out")["slices"]
    assert found.R == entry["R"] == 3
    assert found.R_net == pytest.approx(61 / entry["lines"])
    assert found.calibration["lines"] == entry["maps"]["calibration"][1]
    assert "".join(found.pattern).count("#") == entry["lines"]
    assert found.holds["slices"] == 2 and len(found.coils["levels (dB over the noise, centre of k-space)"]) == 7


def test_json_is_the_same_as_the_function(simulated_scan, capsys):
    scan = simulated_scan()
    assert main(["doctor", str(scan), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(dpmrecon.doctor(scan).as_json()))
    assert {"verdict", "reasons", "R", "calibration"} <= set(told)


def test_a_volume_has_a_block(simulated_scan):
    found = dpmrecon.doctor(simulated_scan(partitions=20))
    assert found.verdict == "supported" and found.R == 4 and found.calibration["block"] == "12 x 12"
    assert len(found.pattern) == 20 and set("".join(found.pattern)) == {"#", "."}


@pytest.mark.parametrize(
    ("scanned", "told"),
    [
        ({"partitions": 24, "partition_partial_fourier": 0.75}, "0.77 of the partitions"),
        (
            {"partitions": 24, "partition_partial_fourier": 0.75, "partial_fourier": 0.75},
            "0.73 of the lines and 0.77 of the partitions",
        ),
        ({"partitions": 13}, "none"),
        ({"partition_acceleration": 3, "partitions": 13}, "none"),
    ],
)
def test_partial_fourier_of_a_volume_is_told_of_both_directions(simulated_scan, scanned, told):
    assert dpmrecon.doctor(simulated_scan(**scanned)).sampling["partial Fourier"] == told


@pytest.mark.parametrize("gone, code, word", [("lines", 4, "incomplete"), ("calibration", 2, "no calibration")])
def test_the_exit_code_is_that_of_replay(simulated_scan, model, tmp_path, gone, code, word):
    # one slice of two, or all of them, cannot be reconstructed
    scan = simulated_scan(n_slices=2, calibration="embedded", interleaved=False)
    central = range(20, 44)

    def cut(number, line):
        noise = line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        row, only = line.idx.kspace_encode_step_1, line.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        lost = (row < 8 and line.idx.slice == 1) if gone == "lines" else only and row in central
        return line if noise or not lost else None

    broken = edited(scan, tmp_path, cut)
    found = dpmrecon.doctor(broken)
    assert word in " ".join(found.reasons)
    assert (found.exit_code, replay(broken, tmp_path / "out", model)) == (code, code)
    assert found.verdict == ("supported" if gone == "lines" else "refused")


def test_what_a_site_can_do_is_advised(simulated_scan, tmp_path):
    scan = simulated_scan(n_coils=6, noise=0.02)
    rng = np.random.default_rng(0)

    def changed(number, line):
        if line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            return line
        line.data[4] = 1e-9 * rng.standard_normal(line.data.shape[1])  # far below the noise: it sees nothing
        return line

    found = dpmrecon.doctor(edited(scan, tmp_path, changed))
    assert any("channel 4 holds noise alone" in text for text in found.repairs)
    assert any("have the coil looked at" in text for text in found.advice)
    (tmp_path / "edited.h5").unlink()
    silent = edited(
        scan, tmp_path, lambda n, line: None if line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT) else line
    )
    found = dpmrecon.doctor(silent)
    assert not found.noise["measured"] and "acquire a noise measurement" in " ".join(found.advice)


def test_a_clipped_receiver_is_told(simulated_scan, tmp_path):
    scan = simulated_scan()

    loudest = max(float(np.abs(line.data[1].view(np.float32)).max()) for line in read_lines(scan)[1])

    def cut(number, line):
        line.data[1] = np.clip(line.data[1].view(np.float32), -loudest / 4, loudest / 4).view(np.complex64)
        return line

    found = dpmrecon.doctor(edited(scan, tmp_path, cut))
    assert any("channel 1 is clipped" in text for text in found.repairs)
    assert not any("clipped" in text for text in dpmrecon.doctor(scan).repairs)


def test_nothing_of_the_patient_is_told(simulated_scan, tmp_path, model):
    scan = simulated_scan()
    named = tmp_path / "Muster_Erika_1970.h5"
    named.write_bytes(scan.read_bytes())
    with h5py.File(named, "r+") as file:
        xml = file["dataset/xml"][0]
        header = ismrmrd.xsd.CreateFromDocument(xml)
    secrets = [header.subjectInformation.patientName, header.subjectInformation.patientID, "Muster"]
    assert all(secret.encode() in xml for secret in secrets[:2])
    page = tmp_path / "page.html"
    assert main(["doctor", str(named), "--page", str(page), "--model", str(model), "--device", "cpu"]) == 0
    found = dpmrecon.doctor(named)
    for text in (page.read_text(), found.text(), json.dumps(found.as_json())):
        assert not [secret for secret in secrets if secret in text]


def test_the_page_has_maps_cost_and_pictures(simulated_scan, tmp_path, model, capsys):
    page = tmp_path / "page.html"
    scan = with_spike(simulated_scan(), tmp_path)
    assert main(["doctor", scan, "--page", str(page), "--json", "--model", str(model), "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["maps"]["sets"] == "one" and told["cost"]["seconds of the scan"] > 0
    assert any("spike" in text for text in told["repairs"])
    assert page.read_text().count("data:image/png;base64,") == 4


def test_a_deadline_that_leaves_no_time_is_a_fallback(simulated_scan, model):
    options = Options(deadline=0.0, model=model, device="cpu")
    found = dpmrecon.doctor(simulated_scan(), options, page=True)
    assert (found.verdict, found.exit_code) == ("fallback", 3) and "deadline" in found.reasons[0]


def test_other_files_are_named(tmp_path, capsys):
    def write(name: str, data: bytes):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    stream = b"\x03\x00\x10\x00\x00\x00<ismrmrdHeader/>"
    images = tmp_path / "images.h5"
    with h5py.File(images, "w") as file:
        for name, kind in IMAGES:
            file.create_dataset(f"res/image_1/{name}", data=np.zeros(3, kind))
    np.save(tmp_path / "truth.npy", np.zeros(3))
    os.mkfifo(tmp_path / "pipe.h5")
    cases = {
        write("one.dcm", b"\0" * 128 + b"DICM"): "DICOM",
        write("head.nii", b"\0" * 344 + b"n+1\0"): "NIfTI",
        tmp_path / "truth.npy": "array of numpy",
        write("scan.stream.gz", gzip.compress(stream)): "recorded MRD stream that begins with a header",
        write("scan.mrd.gz", gzip.compress(b"yardl" + bytes(90))): "MRD version 2 packed with gzip: unpack it first",
        write("scan.h5.gz", gzip.compress(images.read_bytes())): "unpack it first",
        images: "ISMRMRD images (res/image_1)",
        tmp_path: "a folder",
        tmp_path / "pipe.h5": "a pipe or a device",
        write("notes.txt", b"hello"): "no HDF5 file",
    }
    for path, word in cases.items():
        assert word in str(foreign(path)), path
        assert main(["doctor", str(path)]) == 2
        assert word in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "missing.h5")]) == 2
    assert "cannot be read" in capsys.readouterr().out
    damaged = write("damaged.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 64)
    assert main(["doctor", str(damaged)]) == 2


def test_a_reader_that_has_enough_is_no_traceback(simulated_scan):
    command = [sys.executable, "-m", "dpmrecon.cli", "doctor", str(simulated_scan())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        process.stdout.close()  # before a word is written
        assert process.stderr.read() == b"" and process.wait() == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--contrast", "t3"), "contrast 't3' is unknown to the model"),
        (("--model", "nosuch"), "model file nosuch does not exist"),
        (("--sampler", "latent"), "the model has no sampler 'latent'"),
        (("--device", "gpu"), "device 'gpu' is unknown"),
    ],
)
def test_options_that_the_model_does_not_take_are_refused_as_replay_refuses_them(simulated_scan, given, words, capsys):
    assert main(["doctor", str(simulated_scan()), *given]) == 2
    told = capsys.readouterr().out
    assert told.startswith(f"verdict: refused\n  {words}") and "can be reconstructed" not in told
