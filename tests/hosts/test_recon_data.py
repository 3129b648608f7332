"""ReconData as slices: what the lines give, and a chain that misses a piece is refused."""

import re
import socket
import threading

import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.data import LostSlice, Slice, SliceKey
from dpmrecon.errors import BadInputError, UnsupportedScanError
from dpmrecon.hosts import wire
from dpmrecon.hosts.byte_stream import SocketStream
from dpmrecon.hosts.recon_data import slices_of
from dpmrecon.hosts.wire import ReconBit, ReconBuffer, Wire
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.header import read_header

from support.hand_made import assert_point, header, only, point_scan
from support.streams import edited_stream


def recon(scan, edit_bits=lambda bits: bits, xml=lambda text: text, line_headers=None, combine_averages=False, **kinds):
    """The slices that recon_data makes of a scan, once `edit_bits` has seen what came over the wire."""
    ours, theirs = socket.socketpair()
    messages = edited_stream(scan, xml=xml, **kinds)
    sender = threading.Thread(target=theirs.sendall, args=(b"".join(messages),))
    sender.start()
    peer = Wire(SocketStream(ours))
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
    return list(slices_of(edit_bits(bits), header, line_headers, combine_averages=combine_averages))


def test_recon_data_is_what_the_lines_give(scan):
    with open_scan(scan) as opened:
        expected_heads: dict = {}
        expected = list(slices(opened.acquisitions(), opened.header, expected_heads))
    heads: dict = {}
    found = recon(scan, line_headers=heads)
    assert heads == expected_heads and len(heads) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.key == theirs.key
        assert ours.mask.equal(theirs.mask)
        assert ours.kspace.allclose(1.26 * theirs.kspace)
        assert ours.calibration.allclose(1.26 * theirs.calibration)
        assert ours.sigma_n == pytest.approx(1.26 * theirs.sigma_n, rel=0.08)
        assert (ours.n_lines_got, ours.n_lines_needed) == (theirs.n_lines_got, theirs.n_lines_needed)


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


def uncalibrated(bit):
    """As a repetition without calibration comes: every other line, and a copy of them in `ref`."""
    data, heads = bit.data.data.copy(), bit.data.headers.copy()
    data[:, 1::2] = 0
    for row, head in enumerate(bit.data.headers[:, 0, 0, 0, 0]):
        own = ismrmrd.AcquisitionHeader.from_buffer_copy(head)
        own.flags = 0
        own.number_of_samples *= 1 - row % 2
        heads[row, 0, 0, 0, 0] = own
    return ReconBit(ReconBuffer(data, heads), ReconBuffer(data, heads))


def separate(text: bytes) -> bytes:
    return text.replace(b"embedded", b"separate")


@pytest.mark.parametrize("mode", [bytes, separate])
def test_a_copy_of_image_lines_is_no_calibration_the_last_one_serves(scan, mode):
    def edit(bits):
        first, second = bits
        return [first, uncalibrated(first), uncalibrated(second), second]

    first, again, none, own = recon(scan, edit, xml=mode)
    assert again.calibration.equal(first.calibration)
    assert again.n_lines_got == 24
    assert none.calibration is None  # another slice's serves no other
    assert own.calibration is not None


def test_announced_slices_that_never_came_are_named(scan):
    """A scan that is cut at a slice's end is a normal end."""
    found, lost = recon(scan, lambda bits: bits[:1])
    assert isinstance(found, Slice)
    assert (lost.key, lost.reason) == (SliceKey(1), "it is announced and none of its lines came")


@pytest.mark.parametrize(
    ("counter", "maximum", "together", "lost"),
    [("repetition", 1, False, 3), ("repetition", 65535, False, 0), ("average", 1, False, 3), ("average", 1, True, 1)],
)
def test_what_limits_announce(scan, counter, maximum, together, lost):
    """Limits that mean nothing announce nothing; of averages that are put together, one that came is enough."""
    limit = f"<{counter}><minimum>0</minimum><maximum>{maximum}</maximum><center>0</center></{counter}>".encode()

    def xml(text):
        text = re.sub(rb"<(average|repetition)>.*?</\1>", b"", text, flags=re.DOTALL)
        return text.replace(b"<encodingLimits>", b"<encodingLimits>" + limit)

    found = recon(scan, lambda bits: bits[:1], xml=xml, combine_averages=together)
    assert len(found) == 1 + lost


def test_a_calibration_that_comes_alone_serves_the_images_after_it(scan):
    def edit(bits):
        alone = ReconBit(ReconBuffer(np.zeros((0,) * 7, np.complex64), np.zeros((0,) * 5, object)), bits[0].ref)
        return [alone, uncalibrated(bits[0])]

    (whole, _), (found, _) = recon(scan, xml=separate), recon(scan, edit, xml=separate)
    assert found.calibration.equal(whole.calibration)


def test_without_acceleration_the_copy_is_the_image_itself(simulated_scan):
    def edit(bits):
        for bit in bits:
            for head in bit.data.headers.ravel():
                head.flags = 0
            bit.ref = bit.data
        return bits

    full = simulated_scan(matrix=(48, 64), acceleration=1)
    (found,) = recon(full, edit)
    assert found.calibration.equal(found.kspace)


def test_a_calibration_of_other_channels_loses_its_slice(scan):
    def edit(bits):
        bits[0].ref.data = bits[0].ref.data[:, :, :, :3]
        return bits

    first, second = recon(scan, edit, xml=separate)
    assert first.reason == "its calibration has 3 channels, its image lines have 6"
    assert isinstance(second, Slice)


@pytest.mark.parametrize(("y", "x"), [(0, 0), (3, -5), (-2, 9)])
def test_an_odd_readout_is_put_where_replay_puts_it(y, x):
    """RemoveROOversamplingGadget crops 54 columns from (54 - 27) // 2 = 13 on, and the centre is 27 - 13 = 14."""
    lines, head = point_scan(y, x, cols=27, oversampling=2), header(x=54, fov_x=270, recon_x=27, recon_fov_x=135)
    assert_point(only(slices(lines, head)).kspace, y, x, contrast=0.03)  # its oversampling is removed by a convolution
    data, heads = np.zeros((27, 33, 1, 3, 1, 1, 1), np.complex64), np.full((33, 1, 1, 1, 1), None, object)
    for line in lines:
        row, own = line.idx.kspace_encode_step_1, line.getHead()
        image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(line.data, axes=1), axis=1), axes=1)[:, 13:40]
        data[:, row, 0, :, 0, 0, 0] = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, axes=1), axis=1), axes=1).T
        own.number_of_samples, own.center_sample = 27, 13
        heads[row, 0, 0, 0, 0] = own
    found = only(slices_of([ReconBit(ReconBuffer(data, heads), None)], head))
    assert_point(found.kspace, y, x, contrast=0.03)


REFUSED = "NoiseAdjustGadget ends every scan that has noise lines"


@pytest.mark.parametrize(
    ("patient", "measurement", "said"),
    [("", "1_2_3", True), ("", "simulated", True), ("", None, True), ("", "1_2_3_4", False), ("ID", "1_2_3", False)],
)
def test_noise_adjust_is_named_where_it_refuses_the_header(patient, measurement, said):
    xml = "" if measurement is None else f"<measurementID>{measurement}</measurementID>"
    head = header(measurement=f"<measurementInformation>{xml}</measurementInformation>")
    if patient:
        head.subjectInformation = ismrmrd.xsd.subjectInformationType(patientID=patient)
    with pytest.raises(BadInputError, match="no image lines came") as caught:
        list(slices_of([], head))
    assert (REFUSED in str(caught.value)) == said


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
        (partitions, bytes, BadInputError, "announces a 2D scan"),
        (lambda bits: bits, lambda text: text.replace(b"cartesian", b"spiral"), UnsupportedScanError, "spiral"),
        (lambda bits: [], bytes, BadInputError, "no image lines came"),
    ],
)
def test_a_chain_that_misses_a_piece_is_refused(scan, edit, xml, error, words):
    with pytest.raises(error, match=words):
        recon(scan, edit, xml)


def test_epi_is_fine_once_gadgetron_has_corrected_it(scan):
    assert len(recon(scan, xml=epi)) == 2


def in_two_shots(bits):
    """As if every other line had come after all the others."""
    for bit in bits:
        for buffer in (bit.data, bit.ref):
            for row, heads in enumerate(buffer.headers):
                for head in heads.flat:
                    head.scan_counter = 1000 * (row % 2) + row
    return bits


def test_shots_of_weighted_epi_are_told_by_the_order_of_lines(scan):
    def weighted(text):
        return epi(re.sub(b"<protocolName>[^<]*", b"<protocolName>DWI", text))

    for item in recon(scan, in_two_shots, weighted):
        acquired = item.mask.any(1)
        assert item.shots[acquired].tolist() == (torch.nonzero(acquired).flatten() % 2).tolist()
    for edit, xml in ((in_two_shots, epi), (lambda bits: bits, weighted)):
        assert all(item.shots is None for item in recon(scan, edit, xml))


def as_it_leaves_the_server(bits):
    """Full k-space in two shots, of which `ref` holds a copy."""
    for bit in bits:
        for head in bit.data.headers.ravel():
            head.flags = 0
        bit.ref = bit.data
    return in_two_shots(bits)


@pytest.mark.parametrize(
    ("b_values", "calibrated", "said"), [(b"0 1000", [0, 0], False), (b"50 1000", [], False), (b"", [0, 0], True)]
)
def test_weighted_shots_have_their_calibration_from_an_unweighted_image(simulated_epi, b_values, calibrated, said):
    full = simulated_epi(shots=2, acceleration=1, calibration="none", directions_per_b=1, matrix=(47, 43))

    def xml(text):
        values = b"".join(b"<diffusion><bvalue>%s</bvalue></diffusion>" % value for value in b_values.split())
        return re.sub(b"<diffusion>.*</diffusion>", values, text, flags=re.DOTALL)

    items = recon(full, as_it_leaves_the_server, xml)
    found = [item for item in items if isinstance(item, Slice)]
    assert all(item.calibration.equal(found[of].kspace) for item, of in zip(found, calibrated, strict=True))
    assert any("it came first" in remark for item in found for remark in item.remarks) == said
    assert all("they calibrate nothing together" in item.reason for item in items if item not in found)


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
