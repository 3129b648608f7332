"""nifti/: the volumes and affines that dcm2niix makes of our DICOM, what is no stack, and the scale."""

import json
import math
import shutil

import ismrmrd
import nibabel
import numpy as np
import pytest
from dpmrecon.cli import main
from dpmrecon.errors import BadInputError
from dpmrecon.output import images_file
from dpmrecon.output.names import Names
from dpmrecon.output.nifti import _beside, stack, write_nifti

from support.nifti import dcm2niix, same
from support.results import images, replay

SCAN = {"matrix": (48, 63), "n_slices": 3, "acceleration": 2}
DWI = {"matrix": (32, 40), "n_slices": 2, "contrast": "dwi", "b_values": (0.0, 1000.0), "n_coils": 4, "averages": 2}
ALL = ("--output", "magnitude,phase,complex", "--conventional", "--nifti")


@pytest.fixture(scope="module")
def result(simulated_scan, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("nifti")
    assert replay(simulated_scan(**SCAN), out, model, *ALL) == 0
    return out


@pytest.fixture(scope="module")
def diffusion_result(simulated_scan, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("diffusion")
    assert replay(simulated_scan(**DWI), out, model, "--nifti") == 0
    return out


def files(out) -> dict[str, nibabel.Nifti1Image]:
    return {path.name.removesuffix(".nii.gz"): nibabel.load(path) for path in sorted((out / "nifti").glob("*.nii.gz"))}


def test_every_series_is_a_file_in_the_scale_of_images_h5(result):
    found = files(result)
    assert list(found) == ["01_reconstruction", "02_spread", "03_conventional", "06_phase", "07_complex"]
    for name, file in found.items():
        series = images(result, int(name[:2]))
        by_slice = [image.data[0, 0] for image in sorted(series, key=lambda image: image.getHead().slice)]
        voxels = np.asarray(file.dataobj)
        assert voxels.dtype == series[0].data.dtype
        assert voxels.shape == (63, 48, 3)
        stored = np.stack([pixels[::-1].T for pixels in by_slice], -1)
        assert np.array_equal(voxels, stored) or np.array_equal(voxels, stored[..., ::-1])
        assert file.header.get_xyzt_units()[0] == "mm"
        assert file.header["descrip"].item().startswith(b"RESEARCH")
        assert (file.header["qform_code"], file.header["sform_code"]) == (1, 1)


def test_a_voxel_lies_where_the_header_puts_it(result):
    """No function of the package: the MRD header, its convention of the centre, and the sign of two axes."""
    file = files(result)["01_reconstruction"]
    voxels = np.asarray(file.dataobj)
    for image in images(result, 1):
        head, pixels = image.getHead(), image.data[0, 0]
        row, column = 11, 30
        down = (row - 48 // 2) * head.field_of_view[1] / 48 * np.array(head.phase_dir[:])
        across = (column - 63 // 2) * head.field_of_view[0] / 63 * np.array(head.read_dir[:])
        point = (np.array(head.position[:]) + down + across) * (-1, -1, 1)
        voxel = np.linalg.inv(file.affine) @ [*point, 1]
        assert voxel[:3] == pytest.approx(np.rint(voxel[:3]), abs=1e-3)
        assert voxels[tuple(np.rint(voxel[:3]).astype(int))] == pixels[row, column]


def test_dcm2niix_makes_the_same_of_every_series(result, diffusion_result, tmp_path):
    for out in (result, diffusion_result):
        theirs, ours = dcm2niix(out / "dicom", tmp_path / out.name), files(out)
        ours.pop("07_complex", None)
        assert sorted(theirs) == [int(name[:2]) for name in ours]
        for name, file in ours.items():
            number = int(name[:2])
            if number == 6:
                turns = (theirs[number].get_fdata() / 1000 - file.get_fdata()) / (2 * math.pi)
                assert np.abs(turns - np.rint(turns)).max() < 0.501 / 4096
                assert np.abs(theirs[number].affine - file.affine).max() < 2e-4
            else:
                same(theirs[number], file)


def test_counters_are_the_fourth_dimension(diffusion_result):
    found = files(diffusion_result)
    shapes = {name: file.shape for name, file in found.items()}
    four, three = (40, 32, 2, 4), (40, 32, 2)
    maps = dict.fromkeys(("04_trace", "05_adc", "11_exponential"), three)
    assert shapes == {"01_reconstruction": four, "02_spread": four, **maps}
    # two averages of b = 0 and of b = 1000, in the order of DICOM's instances
    bright = np.asarray(found["01_reconstruction"].dataobj).mean((0, 1, 2))
    counters = ["contrast", "average"]
    series = images(diffusion_result, 1)
    expected: dict[tuple, list] = {}
    for image in series:
        expected.setdefault(tuple(getattr(image.getHead(), name) for name in counters), []).append(image.data.mean())
    assert bright == pytest.approx([np.mean(expected[key]) for key in sorted(expected)], rel=1e-5)


def test_each_volume_is_named(diffusion_result, result):
    """In the words of the screen."""
    told = json.loads((diffusion_result / "nifti" / "01_reconstruction.json").read_text())["Volumes"]
    assert told == [f"contrast {contrast}, average {average}" for contrast in (0, 1) for average in (0, 1)]
    assert not (diffusion_result / "nifti" / "05_adc.json").exists()
    assert not [path for path in (result / "nifti").iterdir() if not path.name.endswith(".nii.gz")]


@pytest.mark.parametrize("vendor", ["SIMULATED", "SIEMENS", ""])
def test_gradients_are_those_that_dcm2niix_finds_in_our_dicom(simulated_epi, diffusion_result, model, tmp_path, vendor):
    """Of tilted slices, for every series: trace images have no direction, ADC has no b-value. Without a vendor: of
    averages and b-values whose direction is not known."""
    out = tmp_path / "out" if vendor else diffusion_result
    if vendor:
        scan = simulated_epi(b_values=(0.0, 500.0, 1000.0), n_slices=2)
        options = ("--set", f"acquisitionSystemInformation.systemVendor={vendor}", "--conjugate", "off")
        assert replay(scan, out, model, "--nifti", "--steps", "2", *options) == 0
    dcm2niix(out / "dicom", tmp_path / "theirs")
    ours = {f"{int(path.name[:2])}{path.suffix}": path for path in (out / "nifti").glob("*.bv*")}
    theirs = {path.name: path for path in (tmp_path / "theirs").glob("*.bv*")}
    assert sorted(ours) == sorted(theirs) and "1.bvec" in ours
    for name, path in ours.items():
        assert np.loadtxt(path) == pytest.approx(np.loadtxt(theirs[name]), abs=2e-5), name


def test_gradients_turn_with_the_affine(diffusion_result):
    """FSL's definition: b's direction in voxels, whose first axis is turned where the determinant is positive."""
    found = images(diffusion_result, 1)
    for image in found:
        image.meta = {**dict(image.meta), "DiffusionGradientOrientation": ["0.6", "0", "0.8"]}
    _, affine = stack(found)
    vectors = np.array([row.split() for row in _beside(found, affine, Names())["bvec"].splitlines()], float)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    assert np.linalg.det(axes) < 0
    assert axes @ vectors == pytest.approx(np.outer((-0.6, 0, 0.8), np.ones(4)), abs=1e-5)
    turned = np.array(
        [row.split() for row in _beside(found, affine @ np.diag([-1, 1, 1, 1]), Names())["bvec"].splitlines()], float
    )
    assert np.array_equal(turned, vectors)


def test_one_slice_is_as_thick_as_the_scan_says(simulated_scan, model, tmp_path):
    out = tmp_path / "out"
    assert replay(simulated_scan(matrix=(48, 64), n_slices=1), out, model, "--nifti", "--samples", "1") == 0
    (file,) = files(out).values()
    assert file.shape == (64, 48, 1)
    assert file.header.get_zooms()[2] == 4
    same(dcm2niix(out / "dicom", tmp_path / "theirs")[1], file)


def test_what_is_no_stack_is_refused(result, diffusion_result):
    three = images(result, 1)
    for image, gap in zip(three, (0, 0, 3.0)):
        head = image.getHead()
        step = np.array(head.slice_dir[:]) * gap
        head.position[:] = np.array(head.position[:]) + step * (1 if head.slice else -1)
        image.setHead(head)
    with pytest.raises(BadInputError, match="its 3 slices do not lie evenly in one stack"):
        stack(three)
    turned = images(result, 1)
    head = turned[1].getHead()
    for name in ("read_dir", "phase_dir"):  # by 180 degrees, about the same normal
        getattr(head, name)[:] = [-part for part in getattr(head, name)]
    turned[1].setHead(head)
    with pytest.raises(BadInputError, match="its 3 images are turned against one another"):
        stack(turned)
    with pytest.raises(BadInputError, match="7 images are not 4 volumes of 2 slices each"):
        stack(images(diffusion_result, 1)[:-1])


def test_a_series_that_is_no_stack_is_left_out_and_named(diffusion_result, tmp_path):
    dataset = ismrmrd.Dataset(str(tmp_path / "images.h5"), "dataset", create_if_needed=True)
    for image in [*images(diffusion_result, 1)[:-1], *images(diffusion_result, 5)]:
        dataset.append_image(f"image_{image.getHead().image_series_index}", image)
    dataset.close()
    complaints = write_nifti(tmp_path / "images.h5", tmp_path / "nifti")
    assert complaints == ["no NIfTI of reconstruction: 7 images are not 4 volumes of 2 slices each"]
    assert [path.name for path in (tmp_path / "nifti").iterdir()] == ["05_adc.nii.gz"]


def test_without_nibabel_nothing_is_begun(simulated_scan, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(images_file, "has_nibabel", lambda: False)
    assert replay(simulated_scan(**SCAN), tmp_path / "out", model, "--nifti") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "dpmrecon: NIfTI needs nibabel, which is not installed: pip install nibabel"
    )
    assert not (tmp_path / "out").exists()


def test_a_second_run_without_it_leaves_no_nifti(simulated_scan, result, model, tmp_path):
    shutil.copytree(result, tmp_path / "out")
    assert replay(simulated_scan(**SCAN), tmp_path / "out", model) == 0
    assert not (tmp_path / "out" / "nifti").exists()
    (tmp_path / "mine" / "nifti").mkdir(parents=True)
    scan = str(simulated_scan(**SCAN))
    assert main(["replay", scan, "--out", str(tmp_path / "mine"), "--model", str(model), "--device", "cpu"]) == 2
    assert (tmp_path / "mine" / "nifti").exists()


def test_a_disk_without_room_for_nifti_is_an_error(simulated_scan, model, tmp_path, monkeypatch, capsys):
    def full(file, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nibabel, "save", full)
    assert replay(simulated_scan(**SCAN), tmp_path, model, "--nifti") == 2
    assert "no NIfTI: cannot write to" in capsys.readouterr().err
    assert not (tmp_path / "nifti").exists() and list(tmp_path.rglob("*.dcm"))
