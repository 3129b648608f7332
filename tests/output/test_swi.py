"""SWI: the filter, the mask, the projection, whose sign is whose, and the series of 3D and 2D scans."""

import dataclasses
from pathlib import Path

import ismrmrd
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from dpmrecon.dicom.viewer import read_series
from dpmrecon.dicom.write import DicomOptions, write_dicom
from dpmrecon.mrd.geometry import plane_of_dicom
from dpmrecon.output import swi
from dpmrecon.output.images_file import store
from dpmrecon.output.mrd_images import mrd_images
from dpmrecon.output.nifti import write_nifti
from dpmrecon.output.swi import (
    FILTERED_PHASE,
    MINIP,
    SWI,
    SwiSeries,
    filtered_phase,
    minimum_projection,
    phase_mask,
    sign_of_veins,
    slab_count,
    weighted,
)
from scipy import ndimage

from support.dicom import unexplained
from support.edited import edited
from support.nifti import dcm2niix, same
from support.paths import shared
from support.results import images, replay, report
from support.volume_images import PROVENANCE, points_of, reconstructed, volume_header, volume_line, volume_xml

SHAPE, FOV = (11, 21, 16), (22.0, 42.0, 48.0)  # mm: partitions of 2
PLACE = {"read_dir": (1.0, 0.0, 0.0), "phase_dir": (0.0, 1.0, 0.0), "slice_dir": (0.0, 0.0, 1.0)}


def smooth_object(shape=(3, 45, 38)) -> np.ndarray:
    """An ellipsoid's magnitude, blurred, float32."""
    places = np.meshgrid(*[np.linspace(-1.3, 1.3, size) for size in shape[-2:]], indexing="ij")
    disk = ndimage.gaussian_filter((places[0] ** 2 + places[1] ** 2 < 1).astype(float), 1.5)
    return np.broadcast_to(disk, shape).astype(np.float32)


def test_the_filter_takes_smooth_phase_off_and_leaves_that_of_veins():
    magnitude = smooth_object()
    rows, cols = np.meshgrid(np.arange(45) - 22, np.arange(38) - 19, indexing="ij")
    smooth = np.exp(1j * (0.02 * rows - 0.03 * cols + 1e-3 * rows**2 + 2.0)).astype(np.complex64)
    inside = magnitude[0] > 0.9 * magnitude.max()
    widths = (round(45 / 4), round(38 / 4))
    background = filtered_phase(torch.tensor(magnitude * smooth), widths).numpy()
    assert np.abs(background[:, inside]).max() < 0.35  # .9 radians of it were there
    vein = np.zeros((45, 38))
    vein[22, 15:24] = -1.0
    found = filtered_phase(torch.tensor(magnitude * smooth * np.exp(1j * vein).astype(np.complex64)), widths).numpy()
    difference = (found - background)[0]
    assert difference[22, 19] == pytest.approx(-0.9, abs=0.15)
    assert np.abs(difference[inside & (np.abs(rows) > 6)]).max() < 0.1


def test_the_filter_knows_no_constant_phase_and_no_scale():
    image = torch.randn(2, 13, 18, dtype=torch.complex64, generator=torch.Generator().manual_seed(4))
    one, other = (filtered_phase(factor * image, (5, 6)) for factor in (1, -3.5j))
    assert torch.polar(torch.ones_like(one), one - other).real.min() > 1 - 1e-5


def test_a_real_image_has_no_filtered_phase():
    blob = torch.tensor(smooth_object((1, 24, 31)), dtype=torch.complex64) + 0.1
    assert filtered_phase(blob, (6, 8)).abs().max() < 1e-5
    assert filtered_phase(-0.0 * blob, (6, 8)).abs().max() == 0


def test_the_mask_is_linear_on_the_side_of_veins():
    phase = np.array([-np.pi, -np.pi / 2, -0.1, 0, 0.1, np.pi / 2, np.pi], np.float32)
    negative = [0, 0.5, 1 - 0.1 / np.pi, 1, 1, 1, 1]
    assert phase_mask(phase, -1) == pytest.approx(negative, abs=1e-6)
    assert phase_mask(-phase, 1) == pytest.approx(negative, abs=1e-6)
    assert weighted(np.full(7, 8.0), phase, -1)[:2] == pytest.approx([0, 8 / 16], abs=1e-6)


def test_the_projection_slides():
    stack = np.random.default_rng(1).normal(size=(7, 3, 4))
    found = minimum_projection(stack, 3)
    assert found.shape == (5, 3, 4)
    for number in range(5):
        assert np.array_equal(found[number], stack[number : number + 3].min(0))
    assert np.array_equal(minimum_projection(stack, 7), stack.min(0)[None])
    assert [slab_count(*given) for given in ((2.0, 88), (1.5, 88), (5.0, 20), (30.0, 20), (2.0, 5))] == [8, 11, 3, 2, 5]


@pytest.mark.parametrize(
    ("vendor", "conjugated", "sign", "words"),
    [
        ("SIEMENS", True, -1, "veins negative, by the vendor Siemens"),
        ("Siemens Healthineers", False, 1, "veins positive, by the vendor Siemens"),  # as a Gadgetron takes it
        ("Philips", False, 1, "veins positive, by the vendor Philips"),
        ("GE MEDICAL SYSTEMS", False, -1, "veins negative, by the vendor GE"),
        ("GE MEDICAL SYSTEMS", True, 1, "veins positive, by the vendor GE"),
        ("SIMULATED", False, -1, "veins negative, by the vendor simulate"),
        ("Georgetown", False, -1, "veins negative, vendor not known"),
        ("Georgetown", True, -1, "veins negative, vendor not known"),
    ],
)
def test_the_sign_is_the_vendors(vendor, conjugated, sign, words):
    header = volume_header(vendor=vendor)
    found, chosen, remark = sign_of_veins("auto", header, conjugated=conjugated)
    assert (found, chosen) == (sign, words)
    assert (remark is None) == ("not known" not in words)
    assert sign_of_veins("positive", header, conjugated=conjugated) == (1, "veins positive, as asked", None)


def with_contrast(contrast):
    return dataclasses.replace(PROVENANCE, contrast=contrast)


def run(items, header, line, asked="auto", contrast="swi", outputs=("magnitude",)):
    """(images by series, notes) of a scan."""
    provenance, put, notes = with_contrast(contrast), [], []
    writer = SwiSeries(header, provenance, asked, put.append, notes.append)
    for item, found in mrd_images(items, header, {item.key: line for item in items}, provenance, outputs):
        put += found
        writer.add(item, found)
    writer.close(None)
    series: dict[int, list[ismrmrd.Image]] = {}
    for image in put:
        series.setdefault(image.image_series_index, []).append(image)
    return series, notes


def vein_scan(contrast=0):
    """(magnitude, phase) of a volume with a bright plane-parallel vein of phase -1.5 in partition 5."""
    phase = np.zeros(SHAPE, np.float32)
    phase[5, 10, 5:12] = -1.5
    return reconstructed(np.full(SHAPE, 100, np.float32), contrast, phase, scale=100.0)


def test_a_volume_has_its_series_each_at_its_place(tmp_path):
    xml = volume_xml(SHAPE, fov=FOV, protocol="SWI", vendor="ACME")
    header, line = volume_header(matrix=SHAPE, fov=FOV, protocol="SWI", vendor="ACME"), volume_line(**PLACE)
    series, notes = run([vein_scan()], header, line)
    assert notes == [
        "the vendor is not known: SWI takes the phase of veins as negative, --vein-phase positive is the other"
    ]
    assert {number: [image.data.shape for image in found] for number, found in series.items()} == {
        1: [(1, 11, 21, 16)],
        FILTERED_PHASE: [(1, 11, 21, 16)],
        SWI: [(1, 11, 21, 16)],
        MINIP: [(1, 4, 21, 16)],  # 8 of 2 mm
    }
    magnitude, phase, dark, lowest = (series[number][0] for number in (1, FILTERED_PHASE, SWI, MINIP))
    assert phase.image_type == ismrmrd.IMTYPE_PHASE
    assert dark.data == pytest.approx(weighted(magnitude.data, phase.data, -1), rel=1e-5)
    assert dark.data[0, 5, 10, 8] < 0.25 * magnitude.data[0, 5, 10, 8]
    assert lowest.data[0] == pytest.approx(minimum_projection(dark.data[0], 8))
    assert all(
        image.meta["dpmrecon_vein_phase"] == "veins negative, vendor not known" for image in (phase, dark, lowest)
    )
    path = tmp_path / "images.h5"
    dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
    dataset.write_xml_header(xml)
    for image in (image for found in series.values() for image in found):
        store(dataset, image)
    dataset.close()
    write_dicom(path, tmp_path / "dicom", "0" * 64, {}, DicomOptions(reformat="coronal"))
    files = by_number(tmp_path)
    assert {number: len(found) for number, found in files.items()} == EXPECTED
    types = {number: list(found[0].ImageType) for number, found in files.items()}
    assert types[FILTERED_PHASE] == ["DERIVED", "PRIMARY", "P", "SWI", "DPM_HPASS"]
    assert types[SWI] == ["DERIVED", "PRIMARY", "M", "SWI", "DPM_SWI"]
    assert types[MINIP] == ["DERIVED", "PRIMARY", "MNIP", "SWI", "DPM_MNIP"]
    assert types[50 + SWI] == ["DERIVED", "SECONDARY", "MPR", "SWI", "DPM_SWI"]
    assert files[FILTERED_PHASE][0].RescaleType == "mrad"
    centres = points_of(line, SHAPE, FOV)[:, 0, 0]
    for number, file in enumerate(files[MINIP]):
        assert plane_of_dicom(file).first == pytest.approx(centres[number : number + 8].mean(0), abs=1e-3)
        assert (file.SliceThickness, file.SpacingBetweenSlices) == (16, 2)
    for path in (found[0].filename for found in files.values()):
        assert [line for line in unexplained(Path(path)) if "DICOMDIR" not in line] == []
    assert write_nifti(tmp_path / "images.h5", tmp_path / "nifti") == []
    theirs = dcm2niix(tmp_path / "dicom" / "10_DPM_MNIP", tmp_path / "theirs", "-x", "i")[MINIP]
    same(theirs, nibabel.load(tmp_path / "nifti" / "10_minip.nii.gz"))


# a projection is thick: it has its own plane alone
EXPECTED = {1: 11, FILTERED_PHASE: 11, SWI: 11, MINIP: 4, 51: 21, 50 + FILTERED_PHASE: 21, 50 + SWI: 21}


def by_number(folder: Path) -> dict[int, list[pydicom.Dataset]]:
    return {int(files[0].SeriesNumber): files for files in read_series(folder / "dicom")}


def test_another_sign_is_another_image_and_another_series(tmp_path):
    header, line = volume_header(matrix=SHAPE, fov=FOV, protocol="SWI"), volume_line(**PLACE)
    found, uids = {}, {}
    for asked in ("negative", "positive"):
        series, notes = run([vein_scan()], header, line, asked)
        assert notes == []
        found[asked] = series[SWI][0].data[0, 5, 10, 8] / series[1][0].data[0, 5, 10, 8]
        folder = tmp_path / asked
        folder.mkdir()
        dataset = ismrmrd.Dataset(str(folder / "images.h5"), "dataset", create_if_needed=True)
        dataset.write_xml_header(volume_xml(SHAPE, fov=FOV))
        for number in (1, SWI):
            store(dataset, series[number][0])
        dataset.close()
        write_dicom(folder / "images.h5", folder / "dicom", "0" * 64, {}, DicomOptions())
        uids[asked] = {number: files[0].SeriesInstanceUID for number, files in by_number(folder).items()}
    assert found["negative"] < 0.25
    assert found["positive"] == pytest.approx(1)
    assert uids["negative"][1] == uids["positive"][1]
    assert uids["negative"][SWI] != uids["positive"][SWI]


def test_each_echo_has_its_series_and_other_contrasts_have_none():
    header = volume_header(matrix=SHAPE, fov=FOV, contrasts=2, echo_times=(10, 20), vendor="Philips")
    items = [vein_scan(number) for number in (0, 1)]
    series, notes = run(items, header, volume_line(**PLACE))
    assert notes == []
    for number in (1, FILTERED_PHASE, SWI, MINIP):
        assert [image.contrast for image in series[number]] == [0, 1]
    assert list(run(items, header, volume_line(**PLACE), contrast="t1")[0]) == [1]
    series, notes = run(items, header, volume_line(**PLACE), outputs=("phase",))
    assert list(series) == [6]
    assert notes == ["no SWI: there are no magnitude images"]


def test_zero_filling_does_not_widen_the_filter():
    narrow = swi._widths(volume_header(matrix=SHAPE, fov=FOV))
    assert narrow == swi._widths(volume_header(matrix=SHAPE, recon=(22, 42, 32), fov=FOV)) == (5, 4)


def test_a_projection_that_finds_no_room_is_a_line():
    header, line, notes = volume_header(matrix=SHAPE, fov=FOV), volume_line(**PLACE), []

    def full(image):
        raise swi.BadInputError("cannot write to out (disk full)")

    writer = SwiSeries(header, with_contrast("swi"), "negative", full, notes.append)
    item = vein_scan()
    for _ in range(2):
        writer.add(item, next(iter(mrd_images([item], header, {item.key: line}, PROVENANCE)))[1])
    writer.close(None)
    assert notes == ["no more SWI: cannot write to out (disk full)"]


SCAN = {"matrix": (48, 63), "n_slices": 5, "acceleration": 2}


@pytest.fixture(scope="module")
def result(simulated_scan, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("swi")
    assert replay(simulated_scan(**SCAN), out, model, "--contrast", "swi", "--samples", "1", "--nifti") == 0
    return out


def test_slices_are_projected_at_the_end_of_the_scan(result, tmp_path):
    found = {number: images(result, number) for number in (1, FILTERED_PHASE, SWI, MINIP)}
    assert {number: len(series) for number, series in found.items()} == {1: 5, FILTERED_PHASE: 5, SWI: 5, MINIP: 3}
    slices = {image.slice: image for image in found[SWI]}
    for magnitude in found[1]:
        phase = next(image for image in found[FILTERED_PHASE] if image.slice == magnitude.slice)
        assert slices[magnitude.slice].data == pytest.approx(weighted(magnitude.data, phase.data, -1), rel=1e-5)
    stack = np.stack([slices[number].data[0, 0] for number in range(5)])  # 3 of 5 mm are about 16
    for number, image in enumerate(found[MINIP]):
        part = [slices[number + step] for step in range(3)]
        assert image.data[0, 0] == pytest.approx(stack[number : number + 3].min(0))
        assert list(image.position) == pytest.approx(np.mean([list(one.position) for one in part], 0), abs=1e-4)
        assert image.field_of_view[2] == pytest.approx(2 * 5 + 4, abs=1e-3)
    files = by_number(result)
    assert [float(file.SpacingBetweenSlices) for file in files[MINIP]] == pytest.approx([5, 5, 5], abs=1e-3)
    for path in (found[0].filename for found in files.values()):
        assert unexplained(Path(path)) == []
    assert report(result)["notes"] == []
    assert {image.meta["dpmrecon_vein_phase"] for image in found[SWI]} == {"veins negative, by the vendor simulate"}
    theirs = dcm2niix(result / "dicom" / "10_DPM_MNIP", tmp_path / "theirs")[MINIP]
    same(theirs, nibabel.load(result / "nifti" / "10_minip.nii.gz"))


def test_a_projection_over_a_conventional_slice_says_so(result):
    stack = {image.slice: image for image in images(result, SWI)}
    stack[1].attribute_string = ismrmrd.Meta({**stack[1].meta, "dpmrecon_fallback": "it failed"}).serialize()
    writer = SwiSeries(volume_header(matrix=SHAPE, fov=FOV), with_contrast("swi"), "negative", print, print)
    for lowest, there in zip(writer._of_slices(list(stack.values())), (True, True, False), strict=True):
        for name in ("ImageComments", "GADGETRON_ImageComment"):
            assert ("; CG-SENSE FALLBACK: it failed" in lowest.meta[name]) == there
        assert ("dpmrecon_fallback" in lowest.meta) == there


def test_slices_with_a_gap_have_no_projection(simulated_scan, model, tmp_path):
    def cut(number, line):
        noise = line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        return None if not noise and line.idx.slice == 2 and line.idx.kspace_encode_step_1 > 10 else line

    scan = edited(simulated_scan(**SCAN), tmp_path, cut)
    assert replay(scan, tmp_path / "out", model, "--contrast", "swi", "--samples", "1") == 4
    assert len(images(tmp_path / "out", SWI)) == 4
    notes = report(tmp_path / "out")["notes"]
    assert "no minimum-intensity projection: the 4 slices do not lie evenly in one stack" in notes
    with pytest.raises(LookupError):
        images(tmp_path / "out", MINIP)


def test_a_vendors_conjugated_files_give_the_same_series(simulated_scan, model, tmp_path):
    settings = {"matrix": (64, 56), "n_slices": 2, "contrast": "swi", "n_coils": 4, "acceleration": 1}
    found = {}
    for vendor in ("SIMULATED", "SIEMENS"):
        out = tmp_path / vendor
        assert replay(simulated_scan(**settings, vendor=vendor), out, model, "--samples", "1") == 0
        found[vendor] = [image for number in (1, SWI, MINIP) for image in images(out, number)]
    for one, other in zip(*found.values(), strict=True):
        assert other.data == pytest.approx(one.data, rel=1e-3, abs=0.5)
    assert {image.meta["dpmrecon_vein_phase"] for image in found["SIEMENS"][2:]} == {
        "veins negative, by the vendor Siemens"
    }


@pytest.mark.parametrize("name", ["CLEARSWI", "ROMEO"])
def test_measured_gradient_echoes_have_darker_veins_and_no_wraps(name):
    """7 T, 3 echoes. Veins: the voxels of the last echo's magnitude that are far below their surroundings."""
    magnitude = nibabel.load(shared(f"images/gre_complex/{name}_Mag.nii")).get_fdata()
    phase = nibabel.load(shared(f"images/gre_complex/{name}_Phase.nii")).get_fdata() / 0.0036743774 * np.pi
    echoes = (magnitude * np.exp(1j * phase)).transpose(3, 2, 1, 0).astype(np.complex64)  # slices, rows, columns
    widths = tuple(round(size / 4) for size in echoes.shape[-2:])
    inner = np.zeros(echoes.shape[1:], bool)
    inner[:, 3:-3, 3:-3] = True  # a crop's edge is a step
    before = after = 0
    for echo in echoes:
        found = filtered_phase(torch.tensor(echo), widths).numpy()
        size = np.abs(echo)
        inside = inner & (size > 0.2 * np.percentile(size, 99))
        before, after = before + wraps(np.angle(echo), inside), after + wraps(found, inside)
        surround = ndimage.gaussian_filter(size, (0, 3, 3))
        veins, rest = inside & (size < 0.75 * surround), inside & (size > 0.9 * surround)
        dark = weighted(size, found, 1)  # as it rises with the field
        plain, more = (1 - values[veins].mean() / values[rest].mean() for values in (size, dark))
        print(f"{name}: contrast of veins {plain:.3f} in the magnitude, {more:.3f} in SWI")
        assert more > plain + 0.02
    print(f"{name}: {before} wraps of the phase, {after} of the filtered one")
    assert before > 900
    assert after <= before // 1000  # about two voxels without signal


def wraps(phase: np.ndarray, inside: np.ndarray) -> int:
    """Neighbours in a row or a column, both inside, whose phase differs by more than half a turn."""
    steps = [np.abs(np.diff(phase, axis=axis)) > np.pi for axis in (1, 2)]
    both = [inside[:, 1:] & inside[:, :-1], inside[:, :, 1:] & inside[:, :, :-1]]
    return sum(int((step & pair).sum()) for step, pair in zip(steps, both))
