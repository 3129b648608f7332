"""b-value and direction in DICOM: the standard's attributes, and what dcm2niix makes of files of several makers."""

import shutil
import subprocess

import numpy as np
import pydicom
import pytest

from support.dicom import unexplained
from support.results import replay

SCAN = {"matrix": (24, 32), "n_slices": 3, "n_coils": 4, "contrast": "dwi", "b_values": (0.0, 700.0, 700.0, 700.0)}
DIRECTIONS = ((1, 0, 0), (0, 0.6, 0.8), (0.48, -0.64, 0.6))
STATED = "contrast:0," + ",".join(f"700@{x}/{y}/{z}" for x, y, z in DIRECTIONS)
VENDOR = "acquisitionSystemInformation.systemVendor="


@pytest.fixture(scope="module")
def dicom(simulated_scan, tiny_model, tmp_path_factory):
    """dicom(vendor) -> the folder of a tilted scan's reconstructions."""
    model = tiny_model(samples=1)
    made = {}

    def make(vendor):
        if vendor not in made:
            out = tmp_path_factory.mktemp("out")
            options = ["--b-values", STATED, "--set", VENDOR + vendor, "--conjugate", "off"]
            assert replay(simulated_scan(**SCAN), out, model, *options) == 0
            (made[vendor],) = (out / "dicom").glob("*01_DPM")
        return made[vendor]

    return make


def test_the_standards_attributes(dicom):
    files = [pydicom.dcmread(path) for path in sorted(dicom("SIMULATED").glob("*.dcm"))]
    assert [float(file.DiffusionBValue) for file in files] == [0] * 3 + [700] * 9
    assert [file.DiffusionDirectionality for file in files] == ["NONE"] * 3 + ["DIRECTIONAL"] * 9
    for file, direction in zip(files[3:], np.repeat(DIRECTIONS, 3, axis=0)):
        (item,) = file.DiffusionGradientDirectionSequence
        assert item.DiffusionGradientOrientation == pytest.approx(direction, abs=1e-6)
        assert file.DiffusionGradientOrientation == item.DiffusionGradientOrientation
    assert "DiffusionGradientOrientation" not in files[0]
    assert not any(element.tag.is_private for element in files[3])


def test_siemens_and_ge_have_their_own_elements_too(dicom):
    file = pydicom.dcmread(sorted(dicom("SIEMENS").glob("*.dcm"))[3])
    block = file.private_block(0x0019, "SIEMENS MR HEADER")
    assert (int(block[0x0C].value), block[0x0D].value) == (700, "DIRECTIONAL")
    assert block[0x0E].value == pytest.approx(DIRECTIONS[0])
    file = pydicom.dcmread(sorted(dicom("GE MEDICAL SYSTEMS").glob("*.dcm"))[3])
    assert int(file.private_block(0x0043, "GEMS_PARM_01")[0x39].value[0]) == 700


@pytest.mark.parametrize("vendor", ["SIMULATED", "SIEMENS", "GE MEDICAL SYSTEMS"])
def test_dciodvfy_explains_them(dicom, vendor):
    assert unexplained(sorted(dicom(vendor).glob("*.dcm"))[3]) == []


def test_epi_is_echo_planar(simulated_epi, model, tmp_path):
    assert replay(simulated_epi(), tmp_path, model) == 0
    path = sorted((tmp_path / "dicom").rglob("*.dcm"))[0]
    assert pydicom.dcmread(path).ScanningSequence == "EP"
    assert unexplained(path) == []


def gradients(folder, target) -> tuple[list[float], np.ndarray]:
    """What dcm2niix writes: b-values and vectors (3, n)."""
    target.mkdir()
    subprocess.run(["dcm2niix", "-o", str(target), "-f", "dwi", str(folder)], check=True, capture_output=True)
    return np.loadtxt(target / "dwi.bval").tolist(), np.loadtxt(target / "dwi.bvec")


@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")
@pytest.mark.parametrize("vendor", ["SIMULATED", "SIEMENS", "Philips", "GE MEDICAL SYSTEMS", "Elsewhere"])
def test_dcm2niix_writes_b_values_and_vectors(dicom, tmp_path, vendor):
    file = pydicom.dcmread(sorted(dicom(vendor).glob("*.dcm"))[0])
    columns, rows = np.array(file.ImageOrientationPatient, float).reshape(2, 3)
    b_values, vectors = gradients(dicom(vendor), tmp_path / "nifti")
    assert b_values == [0, 700, 700, 700]
    # in the image's axes, its rows turned, as FSL has them
    axes = np.stack([columns, -rows, np.cross(columns, rows)])
    assert vectors[:, 1:] == pytest.approx(axes @ np.array(DIRECTIONS, float).T, abs=2e-3)
    assert not vectors[:, 0].any()
