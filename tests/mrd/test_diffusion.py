"""Lines that count diffusion weightings where images do not: another counter of the images takes its place."""

import ismrmrd
import pytest
from dpmrecon.errors import BadInputError
from dpmrecon.hosts.engine import Engine
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.header import overridden
from dpmrecon.options import Options

from support.edited import edited
from support.results import images, replay, report
from support.sessions import Here
from support.streams import edited_stream, raw_stream

SCAN = {"matrix": (40, 36), "n_slices": 2, "contrast": "dwi", "b_values": (0.0, 600.0, 1000.0), "averages": 2}


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(samples=1)


def counted_by(scan, folder, counter, lost=()):
    """A copy whose lines count weightings by `counter` alone; lost: (slice, weighting, average) that do not come."""

    def edit(number, line):
        weighting = line.idx.contrast
        if (line.idx.slice, weighting, line.idx.average) in lost and not line.is_flag_set(
            ismrmrd.ACQ_IS_NOISE_MEASUREMENT
        ):
            return None
        line.idx.contrast = 0
        if counter == "segment":
            line.idx.segment = weighting
        else:
            line.idx.user[int(counter[-1])] = weighting
        return line

    return edited(scan, folder, edit)


def told(counter, contrasts=1):
    """Of the header, as `--set` has it."""
    return (
        f"sequenceParameters.diffusionDimension={counter};encoding.encodingLimits.contrast.maximum={contrasts - 1};"
        "encoding.encodingLimits.set.minimum=0;encoding.encodingLimits.set.maximum=0"
    )


@pytest.mark.parametrize("counter", ["user_0", "user_7", "segment"])
def test_images_and_maps_are_those_of_a_counter_that_images_have(simulated_scan, model, tmp_path, counter):
    scan = simulated_scan(**SCAN)
    options = ("--steps", "1", "--combine-averages")
    assert replay(scan, tmp_path / "expected", model, *options) == 0
    moved = counted_by(scan, tmp_path, counter)
    assert replay(moved, tmp_path / "out", model, *options, "--set", told(counter)) == 0
    for series in (1, 4, 5):
        ours, theirs = images(tmp_path / "out", series), images(tmp_path / "expected", series)
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs):
            assert (one.slice, one.contrast) == (other.slice, other.contrast)
            assert (one.data == other.data).all()
            assert one.meta.get("DiffusionBValue") == other.meta.get("DiffusionBValue")
    found = report(tmp_path / "out")["weighting"]
    assert [(row["counter"], row["value"], row["b"]) for row in found] == [
        ("contrast", number, b) for number, b in enumerate(SCAN["b_values"])
    ]
    assert {row["source"] for row in found} == {f"the header, which counts them by {counter}"}


def test_a_client_s_lines_as_well(simulated_scan, model, tmp_path):
    scan = counted_by(simulated_scan(**SCAN), tmp_path, "user_2")
    engine = Engine.of(Options(model=model, device="cpu", steps=1, combine_averages=True, set=told("user_2")))
    sent = Here(engine).exchange(*raw_stream(scan, "dpm_dwi"))
    found = [image for image in sent.images if image.getHead().image_series_index == 1]
    assert sorted((image.slice, image.contrast, image.meta["DiffusionBValue"]) for image in found) == [
        (number, weighting, f"{b:g}") for number in range(2) for weighting, b in enumerate(SCAN["b_values"])
    ]
    # a Gadgetron's gadgets have put all weightings into one buffer
    messages = edited_stream(simulated_scan(**SCAN), xml=lambda text: overridden(text, told("user_2")))
    (said,) = Here(Engine.of(Options(model=model, device="cpu"))).exchange(*messages).errors
    assert "counts diffusion weightings by user_2, by which the gadgets before this one keep no lines apart" in said


def test_a_weighting_that_never_came_is_missing(simulated_scan, model, tmp_path):
    lost = {(1, 2, average) for average in range(2)}
    scan = counted_by(simulated_scan(**SCAN), tmp_path, "user_5", lost)
    assert replay(scan, tmp_path / "out", model, "--steps", "1", "--combine-averages", "--set", told("user_5")) == 4
    (entry,) = [entry for entry in report(tmp_path / "out")["slices"] if entry.get("missing")]
    assert (entry["slice"], entry["contrast"]) == (1, 2)


def test_a_counter_of_one_value_takes_its_place_and_no_other(simulated_scan, tmp_path):
    scan = simulated_scan(**SCAN)

    def both(number, line):
        line.idx.user[1] = line.idx.contrast
        return line

    scan = edited(scan, tmp_path, both)
    with open_scan(scan, changes=told("user_1", contrasts=3)) as opened:
        counters = opened.heads["idx"]
        assert {(int(one["contrast"]), int(one["set"])) for one in counters} == {(0, 0), (1, 1), (2, 2)}
    (tmp_path / "other").mkdir()

    def another(number, line):
        line.idx.user[1] = 2 - line.idx.contrast
        return line

    scan = edited(scan, tmp_path / "other", another)
    with (
        pytest.raises(BadInputError, match="by user_1.*contrast was to take its place.*encodingLimits.contrast"),
        open_scan(scan, changes=told("user_1")),
    ):
        pass


@pytest.mark.parametrize("word, refused", [("Contrast", False), ("direction", True)])
def test_a_counter_that_is_none_leaves_the_images(simulated_scan, model, tmp_path, capsys, word, refused):
    scan = simulated_scan(**{**SCAN, "n_slices": 1})
    assert replay(scan, tmp_path, model, "--set", f"sequenceParameters.diffusionDimension={word}") == 0
    assert len(images(tmp_path)) == 6
    said = "say which of them it is, --b-values" in capsys.readouterr().err
    assert said == refused
