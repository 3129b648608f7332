"""EPI lines become slices: regridded, without ghost, shot by shot."""

import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.data import LostSlice
from dpmrecon.errors import BadInputError, UnsupportedScanError
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.header import read_header
from dpmrecon.mrd.scan_log import ScanLog

from support.epi import (
    CALIBRATION,
    COLS,
    FLAT,
    NAVIGATOR,
    RAMPS,
    REVERSE,
    ROWS,
    UNEVEN,
    Readouts,
    description,
    epi_header_xml,
    gradient_echo,
    truth,
)
from support.hand_made import average_limits, header_xml, limits, line, only, write_scan

GHOST = (0.2, 0.9)  # about .1 of the signal
CENTRE = range(11, 22)
DWI = (
    "<measurementInformation><patientPosition>HFS</patientPosition><protocolName>DWI</protocolName>"
    "</measurementInformation>"
)


def header(trapezoid=RAMPS, **options):
    return read_header(epi_header_xml(trapezoid, **options))


def error(found, expected, mask=None):
    """NRMSE with the complex factor that fits best."""
    found, expected = found.numpy().ravel(), (np.asarray(expected) * (1 if mask is None else mask.numpy())).ravel()
    factor = np.vdot(found, expected) / np.vdot(found, found)
    return np.linalg.norm(factor * found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("trapezoid", [FLAT, RAMPS, UNEVEN])
@pytest.mark.parametrize("first", [False, True])
def test_a_shot_is_the_object_without_ghost(trapezoid, first):
    lines = Readouts(trapezoid).shot(range(ROWS), GHOST, first=first)
    found = only(slices(lines, header(trapezoid)))
    assert found.ghost[1] == pytest.approx(0.11, abs=0.02) and found.ghost[0] < 0.003 and found.remarks == ()
    assert error(found.kspace, truth(), found.mask) < 0.004
    assert found.calibration.equal(found.kspace)


def test_ramp_sampling_changes_nothing():
    even, ramps, uneven = (
        only(slices(Readouts(kind).shot(range(0, ROWS, 2), GHOST), header(kind, acceleration=2))).kspace
        for kind in (FLAT, RAMPS, UNEVEN)
    )
    assert error(ramps, even) < 0.005 and error(uneven, even) < 0.005
    # samples taken for Cartesian ones are another image
    wrong = description(RAMPS, rampUpTime=0, rampDownTime=0, flatTopTime=240, acqDelayTime=0)
    found = only(slices(Readouts(RAMPS).shot(range(0, ROWS, 2), GHOST), header(acceleration=2, trajectory=wrong)))
    assert error(found.kspace, even) > 0.05


def test_without_correction_the_ghost_would_be_there():
    lines = Readouts(RAMPS).shot(range(ROWS), (0, 0))[:3] + Readouts(RAMPS).shot(range(ROWS), GHOST)[3:]
    assert error(only(slices(lines, header())).kspace, truth()) > 0.08


def test_navigators_are_found_in_noise_and_in_drift():
    lines = Readouts(RAMPS, noise=0.1).shot(range(ROWS), GHOST, drift=0.7)
    clean = Readouts(RAMPS, noise=0.1).shot(range(ROWS), (0, 0))
    found, expected = only(slices(lines, header())), only(slices(clean, header()))
    # the same noise in both, whose phase alone differs
    assert error(found.kspace, truth()) == pytest.approx(error(expected.kspace, truth()), rel=0.1)
    two = only(slices(Readouts(RAMPS).shot(range(ROWS), GHOST, navigators=2), header()))
    assert error(two.kspace, truth()) < 0.004


def test_each_shot_has_its_own_ghost():
    readouts, ghosts = Readouts(RAMPS), [(0.2, 0.9), (-0.4, 0.3), (2.0, -1.5)]
    for labels in ({}, {"segment": True}):
        lines = [
            item
            for shot, ghost in enumerate(ghosts)
            for item in readouts.shot(range(shot, ROWS, 3), ghost, **({"segment": shot} if labels else {}))
        ]
        log = ScanLog()
        assert error(only(slices(lines, header(), log=log)).kspace, truth()) < 0.004
        assert not any("navigators of their own" in remark for remark in log.remarks)


@pytest.mark.parametrize("backwards", [0, 1])
def test_some_scanners_count_directions_as_segments_and_navigators_as_averages(backwards):
    lines = Readouts(RAMPS).shot(range(ROWS), GHOST)
    for item in lines:
        item.idx.segment = backwards if item.is_flag_set(REVERSE) else 1 - backwards
    lines[2].idx.average = 1
    log = ScanLog()
    assert error(only(slices(lines, header(extra_limits=average_limits(0)), log=log)).kspace, truth()) < 0.004
    assert not any("navigators" in remark for remark in log.remarks)
    assert any("mirrored along the readout" in remark for remark in log.remarks) == (backwards == 0)


def test_averages_have_their_own_ghosts_and_are_combined_without():
    readouts, ghosts = Readouts(RAMPS), [(0.2, 0.9), (1.4, -0.3)]
    lines = [i for n, ghost in enumerate(ghosts) for i in readouts.shot(range(ROWS), ghost, average=n)]
    apart = list(slices(lines, header(extra_limits=average_limits(1))))
    assert [item.key.average for item in apart] == [0, 1]
    together = only(slices(lines, header(extra_limits=average_limits(1)), combine_averages=True))
    for item in (*apart, together):
        assert error(item.kspace, truth()) < 0.004


def test_a_shot_without_navigators_takes_the_last_of_its_slice_and_says_so():
    readouts, log = Readouts(RAMPS), ScanLog()
    lines = readouts.shot(range(0, ROWS, 2), GHOST, segment=0)
    lines += readouts.shot(range(1, ROWS, 2), GHOST, segment=1, navigators=0)
    assert error(only(slices(lines, header(), log=log)).kspace, truth()) < 0.004
    assert "shots without navigators of their own have their ghost corrected by the last ones of their slice" in (
        log.remarks
    )


@pytest.mark.parametrize("navigators", [0, 1])
def test_without_navigators_of_both_directions_there_is_no_image(navigators):
    lines = Readouts(RAMPS).shot(range(ROWS), GHOST, navigators=navigators)
    (lost,) = slices(lines, header())
    assert isinstance(lost, LostSlice)
    assert "came without navigators of both (flag PHASECORR)" in lost.reason and "\n" not in lost.reason
    # those of another slice do not serve
    other = Readouts(RAMPS).shot(range(ROWS), GHOST, slice=1)
    found = {item.key.slice: item for item in slices(other + lines, header(extra_limits=limits("slice", 1)))}
    assert isinstance(found[0], LostSlice) and error(found[1].kspace, truth()) < 0.004


def test_a_shot_that_lost_a_navigator_takes_the_last_whole_ones():
    readouts, log = Readouts(RAMPS), ScanLog()
    lines = readouts.shot(range(0, ROWS, 2), GHOST) + readouts.shot(range(1, ROWS, 2), GHOST, navigators=1, segment=1)
    assert error(only(slices(lines, header(), log=log)).kspace, truth()) < 0.004
    assert any("navigators of their own" in remark for remark in log.remarks)


def test_averages_whose_navigators_are_noise_take_the_last_that_tell():
    """As weighted images at the top of the head: those before are of no use either, but for the first."""
    readouts, log, rng = Readouts(RAMPS), ScanLog(), np.random.default_rng(0)
    lines = readouts.shot(range(ROWS), GHOST, average=0)
    for average in (1, 2, 3):
        weak = readouts.shot(range(ROWS), GHOST, average=average)
        for acquisition in weak[:3]:
            noise = rng.standard_normal((*acquisition.data.shape, 2)).astype(np.float32)
            acquisition.data[:] = noise.view(np.complex64)[..., 0]
        lines += weak
    found = list(slices(lines, header(extra_limits=average_limits(3)), log=log))
    assert [item.key.average for item in found] == [0, 1, 2, 3]
    for item in found:
        assert not isinstance(item, LostSlice) and error(item.kspace, truth()) < 0.004
    assert any("navigators of their own" in remark for remark in log.remarks)


def test_navigators_of_zeros_are_none():
    lines = Readouts(RAMPS).shot(range(ROWS), GHOST)
    lines[1].data[:] = 0
    (lost,) = slices(lines, header())
    assert "without navigators" in lost.reason


def test_lines_of_one_direction_need_no_navigators():
    readouts = Readouts(RAMPS)
    lines = [line(n, readouts.samples(n - ROWS // 2, False, (0, 0))) for n in range(ROWS)]
    log = ScanLog()
    found = only(slices(lines, header(), log=log))
    assert found.ghost is None and error(found.kspace, truth()) < 0.004
    assert any("all are taken as read in one direction" in remark for remark in log.remarks)


def turned_before(lines):
    """As readers of Siemens data hand them over: reversed ones turned, without the flag."""
    for item in lines:
        if item.is_flag_set(REVERSE):
            item.data[:] = item.data[:, ::-1].copy()
            item.clear_flag(REVERSE)
    return lines


@pytest.mark.parametrize("trapezoid", [FLAT, RAMPS, UNEVEN])
@pytest.mark.parametrize("first", [False, True])
def test_lines_that_lost_their_flag_get_their_directions_from_their_navigators(trapezoid, first):
    readouts, log = Readouts(trapezoid, noise=0.02), ScanLog()
    lines = [
        item
        for shot, ghost in enumerate([(0.2, 0.9), (-0.4, 0.7)])
        for item in readouts.shot(range(shot, ROWS, 2), ghost, first=first, drift=0.3)
    ]
    wanted = error(only(slices(lines, header(trapezoid))).kspace, truth())
    found = only(slices(turned_before(lines), header(trapezoid), log=log))
    assert error(found.kspace, truth()) == pytest.approx(wanted, abs=0.005) and found.ghost[1] > 0.05
    assert any("as reversed by turns" in remark for remark in log.remarks)


def test_lines_that_lost_their_flag_and_whose_echoes_lie_together_are_no_image():
    """Half a sample to either side, by which reversed lines lie apart, made good for."""
    lines = Readouts(FLAT, noise=0.02).shot(range(ROWS), (0.9, -np.pi))
    (lost,) = slices(turned_before(lines), header(FLAT))
    assert "nothing tells which lines are reversed" in lost.reason


def test_epi_that_its_header_calls_cartesian_is_said():
    readouts, log = Readouts(FLAT, noise=0.02), ScanLog()
    xml = header_xml(rows=ROWS, x=2 * COLS, recon_x=COLS)
    list(slices(turned_before(readouts.shot(range(ROWS), GHOST)), read_header(xml), log=log))
    assert any("echoes of the phase-correction lines differ by turns" in remark for remark in log.remarks)
    log = ScanLog()
    alike = [line(ROWS // 2, readouts.samples(0, False, GHOST), (NAVIGATOR,)) for _ in range(3)]
    list(slices(alike + readouts.shot(range(ROWS), GHOST, navigators=0)[::2], read_header(xml), log=log))
    assert not any("phase-correction" in remark for remark in log.remarks)


def test_half_a_shot_is_no_image():
    readouts = Readouts(RAMPS)
    lines = readouts.shot(range(0, ROWS, 2), GHOST) + readouts.shot(range(1, ROWS, 2), (1, 0.3))[:-8]
    (lost,) = slices(lines, header())
    assert lost.reason.startswith("incomplete: 25 of the 33 lines came")


def test_partial_fourier_and_acceleration():
    numbers = [n for n in range(9, ROWS) if n % 2]
    lines = Readouts(RAMPS).shot(CENTRE, (0.5, 0.1), flags=(CALIBRATION,)) + Readouts(RAMPS).shot(numbers, GHOST)
    found = only(slices(lines, header(acceleration=2, minimum=9, mode="separate")))
    assert found.acceleration == 2 and found.n_lines_got == found.n_lines_needed == 12
    assert error(found.kspace[:, numbers], truth()[:, numbers]) < 0.004
    assert error(found.calibration, truth()[:, CENTRE]) < 0.004


SECOND = """<encoding><encodedSpace><matrixSize><x>{x}</x><y>11</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{fov}</x><y>165</y><z>3</z></fieldOfView_mm></encodedSpace><reconSpace><matrixSize><x>27</x><y>33</y>
<z>1</z></matrixSize><fieldOfView_mm><x>130</x><y>165</y><z>3</z></fieldOfView_mm></reconSpace><encodingLimits>
<kspace_encoding_step_1><minimum>0</minimum><maximum>10</maximum><center>5</center></kspace_encoding_step_1>
</encodingLimits><trajectory>cartesian</trajectory></encoding>"""


def echo_train():
    return Readouts(RAMPS).shot(CENTRE, (-1, 0.4), flags=(CALIBRATION,)), {}


def plain():
    return gradient_echo(CENTRE, COLS, 1), {}


def of_as_many_samples():
    return gradient_echo(CENTRE, RAMPS.n_samples - 10, 2), {}


def of_another_space(samples, oversampling, x, fov):
    lines = gradient_echo(CENTRE, samples, oversampling, encoding_space_ref=1)
    for item in lines:
        item.encoding_space_ref = 1
        item.idx.kspace_encode_step_1 -= 11
    return lines, {"encodings": SECOND.format(x=x, fov=fov)}


def one_to_one():
    return of_another_space(COLS, 1, COLS, 130)


def coarser():
    return of_another_space(15, 1, 15, 130)


def coarser_and_oversampled():
    return of_another_space(30, 2, 30, 260)


@pytest.mark.parametrize("kind", [echo_train, plain, of_as_many_samples, one_to_one, coarser, coarser_and_oversampled])
def test_calibrations(kind):
    calibration, options = kind()
    numbers = range(0, ROWS, 2)
    lines = Readouts(RAMPS).shot(numbers, GHOST, contrast=0) + Readouts(RAMPS).shot(numbers, (0.3, 0.2), contrast=1)
    extra = limits("contrast", 1)
    found = list(slices(calibration + lines, header(acceleration=2, mode="separate", extra_limits=extra, **options)))
    assert [item.key.contrast for item in found] == [0, 1]
    for item in found:
        columns = np.flatnonzero(item.calibration.abs().sum((0, 1)).numpy())
        assert len(columns) >= 11 and item.calibration.shape[1:] == (11, COLS)
        columns = columns[2:-2] if len(columns) < COLS else columns  # at a cut edge the cropping misses samples
        assert error(item.calibration[..., columns], truth()[:, CENTRE][..., columns]) < 0.02
        assert error(item.kspace[:, numbers], truth()[:, numbers]) < 0.004


@pytest.mark.parametrize(("flags", "advised"), [((CALIBRATION,), True), ((), False)])
def test_a_calibration_of_another_space_that_the_header_does_not_call_separate(tmp_path, flags, advised):
    calibration, options = one_to_one()
    for item in calibration:
        item.clear_all_flags()
        for flag in flags:
            item.set_flag(flag)
    lines = calibration + Readouts(RAMPS).shot(range(0, ROWS, 2), GHOST)
    path = write_scan(tmp_path / "scan.h5", lines, epi_header_xml(RAMPS, acceleration=2, mode="embedded", **options))
    with open_scan(path) as scan, pytest.raises(UnsupportedScanError, match="lines of encoding space 1 came") as caught:
        list(slices(scan.acquisitions(), scan.header))
    changes = "encoding.parallelImaging.calibrationMode=separate"
    assert (changes in str(caught.value)) == advised
    if advised:
        with open_scan(path, changes=changes) as scan:
            found = only(slices(scan.acquisitions(), scan.header))
        assert error(found.calibration[..., 2:-2], truth()[:, CENTRE][..., 2:-2]) < 0.02


def test_a_calibration_whose_ghost_is_not_known_serves_nobody():
    lines = Readouts(RAMPS).shot(CENTRE, GHOST, flags=(CALIBRATION,), navigators=0)
    lines += Readouts(RAMPS).shot(range(0, ROWS, 2), GHOST)
    (lost,) = slices(lines, header(acceleration=2, mode="separate"))
    assert lost.reason.startswith("its calibration lines are read in both directions")


def test_whole_numbers_of_the_readout_may_be_written_as_floats():
    floats = description(RAMPS, numSamples=f"{RAMPS.n_samples}.0", flatTopTime=f"{RAMPS.flat_top}")
    lines = Readouts(RAMPS).shot(range(ROWS), GHOST)
    found, expected = (only(slices(lines, header(trajectory=text))) for text in (floats, description(RAMPS)))
    assert torch.equal(found.kspace, expected.kspace)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"trajectory": "<trajectory>epi</trajectory>"}, UnsupportedScanError, "has no trajectoryDescription"),
        (
            {"trajectory": description(RAMPS).replace("ConventionalEPI", "Spiral")},
            UnsupportedScanError,
            "trajectoryDescription 'Spiral': ConventionalEPI is understood",
        ),
        ({"trajectory": description(RAMPS, numSamples=None)}, BadInputError, "gives numSamples as None"),
        ({"trajectory": description(RAMPS, flatTopTime=-4)}, BadInputError, "gives flatTopTime as -4"),
        ({"trajectory": description(RAMPS, flatTopTime=20)}, BadInputError, "they do not fit into it"),
        ({"trajectory": description(RAMPS, numSamples=30)}, BadInputError, "times as far apart"),
        ({"z": 9, "extra_limits": limits("kspace_encoding_step_2", 8, 4)}, UnsupportedScanError, "3D EPI"),
        (
            {
                "parallel": "<multiband><spacing><dZ>1</dZ></spacing><deltaKz>1</deltaKz><multiband_factor>3"
                "</multiband_factor><calibration>full3D</calibration><calibration_encoding>0</calibration_encoding>"
                "</multiband>"
            },
            UnsupportedScanError,
            "multiband .factor 3",
        ),
    ],
)
def test_what_is_refused_in_one_sentence(options, kind, text):
    with pytest.raises(kind, match=text) as caught:
        list(slices(Readouts(RAMPS).shot(range(ROWS), GHOST), header(**options)))
    assert "\n" not in str(caught.value)


def test_lines_that_belie_the_description_are_lost():
    (lost,) = slices(Readouts(FLAT).shot(range(ROWS), GHOST), header(RAMPS))
    assert lost.reason == "its lines hold 54 samples where the header's trajectoryDescription has 64"


def test_a_ghost_that_navigators_cannot_tell_is_said():
    lines = Readouts(RAMPS).shot(range(ROWS), GHOST)
    lines[1].data[:] = lines[1].data * np.exp(0.5j * np.cos(np.arange(RAMPS.n_samples)))
    found = only(slices(lines, header()))
    assert any("keep a ghost of" in remark for remark in found.remarks)


def test_a_receiver_that_keeps_its_frequency_on_ramps_is_made_good_for():
    vendor = "<acquisitionSystemInformation><systemVendor>{}</systemVendor></acquisitionSystemInformation>"
    lines = Readouts(RAMPS, off_centre=0.25).shot(range(ROWS), GHOST)
    for item in lines:
        item.position[:], item.read_dir[:] = (0, 0.6 * 32.5, 0.8 * 32.5), (0, 0.6, 0.8)  # of 130 mm
    found = [only(slices(lines, header(measurement=vendor.format(name)))) for name in ("SIEMENS", "another")]
    assert error(found[0].kspace, truth()) < 0.004 < 0.01 < error(found[1].kspace, truth())


def test_echoes_far_apart_are_said():
    log = ScanLog()
    list(slices(Readouts(RAMPS, late=15).shot(range(ROWS), (0, 0)), header(), log=log))
    assert any("columns of k-space apart: see whether the times" in remark for remark in log.remarks)


def test_a_file_s_navigators_stay_with_their_lines(tmp_path):
    xml = epi_header_xml(RAMPS, extra_limits=limits("contrast", 1) + average_limits(1))
    lines = []
    for number, (contrast, average) in enumerate([(1, 0), (0, 0), (0, 1), (1, 1)]):
        shot = Readouts(RAMPS).shot(range(ROWS), (0.3 * number, 0.5), contrast=contrast, average=average)
        shot[2].idx.average = 1
        lines += shot
    write_scan(tmp_path / "scan.h5", lines, xml)
    log = ScanLog()
    with open_scan(tmp_path / "scan.h5") as scan:
        found = list(slices(scan.acquisitions(), scan.header, log=log))
    assert len(found) == 4 and not any("navigators" in remark for remark in log.remarks)
    for item in found:
        assert error(item.kspace, truth()) < 0.004


def test_navigators_of_a_file_may_bear_other_flags(tmp_path):
    """Siemens's converter flags what is for feedback, too, as navigation data."""
    lines = Readouts(RAMPS).shot(range(ROWS), GHOST)
    for one in lines:
        if one.is_flag_set(NAVIGATOR):
            one.set_flag(ismrmrd.ACQ_IS_NAVIGATION_DATA)
            one.set_flag(ismrmrd.ACQ_IS_RTFEEDBACK_DATA)
    with open_scan(write_scan(tmp_path / "scan.h5", lines, epi_header_xml(RAMPS))) as scan:
        from_file = only(slices(scan.acquisitions(), scan.header))
        assert not any("left out" in kind for kind in scan.log.kinds)
    assert from_file.kspace.equal(only(slices(lines, header())).kspace)


def test_weighted_shots_are_kept_apart(simulated_epi):
    """Motion gives each of them a phase; without weighting they agree."""
    with open_scan(simulated_epi(shots=3, b_values=(0.0, 1000.0), directions_per_b=1)) as scan:
        plain, weighted = slices(scan.acquisitions(), scan.header)
    assert plain.shots is None
    acquired = torch.nonzero(weighted.mask.any(1)).flatten()
    assert weighted.shots[acquired].tolist() == [number % 3 for number in range(len(acquired))]
    assert set(weighted.shots[~weighted.mask.any(1)].tolist()) == {-1}


@pytest.mark.parametrize("dimension", [None, "segment"])
@pytest.mark.parametrize(("b_values", "kept"), [((0.0, 1000.0), True), ((0.0,), False), ((5.0,), False)])
def test_weighted_shots_are_kept_apart_where_no_counter_tells_them(simulated_epi, dimension, b_values, kept):
    settings = {"shots": 2, "acceleration": 1, "matrix": (47, 43), "directions_per_b": 1}
    with open_scan(simulated_epi(b_values=b_values, **settings)) as scan:
        scan.header.sequenceParameters.diffusionDimension = dimension
        found = list(slices(scan.acquisitions(), scan.header))
    assert len(found) == len(b_values)
    for item in found:
        assert (item.shots is not None) == kept


@pytest.mark.parametrize("wrong", [True, False])
def test_lines_that_are_their_navigators_mirror_images_are_no_image(simulated_epi, wrong):
    """Navigators alone, or all but them, bear REVERSE on the wrong ones."""
    with open_scan(simulated_epi(directions_per_b=1)) as scan:
        lines = list(scan.acquisitions())
        assert not any(isinstance(item, LostSlice) for item in slices(lines, scan.header))
        for item in lines:
            if item.is_flag_set(NAVIGATOR) == wrong and not item.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
                item.clear_flag(REVERSE) if item.is_flag_set(REVERSE) else item.set_flag(REVERSE)
        for lost in slices(lines, scan.header):
            assert "fit their navigators only when they are mirrored" in lost.reason


def weighted_shots(*parts, navigators=0):
    """Shots of these lines in one image that may be weighted; navigators: of all but the first."""
    readouts = Readouts(FLAT)
    lines = readouts.shot(parts[0], (0.2, 0.3))
    for part in parts[1:]:
        lines += readouts.shot(part, (0.2, 0.3), navigators=navigators)
    return list(slices(lines, header(FLAT, measurement=DWI)))


def test_shots_are_told_by_lines_that_turn_back():
    (found,) = weighted_shots(range(0, ROWS, 2), range(1, ROWS, 2))
    assert found.shots.tolist() == [row % 2 for row in range(ROWS)]
    (found,) = weighted_shots(range(ROWS))
    assert found.shots is None


def test_calibration_lines_among_weighted_ones_are_a_shot_of_their_own():
    readouts, fill = Readouts(FLAT), [number for number in CENTRE if number % 2]
    lines = readouts.shot(range(0, ROWS, 2), (0.2, 0.3)) + readouts.shot(fill, (0.2, 0.3), flags=(CALIBRATION,))
    (found,) = slices(lines, header(FLAT, measurement=DWI, acceleration=2))
    assert torch.nonzero(found.shots == 0).flatten().tolist() == list(range(0, ROWS, 2))
    assert torch.nonzero(found.shots == 1).flatten().tolist() == fill
    assert found.calibration.shape[1] == len(CENTRE) + 2  # rows of the first shot on either side


def test_weighted_shots_that_tell_no_phase_are_refused():
    (found,) = weighted_shots(range(ROWS // 2 + 1), range(ROWS // 2 - 3, ROWS))
    assert "in 2 shots" in found.reason and "some of its lines came in several" in found.reason
    (found,) = weighted_shots(range(ROWS // 2 + 1), range(ROWS // 2 + 1, ROWS), navigators=3)
    assert "does not reach the centre of k-space" in found.reason


UNCALIBRATED = {"shots": 2, "acceleration": 1, "calibration": "none", "directions_per_b": 1, "matrix": (47, 43)}


@pytest.mark.parametrize("weighted_first", [False, True])
def test_weighted_shots_are_calibrated_by_the_unweighted_image_of_their_slice(simulated_epi, weighted_first):
    """Together they have several phases, whose coil maps are wrong."""
    with open_scan(simulated_epi(**UNCALIBRATED)) as scan:
        lines = sorted(scan.acquisitions(), key=lambda item: weighted_first * -item.idx.contrast)
        plain, weighted = sorted(slices(lines, scan.header), key=lambda item: item.key)
    assert plain.calibration.equal(plain.kspace) and plain.remarks == ()
    assert weighted.calibration.equal(plain.calibration)
    assert [remark for remark in weighted.remarks if "those of contrast 0 of its slice calibrate it" in remark]


def test_weighted_shots_that_nothing_calibrates_are_lost(simulated_epi):
    with open_scan(simulated_epi(**UNCALIBRATED, b_values=(500.0, 1000.0))) as scan:
        found = list(slices(scan.acquisitions(), scan.header))
    assert len(found) == 2
    for lost in found:
        assert "they calibrate nothing together" in lost.reason and "\n" not in lost.reason


def test_where_no_weighting_is_told_the_first_image_calibrates_its_slice_and_it_is_said(simulated_epi):
    with open_scan(simulated_epi(**UNCALIBRATED)) as scan:
        scan.header.sequenceParameters.diffusion = []
        first, second = slices(scan.acquisitions(), scan.header)
    assert any("it came first" in remark for remark in first.remarks)
    assert first.calibration.equal(first.kspace) and second.calibration.equal(first.kspace)


@pytest.mark.parametrize("seed", [0, 1])
def test_phases_of_weighted_shots_are_no_head_across_the_edge(simulated_epi, seed):
    """They alternate by half a turn."""
    settings = {**UNCALIBRATED, "calibration": "separate", "n_slices": 2, "seed": seed}
    with open_scan(simulated_epi(**settings)) as scan:
        for item in slices(scan.acquisitions(), scan.header):
            assert not any("across the edge" in remark for remark in item.remarks)


def test_a_scan_that_a_file_holds_twice_is_one_scan(simulated_epi):
    """A converter adds to the file that is there."""
    with open_scan(simulated_epi(directions_per_b=1)) as scan:
        lines, log = list(scan.acquisitions()), ScanLog()
        for item in lines:
            item.clear_flag(ismrmrd.ACQ_LAST_IN_SLICE)
        once, twice = list(slices(lines, scan.header)), list(slices(2 * lines, scan.header, log=log))
    assert len(twice) == 2 and any("they are copies" in remark for remark in log.remarks)
    for one, other in zip(once, twice, strict=True):
        assert other.kspace.equal(one.kspace) and other.shots is None


def test_weighted_images_have_the_centre_of_the_unweighted_ones(simulated_epi):
    """Their peak is that of a head that moved, and the header's centre is wrong."""
    settings = {"partial_fourier": 0.75, "matrix": (51, 47), "motion": 4.0, "directions_per_b": 3}
    with open_scan(simulated_epi(**settings)) as scan:
        lines = list(scan.acquisitions())
        right = list(slices(lines, scan.header))
        limit = scan.header.encoding[0].encodingLimits.kspace_encoding_step_1
        told, limit.center = limit.center, 25
        wrong = list(slices(lines, scan.header))
    assert len(wrong) == 4 and told == 13
    for one, other in zip(right, wrong, strict=True):
        assert other.kspace.equal(one.kspace) and other.mask.equal(one.mask)
        assert any("centre line 25 is not the k-space centre: line 13 is taken" in remark for remark in other.remarks)
