"""Regridding against known transforms, and the phase between forward and reversed lines."""

import math

import numpy as np
import pytest
import torch
from dpmrecon.physics.epi import Ghost, Trapezoid, ghost_level, ghost_of, ghost_outside, regridding
from dpmrecon.physics.fourier import to_image, to_kspace

TRAPEZOIDS = [
    (Trapezoid(120, 300, 120, 10, 2.6, 200), 101),
    (Trapezoid(150, 201, 150, 0, 2.0, 251), 64),
    (Trapezoid(100, 312, 80, 0, 2.0, 246), 97),
    (Trapezoid(40, 312, 40, 50, 2.1, 141), 66),
]


def transform(k):
    """Of two boxes in a field of view of 1."""
    return sum(
        height * width * np.sinc(width * k) * np.exp(-2j * np.pi * k * centre)
        for height, width, centre in ((1.0, 0.68, -0.03), (0.3, 0.05, 0.2))
    )


def test_the_area_of_a_trapezoid():
    trapezoid = Trapezoid(20, 100, 40, 0, 4, 40)
    times = np.linspace(-5, 170, 701)
    gradient = np.clip(np.minimum(times / 20, (160 - times) / 40), 0, 1)
    expected = np.concatenate([[0], np.cumsum((gradient[1:] + gradient[:-1]) / 2 * 0.25)])
    assert trapezoid.area(times) == pytest.approx(expected, abs=0.01)
    assert trapezoid.area(160.0) == 130


@pytest.mark.parametrize(("trapezoid", "cols"), TRAPEZOIDS)
def test_regridded_lines_are_the_exact_transform(trapezoid, cols):
    positions, grid = trapezoid.positions(cols), np.arange(cols) - cols // 2
    matrices, held = regridding(positions, cols)
    assert held == pytest.approx(1 / max(np.diff(positions[0])))
    for matrix, places in zip(matrices, positions):
        assert np.all(np.diff(places) > 0)
        found, expected = matrix @ transform(places), transform(grid)
        covered = np.any(matrix, 1)
        assert covered.sum() >= cols - 1
        factor = np.vdot(found[covered], expected[covered]) / np.vdot(found[covered], found[covered])
        assert abs(factor.imag) < 1e-3 * factor.real
        assert np.linalg.norm((factor * found - expected)[covered]) < 3e-3 * np.linalg.norm(expected)
        # white noise keeps its level in the mean, and no column has much more of it
        levels = np.square(matrix[covered]).sum(1)
        assert levels.mean() == pytest.approx(1, rel=0.05) and levels.max() < 4


def test_columns_beyond_the_samples_are_zero_in_both_directions():
    late = Trapezoid(40, 312, 40, 80, 2.0, 120)  # begins late: its k-space is cut on one side
    positions = late.positions(64)
    matrices, _ = regridding(positions, 64)
    covered = np.any(matrices, 2)
    assert np.array_equal(*covered) and 40 < covered[0].sum() < 64
    inside = max(places[0] for places in positions), min(places[-1] for places in positions)
    assert np.array_equal(covered[0], (np.arange(64) - 32 >= inside[0] - 0.5) & (np.arange(64) - 32 <= inside[1] + 0.5))


def lines(n, constant, slope, noise, seed=0):
    """(n_coils, n) of forward and reversed navigators of a random object in the middle of the readout."""
    rng = np.random.default_rng(seed)
    image = np.zeros((4, n), complex)
    inside = slice(n // 5, n - n // 4)
    image[:, inside] = (1 + rng.uniform(size=(4, 1))) * np.exp(1j * rng.uniform(0, 6, (4, 1)))
    image[:, inside] *= 1 + 0.5 * rng.uniform(size=image[:, inside].shape)
    place = np.arange(n) - n // 2
    found = []
    for half in (-0.5, 0.5):
        line = to_kspace(torch.from_numpy(image * np.exp(1j * half * (constant + slope * place))), axes=(-1,))
        added = noise * (rng.normal(size=image.shape) + 1j * rng.normal(size=image.shape))
        found.append((line + torch.from_numpy(added)).to(torch.complex64))
    return found


@pytest.mark.parametrize("n", [63, 128])
@pytest.mark.parametrize(("constant", "slope"), [(0.2, 0.01), (-3.1, -0.12), (3.0, 0.4), (0, 0)])
def test_the_phase_between_directions_is_found_whether_or_not_it_wraps(n, constant, slope):
    found = ghost_of(*lines(n, constant, slope, 0))
    assert found.slope == pytest.approx(slope, abs=1e-5)
    assert np.exp(1j * found.constant) == pytest.approx(np.exp(1j * constant), abs=1e-4)
    assert found.after < 1e-3


def test_noise_moves_the_phase_by_little():
    errors = []
    for seed in range(20):
        found = ghost_of(*lines(101, 1.2, 0.07, 0.2, seed))
        errors.append((found.constant - 1.2, found.slope - 0.07))
        assert found.after < 0.05 < found.before
    constant, slope = np.sqrt(np.square(errors).mean(0))
    # of 4 channels of 56 pixels, signal about 1.9: the variance of the phase is that of the noise over the signal
    assert constant < 0.03 and slope < 0.002


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_error_is_about_what_noise_allows(share):
    """The Cramer-Rao bound of a linear phase; share: of the readout, that the object fills, the rest being air."""
    n, noise, squares = 128, 0.2, []
    clean = torch.zeros(4, n, dtype=torch.complex128)
    clean[:, 40 : 40 + round(share * n)] = torch.tensor([1.0, 1j, -0.5, 0.2])[:, None]
    weights, place = clean.abs().square().sum(0), torch.arange(n, dtype=torch.float64) - n // 2
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        added = 2**0.5 * noise * torch.randn((2, 4, n), dtype=torch.complex128, generator=generator)
        halves = torch.exp(1j * torch.tensor([[-0.5], [0.5]]) * (0.3 + 0.02 * place))
        found = ghost_of(*(to_kspace(clean * half, axes=(-1,)) + one for half, one in zip(halves, added)))
        wrong = 0.5 * (found.constant - 0.3 + (found.slope - 0.02) * place)
        squares.append(float((weights * wrong.square()).sum() / weights.sum()))
    # two parameters, two lines, and half of the phase makes the ghost
    assert np.sqrt(np.mean(squares)) == pytest.approx(noise / float(clean.norm()), rel=0.2)


def test_navigators_of_noise_tell_nothing():
    rng = np.random.default_rng(0)
    for size in (27, 128):
        for _ in range(100):
            noise = [torch.from_numpy(rng.normal(size=(3, size)) + 1j * rng.normal(size=(3, size))) for _ in "ab"]
            assert ghost_of(*noise) is None
    assert ghost_of(*lines(128, 0.2, 0.01, 1.0)) is not None


def test_the_ghost_s_level_is_that_of_its_lines():
    forward, reverse = lines(128, 0.2, 0, 0)
    found = ghost_of(forward, reverse)
    assert found.before == pytest.approx(np.tan(0.1), rel=0.05)
    assert ghost_level(*lines(128, 0.2, 0, 0.05)) == pytest.approx(np.tan(0.1), rel=0.1)
    assert ghost_level(*lines(128, 0, 0, 0.05)) < 0.02


def test_a_phase_that_is_not_linear_is_left_and_told():
    forward, reverse = lines(128, 0, 0, 0)
    bent = torch.polar(torch.ones(128), 0.004 * (torch.arange(128.0) - 60).abs().pow(1.4))
    assert ghost_of(forward, to_kspace(to_image(reverse, axes=(-1,)) * bent, axes=(-1,))).after > 0.02


def test_removing_is_each_direction_s_half():
    forward, reverse = lines(63, 0.5, 0.03, 0)
    clean, _ = lines(63, 0, 0, 0)
    ghost = Ghost(0.5, 0.03)
    for line, backwards in ((forward, False), (reverse, True)):
        assert torch.allclose(ghost.removed(line, backwards=backwards), clean, atol=1e-5)


@pytest.mark.parametrize(("rows", "factor"), [(96, 1), (96, 2), (99, 3)])
def test_the_ghost_beside_the_head(rows, factor):
    cols, center = 61, rows // 2
    y, x = torch.meshgrid(torch.arange(rows) - center, torch.arange(cols) - 30, indexing="ij")
    head = ((y / (0.35 * rows)) ** 2 + (x / 24) ** 2 < 1).float()
    coils = torch.stack([torch.polar(1 + 0.01 * x, 0.02 * y), torch.polar(1 - 0.01 * x, -0.03 * y + 0.5)])
    kspace = to_kspace((head * coils).to(torch.complex64))
    mask = torch.zeros(rows, cols)
    mask[1::factor] = 1
    mask[center - 6 : center + 6] = 1  # calibration lines between
    torch.manual_seed(0)
    for level in (0, 0.1):
        phase = torch.polar(torch.ones(cols), 2 * torch.atan(torch.tensor(level)) * torch.ones(cols))
        lines = kspace.clone()
        lines[:, 1 :: 2 * factor] = to_kspace(to_image(lines[:, 1 :: 2 * factor], axes=(-1,)) * phase, axes=(-1,))
        lines += 0.005 * torch.randn_like(lines)
        found = ghost_outside(lines * mask, mask, factor, head > 0, 0.005 / math.sqrt(2))
        assert found == pytest.approx(level**2, abs=1e-3)
    assert ghost_outside(kspace, mask, factor, torch.ones(rows, cols) > 0, 0) is None
    mask[1 + 4 * factor] = 0
    assert ghost_outside(kspace * mask, mask, factor, head > 0, 0) is None
