"""One scan of one peer, in this process: what the session answers, byte for byte, and how far it reads ahead."""

import re
import struct

import ismrmrd
import numpy as np
import pytest
from dpmrecon.hosts.adapters import MrdClient
from dpmrecon.mrd.file import open_scan
from dpmrecon.prior.denoiser import Denoiser

from support import fake_peer
from support.fake_peer import close, config
from support.results import images, replay
from support.sessions import Here
from support.streams import IDENTIFIER, edited_stream, planted, raw_stream


def without(rows):
    def edit(data):
        data = data.copy()
        data[:, rows] = 0
        return data

    return edit


def test_an_incomplete_slice_is_named_and_the_complete_one_goes_out(scan, engine):
    whole, cut = edited_stream(scan), edited_stream(scan, without(slice(34, None)))
    answer = Here(engine).exchange(*whole[:3], cut[3], close())
    assert [image.getHead().slice for image in answer.images] == [0]
    expected = (
        "1 of 2 slices are missing: slice 1: incomplete: 17 of the 24 lines came that the limits (0 to 47) and R = 2 "
        "announce"
    )
    assert answer.errors == [expected]
    assert answer.raw.endswith(fake_peer.error(expected))


def test_a_slice_without_calibration_is_named_and_the_others_go_out(scan, engine):
    centre = range(17, 32, 2)  # what the pattern does not need
    whole, bare = edited_stream(scan), edited_stream(scan, without(centre), calibration=False)
    answer = Here(engine).exchange(whole[0], whole[1], bare[2], whole[3], close())
    assert [image.getHead().slice for image in answer.images] == [1]
    (error,) = answer.errors
    assert error.startswith("1 of 2 slices are missing: slice 0: it has no calibration lines")
    bare = Here(engine).exchange(whole[0], whole[1], *bare[2:])
    assert bare.errors[0].startswith("2 of 2 slices are missing: slice 0: it has no calibration lines")


NO_CLOSE = "the connection ended without a CLOSE message: the scan is not complete, send it again"
CUT = "the connection ended within a message, after {} of {} bytes: send the scan again"
NEEDED = "ReconData (id 1023) or raw acquisitions (id 1008) are needed"
NO_LINES = "no image lines came: the chain in front of this gadget lost them, or the scan holds none"
BUCKET = f"a message with id 1050 came (a bucket of acquisitions (the chain lacks BucketToBufferGadget)): {NEEDED}"
SECOND = f"a message with id {{}} came (a second {{}}: a connection carries one scan): {NEEDED}"
WIDE = struct.pack("<HQQ", 1023, 1, 2**60)
NO_XML = "the scan's XML header cannot be read (syntax error: line 1, column 0); an ISMRMRD header is needed"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (lambda s: s[:2], NO_CLOSE),
        (lambda s: s[:3], NO_CLOSE),
        (lambda s: [*s[:2], s[2][:1]], NO_CLOSE),
        (lambda s: [*s[:2], close()], NO_LINES),
        (lambda s: [*s[:2], s[2][:1000]], CUT.format(926, 48 * 64 * 6 * 8)),
        (lambda s: [s[0], s[1][:50]], CUT.format(44, "{header}")),
        (lambda s: [*s[:2], struct.pack("<H", 4711), bytes(9)], f"a message with id 4711 came (unknown): {NEEDED}"),
        (lambda s: [*s[:2], struct.pack("<H", 1050)], BUCKET),
        (lambda s: [*s[:3], *s[1:]], SECOND.format(3, "header")),
        (lambda s: [*s[:3], *s], SECOND.format(2, "configuration")),
        (
            lambda s: [*s[:2], fake_peer.error("no coil")],
            f"a message with id 8 came (an error of the peer's own: its log tells which): {NEEDED}",
        ),
        (lambda s: [*s[:2], WIDE], f"an array of {2**60} dimensions was announced: at most 16 are taken"),
        (
            lambda s: [s[0], struct.pack("<HI", 3, 2**32 - 1)],
            "a text of 4294967295 bytes was announced: at most 67108864 are taken",
        ),
        (
            lambda s: [config(contrast="pd"), *s[1:]],
            "contrast 'pd' is unknown to the model: valid ones are flair, t1, t2, dwi, swi",
        ),
        (lambda s: [config(steps="many"), *s[1:]], "property 'steps' is 'many': give a whole number"),
        (lambda s: [config(samples=0), *s[1:]], "property 'samples' is 0: give 1 or more"),
        (lambda s: [s[0], fake_peer.text_message(3, b"no XML"), *s[2:]], NO_XML),
    ],
)
def test_what_cannot_be_used_gets_one_error(scan, engine, messages, expected):
    stream = edited_stream(scan)
    answer = Here(engine).exchange(*messages(stream))
    expected = expected.format(header=len(stream[1]) - 6)
    assert answer.errors == [expected]
    assert answer.raw.endswith(fake_peer.error(expected))
    assert len(answer.images) == answer.ids.count(fake_peer.IMAGE) <= 1


def test_the_error_is_read_although_the_peer_is_still_sending(scan, engine):
    """Leaving before the peer has sent all would reset the connection, and lose our last words."""
    stream = edited_stream(scan)
    answer = Here(engine).exchange(config(stpes=1), stream[1], *(stream[2:4] * 40), close())
    assert len(answer.errors) == 1
    assert answer.errors[0].startswith("property 'stpes' is unknown")


def test_a_deadline_gives_labelled_images(scan, engine):
    answer = Here(engine).exchange(config(deadline=0), *edited_stream(scan)[1:])
    assert answer.errors == []
    for image in answer.images:
        assert image.meta["dpmrecon_fallback"] == "the deadline of 0 s had passed"
    assert len(answer.images) == 2


def test_several_slabs_are_refused(scan, engine):
    stream = edited_stream(scan)
    for old, new in (
        (b"<y>48</y><z>1<", b"<y>48</y><z>8<"),
        (
            b"<kspace_encoding_step_2><minimum>0</minimum><maximum>0<",
            b"<kspace_encoding_step_2><minimum>0</minimum><maximum>7<",
        ),
    ):
        assert old in stream[1]
        stream[1] = stream[1].replace(old, new)
    stream[1] = fake_peer.text_message(fake_peer.HEADER, stream[1][6:])
    expected = (
        "the scan is 3D with 2 slabs; one is reconstructed: convert each slab to a scan of its own (or --set "
        "encoding.encodingLimits.slice.maximum=0 if there is one)"
    )
    assert Here(engine).exchange(*stream).raw == fake_peer.error(expected)


def test_without_fallback_a_raising_model_is_an_error(scan, engine, monkeypatch):
    def broken(self, x, sigma, label):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(Denoiser, "forward", broken)
    answer = Here(engine).exchange(config(fallback="off"), *edited_stream(scan)[1:])
    expected = (
        "slice 0: the sampler failed (no such kernel); the fallback is off, so the scan stops here (--fallback on "
        "gives the CG-SENSE image instead)"
    )
    assert answer.raw == fake_peer.error(expected)


def test_a_fault_of_ours_is_not_taken_for_one_of_the_device(scan, engine, monkeypatch):
    def broken(self, x, sigma, label):
        raise KeyError("a slip")

    monkeypatch.setattr(Denoiser, "forward", broken)
    answer = Here(engine).exchange(*edited_stream(scan))
    assert answer.images == []
    assert re.fullmatch(r"internal error: KeyError in broken \(.*test_session.py:\d+\)", answer.errors[0])


def test_no_patient_data_in_the_log_of_failures(scan, engine, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    stream = edited_stream(scan)
    stream[1] = planted(stream[1])
    answers = [Here(engine).exchange(*stream[:2], what) for what in (stream[2][:3000], struct.pack("<H", 777))]
    monkeypatch.setattr("dpmrecon.hosts.session.mrd_images", lambda *args: {}[IDENTIFIER])
    answers.append(Here(engine).exchange(*stream))
    assert all(len(answer.errors) == 1 for answer in answers)
    assert answers[-1].errors[0].startswith("internal error: KeyError in <lambda>")
    assert IDENTIFIER.decode() not in caplog.text
    assert IDENTIFIER not in b"".join(answer.raw for answer in answers)


def test_raw_acquisitions_from_a_gadgetron_are_refused(scan, engine):
    with open_scan(scan) as opened:
        lines = [fake_peer.acquisition(line) for line in opened.acquisitions()]
    stream = edited_stream(scan)
    answer = Here(engine).exchange(*stream[:2], *lines[:80], close())
    assert answer.errors[0].endswith(
        "the chain lacks AcquisitionAccumulateTriggerGadget and BucketToBufferGadget before this gadget"
    )


ALL = {"output": "magnitude,phase,complex", "samples": 2}


def test_phase_complex_and_spread_get_through_the_tail_of_a_chain(scan, engine):
    """uint16 and complex128 pass it: complex64 would come out as a magnitude, float32 radians as zeros."""
    answer = Here(engine).exchange(config(**ALL), *edited_stream(scan)[1:])
    assert answer.errors == []
    by_series = {image.getHead().image_series_index: image for image in answer.images if image.getHead().slice == 0}
    dtypes = {number: image.data.dtype for number, image in by_series.items()}
    assert dtypes == {1: np.float32, 2: np.float32, 6: np.uint16, 7: np.complex128}
    magnitude, spread, phase, whole = (by_series[number] for number in (1, 2, 6, 7))
    assert (phase.getHead().image_type, whole.getHead().image_type) == (ismrmrd.IMTYPE_PHASE, ismrmrd.IMTYPE_COMPLEX)
    assert phase.getHead().data_type == ismrmrd.DATATYPE_USHORT
    assert whole.getHead().data_type == ismrmrd.DATATYPE_CXDOUBLE
    rescaled = phase.data * float(phase.meta["RescaleSlope"]) + float(phase.meta["RescaleIntercept"])
    error = np.abs(whole.data - magnitude.data * np.exp(1j * rescaled / 1000)) / magnitude.data.max()
    assert error.max() < 1e-3  # half a step of 4096
    assert np.percentile(spread.data, 99) >= 1000


def test_an_mrd_client_gets_whole_numbers_and_complex_images(scan, engine):
    answer = Here(engine).exchange(*raw_stream(scan, '{"output": "magnitude,phase,complex", "samples": "2"}'))
    assert answer.texts == []
    dtypes = [(image.getHead().image_series_index, image.data.dtype) for image in answer.images]
    assert dtypes == 2 * [(1, np.uint16), (2, np.uint16), (6, np.uint16), (7, np.complex64)]
    for spread in (image for image in answer.images if image.getHead().image_series_index == 2):
        assert len(np.unique(spread.data)) > 300  # of 3072 pixels
        assert spread.data.max() < 32767


def test_an_mrd_client_gets_b_values_and_the_maps_of_diffusion(simulated_scan, engine, model, tmp_path):
    scan = simulated_scan(matrix=(48, 56), n_slices=1, contrast="dwi", b_values=(0.0, 1000.0))
    session = Here(engine)
    answer = session.exchange(*raw_stream(scan, "dpm_dwi"))
    assert (answer.errors, answer.texts) == ([], [])
    assert session.session.record["images"] == len(answer.images) == 5
    units = {1: 1.0, 4: 1.0, 5: 1e-6, 11: 1e-4}
    found = {series: [image for image in answer.images if image.image_series_index == series] for series in units}
    assert [image.meta["DiffusionBValue"] for image in found[1]] == ["0", "1000"]
    assert replay(scan, tmp_path, model, "--contrast", "dwi", "--steps", "4", "--samples", "1") == 0
    for series, unit in units.items():
        for ours, theirs in zip(found[series], images(tmp_path, series), strict=True):
            assert ours.data.dtype == np.uint16
            assert unit * ours.data == pytest.approx(theirs.data, abs=0.51 * unit)
            assert (ours.slice, ours.contrast) == (theirs.slice, theirs.contrast)
            assert ours.meta["DataRole"] == theirs.meta["DataRole"]
    assert (found[5][0].meta["RescaleSlope"], found[5][0].meta["WindowWidth"]) == ("1e-06", "2500")
    assert (found[11][0].meta["RescaleSlope"], found[11][0].meta["WindowWidth"]) == ("0.0001", "10000")
    assert found[11][0].meta["dpmrecon_map"] == "eADC b=1000 0.0001"
    told = [text for text in session.session.record["decisions"] if "trace-weighted" in text]
    assert told == ["remark: b = 1000 s/mm^2 has the direction (0, 0, 0) by the header: it counts as trace-weighted"]


def test_a_client_states_the_b_values(simulated_scan, engine):
    scan = simulated_scan(matrix=(48, 56), n_slices=1, contrast="dwi", b_values=(0.0, 1000.0))
    answer = Here(engine).exchange(*raw_stream(scan, '{"b-values": "contrast:0,700@0/0/2"}'))
    (_, second) = [image for image in answer.images if image.image_series_index == 1]
    assert (second.meta["DiffusionBValue"], second.meta["DiffusionGradientOrientation"]) == ("700", ["0", "0", "1"])
    answer = Here(engine).exchange(*raw_stream(scan, '{"b-values": "slices:0"}'))
    assert answer.images == [] and b"b-values 'slices:0' are not usable" in answer.texts[0]


def test_a_slice_without_maps_is_named_in_the_audit_line(simulated_scan, engine):
    def one_more(message):
        entry = re.search(rb"<(\w+:)?diffusion>.*?</(\w+:)?diffusion>", message, re.DOTALL)[0]
        further = re.sub(rb"bvalue>[^<]*<", b"bvalue>2000<", entry)
        return fake_peer.text_message(fake_peer.HEADER, message[6:].replace(entry, entry + further, 1))

    scan, session = simulated_scan(matrix=(48, 56), n_slices=1, contrast="dwi", b_values=(0.0, 1000.0)), Here(engine)
    answer = session.exchange(*raw_stream(scan, "dpm_dwi", one_more))
    assert [image.image_series_index for image in answer.images] == [1, 1]
    assert session.session.record["decisions"][0] == "slice 0: no diffusion maps, b = 1000 s/mm^2 is missing"


@pytest.mark.parametrize(
    ("name", "contrast"),
    [
        ("dpm", None),
        ("dpm_flair", "flair"),
        ("dpm_flair_3d", "flair"),
        ("dpm_swi_3d_connect.xml", "swi"),
        ("dpm_mprage", "t1"),
        ("dpm_mprage_connect.xml", "t1"),
        ("mprage", "t1"),
    ],
)
def test_config_names_of_clients(name, contrast, engine):
    assert MrdClient().options(name.encode() + b"\0\0", engine).contrast == contrast


def test_a_swi_scan_has_its_series_as_a_replay_has_them(simulated_scan, model, engine, tmp_path):
    scan = simulated_scan(matrix=(48, 56), n_slices=4, acceleration=2)
    session = Here(engine)
    answer = session.exchange(*raw_stream(scan, "dpm_swi"))
    assert answer.errors == []
    assert replay(scan, tmp_path, model, "--contrast", "swi", "--samples", "1") == 0
    for series, count in ((1, 4), (8, 4), (9, 4), (10, 2)):
        found = {image.slice: image for image in answer.images if image.image_series_index == series}
        assert len(found) == count
        for theirs in images(tmp_path, series):  # the file's slices come in order
            ours = found[theirs.slice]
            assert ours.data.dtype == np.uint16
            assert ours.meta["ImageType"] == theirs.meta["ImageType"]
            slope, intercept = (float(ours.meta[f"Rescale{name}"]) for name in ("Slope", "Intercept"))
            if series == 8:  # mrad of a turn
                turns = (slope * ours.data + intercept - 1000 * theirs.data) / (2000 * np.pi)
                assert np.abs(turns - np.rint(turns)).max() < 0.51 / 4096
            else:  # the first slice that comes tells the unit
                scale = slope / float(theirs.meta["RescaleSlope"])
                assert scale * ours.data == pytest.approx(theirs.data, abs=0.51 * scale)
    assert session.session.record["images"] == 14


def test_the_audit_line_tells_echoes_apart(simulated_scan, engine):
    scan = simulated_scan(matrix=(48, 56), n_slices=2, contrast="swi", echoes=2)
    session = Here(engine)
    session.exchange(config(deadline=0), *edited_stream(scan)[1:])
    told = {text.split(": ")[1] for text in session.session.record["decisions"] if text.startswith("fallback")}
    assert told == {"slice 0, echo 0", "slice 0, echo 1", "slice 1, echo 0", "slice 1, echo 1"}
