"""MRD version 2 in files and streams gives what version 1 of the same scan gives."""

import io
import os
import subprocess
import sys

import dpmrecon
import h5py
import ismrmrd
import numpy as np
import pytest

pytest.importorskip("mrd")

import mrd
from dpmrecon.cli import main
from dpmrecon.errors import BadInputError
from dpmrecon.hosts.version2 import opened
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.version2 import acquisition_of, header_of
from xsdata.models.datatype import XmlDate, XmlTime

from support import version2
from support.forked import forked
from support.hand_made import header_xml
from support.paths import shared
from support.results import images
from support.streams import raw_stream

FEW = ["--steps", "2", "--samples", "1", "--device", "cpu", "--contrast", "flair"]


def run(data: bytes, *command: str) -> subprocess.CompletedProcess:
    return forked(main, *command, *FEW, given=data)


@pytest.fixture(scope="module")
def scan(simulated_scan):
    return simulated_scan(matrix=(45, 64), n_slices=2)


@pytest.fixture(scope="module")
def data(scan):
    """The scan as a stream of version 2."""
    return version2.stream(scan)


@pytest.mark.parametrize(
    "name", ["ismrmrd/flair_3slices_r4_separate_acs.h5", "epi/epi_dwi_sep.h5", "ismrmrd/t1_brain_r4.h5"]
)
def test_a_header_survives_both_ways(name):
    with h5py.File(shared(name), "r") as file:  # ismrmrd's own would lock it, and others read it too
        old = ismrmrd.xsd.CreateFromDocument(file["dataset/xml"][0])
    assert ismrmrd.xsd.CreateFromDocument(header_of(version2.header(old))) == old


def test_dates_times_and_names_survive_too():
    old = ismrmrd.xsd.CreateFromDocument(header_xml())
    old.subjectInformation = ismrmrd.xsd.subjectInformationType(
        patientName="Röntgen^W", patientGender="F", patientBirthdate=XmlDate(1845, 3, 27)
    )
    old.studyInformation = ismrmrd.xsd.studyInformationType(
        studyDate=XmlDate(2026, 1, 2), studyTime=XmlTime(13, 59, 7, 250000000), studyInstanceUID="1.2.3"
    )
    assert ismrmrd.xsd.CreateFromDocument(header_of(version2.header(old))) == old


def test_a_line_survives_both_ways(scan):
    dataset = ismrmrd.Dataset(str(scan), "dataset", create_if_needed=False)
    for number in (0, dataset.number_of_acquisitions() - 1):
        old = dataset.read_acquisition(number)
        new = acquisition_of(version2.acquisition(old))
        assert bytes(new.getHead()) == bytes(old.getHead()) and np.array_equal(new.data, old.data)
    dataset.close()


def test_replay_of_a_file_and_of_a_stream_is_that_of_version_1(scan, data, model, tmp_path):
    named = ("--model", str(model))
    path = tmp_path / "scan.mrd"
    path.write_bytes(data)
    assert main(["replay", str(scan), "--out", str(tmp_path / "one"), *named, *FEW]) == 0
    assert main(["replay", str(path), "--out", str(tmp_path / "file"), *named, *FEW]) == 0
    answer = run(data, "replay", "-", "--out", str(tmp_path / "stream"), *named)
    assert answer.returncode == 0, answer.stderr
    expected = images(tmp_path / "one")
    for out in ("file", "stream"):
        found = images(tmp_path / out)
        assert all(np.array_equal(one.data, other.data) for one, other in zip(found, expected, strict=True))
        assert [bytes(one.getHead()) for one in found] == [bytes(one.getHead()) for one in expected]


def test_the_doctor_says_of_a_file_what_it_says_of_version_1(scan, data, tmp_path, capsys):
    path = tmp_path / "scan.mrd"
    path.write_bytes(data)
    assert main(["doctor", str(path), "--json"]) == main(["doctor", str(scan), "--json"]) == 0
    one, other = capsys.readouterr().out.split("\n}\n")[:2]
    assert one == other and '"verdict": "supported"' in one


def test_a_file_that_breaks_off_gives_the_lines_that_came(data, model, tmp_path, capsys):
    path = tmp_path / "scan.mrd"
    path.write_bytes(data[:-70_000])
    found = dpmrecon.doctor(path)
    assert (found.verdict, found.exit_code) == ("supported", 4) and "ends within its lines" in str(found.repairs)
    assert main(["replay", str(path), "--out", str(tmp_path / "out"), "--model", str(model), *FEW]) == 4
    told = capsys.readouterr().err
    assert "ends within its lines" in told and len(images(tmp_path / "out")) == 1


@pytest.mark.parametrize(("size", "words"), [(40, "ends within its header"), (5, "ends within its header")])
def test_half_a_header_is_refused(data, tmp_path, size, words):
    path = tmp_path / "scan.mrd"
    path.write_bytes(data[:size])
    with pytest.raises(BadInputError, match=words), open_scan(path):
        pass


def test_a_full_disk_is_said(data, tmp_path, monkeypatch):
    def full(self, line):
        raise OSError("No space left on device")

    path = tmp_path / "scan.mrd"
    path.write_bytes(data)
    monkeypatch.setattr(ismrmrd.Dataset, "append_acquisition", full)
    with pytest.raises(BadInputError, match="No space left on device.*TMPDIR"), open_scan(path):
        pass


def test_stream_answers_in_version_2(scan, model):
    waveform = mrd.StreamItem.WaveformUint32(mrd.Waveform(data=np.zeros((2, 9), np.uint32)))
    named = ("--model", str(model))
    answer = run(version2.stream(scan, [waveform]), "stream", *named)
    assert answer.returncode == 0, answer.stderr
    found = version2.images(answer.stdout)
    old = run(b"".join(raw_stream(scan)), "stream", *named)
    with_counters = {(image.head.image_series_index, image.head.slice): image for image in found}
    reading, expected = io.BytesIO(old.stdout), []
    while int.from_bytes(reading.read(2), "little") == 1022:
        expected.append(ismrmrd.Image.deserialize_from(reading.read))
    assert len(found) == len(expected) > 1
    for image in expected:
        head = image.getHead()
        other = with_counters[head.image_series_index, head.slice]
        assert np.array_equal(other.data, image.data) and other.data.dtype == image.data.dtype
        assert np.array_equal(other.head.position, head.position) and np.array_equal(other.head.col_dir, head.read_dir)
        assert other.head.image_type.value == head.image_type and other.head.image_index == head.image_index
        assert {name: [one.value for one in values] for name, values in other.meta.items()} == {
            name: value if isinstance(value, list) else [value] for name, value in image.meta.items()
        }


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (lambda data: data[:-10], 4, b"connection ended"),
        (lambda data: data[:40], 2, b"ends within its header"),
        (lambda data: b"yardl" + bytes(500), 2, b"cannot be read"),
        (lambda data: data[:60] + b"?" + data[61:], 2, b"cannot be read"),
    ],
)
def test_what_breaks_off_or_is_damaged_is_named(data, model, spoil, code, words):
    answer = run(spoil(data), "stream", "--model", str(model))
    assert answer.returncode == code and words in answer.stderr and b"Traceback" not in answer.stderr


def test_items_that_are_no_lines_are_named(scan, model):
    bucket = mrd.StreamItem.ArrayComplexFloat(np.zeros((3, 2), np.complex64))
    answer = run(version2.stream(scan, [bucket]), "stream", "--model", str(model))
    assert b"an item ArrayComplexFloat came" in answer.stderr and b"Traceback" not in answer.stderr
    assert answer.returncode in (2, 4)


def test_a_number_that_version_1_cannot_hold_is_named(scan, model):
    line = mrd.Acquisition(data=np.zeros((1, 4), np.complex64))
    line.head.idx.kspace_encode_step_1 = 70000
    answer = run(version2.stream(scan, [mrd.StreamItem.Acquisition(line)]), "stream", "--model", str(model))
    assert b"has the number 70000" in answer.stderr and b"Traceback" not in answer.stderr


def test_without_the_package_it_says_what_to_install(monkeypatch, tmp_path):
    path = tmp_path / "scan.mrd"
    path.write_bytes(b"yardl and more")
    monkeypatch.setitem(sys.modules, "mrd", None)
    descriptor = os.open(path, os.O_RDONLY)
    with pytest.raises(BadInputError, match=r"pip install dpmrecon\[mrd2\]"):
        opened(descriptor, descriptor, 1.0)
    os.close(descriptor)


def test_what_was_read_to_tell_the_version_is_not_lost(tmp_path):
    for data in (b"", b"y", b"yard", b"\3\0more"):
        path = tmp_path / "scan"
        path.write_bytes(data)
        stream = opened(descriptor := os.open(path, os.O_RDONLY), descriptor, 1.0)
        found = bytearray(20)
        first = stream.readinto(memoryview(found))
        assert bytes(found[: first + stream.readinto(memoryview(found)[first:])]) == data
        stream.close()
