"""The gadget in a real child process behind a real socket, against a peer that does what a Gadgetron does."""

import gzip
import importlib.util
import socket
import struct
import threading
import time

import ismrmrd
import numpy as np
import pytest
from dpmrecon.cli import main
from dpmrecon.errors import BadInputError, UnsupportedScanError
from dpmrecon.hosts import wire
from dpmrecon.hosts.recon_data import slices_of
from dpmrecon.hosts.wire import Wire
from dpmrecon.mrd.collect import LostSlice, Slice, slices
from dpmrecon.mrd.header import open_scan, read_header
from dpmrecon.prior.denoiser import Denoiser

from support import fake_peer
from support.fake_peer import Child, close, config, parts_of
from support.paths import shared
from support.sessions import Here
from support.streams import IDENTIFIER, edited_stream, planted
from support.waiting import LIMIT

needs_host = pytest.mark.skipif(
    importlib.util.find_spec("gadgetron") is None,
    reason="the gadget runs inside gadgetron-python, which is not installed (pip install dpmrecon[gadgetron])",
)
RECORDED = {"t1_brain_r4": "t1", "flair_3slices_r4": "flair", "flair_3slices_r4_separate_acs": "flair"}
WINDOW = [prefix + key for prefix in ("", "GADGETRON_") for key in ("WindowCenter", "WindowWidth")]
FEW = {"steps": 2, "samples": 1, "device": "cpu"}


# The recorded streams of a real Gadgetron


@needs_host
@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_gadgetron_gets_the_images_of_replay(name, tmp_path):
    recorded = shared(f"wire/{name}.recondata.bin.gz")
    _, header, rest = parts_of(gzip.decompress(recorded.read_bytes()))
    child = Child()
    child.peer.send(config(contrast=RECORDED[name], seed=7, **FEW), header, rest)
    answer = child.peer.answer()
    assert answer.errors == []
    assert answer.ids[-1] == fake_peer.CLOSE
    assert "CG-SENSE" not in child.output()
    few = [text for option, value in FEW.items() for text in (f"--{option}", str(value))]
    command = ["replay", str(shared(f"ismrmrd/{name}.h5")), "--out", str(tmp_path), "--seed", "7", *few]
    assert main([*command, "--contrast", RECORDED[name]]) == 0
    dataset = ismrmrd.Dataset(str(tmp_path / "images.h5"), "dataset", create_if_needed=False)
    expected = [dataset.read_image("image_1", index) for index in range(dataset.number_of_images("image_1"))]
    dataset.close()
    assert len(answer.images) == len(expected) == (1 if name.startswith("t1") else 3)
    for found, wanted in zip(answer.images, expected):
        assert found.data.dtype == np.float32
        for field, _ in ismrmrd.ImageHeader._fields_:
            if field != "attribute_string_len":
                ours, theirs = getattr(found.getHead(), field), getattr(wanted.getHead(), field)
                assert np.array_equal(np.array(ours), np.array(theirs)), field
        assert found.meta["dpmrecon_fallback"] == "none"
        different = {key for key in found.meta if found.meta[key] != wanted.meta[key]}
        # Gadgetron's units and a measured noise level: nothing else of the meta may change
        assert different <= {"dpmrecon_residual", "RescaleSlope", "GADGETRON_ScaleRatio", *WINDOW}
        error = np.linalg.norm(found.data - wanted.data) / np.linalg.norm(wanted.data)
        print(f"{name}: slice {found.getHead().slice}: NRMSE between wire and replay {error:.2g}")
        assert error <= 0.02


# In a child process: the ends that a Gadgetron makes


@needs_host
def test_the_child_sends_each_image_when_its_slice_is_done(model, stream):
    header, (first, second) = stream
    child = Child()
    child.peer.send(config(model=model, **FEW), header, first)
    image = child.peer.image()  # the second slice is not even sent
    assert image.getHead().slice == 0
    child.peer.send(second, close())
    answer = child.peer.answer()
    assert [found.getHead().slice for found in answer.images] == [1]
    assert answer.ids[-1] == fake_peer.CLOSE
    assert child.process.wait(LIMIT) == 0
    child.output()


@needs_host
def test_a_server_that_dies_leaves_no_spinning_process(model, stream):
    header, (first, _) = stream
    child = Child()
    child.peer.send(config(model=model, **FEW), header, first[:5000])
    while child.cpu_seconds() < 1:  # until it has loaded its modules
        time.sleep(0.05)
    child.peer.socket.close()
    assert child.process.wait(LIMIT) is not None
    used = child.cpu_seconds_at_end()
    output = child.output()
    assert "the connection ended within a message" in output
    assert used < 15


@needs_host
def test_wrong_properties_reach_the_client_as_an_error(model, stream):
    header, messages = stream
    child = Child()
    child.peer.send(config(model=model, stpes=3), header, *messages, close())
    answer = child.peer.answer()
    expected = (
        "property 'stpes' is unknown: valid ones are contrast, model, sampler, mode, steps, samples, seed, "
        "fallback, deadline, device, batch, combine-averages"
    )
    assert answer.raw == fake_peer.error(expected) + close()
    child.output()


@needs_host
def test_a_raising_model_gives_labelled_images(model, stream):
    header, messages = stream
    prelude = (
        "from dpmrecon.prior.denoiser import Denoiser\n"
        "def broken(self, x, sigma, label): raise ValueError('no such kernel')\n"
        "Denoiser.forward = broken\n"
    )
    child = Child(prelude=prelude)
    child.peer.send(config(model=model, **FEW), header, *messages, close())
    answer = child.peer.answer()
    assert [image.getHead().slice for image in answer.images] == [0, 1]
    for image in answer.images:
        assert "CG-SENSE FALLBACK: the sampler failed (no such kernel)" in image.meta["GADGETRON_ImageComment"]
        assert "CG-SENSE FALLBACK" in image.meta["SeriesDescription"]
    assert "slice 1: CG-SENSE FALLBACK" in child.output()


@needs_host
def test_no_patient_data_in_the_output_of_the_child(model, stream):
    header, messages = stream
    child = Child()
    child.peer.send(config(model=model, **FEW), planted(header), *messages, close())
    assert len(child.peer.answer().images) == 2
    assert IDENTIFIER.decode() not in child.output()


# In this process: what the session answers, byte for byte


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


NO_CLOSE = "the connection ended without a CLOSE message: the scan is not complete, send it again"
CUT = "the connection ended within a message, after {} of {} bytes: send the scan again"
NEEDED = "ReconData (id 1023) or raw acquisitions (id 1008) are needed"
NO_LINES = "no image lines came: the chain in front of this gadget lost them, or the scan holds none"
BUCKET = f"a message with id 1050 came (a bucket of acquisitions (the chain lacks BucketToBufferGadget)): {NEEDED}"
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


def test_a_3d_scan_is_refused(scan, engine):
    xml = (b"<encodedSpace><matrixSize><x>128</x><y>48</y><z>1<", b"<encodedSpace><matrixSize><x>128</x><y>48</y><z>8<")
    stream = edited_stream(scan)
    assert xml[0] in stream[1]
    stream[1] = stream[1].replace(*xml)
    expected = "the scan is 3D (8 partitions); only 2D multi-slice scans are reconstructed"
    assert Here(engine).exchange(*stream).raw == fake_peer.error(expected)


def test_without_fallback_a_raising_model_is_an_error(scan, engine, monkeypatch):
    def broken(self, x, sigma, label):
        raise ValueError("no such kernel")

    monkeypatch.setattr(Denoiser, "forward", broken)
    answer = Here(engine).exchange(config(fallback="off"), *edited_stream(scan)[1:])
    expected = (
        "slice 0: the sampler failed (no such kernel); the fallback is off, so the scan stops here (--fallback on "
        "gives the CG-SENSE image instead)"
    )
    assert answer.raw == fake_peer.error(expected)


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


def test_a_silent_peer_is_let_go(engine, monkeypatch):
    monkeypatch.setattr("dpmrecon.hosts.wire.GREETING", 0.5)
    here = Here(engine)
    here.peer.send(config()[:3])
    here.thread.join(LIMIT)
    assert not here.thread.is_alive()
    here.peer.socket.close()


def test_a_peer_that_never_reads_is_given_up(monkeypatch):
    monkeypatch.setattr(wire, "STALL", 1)
    ours, theirs = socket.socketpair()
    peer = Wire(ours)
    with pytest.raises(wire.PeerGoneError, match="took no more data"):
        peer.send(bytes(50_000_000))
    ours.close()
    theirs.close()


# A chain that misses a piece is refused


def recon(scan, edit_bits=lambda bits: bits, xml=lambda text: text, **kinds):
    """The slices that recon_data makes of a scan, once `edit_bits` has seen what came over the wire."""
    ours, theirs = socket.socketpair()
    messages = edited_stream(scan, xml=xml, **kinds)
    sender = threading.Thread(target=theirs.sendall, args=(b"".join(messages),))
    sender.start()
    peer = Wire(ours)
    assert peer.message_id() == wire.CONFIG
    peer.text()
    assert peer.message_id() == wire.HEADER
    header = read_header(peer.text())
    bits = [bit for _, found in peer.messages() for bit in found]
    sender.join()
    ours.close()
    theirs.close()
    for bit in bits:
        bit.data.data.flags.writeable = False  # as gadgetron-python hands arrays over
    return list(slices_of(edit_bits(bits), header))


def test_recon_data_is_what_the_lines_give(scan):
    with open_scan(scan) as opened:
        expected = list(slices(opened.acquisitions(), opened.header))
    found = recon(scan)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.key == theirs.key
        assert ours.mask.equal(theirs.mask)
        assert ours.kspace.allclose(1.26 * theirs.kspace)
        assert ours.calibration.allclose(1.26 * theirs.calibration)
        assert ours.sigma_n == pytest.approx(1.26 * theirs.sigma_n, rel=0.08)
        assert (ours.n_lines_got, ours.n_lines_needed) == (theirs.n_lines_got, theirs.n_lines_needed)
        assert ours.header.idx.kspace_encode_step_1 == theirs.header.idx.kspace_encode_step_1


def doubled(bits):
    """As if the oversampling had not been removed."""
    for bit in bits:
        bit.data.data = np.concatenate([bit.data.data, bit.data.data])
    return bits


def unfilled(bits):
    """As if the calibration lines were in `ref` alone."""
    for bit in bits:
        data = bit.data.data.copy()
        data[:, 23] = 0
        bit.data.data = data
    return bits


def shifted(bits):
    for bit in bits:
        bit.data.headers = np.roll(bit.data.headers, 1, axis=0)
    return bits


def flagged(flag):
    def edit(bits):
        bits[0].data.headers[24, 0, 0, 0, 0].flags |= 1 << (flag - 1)
        return bits

    return edit


def other_dimensions(bits):
    for bit in bits:
        bit.data.data = bit.data.data[..., 0]
    return bits


def partitions(bits):
    for bit in bits:
        bit.data.data = np.repeat(bit.data.data, 4, axis=2)
    return bits


def hybrid(bits):
    for bit in bits:
        data = bit.data.data.copy()
        data[:] = np.abs(data).mean(0, keepdims=True)  # spread along the readout, as in image space
        bit.data.data = data
    return bits


def epi(text: bytes) -> bytes:
    return text.replace(b"<trajectory>cartesian", b"<trajectory>epi")


@pytest.mark.parametrize("part", ["data", "ref"])
def test_nan_loses_its_slice_alone(scan, part):
    def spoil(bits):
        buffer = getattr(bits[1], part)
        buffer.data = buffer.data.copy()
        buffer.data[3, 3, 0, 1] = np.nan
        return bits

    first, second = recon(scan, spoil, xml=lambda text: text.replace(b"embedded", b"separate"))
    assert isinstance(first, Slice)
    assert isinstance(second, LostSlice)
    assert "NaN" in second.reason


@pytest.mark.parametrize(
    ("edit", "xml", "error", "words"),
    [
        (doubled, bytes, BadInputError, "lacks RemoveROOversamplingGadget"),
        (doubled, epi, BadInputError, "lacks EPIReconXGadget"),
        (unfilled, bytes, BadInputError, "lacks GenericReconCartesianReferencePrepGadget"),
        (shifted, bytes, BadInputError, "not at the row of their own header"),
        (flagged(ismrmrd.ACQ_IS_PHASECORR_DATA), epi, BadInputError, "and EPICorrGadget"),
        (flagged(ismrmrd.ACQ_IS_NOISE_MEASUREMENT), bytes, BadInputError, "lacks NoiseAdjustGadget"),
        (flagged(ismrmrd.ACQ_IS_REVERSE), bytes, BadInputError, "and EPICorrGadget"),
        (flagged(ismrmrd.ACQ_IS_REVERSE), epi, BadInputError, "and EPICorrGadget"),
        (hybrid, epi, BadInputError, "lacks FFTXGadget"),
        (other_dimensions, bytes, BadInputError, "6 dimensions"),
        (partitions, bytes, UnsupportedScanError, "3D"),
        (lambda bits: bits, lambda text: text.replace(b"cartesian", b"spiral"), UnsupportedScanError, "spiral"),
        (lambda bits: [], bytes, BadInputError, "no image lines came"),
    ],
)
def test_a_chain_that_misses_a_piece_is_refused(scan, edit, xml, error, words):
    with pytest.raises(error, match=words):
        recon(scan, edit, xml)


def test_epi_is_fine_once_gadgetron_has_corrected_it(scan):
    assert len(recon(scan, xml=epi)) == 2


def cut_echo(bits):
    """An asymmetric echo as buffers hold it without parallel imaging: the samples discarded have no place."""
    for bit in bits:
        bit.data.data = bit.data.data[12:]
        for head in bit.data.headers.ravel():
            head.discard_pre = 12
    return bits


def test_an_asymmetric_echo_keeps_its_place(scan):
    whole, cut = recon(scan), recon(scan, cut_echo)
    for one, other in zip(whole, cut, strict=True):
        columns = other.mask[24].bool()
        assert columns.tolist() == [column >= 12 + 2 for column in range(64)]  # 2 beside the edge lost accuracy
        assert other.kspace[..., columns].equal(one.kspace[..., columns])


def test_raw_acquisitions_from_a_gadgetron_are_refused(scan, engine):
    with open_scan(scan) as opened:
        lines = [fake_peer.acquisition(line) for line in opened.acquisitions()]
    stream = edited_stream(scan)
    answer = Here(engine).exchange(*stream[:2], *lines[:80], close())
    assert answer.errors[0].endswith(
        "the chain lacks AcquisitionAccumulateTriggerGadget and BucketToBufferGadget before this gadget"
    )
