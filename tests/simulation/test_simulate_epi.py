"""The simulated EPI scan: the samples' places in k-space, ghosts, shots, counters, header and truth."""

import argparse

import ismrmrd
import numpy as np
import pytest
from dpmrecon.errors import BadInputError
from dpmrecon.simulation.epi import Ghost, diffusion_truth, ghost_of, shots_of
from dpmrecon.simulation.epi_settings import EpiSettings
from dpmrecon.simulation.simulate import add_arguments, run, settings_of, simulate, truth_path
from dpmrecon.simulation.slices import (
    coil_maps,
    cropped_kspace,
    noise_mixing,
    object_phase,
    slice_points,
    the_object,
)

from support.acquisitions import CALIBRATION, NOISE, read

NAVIGATOR, REVERSED = ismrmrd.ACQ_IS_PHASECORR_DATA, ismrmrd.ACQ_IS_REVERSE
SMALL = {
    "matrix": (36, 30),
    "n_slices": 1,
    "n_coils": 4,
    "calibration_lines": 10,
    "noise": 0.0,
    "noise_scan": False,
}


def scan(tmp_path, **settings):
    """The settings, the header and the acquisitions of a small scan without noise."""
    chosen = EpiSettings(**{**SMALL, **settings})
    path = tmp_path / "scan.h5"
    simulate(path, chosen)
    return chosen, *read(path)


def positions(header):
    """k (n_samples,) of a forward line's samples in cycles per field of view: the header's gradient, integrated."""
    description = header.encoding[0].trajectoryDescription
    times = {p.name: p.value for p in [*description.userParameterLong, *description.userParameterDouble]}
    up, top, down = times["rampUpTime"], times["flatTopTime"], times["rampDownTime"]
    clock = np.linspace(0, up + top + down, 200001)
    gradient = np.interp(clock, [0, up, up + top, up + top + down], [0, 1, 1, 0])
    area = np.concatenate([[0], np.cumsum((gradient[1:] + gradient[:-1]) / 2 * np.diff(clock))])
    ends = times["acqDelayTime"] + times["dwellTime"] * np.arange(times["numSamples"] + 1)
    k = np.interp(ends, clock, area)
    return header.encoding[0].encodedSpace.matrixSize.x * (k[1:] - area[-1] / 2) / (k[-1] - k[0])


def fine_images(settings, weighting):
    """(n_coils, 2 rows, 4 cols) complex128: what the coils receive from each point of the grid twice as fine."""
    table = [settings.weighting_table[weighting]]
    head, read_dir, phase_dir, through = the_object(settings), *settings.directions()
    sides = settings.pixel_mm[1] / 2 * read_dir, settings.pixel_mm[0] / 2 * phase_dir
    cell = np.stack([*sides, settings.slice_thickness_mm / 3 * through])
    offsets = [part * settings.slice_thickness_mm for part in (-1 / 3, 0, 1 / 3)]
    planes = [head.signals(slice_points(settings, 0, 2, settings.oversampling, at), table, cell)[0] for at in offsets]
    points = slice_points(settings, 0, 2, settings.oversampling, 0.0)
    maps = coil_maps(points, settings.n_coils, settings.subject) * object_phase(points, settings.subject)
    return maps.astype(complex) * np.mean(planes, 0)


@pytest.mark.parametrize(
    ("matrix", "ramp_sampling", "oversampling"),
    [((36, 30), False, 2), ((35, 27), True, 2), ((27, 34), True, 2), ((33, 41), False, 1)],
)
def test_a_line_is_the_object_s_transform_at_the_header_s_places(tmp_path, matrix, ramp_sampling, oversampling):
    calm = {"motion": 0.0, "eddy": 0.0, "ghost": 0.2}
    settings, header, acquisitions = scan(
        tmp_path, matrix=matrix, ramp_sampling=ramp_sampling, oversampling=oversampling, **calm
    )
    k = positions(header)
    assert (np.ptp(np.diff(k)) > 0.05) == ramp_sampling
    rows, cols = (np.arange(2 * n) - n for n in (matrix[0], matrix[1] * oversampling))
    shots = shots_of(settings)
    place = 0  # of a shot's first line
    for shot in shots[:8]:
        image = fine_images(settings, shot.weighting or 0) / np.sqrt(16 * matrix[0] * matrix[1] * oversampling)
        ghost = ghost_of(settings, shot, len(shots))
        for number in (0, 1, 3, 4, 3 + len(shot.rows) - 1):  # forward and reversed, navigators and image
            line = acquisitions[place + number]
            row = matrix[0] // 2 if number < 3 else shot.rows[number - 3]
            sign = -1 if line.is_flag_set(REVERSED) else 1
            assert line.idx.kspace_encode_step_1 == row
            profile = np.exp(-2j * np.pi * (row - matrix[0] // 2) * rows / (2 * matrix[0])) @ image
            half = np.exp(1j * sign * (ghost.constant + 2 * np.pi * ghost.shift * cols / (2 * matrix[1])))
            expected = (profile * half) @ np.exp(-2j * np.pi * sign * np.outer(k, cols / (2 * matrix[1]))).T
            assert np.abs(line.data - expected).max() < 1e-5 * np.abs(expected).max()
        place += 3 + len(shot.rows)


@pytest.mark.parametrize("matrix", [(33, 44), (36, 31)])
def test_a_receiver_of_fixed_frequency_leaves_phase_on_the_ramps(tmp_path, matrix):
    """The correction is that of Gadgetron's EPIReconX for files of Siemens, whose k-space is conjugated."""
    same = {"matrix": matrix, "position_mm": (31.0, -5.0, 20.0), "vendor": "SIEMENS"}
    settings, header, flat = scan(tmp_path, **same)
    _, _, flat_fixed = scan(tmp_path, **same, fixed_receiver=True)
    assert all(np.allclose(a.data, b.data, atol=1e-6) for a, b in zip(flat, flat_fixed))

    _, header, plain = scan(tmp_path, **same, ramp_sampling=True)
    _, _, fixed = scan(tmp_path, **same, ramp_sampling=True, fixed_receiver=True)
    k = positions(header)
    middle = int(np.argmin(np.abs(k)))
    even = (np.arange(len(k)) - middle) * np.diff(k).max()
    for wanted, line in zip(plain, fixed):
        distance = np.array(line.position) @ np.array(line.read_dir) / header.encoding[0].encodedSpace.fieldOfView_mm.x
        sign = -1 if line.is_flag_set(REVERSED) else 1
        corrected = line.data * np.exp(-2j * np.pi * sign * distance * (k - even))
        assert np.abs(corrected - wanted.data).max() < 1e-3 * np.abs(wanted.data).max()
        assert np.abs(line.data - wanted.data).max() > 0.01 * np.abs(wanted.data).max()


def images_of(acquisitions):
    return [a for a in acquisitions if not any(map(a.is_flag_set, (NOISE, NAVIGATOR, CALIBRATION)))]


def combined(settings, header, lines, ghosts):
    """Magnitude (rows, cols) of a fully sampled image: `ghosts` undone, those of the lines, and the coils combined by
    their true maps. Along the readout the pixels are taken whose transform at the header's places comes nearest."""
    rows, cols = settings.matrix
    k, places = positions(header), np.arange(cols) - cols // 2
    weight = np.sqrt(np.gradient(k))[:, None]
    to_pixels = np.linalg.pinv(weight * np.exp(-2j * np.pi * np.outer(k, places) / cols)) * weight.T
    profiles = np.zeros((settings.n_coils, rows, cols), complex)
    for line, ghost in zip(lines, ghosts):
        sign = -1 if line.is_flag_set(REVERSED) else 1
        profile = line.data @ (to_pixels if sign > 0 else to_pixels.conj()).T
        phase = ghost.constant + 2 * np.pi * ghost.shift * places / cols
        profiles[:, line.idx.kspace_encode_step_1] = profile * np.exp(-1j * sign * phase)
    down = np.arange(rows) - rows // 2
    images = np.exp(2j * np.pi * np.outer(down, down) / rows) @ profiles
    whitening = np.linalg.inv(noise_mixing(settings))
    points = slice_points(settings, 0, 1, 1, 0.0)
    maps = np.einsum("ij,jrc->irc", whitening, coil_maps(points, settings.n_coils, settings.subject))
    combination = (maps.conj() * np.einsum("ij,jrc->irc", whitening, images)).sum(0) / np.linalg.norm(maps, axis=0)
    return np.abs(combination) * np.sqrt(settings.oversampling * cols / rows)


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("ramp_sampling", [False, True])
@pytest.mark.parametrize("matrix", [(45, 52), (50, 47)])
def test_images_are_their_truth_once_the_ghost_is_undone(tmp_path, matrix, ramp_sampling, shots):
    settings, header, acquisitions = scan(
        tmp_path, matrix=matrix, ramp_sampling=ramp_sampling, shots=shots, acceleration=1, calibration="none"
    )
    plan = shots_of(settings)
    truths = np.load(truth_path(tmp_path / "scan.h5", "truth_b"))
    assert np.array_equal(truths[0], np.load(truth_path(tmp_path / "scan.h5")))
    for weighting, truth in enumerate(truths[:, 0]):
        lines = [a for a in images_of(acquisitions) if a.idx.contrast == weighting]
        own = [shot for shot in plan if shot.weighting == weighting]
        ghosts = [ghost_of(settings, shot, len(plan)) for shot in own for _ in shot.rows]
        if shots > 1 and weighting:
            continue  # each shot has a phase of its own
        undone = combined(settings, header, lines, ghosts)
        left = combined(settings, header, lines, [Ghost(0.0, 0.0)] * len(lines))
        tolerance = 0.05 if weighting else 0.008  # motion moves k-space beyond what is acquired
        assert np.linalg.norm(undone - truth) < tolerance * np.linalg.norm(truth)
        if not weighting:
            assert np.linalg.norm(left - truth) > 3 * np.linalg.norm(undone - truth)


def test_the_ghost_has_its_level_and_drifts(tmp_path):
    """In a field of view twice as long as the head, where it lies beside it."""
    wide = {"matrix": (64, 32), "fov_mm": (460.0, 230.0), "acceleration": 1, "calibration": "none"}
    still = {"n_coils": 1, "motion": 0.0, "eddy": 0.0, "ghost_drift": 0.0, "emboli": 0}
    settings, header, acquisitions = scan(tmp_path, **wide, **still)
    lines = [a for a in images_of(acquisitions) if a.idx.contrast == 0]
    image = combined(settings, header, lines, [Ghost(0.0, 0.0)] * len(lines))
    truth = np.load(truth_path(tmp_path / "scan.h5"))[0]
    head = truth > 0.05 * truth.max()
    beside = np.roll(head, 32, 0) & ~head
    level = np.sqrt(np.square(image[beside]).sum() / np.square(image[head]).sum())
    assert 0.06 < level < 0.12

    plan = shots_of(settings)
    assert len({ghost_of(settings, shot, len(plan)) for shot in plan}) == 1
    drifting = EpiSettings(**{**SMALL, **wide, "averages": 4})
    plan = shots_of(drifting)
    constants = np.array([ghost_of(drifting, shot, len(plan)).constant for shot in plan])
    assert 0.2 < np.ptp(np.abs(constants)) / np.abs(constants).mean() < 1


def test_each_shot_and_direction_has_a_phase_of_its_own(tmp_path):
    same = {"averages": 2, "ghost_drift": 0.0, "calibration": "none"}
    navigators = {}
    for name, changed in {"both": {}, "other noise": {"seed": 1}, "eddy": {"motion": 0.0}}.items():
        _, _, acquisitions = scan(tmp_path, **same, **changed)
        for line in acquisitions:
            if line.is_flag_set(NAVIGATOR) and line.is_flag_set(REVERSED):
                navigators[name, line.idx.contrast, line.idx.average] = line.data

    def alike(first, second):
        return np.allclose(navigators[first], navigators[second], rtol=1e-3, atol=1e-3)

    assert alike(("both", 0, 0), ("other noise", 0, 0))  # b = 0
    assert alike(("both", 0, 0), ("eddy", 0, 0))
    for contrast in (1, 2, 3):
        assert not alike(("both", contrast, 0), ("both", contrast, 1))
        assert not alike(("both", contrast, 0), ("other noise", contrast, 0))
        assert alike(("eddy", contrast, 0), ("eddy", contrast, 1))
    assert not alike(("eddy", 1, 0), ("eddy", 2, 0))


@pytest.mark.parametrize("counter", ["contrast", "repetition"])
def test_shots_come_in_order_with_their_navigators_counters_and_flags(tmp_path, counter):
    settings, header, acquisitions = scan(
        tmp_path,
        matrix=(44, 32),
        n_slices=3,
        partial_fourier=0.75,
        shots=2,
        averages=3,
        unweighted_averages=2,
        b_values=(0.0, 500.0, 1000.0),
        directions_per_b=4,
        weighting_counter=counter,
        noise_scan=True,
        phantom="letters",
    )
    assert [a.scan_counter for a in acquisitions] == list(range(len(acquisitions)))
    lines = [a for a in acquisitions if not a.is_flag_set(NOISE)]
    limits = header.encoding[0].encodingLimits
    assert getattr(limits, counter).maximum == 8
    assert {name: getattr(limits, name).maximum for name in ("average", "slice", "segment")} == {
        "average": 2,
        "slice": 2,
        "segment": 1,
    }
    # navigators run forward, backward, forward, and so does the train after them
    starts = [number for number, a in enumerate(lines) if a.is_flag_set(NAVIGATOR)][::3]
    rows: dict[tuple[int, ...], list[int]] = {}
    for start, end in zip(starts, [*starts[1:], len(lines)]):
        shot = lines[start:end]
        assert [a.is_flag_set(NAVIGATOR) for a in shot[:4]] == [True, True, True, False]
        assert [a.is_flag_set(REVERSED) for a in shot] == [n % 2 == 1 for n in [0, 1, 2, *range(len(shot) - 3)]]
        assert all(a.idx.segment == a.is_flag_set(REVERSED) for a in shot)
        assert {a.idx.kspace_encode_step_1 for a in shot[:3]} == {limits.kspace_encoding_step_1.center}
        image = {(a.idx.slice, getattr(a.idx, counter), a.idx.average) for a in shot}
        assert len(image) == 1
        if not shot[3].is_flag_set(CALIBRATION):
            rows.setdefault(image.pop(), []).extend(a.idx.kspace_encode_step_1 for a in shot[3:])
    wanted = {(s, w, a) for s in range(3) for w in range(9) for a in range(3 if w else 2)}
    assert rows.keys() == wanted
    for taken in rows.values():
        assert sorted(taken) == [row - settings.skipped_rows for row in settings.grid_rows()]
        assert taken != sorted(taken)  # two shots
    images = images_of(acquisitions)
    for image in wanted:
        own = [a for a in images if (a.idx.slice, getattr(a.idx, counter), a.idx.average) == image]
        for flag, place in ((ismrmrd.ACQ_FIRST_IN_SLICE, 0), (ismrmrd.ACQ_LAST_IN_SLICE, len(own) - 1)):
            assert [number for number, a in enumerate(own) if a.is_flag_set(flag)] == [place]
    for flag, first in ((ismrmrd.ACQ_FIRST_IN_REPETITION, True), (ismrmrd.ACQ_LAST_IN_REPETITION, False)):
        ends = {}
        for number, a in enumerate(images):
            if not first or a.idx.repetition not in ends:
                ends[a.idx.repetition] = number
        assert [number for number, a in enumerate(images) if a.is_flag_set(flag)] == sorted(ends.values())
    assert [a.is_flag_set(ismrmrd.ACQ_LAST_IN_MEASUREMENT) for a in images].index(True) == len(images) - 1


def test_the_header_tells_readout_and_weightings(tmp_path):
    settings, header, acquisitions = scan(tmp_path, b_values=(0.0, 700.0, 1400.0), directions_per_b=6)
    encoding = header.encoding[0]
    assert encoding.trajectory.value == "epi"
    assert encoding.trajectoryDescription.identifier == "ConventionalEPI"
    told = {p.name: p.value for p in encoding.trajectoryDescription.userParameterLong}
    assert told["etl"] == len(settings.grid_rows())
    assert told["numberOfNavigators"] == 3
    assert told["numSamples"] == acquisitions[0].number_of_samples == 60
    assert told["echoSpacing"] == told["rampUpTime"] + told["flatTopTime"] + told["rampDownTime"]
    assert (encoding.encodedSpace.matrixSize.x, encoding.encodedSpace.fieldOfView_mm.x) == (30, 230.0)
    sequence = header.sequenceParameters
    assert sequence.diffusionDimension.value == "contrast"
    assert [entry.bvalue for entry in sequence.diffusion] == [0.0] + [700.0] * 6 + [1400.0] * 6
    vectors = np.array(
        [(e.gradientDirection.rl, e.gradientDirection.ap, e.gradientDirection.fh) for e in sequence.diffusion]
    )
    assert np.allclose(np.linalg.norm(vectors, axis=1), [0.0] + [1.0] * 12)
    # the mean over the directions of g g^T is isotropic, so that their mean ADC is a third of the trace
    assert np.allclose(vectors[1:7].T @ vectors[1:7] / 6, np.eye(3) / 3)


def test_a_trace_weighted_image_has_no_direction(tmp_path):
    _, header, _ = scan(tmp_path, directions_per_b=0)
    direction = header.sequenceParameters.diffusion[1].gradientDirection
    assert (direction.rl, direction.ap, direction.fh) == (0.0, 0.0, 0.0)
    one = np.load(truth_path(tmp_path / "scan.h5", "truth_b"))
    scan(tmp_path, directions_per_b=3)
    three = np.load(truth_path(tmp_path / "scan.h5", "truth_b"))
    assert (one.shape[0], three.shape[0]) == (2, 4)
    trace = np.exp(np.log(three[1:].clip(1e-9)).mean(0))
    white = diffusion_truth(EpiSettings(**SMALL)).white
    assert white.sum() > 20
    assert np.allclose(one[1][white], trace[white], rtol=0.03)


def test_calibration_shots_keep_the_echo_spacing_along_the_lines(tmp_path):
    _, _, acquisitions = scan(tmp_path, acceleration=3, calibration_lines=11, n_slices=2)
    calibration = [a for a in acquisitions if a.is_flag_set(CALIBRATION) and a.idx.slice == 1]
    assert [a.idx.kspace_encode_step_1 for a in calibration] == [13, 16, 19, 22, 14, 17, 20, 23, 15, 18, 21]
    assert [a.is_flag_set(REVERSED) for a in calibration] == [n % 2 == 1 for n in (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2)]
    assert sum(a.is_flag_set(NAVIGATOR) for a in acquisitions[:40]) == 18  # 3 shots of 2 slices


@pytest.mark.parametrize("calibration_by", ["gre", "own-space"])
def test_calibration_by_a_gradient_echo(tmp_path, calibration_by):
    settings, header, acquisitions = scan(tmp_path, matrix=(37, 43), calibration_by=calibration_by)
    calibration = [a for a in acquisitions if a.is_flag_set(CALIBRATION)]
    assert acquisitions[: len(calibration)] == calibration  # no navigators
    own = calibration_by == "own-space"
    kspace = cropped_kspace(settings, fine_images(settings, 0).astype(np.complex64))
    cols = 21 if own else 43
    assert {a.encoding_space_ref for a in calibration} == {int(own)}
    assert {a.sample_time_us for a in calibration} == {5.0}
    assert {a.center_sample for a in calibration} == {cols}
    if own:
        space, limits = header.encoding[1].encodedSpace, header.encoding[1].encodingLimits.kspace_encoding_step_1
        assert (space.matrixSize.x, space.matrixSize.y, space.fieldOfView_mm.x) == (42, 10, 460.0)
        assert (limits.maximum, limits.center) == (9, 5)
        assert header.encoding[1].trajectory.value == "cartesian"
    else:
        assert len(header.encoding) == 1
    middle = kspace[:, :, 43 - cols : 43 + cols]
    first = 0 if own else 13
    for number, line in enumerate(calibration):
        assert line.idx.kspace_encode_step_1 == first + number
        assert not line.is_flag_set(REVERSED)
        assert np.abs(line.data - middle[:, 13 + number]).max() < 1e-5 * np.abs(middle).max()


def test_adc_is_that_of_the_tissues(tmp_path):
    settings, _, _ = scan(tmp_path, matrix=(90, 81), calibration_lines=16)
    truths = np.load(truth_path(tmp_path / "scan.h5", "truth_b"))
    adc = np.load(truth_path(tmp_path / "scan.h5", "truth_adc"))
    told = diffusion_truth(settings)
    assert np.array_equal(adc, told.adc)
    apparent = np.log(truths[0] / truths[1:].clip(1e-6)) / 1000
    for mask, wanted in ((told.white, 0.75e-3), (told.infarct, 0.44e-3)):
        assert mask.sum() > 30
        assert abs(adc[mask].mean() / wanted - 1) < 0.02
        assert abs(apparent.mean(0)[mask].mean() / adc[mask].mean() - 1) < 0.04
    spread = apparent.std(0)
    assert spread[told.white].mean() > 10 * spread[told.infarct].mean()


def test_emboli_lie_where_they_are_said_to(tmp_path):
    settings, _, _ = scan(tmp_path, matrix=(120, 114), n_coils=1, directions_per_b=0, subject=3)
    head, told = the_object(settings), diffusion_truth(settings)
    bright = np.load(truth_path(tmp_path / "scan.h5", "truth_b"))[1:].mean(0)
    assert len(told.emboli) == 8
    assert told.emboli == head.emboli
    read_dir, phase_dir, _ = settings.directions()
    contrasts: dict[float, list[float]] = {}
    for number, embolus in enumerate(told.emboli):
        away = np.array(embolus.place) - settings.slice_position(embolus.index)
        place = away @ phase_dir / settings.pixel_mm[0] + 60, away @ read_dir / settings.pixel_mm[1] + 57
        voxels = np.argwhere(told.labels == 1 + number)
        assert {index for index, _, _ in voxels} == {embolus.index}
        assert np.abs(voxels[:, 1:].mean(0) - place).max() < 0.75
        row, col = np.round(place).astype(int)
        around = bright[embolus.index, row - 4 : row + 5, col - 4 : col + 5]
        contrasts.setdefault(embolus.diameter_mm, []).append(
            bright[told.labels == 1 + number].max() / np.median(around)
        )
    means = [np.mean(contrasts[size]) for size in (1.0, 2.0, 3.0, 4.0)]
    assert means[3] > 2
    assert means[3] > means[2] > means[1]
    assert not diffusion_truth(EpiSettings(**SMALL, emboli=0)).labels.any()


def test_noise_follows_the_bandwidth(tmp_path):
    same = {"matrix": (32, 64), "noise_scan": True}
    _, _, quiet = scan(tmp_path, **same)
    _, _, noisy = scan(tmp_path, **same, noise=0.05, noise_correlation=0.0)
    added = np.concatenate([b.data - a.data for a, b in zip(quiet, noisy) if not a.is_flag_set(NOISE)], 1)
    measured = np.concatenate([a.data for a in noisy if a.is_flag_set(NOISE)], 1)
    truth = np.load(truth_path(tmp_path / "scan.h5"))
    sigma = np.sqrt(np.square(np.abs(added)).mean() / 2)
    assert abs(sigma / (0.05 * np.percentile(truth, 99)) - 1) < 0.02
    ratio = next(a.sample_time_us for a in noisy if a.is_flag_set(NOISE)) / noisy[-1].sample_time_us
    assert ratio == 2.5
    assert abs(np.square(np.abs(added)).mean() / np.square(np.abs(measured)).mean() / ratio - 1) < 0.04


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"contrast": "t2"}, "contrast is 't2', which EPI is not simulated with"),
        ({"calibration": "embedded"}, "use one of separate, none"),
        ({"directions_per_b": 5}, "use one of 0, 1, 3, 4, 6"),
        ({"shots": 10}, "10 shots of 18 lines"),
        ({"shots": 0}, "from 1 to 4096"),
        ({"ghost": -0.1}, "from 0 to 0.5"),
        ({"b_values": (1000.0, 0.0)}, "in ascending order"),
        ({"b_values": ()}, "in ascending order"),
        ({"asymmetric_echo": 0.8}, "with full echoes"),
        ({"repetitions": 2, "weighting_counter": "repetition"}, "give one repetition"),
        ({"ramp_sampling": True, "oversampling": 1}, "give oversampling 2"),
    ],
)
def test_what_epi_cannot_have_is_refused(changed, message):
    with pytest.raises(BadInputError, match=message):
        EpiSettings(**{**SMALL, **changed})


def test_letters_have_images_but_no_adc(tmp_path):
    settings, _, _ = scan(tmp_path, phantom="letters")
    assert np.load(truth_path(tmp_path / "scan.h5", "truth_b")).max() > 0
    assert not truth_path(tmp_path / "scan.h5", "truth_adc").exists()
    with pytest.raises(BadInputError, match="no ADC"):
        diffusion_truth(settings)


def test_the_command_line_makes_epi(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    small = ["--matrix", "36", "30", "--slices", "1", "--coils", "4", "--calibration-lines", "10"]
    out = tmp_path / "dwi.h5"
    assert run(parser.parse_args([str(out), "--contrast", "dwi", "--epi", "--R", "3", *small])) == 0
    assert str(truth_path(out, "truth_b")) in capsys.readouterr().out
    told = settings_of(
        parser.parse_args([str(out), "--epi", "--ramp-sampling", "--shots", "2", "--b-values", "0", "700"])
    )
    assert told == EpiSettings(ramp_sampling=True, shots=2, b_values=(0.0, 700.0))
    for options, message in (
        (["--epi", "--three-d"], "give --epi or --three-d"),
        (["--shots", "2"], "shots: only a scan with --epi has that"),
        (["--epi", "--caipirinha", "1"], "caipirinha: only a scan with --three-d has that"),
        (["--epi", "--b-value", "500"], "give b_values"),
    ):
        with pytest.raises(BadInputError, match=message):
            settings_of(parser.parse_args([str(out), *options]))
