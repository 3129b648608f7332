import numpy as np
import pytest
from dpmtrain.evaluate.lesion_scores import Lesion
from dpmtrain.evaluate.lesion_spread import DISC_MM, figures, local_mean
from dpmtrain.evaluate.lesions import PIXEL_MM

SHAPE = (41, 58)


def test_the_local_mean_is_that_of_a_disc():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((3, *SHAPE))
    disc = Lesion(20, 30, DISC_MM / 2 / PIXEL_MM, 1.0).fraction(SHAPE)
    expected = (images * disc).sum((1, 2)) / disc.sum()
    np.testing.assert_allclose(local_mean(images)[:, 20, 30], expected, atol=1e-6)


@pytest.mark.parametrize("width", [1, 4], ids=["white", "correlated"])
def test_a_truth_that_is_a_draw_like_the_others_is_foretold_at_both_scales(width):
    """V/B is n / (n + 1) for n samples, and nearly all lesions lie within three spreads."""
    rng, n, repeats = np.random.default_rng(1), 12, 40
    lesions = [Lesion(row, col, 1.0, 0.5) for row in (8, 20, 32) for col in (9, 28, 47)]
    found = []
    for _ in range(repeats):
        noise = rng.standard_normal((n + 1, *SHAPE))
        noise = sum(np.roll(noise, shift, axis=2) for shift in range(width))
        found.append(figures(10 + noise[1:].mean(0), 10 + noise[1:], 10 + noise[0], lesions))
    spread, error, local_spread, local_error = np.sum(found, 0)[:4]
    assert spread / error == pytest.approx(n / (n + 1), rel=0.03)
    assert local_spread / local_error == pytest.approx(n / (n + 1), rel=0.1)
    assert np.mean(found, 0)[6:].min() > 0.95


def test_the_spread_that_knows_where_the_error_is_ranks_higher():
    """Samples whose local mean varies in one half alone: the error is there. White noise elsewhere hides it in the
    pixels' spread."""
    rng = np.random.default_rng(2)
    side = np.zeros(SHAPE)
    side[:, 29:] = 1
    noise = rng.standard_normal((13, *SHAPE)) * (1 - side) + 0.7 * rng.standard_normal((13, 1, 1)) * side
    noise[0] = 0.1 * local_mean(noise[0]) * (1 - side) + side
    *_, by_pixels, by_local, _, _ = figures(
        10 + noise[1:].mean(0), 10 + noise[1:], 10 + noise[0], [Lesion(20, 40, 1.0, 0.5)]
    )
    assert by_local > by_pixels
