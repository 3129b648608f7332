"""Phase and complex images: what `output` asks for, in MRD, in DICOM and in whole numbers."""

import math

import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.cli import main
from dpmrecon.dicom.viewer import read_series, values
from dpmrecon.dicom.write import DicomOptions
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.options import Options, from_pairs
from dpmrecon.output import folder
from dpmrecon.output.images_file import Outputs
from dpmrecon.output.mrd_images import BRIGHT, mrd_images
from dpmrecon.output.whole_numbers import FIRST_MRAD, MRAD_PER_STEP, SpreadScale, phase_steps, to_uint16
from dpmrecon.recon.prepare import with_coil_maps
from dpmrecon.recon.provenance import Provenance
from dpmrecon.recon.types import Reconstruction
from dpmrecon.results import Wanted
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.slices import coil_maps, object_phase, slice_points

from support.results import images, replay, report
from support.volume_images import volume_header

SCAN = {"matrix": (48, 64), "n_slices": 2}
ALL = "magnitude,phase,complex"
TURN = 2 * math.pi


@pytest.fixture(scope="module")
def result(simulated_scan, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("complex")
    assert replay(simulated_scan(**SCAN), out, model, "--output", ALL) == 0
    return out


def turned(radians) -> np.ndarray:
    """The nearest angle to 0."""
    return np.angle(np.exp(1j * np.asarray(radians, float)))


def test_complex_is_the_magnitude_with_its_phase(result):
    kinds = {1: (np.float32, ismrmrd.IMTYPE_MAGNITUDE), 6: (np.float32, ismrmrd.IMTYPE_PHASE)}
    kinds[7] = (np.complex64, ismrmrd.IMTYPE_COMPLEX)
    found = {number: images(result, number) for number in kinds}
    for number, (dtype, kind) in kinds.items():
        assert len(found[number]) == 2
        for image in found[number]:
            assert (image.data.dtype, image.getHead().image_type) == (dtype, kind)
            assert "RESEARCH" in image.meta["SeriesDescription"]
    for magnitude, phase, whole in zip(*found.values()):
        assert magnitude.getHead().slice == phase.getHead().slice == whole.getHead().slice
        assert np.abs(phase.data).max() <= np.float32(math.pi)
        error = np.abs(whole.data - magnitude.data * np.exp(1j * phase.data)).max()
        assert error < 1e-6 * magnitude.data.max()
        assert phase.data.std() > 0.1
        assert magnitude.meta["RescaleSlope"] == whole.meta["RescaleSlope"]
        assert (phase.meta["RescaleSlope"], phase.meta["RescaleType"]) == ("1000", "mrad")
        assert phase.meta["ImageType"] == "DERIVED\\PRIMARY\\P\\DPM_phase"


def test_the_magnitude_alone_is_the_default_and_does_not_change(simulated_scan, model, result, tmp_path):
    assert replay(simulated_scan(**SCAN), tmp_path, model) == 0
    for number in (1, 2):
        for image, other in zip(images(tmp_path, number), images(result, number)):
            assert np.array_equal(image.data, other.data)
            assert image.attribute_string == other.attribute_string
    for number in (6, 7):
        with pytest.raises(LookupError):
            images(tmp_path, number)
    assert uids(tmp_path) < uids(result)


def uids(out) -> set[str]:
    return {file.SOPInstanceUID for files in read_series(out / "dicom") for file in files}


def test_the_phase_of_one_coil_is_that_of_the_simulated_object(simulated_scan, model, tmp_path):
    """No other coil has a say, so that what was taken off as smooth phase must all be back."""
    scan = {**SCAN, "n_coils": 1, "acceleration": 1, "noise": 0.002, "noise_correlation": 0.0}
    path = simulated_scan(**scan)
    assert replay(path, tmp_path, model, "--output", ALL) == 0
    with open_scan(path) as opened:
        (first, *_) = with_coil_maps(slices(opened.acquisitions(), opened.header), torch.device("cpu"))
    assert first.phase.angle().std() > 0.3  # there is something to put back
    settings = SimulationSettings(**SCAN)
    for image in images(tmp_path, 6):
        number = image.getHead().slice
        points = slice_points(settings, number, 1, 1, 0.0)
        true = np.angle(coil_maps(points, 1)[0] * object_phase(points, 0))
        magnitude = next(other for other in images(tmp_path, 1) if other.getHead().slice == number).data[0, 0]
        inside = magnitude > 0.5 * np.percentile(magnitude, 99)
        difference = (image.data[0, 0] - true)[inside]
        difference = turned(difference - np.angle(np.exp(1j * difference).mean()))  # the receiver's own, a constant
        assert np.abs(turned(true[inside] - np.angle(np.exp(1j * true[inside]).mean()))).std() > 0.3
        assert np.std(difference) < 0.05


def test_complex_images_reach_another_matrix_before_their_phase_is_taken(simulated_scan):
    with open_scan(simulated_scan(**SCAN)) as opened:
        heads, header = {}, opened.header
        mapped = list(with_coil_maps(slices(opened.acquisitions(), header, heads), torch.device("cpu")))
    header.encoding[0].reconSpace.matrixSize.y, header.encoding[0].reconSpace.matrixSize.x = 95, 127
    stream = [Reconstruction(item, item.conventional, None, None, 1.0) for item in mapped]
    for _, (magnitude, phase, whole) in mrd_images(stream, header, heads, PROVENANCE, tuple(ALL.split(","))):
        assert magnitude.data.shape == phase.data.shape == whole.data.shape == (1, 1, 95, 127)
        assert np.abs(phase.data - np.angle(whole.data)).max() < 1e-6
        # with the smooth phase the interpolation is a little another one: a few parts in a hundred
        difference = np.abs(whole.data) - magnitude.data
        assert np.linalg.norm(difference) < 0.04 * np.linalg.norm(magnitude.data)


PROVENANCE = Provenance("1", "tiny", "c0ffee", None, "prox", "fast", None, "given", 2, 0, None, False)


def test_dicom_phase_is_in_mrad(result):
    (files,) = [files for files in read_series(result / "dicom") if files[0].SeriesNumber == 6]
    assert {file.SeriesNumber for files in read_series(result / "dicom") for file in files} == {1, 2, 6}
    true = {image.getHead().slice: image.data[0, 0] for image in images(result, 6)}
    assert len(files) == len(true) == 2
    for number, file in enumerate(files):
        assert list(file.ImageType) == ["DERIVED", "PRIMARY", "P", "DPM_PHASE"]
        assert (file.RescaleType, file.PixelRepresentation) == ("mrad", 0)
        assert file.pixel_array.max() < 4096
        assert np.abs(turned(values(file) / 1000 - true[number])).max() <= 0.501 * TURN / 4096
        assert (float(file.WindowCenter), float(file.WindowWidth)) == (0, pytest.approx(2000 * math.pi))
        (mapping,) = file.RealWorldValueMappingSequence
        assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "mrad"
        mapped = file.pixel_array * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept
        assert mapped == pytest.approx(values(file), abs=1e-6)


def test_phase_alone(simulated_scan, model, tmp_path, capsys):
    dwi = simulated_scan(matrix=(32, 40), n_slices=1, contrast="dwi", b_values=(0.0, 1000.0), n_coils=4)
    assert replay(dwi, tmp_path / "out", model, "--output", "phase", "--samples", "1") == 0
    assert [len(files) for files in read_series(tmp_path / "out" / "dicom")] == [2]
    assert report(tmp_path / "out")["notes"] == ["no diffusion maps: there are no magnitude images"]
    assert main(["replay", str(dwi), "--out", str(tmp_path / "no"), "--output", "phase", "--conventional"]) == 2
    assert "the conventional image stands beside the magnitude" in capsys.readouterr().err


def test_output_is_checked():
    assert Options().outputs == Outputs().images == ("magnitude",)
    assert from_pairs({"output": "phase, complex"}).outputs == ("phase", "complex")
    valid = "valid ones are magnitude, phase, complex, or several of them with commas between"
    for text in ("phase,real", "", "phase,"):
        with pytest.raises(BadInputError, match=f"property 'output' is '{text}': {valid}"):
            from_pairs({"output": text})


def test_a_deadline_knows_how_many_files_are_to_come(monkeypatch):
    assert Outputs().files == 2
    assert Outputs(("magnitude", "phase", "complex"), conventional=True, nifti=True).files == 10
    plane, volume = volume_header(matrix=(1, 8, 6)), volume_header(matrix=(5, 8, 6))
    wanted = [Wanted(), Wanted(dicom=DicomOptions()), Wanted(dicom=DicomOptions(reformat="axial"))]
    assert [one.files(plane, "t1") for one in wanted] == [2, 2, 2]
    assert [one.files(volume, "t1") for one in wanted] == [10, 10, 20]
    assert [one.files(volume, "swi") for one in wanted] == [20, 20, 40]
    monkeypatch.setattr(folder, "write_preview", lambda *given: None)
    readings = iter([0.0, 1.0, 0.0, 1.0])
    monkeypatch.setattr(folder.time, "perf_counter", lambda: next(readings))
    plain, more = (folder.seconds_to_finish(8, truth=False, files=files) for files in (2, 10))
    assert more - plain == pytest.approx(8)


def test_a_turn_has_4096_steps():
    radians = np.array([-math.pi, -math.pi / 2, 0, math.pi / 2, math.pi - TURN / 4096, math.pi], np.float32)
    assert phase_steps(radians).tolist() == [0, 1024, 2048, 3072, 4095, 0]
    assert phase_steps(radians) * MRAD_PER_STEP + FIRST_MRAD == pytest.approx([*1000 * radians[:-1], -1000 * math.pi])


def test_phase_and_complex_in_whole_numbers(result):
    for image in images(result, 6):
        whole = to_uint16(image)
        mrad = whole.data * float(whole.meta["RescaleSlope"]) + float(whole.meta["RescaleIntercept"])
        assert whole.data.dtype == np.uint16
        assert np.abs(turned(mrad / 1000 - image.data)).max() <= 0.501 * TURN / 4096
        assert (whole.meta["WindowCenter"], whole.meta["GADGETRON_WindowWidth"]) == ("2048", "4096")
    (first, _) = images(result, 7)
    assert to_uint16(first) is first


def test_the_spread_has_a_scale_of_its_own(result):
    scaled = SpreadScale()
    factors = set()
    for image in images(result, 2):
        found = scaled(image)
        bright = np.percentile(image.data, 99)
        factor = float(image.meta["RescaleSlope"]) / float(found.meta["RescaleSlope"])
        factors.add(round(factor, 6))
        assert found.data == pytest.approx(image.data * factor, rel=1e-6)
        assert float(found.meta["GADGETRON_ScaleRatio"]) * float(found.meta["RescaleSlope"]) == pytest.approx(1)
        assert int(found.meta["WindowWidth"]) == round(float(np.percentile(found.data, 99.5)))
        assert len(np.unique(to_uint16(found).data)) > 5 * len(np.unique(to_uint16(image).data)) or bright >= BRIGHT
    assert len(factors) == 1
    (magnitude, _) = images(result, 1)
    assert scaled(magnitude) is magnitude


@pytest.mark.parametrize("bright", [0.0, 1e-6, 0.7, 9.99, 10.0, 333.0, 5000.0])
def test_the_spread_keeps_a_thousand_levels(result, bright):
    (image, _) = images(result, 2)
    image.data[:] = bright
    found = SpreadScale()(image)
    assert (BRIGHT <= found.data.max() <= 2.5 * BRIGHT * 1.0001) or bright == 0
