"""Calibration lines: embedded, separate, of another encoding space, or the centre of k-space."""

import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.data import LostSlice
from dpmrecon.errors import BadInputError, UnsupportedScanError
from dpmrecon.mrd import waiting
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.completeness import central_block
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.header import read_header
from dpmrecon.mrd.scan_log import ScanLog
from dpmrecon.mrd.settling import NO_NOISE

from support.hand_made import (
    BOTH,
    CAL,
    header,
    header_xml,
    line,
    noise_lines,
    only,
    point_scan,
    samples,
    volume_header,
    volume_scan,
    write_scan,
)


def flagged(number, cal=range(12, 21), step=4):
    """Flags as scanners set them: calibration lines that the pattern needs too are both."""
    return () if number not in cal else (BOTH,) if number % step == 0 else (CAL,)


def test_embedded_calibration_is_image_too():
    numbers = sorted({*range(0, 33, 4), *range(12, 21)})
    lines = [line(n, samples(n, 2, 3), flagged(n)) for n in numbers]
    result = only(slices(lines, header(acceleration=4)))
    assert result.mask[:, 0].nonzero().squeeze(1).tolist() == numbers
    torch.testing.assert_close(result.calibration, result.kspace[:, 12:21])  # row 16, index 4, is the centre
    assert (result.n_lines_got, result.n_lines_needed) == (15, 9)
    assert result.acceleration == 4


def test_separate_calibration_serves_later_repetitions(tmp_path):
    lines = [line(n, 7 * samples(n, 2, 3), (CAL,), slice=s) for s in (1, 0) for n in range(12, 21)]
    lines += [
        line(n, (1 + r) * samples(n, 2, 3), (), slice=s, repetition=r)
        for r in (0, 1)
        for s in (1, 0)
        for n in range(0, 33, 4)
    ]
    xml = header_xml(acceleration=4, mode="separate")
    with open_scan(write_scan(tmp_path / "scan.h5", lines, xml)) as scan:
        from_file = list(slices(scan.acquisitions(), scan.header))
    from_stream = list(slices(lines, read_header(xml)))
    assert len(from_stream) == 4
    assert [(item.key.repetition, item.key.slice) for item in from_file] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for item in from_file + from_stream:
        assert item.mask[:, 0].nonzero().squeeze(1).tolist() == list(range(0, 33, 4))  # calibration is no image
        assert item.calibration.shape == (3, 9, 26)
        expected = torch.from_numpy((7 * samples(16, 2, 3)).astype(np.complex64))
        torch.testing.assert_close(item.calibration[:, 4], expected)


@pytest.mark.parametrize("mode", ["embedded", "other", ""])
@pytest.mark.parametrize("order", ["calibration first", "image first", "interleaved"])
def test_separate_calibration_that_the_header_does_not_announce(tmp_path, mode, order):
    # another gain and sign: a mean of the two would be no row of either
    calibration = [line(n, -7 * samples(n, 2, 3), (CAL,)) for n in range(12, 21)]
    image = [line(n, samples(n, 2, 3)) for n in range(0, 33, 4)]
    lines = image + calibration if order == "image first" else calibration + image
    if order == "interleaved":
        lines.sort(key=lambda one: one.idx.kspace_encode_step_1)
    xml = header_xml(acceleration=4, mode=mode)
    xml = xml if mode else xml.replace("<calibrationMode></calibrationMode>", "")
    with open_scan(write_scan(tmp_path / "scan.h5", lines, xml)) as scan:
        results = [only(slices(scan.acquisitions(), scan.header)), only(slices(lines, read_header(xml)))]
    for result in results:
        assert result.mask[:, 0].nonzero().squeeze(1).tolist() == list(range(0, 33, 4))
        expected = torch.from_numpy(samples(16, 2, 3).astype(np.complex64))
        torch.testing.assert_close(result.kspace[:, 16], expected)
        torch.testing.assert_close(result.calibration, -7 * point_calibration(2, 3))


def point_calibration(y, x):
    return torch.from_numpy(np.stack([samples(n, y, x) for n in range(12, 21)], 1).astype(np.complex64))


def test_embedded_calibration_of_interleaved_contrasts_stays_with_its_own():
    numbers = sorted({*range(0, 33, 4), *range(12, 21)})
    lines = [line(n, (1 + c) * samples(n, 2, 3), flagged(n), contrast=c) for n in numbers for c in (0, 1)]
    items = list(slices(lines, header(acceleration=4)))
    assert [item.n_lines_got for item in items] == [15, 15]
    for item, factor in zip(items, (1, 2)):
        torch.testing.assert_close(item.calibration, factor * point_calibration(2, 3))


def test_embedded_calibration_is_no_acquisition_of_its_own():
    """The header's centre is off, which its lines alone would tell too, by another number: some are the image's."""
    numbers = sorted({*range(0, 97, 4), *range(36, 61)})
    lines = [line(n, samples(n, 2, 3, rows=97), flagged(n, range(36, 61))) for n in numbers]
    for one in lines:
        one.data[:] *= np.exp(-(((one.idx.kspace_encode_step_1 - 47) / 2) ** 2)) + 0.01
    head = header(rows=97, acceleration=4, center=54)
    found = only(slices(lines, head))
    assert not any("calibration lines are counted otherwise" in text for text in found.remarks)


def test_a_line_of_both_flags_is_the_images_in_the_average_without_calibration_too():
    """As readers of Siemens data have it, whose lines may bear both marks."""
    first = sorted({*range(0, 33, 4), *range(12, 21)})

    def scan(both):
        flags = {n: both if flagged(n) == (BOTH,) else flagged(n) for n in first}
        lines = [line(n, samples(n, 2, 3), flags[n], average=0) for n in first]
        return [*lines, *(line(n, 1.02 * samples(n, 2, 3), (), average=1) for n in range(0, 33, 4))]

    one, other = (
        only(slices(scan(both), header(acceleration=4), combine_averages=True)) for both in ((BOTH,), (BOTH, CAL))
    )
    assert torch.equal(one.kspace, other.kspace) and torch.equal(one.calibration, other.calibration)
    torch.testing.assert_close(other.kspace[:, 16], 1.01 * torch.from_numpy(samples(16, 2, 3)).to(torch.complex64))


def test_embedded_calibration_that_the_header_calls_separate_is_embedded():
    numbers = sorted({*range(0, 33, 4), *range(12, 21)})
    lines, log = [line(n, samples(n, 2, 3), flagged(n)) for n in numbers], ScanLog()
    found = only(slices(lines, header(acceleration=4, mode="separate"), log=log))
    embedded = only(slices(lines, header(acceleration=4)))
    assert torch.equal(found.kspace, embedded.kspace) and torch.equal(found.calibration, embedded.calibration)
    assert any("it is taken as embedded" in text for text in log.remarks)


@pytest.mark.parametrize("counter", ["repetition", "average", "set", "contrast"])
def test_embedded_calibration_of_the_first_serves_later_images_of_its_slice_alone(counter):
    numbers = sorted({*range(0, 33, 4), *range(12, 21)})
    lines = [line(n, samples(n, 2, 3), flagged(n)) for n in numbers]
    lines += [line(n, -7 * samples(n, 2, 3), **{counter: 1}) for n in range(0, 33, 4)]
    lines += [line(n, samples(n, 2, 3), slice=1) for n in range(0, 33, 4)]
    with_its_own, without, other_slice = sorted(slices(lines, header(acceleration=4)), key=lambda item: item.key)
    torch.testing.assert_close(without.calibration, point_calibration(2, 3))
    assert without.mask[:, 0].nonzero().squeeze(1).tolist() == list(range(0, 33, 4))  # it is no image
    assert f"those of {counter} 0 of its slice calibrate it" in "; ".join(without.remarks)
    assert with_its_own.remarks == () and other_slice.calibration is None


@pytest.mark.parametrize("counter", ["repetition", "average", "set", "contrast"])
@pytest.mark.parametrize("mode", ["separate", "embedded"])
@pytest.mark.parametrize("ends", [(), (ismrmrd.ACQ_LAST_IN_SLICE,)])
def test_calibration_of_a_later_image_serves_the_first(tmp_path, counter, mode, ends):
    """Its own lines, or some of that image's; the other slice has none."""

    def ended(lines):
        for flag in ends:
            lines[-1].set_flag(flag)
        return lines

    lines = ended([line(n, samples(n, 2, 3)) for n in range(0, 33, 4)])
    lines += ended([line(n, samples(n, 2, 3), slice=1) for n in range(0, 33, 4)])
    numbers = sorted({*range(0, 33, 4), *range(12, 21)})
    of_calibration = [n for n in numbers if mode == "separate" and 12 <= n < 21 or flagged(n) == (CAL,)]
    lines += [line(n, samples(n, 2, 3), (CAL,), **{counter: 1}) for n in of_calibration]
    lines += ended([line(n, samples(n, 2, 3), **{counter: 1}) for n in range(0, 33, 4)])
    xml = header_xml(acceleration=4, mode=mode)
    with open_scan(write_scan(tmp_path / "scan.h5", lines, xml)) as scan:
        from_file = sorted(slices(scan.acquisitions(), scan.header), key=lambda item: item.key)
    for items in (from_file, sorted(slices(lines, read_header(xml)), key=lambda item: item.key)):
        first, with_its_own, other_slice = items
        torch.testing.assert_close(first.calibration, point_calibration(2, 3))
        torch.testing.assert_close(with_its_own.calibration, point_calibration(2, 3))
        assert first.n_lines_got == 9 and other_slice.calibration is None
        told = f"those of {counter} 1 of its slice calibrate it" in "; ".join(first.remarks)
        assert told or (mode == "separate" and not ends and items is not from_file)  # it came while all were open
        assert with_its_own.remarks == ()


@pytest.mark.parametrize("mode", ["separate", "interleaved"])
def test_images_wait_for_a_calibration_as_long_as_memory_holds_them(monkeypatch, mode):
    """Two slices come without any, a third with the memory full, and all again with calibration lines."""
    lines = [line(n, samples(n, 2, 3), slice=s) for s in range(3) for n in range(0, 33, 4)]
    if mode == "separate":
        lines += [line(n, samples(n, 2, 3), (CAL,), slice=s, repetition=1) for s in range(3) for n in range(12, 21)]
        lines += [line(n, samples(n, 2, 3), slice=s, repetition=1) for s in range(3) for n in range(0, 33, 4)]
    else:
        lines += [
            line(n, samples(n, 2, 3), slice=s, repetition=r) for r in (1, 2, 3, 4) for s in range(3)
            for n in range(r % 4, 33, 4)
        ]  # fmt: skip
    for this, after in zip(lines, lines[1:]):
        if (this.idx.slice, this.idx.repetition) != (after.idx.slice, after.idx.repetition):
            this.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
    found = list(slices(lines, header(acceleration=4, mode=mode)))
    assert not any(isinstance(item, LostSlice) for item in found)
    asked = []

    def nearly_full(held: float) -> bool:
        asked.append(held)
        return len(asked) == 3

    monkeypatch.setattr(waiting, "nearly_full_of", nearly_full)
    again = list(slices(lines, header(acceleration=4, mode=mode)))
    lost = [item for item in again if isinstance(item, LostSlice)]
    assert {item.key.slice for item in lost if item.key.repetition == 0} == {0, 1, 2}
    assert all("memory is full of images that wait for calibration lines (3)" in item.reason for item in lost[:3])
    assert sorted(item.key for item in again) == sorted(item.key for item in found)


def test_calibration_of_a_volume_that_comes_with_the_next():
    places = [(z, n) for z in range(13) for n in range(0, 33, 2)]
    block = [(z, n) for z in range(2, 11) for n in range(12, 21)]
    lines = [*volume_scan(1, 2, 3, places), *volume_scan(1, 2, 3, block), *volume_scan(1, 2, 3, places)]
    for one in lines[len(places) :]:
        one.idx.repetition = 1
    for one in lines[len(places) : len(places) + len(block)]:
        one.set_flag(CAL)
    for repetition in (lines[: len(places)], lines[len(places) :]):
        repetition[-1].set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
    found = sorted(slices(lines, volume_header(acceleration=2, mode="separate")), key=lambda item: item.key)
    torch.testing.assert_close(found[0].calibration, found[1].calibration)
    assert found[0].calibration.shape == (3, 9, 9, 26)
    assert [len(item.remarks) for item in found] == [1, 0]


def test_embedded_calibration_that_lies_elsewhere_is_said():
    lines = [line(n, samples(n, 2, 3)) for n in sorted({*range(0, 33, 4), *range(12, 21)})]
    lines += [line(n, samples(n, 2, 3), repetition=1) for n in range(0, 33, 4)]
    for one in lines[-9:]:
        one.position[2] = 2
    _, moved = slices(lines, header(acceleration=4))
    assert moved.calibration is not None and "they lie elsewhere" in moved.remarks[-1]


def test_embedded_calibration_of_another_receiver_is_left_out():
    numbers = sorted({*range(0, 33, 4), *range(12, 21)})
    lines = [line(n, samples(n, 2, 3)[: 2 if flagged(n) == (CAL,) else 3], flagged(n)) for n in numbers]
    log = ScanLog()
    found = only(slices(lines, header(acceleration=4), log=log))
    assert found.calibration is None and log.remarks == [
        "6 lines of 2 channels are left out: the image's have 3",
        NO_NOISE,
    ]


@pytest.mark.parametrize("n_lines", [13, 19])
def test_separate_calibration_that_is_counted_from_0_on(n_lines):
    """Of 19 lines some lie around the image's centre."""

    def soft(lines):
        for one in lines:
            one.data[:] *= np.exp(-(((one.idx.kspace_encode_step_1 - 16) / 4) ** 2)) + 0.01
        return lines

    first = 16 - n_lines // 2
    image = soft(point_scan(2, 3, range(0, 33, 2)))
    calibration = soft(point_scan(2, 3, range(first, first + n_lines)))
    for one in calibration:
        one.set_flag(CAL)
    head = header(acceleration=2, mode="separate")
    right = only(slices([*calibration, *image], head))
    for one in calibration:
        one.idx.kspace_encode_step_1 -= first
    found = only(slices([*calibration, *image], head))
    assert torch.equal(found.calibration, right.calibration) and torch.equal(found.kspace, right.kspace)
    assert right.remarks == ()
    assert found.remarks[0].startswith("calibration lines are counted otherwise than the image's")


@pytest.mark.parametrize("moved", [(6, 0), (0, 12), (6, 12)])
@pytest.mark.parametrize("off", [0, 1])
def test_separate_calibration_of_a_volume_that_is_counted_from_0_on(moved, off):
    """The peak of the energy is `off` the block's middle, as the head's phase moves it."""

    def soft(lines):
        for one in lines:
            far = one.idx.kspace_encode_step_2 - 10 - off, one.idx.kspace_encode_step_1 - 16 - off
            one.data[:] *= np.exp(-np.square(far).sum() / 2) + 1e-4
        return lines

    image = soft(volume_scan(2, -5, 4, [(p, n) for p in range(21) for n in range(0, 33, 2)], 21))
    calibration = soft(volume_scan(2, -5, 4, [(p, n) for p in range(6, 15) for n in range(12, 21)], 21))
    for one in calibration:
        one.set_flag(CAL)
    head = volume_header(21, acceleration=2, mode="separate")
    right = only(slices([*calibration, *image], head))
    for one in calibration:
        one.idx.kspace_encode_step_2 -= moved[0]
        one.idx.kspace_encode_step_1 -= moved[1]
    found = only(slices([*calibration, *image], head))
    assert torch.equal(found.calibration, right.calibration) and torch.equal(found.kspace, right.kspace)
    assert right.remarks == ()
    (remark,) = found.remarks
    assert remark.startswith("calibration lines are counted otherwise than the image's")
    told = zip(("partition", "line"), moved, (10, 16))
    assert all(
        (f"{name} {centre - shift} is taken for {centre}" in remark) == bool(shift) for name, shift, centre in told
    )


def test_separate_calibration_of_another_encoding_space():
    # the same geometry with limits of its own
    xml = header_xml(acceleration=4, mode="separate")
    encoding = xml[xml.index("<encoding>") : xml.index("</ismrmrdHeader>")]
    second = encoding.replace("<center>16</center>", "<center>5</center>").replace("<maximum>32<", "<maximum>9<")
    calibration = [line(n, samples(n + 11, 2, 3), (CAL,), space=1) for n in range(10)]
    lines = calibration + [line(n, samples(n, 2, 3)) for n in range(0, 33, 4)]
    same = read_header(xml.replace("</ismrmrdHeader>", second + "</ismrmrdHeader>"))
    result = only(slices(lines, same))
    expected = torch.from_numpy(samples(16, 2, 3).astype(np.complex64))
    torch.testing.assert_close(result.calibration[:, result.calibration.shape[1] // 2], expected)

    other = read_header(xml.replace("</ismrmrdHeader>", second.replace("<x>26", "<x>30") + "</ismrmrdHeader>"))
    with pytest.raises(UnsupportedScanError, match="encoding space 1"):
        list(slices(lines, other))
    with pytest.raises(UnsupportedScanError, match="encoding space 1"):
        list(slices([line(0, samples(0, 2, 3), space=1)], same))
    with pytest.raises(BadInputError, match="encoding space 2"):
        list(slices([line(0, samples(0, 2, 3), space=2)], same))


def test_calibration_from_the_centre_or_none():
    def scan(calibration):
        return point_scan(1, 1, numbers=sorted({*range(0, 33, 4), *calibration}))

    head = header(acceleration=4)
    assert only(slices(scan(range(13, 21)), head)).calibration.shape[1] == 9  # 12 belongs to the pattern
    assert only(slices(scan(range(14, 18)), head)).calibration is None
    assert only(slices(scan([]), head)).calibration is None


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (range(4, 12), range(4, 12)),  # as the centre of 8 rows lies at index 4
        (range(4, 13), range(4, 13)),
        (range(6, 14), range(6, 11)),
        (range(2, 10), range(6, 10)),
        (range(9, 14), range(0)),
        (range(8, 14), range(8, 9)),
    ],
)
def test_central_block_has_its_centre_in_the_middle(rows, expected):
    block = central_block(rows, 8)
    assert list(block) == list(expected)
    assert not block or block[len(block) // 2] == 8


def test_repetitions_that_bring_each_others_lines_are_calibrated_together_and_stay_apart():
    lines = [line(n, (1 + n % 2) * samples(n, 2, 3), repetition=n % 2, slice=s) for s in (0, 1) for n in range(33)]
    limits = "<repetition><minimum>0</minimum><maximum>1</maximum><center>0</center></repetition>"
    log = ScanLog()
    items = list(slices(lines, header(acceleration=2, mode="interleaved", extra_limits=limits), log=log))
    assert sorted((item.key.slice, item.key.repetition) for item in items) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for item in items:
        assert item.mask[:, 0].nonzero().squeeze(1).tolist() == list(range(item.key.repetition, 33, 2))
        assert item.calibration.shape == (3, 33, 26) and item.pooled
    together = "averages or repetitions with interleaved lines are calibrated by all of them together"
    assert log.remarks == [together, NO_NOISE]


def test_repeated_calibration_lines_with_other_data_are_not_added_up():
    image = noise_lines(np.random.default_rng(5), 0.01) + [line(n, samples(n, 1, 1)) for n in range(0, 33, 2)]
    apart = [line(n, samples(n, 1, 1), (CAL,)) for n in range(8, 25)]
    other = [line(n, samples(n, 5, 4), (CAL,)) for n in range(8, 25)]
    head = header(acceleration=2, mode="separate")
    assert only(slices(image + apart + apart, head)).calibration.shape == (3, 17, 26)
    (found,) = slices(image + apart + other, head)
    assert (
        isinstance(found, LostSlice) and "its calibration lines of one label differ by more than noise" in found.reason
    )
