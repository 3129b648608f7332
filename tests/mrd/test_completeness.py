"""Whether a slice is whole: the lines that limits and R announce, or that the lines themselves tell."""

import re

import numpy as np
import pytest
from dpmrecon.data import LostSlice, SliceKey
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.completeness import announced_lines, first_slice, missing_slices
from dpmrecon.mrd.header import Limits, acceleration, line_limits, overridden, read_header

from support import hand_made
from support.hand_made import header, header_xml, line, only, point_scan, reason, samples


def limits(minimum, maximum, center):
    return Limits(minimum, maximum, center)


@pytest.mark.parametrize(
    ("numbers", "bounds", "acceleration", "expected"),
    [
        (range(40), limits(0, 39, 20), 1, (40, 40)),
        (range(20), limits(0, 39, 20), 1, (20, 40)),
        ({*range(3, 40, 4), *range(16, 24)}, limits(0, 39, 20), 4, (10, 10)),
        ({*range(3, 20, 4), *range(16, 20)}, limits(0, 39, 20), 4, (5, 10)),  # half of it
        ({*range(3, 40, 4), *range(16, 24)} - {31}, limits(0, 39, 20), 4, (9, 10)),
        (range(2, 30, 3), limits(0, 29, 8), 3, (10, 10)),  # partial Fourier
        (range(16, 24), limits(0, 39, 20), 4, (2, 10)),  # nothing but calibration
        (range(20), limits(0, 39, 20), 4, (5, 10)),  # half of a full scan that announces R = 4
        (range(40), limits(0, 39, 20), 4, (10, 10)),
        ({*range(18, 23), 1, 4, 7, 11, 30, 36}, limits(0, 39, 20), 4, (11, 10)),  # random
        ({*range(18, 23), 1, 4, 7}, limits(0, 39, 20), 4, (8, 10)),
    ],
)
def test_announced_lines(numbers, bounds, acceleration, expected):
    assert announced_lines(np.array(sorted(numbers)), bounds, acceleration) == expected


def without_parallel_imaging(**options):
    xml = header_xml(**options)
    end = "</parallelImaging>"
    return read_header(xml[: xml.index("<parallelImaging>")] + xml[xml.index(end) + len(end) :])


def test_acceleration_that_no_header_announces():
    head = without_parallel_imaging()
    assert acceleration(head) is None

    def scan(numbers):
        return slices(point_scan(1, 1, numbers=sorted(numbers)), head)

    result = only(scan({*range(0, 33, 4), *range(12, 21)}))
    assert (result.acceleration, result.n_lines_needed, result.n_lines_got) == (4, 9, 15)
    assert only(scan(range(33))).acceleration == 1
    for lost in (range(17), range(0, 33, 4), set(range(33)) - {26, 28, 30}, {*range(12, 21), 1, 5, 24, 29, 31}):
        assert "the header announces no R" in reason(scan(lost))
    # a line of the pattern is missing
    text = "incomplete: 8 of the 9 lines came that the limits (0 to 32) give at R = 4, and the header announces no R"
    assert reason(scan({*range(0, 33, 4), *range(12, 21)} - {4})) == text
    # a header that says R = 1 is believed
    numbers = sorted({*range(0, 33, 4), *range(12, 21)})
    assert "R = 1 announce" in reason(slices(point_scan(1, 1, numbers=numbers), header()))


def test_partial_fourier_without_limits_is_told_how_to_give_them():
    xml = header_xml(acceleration=4)
    start, end = xml.index("<kspace_encoding_step_1>"), xml.index("</kspace_encoding_step_1>")
    without = xml[:start] + xml[end + len("</kspace_encoding_step_1>") :]
    head = read_header(without)
    numbers = sorted({*range(8, 33, 4), *range(12, 21)})
    text = reason(slices(point_scan(1, 1, numbers=numbers), head))
    (changes,) = re.findall("--set '(.*)'", text)
    changed = read_header(overridden(without.encode(), changes))
    assert line_limits(changed) == Limits(8, 32, 16)
    assert only(slices(point_scan(1, 1, numbers=numbers), changed)).n_lines_got == len(numbers)
    lost = sorted({*range(0, 33, 4), *range(12, 21)} - {24})
    assert "partial Fourier" not in reason(slices(point_scan(1, 1, numbers=lost), head))


def test_half_a_slice_is_lost_and_the_others_come_out():
    lines = [line(n, samples(n, 1, 1), slice=s) for s in range(3) for n in range(0, 33 if s != 1 else 17, 4)]
    items = sorted(slices(lines, header(acceleration=4)), key=lambda item: item.key)  # those without maps leave last
    assert [isinstance(item, LostSlice) for item in items] == [False, True, False]
    assert items[1].reason == "incomplete: 5 of the 9 lines came that the limits (0 to 32) and R = 4 announce"
    assert items[1].key.slice == 1


@pytest.mark.parametrize(
    ("announced", "came", "first"),
    [
        ((0, 2), (0, 1, 2), 0),
        ((0, 2), (1, 2, 3), 1),  # three are announced and three came
        ((0, 2), (1, 2), 0),  # slice 0 is lost
        ((1, 3), (2, 3), 1),
        ((1, 3), (), 1),
        (None, (1, 2), 1),
        (None, (), 0),
    ],
)
def test_the_first_slice_is_the_announced_one_or_the_least(announced, came, first):
    head = header(
        extra_limits="" if announced is None else hand_made.limits("slice", announced[1], minimum=announced[0])
    )
    assert first_slice(head, came) == first


def test_without_limits_no_slice_0_is_missing_of_slices_that_are_counted_from_1():
    came = [SliceKey(1), SliceKey(2)]
    assert list(missing_slices(header(), came, combine_averages=False)) == []


@pytest.mark.parametrize(
    ("maximum", "came", "missing"),
    [
        (2, (1, 2, 3), {}),  # three are announced and three came
        (2, (0, 1, 3), {2: ""}),
        (
            3,
            (1, 2, 3),
            {0: "; if slices are counted from 1, it never was (--set encoding.encodingLimits.slice.minimum=1)"},
        ),
        (3, (0, 1, 2), {3: "if the limits' maximum is the number of slices, it never was"}),
        (3, (0, 2, 3), {1: ""}),
        (3, (2, 3), {0: "", 1: ""}),
    ],
)
def test_slices_that_are_counted_from_1_are_not_missing(maximum, came, missing):
    head, keys = header(extra_limits=hand_made.limits("slice", maximum)), [SliceKey(number) for number in came]
    found = {item.key.slice: item.reason for item in missing_slices(head, keys, combine_averages=False)}
    assert list(found) == list(missing)
    for number, told in found.items():
        assert missing[number] in told and ("if" in told) is bool(missing[number])
    plain = missing_slices(head, keys, combine_averages=False, can_be_set=False)
    assert [item.reason for item in plain] == len(missing) * ["it is announced and none of its lines came"]
