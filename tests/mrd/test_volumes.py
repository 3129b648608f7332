"""3D scans line by line: where a line lies, which lines a volume needs, its calibration, and what loses it."""

import itertools

import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.data import LostSlice, Volume
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.header import Limits, acceleration, n_partitions
from dpmrecon.mrd.header_doubts import doubts
from dpmrecon.mrd.scan_log import ScanLog
from dpmrecon.mrd.volumes import central_box, volume_completeness
from dpmrecon.simulation.sampling import Pattern

from support.hand_made import (
    CAL,
    MIXING,
    OVERSAMPLED,
    assert_point,
    average_limits,
    header,
    header_xml,
    limits,
    noise_lines,
    noisy,
    only,
    reason,
    volume_header,
    volume_scan,
    write_scan,
)
from support.paths import shared

SHAPE = PARTITIONS, ROWS = 45, 52  # of the patterns
LAST = ismrmrd.ACQ_LAST_IN_SLICE
ALL = list(itertools.product(range(13), range(33)))
PLACE = (2, -5, 4)


def grid(shape=SHAPE):
    """Partitions and rows, counted from 0, as arrays (partitions, rows)."""
    return np.meshgrid(*map(np.arange, shape), indexing="ij")


def distance(shape=SHAPE):
    e2, e1 = grid(shape)
    return np.hypot((e2 - shape[0] // 2) / (shape[0] / 2), (e1 - shape[1] // 2) / (shape[1] / 2))


def block(size, shape=SHAPE):
    e2, e1 = grid(shape)
    return (abs(e2 - shape[0] // 2) <= size // 2) & (abs(e1 - shape[1] // 2) <= size // 2)


def poisson(radius, shape=SHAPE, seed=3):
    """Lines that keep a distance from each other, in an order drawn by chance."""
    rng, chosen = np.random.default_rng(seed), np.zeros(shape, bool)
    for e2, e1 in rng.permutation(np.argwhere(distance(shape) <= 1)):
        near = chosen[max(0, e2 - radius) : e2 + radius + 1, max(0, e1 - radius) : e1 + radius + 1]
        chosen[e2, e1] = not near.any()
    return chosen


def patterns():
    """Name, lines (partitions, rows), R."""
    e2, e1 = grid()
    regular = (e1 % 3 == 1) & (e2 % 2 == 0)
    caipi = (e1 % 4 == 2 * (e2 % 2)) & (e2 >= 0)
    moved = (e2 % 2 == 1) & ((e1 - (e2 // 2)) % 3 == 0)
    ellipse, disc = distance() <= 1, distance() <= 0.35
    yield "full", np.ones(SHAPE, bool), 1
    yield "one direction", (e1 % 2 == 0) | block(12), 2
    yield "regular, separate calibration", regular, 6
    yield "regular", regular | block(12), 6
    yield "caipirinha", caipi | block(13), 4
    yield "caipirinha of 2 x 3", moved | block(12), 6
    yield "elliptical", ellipse, 1
    yield "elliptical caipirinha, round calibration", (caipi & ellipse) | disc, 4


BOX = Limits(0, 44, 22), Limits(0, 51, 26)


@pytest.mark.parametrize(("lines", "factor"), [pytest.param(p, r, id=name) for name, p, r in patterns()])
def test_a_pattern_is_complete_and_a_lost_line_is_noticed(lines, factor):
    assert volume_completeness(lines, BOX, factor)[::2] == (factor, None)
    outside = np.argwhere(lines & (distance() > 0.45) & (distance() < 0.85))
    for number in np.random.default_rng(1).integers(len(outside), size=5):
        lost = lines.copy()
        lost[tuple(outside[number])] = False
        assert "incomplete" in volume_completeness(lost, BOX, factor)[2]
    for half in (np.s_[PARTITIONS // 2 :], np.s_[: PARTITIONS // 2], np.s_[:, ROWS // 2 :]):  # the peer died
        lost = lines.copy()
        lost[half] = False
        assert "incomplete" in volume_completeness(lost, BOX, factor)[2]


@pytest.mark.parametrize(
    ("lines", "factor"), [pytest.param(p, r, id=name) for name, p, r in patterns() if "separate" not in name]
)
def test_the_lines_tell_r_where_the_header_names_none(lines, factor):
    assert volume_completeness(lines, BOX, None)[::2] == (factor, None)
    assert "the header announces no R" in volume_completeness(lines & block(12), BOX, None)[2]


@pytest.mark.parametrize("seed", range(60))
def test_any_lattice_is_complete_and_a_line_less_is_not(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(24, 110, size=2)
    step_1, step_2 = rng.choice([(1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (3, 2), (1, 4), (4, 1), (3, 3), (2, 4)])
    shift, *first = rng.integers([step_1, step_2, step_1])
    e2, e1 = grid(shape)
    lattice = (e2 % step_2 == first[0]) & ((e1 - shift * (e2 // step_2)) % step_1 == first[1])
    begin = rng.choice([0, 0.1, 0.25], size=2) * shape  # partial Fourier
    inside = (e2 >= begin[0]) & (e1 >= begin[1])
    if rng.integers(2):
        inside &= distance(shape) <= 1
    calibration = [np.zeros(shape, bool), block(12, shape), np.hypot(e2 - shape[0] // 2, e1 - shape[1] // 2) <= 7]
    lines = inside & (lattice | calibration[rng.integers(3)])
    bounds = tuple(Limits(int(np.ceil(b)), int(n) - 1, int(n) // 2) for b, n in zip(begin, shape))
    factor = int(step_1 * step_2)
    assert volume_completeness(lines, bounds, factor)[::2] == (factor, None)
    regular = np.argwhere(lines & lattice & (distance(shape) > 0.5) & (distance(shape) < 0.85))
    lost = lines.copy()
    lost[tuple(rng.choice(regular))] = False
    assert "incomplete" in volume_completeness(lost, bounds, factor)[2]
    order = np.argwhere(lines)
    lost = lines.copy()
    lost[tuple(order[int(rng.uniform(0.1, 0.93) * len(order)) :].T)] = False  # the peer died
    assert "incomplete" in volume_completeness(lost, bounds, factor)[2]


def test_counts_of_lines():
    e2, e1 = grid()
    lines = (e1 % 2 == 0) & (e2 % 2 == 0)
    assert volume_completeness(lines, BOX, 4) == (4, 23 * 26, None)
    lines[4] = False
    assert volume_completeness(lines, BOX, 4)[2] == (
        "incomplete: 572 of the 598 lines came that the limits (partitions 0 to 44, lines 0 to 51) and R = 4 announce"
    )


def test_full_scan_of_an_accelerated_header():
    full = np.ones(SHAPE, bool)
    assert volume_completeness(full, BOX, 4)[2] is None
    full[30:] = False
    assert "incomplete" in volume_completeness(full, BOX, 4)[2]


def test_an_ellipse_that_lost_its_rim_or_has_some_corners_is_not_complete():
    assert "incomplete" in volume_completeness(distance() <= 0.85, BOX, 1)[2]
    lines = distance() <= 1
    lines[:3, :3] = True  # corners come: so all of them are needed
    assert "incomplete" in volume_completeness(lines, BOX, 1)[2]


@pytest.mark.parametrize("radius", [1, 2])
def test_patterns_by_chance_are_counted(radius):
    lines = poisson(radius) | block(12)
    factor = int(np.ceil((distance() <= 1).sum() / poisson(radius).sum()))
    assert volume_completeness(lines, BOX, factor)[::2] == (factor, None)
    lost = lines.copy()
    lost[PARTITIONS // 2 + 6 :] = False
    assert "incomplete" in volume_completeness(lost, BOX, factor)[2]
    # enough lines, but none at one end
    assert "at one end of the limits" in volume_completeness(lost, BOX, 4 * factor)[2]


@pytest.mark.parametrize("shape", [(24, 41), (39, 50), (48, 96)])
@pytest.mark.parametrize("elliptical", [False, True])
def test_chance_alone_is_no_lost_end(shape, elliptical):
    bounds = tuple(Limits(0, size - 1, size // 2) for size in shape)
    for seed in range(10):
        for factors in ((1, 2), (2, 2)):
            lines = Pattern(shape, factors, (0, 0), elliptical).random(np.random.default_rng(seed)) | block(12, shape)
            factor = factors[0] * factors[1]
            assert volume_completeness(lines, bounds, factor)[2] is None
            lost = lines.copy()
            lost[2 * shape[0] // 3 :] = False
            assert "incomplete" in volume_completeness(lost, bounds, factor)[2]


def test_a_measured_poisson_pattern():
    lines = np.load(shared("kspace/cartesian_ksp.npy")).any(0)  # R = 8, variable density, 24 x 24 in the centre
    bounds = Limits(0, 229, 115), Limits(0, 179, 90)
    assert volume_completeness(lines, bounds, 8)[::2] == (8, None)
    assert central_box(lines) == (slice(103, 127), slice(78, 102))
    for end in (120, 180, 215):  # the peer died
        lost = lines.copy()
        lost[end:] = False
        for factor in (8, 12):
            assert "incomplete" in volume_completeness(lost, bounds, factor)[2]


def test_an_incomplete_volume_is_told_the_r_that_its_lines_have():
    """Compressed sensing, which no parallel imaging announces, and a lattice; a scan that broke off, or a full one that
    lost lines, is told none."""
    shape = 27, 34
    e2, e1 = grid(shape)
    chance = (np.random.default_rng(2).random(shape) < 0.25) | block(10, shape)
    caipi = (e1 % 4 == 2 * (e2 % 2)) | block(10, shape)
    lost = (e1 != 3) | (e2 % 5 != 0)

    def told(lines, announced=1):
        head = volume_header(27, rows=34, acceleration=announced)
        return reason(slices(volume_scan(*PLACE, np.argwhere(lines).tolist(), 27, rows=34), head))

    for pattern, factor, words in ((chance, 3, "they are R = 3"), (caipi, 4, "its lines come at R = 4")):
        assert words in told(pattern)
        head = volume_header(27, rows=34, acceleration=factor)
        volume = only(slices(volume_scan(*PLACE, np.argwhere(pattern).tolist(), 27, rows=34), head))
        assert volume.mask[..., 0].bool().tolist() == pattern.tolist()
        assert "R = 1 announce" in (cut := told(pattern & (e2 < 19))) and "--set" not in cut
    assert "--set" not in told(lost)
    assert "--set" not in told(caipi & (e2 < 19), 4)


def test_partial_fourier_in_both():
    e2, e1 = grid()
    lines = (((e1 % 2 == 0) & (e2 % 2 == 0)) | block(12)) & (e2 >= 10) & (e1 >= 13)
    bounds = Limits(10, 44, 22), Limits(13, 51, 26)
    assert volume_completeness(lines, bounds, 4)[2] is None
    assert volume_completeness(lines & (distance() <= 1), bounds, 4)[2] is None
    # counted from 0, with the centre where it is
    moved = Limits(0, 34, 12), Limits(0, 38, 13)
    assert volume_completeness(lines, moved, 4)[2] is None
    assert "incomplete" in volume_completeness(lines, BOX, 4)[2]
    lines[40] = False
    assert "incomplete" in volume_completeness(lines, bounds, 4)[2]


def test_the_central_block_is_the_largest_of_full_lines():
    wide, high = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    wide[18:27, 20:33] = True  # 9 x 13 around (22, 26)
    high[19:30, 22:30] = True  # its centre is not its middle: 7 partitions around (22, 26)
    assert central_box(wide) == (slice(18, 27), slice(20, 33))
    assert central_box(high) is None
    even = np.zeros(SHAPE, bool)
    even[18:26, 21:31] = True
    assert central_box(even) == (slice(18, 26), slice(21, 31))
    down, along = central_box(distance() <= 0.5)
    assert down.start + (down.stop - down.start) // 2 == 22 and along.start + (along.stop - along.start) // 2 == 26
    assert (distance()[down, along] <= 0.5).all() and (down.stop - down.start) * (along.stop - along.start) > 250
    assert central_box(np.ones(SHAPE, bool)) == (slice(0, 45), slice(0, 52))
    assert central_box(poisson(1)) is None


@pytest.mark.parametrize("oversampling", [1, 2])
def test_a_point_lies_where_it_is(oversampling):
    head = volume_header(**(OVERSAMPLED if oversampling == 2 else {}))
    heads: dict = {}
    lines = volume_scan(*PLACE, ALL[::-1], oversampling=oversampling)
    for number, acquisition in enumerate(lines):
        acquisition.acquisition_time_stamp = number
    volume = only(slices(lines, head, heads))
    assert isinstance(volume, Volume)
    assert volume.kspace.shape == volume.calibration.shape == (3, 13, 33, 26)
    assert volume.calibration.data_ptr() == volume.kspace.data_ptr()  # no copy
    assert volume.mask.shape == (13, 33, 26) and volume.mask.all()
    assert (volume.n_lines_got, volume.n_lines_needed, volume.acceleration) == (429, 429, 1)
    assert_point(volume.kspace, *PLACE)
    assert ALL[::-1][heads[volume.key].acquisition_time_stamp] == (6, 16)


def test_asymmetric_echo_and_partial_fourier():
    places = [(p, n) for p, n in ALL if p >= 3 and n >= 8]
    lines = volume_scan(*PLACE, [(p - 3, n - 8) for p, n in places], centers=(3, 8), low=-8, center_sample=8)
    head = volume_header(partition_limits=(0, 9, 3), maximum=24, center=8)
    volume = only(slices(lines, head))
    whole = only(slices(volume_scan(*PLACE, ALL), volume_header()))
    expected = torch.zeros(13, 33, 26)
    expected[3:, 8:, 5:] = 1
    assert volume.mask.equal(expected)
    torch.testing.assert_close(volume.kspace, whole.kspace * expected)


def test_header_of_a_volume():
    head = volume_header(acceleration=2, acceleration_2=3)
    assert (n_partitions(head), acceleration(head)) == (13, 6)
    assert acceleration(header(acceleration=2, acceleration_2=3)) == 2  # of a 2D scan
    assert n_partitions(header(z=2, extra_limits=limits("kspace_encoding_step_2", 0))) == 1
    head.encoding[0].reconSpace.matrixSize.z = 6
    (told,) = doubts(head)
    assert "6 pixels along z where 13 are" in told and "encodedSpace.fieldOfView_mm.z=84.5" in told
    head.encoding[0].reconSpace.matrixSize.z = 12  # a single partition of oversampling
    assert "12 pixels along z where 13 are" in doubts(head)[0]
    head.encoding[0].reconSpace.matrixSize.z = 6
    head.encoding[0].reconSpace.fieldOfView_mm.z *= 6 / 13  # slice oversampling, which stays in k-space
    assert doubts(head) == []
    head.encoding[0].parallelImaging = None
    assert only(slices(volume_scan(*PLACE, ALL), head)).kspace.shape == (3, 13, 33, 26)
    head.encoding[0].reconSpace.matrixSize.z = 1
    with pytest.raises(BadInputError, match="13 partitions and its header asks for images of one"):
        list(slices(volume_scan(*PLACE, ALL), head))
    head.encoding[0].reconSpace.fieldOfView_mm.z = 0
    with pytest.raises(BadInputError, match="reconSpace without z"):
        list(slices(volume_scan(*PLACE, ALL), head))


def test_lines_that_were_lost_lose_the_volume():
    places = [(p, n) for p, n in ALL if (p, n) != (11, 30)]
    assert reason(slices(volume_scan(*PLACE, places), volume_header())).startswith("incomplete: 428 of the 429 lines")
    first = [(p, n) for p, n in ALL if p < 7]
    assert reason(slices(volume_scan(*PLACE, first), volume_header())).startswith("incomplete: 231 of the 429 lines")
    lines = volume_scan(*PLACE, ALL)
    lines[50].data[:] = np.nan
    assert reason(slices(lines, volume_header())) == "line 17 of partition 1 holds NaN or infinite values"


def test_lines_of_zeros_were_not_acquired():
    lines = volume_scan(*PLACE, ALL)
    for acquisition in lines:
        row, partition = acquisition.idx.kspace_encode_step_1, acquisition.idx.kspace_encode_step_2
        if (row % 2 or partition % 2) and not (abs(row - 16) <= 4 and abs(partition - 6) <= 4):
            acquisition.data[:] = 0
    volume = only(slices(lines, volume_header()))
    assert volume.acceleration == 4 and "lines of zeros" in volume.remarks[0]
    assert volume.calibration.shape == (3, 9, 9, 26)


@pytest.mark.parametrize("announced", [1, 4])
@pytest.mark.parametrize(
    ("partitions", "rows", "told"),
    [
        ((2, 10), (0, 32), "partitions outside 2 to 10"),
        ((0, 9), (6, 32), "partitions outside 0 to 9 and lines outside 6 to 32"),
        ((2, 12), (0, 32), "partitions outside 2 to 12"),
        ((0, 12), (4, 28), "lines outside 4 to 28"),
    ],
)
def test_partitions_and_lines_of_zeros_around_the_others_filled_the_matrix_up(partitions, rows, told, announced):
    pattern = {(p, n) for p, n in ALL if not (p % 2 or n % 2) or (abs(p - 6) <= 4 and abs(n - 16) <= 6)}
    inside = {(p, n) for p, n in pattern if partitions[0] <= p <= partitions[1] and rows[0] <= n <= rows[1]}
    places = ALL if announced == 1 else sorted(pattern)
    lines = volume_scan(*PLACE, places)
    for place, acquisition in zip(places, lines):
        if place not in inside:
            acquisition.data[:] = 0
    volume = only(slices(lines, volume_header(acceleration=announced)))
    assert (volume.acceleration, volume.n_lines_got) == (4, len(inside))
    assert volume.remarks[0].startswith(f"{told} came as zeros, which are no data: the image has the detail of")
    assert set(map(tuple, volume.mask.amax(2).nonzero().tolist())) == inside
    lost = lines[places.index((8, 8))]
    assert "incomplete" in reason(
        slices([one for one in lines if one is not lost], volume_header(acceleration=announced))
    )


def test_zeros_outside_the_limits_alone_filled_nothing_up():
    pattern = {(p, n) for p, n in ALL if not (p % 2 or n % 2) or (abs(p - 6) <= 4 and abs(n - 16) <= 6)}
    lines = volume_scan(*PLACE, ALL)
    for place, acquisition in zip(ALL, lines):
        if place not in pattern or place[0] < 2:
            acquisition.data[:] = 0
    volume = only(slices(lines, volume_header(partition_limits=(2, 12, 6))))
    assert volume.remarks[0].startswith("R = 1 is announced, and lines of zeros among the others tell R = 4")


def test_a_flag_at_the_end_of_each_partition_ends_no_volume():
    lines = volume_scan(*PLACE, ALL)
    for acquisition in lines[32::33]:
        acquisition.set_flag(LAST)
    stream = iter(lines)
    volume = next(slices(stream, volume_header()))
    assert_point(volume.kspace, *PLACE)
    assert next(stream, None) is None


@pytest.mark.parametrize("ends", [(LAST,), (LAST, ismrmrd.ACQ_LAST_IN_REPETITION), ()])
def test_an_elliptical_scan_waits_for_its_rim(ends):
    """It is complete without its last lines, so that a flag at the end of each partition must not end it."""
    shape = (24, 33)
    places = [tuple(place) for place in np.argwhere(distance(shape) <= 1)]
    lines = volume_scan(*PLACE, places, partitions=24)
    for acquisition, following in itertools.zip_longest(lines, lines[1:]):
        if ends and (following is None or following.idx.kspace_encode_step_2 != acquisition.idx.kspace_encode_step_2):
            acquisition.set_flag(LAST)
    for flag in ends:
        lines[-1].set_flag(flag)
    volume = only(slices(lines, volume_header(partitions=24)))
    assert volume.n_lines_got == len(places)


def test_an_elliptical_file_leaves_volume_by_volume(tmp_path):
    """Each repetition of a file is made as soon as its lines came: all of them at once would fill the memory."""
    places = [tuple(place) for place in np.argwhere(distance((13, 33)) <= 1)]
    lines = []
    for repetition in range(2):
        lines += volume_scan(*PLACE, places)
        for acquisition in lines[-len(places) :]:
            acquisition.idx.repetition = repetition
    xml = header_xml(z=13, extra_limits=limits("kspace_encoding_step_2", 12, 6) + limits("repetition", 1))
    taken = 0

    def counted(stream):
        nonlocal taken
        for acquisition in stream:
            taken += 1
            yield acquisition

    with open_scan(write_scan(tmp_path / "scan.h5", lines, xml)) as scan:
        found = slices(counted(scan.acquisitions()), scan.header)
        assert next(found).n_lines_got == len(places) == taken
        assert next(found).n_lines_got == len(places) and next(found, None) is None


def test_echoes_and_repetitions_are_volumes_of_their_own_and_share_a_separate_calibration():
    head = volume_header(acceleration=2, mode="separate", extra_limits=limits("contrast", 1) + limits("repetition", 1))
    lines = volume_scan(*PLACE, [(p, n) for p in range(2, 11) for n in range(12, 21)])
    for acquisition in lines:
        acquisition.set_flag(CAL)
    for place in ALL[::2]:
        if place[1] % 2 == 0:
            for repetition, echo in itertools.product(range(2), range(2)):
                lines += volume_scan(echo - 1, repetition, 3, [place])
                lines[-1].idx.contrast, lines[-1].idx.repetition = echo, repetition
    lines += [a for place in ALL[1::2] if place[1] % 2 == 0 for a in _everywhere(place)]
    volumes = list(slices(lines, head))
    assert [(v.key.contrast, v.key.repetition) for v in volumes] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    full = only(slices(volume_scan(*PLACE, ALL), volume_header()))
    for volume in volumes:
        torch.testing.assert_close(volume.calibration, full.kspace[:, 2:11, 12:21])
        assert volume.n_lines_got == volume.n_lines_needed == 13 * 17


def test_the_embedded_calibration_of_the_first_volume_serves_later_ones():
    head = volume_header(acceleration=2, extra_limits=limits("repetition", 1))
    regular = [place for place in ALL if place[1] % 2 == 0]
    central = [(p, n) for p in range(2, 11) for n in range(12, 21)]
    first = volume_scan(*PLACE, sorted({*regular, *central}))
    later = volume_scan(*PLACE, regular)
    for acquisition in later:
        acquisition.idx.repetition = 1
    one, other = slices([*first, *later], head)
    assert one.n_lines_got == 13 * 17 + 9 * 4 and other.n_lines_got == 13 * 17
    assert one.calibration.shape == (3, 9, 9, 26)
    torch.testing.assert_close(other.calibration, one.calibration)
    assert "those of repetition 0 of its slice calibrate it" in other.remarks[-1]


def _everywhere(place):
    for repetition, echo in itertools.product(range(2), range(2)):
        (acquisition,) = volume_scan(echo - 1, repetition, 3, [place])
        acquisition.idx.contrast, acquisition.idx.repetition = echo, repetition
        yield acquisition


def test_a_calibration_in_an_encoding_space_of_its_own():
    image = volume_scan(*PLACE, [place for place in ALL if place[1] % 2 == 1])
    calibration = volume_scan(*PLACE, [(p, n) for p in range(9) for n in range(9)], centers=(4, 4))
    for acquisition in calibration:
        acquisition.encoding_space_ref = 1
        acquisition.set_flag(CAL)
    xml = header_xml(z=9, rows=9).replace("<z>27</z>", "<z>39</z>")  # a matrix of its own
    encoding = xml[xml.index("<encoding>") : xml.index("</encoding>") + len("</encoding>")]
    head = volume_header(acceleration=2, mode="separate", encodings=encoding)
    volume = only(slices(calibration + image, head))
    full = only(slices(volume_scan(*PLACE, ALL), volume_header()))
    torch.testing.assert_close(volume.calibration, full.kspace[:, 2:11, 12:21])
    assert volume.mask[:, ::2].sum() == 0


def test_averages_noise_and_a_dead_channel(tmp_path):
    rng = np.random.default_rng(5)
    lines = noise_lines(rng, 0.3)
    for average in range(3):
        for acquisition in volume_scan(*PLACE, ALL, oversampling=2):
            acquisition.data[:] += 0.3 * noisy(rng, 52, MIXING)
            acquisition.idx.average = average
            lines.append(acquisition)
    for acquisition in lines:
        acquisition.data[1] = 0
    xml = header_xml(z=13, extra_limits=limits("kspace_encoding_step_2", 12, 6) + average_limits(2), **OVERSAMPLED)
    with open_scan(write_scan(tmp_path / "scan.h5", lines, xml)) as scan:
        assert (scan.n_slices, scan.n_images(False), scan.n_images(True)) == (3, 3, 1)
        apart = list(slices(scan.acquisitions(), scan.header))
        mean = only(slices(scan.acquisitions(), scan.header, combine_averages=True))
        raw = [a for a in scan.acquisitions() if not a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
        estimated = only(slices(raw, scan.header, combine_averages=True))
    assert "channel 1 of 3 is dead" in mean.remarks[0] and len(mean.kspace) == 2
    torch.testing.assert_close(mean.kspace, sum(volume.kspace for volume in apart) / 3)
    assert mean.sigma_n == pytest.approx(apart[0].sigma_n / np.sqrt(3))
    assert mean.noise_source == "noise scan" and estimated.noise_source == "k-space periphery"
    raw[5].data[:] += 100
    assert "its averages differ by more than noise (line 5)" in reason(slices(raw, scan.header, combine_averages=True))


def test_a_wrong_centre_is_found_along_both_axes():
    shape, width = (31, 33), (2.0, 2.0)
    lines = []
    for p, n in itertools.product(range(*(6, 31)), range(8, 33)):
        (acquisition,) = volume_scan(0, 0, 0, [(p - 6, n - 8)], partitions=shape[0], centers=(15, 16))
        falls = np.exp(-(((p - 15) / width[0]) ** 2) - ((n - 16) / width[1]) ** 2)
        acquisition.data[:] *= falls + 1e-3
        lines.append(acquisition)
    wrong = volume_header(31, partition_limits=(0, 24, 18), maximum=24, center=18)
    volume = only(slices(lines, wrong))
    assert [remark.split(" is not")[0] for remark in volume.remarks] == [
        "the header's centre partition 18",
        "the header's centre line 18",
    ]
    right = only(slices(lines, volume_header(31, partition_limits=(0, 24, 9), maximum=24, center=8)))
    torch.testing.assert_close(volume.kspace, right.kspace)
    assert volume.mask.equal(right.mask) and not volume.mask[:6].any() and not volume.mask[:, :8].any()


def test_a_centre_that_is_off_by_two_partitions_is_found_by_the_matrix_or_the_lines():
    lines = volume_scan(*PLACE, ALL)
    for one in lines:
        away = np.array([one.idx.kspace_encode_step_2 - 6, one.idx.kspace_encode_step_1 - 16])
        one.data[:] *= np.exp(-(away**2).sum() / 4) + 1e-3
    right = only(slices(lines, volume_header()))
    partial = [one for one in lines if one.idx.kspace_encode_step_2 >= 3]
    right_partial = only(slices(partial, volume_header(partition_limits=(3, 12, 6))))
    told = "the header's centre partition 8 is not the k-space centre: partition 6 is taken, by {}"
    found = only(slices(lines, volume_header(partition_limits=(0, 12, 8))))
    assert found.remarks == (told.format("the energy's peak"),) and torch.equal(found.kspace, right.kspace)
    for one in partial:
        one.idx.user[6] = 6
    found = only(slices(partial, volume_header(partition_limits=(3, 12, 9))))
    assert found.remarks == (told.format("idx.user[6] and the energy's peak").replace("8", "9", 1),)
    assert torch.equal(found.kspace, right_partial.kspace)


def test_lines_outside_the_matrix_are_left_out():
    lines = volume_scan(*PLACE, [*ALL, (13, 4), (2, 33)])
    volume = only(slices(lines, volume_header(partition_limits=(0, 13, 6), maximum=33, center=16)))
    assert volume.remarks[-1] == "2 lines outside the encoded matrix of 13 partitions of 33 lines are left out"
    assert_point(volume.kspace, *PLACE)


def test_files_tell_volumes_from_slices_by_their_lines(tmp_path):
    first = volume_scan(0, *PLACE[1:], ALL[:33])
    several = limits("kspace_encoding_step_2", 12, 6)

    def found(name, lines, **options):
        with open_scan(write_scan(tmp_path / name, lines, header_xml(z=13, **options))) as scan:
            return list(slices(scan.acquisitions(), scan.header, log=scan.log)), scan.log.remarks

    (item,), _ = found("died.h5", first, extra_limits=several)
    assert isinstance(item, LostSlice) and "33 of the 429 lines" in item.reason
    (item,), remarks = found("2d.h5", first, extra_limits=limits("kspace_encoding_step_2", 0))
    assert item.kspace.shape == (3, 33, 26) and "the scan is 2D" in remarks[0]
    (item,), remarks = found("limits.h5", volume_scan(*PLACE, ALL), extra_limits=limits("kspace_encoding_step_2", 0))
    assert "13 are taken" in remarks[0]
    assert_point(item.kspace, *PLACE)


@pytest.mark.parametrize(
    ("name", "shape", "size", "got", "needed"),
    [
        ("mprage_3d_r4", (8, 88, 120, 96), 24, 3072, 2640),
        ("flair3d_r2x2", (8, 40, 56, 64), 16, 752, 560),
    ],
)
def test_shared_scans(name, shape, size, got, needed):
    with open_scan(shared(f"scans3d/{name}.h5")) as scan:
        assert scan.n_slices == 1
        lines, header = list(scan.acquisitions()), scan.header
    volume = only(slices(lines, header))
    assert volume.kspace.shape == shape and volume.calibration.shape == (8, size, size, shape[3])
    assert (volume.n_lines_got, volume.n_lines_needed, volume.acceleration) == (got, needed, 4)
    peak = volume.kspace.abs().square().sum((0, 3)).argmax()
    assert np.unravel_index(int(peak), shape[1:3]) == (shape[1] // 2, shape[2] // 2)
    # a regular line beside the calibration
    regular = next(index for index in range(len(lines) // 4, len(lines)) if lines[index].flags == 0)
    assert f"{needed - 1} of the {needed}" in reason(slices(lines[:regular] + lines[regular + 1 :], header))
    assert f"of the {needed}" in reason(slices(lines[: len(lines) // 2], header))
    # nothing but a damaged calibration line, which the pattern does not need
    alone = [index for index, a in enumerate(lines) if a.is_flag_set(CAL)]
    less = only(slices(lines[: alone[0]] + lines[alone[0] + 1 :], header))
    assert less.n_lines_got == got - 1 and less.calibration.shape[2] < size + 1


def test_noise_level_without_a_noise_measurement():
    with open_scan(shared("scans3d/mprage_3d_r4.h5")) as scan:
        lines = [a for a in scan.acquisitions() if not a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
        noise = torch.from_numpy(np.stack([a.data for a in scan.noise()]))
        volume = only(slices(lines, scan.header))
    assert volume.sigma_n == pytest.approx(float(torch.view_as_real(noise).square().mean().sqrt()), rel=0.1)


def partitions_apart(step):
    """A volume's lines, each partition at a position of its own."""
    lines = volume_scan(*PLACE, ALL)
    for one in lines:
        one.position[2] = step * one.idx.kspace_encode_step_2
        one.read_dir[:], one.phase_dir[:], one.slice_dir[:] = np.eye(3)
    return lines


def test_slices_that_are_counted_as_partitions_are_refused():
    """Transformed along the slices they would be no image; a head that moves moves less."""
    with pytest.raises(BadInputError, match="13 partitions lie at a position each, as slices do"):
        list(slices(partitions_apart(4.0), volume_header()))
    log = ScanLog()
    only(slices(partitions_apart(0.3), volume_header(), log=log))
    assert log.remarks[0].startswith("lines of one slice lie at several positions")


def test_limits_of_no_partitions_are_those_of_a_slice():
    """A count of 0, less one."""
    assert n_partitions(header(extra_limits=limits("kspace_encoding_step_2", -1))) == 1
    assert n_partitions(header(z=2, extra_limits=limits("kspace_encoding_step_2", -1))) == 1
