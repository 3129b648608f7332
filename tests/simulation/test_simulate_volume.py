"""The simulated 3D scan: geometry, sampling, and k-space that is the truth's."""

import argparse

import h5py
import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.geometry import Plane
from dpmrecon.physics.fourier import crop_or_pad, to_image, to_kspace
from dpmrecon.simulation.phantom import Phantom
from dpmrecon.simulation.sampling import Pattern
from dpmrecon.simulation.settings import SimulationSettings, VolumeSettings
from dpmrecon.simulation.simulate import add_arguments, settings_of, simulate, truth_path
from dpmrecon.simulation.slices import coil_maps, noise_mixing, object_phase, slice_points, the_object
from dpmrecon.simulation.volumes import simulated_volume, volume_and_truth
from dpmrecon.tools.selftest import find_markers

from support.acquisitions import BOTH, CALIBRATION, NOISE, read
from support.paths import shared

FULL = {"acceleration": 1, "partition_acceleration": 1, "calibration": "none", "noise": 0.0, "noise_scan": False}
SMALL = {"matrix": (24, 18), "fov_mm": (240.0, 216.0), "partitions": 20, "slice_thickness_mm": 9.0, "n_coils": 2}


def places_of(acquisitions, header):
    """(partition, row) on the encoded grid of each line that is no noise, by its counters and the limits."""
    limits, matrix = header.encoding[0].encodingLimits, header.encoding[0].encodedSpace.matrixSize
    first = matrix.z // 2 - limits.kspace_encoding_step_2.center
    second = matrix.y // 2 - limits.kspace_encoding_step_1.center
    return [
        (line.idx.kspace_encode_step_2 + first, line.idx.kspace_encode_step_1 + second)
        for line in acquisitions
        if not line.is_flag_set(NOISE)
    ]


def scan_of(folder, **settings):
    """(settings, header, lines without those of noise) of a simulated scan."""
    chosen = VolumeSettings(**settings)
    simulate(folder / "scan.h5", chosen)
    header, acquisitions = read(folder / "scan.h5")
    return chosen, header, [line for line in acquisitions if not line.is_flag_set(NOISE)]


def coil_images(header, lines):
    """(n_coils, partitions, rows, cols) of a full scan on the grid of the image."""
    space, target = header.encoding[0].encodedSpace.matrixSize, header.encoding[0].reconSpace.matrixSize
    kspace = torch.zeros(lines[0].data.shape[0], space.z, space.y, space.x, dtype=torch.complex64)
    for place, line in zip(places_of(lines, header), lines):
        kspace[(slice(None), *place)] = torch.from_numpy(np.array(line.data))
    images = to_image(kspace, (-3, -2, -1))
    return crop_or_pad(crop_or_pad(images, target.z, -3), target.x, -1)


@pytest.mark.parametrize(
    ("orientation", "matrix", "partitions", "slice_oversampling", "oversampling"),
    [("axial", (43, 37), 30, 1.3, 1), ("sagittal", (36, 41), 29, 1.0, 2), ("coronal", (33, 40), 31, 1.2, 1)],
)
def test_a_marker_appears_where_the_header_says(
    tmp_path, orientation, matrix, partitions, slice_oversampling, oversampling
):
    settings = {
        **FULL,
        "orientation": orientation,
        "matrix": matrix,
        "fov_mm": (230.0, 246.0),
        "partitions": partitions,
        "slice_thickness_mm": 6.2,
        "slice_oversampling": slice_oversampling,
        "oversampling": oversampling,
        "rotation_deg": (9.0, -7.0, 12.0),
        "position_mm": (5.0, -6.0, 12.0),
        "n_coils": 3,
    }
    plain = VolumeSettings(**settings)
    read_dir, phase_dir, slice_dir = plain.directions()
    middle = np.array([partitions // 2, matrix[0] // 2, matrix[1] // 2])
    voxel = middle + [4.3, -6.2, 5.4]
    steps = np.stack([6.2 * slice_dir, 230.0 / matrix[0] * phase_dir, 246.0 / matrix[1] * read_dir])
    place = np.array(plain.position_mm) + (voxel - middle) @ steps
    _, header, lines = scan_of(tmp_path, **settings, marker_mm=tuple(float(value) for value in place))
    without = coil_images(*scan_of(tmp_path, **settings)[1:])
    energy = (coil_images(header, lines) - without).abs().square().sum(0).numpy()
    assert energy.shape == (partitions, *matrix)
    found = np.array([(index * energy).sum() for index in np.indices(energy.shape)]) / energy.sum()

    # the header alone must send the marker's patient position to that voxel
    field = header.encoding[0].reconSpace.fieldOfView_mm
    away = place - np.array(lines[0].position)
    spacing = np.array([field.z, field.y, field.x]) / energy.shape
    directions = np.stack([lines[0].slice_dir, lines[0].phase_dir, lines[0].read_dir])
    expected = directions @ away / spacing + middle
    assert np.allclose(expected, voxel, atol=1e-3)
    assert np.abs(found - expected).max() < 0.3


@pytest.mark.parametrize(
    ("orientation", "read_dir", "phase_dir", "slice_dir"),
    [
        ("axial", (1, 0, 0), (0, 1, 0), (0, 0, 1)),
        ("sagittal", (0, 0, -1), (0, 1, 0), (1, 0, 0)),  # reads head to feet
        ("coronal", (0, 0, -1), (1, 0, 0), (0, -1, 0)),
    ],
)
def test_directions_of_the_planes(orientation, read_dir, phase_dir, slice_dir):
    for kind in (SimulationSettings, VolumeSettings):
        settings = kind(orientation=orientation, rotation_deg=(0.0, 0.0, 0.0))
        assert np.allclose(settings.directions(), [read_dir, phase_dir, slice_dir])


def test_kspace_is_that_of_the_whole_fine_grid():
    """Plane after plane makes what one transform of the volume would, also where sizes are odd and unequal."""
    settings = VolumeSettings(**{**SMALL, **FULL, "matrix": (17, 22), "partitions": 9, "slice_oversampling": 1.2})
    assert settings.encoded_partitions == 11
    kspace, _ = volume_and_truth(the_object(settings), settings, 0.0, noise_mixing(settings))
    steps = [(plane - 11) * settings.slice_thickness_mm / 2 for plane in range(22)]
    points = np.stack([slice_points(settings, 0, 2, 2, step) for step in steps])
    image = Phantom(0).magnitude(points, "flair") * object_phase(points, 0) * coil_maps(points, 2)
    fine = to_kspace(torch.from_numpy(image), (-3, -2, -1)) / np.sqrt(8)
    for axis, size in ((-3, 11), (-2, 17), (-1, 44)):
        fine = crop_or_pad(fine, size, axis)
    assert kspace.shape == fine.shape
    assert np.abs(kspace - fine.numpy()).max() < 1e-5 * np.abs(kspace).max()


@pytest.mark.parametrize("mixed", [0.0, 0.2])
def test_the_truth_explains_the_lines(mixed):
    """A x = y, but for what a voxel's width of the coil maps is worth."""
    settings = VolumeSettings(
        **{**SMALL, **FULL, "matrix": (35, 44), "partitions": 27, "slice_thickness_mm": 7.0, "n_coils": 4},
        orientation="sagittal",
        noise_correlation=mixed,
    )
    kspace, truth = simulated_volume(settings, complex_truth=True)
    assert truth.dtype == np.complex64
    maps = np.stack([coil_maps(slice_points(settings, 0, 1, 1, 7.0 * (n - 13)), 4) for n in range(27)], 1)
    maps = np.einsum("ij,j...->i...", np.linalg.inv(noise_mixing(settings)), maps)
    maps /= np.linalg.norm(maps, axis=0)
    predicted = to_kspace(torch.from_numpy(maps * truth), (-3, -2, -1)).numpy()
    assert np.linalg.norm(predicted - kspace) < 0.06 * np.linalg.norm(kspace)
    magnitude = simulated_volume(settings)[1]
    assert magnitude.dtype == np.float32
    assert np.array_equal(magnitude, np.abs(truth))


def test_arrays_have_their_noise_where_they_have_lines():
    settings = {**SMALL, "calibration_lines": 6, "noise": 0.05, "caipirinha": 1, "asymmetric_echo": 0.8}
    first, truth = simulated_volume(VolumeSettings(**settings))
    second, same = simulated_volume(VolumeSettings(**settings, seed=1))
    assert np.array_equal(truth, same)
    acquired = (first != 0).any((0, 3))
    expected = {*VolumeSettings(**settings).grid_places(), *VolumeSettings(**settings).calibration_places()}
    assert {(int(a), int(b)) for a, b in np.argwhere(acquired)} == expected
    assert not first[..., :3].any()
    noise = (first - second)[:, acquired][..., 4:].ravel().view(np.float32) / np.sqrt(2)
    assert noise.std() == pytest.approx(0.05 * np.percentile(truth, 99), rel=0.05)


def test_lines_of_a_shifted_grid_with_an_embedded_block(tmp_path):
    chosen, header, lines = scan_of(
        tmp_path, **SMALL, acceleration=2, partition_acceleration=3, caipirinha=1, calibration_lines=6
    )
    grid = {(p, r) for p in range(20) for r in range(0, 24, 2) if (p - 10 - (r - 12) // 2) % 3 == 0}
    block = {(p, r) for p in range(7, 13) for r in range(9, 15)}
    assert places_of(lines, header) == sorted(grid | block)
    of_flag = {flag: set(places_of([x for x in lines if x.is_flag_set(flag)], header)) for flag in (BOTH, CALIBRATION)}
    assert of_flag == {BOTH: grid & block, CALIBRATION: block - grid}
    space, image = header.encoding[0].encodedSpace, header.encoding[0].reconSpace
    assert (space.matrixSize.z, space.fieldOfView_mm.z) == (image.matrixSize.z, image.fieldOfView_mm.z) == (20, 180.0)
    factors = header.encoding[0].parallelImaging.accelerationFactor
    assert (factors.kspace_encoding_step_1, factors.kspace_encoding_step_2) == (2, 3)
    assert header.measurementInformation.protocolName == "T2_FLAIR_3D"
    ends = [number for number, line in enumerate(lines) if line.is_flag_set(ismrmrd.ACQ_LAST_IN_SLICE)]
    assert ends == [len(lines) - 1]
    assert lines[0].is_flag_set(ismrmrd.ACQ_FIRST_IN_SLICE)
    assert lines[-1].is_flag_set(ismrmrd.ACQ_LAST_IN_REPETITION)
    assert lines[-1].is_flag_set(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    assert np.load(truth_path(tmp_path / "scan.h5")).shape == (20, *chosen.matrix)


def test_the_pattern_of_a_recorded_caipirinha_scan():
    settings = VolumeSettings(matrix=(120, 96), partitions=88, caipirinha=1)
    with h5py.File(shared("scans3d/mprage_3d_r4.h5"), "r") as file:
        heads = file["dataset/data"]["head"]
    heads = heads[heads["flags"] != 1 << (NOISE - 1)]
    recorded = list(zip(heads["idx"]["kspace_encode_step_2"].tolist(), heads["idx"]["kspace_encode_step_1"].tolist()))
    assert recorded == sorted({*settings.grid_places(), *settings.calibration_places()})


def test_a_separate_block_comes_first(tmp_path):
    _, header, lines = scan_of(tmp_path, **SMALL, calibration="separate", calibration_lines=7, averages=2)
    block = [(p, r) for p in range(7, 14) for r in range(9, 16)]
    grid = [(p, r) for p in range(0, 20, 2) for r in range(0, 24, 2)]
    assert places_of(lines, header) == block + 2 * grid
    assert all(line.is_flag_set(CALIBRATION) for line in lines[:49])
    assert not any(line.is_flag_set(CALIBRATION) or line.is_flag_set(BOTH) for line in lines[49:])
    assert [line.idx.average for line in lines] == [0] * (49 + len(grid)) + [1] * len(grid)
    ends = [number for number, line in enumerate(lines) if line.is_flag_set(ismrmrd.ACQ_LAST_IN_SLICE)]
    assert ends == [48 + len(grid), 48 + 2 * len(grid)]
    assert header.encoding[0].parallelImaging.calibrationMode.value == "separate"


def test_partial_fourier_in_both_directions_of_an_oversampled_slab(tmp_path):
    chosen, header, lines = scan_of(
        tmp_path,
        **{**SMALL, "partitions": 17},
        slice_oversampling=1.2,
        partial_fourier=0.8,
        partition_partial_fourier=0.7,
        calibration_lines=6,
    )
    limits = header.encoding[0].encodingLimits
    step_1, step_2 = limits.kspace_encoding_step_1, limits.kspace_encoding_step_2
    assert (step_1.minimum, step_1.maximum, step_1.center) == (0, 19, 8)  # ceil(.8 * 24) of 24
    assert (step_2.minimum, step_2.maximum, step_2.center) == (0, 14, 4)  # ceil(.7 * 21) of ceil(1.2 * 17)
    places = np.array(places_of(lines, header))
    assert places.min(0).tolist() == [6, 4]
    assert set(map(tuple, places)) == {*chosen.grid_places(), *chosen.calibration_places()}
    space, image = header.encoding[0].encodedSpace, header.encoding[0].reconSpace
    assert (space.matrixSize.z, image.matrixSize.z) == (21, 17)
    assert (space.fieldOfView_mm.z, image.fieldOfView_mm.z) == (189.0, 153.0)
    assert np.load(truth_path(tmp_path / "scan.h5")).shape[0] == 17


def test_slice_oversampling_leaves_the_truth_where_it_is():
    """The same voxels, of a slab that goes on beyond them."""
    # of few partitions in a thick head: the transform's ripples differ at the ends
    plain, oversampled = (
        simulated_volume(VolumeSettings(**{**SMALL, **FULL}, slice_oversampling=factor))[1] for factor in (1.0, 1.4)
    )
    assert np.linalg.norm((plain - oversampled)[3:-3]) < 0.06 * np.linalg.norm(plain[3:-3])


def test_what_lies_beyond_the_field_of_view_folds_in():
    """Every second line of twice the field of view."""
    head = {**SMALL, **FULL, "fov_mm": (140.0, 216.0), "contrast": "t1", "noise_correlation": 0.0}
    wide = simulated_volume(VolumeSettings(**{**head, "matrix": (48, 18), "fov_mm": (280.0, 216.0)}))[0]
    folded, truth = simulated_volume(VolumeSettings(**head, wrap=True))
    assert np.allclose(np.sqrt(2) * wide[:, :, ::2], folded, atol=2e-3 * np.abs(folded).max())
    energy = np.linalg.norm(to_image(torch.from_numpy(folded), (-3, -2, -1)).numpy(), axis=0)
    assert np.linalg.norm(truth - energy) < 0.03 * np.linalg.norm(energy)
    cut = simulated_volume(VolumeSettings(**head))[0]
    assert np.linalg.norm(cut - folded) > 0.1 * np.linalg.norm(folded)


@pytest.mark.parametrize("kind", ["random", "poisson"])
@pytest.mark.parametrize("elliptical", [True, False])
def test_irregular_patterns_have_the_number_of_lines_and_a_dense_centre(kind, elliptical):
    pattern = Pattern((45, 64), (2, 2), (5, 7), elliptical)
    chosen = getattr(pattern, kind)(np.random.default_rng(3))
    partition, row = ((np.arange(n) - n // 2) / (n / 2) for n in chosen.shape)
    radius = np.hypot(partition[:, None], row)
    allowed = (radius <= 1) | (not elliptical)
    allowed[:5] = allowed[:, :7] = False
    assert not chosen[~allowed].any()
    assert chosen[45 // 2, 64 // 2]
    assert chosen.sum() == pytest.approx(allowed.sum() / 4, rel=0.021)
    density = [chosen[allowed & (low <= radius) & (radius < low + 0.3)].mean() for low in (0.0, 0.3, 0.6)]
    assert density[0] > 1.3 * density[1] > 1.3**2 * density[2]


def test_lines_of_a_poisson_disc_keep_their_distance():
    chosen = np.argwhere(Pattern((40, 60), (2, 3), (0, 0), False).poisson(np.random.default_rng(0)))
    outer = chosen[np.hypot(*((chosen - [20, 30]) / [20, 30]).T) > 0.8]
    distance = np.linalg.norm(outer[:, None] - chosen, axis=-1)
    assert np.sort(distance, 1)[:, 1].min() >= 2  # neighbours of a random pattern come as near as 1


def test_an_elliptical_grid_has_no_corners():
    full, round_one = (Pattern((21, 40), (2, 1), (0, 0), shape).regular() for shape in (False, True))
    assert full[0, 0]
    assert not round_one[0, 0]
    assert round_one.sum() / full.sum() == pytest.approx(np.pi / 4, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_slices": 2}, "one slab"),
        ({"partitions": 4}, "partitions"),
        ({"sampling": "spiral"}, "regular, random, poisson"),
        ({"slice_oversampling": 0.9}, "slice_oversampling"),
        ({"partition_partial_fourier": 0.4}, "partition_partial_fourier"),
        ({"partitions": 16}, "block of 24 partitions"),
        ({"echoes": 2}, "contrast swi"),
        ({"contrast": "swi", "echoes": 2, "echo_times_ms": (10.0,)}, "one above 0 for each echo"),
        ({"orientation": "oblique"}, "sagittal"),
    ],
)
def test_bad_volumes_are_refused(changes, words):
    with pytest.raises(BadInputError, match=words):
        VolumeSettings(**changes)


def chosen_by(options):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return settings_of(parser.parse_args(["scan.h5", *options.split()]))


def test_options_of_a_volume():
    settings = chosen_by(
        "--three-d --R 2 3 --partial-fourier .75 .8 --orientation sagittal --elliptical --caipirinha 1"
    )
    assert settings == VolumeSettings(
        acceleration=2,
        partition_acceleration=3,
        partial_fourier=0.75,
        partition_partial_fourier=0.8,
        orientation="sagittal",
        elliptical=True,
        caipirinha=1,
    )
    assert chosen_by("--three-d --R 3") == VolumeSettings(acceleration=3, partition_acceleration=1)
    assert chosen_by("--three-d") == VolumeSettings()
    assert chosen_by("--R 3 --sequential") == SimulationSettings(acceleration=3, interleaved=False)
    with pytest.raises(BadInputError, match="--three-d"):
        chosen_by("--partitions 12")
    with pytest.raises(BadInputError, match="3 values"):
        chosen_by("--three-d --R 2 2 2")


@pytest.mark.parametrize("orientation", ["axial", "sagittal", "coronal"])
def test_letters_of_a_volume_tell_its_axes(orientation):
    settings = VolumeSettings(
        **FULL,
        phantom="letters",
        orientation=orientation,
        matrix=(48, 53),
        fov_mm=(216.0, 212.0),
        partitions=45,
        slice_thickness_mm=4.6,
        rotation_deg=(8.0, -6.0, 5.0),
        position_mm=(3.0, -4.0, 6.0),
        n_coils=4,
    )
    letters = the_object(settings)
    truth = simulated_volume(settings)[1]
    read_dir, phase_dir, slice_dir = settings.directions()
    down, across = settings.pixel_mm

    def images(volume):
        corner = np.array(settings.position_mm) - 24 * down * phase_dir - 26 * across * read_dir
        firsts = [corner + (n - 22) * 4.6 * slice_dir for n in range(45)]
        return [(Plane(first, read_dir, phase_dir, (down, across)), pixels) for first, pixels in zip(firsts, volume)]

    for side, axis in (("L", 0), ("A", 1), ("H", 2)):
        assert abs(letters.markers[side][axis]) > 25  # on its own side
    true = np.array(list(letters.markers.values()))

    def off(volume):
        found = find_markers(images(volume))
        return np.linalg.norm(found[:, None] - true, axis=-1).min(0).max()

    assert off(truth) < 0.5
    assert min(off(np.flip(truth, axis)) for axis in range(3)) > 5
