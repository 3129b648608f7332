"""Trace and ADC: the fit, where b-values come from, and a diffusion scan through the sampler."""

import re
import shutil
from types import SimpleNamespace

import h5py
import ismrmrd
import numpy as np
import pydicom
import pytest
from dpmrecon.cli import main
from dpmrecon.data import LostSlice, SliceKey
from dpmrecon.errors import BadInputError, UnsupportedScanError
from dpmrecon.mrd.averages import may_be_weighted
from dpmrecon.mrd.file import open_scan
from dpmrecon.output import images_file, maps
from dpmrecon.output.maps import adc_map, exponential_map, makes_trace, trace_of
from dpmrecon.output.mrd_images import RESEARCH, image_of
from dpmrecon.output.weighting import (
    NONE,
    Weighted,
    Weighting,
    nominal_b_values,
    weighting_from_text,
    weighting_of,
)
from dpmrecon.prior.checkpoint import DEFAULT
from dpmrecon.simulation.phantom import TISSUES, Phantom
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.simulate import simulate, truth_path
from dpmrecon.simulation.slices import slice_points

from support.edited import edited
from support.results import images, replay, report

SMALL = {"matrix": (48, 56), "n_slices": 2, "contrast": "dwi", "b_values": (0.0, 400.0, 1000.0)}


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(samples=1)


def test_the_fit_is_exact_without_noise():
    rng = np.random.default_rng(1)
    true = rng.uniform(0.2e-3, 3e-3, (7, 9))
    b = np.array([1000.0, 0.0, 250.0])
    signals = rng.uniform(50, 100, (7, 9)) * np.exp(-b[:, None, None] * true)
    assert adc_map(signals, b) == pytest.approx(true, rel=1e-5)
    assert adc_map(signals[:2], b[:2]) == pytest.approx(true, rel=1e-5)


def test_the_weights_match_the_noise():
    # at equal noise the logarithm of a weak signal is worth less: unweighted least squares is noisier here
    rng = np.random.default_rng(2)
    b = np.array([0.0, 1000.0, 3000.0])
    signals = np.abs(100 * np.exp(-b * 1e-3)[:, None, None] + 2 * rng.normal(size=(3, 60, 60)))
    weighted = adc_map(signals, b)
    plain = -np.polyfit(b, np.log(signals).reshape(3, -1), 1)[0]
    assert weighted.mean() == pytest.approx(1e-3, rel=0.02)
    assert weighted.std() < 0.7 * plain.std()


def test_directions_meet_in_their_geometric_mean_whose_adc_is_the_mean_of_theirs():
    rng = np.random.default_rng(3)
    each = rng.uniform(0.2e-3, 3e-3, (3, 7, 5))
    s0 = rng.uniform(50, 100, (7, 5))
    trace = trace_of(s0 * np.exp(-800 * each))
    assert trace == pytest.approx(s0 * np.exp(-800 * each.mean(0)))
    adc = adc_map(np.stack([s0, trace]), np.array([0.0, 800.0]))
    assert adc == pytest.approx(each.mean(0), rel=1e-5)
    assert exponential_map(adc, 800.0, np.ones((7, 5), bool)) == pytest.approx(trace / s0, rel=1e-5)


def test_a_voxel_without_one_direction_has_no_value():
    directions = np.full((3, 5, 7), 50.0)
    directions[1, 2, 3] = 0
    trace = trace_of(directions)
    assert trace[2, 3] == 0 and trace[0, 0] == pytest.approx(50)
    signals, b = np.stack([np.full((5, 7), 100.0), trace]), np.array([0.0, 1000.0])
    adc, where = adc_map(signals, b), maps.measured(signals, b)
    assert np.argwhere(~where).tolist() == [[2, 3]]
    assert adc[2, 3] == 0 and adc[0, 0] == pytest.approx(np.log(2) * 1e-3)
    assert exponential_map(adc, 1000.0, where)[2, 3] == 0  # not 1, which an ADC of 0 has


def test_air_and_rising_signals_give_zero():
    signals = np.full((2, 4, 4), 100.0)
    signals[1] = 40
    signals[:, 0, 0] = (1, 0.5)  # air
    signals[:, 1, 1] = (80, 90)  # noise
    signals[:, 2, 2] = 0
    found = adc_map(signals, np.array([0.0, 1000.0]))
    assert found[0, 0] == found[1, 1] == found[2, 2] == 0
    assert found[3, 3] == pytest.approx(np.log(2.5) * 1e-3)


def header(scan, **changes):
    with open_scan(scan) as opened:
        found = opened.header
    for name, value in changes.items():
        setattr(found.sequenceParameters, name, value)
    return found


def test_b_values_come_from_the_header_or_the_user(simulated_scan):
    scan = simulated_scan(**SMALL)
    by_header = tuple(Weighted(b, NONE) for b in SMALL["b_values"])
    assert weighting_of(header(scan)) == Weighting("contrast", by_header, "the header")
    stated = weighting_from_text("repetition:0,800")
    assert weighting_of(header(scan), stated) == stated
    assert weighting_of(header(simulated_scan())) is None
    assert weighting_of(header(scan, diffusion=header(scan).sequenceParameters.diffusion[:1])) is None
    # contrast has three values
    elsewhere = header(scan)
    elsewhere.encoding[0].encodingLimits.contrast.maximum = 0
    elsewhere.encoding[0].encodingLimits.repetition = ismrmrd.xsd.limitType(minimum=0, maximum=2, center=0)
    with pytest.raises(
        UnsupportedScanError, match="'contrast', of which it announces one value, and 3 of 'repetition'"
    ):
        weighting_of(elsewhere)
    assert may_be_weighted(elsewhere, SliceKey(0))
    by_user = header(scan, diffusionDimension=ismrmrd.xsd.diffusionDimensionType.USER_3)
    assert weighting_of(by_user) == Weighting("set", by_header, "the header, which counts them by user_3")
    for name in ("set", "phase", "repetition"):
        setattr(by_user.encoding[0].encodingLimits, name, ismrmrd.xsd.limitType(minimum=0, maximum=1, center=0))
    with pytest.raises(UnsupportedScanError, match="user_3.*can take its place.*--b-values"):
        weighting_of(by_user)
    by_segment = header(scan, diffusionDimension=ismrmrd.xsd.diffusionDimensionType.SEGMENT)
    assert weighting_of(by_segment).counter == "set"
    by_segment.encoding[0].trajectory = ismrmrd.xsd.trajectoryType.EPI  # whose segments are directions of lines
    with pytest.raises(UnsupportedScanError, match="segment.*can take its place.*--b-values"):
        weighting_of(by_segment)
    with pytest.raises(UnsupportedScanError, match="--b-values"):
        weighting_of(header(scan, diffusionDimension=None))
    lost = header(scan)
    lost.sequenceParameters.diffusion[1].bvalue = None
    with pytest.raises(BadInputError, match="0.0, None, 1000.0.*--b-values"):
        weighting_of(lost)
    assert weighting_of(lost, stated) == stated
    for text in (
        "0,1000",
        "slice:0,1000",
        "contrast:0,b",
        "contrast:-1,1000",
        "contrast:",
        "contrast:0,9@1/2",
        "contrast:0,9@a/b/c",
    ):
        with pytest.raises(BadInputError, match="COUNTER:B0,B1"):
            weighting_from_text(text)


def test_user_parameters_tell_no_image_s_b_value_and_are_shown(simulated_scan, model, tmp_path, capsys):
    scan = simulated_scan(**{**SMALL, "b_values": ()})
    names = [("userParameterLong", "alBValue", "1000"), ("userParameterDouble", "flow", "3")]
    changes = ";".join(f"userParameters.{kind}.name={name};userParameters.{kind}.value={v}" for kind, name, v in names)
    assert replay(scan, tmp_path, model, "--steps", "1", "--set", changes) == 0
    (note,) = report(tmp_path)["notes"]
    assert note.startswith("no diffusion maps: the header lists no b-value above 0 (user parameters, alBValue = 1000, ")
    assert "flow" not in note and note.endswith("--b-values COUNTER:B0,B1,...")
    assert note in capsys.readouterr().err
    notes = []
    maps.Maps(header(simulated_scan()), None, notes.append, notes.append)
    assert notes == []


@pytest.fixture(scope="module")
def result(simulated_scan, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("result")
    assert replay(simulated_scan(**SMALL, averages=2), out, model) == 0
    return out


def test_trace_and_adc_series(result):
    reconstructions, traces, maps = images(result, 1), images(result, 4), images(result, 5)
    assert (len(reconstructions), len(traces), len(maps)) == (2 * 2 * 3, 2 * 2, 2)
    for image in [*reconstructions, *traces]:
        b = f"{SMALL['b_values'][image.contrast]:g}"
        assert image.meta["DiffusionBValue"] == image.meta["dpmrecon_b_value"] == b
        assert image.meta["ImageComments"] == image.meta["GADGETRON_ImageComment"] == f"{RESEARCH}; b = {b} s/mm2"
    for image in maps:
        head = image.getHead()
        mine = [r for r in reconstructions if r.getHead().slice == head.slice]
        assert list(head.position) == list(mine[0].getHead().position)
        by_b = [
            np.mean([r.data[0, 0] for r in mine if r.getHead().contrast == number], 0, dtype=float)
            for number in range(3)
        ]
        assert image.data[0, 0] == pytest.approx(adc_map(np.stack(by_b), np.array(SMALL["b_values"])), rel=1e-4)
        weighted = [t.data[0, 0] for t in traces if t.getHead().slice == head.slice]
        assert weighted[0] == pytest.approx(by_b[1], rel=1e-5)
        assert weighted[1] == pytest.approx(by_b[2], rel=1e-5)
        assert (image.meta["DataRole"], image.meta["GADGETRON_DataRole"]) == ("ADC", "Image")
        assert not {"DiffusionBValue", "dpmrecon_b_value"} & set(image.meta)
        assert "b = " not in image.meta["ImageComments"]
        assert image.meta["dpmrecon_model"].startswith("tiny-")


def test_the_exponential_map_is_what_adc_leaves_at_the_largest_b(result):
    maps = images(result, 11)
    assert len(maps) == 2
    for image, adc in zip(maps, images(result, 5)):
        inside = adc.data > 0
        assert image.data[inside] == pytest.approx(np.exp(-1000 * adc.data[inside]), rel=1e-5)
        assert image.data.max() <= 1
        assert (image.meta["DataRole"], image.meta["dpmrecon_map"]) == ("Exponential", "eADC b=1000")
        assert "b = " not in image.meta["ImageComments"] and "DiffusionBValue" not in image.meta
    for path in sorted((result / "dicom").rglob("*_EADC/*.dcm")):
        file = pydicom.dcmread(path)
        assert (float(file.RescaleSlope), file.RescaleType, int(file.SeriesNumber) % 100) == (1e-4, "US", 11)
        mapping = file.RealWorldValueMappingSequence[0]
        assert (mapping.LUTLabel, mapping.MeasurementUnitsCodeSequence[0].CodeValue) == ("eADC", "1")
        assert file.pixel_array * 1e-4 == pytest.approx(maps[int(file.InstanceNumber) - 1].data[0, 0], abs=6e-5)
        assert "DiffusionBValue" not in file


def test_the_table_of_weightings_is_in_the_report_and_on_the_screen(simulated_scan, model, tmp_path, capsys):
    text = "contrast:0,400@0/0/0,1000@3/0/4"
    assert replay(simulated_scan(**SMALL), tmp_path, model, "--b-values", text) == 0
    told = report(tmp_path)
    rows = [(row["value"], row["b"], row["kind"], row["direction"], row["source"]) for row in told["weighting"]]
    assert rows == [
        (0, 0, "NONE", None, "the user"),
        (1, 400, "ISOTROPIC", [0, 0, 0], "the user"),
        (2, 1000, "DIRECTIONAL", [0.6, 0, 0.8], "the user"),
    ]
    assert {row["counter"] for row in told["weighting"]} == {"contrast"}
    assert any("b = 400 s/mm^2 has the direction (0, 0, 0) by the user" in remark for remark in told["remarks"])
    printed = capsys.readouterr()
    assert printed.out.count("0: b = 0; 1: b = 400, trace-weighted; 2: b = 1000 along 0.6, 0, 0.8") == 1
    assert printed.err.count("it counts as trace-weighted") == 1
    assert printed.err.count("b = 1000 s/mm^2 do not make a trace") == 1
    assert sum("b = 1000 s/mm^2 do not make a trace" in note for note in told["notes"]) == 1
    first, second, third = (image for image in images(tmp_path, 1) if image.slice == 0)
    assert third.meta["DiffusionGradientOrientation"] == ["0.6", "0", "0.8"]
    assert third.meta["ImageComments"].endswith("; b = 1000 s/mm2 along 0.6, 0, 0.8")
    kinds = [image.meta["DiffusionDirectionality"] for image in (first, second, third)]
    assert kinds == ["NONE", "ISOTROPIC", "DIRECTIONAL"]
    (trace,) = (image for image in images(tmp_path, 4) if image.slice == 0 and image.contrast == 2)
    # of one direction it is no trace
    assert "DiffusionDirectionality" not in trace.meta and "DiffusionGradientOrientation" not in trace.meta
    assert any(
        "the directions of b = 1000 s/mm^2 do not make a trace" in text for text in trace.meta["dpmrecon_remarks"]
    )
    assert "; b = 1000 s/mm2" in trace.meta["ImageComments"] and "along" not in trace.meta["ImageComments"]


def test_a_scan_of_one_b_value_says_it_and_has_no_maps(simulated_scan, model, tmp_path):
    scan = simulated_scan(**{**SMALL, "b_values": ()}, b_value=1000.0)
    assert replay(scan, tmp_path, model, "--b-values", "contrast:1000@0/1/0") == 0
    assert [image.meta["DiffusionBValue"] for image in images(tmp_path, 1)] == ["1000", "1000"]
    with h5py.File(tmp_path / "images.h5") as file:
        assert not {"image_4", "image_5", "image_11"} & set(file["dataset"])
    assert report(tmp_path)["notes"] == []


def test_directions_of_the_header_are_those_of_the_patient(simulated_scan):
    head = header(simulated_scan(**SMALL))
    kind = type(head.sequenceParameters.diffusion[0].gradientDirection)
    head.sequenceParameters.diffusion[1].gradientDirection = kind(rl=0.0, ap=3.0, fh=-4.0)
    head.sequenceParameters.diffusion[2].gradientDirection = None
    found = weighting_of(head)
    assert found.weighted[1].direction == pytest.approx((0, 0.6, -0.8))
    assert found.weighted[2].directionality is None
    assert found.remarks == []


def test_dicom_of_adc_and_trace(result):
    files = [pydicom.dcmread(path) for path in sorted((result / "dicom").rglob("*.dcm"))]
    by_tag = {tag: [file for file in files if file.ImageType[3] == tag] for tag in ("DPM", "DPM_TRACE", "DPM_ADC")}
    assert [len(found) for found in by_tag.values()] == [12, 4, 2]
    for file, image in zip(by_tag["DPM_ADC"], images(result, 5)):
        assert (float(file.RescaleSlope), file.RescaleType) == (1e-6, "mm2/s")
        mapping = file.RealWorldValueMappingSequence[0]
        assert mapping.RealWorldValueSlope == 1e-6
        assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "mm2/s"
        assert file.pixel_array * float(file.RescaleSlope) == pytest.approx(
            image.data[0, 0].clip(0, 0.065535), abs=6e-7
        )
        assert "DiffusionBValue" not in file
    assert [float(file.DiffusionBValue) for file in by_tag["DPM_TRACE"]] == [400, 400, 1000, 1000]
    assert [float(file.DiffusionBValue) for file in by_tag["DPM"]] == [0] * 4 + [400] * 4 + [1000] * 4
    assert len({file.SOPInstanceUID for file in files}) == len(files)


def test_directions_are_combined_geometrically_and_a_stated_counter_is_used(simulated_scan, model, tmp_path):
    scan = simulated_scan(**{**SMALL, "b_values": (0.0, 700.0, 1000.0)})
    # the two last taken for directions of one b-value
    assert replay(scan, tmp_path, model, "--b-values", "contrast:0,850,850") == 0
    (trace, _) = images(tmp_path, 4)
    mine = {r.getHead().contrast: r.data[0, 0] for r in images(tmp_path, 1) if r.getHead().slice == 0}
    assert trace.data[0, 0] == pytest.approx(np.sqrt(mine[1] * mine[2]), rel=1e-5)
    assert report(tmp_path)["notes"] == []


@pytest.mark.parametrize(
    ("b_values", "nominal"),
    [
        ((0, 996, 1000, 1004), (0, 1000, 1000, 1000)),
        ((1007, 0, 996, 1000), (1001, 0, 1001, 1001)),
        ((0, 711, 700, 1990, 2010), (0, 705.5, 705.5, 2000, 2000)),
        ((2, 5, 0, 1000), (0, 0, 0, 1000)),
        ((4, 1000), (0, 1000)),
        *[(b, b) for b in ((0, 50, 100), (0, 900, 1000), (0, 500, 520), (0, 1), (0, 5, 10), (0, 10, 20, 50, 800))],
        *[(b, b) for b in ((0.4,), tuple(range(1000, 3000, 25)))],  # a chain is no weighting
    ],
)
def test_effective_b_values_count_as_nominal_ones_and_true_weightings_stay_apart(b_values, nominal):
    assert nominal_b_values(b_values) == nominal


def test_effective_b_values_of_directions_make_one_trace_and_the_mean_of_their_adc(simulated_scan):
    put, notes = [], []
    head = header(simulated_scan(**SMALL))
    axes = ("@1/0/0", "@0/1/0", "@0/0/1")
    b_values = (4.0, 996.0, 1000.0, 1007.0)
    stated = weighting_from_text("contrast:4," + ",".join(f"{b:g}{axis}" for b, axis in zip(b_values[1:], axes)))
    assert stated.remarks == [
        "b = 4 s/mm^2 counts as b = 0 in trace and ADC, whose fit takes the mean",
        "b = 996 to 1007 s/mm^2 counts as b = 1001 in trace and ADC, whose fit takes the mean",
    ]
    writer = maps.Maps(head, stated, put.append, notes.append)
    for contrast, b in enumerate(b_values):
        of_image = ismrmrd.ImageHeader()
        of_image.contrast, of_image.image_series_index = contrast, 1
        pixels = np.full((4, 5), 100 * np.exp(-b * 0.8e-3), np.float32)
        image = image_of(pixels, of_image, {"SeriesDescription": "DWI", **stated.weighted[contrast].meta})
        writer.add(SimpleNamespace(key=SliceKey(0, contrast)), [image])
    writer.close(None)
    trace, adc, exponential = put
    assert (trace.meta["DiffusionBValue"], trace.meta["DiffusionDirectionality"]) == ("1001", "ISOTROPIC")
    assert trace.data == pytest.approx(100 * np.exp(-1001 * 0.8e-3), rel=1e-6)
    assert adc.data == pytest.approx(0.8e-3, rel=1e-5)
    assert exponential.data == pytest.approx(np.exp(-1001 * 0.8e-3), rel=1e-5)
    assert notes == []


def test_a_scan_of_effective_b_values_has_the_maps_of_the_nominal_ones_and_says_so(
    simulated_scan, model, tmp_path, capsys
):
    scan, found = simulated_scan(**SMALL), {}
    for b_values in ("850,850", "846,854"):
        assert replay(scan, tmp_path / b_values, model, "--b-values", f"contrast:0,{b_values}") == 0
        found[b_values] = [image for series in (4, 5, 11) for image in images(tmp_path / b_values, series)]
    for one, other in zip(*found.values(), strict=True):
        assert np.array_equal(one.data, other.data)
        assert one.meta.get("DiffusionBValue") == other.meta.get("DiffusionBValue")
    says = "b = 846 to 854 s/mm^2 counts as b = 850 in trace and ADC, whose fit takes the mean"
    assert says in report(tmp_path / "846,854")["remarks"] and capsys.readouterr().err.count(says) == 1
    own = [image.meta["DiffusionBValue"] for image in images(tmp_path / "846,854", 1) if image.slice == 0]
    assert own == ["0", "846", "854"]  # of images the effective one


def without_contrast_2_of_slice_1(scan, target):
    shutil.copy(scan, target)
    with h5py.File(target, "r+") as file:
        lines = file["dataset/data"][()]
        noise = lines["head"]["flags"] & np.uint64(1 << (ismrmrd.ACQ_IS_NOISE_MEASUREMENT - 1)) != 0
        lost = (lines["head"]["idx"]["contrast"] == 2) & (lines["head"]["idx"]["slice"] == 1) & ~noise
        kept = lines[~lost]
        del file["dataset/data"]
        file["dataset"].create_dataset("data", data=kept, dtype=lines.dtype, maxshape=(None,))
    return target


def test_a_slice_that_lost_a_direction_has_neither_trace_nor_adc(simulated_scan, model, tmp_path):
    scan = without_contrast_2_of_slice_1(simulated_scan(**SMALL), tmp_path / "scan.h5")
    assert replay(scan, tmp_path / "out", model, "--b-values", "contrast:0,850,850") in (0, 4)
    assert [image.slice for series in (4, 5) for image in images(tmp_path / "out", series)] == [0, 0]
    says = "slice 1: no diffusion maps, 1 of 2 directions of b = 850 s/mm^2 is missing"
    assert report(tmp_path / "out")["notes"] == [says]


def passed(writer, slice_number, contrast, lost=False, average=0):
    """Give a writer an image of ones of this slice, or a lost one."""
    key = SliceKey(slice_number, contrast, average=average)
    head = ismrmrd.ImageHeader()
    head.slice, head.contrast, head.image_series_index = slice_number, contrast, 1
    image = image_of(np.full((4, 5), 2.0 - contrast, np.float32), head, {"SeriesDescription": "DWI"})
    if lost:
        writer.add(LostSlice(key, "incomplete"), [])
    else:
        writer.add(SimpleNamespace(key=key), [image])


def test_memory_holds_the_images_of_incomplete_slices_alone(simulated_scan):
    put, notes = [], []
    head = header(simulated_scan(**{**SMALL, "b_values": (0.0, 1000.0)}, averages=2))
    writer = maps.Maps(head, None, put.append, notes.append)
    for number in (1, 0):
        for contrast in (0, 1):
            for average in (0, 1):
                # of a weighting one average may be missing, not all of them
                passed(writer, number, contrast, lost=(number, contrast, average) == (1, 1, 0), average=average)
        assert not writer.open
    assert put == []
    writer.close(None)
    assert notes == []
    assert [(image.slice, image.image_series_index) for image in put] == [(n, s) for n in (0, 1) for s in (4, 5, 11)]
    assert put[1].data == pytest.approx(np.log(2) / 1000)
    assert put[2].data == pytest.approx(0.5)


def test_more_images_than_announced_take_a_slice_its_maps(simulated_scan):
    put, notes = [], []
    writer = maps.Maps(header(simulated_scan(**SMALL)), weighting_from_text("contrast:0,1"), put.append, notes.append)
    for contrast in (0, 1, 1):
        passed(writer, 0, contrast)
    writer.close(None)
    assert put == []
    assert notes == ["slice 0: no diffusion maps, more images came than the header's limits announce"]


def test_images_of_one_weighting_that_another_counter_tells_apart_are_its_directions(simulated_scan):
    put, notes = [], []
    head = header(simulated_scan(**SMALL))
    head.encoding[0].encodingLimits.set.maximum = 2
    writer = maps.Maps(head, weighting_from_text("contrast:0,1000"), put.append, notes.append)
    levels = {(0, 0): 100.0, (1, 0): 60.0, (1, 1): 20.0, (1, 2): 30.0}
    for (contrast, number), level in levels.items():
        of_image = ismrmrd.ImageHeader()
        of_image.contrast, of_image.set, of_image.image_series_index = contrast, number, 1
        image = image_of(np.full((4, 5), level, np.float32), of_image, {"SeriesDescription": "DWI"})
        writer.add(SimpleNamespace(key=SliceKey(0, contrast, set=number)), [image])
    for number in (1, 2):  # which b = 0 does not have
        writer.add(LostSlice(SliceKey(0, 0, set=number), "announced"), [])
    assert not writer.open
    writer.close(None)
    trace, adc, _ = put
    assert trace.data == pytest.approx(36000 ** (1 / 3))
    assert adc.data == pytest.approx(np.log(100 / 36000 ** (1 / 3)) / 1000)
    (note,) = notes
    told = note.removeprefix("diffusion maps: ")
    assert told.startswith("images of one weighting differ in set or phase") and told in trace.meta["dpmrecon_remarks"]


def test_a_scan_that_broke_off_has_no_maps(simulated_scan):
    put, notes = [], []
    writer = maps.Maps(header(simulated_scan(**SMALL)), weighting_from_text("contrast:0,1"), put.append, notes.append)
    for contrast in (0, 1):
        passed(writer, 0, contrast)
    writer.close(RuntimeError("broken"))
    assert put == notes == []


def test_missing_b_values_are_named(simulated_scan, model, tmp_path, capsys):
    scan = without_contrast_2_of_slice_1(simulated_scan(**SMALL), tmp_path / "scan.h5")
    assert replay(scan, tmp_path / "out", model) == 4  # that slice is announced
    assert "slice 1: no diffusion maps, b = 1000 s/mm^2 is missing" in capsys.readouterr().err
    assert len(images(tmp_path / "out", 5)) == 1
    assert replay(simulated_scan(**SMALL), tmp_path / "b", model, "--b-values", "contrast:0,1000") == 0
    assert "no diffusion maps: an image has contrast 2" in capsys.readouterr().err


@pytest.mark.parametrize("announced", [(1, 3), (0, 2)])
def test_weightings_that_are_counted_from_1(simulated_scan, model, tmp_path, capsys, announced):
    def edit(number, line):
        line.idx.contrast += not line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        return line

    scan, place = edited(simulated_scan(**SMALL), tmp_path, edit), "encoding.encodingLimits.contrast"
    limits = ";".join(f"{place}.{name}={value}" for name, value in zip(("minimum", "maximum"), announced))
    code = replay(scan, tmp_path / "out", model, "--set", limits)
    found = images(tmp_path / "out", 1)
    assert {image.contrast for image in found} == {1, 2, 3}
    if announced == (0, 2):  # the list may be of others
        assert code == 4 and all("DiffusionBValue" not in image.meta for image in found)
        assert "images have contrast 3 and the header lists b-values of 0 to 2" in capsys.readouterr().err
        return
    assert code == 0
    assert {image.contrast: float(image.meta["DiffusionBValue"]) for image in found} == {1: 0, 2: 400, 3: 1000}
    assert [row["value"] for row in report(tmp_path / "out")["weighting"]] == [1, 2, 3]
    for image in images(tmp_path / "out", 5):
        by_b = [one.data[0, 0] for one in sorted(found, key=lambda one: one.contrast) if one.slice == image.slice]
        assert image.data[0, 0] == pytest.approx(adc_map(np.stack(by_b), np.array(SMALL["b_values"])), rel=1e-4)


def test_a_header_without_one_b_value_gives_dicom_without_maps(simulated_scan, model, tmp_path, capsys):
    scan = tmp_path / "scan.h5"
    shutil.copy(simulated_scan(**SMALL), scan)
    with h5py.File(scan, "r+") as file:
        xml = re.sub(rb"<((?:\w+:)?bvalue)>.*?</\1>", b"", file["dataset/xml"][0], count=1)
        assert xml != file["dataset/xml"][0]
        file["dataset/xml"][0] = xml
    assert replay(scan, tmp_path / "out", model) == 0
    assert "no diffusion maps: the header lists" in capsys.readouterr().err
    assert len(list((tmp_path / "out" / "dicom").rglob("*.dcm"))) == 6


def test_maps_that_find_no_room_are_a_line(simulated_scan, model, tmp_path, capsys, monkeypatch):
    store = images_file.store

    def limited(dataset, image):
        if image.image_series_index == maps.TRACE:
            raise OSError(28, "No space left on device")
        store(dataset, image)

    monkeypatch.setattr(images_file, "store", limited)
    assert replay(simulated_scan(**SMALL), tmp_path, model) == 0
    assert "no diffusion maps: cannot write" in capsys.readouterr().err
    assert (tmp_path / "dicom").exists()


def regions(settings: SimulationSettings) -> dict[str, np.ndarray]:
    """Voxels of one tissue whose neighbours are of it too: (rows, cols) bool."""
    phantom = Phantom(settings.subject)
    fractions = 0.0
    for part in (-1 / 3, 0.0, 1 / 3):
        points = slice_points(settings, 0, 1, 1, part * settings.slice_thickness_mm).reshape(-1, 3)
        fractions = fractions + phantom.fractions(np.ascontiguousarray(points.T)) / 3
    found = {}
    for tissue, least in (("white", 0.97), ("lesion", 0.85)):
        inside = fractions[TISSUES.index(tissue)].reshape(settings.matrix) > least
        shifts = [np.roll(inside, shift, (0, 1)) for shift in ((0, 1), (0, -1), (1, 0), (-1, 0))]
        found[tissue] = np.logical_and.reduce([inside, *shifts])
    return found


def test_adc_of_a_scan_at_r_4_with_noise_through_the_sampler(tmp_path):
    from importlib.resources import files

    if not (files("dpmrecon.checkpoints") / f"{DEFAULT}.safetensors").is_file():
        pytest.skip("no trained checkpoint lies in the package")
    settings = {"contrast": "dwi", "matrix": (112, 112), "n_slices": 1}
    scan = SimulationSettings(**settings, b_values=(0.0, 1000.0), averages=2, acceleration=4)
    simulate(tmp_path / "scan.h5", scan)
    out = tmp_path / "out"
    assert main(["replay", str(tmp_path / "scan.h5"), "--out", str(out), "--device", "cpu", "--samples", "1"]) == 0
    assert all(entry["R"] == 4 for entry in report(out)["slices"])
    found = images(out, 5)[0].data[0, 0]
    truths = []
    for b in (0.0, 1000.0):
        simulate(tmp_path / "full.h5", SimulationSettings(**settings, b_value=b, acceleration=1))
        truths.append(np.load(truth_path(tmp_path / "full.h5"))[0])
    truth = adc_map(np.stack(truths), np.array([0.0, 1000.0]))
    for tissue, value, limit in (("white", 0.75e-3, 0.05), ("lesion", 0.42e-3, 0.10)):
        inside = regions(scan)[tissue]
        assert inside.sum() > 40
        mean = float(found[inside].mean())
        print(
            f"{tissue}: ADC {mean:.3e}, {mean / value - 1:+.1%} of the tissue's, {mean / truth[inside].mean() - 1:+.1%}"
        )
        assert mean == pytest.approx(value, rel=limit)
        assert mean == pytest.approx(float(truth[inside].mean()), rel=limit)


def test_directions_that_make_a_trace():
    x, y, z, none = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)
    corners = [tuple(np.array(signs) / 3**0.5) for signs in ((1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, 1, -1))]
    for directions in ([x, y, z], [x, x, y, y, z, z], corners, [none], [none, none], [None], [x, None]):
        assert makes_trace(directions)
    for directions in ([x], [x, y], [x, x, y, z], [x, y, z, none]):
        assert not makes_trace(directions)


def test_weightings_on_the_repetition_stay_apart(simulated_scan, model, tmp_path):
    """Traces of two b-values have the counter that tells them."""
    scan = simulated_scan(**{**SMALL, "b_values": ()}, repetitions=3)
    assert replay(scan, tmp_path, model, "--b-values", "repetition:0,500,1000") == 0
    assert {(image.repetition, image.meta["DiffusionBValue"]) for image in images(tmp_path, 4)} == {
        (1, "500"),
        (2, "1000"),
    }


def test_averages_that_are_weightings_are_not_combined(simulated_scan, model, tmp_path, capsys):
    scan = simulated_scan(**{**SMALL, "b_values": ()}, averages=2)
    options = ("--combine-averages", "--b-values", "average:0,1000")
    assert replay(scan, tmp_path, model, *options) == 2
    assert "the counter average tells the b-values" in capsys.readouterr().err
