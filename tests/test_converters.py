"""Scans as converters, scanners and simulators really write them, end to end: each comes out right, or is refused in a
sentence that says why.

Right is what the scan without the peculiarity gives at the same options; `python tests/commands/converters_table.py`
prints the figures at the default options.
"""

import contextlib
import gzip
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pydicom
import pytest
from dpmrecon import options
from dpmrecon.cli import main
from dpmrecon.hosts.engine import Engine
from dpmrecon.mrd.header import read_header
from dpmrecon.mrd.receiving import by_vendor

from support import converters, fake_peer
from support.acquisitions import write_lines
from support.converters import CASES, CENTER, METRES, Case, Head, copied, nrmse
from support.results import images, report
from support.sessions import Here

pytestmark = pytest.mark.usefixtures("loaded_once")

FEW = ("--steps", "3", "--samples", "1", "--device", "cpu", "--gate", "off")  # the gate changes no image
NEAR = 0.05  # share that an NRMSE may be off


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    return Head.of(tmp_path_factory.mktemp("head"))


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """Three slices of it."""
    return Head.of(tmp_path_factory.mktemp("head"), 3)


@pytest.fixture(scope="module")
def engine():
    return Engine.of(options.from_pairs({"device": "cpu", "steps": "3", "samples": "1", "gate": "off"}))


def replay(scan, out, *given: str) -> int:
    """With the model that ships, in few steps."""
    return main(["replay", str(scan), "--out", str(out), *FEW, *given])


def errors(out, head) -> list[float]:
    """NRMSE of every image, in the order of the file."""
    return [nrmse(image.data[0, 0], head.truth[image.getHead().slice]) for image in images(out)]


def dicoms(out) -> list[pydicom.Dataset]:
    """Of the first series."""
    (folder,) = (out / "dicom").glob("01_*")
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


@dataclass(frozen=True)
class Done:
    """Where a replay's results lie, its exit code, and what it printed."""

    out: Path
    code: int
    printed: str


@pytest.fixture(scope="module")
def done(head, tmp_path_factory):
    """done(case) -> Done, each replayed once: tests must not write to its folder."""

    @cache
    def replayed(case: Case) -> Done:
        folder, screen = tmp_path_factory.mktemp("case"), io.StringIO()
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            code = replay(case.write(head, folder / "scan.h5"), folder, *case.options)
        return Done(folder, code, screen.getvalue())

    return replayed


@pytest.fixture(scope="module")
def expected(head, done):
    """expected(number) -> NRMSE of the first case of this number."""

    def error(number: str) -> float:
        found = done(next(case for case in CASES if case.number == number))
        assert found.code == 0, found.printed
        return errors(found.out, head)[0]

    return error


def remarks(out) -> str:
    """All of a report, those of slices too."""
    found = report(out)
    return "; ".join([*found["remarks"], *(text for entry in found["slices"] for text in entry.get("remarks", []))])


REPEATED = [case for case in CASES if case is not next(other for other in CASES if other.number == case.like)]


@pytest.mark.parametrize("case", REPEATED, ids=lambda case: f"{case.number} {case.title}")
def test_a_peculiar_scan_comes_out_right_or_is_refused(case, head, expected, done):
    replayed = done(case)
    if isinstance(case.right, str):
        assert replayed.code in (2, 4)
        assert case.right in replayed.printed
        return
    assert replayed.code == 0, replayed.printed
    found = errors(replayed.out, head)
    assert found == pytest.approx([expected(case.like)] * len(found), rel=NEAR)
    if case.remark is None:
        assert remarks(replayed.out) == ""
    else:
        assert case.remark in remarks(replayed.out)
        assert case.remark in replayed.printed
    assert {file.MRAcquisitionType for file in dicoms(replayed.out)} == {"2D"}


def test_the_scan_without_peculiarity_is_what_the_table_says(head, tmp_path):
    for case in CASES[0], *(case for case in CASES if case.number.startswith("05") and case.remark is None):
        scan = case.write(head, tmp_path / f"{case.number}.h5")
        assert (
            main(["replay", str(scan), "--out", str(tmp_path / case.number), "--device", "cpu", "--gate", "off"]) == 0
        )
        assert errors(tmp_path / case.number, head) == pytest.approx([case.right], rel=NEAR)


def test_a_vendors_conjugation_is_said_in_report_and_dicom(done):
    siemens = {case.options: case for case in CASES if case.number == "06"}
    for given, said in (((), True), (("--conjugate", "off"), False)):
        found = done(siemens[given])
        assert found.code == 0
        assert report(found.out)["conjugated"] is said
        (file,) = dicoms(found.out)
        assert ("k-space was conjugated" in file.DerivationDescription) is said


@pytest.mark.parametrize(
    ("vendor", "model", "right"),
    [(None, "Prisma_fit", True), ("xxxxxxxx", "MAGNETOM Vida", True), (None, "Ingenia", False), ("GE", "Prisma", None)],
)
def test_an_anonymised_vendor_is_told_by_the_model_or_it_is_said(head, expected, tmp_path, vendor, model, right):
    """right: whether the image is not turned; None: nothing is said of it either."""
    system = {"systemVendor": vendor, "systemModel": model}
    xml = head.header(**{f"acquisitionSystemInformation.{name}": value for name, value in system.items()})
    lines = [copied(line, line.data.conj()) for line in head.noise + head.sampled()]
    assert replay(write_lines(tmp_path / "scan.h5", xml, lines), tmp_path) == 0
    assert report(tmp_path)["conjugated"] is bool(right)
    assert errors(tmp_path, head) == pytest.approx([expected("00" if right else "06b")], rel=NEAR)
    assert ("the header names no vendor: k-space is taken as it is" in remarks(tmp_path)) is (right is False)


def test_siemens_user_parameters_tell_a_vendor_that_is_missing(head):
    xml = head.header(acquisitionSystemInformation=None)
    own = "<userParameters><userParameterDouble><name>{}</name><value>0</value></userParameterDouble></userParameters>"
    for name, conjugated in (("MaxwellCoefficient_0", True), ("dwell", False)):
        assert by_vendor(read_header(xml.replace("</ismrmrd", own.format(name) + "</ismrmrd"))) is conjugated


@pytest.mark.parametrize(
    ("declared", "encoding"), [("UTF-8", "utf-8"), (None, "utf-8"), ("ISO-8859-1", "latin-1"), (None, "latin-1")]
)
def test_names_of_a_header_in_any_encoding(head, tmp_path, declared, encoding):
    patient = {"subjectInformation.patientName": "Müller^Zoë", "studyInformation.studyDescription": "Schädel"}
    body = head.header(**patient).partition("?>")[2]
    xml = (f'<?xml version="1.0" encoding="{declared}"?>' if declared else "") + body
    scan = write_lines(tmp_path / "scan.h5", xml.encode(encoding), head.noise + head.sampled())
    assert replay(scan, tmp_path) == 0
    (file,) = dicoms(tmp_path)
    assert (file.PatientName, file.StudyDescription) == ("Müller^Zoë", "Schädel")


def test_a_field_of_view_in_metres_is_put_right_by_hand(head, tmp_path):
    (case,) = (case for case in CASES if case.number == "10")
    scan = case.write(head, tmp_path / "scan.h5")
    values = ";".join(f"encoding.{space}.fieldOfView_mm.{axis}={1000 * value}" for space, axis, value in METRES)
    assert replay(scan, tmp_path, "--set", values) == 0
    (file,) = dicoms(tmp_path)
    assert [float(value) for value in (*file.PixelSpacing, file.SliceThickness)] == pytest.approx([230 / 128] * 2 + [4])
    assert list(images(tmp_path)[0].getHead().field_of_view) == pytest.approx([230, 230, 4])


def test_an_echo_read_backwards_equals_the_first(done):
    (case,) = (case for case in CASES if case.number == "12")
    assert done(case).code == 0
    first, second = images(done(case).out)
    assert [image.getHead().contrast for image in (first, second)] == [0, 1]
    assert nrmse(second.data[0, 0], first.data[0, 0]) < 0.02  # other draws of the samples


@pytest.mark.parametrize("told", [0, CENTER])
def test_a_centre_line_that_is_off_by_a_few_is_put_right(head, expected, tmp_path, told):
    lines = head.sampled()
    for line in lines:
        line.idx.user[5] = told
    xml = head.header(**{f"{converters.SPACE}.center": CENTER + 6})
    assert replay(write_lines(tmp_path / "scan.h5", xml, head.noise + lines), tmp_path) == 0
    assert errors(tmp_path, head) == pytest.approx([expected("00")], rel=NEAR)
    assert "the header's centre line 70 is not the k-space centre" in remarks(tmp_path)


@pytest.mark.parametrize("missing", [32, 12])
def test_a_matrix_of_the_lines_that_came_alone_is_told_with_the_right_one(head, expected, tmp_path, missing):
    """GE's fractional NEX: the header's centre is half of the lines that came."""
    lines = head.sampled(first=missing)
    for line in lines:
        line.idx.kspace_encode_step_1 -= missing
    rows = 128 - missing
    limits = {f"{converters.SPACE}.maximum": rows - 1, f"{converters.SPACE}.center": rows // 2}
    xml = head.header(**limits, **{f"{converters.MATRIX}.y": rows})
    scan = write_lines(tmp_path / "scan.h5", xml, head.noise + lines)
    assert replay(scan, tmp_path / "as it is") == 0
    given = f"{converters.MATRIX}.y=128;{converters.SPACE}.center={CENTER - missing}"
    assert f"(--set '{given}' keeps them)" in remarks(tmp_path / "as it is")
    assert errors(tmp_path / "as it is", head)[0] < 0.08
    assert replay(scan, tmp_path / "set", "--set", given) == 0
    assert remarks(tmp_path / "set") == ""
    assert errors(tmp_path / "set", head)[0] < 1.1 * expected("00")


def low(head, step: int) -> tuple[str, list[ismrmrd.Acquisition]]:
    """Every step-th line, counted one by one around the centre of the whole matrix, as SENSE lines in their field of
    view; the header announces no R."""
    lines = [
        copied(line, kspace_encode_step_1=CENTER + (line.idx.kspace_encode_step_1 - CENTER) // step)
        for line in head.lines
        if (line.idx.kspace_encode_step_1 - CENTER) % step == 0
    ]
    numbers = [line.idx.kspace_encode_step_1 for line in lines]
    limits = {f"{converters.SPACE}.minimum": min(numbers), f"{converters.SPACE}.maximum": max(numbers)}
    return head.header(1, **limits), head.noise + lines


@pytest.mark.parametrize("step", [2, 3])
def test_sense_lines_counted_in_their_reduced_field_of_view_are_refused(head, tmp_path, capsys, step):
    xml, lines = low(head, step)
    n_lines = len(lines) - len(head.noise)
    scan = write_lines(tmp_path / "scan.h5", xml, lines)
    assert replay(scan, tmp_path / "refused") == 2
    given = f"encoding.encodedSpace.matrixSize.y={n_lines}"
    told = capsys.readouterr().err
    assert f"its {n_lines} lines without a gap are of a matrix of 128" in told and f"--set {given})" in told
    assert replay(scan, tmp_path / "set", "--set", given) == 0


def test_a_low_resolution_is_no_reduced_field_of_view(head, tmp_path):
    lines = [copied(line) for line in head.lines[CENTER - 31 : CENTER + 32]]
    limits = {f"{converters.SPACE}.minimum": 33, f"{converters.SPACE}.maximum": 95}
    scan = write_lines(tmp_path / "scan.h5", head.header(1, **limits), head.noise + lines)
    assert replay(scan, tmp_path) == 0
    assert remarks(tmp_path) == ""
    assert errors(tmp_path, head)[0] < 0.09


def test_measurements_of_a_file(head, expected, tmp_path, capsys):
    lines = head.noise + head.sampled()
    named = write_lines(tmp_path / "named.h5", head.header(), lines, "meas_MID00042")
    two = write_lines(tmp_path / "two.h5", head.header(), head.noise, "dataset_1")  # an adjustment first
    write_lines(two, head.header(), lines, "dataset_2")
    for scan in (named, two):
        assert replay(scan, tmp_path / scan.stem) == 0
        assert errors(tmp_path / scan.stem, head) == pytest.approx([expected("00")], rel=NEAR)
    write_lines(two, head.header(), lines, "dataset_3")
    capsys.readouterr()
    assert replay(two, tmp_path / "refused") == 2
    told = capsys.readouterr().err
    assert all(name in told for name in ("dataset_2 (", "dataset_3 (", "choose one with --group"))
    assert replay(two, tmp_path / "chosen", "--group", "dataset_3") == 0
    assert errors(tmp_path / "chosen", head) == pytest.approx([expected("00")], rel=NEAR)
    assert replay(two, tmp_path / "refused", "--group", "dataset_9") == 2
    assert "has no group 'dataset_9' with lines: it has dataset_1, dataset_2, dataset_3" in capsys.readouterr().err


def generated(width: int, directions: bool) -> tuple[str, list[ismrmrd.Acquisition], np.ndarray]:
    """As the standard's own generator writes it: header, lines, truth. R = 2 with a repetition for each offset, no
    limits but the lines', no protocol, no position; `width` calibration lines."""
    rows = 128
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, rows), indexing="ij")
    truth = ((x / 0.7) ** 2 + (y / 0.9) ** 2 < 1) * 1.0
    for depth, u, v, wide, high in ((-0.7, 0, 0, 0.6, 0.8), (0.3, 0.2, 0.3, 0.2, 0.1), (0.4, -0.2, -0.2, 0.1, 0.3)):
        truth += depth * (((x - u) / wide) ** 2 + ((y - v) / high) ** 2 < 1)
    turns = 2 * np.pi * np.arange(8)[:, None, None] / 8
    maps = np.exp(1j * turns) / np.hypot(x - 1.4 * np.cos(turns), y - 1.4 * np.sin(turns))
    maps /= np.sqrt((abs(maps) ** 2).sum(0))
    wide = np.pad(maps * truth, ((0, 0), (0, 0), (rows // 2, rows // 2)))
    centred = np.fft.ifftshift(wide, axes=(1, 2))
    kspace = np.fft.fftshift(np.fft.fft2(centred, norm="ortho"), axes=(1, 2))
    rng = np.random.default_rng(7)

    def line(data: np.ndarray, **counters: int) -> ismrmrd.Acquisition:
        noise = rng.standard_normal(data.shape) + 1j * rng.standard_normal(data.shape)
        found = ismrmrd.Acquisition.from_array((data + 0.05 * noise).astype(np.complex64), center_sample=rows)
        found.sample_time_us = 5.0
        if directions:
            found.read_dir[:], found.phase_dir[:], found.slice_dir[:] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
        for name, value in counters.items():
            setattr(found.idx, name, value)
        return found

    lines = [line(np.zeros((8, 2 * rows)))]
    lines[0].set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    for repetition in (0, 1):
        for number in range(rows):
            regular = number % 2 == repetition
            central = rows // 2 - width // 2 <= number < rows // 2 + width // 2
            if regular or central:
                lines.append(line(kspace[:, number], kspace_encode_step_1=number, repetition=repetition))
            if central:
                lines[-1].set_flag(converters.BOTH if regular else converters.CAL)
            elif number >= rows - 2 and regular:
                lines[-1].set_flag(ismrmrd.ACQ_LAST_IN_SLICE)

    def space(cols: int) -> str:
        matrix = f"<matrixSize><x>{cols}</x><y>{rows}</y><z>1</z></matrixSize>"
        return f"{matrix}<fieldOfView_mm><x>{300 * cols / rows}</x><y>300</y><z>6</z></fieldOfView_mm>"

    def limit(name: str, maximum: int, center: int) -> str:
        return f"<{name}><minimum>0</minimum><maximum>{maximum}</maximum><center>{center}</center></{name}>"

    factors = "<kspace_encoding_step_1>2</kspace_encoding_step_1><kspace_encoding_step_2>1</kspace_encoding_step_2>"
    xml = f"""<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions>
    <H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions><encoding>
    <encodedSpace>{space(2 * rows)}</encodedSpace><reconSpace>{space(rows)}</reconSpace>
    <encodingLimits>{limit("kspace_encoding_step_1", rows - 1, rows // 2)}{limit("repetition", 1, 0)}</encodingLimits>
    <trajectory>cartesian</trajectory><parallelImaging><accelerationFactor>{factors}</accelerationFactor>
    <calibrationMode>interleaved</calibrationMode></parallelImaging></encoding></ismrmrdHeader>"""
    return xml, lines, truth


@pytest.mark.parametrize(("width", "right"), [(24, (0.057, 0.055)), (0, (0.060, 0.085))])
def test_the_standards_own_generator(tmp_path, width, right):
    xml, lines, truth = generated(width, directions=False)
    scan = write_lines(tmp_path / "scan.h5", xml, lines)
    # its edges are sharper than a head's: a few steps would not do
    assert main(["replay", str(scan), "--out", str(tmp_path), "--device", "cpu", "--gate", "off"]) == 0
    found = [nrmse(image.data[0, 0], truth) for image in images(tmp_path)]
    # without calibration lines the other repetition's serve the maps alone: 64 lines, where CG-SENSE has .37 and .52
    assert found == pytest.approx(right, rel=NEAR)
    assert [entry["lines"] for entry in report(tmp_path)["slices"]] == [76 if width else 64] * 2
    assert not list((tmp_path / "dicom").rglob("*.dcm"))


def test_the_standards_own_generator_with_directions_gets_dicom(tmp_path):
    """And the very images that it gets without."""
    found = []
    for directions in (False, True):
        xml, lines, _ = generated(24, directions)
        out = tmp_path / str(directions)
        assert replay(write_lines(tmp_path / f"{directions}.h5", xml, lines), out) == 0
        assert len(list((out / "dicom").rglob("01_*/*.dcm"))) == (2 if directions else 0)
        found.append([image.data for image in images(out)])
    assert np.array_equal(*found)


def test_times_and_angles_of_each_contrast(head, tmp_path):
    first = head.sampled()
    second = [copied(line, 0.6 * line.data, contrast=1) for line in first]
    parameters = {"TI": [700, 2500], "flipAngle_deg": [4, 5], "TE": [2.9]}
    values = {f"sequenceParameters.{name}": value for name, value in parameters.items()}
    xml = head.header(**{"encoding.encodingLimits.contrast.maximum": 1, **values})
    assert replay(write_lines(tmp_path / "scan.h5", xml, head.noise + first + second), tmp_path) == 0
    files = sorted(dicoms(tmp_path), key=lambda file: file.InversionTime)
    assert [(file.InversionTime, file.FlipAngle, file.EchoTime) for file in files] == [(700, 4, 2.9), (2500, 5, 2.9)]
    assert files[0].pixel_array.mean() > files[1].pixel_array.mean()


def test_noise_of_another_bandwidth_gives_the_same_level(done):
    found = []
    for case in CASES:
        if case.number not in ("00", "20"):
            continue
        assert done(case).code == 0
        (entry,) = report(done(case).out)["slices"]
        found.append((entry["sigma_n"], entry["residual"]))
    assert len(found) == 4
    for pair in found:
        assert pair == pytest.approx(found[0], rel=0.02)


def test_waveforms_compressed_chunks_and_a_file_that_may_only_be_read(head, expected, tmp_path, capsys):
    folder = tmp_path / "Müller scans (1)"
    folder.mkdir()
    xml = head.header(acquisitionSystemInformation=None)
    scan = write_lines(folder / "scän 1.h5", xml, head.noise + head.sampled())
    with ismrmrd.Dataset(str(scan), "dataset", create_if_needed=False) as dataset:
        for _ in range(3):
            dataset.append_waveform(ismrmrd.Waveform.from_array(np.zeros((2, 20), np.uint32)))
    with h5py.File(scan, "a") as file:
        lines = file["dataset/data"]
        samples, kind = lines[:], lines.dtype
        del file["dataset/data"]
        chunks = {"chunks": (7,), "maxshape": (None,), "compression": "gzip"}
        file.create_dataset("dataset/data", data=samples, dtype=kind, **chunks)
    before = scan.read_bytes()
    scan.chmod(0o444)
    folder.chmod(0o555)
    try:
        assert replay(scan, tmp_path / "out ä") == 0
    finally:
        folder.chmod(0o755)
    assert errors(tmp_path / "out ä", head) == pytest.approx([expected("00")], rel=NEAR)
    assert scan.read_bytes() == before and len(list(folder.iterdir())) == 1
    packed = tmp_path / "scan.h5.gz"
    packed.write_bytes(gzip.compress(before[:1000]))
    capsys.readouterr()
    assert replay(packed, tmp_path / "out") == 2
    assert "is not an HDF5 file" in capsys.readouterr().err


def test_slices_without_labels_are_refused(slices, tmp_path, capsys):
    lines = [copied(line, slice=0) for line in slices.sampled()]
    xml = slices.header(**{"encoding.encodingLimits.slice.maximum": 0})
    assert replay(write_lines(tmp_path / "scan.h5", xml, slices.noise + lines), tmp_path / "out") == 2
    assert "lines of slice 0 lie at 3 positions: every slice needs a label" in capsys.readouterr().err


def streamed(engine, xml: str, lines: list[ismrmrd.Acquisition], config: bytes | None = None) -> fake_peer.Answer:
    """What a session answers to an MRD client."""
    header = fake_peer.text_message(fake_peer.HEADER, xml.encode())
    config = fake_peer.config_name("dpm_flair") if config is None else config
    return Here(engine).exchange(config, header, *map(fake_peer.acquisition, lines), fake_peer.close())


@pytest.mark.parametrize("mode", ["separate", "embedded"])
def test_a_reference_block_that_ends_its_slice_too(slices, engine, tmp_path, mode):
    lines = list(slices.noise)
    for index in (0, 1, 2):
        own = [line for line in slices.lines if line.idx.slice == index]
        block = [copied(line) for line in own[CENTER - 12 : CENTER + 12]]
        regular = [copied(line) for line in own if (line.idx.kspace_encode_step_1 - CENTER) % 3 == 0]
        for line in block:
            line.set_flag(converters.CAL)
        for line in (block[-1], regular[-1]):
            line.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
        lines += block + regular
    xml = slices.header(mode=mode)
    assert replay(write_lines(tmp_path / "scan.h5", xml, lines), tmp_path) == 0
    answer = streamed(engine, xml, lines)
    assert answer.texts == []
    sent = [image for image in answer.images if image.image_series_index == 1]
    of_file = images(tmp_path)
    assert [image.getHead().slice for image in sent] == [image.getHead().slice for image in of_file] == [0, 1, 2]
    for one, other in zip(sent, of_file):
        assert nrmse(one.data[0, 0], other.data[0, 0]) < 2e-3  # whole numbers
        assert nrmse(one.data[0, 0], slices.truth[one.getHead().slice]) < 0.07


def test_a_stream_whose_lines_carry_trajectories(head, engine, expected):
    (case,) = (case for case in CASES if case.number == "32")
    answer = streamed(engine, *case.make(head))
    assert answer.texts == []
    assert nrmse(answer.images[0].data[0, 0], head.truth[0]) == pytest.approx(expected("00"), rel=NEAR)


@pytest.mark.parametrize("acceleration", [1, 3])
def test_a_fastmri_file(head, tmp_path, acceleration, capsys):
    kspace = np.zeros((1, 6, 256, 128), np.complex64)
    for line in head.sampled(acceleration):
        kspace[0, :, :, line.idx.kspace_encode_step_1] = line.data
    with h5py.File(tmp_path / "file_brain_AXFLAIR.h5", "w") as file:
        file["kspace"], file["ismrmrd_header"] = kspace, head.xml
        file["reconstruction_rss"], file["mask"] = head.truth, kspace.any((0, 1, 2))
    assert replay(tmp_path / "file_brain_AXFLAIR.h5", tmp_path) == 0
    (entry,) = report(tmp_path)["slices"]
    assert (entry["R"], entry["noise_source"]) == (acceleration, "k-space periphery")
    assert "a fastMRI file holds no positions" in capsys.readouterr().err
    # such files have no noise measurement
    scan = write_lines(tmp_path / "scan.h5", head.header(acceleration), head.sampled(acceleration))
    assert replay(scan, tmp_path / "out") == 0
    assert errors(tmp_path, head) == pytest.approx(errors(tmp_path / "out", head), rel=NEAR)
