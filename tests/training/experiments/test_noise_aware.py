"""The noise-aware loss, on cases whose answer is known."""

import math

import pytest
import torch
from dpmrecon.physics.forward import ForwardModel
from dpmrecon.prior.denoiser import complex_noise
from dpmtrain.experiments import imperfect
from dpmtrain.experiments.noise_aware import Modes, modes_of

ROWS, COLS, N_COILS = 13, 10, 4
SIGMA_N = 0.2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model():
    """R about 2, with pixels that no coil sees."""
    maps = complex_noise((N_COILS, ROWS, COLS), generator())
    maps = maps / maps.abs().square().sum(0).sqrt()
    maps[:, :2, :4] = 0
    mask = torch.zeros(ROWS, COLS)
    mask[::2] = mask[5:8] = 1
    return ForwardModel(maps, mask)


@pytest.fixture(scope="module")
def image(model):
    return complex_noise((ROWS, COLS), generator(1)) * model.support


def test_without_noise_the_modes_hold_the_image(model, image):
    modes = modes_of(model, model.adjoint(model.forward(image)), SIGMA_N)
    assert torch.allclose(modes.to_image(modes.image)[0], image, atol=1e-4)
    assert torch.allclose(modes.to_modes(image[None]), modes.image, atol=1e-4)


def test_the_noise_of_the_least_squares_image_is_what_the_modes_say(model, image):
    modes = modes_of(model, model.adjoint(model.forward(image)), SIGMA_N)
    unit = torch.zeros(ROWS, COLS, dtype=torch.complex64)
    unit[7, 6] = 1
    # (A^H A) C = sigma_n^2 on the support
    covariance = modes.to_image(modes.variance * modes.to_modes(unit[None]))
    assert torch.allclose(model.normal(covariance)[0], SIGMA_N**2 * unit, atol=1e-5)
    assert int((modes.variance == 0).sum()) == int((model.support == 0).sum())


@pytest.fixture(scope="module")
def many(model):
    """Modes of many noisy scans of images that are white with standard deviation 1 where coils see them; the images."""
    first = modes_of(model, torch.zeros(ROWS, COLS, dtype=torch.complex64), SIGMA_N)
    images = complex_noise((3000, ROWS, COLS), generator(2)) * model.support
    noise = first.variance.sqrt() * complex_noise((3000, COLS, ROWS), generator(3))
    return Modes(first.vectors, first.variance, first.to_modes(images) + noise), images


def test_more_noise_makes_the_least_squares_image_one_with_white_noise_of_the_level(many):
    modes, images = many
    level = 1.2 * float(modes.variance.max().sqrt())
    noisier = modes.noisier(torch.tensor([level]), generator(4))
    off = modes.to_image(noisier) - images
    assert torch.allclose(torch.view_as_real(off).square().mean((0, 3)), torch.tensor(level**2), rtol=0.15)
    aliased = (off[:, 6, 6].conj() * off[:, 12, 6]).mean().abs() / (2 * level**2)
    assert float(aliased) < 4 / math.sqrt(len(images))


def best_factor(modes, images, level, share):
    """k of the denoiser k s' with the least error inside the modes that coils see."""
    noisier = modes.noisier(torch.tensor([level]), generator(5)) * (modes.variance > 0)
    # the error is a parabola in k: three points tell it
    points = []
    for k in (0.0, 0.5, 1.0):
        off = modes.error(modes.to_image(k * noisier), noisier, torch.tensor([level]))
        if not share:  # the noisy image taken for the truth
            off = torch.view_as_real(k * noisier - modes.image).square().mean((1, 2, 3))
        points.append(float(off.mean()))
    low, middle, high = points
    return 0.25 * (3 * low - 4 * middle + high) / (low - 2 * middle + high)


def test_the_best_denoiser_by_the_loss_is_that_of_clean_images(many):
    level = 1.3 * float(many[0].variance.max().sqrt())
    wanted = 1 / (1 + level**2)  # of a white image: Wiener
    assert best_factor(*many, level, share=True) == pytest.approx(wanted, rel=0.02)
    assert best_factor(*many, level, share=False) > 1.05 * wanted


def test_modes_noisier_than_the_level_count_for_nothing(many):
    modes, _ = many
    level = torch.tensor([0.5 * float(modes.variance[modes.variance > 0].min().sqrt())])
    noisier = modes.noisier(level, generator())
    seen = modes.variance > 0
    assert torch.equal((noisier * seen), (modes.image * seen))
    denoised = modes.to_image(torch.where(seen, complex_noise(tuple(noisier.shape), generator()), 0))
    assert float(modes.error(denoised, modes.image, level).max()) < 1e-8


def test_levels_are_log_normal_above_the_lowest_alone():
    quantiles = torch.linspace(0.001, 0.999, 7, dtype=torch.float64)
    free, above = (imperfect.levels(quantiles, torch.full((7,), least)) for least in (0.0, 0.15))
    assert float(free[3]) == pytest.approx(math.exp(imperfect.TRAIN["p_mean"]), rel=1e-4)
    assert 0.15 < float(above.min()) < 0.151
    below = imperfect.levels(quantiles, torch.zeros(7), 0.15)
    assert 0.149 < float(below.max()) < 0.15
    # the share of free levels above .15, halved, is left above the median of the others
    assert float(above[3]) == pytest.approx(float(imperfect.levels(1 - 0.5 * (1 - part(0.15)), torch.zeros(1))))


def part(level):
    """Share of the levels below `level`."""
    deviations = (math.log(level) - imperfect.TRAIN["p_mean"]) / imperfect.TRAIN["p_std"]
    return torch.tensor([0.5 * (1 + math.erf(deviations / math.sqrt(2)))], dtype=torch.float64)
