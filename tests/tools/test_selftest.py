"""The letters phantom through every output: where its markers come out, and the faults that are found."""

import dataclasses
from types import SimpleNamespace

import ismrmrd
import numpy as np
import pydicom
import pytest
import torch
from dpmrecon.cli import main
from dpmrecon.mrd.geometry import plane_of_dicom
from dpmrecon.physics import volume_maps
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.tools import selftest

from support.nifti import dcm2niix, nibabel, same


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(samples=1)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Fewer slices and coils, fully sampled, and coil maps of volumes by a short kernel: places are what is proven."""
    with pytest.MonkeyPatch.context() as patch:
        fewer = {"n_slices": 5, "n_coils": 3, "acceleration": 1}
        patch.setattr(selftest, "_SHARED", {**selftest._SHARED, **fewer})
        patch.setattr(volume_maps, "MATRIX", 400)
        yield


@pytest.fixture(scope="module")
def measured(model, tmp_path_factory):
    """Every orientation, reconstructed once: (folder, findings)."""
    folder = tmp_path_factory.mktemp("selftest")
    return folder, selftest.selftest(folder, load_checkpoint(model), torch.device("cpu"))


def test_markers_are_within_a_tenth_of_a_voxel(measured):
    folder, findings = measured
    # three markers in three outputs, and of two volumes in the series that is reformatted
    assert len(findings) == 3 * (3 * len(selftest.ORIENTATIONS) + 3 * len(selftest.VOLUMES) + 2)
    assert {finding.output for finding in findings} == {"MRD", "DICOM", "NIfTI", "DICOM axial"}
    for finding in findings:
        assert finding.passed, finding
    assert (folder / "selftest.png").stat().st_size > 50_000
    # what is covered: oblique, every main plane, odd sizes, non-square pixels, swapped phase, feet first, interleaved
    chosen = [selftest.settings_of(name) for name in selftest.ORIENTATIONS]
    assert {selftest.the_object(settings).axis for settings in chosen} == {0, 1, 2}
    assert {settings.patient_position[:2] for settings in chosen} == {"HF", "FF"}
    assert {settings.swap_phase for settings in chosen} == {True, False}
    assert {settings.interleaved for settings in chosen} == {True, False}
    assert all(abs(settings.pixel_mm[0] - settings.pixel_mm[1]) > 0.1 for settings in chosen[:3])
    volumes = [selftest.settings_of(name) for name in selftest.VOLUMES]
    assert {selftest.the_object(settings).axis for settings in volumes} == {0, 1, 2}
    assert {settings.partitions % 2 for settings in volumes} == {0, 1}
    assert any(settings.encoded_partitions > settings.partitions for settings in volumes)


def test_both_files_say_the_same_as_arithmetic_on_their_tags(measured):
    """No function of the package: the tags of the files, the standard's equation, and the simulated directions."""
    folder, _ = measured
    for name in selftest.ORIENTATIONS:
        settings = selftest.settings_of(name)
        read, phase, through = settings.directions()
        here = selftest.folder_of(folder, name)
        files = [pydicom.dcmread(path) for path in sorted((here / "dicom").rglob("*.dcm"))]
        dataset = ismrmrd.Dataset(str(here / "images.h5"), "dataset", create_if_needed=False)
        images = [dataset.read_image("image_1", index) for index in range(dataset.number_of_images("image_1"))]
        dataset.close()
        assert len(files) == len(images) == settings.n_slices
        assert {str(file.PatientPosition) for file in files} == {settings.patient_position}
        normal = np.cross(files[0].ImageOrientationPatient[:3], files[0].ImageOrientationPatient[3:])
        places = [np.array(file.ImagePositionPatient, float) @ normal for file in files]
        assert np.diff(places) == pytest.approx(settings.slice_thickness_mm, abs=1e-3)  # in order along the normal
        by_slice = {image.getHead().slice: image for image in images}
        for number, file in enumerate(files):
            index = number if normal @ through > 0 else settings.n_slices - 1 - number
            image, position = by_slice[index], settings.slice_position(index)
            assert np.array_equal(file.pixel_array, np.rint(image.data[0, 0] / float(file.RescaleSlope)))
            row, column = 11, 30
            offset = (row - settings.rows // 2, column - settings.cols // 2)
            true = position + offset[0] * settings.pixel_mm[0] * phase + offset[1] * settings.pixel_mm[1] * read
            orientation = np.array(file.ImageOrientationPatient, float)
            spacing = [float(value) for value in file.PixelSpacing]
            found = np.array(file.ImagePositionPatient, float)
            found = found + row * spacing[0] * orientation[3:] + column * spacing[1] * orientation[:3]
            assert found == pytest.approx(true, abs=1e-3)
            meta, header = image.meta, image.getHead()
            along = np.array(meta["ImageRowDir"], float) * header.field_of_view[0] / image.data.shape[-1]
            down = np.array(meta["ImageColumnDir"], float) * header.field_of_view[1] / image.data.shape[-2]
            assert np.array(header.position[:]) + offset[0] * down + offset[1] * along == pytest.approx(true, abs=1e-3)


def test_an_independent_reader_agrees(measured):
    spatial = pytest.importorskip("highdicom.spatial", reason="highdicom is not installed: its reader is the oracle")
    folder, _ = measured
    for path in sorted(folder.rglob("IM0002.dcm")):
        file = pydicom.dcmread(path)
        reader = spatial.PixelToReferenceTransformer.for_image(file)
        assert reader(np.array([[30, 11]]))[0] == pytest.approx(plane_of_dicom(file).point(11, 30), abs=1e-6)


def test_dcm2niix_makes_the_same_of_the_dicom_files(measured, tmp_path):
    """Affines and voxels, in the same order: oblique, every main plane, feet first, odd sizes, swapped phase."""
    folder, _ = measured
    for here in sorted(path.parent for path in folder.glob("*/scan.h5")):
        found = dcm2niix(here / "dicom", tmp_path / here.name, "-x", "i")  # 3D scans are not turned round
        same(found[min(found)], nibabel.load(here / "nifti/01_reconstruction.nii.gz"))


@pytest.mark.parametrize("name", ["axial oblique", "volume, sagittal"])
@pytest.mark.parametrize("fault", ["half a voxel", "first corner", "mirrored", "transposed spacing", "slice order"])
def test_the_selftest_finds_the_usual_faults(measured, name, fault):
    folder, _ = measured
    images = selftest.dicom_images(selftest.folder_of(folder, name) / "dicom")
    broken = []
    for number, (plane, pixels) in enumerate(images):
        change = {}
        if fault == "half a voxel":
            change["first"] = plane.point(0.5, 0)
        elif fault == "first corner":
            change["first"] = plane.point(pixels.shape[0] // 2, pixels.shape[1] // 2)
        elif fault == "mirrored":
            pixels = pixels[:, ::-1]
        elif fault == "transposed spacing":
            change["spacing_mm"] = plane.spacing_mm[::-1]
        else:
            pixels = images[-1 - number][1]
        broken.append((dataclasses.replace(plane, **change), pixels))
    findings = selftest.compare(name, "DICOM", broken, selftest.settings_of(name))
    assert not all(finding.passed for finding in findings)


def test_the_command_reports_and_fails_by_its_exit_code(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(selftest, "ORIENTATIONS", {"coronal": selftest.ORIENTATIONS["coronal"]})
    monkeypatch.setattr(selftest, "VOLUMES", {})
    monkeypatch.setattr(selftest, "TOLERANCE", 1e-6)
    monkeypatch.setattr(selftest, "_SHARED", {**selftest._SHARED, "n_slices": 3})
    assert main(["selftest", "--out", str(tmp_path), "--model", str(model)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL" in printed
    assert "markers within 1e-06 voxel" in printed


def test_the_selftest_refuses_a_device_and_slices_that_are_not_the_models(model, tmp_path, capsys, monkeypatch):
    from dpmrecon.tools import selftest

    arguments = ["selftest", "--out", str(tmp_path), "--model", str(model)]
    assert main([*arguments, "--device", "cuda:99"]) == 2
    assert "cuda:99" in capsys.readouterr().err
    monkeypatch.setattr(selftest, "ORIENTATIONS", {"coronal": selftest.ORIENTATIONS["coronal"]})
    monkeypatch.setattr(selftest, "_SHARED", {**selftest._SHARED, "n_slices": 1, "n_coils": 2})
    monkeypatch.setattr("dpmrecon.replay.replay", lambda *given, **more: SimpleNamespace(exit_code=3))
    assert main(arguments) == 2
    assert "coronal: not every slice came out of the model" in capsys.readouterr().err
