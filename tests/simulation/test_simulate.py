"""The simulated scan: geometry, sampling, noise and truth."""

import argparse

import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.physics.fourier import crop_or_pad, to_image
from dpmrecon.simulation.phantom import TISSUES, Phantom
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.simulate import add_arguments, run, simulate, truth_path
from dpmrecon.simulation.slices import coil_maps, slice_points

from support.acquisitions import BOTH, CALIBRATION, NOISE, read


def rows_of(acquisitions, header, *, flagged=None):
    """Rows of the encoded matrix, from line numbers and limits; `flagged` keeps lines with one of these flags."""
    limits = header.encoding[0].encodingLimits.kspace_encoding_step_1
    half = header.encoding[0].encodedSpace.matrixSize.y // 2
    return [
        a.idx.kspace_encode_step_1 - limits.center + half
        for a in acquisitions
        if not a.is_flag_set(NOISE) and (flagged is None or any(a.is_flag_set(flag) for flag in flagged))
    ]


def coil_images(path, index=0):
    """(n_coils, rows, cols) of a fully sampled slice, oversampling removed, and the acquisitions."""
    header, acquisitions = read(path)
    space, target = header.encoding[0].encodedSpace.matrixSize, header.encoding[0].reconSpace.matrixSize
    mine = [a for a in acquisitions if not a.is_flag_set(NOISE) and a.idx.slice == index]
    kspace = torch.zeros(mine[0].data.shape[0], space.y, space.x, dtype=torch.complex64)
    for row, line in zip(rows_of(mine, header), mine):
        kspace[:, row] = torch.from_numpy(np.array(line.data))
    return crop_or_pad(to_image(kspace), target.x, -1), acquisitions


def whitener(acquisitions):
    samples = np.concatenate([a.data for a in acquisitions if a.is_flag_set(NOISE)], 1)
    covariance = samples @ samples.conj().T / (2 * samples.shape[1])
    return np.linalg.inv(np.linalg.cholesky(covariance))


@pytest.mark.parametrize(
    ("matrix", "fov", "oversampling", "index"), [((95, 73), (230.0, 219.0), 2, 1), ((72, 91), (252.0, 245.7), 1, 0)]
)
def test_a_marker_appears_where_the_header_says(simulated_scan, matrix, fov, oversampling, index):
    settings = {
        "matrix": matrix,
        "fov_mm": fov,
        "oversampling": oversampling,
        "rotation_deg": (25.0, -12.0, 15.0),
        "position_mm": (9.0, -6.0, 12.0),
        "n_slices": 2,
        "acceleration": 1,
        "noise": 0.0,
    }
    plain = SimulationSettings(**settings)
    read_dir, phase_dir, _ = plain.directions()
    voxel = (matrix[0] // 2 - 21.3, matrix[1] // 2 + 17.8)  # rows, cols: in front, on the left
    place = plain.slice_position(index)
    place = place + (voxel[0] - matrix[0] // 2) * fov[0] / matrix[0] * phase_dir
    place = place + (voxel[1] - matrix[1] // 2) * fov[1] / matrix[1] * read_dir
    with_marker, acquisitions = coil_images(simulated_scan(**settings, marker_mm=tuple(float(v) for v in place)), index)
    without, _ = coil_images(simulated_scan(**settings), index)
    energy = (with_marker - without).abs().square().sum(0).numpy()
    rows, cols = np.indices(matrix)
    found = np.array([(rows * energy).sum(), (cols * energy).sum()]) / energy.sum()

    # the header alone must send the marker's patient position to that voxel
    line = next(a for a in acquisitions if a.idx.slice == index and not a.is_flag_set(NOISE))
    away = place - np.array(line.position)
    header, _ = read(simulated_scan(**settings))
    fov_header = header.encoding[0].reconSpace.fieldOfView_mm
    expected = (
        away @ np.array(line.phase_dir) / (fov_header.y / matrix[0]) + matrix[0] // 2,
        away @ np.array(line.read_dir) / (fov_header.x / matrix[1]) + matrix[1] // 2,
    )
    assert np.allclose(expected, voxel, atol=1e-3)
    assert abs(away @ np.array(line.slice_dir)) < 1e-3
    assert np.abs(found - expected).max() < 0.3


def test_directions_are_a_right_handed_frame_and_slices_ascend(simulated_scan):
    header, acquisitions = read(simulated_scan(n_slices=5, matrix=(32, 32), calibration_lines=8))
    line = acquisitions[-1]
    assert np.allclose(np.cross(line.read_dir, line.phase_dir), line.slice_dir, atol=1e-6)
    assert line.slice_dir[2] > 0.8
    seen = list(dict.fromkeys(a.idx.slice for a in acquisitions if not a.is_flag_set(NOISE)))
    assert seen == [1, 3, 0, 2, 4]
    places = {a.idx.slice: np.array(a.position) @ np.array(line.slice_dir) for a in acquisitions[64:]}
    assert np.allclose(np.diff([places[i] for i in range(5)]), 5.0, atol=1e-4)
    assert header.encoding[0].encodingLimits.slice.maximum == 4
    assert header.version is None


def test_the_head_is_asymmetric_and_the_lesion_on_its_side():
    rng = np.random.default_rng(0)
    points = rng.uniform(-80, 80, (20000, 3)).astype(np.float32)
    lesion = Phantom(3).fractions(points.T)[TISSUES.index("lesion")]
    assert lesion[points[:, 0] > 0].sum() > 20
    assert lesion[points[:, 0] < 0].sum() == 0
    assert Phantom(3, "right").fractions(points.T)[TISSUES.index("lesion")][points[:, 0] > 0].sum() == 0
    fractions = Phantom(3).fractions(points.T)
    assert fractions.min() >= 0
    assert fractions.sum(0).max() < 1 + 1e-5
    image = Phantom(3).magnitude(points, "t2")
    for axis in range(3):
        mirrored = points * np.where(np.arange(3) == axis, -1, 1).astype(np.float32)
        flipped = Phantom(3).magnitude(mirrored, "t2")
        assert np.linalg.norm(flipped - image) > 0.2 * np.linalg.norm(image)


def test_contrasts_order_the_tissues():
    from dpmrecon.simulation.phantom import tissue_signal

    def order(contrast, b_value=0.0, names=("csf", "grey", "white", "lesion")):
        return sorted(names, key=lambda name: tissue_signal(name, contrast, b_value))

    assert order("flair") == ["csf", "white", "grey", "lesion"]
    assert order("t1", names=("csf", "grey", "white")) == ["csf", "grey", "white"]
    assert order("t2") == ["white", "grey", "lesion", "csf"]
    assert order("dwi", 1000.0) == ["csf", "white", "grey", "lesion"]
    assert order("dwi")[-1] == "csf"


@pytest.mark.parametrize("rows", [64, 71])
def test_embedded_calibration_lines(simulated_scan, rows):
    header, acquisitions = read(simulated_scan(matrix=(rows, 32), acceleration=4, calibration_lines=13))
    center = rows // 2
    region = set(range(center - 6, center + 7))
    grid = {row for row in range(rows) if (row - center) % 4 == 0}
    assert rows_of(acquisitions, header) == sorted(grid | region)
    assert set(rows_of(acquisitions, header, flagged=[BOTH])) == grid & region
    assert set(rows_of(acquisitions, header, flagged=[CALIBRATION])) == region - grid
    parallel = header.encoding[0].parallelImaging
    assert parallel.calibrationMode.value == "embedded"
    assert parallel.accelerationFactor.kspace_encoding_step_1 == 4
    assert acquisitions[64].is_flag_set(ismrmrd.ACQ_FIRST_IN_SLICE)
    last = [i for i, a in enumerate(acquisitions) if a.is_flag_set(ismrmrd.ACQ_LAST_IN_SLICE)]
    assert last == [len(acquisitions) - 1]
    assert acquisitions[-1].is_flag_set(ismrmrd.ACQ_LAST_IN_REPETITION)


def test_separate_and_no_calibration(simulated_scan):
    header, acquisitions = read(simulated_scan(calibration="separate", acceleration=3, matrix=(64, 32)))
    lines = acquisitions[64:]
    grid = [row for row in range(64) if (row - 32) % 3 == 0]
    assert rows_of(lines[:16], header, flagged=[CALIBRATION]) == list(range(24, 40))
    assert rows_of(lines[16:], header) == grid
    assert not any(a.is_flag_set(CALIBRATION) or a.is_flag_set(BOTH) for a in lines[16:])
    assert header.encoding[0].parallelImaging.calibrationMode.value == "separate"
    header, acquisitions = read(simulated_scan(calibration="none", acceleration=3, matrix=(64, 32), noise_scan=False))
    assert rows_of(acquisitions, header) == grid
    assert not any(a.flags & (1 << (CALIBRATION - 1)) for a in acquisitions)


def test_partial_fourier_leaves_out_the_early_lines(simulated_scan):
    header, acquisitions = read(simulated_scan(matrix=(71, 32), partial_fourier=0.75, acceleration=2))
    limits = header.encoding[0].encodingLimits.kspace_encoding_step_1
    assert (limits.minimum, limits.maximum, limits.center) == (0, 53, 18)  # ceil(.75 * 71) lines
    rows = rows_of(acquisitions, header)
    region = set(range(35 - 8, 35 + 8))
    assert rows == sorted({row for row in range(17, 71) if row % 2 == 1} | region)
    assert header.encoding[0].encodedSpace.matrixSize.y == 71


@pytest.mark.parametrize("oversampling", [1, 2])
def test_asymmetric_echo_leaves_out_the_early_samples(simulated_scan, oversampling):
    settings = {"matrix": (32, 51), "oversampling": oversampling, "noise": 0.0, "calibration_lines": 8}
    _, full = read(simulated_scan(**settings))
    _, short = read(simulated_scan(**settings, asymmetric_echo=0.7))
    samples = 51 * oversampling
    kept = int(np.ceil(0.7 * samples))
    assert [a.number_of_samples for a in short[64:]] == [kept] * len(full[64:])
    assert all(a.number_of_samples == samples for a in short[:64])
    assert {a.center_sample for a in short[64:]} == {samples // 2 - (samples - kept)}
    for a, b in zip(full[64:], short[64:]):
        assert np.array_equal(a.data[:, -kept:], b.data)
        assert np.array_equal(a.data[:, a.center_sample], b.data[:, b.center_sample])


def test_averages_and_repetitions_have_their_own_noise(simulated_scan):
    header, acquisitions = read(simulated_scan(matrix=(32, 32), calibration_lines=8, averages=2, repetitions=3))
    lines = acquisitions[64:]
    limits = header.encoding[0].encodingLimits
    assert (limits.average.maximum, limits.repetition.maximum) == (1, 2)
    passes = {}
    for line in lines:
        passes.setdefault((line.idx.repetition, line.idx.average), []).append(line)
    assert list(passes) == [(r, a) for r in range(3) for a in range(2)]
    assert len({len(one) for one in passes.values()}) == 1
    for one in passes.values():
        assert one[0].is_flag_set(ismrmrd.ACQ_FIRST_IN_SLICE)
        assert one[-1].is_flag_set(ismrmrd.ACQ_LAST_IN_SLICE)
    assert not np.allclose(passes[0, 0][0].data, passes[0, 1][0].data)
    ends = [line for line in lines if line.is_flag_set(ismrmrd.ACQ_LAST_IN_REPETITION)]
    assert [line.idx.repetition for line in ends] == [0, 1, 2]


def test_the_noise_scan_has_the_noise_of_the_data(simulated_scan):
    settings = {"matrix": (96, 64), "acceleration": 1, "noise_correlation": 0.3}
    _, first = read(simulated_scan(**settings, seed=1))
    _, second = read(simulated_scan(**settings, seed=2))
    lines = [(a, b) for a, b in zip(first, second) if not a.is_flag_set(NOISE)]
    # the anatomy cancels between two seeds of the noise
    noise = np.concatenate([a.data - b.data for a, b in lines], 1) / np.sqrt(2)
    whitened = whitener(first) @ noise
    covariance = whitened @ whitened.conj().T / (2 * noise.shape[1])
    assert np.abs(covariance - np.eye(len(covariance))).max() < 0.06  # 8192 and 12288 samples
    raw = noise @ noise.conj().T
    scale = np.sqrt(np.diag(raw).real)
    correlation = np.abs(raw) / np.outer(scale, scale) - np.eye(len(raw))
    assert 0.1 < correlation.max() < 0.9
    assert {a.sample_time_us for a in first} == {5.0}


def test_full_sampling_combined_is_the_truth_within_the_noise(simulated_scan):
    settings = {"matrix": (91, 80), "acceleration": 1, "noise": 0.02, "n_slices": 2, "subject": 4}
    path = simulated_scan(**settings)
    chosen = SimulationSettings(n_coils=6, calibration_lines=16, **settings)
    truths = np.load(truth_path(path))
    assert truths.shape == (2, 91, 80)
    assert truths.dtype == np.float32
    level = np.percentile(truths, 99)
    for index in range(2):
        images, acquisitions = coil_images(path, index)
        whitening = whitener(acquisitions)
        maps = coil_maps(slice_points(chosen, index, 1, 1, 0.0), 6, 4)
        maps = np.einsum("ij,jrc->irc", whitening, maps)
        maps /= np.linalg.norm(maps, axis=0)
        combined = np.abs((maps.conj() * np.einsum("ij,jrc->irc", whitening, images.numpy())).sum(0))
        # whitened noise is 1 per real channel, which the settings call .02 of the truth's 99th percentile
        scaled = combined * 0.02 * level
        bright = truths[index] > 0.3 * level
        error = (scaled - truths[index])[bright] / (0.02 * level)
        assert abs(error.std() - 1) < 0.06
        # the covariance of 10240 samples is known to half a per cent, of a signal of 50 sigma at most
        assert abs(error.mean()) < 0.25


def test_the_same_seed_gives_the_same_scan(tmp_path):
    settings = {"matrix": (32, 40), "n_slices": 1, "n_coils": 3, "calibration_lines": 8}
    for name, changes in (("a", {}), ("b", {}), ("c", {"seed": 5}), ("d", {"subject": 5})):
        simulate(tmp_path / f"{name}.h5", SimulationSettings(**settings, **changes))
    scans = {name: read(tmp_path / f"{name}.h5")[1] for name in "abcd"}
    truths = {name: np.load(tmp_path / f"{name}_truth.npy") for name in "abcd"}
    for a, b, c in zip(scans["a"], scans["b"], scans["c"]):
        assert np.array_equal(a.data, b.data)
        assert not np.array_equal(a.data, c.data)
    assert np.array_equal(truths["a"], truths["b"])
    assert np.array_equal(truths["a"], truths["c"])
    assert not np.allclose(truths["a"], truths["d"], atol=0.05)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".h5"] * 4 + [".npy"] * 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"contrast": "pd"}, "flair, t1, t2, dwi"),
        ({"matrix": (0, 64)}, "rows"),
        ({"acceleration": 0}, "acceleration"),
        ({"noise": float("nan")}, "noise"),
        ({"partial_fourier": 0.4}, "partial_fourier"),
        ({"partial_fourier": 0.55, "calibration_lines": 40}, "calibration lines"),
    ],
)
def test_bad_settings_are_refused(changes, words):
    with pytest.raises(BadInputError, match=words):
        SimulationSettings(**changes)


def test_the_command_writes_scan_and_truth(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    out = tmp_path / "scan.h5"
    options = "--contrast dwi --matrix 33 40 --slices 1 --coils 2 --R 2 --calibration-lines 8 --b-value 800"
    assert run(parser.parse_args([str(out), *options.split(), "--no-noise-scan"])) == 0
    header, acquisitions = read(out)
    assert header.measurementInformation.protocolName == "DWI"
    dataset = ismrmrd.Dataset(str(out), "dataset", create_if_needed=False)  # the library's own reader agrees
    assert np.array_equal(dataset.read_acquisition(3).data, acquisitions[3].data)
    assert dataset.number_of_acquisitions() == len(acquisitions)
    dataset.close()
    assert [(p.name, p.value) for p in header.userParameters.userParameterDouble] == [("b_value", 800.0)]
    assert acquisitions[0].data.shape == (2, 80)
    assert str(out) in capsys.readouterr().out
    assert "example" in parser.format_help()
    with pytest.raises(BadInputError, match="folder"):
        run(parser.parse_args([str(tmp_path / "absent" / "scan.h5")]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"b_values": (0.0, 1000.0)}, "contrast dwi"),
        ({"contrast": "dwi", "b_values": (0.0, -5.0)}, "0 or more"),
        ({"patient_position": "HEAD"}, "HFS"),
        ({"phantom": "cube"}, "letters"),
    ],
)
def test_bad_simulation_settings_are_refused(changes, words):
    with pytest.raises(BadInputError, match=words):
        SimulationSettings(**changes)


WIDE = {
    "n_slices": 1,
    "noise_scan": False,
    "acceleration": 1,
    "oversampling": 1,
    "noise": 0.0,
    "contrast": "t1",
    "noise_correlation": 0.0,
}


def test_what_lies_beyond_the_field_of_view_folds_in(tmp_path):
    # every second line of twice the field of view
    full = SimulationSettings(matrix=(96, 64), fov_mm=(260.0, 230.0), **WIDE)
    folded = SimulationSettings(matrix=(48, 64), fov_mm=(130.0, 230.0), wrap=True, **WIDE)
    wide, narrow = (lines_of(tmp_path, settings) for settings in (full, folded))
    assert np.allclose(np.sqrt(2) * wide[:, ::2], narrow, atol=2e-3 * np.abs(narrow).max())


def test_the_truth_of_a_folded_head_is_the_sum_of_squares_over_the_coils(tmp_path):
    settings = SimulationSettings(matrix=(48, 64), fov_mm=(150.0, 230.0), wrap=True, **WIDE)
    kspace = lines_of(tmp_path, settings)
    energy = np.linalg.norm(to_image(torch.from_numpy(kspace)).numpy(), axis=0)
    truth = np.load(tmp_path / "scan_truth.npy")[0]
    assert np.linalg.norm(truth - energy) < 0.03 * np.linalg.norm(energy)


def test_a_head_inside_the_field_of_view_is_the_same_with_wrap(tmp_path):
    inside, folded = (
        lines_of(tmp_path, SimulationSettings(matrix=(48, 64), fov_mm=(230.0, 230.0), wrap=wrap, **WIDE))
        for wrap in (False, True)
    )
    assert np.allclose(inside, folded, atol=1e-5 * np.abs(inside).max())


def lines_of(folder, settings):
    """(n_coils, rows, cols): the k-space of a fully sampled scan of one slice without noise."""
    simulate(folder / "scan.h5", settings)
    with open_scan(folder / "scan.h5") as scan:
        (data,) = slices(scan.acquisitions(), scan.header)
    return data.kspace.numpy()
