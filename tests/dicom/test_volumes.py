"""DICOM and NIfTI of volumes: a file a partition at its place, other planes without interpolation, echoes."""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dpmrecon.dicom.viewer import read_series, values
from dpmrecon.dicom.write import DicomOptions, write_dicom
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.geometry import plane_of_dicom
from dpmrecon.output.nifti import write_nifti

from support.dicom import unexplained
from support.nifti import dcm2niix, same
from support.volume_images import points_of, reconstructed, volume_line, volume_xml, write_images

SHAPE, FOV = (5, 8, 6), (10.0, 24.0, 12.0)  # mm: partitions of 2, rows of 3, columns of 2
TILT = np.radians(4)
# acquisitions: read, phase and slice direction; the third turns the partitions round, the fourth is a little oblique
DIRECTIONS = {
    "sagittal": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "axial, feet first partition last": ((1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "axial, oblique": ((1, 0, 0), (0, np.cos(TILT), np.sin(TILT)), (0, -np.sin(TILT), np.cos(TILT))),
    "axial, read along y": ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
}
TURNED = ("sagittal", "axial, read along y")  # rows and columns are not as readers look at them


def line_of(name):
    read, phase, through = DIRECTIONS[name]
    return volume_line((2.0, -8.0, 5.0), read, phase, through)


def numbered(shape=SHAPE) -> np.ndarray:
    """Every voxel another value, whole numbers up to 1000."""
    return (1000 - 4 * np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)


def written(folder: Path, name="sagittal", xml=None, items=None, notes=None, **options) -> Path:
    items = items or [reconstructed(numbered(), scale=1000.0)]
    images = write_images(folder / "images.h5", xml or volume_xml(SHAPE, fov=FOV), line_of(name), items)
    note = notes.append if notes is not None else lambda text: None
    write_dicom(images, folder / "dicom", "0" * 64, {"seed": 0}, DicomOptions(**options), note)
    return folder


def by_number(folder: Path) -> dict[int, list[pydicom.Dataset]]:
    return {int(files[0].SeriesNumber): files for files in read_series(folder / "dicom")}


def assert_in_place(files: list[pydicom.Dataset], name: str) -> None:
    """Every voxel of the volume lies in the series once, where its header puts it, but for the rounding."""
    left = dict(zip(numbered().ravel(), points_of(line_of(name), SHAPE, FOV).reshape(-1, 3)))
    assert len(left) == np.prod(SHAPE)
    for file in files:
        plane, pixels = plane_of_dicom(file), values(file)
        for (row, column), value in np.ndenumerate(pixels):
            assert plane.point(row, column) == pytest.approx(left.pop(round(value)), abs=1e-3)
    assert not left


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_partition_is_a_file_at_its_place(tmp_path, name):
    ((number, files),) = by_number(written(tmp_path, name)).items()
    assert (number, len(files)) == (1, 5)
    assert_in_place(files, name)
    for instance, file in enumerate(files, 1):
        assert file.InstanceNumber == instance
        assert (file.MRAcquisitionType, file.SliceThickness, file.SpacingBetweenSlices) == ("3D", 2, 2)
        assert list(file.PixelSpacing) == [3, 2]
        assert (file.Rows, file.Columns) == (8, 6)
    steps = np.diff([float(file.SliceLocation) for file in files])
    assert steps == pytest.approx(np.full(4, 2.0), abs=1e-3)
    normals = {tuple(plane_of_dicom(file).normal.round(6)) for file in files}
    assert len(normals) == 1


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_other_planes_are_the_same_voxels_as_readers_look_at_them(tmp_path, name, plane):
    notes: list[str] = []
    found = by_number(written(tmp_path, name, reformat=plane, notes=notes))
    if name.startswith(plane) and name not in TURNED:
        assert list(found) == [1]
        assert notes == [f"no second {plane} series: the acquired one is {plane}, as readers look at it"]
        return
    assert list(found) == [1, 51]
    assert notes == []
    assert_in_place(found[51], name)
    for file in found[51]:
        orientation = np.array(file.ImageOrientationPatient, float)
        wanted = {"axial": (1, 0, 0, 0, 1, 0), "coronal": (1, 0, 0, 0, 0, -1), "sagittal": (0, 1, 0, 0, 0, -1)}
        assert orientation == pytest.approx(wanted[plane], abs=0.08)
        assert list(file.ImageType) == ["DERIVED", "SECONDARY", "MPR", "DPM"]
        assert file.SeriesDescription.endswith(plane.upper())
    sizes = {"axial": 2, "coronal": 1, "sagittal": 0}
    assert len({file.SliceLocation for file in found[51]}) == len(found[51])
    directions = np.abs(np.array(DIRECTIONS[name][::-1])).round()  # partitions, rows, columns
    assert len(found[51]) == SHAPE[int(np.argmax(directions[:, sizes[plane]]))]
    assert {float(file.SliceThickness) for file in found[51]} == {
        float(file.SpacingBetweenSlices) for file in found[51]
    }


def test_a_tilted_volume_is_not_interpolated_and_says_so(tmp_path):
    tilted = (0, np.cos(0.3), np.sin(0.3)), (0, -np.sin(0.3), np.cos(0.3))
    notes: list[str] = []
    DIRECTIONS["tilted"] = ((1, 0, 0), *tilted)
    try:
        found = by_number(written(tmp_path, "tilted", reformat="coronal", notes=notes))
        assert_in_place(found[51], "tilted")
    finally:
        del DIRECTIONS["tilted"]
    (note,) = notes
    assert note.startswith("the coronal series is tilted by 17 degrees")


def test_slices_of_a_2d_scan_are_not_reformatted(tmp_path):
    notes: list[str] = []
    item = reconstructed(numbered((1, 8, 6)), scale=1000.0)
    found = by_number(written(tmp_path, "axial, oblique", volume_xml((1, 8, 6)), [item], notes, reformat="coronal"))
    assert list(found) == [1]
    assert notes == ["no coronal series: the images are 2D slices, and volumes alone are reformatted"]
    assert found[1][0].MRAcquisitionType == "2D"
    with pytest.raises(BadInputError, match="plane 'oblique' is unknown: give axial, coronal, sagittal"):
        DicomOptions(reformat="oblique")


def test_a_second_series_does_not_change_the_first_and_uids_follow_from_the_options(tmp_path):
    plain, more, again = (tmp_path / name for name in ("plain", "more", "again"))
    for folder, options in ((plain, {}), (more, {"reformat": "axial"}), (again, {"reformat": "axial"})):
        folder.mkdir()
        written(folder, **options)
    files = {folder: sorted((folder / "dicom").rglob("*.dcm")) for folder in (plain, more, again)}
    bytes_of = {folder: [path.read_bytes() for path in paths] for folder, paths in files.items()}
    assert bytes_of[plain] == bytes_of[more][: len(files[plain])]
    assert bytes_of[more] == bytes_of[again]
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in files[more]]
    assert len(set(uids)) == len(uids) == 5 + 6
    series = {pydicom.dcmread(path).SeriesInstanceUID for path in files[more]}
    assert len(series) == 2


def test_oversampled_partitions_are_cut(tmp_path):
    xml = volume_xml((9, 8, 6), recon=SHAPE, fov=FOV, oversampled=9 / 5)
    inside = np.zeros((9, 8, 6), np.float32)
    inside[2:7] = numbered()
    (files,) = by_number(written(tmp_path, "sagittal", xml, [reconstructed(inside, scale=1000.0)])).values()
    assert_in_place(files, "sagittal")


def test_each_echo_has_its_time_and_its_slices(tmp_path):
    xml = volume_xml(SHAPE, fov=FOV, contrasts=3, echo_times=(4, 8, 12))
    items = [reconstructed(numbered() / (1 + number), number, scale=1000.0) for number in range(3)]
    (files,) = by_number(written(tmp_path, "sagittal", xml, items)).values()
    assert [file.EchoTime for file in files] == [4] * 5 + [8] * 5 + [12] * 5
    assert [file.EchoNumbers for file in files] == [1] * 5 + [2] * 5 + [3] * 5
    assert [file.InstanceNumber for file in files] == list(range(1, 16))
    for number in range(3):
        stack = np.stack([values(file) for file in files[5 * number : 5 * number + 5]])
        assert stack.max() == pytest.approx(1000 / (1 + number), abs=0.51)
    assert len({file.SOPInstanceUID for file in files}) == 15


@pytest.mark.parametrize("name", DIRECTIONS)
def test_nifti_agrees_with_dcm2niix_and_with_the_header(tmp_path, name):
    folder = written(tmp_path, name)
    assert write_nifti(folder / "images.h5", folder / "nifti") == []
    ours = nibabel.load(folder / "nifti/01_reconstruction.nii.gz")
    # else it turns the axes of 3D scans to be the head's; the voxels' places are the same
    same(dcm2niix(folder / "dicom", tmp_path / "theirs", "-x", "i")[1], ours)
    voxels = np.asarray(ours.dataobj)
    inverse = np.linalg.inv(ours.affine)
    for value, point in zip(numbered().ravel(), points_of(line_of(name), SHAPE, FOV).reshape(-1, 3)):
        place = inverse @ [*(point * (-1, -1, 1)), 1]
        assert place[:3] == pytest.approx(np.rint(place[:3]), abs=1e-3)
        assert voxels[tuple(np.rint(place[:3]).astype(int))] == pytest.approx(value, rel=1e-6)


def test_echoes_are_the_fourth_dimension_of_nifti(tmp_path):
    xml = volume_xml(SHAPE, fov=FOV, contrasts=2, echo_times=(4, 8))
    items = [reconstructed(numbered() / (1 + number), number, scale=1000.0) for number in range(2)]
    folder = written(tmp_path, "sagittal", xml, items)
    assert write_nifti(folder / "images.h5", folder / "nifti") == []
    voxels = np.asarray(nibabel.load(folder / "nifti/01_reconstruction.nii.gz").dataobj)
    assert voxels.shape == (6, 8, 5, 2)
    assert voxels[..., 0] == pytest.approx(2 * voxels[..., 1])


def test_dciodvfy_finds_nothing_that_is_not_explained(tmp_path):
    folder = written(tmp_path, reformat="axial")
    for path in sorted((folder / "dicom").rglob("*.dcm")):
        assert [line for line in unexplained(path) if "DICOMDIR" not in line] == []
