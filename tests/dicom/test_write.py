"""DICOM series of a replay: the standard's checkers, provenance, one scale, reproducible files, anonymity."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pydicom
import pytest
from dpmrecon.dicom.viewer import draw, read_series, values
from dpmrecon.dicom.write import DicomOptions, _description, _name, stored_unit, write_dicom
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.file import open_scan

from support.dicom import checker, complaints, unexplained
from support.edited import edited
from support.results import images, replay, report

SCAN = {"matrix": (48, 63), "n_slices": 3, "acceleration": 2}
DWI = {"matrix": (32, 40), "n_slices": 2, "contrast": "dwi", "b_values": (0.0, 1000.0), "n_coils": 4, "averages": 2}
PATIENT = ("SIMULATED^HEAD", "SIMULATED0", "19700101", "20000101")


@pytest.fixture(scope="module")
def result(simulated_scan, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("result")
    assert replay(simulated_scan(**SCAN), out, model) == 0
    return out


@pytest.fixture(scope="module")
def complex_result(simulated_scan, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("complex")
    assert replay(simulated_scan(**SCAN), out, model, "--output", "magnitude,phase,complex") == 0
    return out


@pytest.fixture(scope="module")
def diffusion_result(simulated_scan, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("diffusion")
    assert replay(simulated_scan(**DWI), out, model) == 0
    return out


def series(out, number: int) -> list[pydicom.Dataset]:
    found = [files for files in read_series(out / "dicom") if files[0].SeriesNumber == number]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("which", ["result", "diffusion_result", "complex_result"])
def test_dciodvfy_finds_no_error_and_no_warning_that_is_not_explained(which, request):
    out = request.getfixturevalue(which)
    files = sorted((out / "dicom").rglob("*.dcm"))
    assert len({path.parent for path in files}) == {"result": 2, "diffusion_result": 5, "complex_result": 3}[which]
    for path in files:
        assert unexplained(path) == []


def test_the_reconstruction_needs_no_more_than_the_rescale(result):
    for path in sorted((result / "dicom" / "01_DPM").glob("*.dcm")):
        assert len(complaints(path)) == 4  # three attributes and the summary: the values are stored as they are


@pytest.mark.parametrize("which", ["result", "diffusion_result", "complex_result"])
def test_dcentvfy_finds_the_entities_consistent(which, request):
    files = sorted((request.getfixturevalue(which) / "dicom").rglob("*.dcm"))
    done = subprocess.run([checker("dcentvfy"), *map(str, files)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_checkers_can_fail(result, tmp_path):
    path = sorted((result / "dicom").rglob("*.dcm"))[0]
    file = pydicom.dcmread(path)
    del file.ImagePositionPatient
    file.save_as(tmp_path / "broken.dcm")
    assert any("ImagePositionPatient" in line for line in complaints(tmp_path / "broken.dcm"))
    file = pydicom.dcmread(path)
    file.PatientName, file.SOPInstanceUID = "ANOTHER", "1.2.3"
    file.save_as(tmp_path / "other.dcm")
    pair = [str(path), str(tmp_path / "other.dcm")]
    done = subprocess.run([checker("dcentvfy"), *pair], capture_output=True, text=True)
    assert "Error" in done.stdout + done.stderr


def test_types_1_and_2_and_research(result):
    for files in read_series(result / "dicom"):
        for file in files:
            assert file.SOPClassUID == pydicom.uid.MRImageStorage
            assert (file.Modality, file.ContentQualification) == ("MR", "RESEARCH")
            assert "RESEARCH" in file.SeriesDescription
            assert "not for diagnostic use" in file.ImageComments
            assert file.ImageType[:3] == ["DERIVED", "PRIMARY", "OTHER"]
            assert (file.PatientName, file.PatientID, file.PatientBirthDate, file.StudyDate) == PATIENT
            assert (file.PatientSex, file.StudyTime, file.StudyID) == ("O", "120000", "1")
            assert (file.RepetitionTime, file.EchoTime, file.InversionTime, file.FlipAngle) == (9000, 90, 2500, 150)
            assert (file.MagneticFieldStrength, file.Manufacturer, file.ProtocolName) == (3, "SIMULATED", "T2_FLAIR")
            assert file.SliceThickness == 4
            assert file.SpacingBetweenSlices == pytest.approx(5, abs=1e-4)
            for keyword in ("ReferringPhysicianName", "AccessionNumber", "ScanOptions", "EchoTrainLength"):
                assert keyword in file  # type 2: there, and empty
    reconstruction, spread = series(result, 1), series(result, 2)
    assert reconstruction[0].ImageType[3] == "DPM"
    assert spread[0].ImageType[3] == "DPM_STD"
    everything = reconstruction + spread
    assert [file.InstanceNumber for file in reconstruction] == [1, 2, 3]
    assert len({file.StudyInstanceUID for file in everything}) == 1
    assert len({file.FrameOfReferenceUID for file in everything}) == 1
    assert len({file.SeriesInstanceUID for file in everything}) == 2
    assert len({file.SOPInstanceUID for file in everything}) == 6
    assert all(pydicom.uid.UID(file.SOPInstanceUID).is_valid for file in everything)


def times(scan, folder, model, counter, limits, **lists) -> list[tuple]:
    """(value of the counter, (EchoTime, EchoNumbers, InversionTime, FlipAngle)) of each image; limits: (minimum,
    maximum) of the counter."""

    def edit(number, line):
        if not line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            setattr(line.idx, counter, line.idx.contrast + limits[0])
            line.idx.contrast = line.idx.contrast if counter == "contrast" else 0
        return line

    values = {f"encodingLimits.contrast.{name}": 0 for name in ("minimum", "maximum")}
    values |= {f"encodingLimits.{counter}.{name}": n for name, n in zip(("minimum", "maximum"), limits)}
    changes = [f"encoding.{name}={n}" for name, n in values.items()]
    for name, numbers in lists.items():
        changes += [f"sequenceParameters.{name}[{place}]={number}" for place, number in enumerate(numbers)]
    folder.mkdir()
    scan, out = edited(scan, folder, edit), folder / "out"
    assert replay(scan, out, model, "--b-values", "phase:0", "--set", ";".join(changes)) == 0
    found = [
        (file.EchoTime, file.get("EchoNumbers"), file.get("InversionTime"), file.get("FlipAngle"))
        for file in series(out, 1)
    ]
    return list(zip(sorted(getattr(image, counter) for image in images(out)), found, strict=True))


def test_times_and_angles_are_those_of_the_counter_that_tells_them(simulated_scan, model, tmp_path):
    scan = simulated_scan(**{**DWI, "n_slices": 1, "averages": 1})
    lists = {"TI": (700, 2500), "flipAngle_deg": (4, 5)}
    by_set = times(scan, tmp_path / "set", model, "set", (0, 1), TE=(2.9,), **lists)
    assert by_set == [(0, (2.9, None, 700, 4)), (1, (2.9, None, 2500, 5))]
    from_1 = times(scan, tmp_path / "contrast", model, "contrast", (1, 2), TE=(10, 90), **lists)
    assert from_1 == [(1, (10, 1, 700, 4)), (2, (90, 2, 2500, 5))]
    unknown = times(scan, tmp_path / "repetition", model, "repetition", (0, 1), TE=(10, 90), **lists)
    assert unknown == [(0, (None,) * 4), (1, (None,) * 4)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        # GE's stylesheet writes a second echo and an inversion of every scan, Siemens's what the protocol holds unused
        ("sequenceParameters.TE[1]=0;sequenceParameters.TI[0]=0", (90, None, "RM")),
        ("{name}=t1_tse_tra;sequenceParameters.sequence_type=TurboSpinEcho", (90, None, "SE")),
        ("{name}=t1_tra;{sequence}=*tir2d1_16", (90, 2500, ["RM", "IR"])),
        ("{name}=t2_tirm_tra;sequenceParameters.sequence_type=TurboSpinEcho", (90, 2500, ["SE", "IR"])),
        ("{name}=;{sequence}=", (90, 2500, ["RM", "IR"])),
    ],
)
def test_inversion_and_echo_are_those_of_the_sequence(simulated_scan, model, tmp_path, changes, told):
    paths = {"name": "measurementInformation.protocolName", "sequence": "measurementInformation.sequenceName"}
    changes = f"{paths['sequence']}=tse2d;" + changes.format(**paths)
    assert replay(simulated_scan(**{**SCAN, "n_slices": 1}), tmp_path / "out", model, "--set", changes) == 0
    (file,) = series(tmp_path / "out", 1)
    assert (file.EchoTime, file.get("InversionTime"), file.ScanningSequence) == told


@pytest.mark.parametrize(("places", "spacing"), [((0, 7, 14), 7), ((0, 7, 0), None), ((0, 0.007, 0.014), None)])
def test_slices_that_share_a_place_have_no_spacing(simulated_scan, model, tmp_path, places, spacing):
    def edit(number, line):
        line.position[:] = [places[line.idx.slice] * part for part in line.slice_dir]
        return line

    assert replay(edited(simulated_scan(**SCAN), tmp_path, edit), tmp_path / "out", model) == 0
    files = series(tmp_path / "out", 1)
    found = [file.get("SpacingBetweenSlices") for file in files]
    assert found == [spacing if spacing is None else pytest.approx(spacing, abs=1e-3)] * 3
    assert {"SLICES SHARE A PLACE" in file.ImageComments for file in files} == {spacing is None}


def reordered(out, folder, numbers, change=lambda head: None) -> list[pydicom.Dataset]:
    """DICOM files of the reconstruction's slices, which come in the order of `numbers`; change: of their headers."""
    by_slice = {image.getHead().slice: image for image in images(out, 1)}
    dataset = ismrmrd.Dataset(str(folder / "images.h5"), "dataset", create_if_needed=True)
    with h5py.File(out / "images.h5") as file:
        dataset.write_xml_header(file["dataset/xml"][0])
    for number in numbers:
        head = by_slice[number].getHead()
        change(head)
        by_slice[number].setHead(head)
        dataset.append_image("image_1", by_slice[number])
    dataset.close()
    files = write_dicom(folder / "images.h5", folder / "dicom", "0" * 64, {"seed": 0}, DicomOptions())
    return [pydicom.dcmread(path) for path in files]


def test_slices_without_a_place_stand_in_the_order_of_their_numbers(result, tmp_path):
    def change(head):
        head.position[:] = (0, 0, 0)

    files = reordered(result, tmp_path, (1, 0, 2), change)
    expected = [image.data[0, 0] for image in sorted(images(result, 1), key=lambda image: image.getHead().slice)]
    for file, pixels in zip(files, expected, strict=True):
        assert np.abs(values(file) - pixels).max() <= float(file.RescaleSlope)


def test_stacks_follow_one_another(simulated_scan, model, tmp_path):
    assert replay(simulated_scan(**{**SCAN, "n_slices": 6}), tmp_path / "out", model) == 0

    def change(head):  # every other slice is of a stack that is turned by 90 degrees
        if head.slice % 2:
            read, phase, normal = (list(getattr(head, name)) for name in ("read_dir", "phase_dir", "slice_dir"))
            head.read_dir[:], head.phase_dir[:] = phase, normal
            head.position[:] = [(head.slice - 2) * part for part in read]
        else:
            head.position[:] = [head.slice * part for part in head.slice_dir]

    files = reordered(tmp_path / "out", tmp_path, range(6), change)
    turned = [file.ImageOrientationPatient != files[0].ImageOrientationPatient for file in files]
    assert turned == [False] * 3 + [True] * 3
    places = [float(file.SliceLocation) for file in files]
    assert places[:3] == sorted(places[:3]) and places[3:] == sorted(places[3:])
    assert [file.InstanceNumber for file in files] == [1, 2, 3, 4, 5, 6]


def test_every_file_of_an_incomplete_scan_says_what_is_missing(simulated_scan, model, tmp_path, result):
    def cut(number, line):
        return None if line.idx.slice == 1 and line.idx.kspace_encode_step_1 >= 20 else line

    scan = edited(simulated_scan(**SCAN), tmp_path, cut)
    assert replay(scan, tmp_path / "out", model, "--conventional") == 4
    files = [pydicom.dcmread(path) for path in sorted((tmp_path / "out" / "dicom").rglob("*.dcm"))]
    assert {file.SeriesNumber for file in files} == {1, 2, 3}
    for file in files:
        assert file.ImageComments.startswith("INCOMPLETE SCAN: 1 of 3 images missing: slice 1; RESEARCH")
    assert not any("INCOMPLETE" in file.ImageComments for file in series(result, 1))


def test_provenance_is_in_every_image(result, model):
    card = json.loads(model.with_suffix(".json").read_text())
    residuals = {
        entry["slice"]: entry["residual"] for entry in json.loads((result / "report.json").read_text())["slices"]
    }
    for number, file in enumerate(series(result, 1)):
        (item,) = file.ContributingEquipmentSequence
        purpose = item.PurposeOfReferenceCodeSequence[0]
        assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109102", "DCM")
        assert item.ManufacturerModelName.startswith("tiny-")
        assert item.SoftwareVersions == card["package_version"]
        for text in (file.DerivationDescription, item.ContributionDescription):
            for part in (card["checksum_sha256"], "sampler prox", "steps 4", "samples 2", "seed 0", "RESEARCH"):
                assert part in text
            assert f"residual {residuals[number]:.4g}" in text


def test_one_scale_and_one_window_hold_for_a_series(result, diffusion_result):
    for out in (result, diffusion_result):
        for files in read_series(out / "dicom"):
            for keyword in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"):
                assert len({getattr(file, keyword) for file in files}) == 1
            dataset = ismrmrd.Dataset(str(out / "images.h5"), "dataset", create_if_needed=False)
            name = f"image_{files[0].SeriesNumber}"
            images = [dataset.read_image(name, index) for index in range(dataset.number_of_images(name))]
            dataset.close()
            assert len(images) == len(files)
            slope = float(files[0].RescaleSlope)
            true = sorted((float(image.data.sum()), image.data[0, 0]) for image in images)
            found = sorted((float(values(file).sum()), values(file)) for file in files)
            for (_, wanted), (_, got) in zip(true, found):
                assert np.abs(got - wanted).max() <= 0.5001 * slope
            assert slope <= 1e-3 * max(float(image.data.max()) for image in images)
    assert float(series(result, 1)[0].RescaleSlope) == 1


def test_the_conventional_image_tells_its_own_verdict_and_weighting(simulated_scan, model, tmp_path, monkeypatch):
    """Not that the prior was adapted to the scan, which it has not seen."""
    monkeypatch.setattr("dpmrecon.recon.adapt.ROUNDS", 1)
    options = ("--conventional", "--adapt", "--steps", "2")
    assert replay(simulated_scan(**{**DWI, "averages": 1}), tmp_path, model, *options) == 0
    for image, other in zip(images(tmp_path), images(tmp_path, 3), strict=True):
        mine, meta = dict(image.meta), dict(other.meta)
        assert "dpmrecon_adaptation" in mine and "dpmrecon_adaptation" not in meta
        assert mine["ImageComments"].endswith("s/mm2") and meta["ImageComments"].endswith("s/mm2")
        remarks = meta.get("dpmrecon_remarks")
        assert meta["dpmrecon_verdict"].endswith(remarks[0] if isinstance(remarks, list) else remarks or "trusted")
        assert [meta[f"dpmrecon_{name}"] for name in ("samples", "steps", "evaluations")] == ["0"] * 3
    told = {text.split(";")[-1] for text in (str(file.ImageComments) for file in series(tmp_path, 3))}
    assert told == {" b = 0 s/mm2", " b = 1000 s/mm2"}
    assert not any("prior" in file.DerivationDescription for file in series(tmp_path, 3))


def test_images_of_one_place_say_which_they_are(diffusion_result, result):
    """In the words of the screen, and by numbers that viewers sort by."""
    files = series(diffusion_result, 1)
    told = [str(file.ImageComments).split("; ")[1] for file in files]
    numbers = [int(file.AcquisitionNumber) for file in files]
    names = [f"contrast {contrast}, average {average}" for contrast in (0, 1) for average in (0, 1)]
    assert told == list(np.repeat(names, 2)) and numbers == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [str(file.ImageComments).partition(";")[0] for file in files] == ["RESEARCH: not for diagnostic use"] * 8
    for file in [*series(result, 1), *series(diffusion_result, 5)]:
        assert file.AcquisitionNumber == 1 and "average" not in file.ImageComments


def test_echoes_are_of_one_acquisition(diffusion_result, tmp_path):
    """Readers part them by their number and time."""
    shutil.copy(diffusion_result / "images.h5", tmp_path / "images.h5")
    with h5py.File(tmp_path / "images.h5", "r+") as file:
        xml = np.ravel(file["dataset/xml"][()])[0]
        file["dataset/xml"][0] = xml.replace(b"</TE>", b"</TE><TE>120</TE>", 1)
    write_dicom(tmp_path / "images.h5", tmp_path / "dicom", "digest", {}, DicomOptions())
    files = series(tmp_path, 1)
    assert [(file.EchoNumbers, file.AcquisitionNumber) for file in files[::2]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert "; echo 1, average 0; " in files[4].ImageComments


def test_stored_units_are_powers_of_ten_that_fit():
    assert stored_unit(1200.0, 3000.0) == 1
    assert stored_unit(45.0, 80.0) == 0.01
    assert stored_unit(1200.0, 200_000.0) == 10
    assert stored_unit(0.0, 0.0) == 1
    for bright, largest in ((3e-7, 9e-7), (1.0, 1e6), (5e8, 6e8)):
        assert largest / stored_unit(bright, largest) <= 65535


def changed(result, folder, change) -> tuple[np.ndarray, list[pydicom.Dataset], list[str]]:
    """Other pixels in the place of the reconstruction's, what DICOM has of them, and what is noted."""
    folder.mkdir()
    notes, copy = [], shutil.copy(result / "images.h5", folder / "images.h5")
    with h5py.File(copy, "r+") as file:
        pixels = file["dataset/image_1/data"][:]
        change(pixels)
        file["dataset/image_1/data"][:] = pixels
    write_dicom(copy, folder / "dicom", "0" * 64, {"seed": 0}, DicomOptions(), notes.append)
    return pixels[:, 0, 0], series(folder, 1), notes


@pytest.mark.parametrize("factor", [1e30, 1e9, 1e6, 1e-6, 1e-10, 1e-12, 1e-20, 1e-38])
def test_values_of_any_scale_are_right(result, tmp_path, factor):
    def change(pixels):
        pixels *= np.float32(factor)

    true, files, notes = changed(result, tmp_path / "out", change)
    largest = float(true.max())
    found = sorted((float(values(file).sum()), values(file)) for file in files)
    for (_, got), wanted in zip(found, sorted(true.astype(float), key=np.sum), strict=True):
        assert np.abs(got - wanted).max() <= 1e-3 * largest
    assert 0.2 * largest < float(files[0].WindowWidth) < 1.1 * largest and notes == []
    assert float(files[0].WindowCenter) == pytest.approx(float(files[0].WindowWidth) / 2)
    for file in files:
        assert all(len(str(file[name].value)) <= 16 for name in ("RescaleSlope", "WindowCenter", "WindowWidth"))


def test_a_pixel_that_leaves_the_others_no_grey_levels_is_said(result, tmp_path):
    def change(pixels):
        pixels[1, 0, 0, 3, 4] = 1e7

    _, files, notes = changed(result, tmp_path / "out", change)
    assert len(files) == 3 and len(notes) == 1
    assert "image_1 has few grey levels in DICOM: pixels of up to 1e+07 are among others of 1.0" in notes[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_is_left_out_and_named(result, tmp_path, value):
    def change(pixels):
        pixels[1, 0, 0, 3, 4] = value

    _, files, notes = changed(result, tmp_path / "out", change)
    assert len(files) == 2 and all(file.pixel_array.any() for file in files)
    assert notes == ["no DICOM of image_1, slice 1: it holds NaN or infinite values"]


def test_no_image_that_is_finite_is_a_sentence(result, tmp_path):
    with h5py.File(shutil.copy(result / "images.h5", tmp_path / "images.h5"), "r+") as file:
        for name in [name for name in file["dataset"] if name.startswith("image_")]:
            pixels = file["dataset"][name]["data"][:]
            pixels[..., 3, 4] = np.nan
            file["dataset"][name]["data"][:] = pixels
    with pytest.raises(BadInputError, match="every image holds NaN or infinite values"):
        write_dicom(tmp_path / "images.h5", tmp_path / "dicom", "0" * 64, {"seed": 0}, DicomOptions())


def checksums(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.dcm"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_files_follow_from_scan_and_options_alone(simulated_scan, result, model, tmp_path):
    scan = simulated_scan(**SCAN)
    assert replay(scan, tmp_path / "again", model) == 0
    assert checksums(tmp_path / "again" / "dicom") == checksums(result / "dicom")
    first = series(result, 1)[0]
    with open_scan(scan) as opened:
        digest = opened.digest
    assert digest == hashlib.sha256(scan.read_bytes()).hexdigest()
    run = {"seed": 0}
    made = {
        "seed": (digest, {"seed": 1}, DicomOptions()),
        "tag": (digest, run, DicomOptions(tag="RECON")),
        "anonymous": (digest, run, DicomOptions(anonymize=True)),
        "scan": ("0" * 64, run, DicomOptions()),
        "plain": (digest, run, DicomOptions()),
    }
    uids = {first.SOPInstanceUID, *(file.SOPInstanceUID for file in series(result, 2))}
    for name, (chosen, options, dicom) in made.items():
        write_dicom(result / "images.h5", tmp_path / name / "dicom", chosen, options, dicom)
        uid = series(tmp_path / name, 1)[0].SOPInstanceUID
        assert uid not in uids
        uids.add(uid)
    # other options are another series of the same study; another scan is another study
    assert series(tmp_path / "seed", 1)[0].StudyInstanceUID == first.StudyInstanceUID
    assert series(tmp_path / "scan", 1)[0].StudyInstanceUID != first.StudyInstanceUID


def test_other_pixels_have_other_uids(result, tmp_path):
    """Of the same scan and options: hosts with bfloat16 have them, and archives drop the second of one UID."""
    found = []
    for name, more in (("one", 0), ("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        copy = shutil.copy(result / "images.h5", tmp_path / name / "images.h5")
        with h5py.File(copy, "r+") as file:
            file["dataset/image_1/data"][0] += np.float32(more)
        write_dicom(copy, tmp_path / name / "dicom", "0" * 64, {"seed": 0}, DicomOptions())
        found.append(series(tmp_path / name, 1))
    assert [file.SOPInstanceUID for file in found[0]] == [file.SOPInstanceUID for file in found[1]]
    for file, other in zip(found[0], found[2], strict=True):
        assert file.SOPInstanceUID != other.SOPInstanceUID and file.SeriesInstanceUID != other.SeriesInstanceUID
        assert file.StudyInstanceUID == other.StudyInstanceUID


def test_anonymize_and_image_type(simulated_scan, model, tmp_path, capsys):
    scan = simulated_scan(**SCAN)
    assert replay(scan, tmp_path, model, "--anonymize", "--image-type", "STROKE_R4") == 0
    for path in sorted((tmp_path / "dicom").rglob("*.dcm")):
        data = path.read_bytes()
        for secret in (b"SIMULATED^", b"SIMULATED0", b"19700101", b"20000101"):
            assert secret not in data
        file = pydicom.dcmread(path)
        assert (file.PatientName, file.PatientBirthDate, file.StudyDate) == ("", "", "")
        assert file.PatientIdentityRemoved == "YES"
        assert file.PatientID.startswith("SCAN-")
    assert series(tmp_path, 1)[0].ImageType[3] == "STROKE_R4"
    assert series(tmp_path, 2)[0].ImageType[3] == "STROKE_R4_STD"
    # the only things left out that dciodvfy misses: what a DICOMDIR would be sorted by
    expected = {"Study Date", "Study Time"}
    found = {line.split(" - ")[-1].strip() for line in complaints(path) if "DICOMDIR" in line}
    assert found == expected
    images = (tmp_path / "images.h5").read_bytes()
    assert b"SIMULATED^" not in images and b"simulated_0_0" not in images
    printed = capsys.readouterr()
    assert "SIMULATED^" not in printed.out + printed.err
    assert "SIMULATED^" not in (tmp_path / "report.json").read_text()
    assert replay(scan, tmp_path / "bad", model, "--image-type", "small letters") == 2
    assert "capital letters" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def with_header(scan, folder, edit) -> Path:
    copy = folder / "scan.h5"
    shutil.copy(scan, copy)
    with h5py.File(copy, "r+") as file:
        file["dataset/xml"][0] = edit(file["dataset/xml"][0].decode()).encode()
    return copy


@pytest.mark.parametrize(("told", "written"), [("ffs", "FFS"), ("on the back", ""), ("H\\S", ""), ("", "")])
def test_a_patient_position_is_one_of_the_standards_or_none(simulated_scan, model, tmp_path, told, written):
    change = f"measurementInformation.patientPosition={told}"
    assert replay(simulated_scan(**{**SCAN, "n_slices": 1}), tmp_path / "out", model, "--set", change) == 0
    assert series(tmp_path / "out", 1)[0].PatientPosition == written


@pytest.mark.parametrize("value", ["INF", "NaN"])
def test_a_time_that_is_no_number_is_left_out(simulated_scan, model, tmp_path, value):
    def edit(xml):
        return re.sub(r"<(TR|TE|TI)>[^<]*", rf"<\1>{value}", xml)

    scan = with_header(simulated_scan(**SCAN), tmp_path, edit)
    assert replay(scan, tmp_path / "out", model) == 0
    file = series(tmp_path / "out", 1)[0]
    assert file.RepetitionTime is None and file.EchoTime is None and "InversionTime" not in file


def test_a_header_without_patient_and_study_still_makes_legal_files(simulated_scan, model, tmp_path):
    def strip(xml):
        for name in ("subjectInformation", "studyInformation", "acquisitionSystemInformation", "sequenceParameters"):
            xml = re.sub(rf"<{name}>.*</{name}>", "", xml, flags=re.S)
        return xml

    scan = with_header(simulated_scan(**SCAN), tmp_path, strip)
    assert replay(scan, tmp_path / "out", model) == 0
    path = sorted((tmp_path / "out" / "dicom").rglob("*.dcm"))[0]
    assert pydicom.dcmread(path).ScanningSequence == "RM"
    assert all("DICOMDIR" in line and "Study" in line for line in unexplained(path))


def test_odd_header_text_becomes_legal(simulated_scan, model, tmp_path):
    def edit(xml):
        xml = xml.replace("SIMULATED^HEAD", "Mu\u0308ller^J\\o\u0142a " + 80 * "x").replace("1970-01-01", "1970-13-77")
        return xml.replace("T2_FLAIR", "T2_FLAIR " + 90 * "y").replace("<studyID>1<", "<studyID>a\\b" + 30 * "c" + "<")

    scan = with_header(simulated_scan(**SCAN), tmp_path, edit)
    assert replay(scan, tmp_path / "out", model) == 0
    path = sorted((tmp_path / "out" / "dicom").rglob("*.dcm"))[0]
    file = pydicom.dcmread(path)
    assert str(file.PatientName).startswith("Mu\u0308ller^J o\u0142a")
    assert file.SeriesDescription.startswith("T2_FLAIR yyy") and file.SeriesDescription.endswith("y DPM RESEARCH")
    assert file.PatientBirthDate == ""
    assert [line for line in complaints(path) if line.startswith("Error")] == []


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("Yamada^Tarou=\u5c71\u7530^\u592a\u90ce=\u3084\u307e\u3060^\u305f\u308d\u3046", None),
        ("=\u5c71\u7530^\u592a\u90ce", None),
        ("Yamada^Tarou=" + 30 * "\u5c71" + "^\u592a", "Yamada^Tarou=" + 21 * "\u5c71"),
        ("A^B^C^D^E^F=1=2=3", "A^B^C^D^E=1=2"),
    ],
)
def test_a_name_keeps_its_scripts(given, written):
    assert _name(given) == (written or given)


@pytest.mark.parametrize(
    ("text", "protocol", "written"),
    [
        ("Ax T2 DPM RESEARCH", "Ax T2", "Ax T2 DPM RESEARCH"),
        (
            70 * "\u00e4" + " CG-SENSE FALLBACK RESEARCH SAGITTAL",
            70 * "\u00e4",
            14 * "\u00e4" + " CG-SENSE FALLBACK RESEARCH SAGITTAL",
        ),
        (70 * "a", "b", 64 * "a"),
        ("scan DPM RESEARCH", None, "scan DPM RESEARCH"),
    ],
)
def test_a_long_protocol_leaves_room_for_what_the_series_is(text, protocol, written):
    assert _description(text, protocol) == written


def test_the_study_of_the_header_is_kept(simulated_scan, model, tmp_path):
    def edit(xml):
        xml = xml.replace("</studyInformation>", "<studyInstanceUID>1.2.840.99.1</studyInstanceUID></studyInformation>")
        xml = xml.replace(
            "</measurementInformation>", "<frameOfReferenceUID>1.2.9</frameOfReferenceUID></measurementInformation>"
        )
        return xml.replace("<patientPosition>", "<initialSeriesNumber>7</initialSeriesNumber><patientPosition>")

    scan = with_header(simulated_scan(**SCAN), tmp_path, edit)
    assert replay(scan, tmp_path / "out", model) == 0
    file = series(tmp_path / "out", 701)[0]
    assert (file.StudyInstanceUID, file.FrameOfReferenceUID) == ("1.2.840.99.1", "1.2.9")
    assert file.SeriesInstanceUID.startswith("2.25.")


def test_a_fallback_is_labelled(simulated_scan, model, tmp_path):
    assert replay(simulated_scan(**SCAN), tmp_path, model, "--deadline", "0") == 3
    for file in series(tmp_path, 1):
        assert file.ImageType[3] == "CGSENSE_FALLBACK"
        assert "CG-SENSE FALLBACK" in file.DerivationDescription
        assert "CG-SENSE FALLBACK" in file.ImageComments


def test_a_scan_without_directions_keeps_its_images_and_says_so(simulated_scan, model, tmp_path, capsys):
    scan = tmp_path / "scan.h5"
    shutil.copy(simulated_scan(**SCAN), scan)
    with h5py.File(scan, "r+") as file:
        lines = file["dataset/data"][()]
        lines["head"]["read_dir"] = 0
        file["dataset/data"][:] = lines
    assert replay(scan, tmp_path / "out", model) == 0
    assert "no DICOM: read_dir" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "report.json").read_text())["dicom_files"] == 0
    assert (tmp_path / "out" / "images.h5").exists()


def test_an_interrupted_run_leaves_no_half_series(simulated_scan, model, tmp_path, monkeypatch):
    save, saved = pydicom.dataset.FileDataset.save_as, []

    def interrupted(file, path, **options):
        saved.append(path)
        if len(saved) == 3:
            raise KeyboardInterrupt
        save(file, path, **options)

    monkeypatch.setattr(pydicom.dataset.FileDataset, "save_as", interrupted)
    assert replay(simulated_scan(**SCAN), tmp_path, model) == 130
    assert not list(tmp_path.rglob("*.dcm")) and not (tmp_path / "dicom").exists()
    monkeypatch.undo()
    assert replay(simulated_scan(**SCAN), tmp_path, model) == 0
    assert len(list((tmp_path / "dicom").rglob("*.dcm"))) == report(tmp_path)["dicom_files"] > 3


def test_a_disk_without_room_for_dicom_is_an_error_and_the_images_and_nifti_stay(
    simulated_scan, model, tmp_path, monkeypatch, capsys
):
    save, saved = pydicom.dataset.FileDataset.save_as, []

    def full(file, path, **options):
        saved.append(path)
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        save(file, path, **options)

    monkeypatch.setattr(pydicom.dataset.FileDataset, "save_as", full)
    assert replay(simulated_scan(**SCAN), tmp_path, model, "--nifti") == 2
    assert "no DICOM: cannot write to" in capsys.readouterr().err
    assert len(images(tmp_path)) == 3 and (tmp_path / "nifti/01_reconstruction.nii.gz").exists()
    assert not list(tmp_path.rglob("*.dcm"))
    found = report(tmp_path)
    assert found["error"].startswith("no DICOM: cannot write to") and found["dicom_files"] == 0


def test_a_second_run_leaves_no_files_of_the_first(simulated_scan, model, tmp_path):
    assert replay(simulated_scan(**SCAN), tmp_path, model) == 0
    assert replay(simulated_scan(**SCAN), tmp_path, model, "--samples", "1", "--image-type", "ONE") == 0
    assert {path.parent.name for path in (tmp_path / "dicom").rglob("*.dcm")} == {"01_ONE"}


def test_the_viewer_draws_every_series(diffusion_result, tmp_path):
    draw(diffusion_result / "dicom", tmp_path / "series.png")
    assert (tmp_path / "series.png").stat().st_size > 30_000


def test_conventional_is_a_series_of_its_own(simulated_scan, model, tmp_path):
    assert replay(simulated_scan(**SCAN), tmp_path, model, "--conventional") == 0
    files = series(tmp_path, 3)
    assert [file.ImageType[3] for file in files] == ["DPM_CONV"] * 3
    assert all("CG-SENSE" in file.SeriesDescription and "RESEARCH" in file.SeriesDescription for file in files)
    assert all("CG-SENSE, without the model" in file.DerivationDescription for file in files)
    # the same scale and place as the reconstruction, and another image
    for file, other in zip(files, series(tmp_path, 1)):
        assert file.ImagePositionPatient == other.ImagePositionPatient
        assert values(file).mean() == pytest.approx(values(other).mean(), rel=0.2)
        assert np.abs(values(file) - values(other)).max() > 1
