"""What a gradient echo sees of the head: fields in closed form, the phase's sign, and scans of several echoes."""

import numpy as np
import pytest
from dpmrecon.data import Slice
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.simulation.phantom import gradient_echo
from dpmrecon.simulation.settings import SimulationSettings, VolumeSettings
from dpmrecon.simulation.simulate import simulate, truth_path
from dpmrecon.simulation.slices import swi_masks, the_object
from dpmrecon.simulation.susceptibility import (
    BLEED_PPM,
    HZ_PER_PPM,
    VEIN_PPM,
    GradientEchoHead,
    Tubes,
    Vein,
    ball_field,
    dipole_field,
)

from support.acquisitions import CALIBRATION, NOISE, read

FLAT = {
    "contrast": "swi",
    "matrix": (128, 110),
    "fov_mm": (218.0, 187.0),
    "slice_thickness_mm": 2.0,
    "n_coils": 3,
    "rotation_deg": (0.0, 0.0, 0.0),
    "noise": 0.0,
    "calibration": "none",
}


@pytest.fixture(scope="module")
def head():
    return GradientEchoHead(0)


def test_the_field_of_a_ball_is_a_dipoles():
    """A ball on the grid, off the middle of odd sizes, against 1/3 (a/r)^3 (3 cos^2 - 1)."""
    z, y, x = np.indices((41, 45, 38)).astype(float) - np.array([19, 24, 18])[:, None, None, None]
    r = np.sqrt(x * x + y * y + z * z)
    ball = (r <= 6).astype(np.float32)
    radius = (3 * ball.sum() / (4 * np.pi)) ** (1 / 3)
    expected = (radius / r.clip(1)) ** 3 / 3 * (3 * (z / r.clip(1)) ** 2 - 1)
    away = (r > 9) & (r < 17)
    found = dipole_field(ball)
    offset = (found - expected)[away].mean()
    assert np.abs(found - offset - expected)[away].max() < 0.05 * expected[away].max()  # a ball of cubes
    assert np.abs((found - offset)[r < 3]).max() < 0.02


def test_the_field_of_the_microbleed_and_its_gradient():
    rng = np.random.default_rng(0)
    places = rng.normal(size=(50, 3))
    places *= rng.uniform(1.5, 6, (50, 1)) / np.linalg.norm(places, axis=1, keepdims=True)
    value, gradient = ball_field(places, 1.3)
    r = np.linalg.norm(places, axis=1)
    assert np.allclose(value, BLEED_PPM / 3 * (1.3 / r) ** 3 * (3 * (places[:, 2] / r) ** 2 - 1))
    for axis in range(3):
        step = 1e-4 * np.eye(3)[axis]
        slope = (ball_field(places + step, 1.3)[0] - ball_field(places - step, 1.3)[0]) / 2e-4
        assert np.allclose(gradient[:, axis], slope, atol=1e-5)
    assert not ball_field(np.array([[0.3, 0.2, -0.5]]), 1.3)[0].any()


@pytest.mark.parametrize("tilt", [0.0, 40.0, 90.0])
def test_the_field_of_a_straight_vein(tilt):
    """The infinite cylinder's, along its middle."""
    axis = np.array([np.sin(np.deg2rad(tilt)), 0, np.cos(np.deg2rad(tilt))])
    across = np.array([np.cos(np.deg2rad(tilt)), 0, -np.sin(np.deg2rad(tilt))])
    middle = np.array([7.0, -4.0, 21.0])
    tubes = Tubes([Vein(middle + np.arange(-15, 15, 0.4)[:, None] * axis, 0.8)])
    cosine = axis[2]
    along = 2.7 * axis + middle  # between the points of its course
    part, field = tubes((along + 0.3 * across)[None].astype(np.float32))
    assert part == pytest.approx([1.0])
    assert field == pytest.approx([VEIN_PPM / 2 * (cosine**2 - 1 / 3)], rel=0.02, abs=1e-3)
    for direction, doubled in ((across, 1), ([0, 1, 0], -1)):
        part, field = tubes((along + 1.1 * np.array(direction))[None].astype(np.float32))
        expected = VEIN_PPM / 2 * (1 - cosine**2) * doubled * (0.8 / 1.1) ** 2
        assert part == pytest.approx([0.0])
        assert field == pytest.approx([expected], rel=0.12, abs=1e-3)  # the window takes 10 % at that distance
    beyond = middle + 19 * axis
    assert np.abs(tubes(beyond[None].astype(np.float32))).max() == 0


def test_a_vein_along_the_field_is_dark_in_phase_and_magnitude(head):
    """phase = -2 pi f TE, f being above zero in a paramagnetic vein."""
    course = np.stack([np.full(40, 28.0), np.full(40, 18.0), np.linspace(20.0, 36.0, 40)], -1)
    head = GradientEchoHead(0)
    head._tubes = Tubes([Vein(course, 1.0)])
    points = np.array([[28.0, 18.0, 28.0], [28.0, 13.0, 28.0], [28.0, 23.0, 28.0]], np.float32)
    cell = 1e-3 * np.eye(3)
    vein, *beside = head.signal(points, 20.0, cell)
    turn = np.angle(vein / np.mean(beside))
    assert turn == pytest.approx(-2 * np.pi * HZ_PER_PPM * 0.020 * VEIN_PPM / 3, abs=0.15)
    assert abs(vein) == pytest.approx(gradient_echo(0.80, 1600.0, 25.0, 20.0), rel=0.01)
    assert abs(vein) < 0.85 * np.abs(beside).min()


def test_phase_grows_with_the_echo_time_and_magnitude_falls(head):
    rng = np.random.default_rng(1)
    points = np.concatenate([rng.uniform(-50, 50, (400, 2)), rng.uniform(0, 40, (400, 1))], 1).astype(np.float32)
    cell = 1e-3 * np.eye(3)
    first, second = (head.signal(points, te, cell) for te in (5.0, 10.0))
    inside = np.abs(first) > 0.1
    assert inside.sum() > 300
    assert np.allclose(second[inside] / np.abs(second[inside]), (first / np.abs(first))[inside] ** 2, atol=1e-3)
    assert (np.abs(second) < np.abs(first))[inside].all()


def test_signal_is_lost_near_the_sinuses_in_large_cells(head):
    """Above the ethmoid and frontal sinus the field varies across a cell; in the middle of the brain it does not."""
    y, z = np.meshgrid(np.linspace(-75, -55, 12), np.linspace(-14, -8, 6))
    front = np.stack([np.full_like(y, 8.0), y, z], -1).reshape(-1, 3)
    middle = front + np.array([20.0, 70.0, 45.0])
    small, large = 1e-3 * np.eye(3), np.diag([1.0, 1.0, 2.0])
    left = [
        np.abs(head.signal(p, 20.0, large)).sum() / np.abs(head.signal(p, 20.0, small)).sum() for p in (front, middle)
    ]
    assert left[0] < 0.97
    assert left[1] > 0.999


def test_masks_lie_on_dark_voxels_of_the_truth(tmp_path):
    settings = VolumeSettings(
        **FLAT,
        acceleration=1,
        partition_acceleration=1,
        partitions=9,
        position_mm=tuple(float(v) for v in GradientEchoHead(0).bleed.round()),
        oversampling=1,
        slice_oversampling=1.4,
        noise_scan=False,
    )
    settings = VolumeSettings(**{**vars(settings), "position_mm": (0.0, 0.0, settings.position_mm[2])})
    simulate(tmp_path / "scan.h5", settings)
    truth, whole = np.load(truth_path(tmp_path / "scan.h5")), np.load(truth_path(tmp_path / "scan.h5", "truth_complex"))
    assert whole.shape == (1, *truth.shape)
    assert np.array_equal(np.abs(whole[0]), truth)
    masks = swi_masks(settings)
    assert masks.veins.shape == masks.bleed.shape == truth.shape
    assert 1 <= masks.bleed.sum() < 12
    assert masks.veins.sum() > 100
    around = np.zeros_like(truth, bool)
    for p, r, c in np.argwhere(masks.bleed):
        around[p, r - 6 : r + 7, c - 6 : c + 7] = True
    around &= ~masks.veins
    far = np.median(truth[around & ~masks.bleed])
    assert truth[masks.bleed].mean() < 0.35 * far
    # the field makes it larger in the image than it is
    assert (truth[around] < 0.7 * far).sum() > 2 * masks.bleed.sum()
    brain = truth > np.percentile(truth, 60)
    neighbours = np.roll(masks.veins, 3, 2) & ~masks.veins & brain
    assert truth[masks.veins].mean() < 0.85 * truth[neighbours].mean()


def test_echoes_of_a_line_come_after_each_other_and_are_collected(tmp_path):
    settings = SimulationSettings(
        **{**FLAT, "matrix": (32, 30), "calibration": "separate"},
        calibration_lines=8,
        acceleration=2,
        n_slices=2,
        echoes=3,
    )
    assert settings.weightings == (10.0, 20.0, 30.0)
    simulate(tmp_path / "scan.h5", settings)
    header, acquisitions = read(tmp_path / "scan.h5")
    assert header.sequenceParameters.TE == [10.0, 20.0, 30.0]
    assert header.measurementInformation.protocolName == "SWI"
    assert header.encoding[0].encodingLimits.contrast.maximum == 2
    lines = [line for line in acquisitions if not line.is_flag_set(NOISE) and line.idx.slice == 1]
    assert [line.is_flag_set(CALIBRATION) for line in lines] == [True] * 8 + [False] * 48
    assert [line.idx.contrast for line in lines] == [0] * 8 + [0, 1, 2] * 16
    assert [line.idx.kspace_encode_step_1 for line in lines[8:]] == [row for row in range(0, 32, 2) for _ in range(3)]
    assert np.load(truth_path(tmp_path / "scan.h5", "truth_complex")).shape == (3, 2, 32, 30)
    with open_scan(tmp_path / "scan.h5") as scan:
        found = list(slices(scan.acquisitions(), scan.header))
    assert all(isinstance(one, Slice) for one in found)
    assert sorted((one.key.slice, one.key.contrast) for one in found) == [(s, c) for s in range(2) for c in range(3)]


def test_a_vendor_with_conjugated_files_has_the_same_phase_in_the_truth(tmp_path):
    settings = {**FLAT, "matrix": (32, 30), "n_slices": 1, "acceleration": 1, "noise_scan": False}
    for name in ("SIMULATED", "SIEMENS"):
        simulate(tmp_path / f"{name}.h5", SimulationSettings(**settings, vendor=name))
    ours, theirs = (read(tmp_path / f"{name}.h5")[1] for name in ("SIMULATED", "SIEMENS"))
    assert all(np.array_equal(a.data, b.data.conj()) for a, b in zip(ours, theirs))
    truths = [np.load(tmp_path / f"{name}_truth_complex.npy") for name in ("SIMULATED", "SIEMENS")]
    assert np.array_equal(*truths)


def test_only_swi_of_the_head_has_veins():
    assert isinstance(the_object(SimulationSettings(contrast="swi")), GradientEchoHead)
    for settings in (SimulationSettings(contrast="t1"), SimulationSettings(contrast="swi", phantom="letters")):
        with pytest.raises(BadInputError, match="no veins"):
            swi_masks(settings)
    with pytest.raises(BadInputError, match="wrap"):
        SimulationSettings(contrast="swi", wrap=True)
