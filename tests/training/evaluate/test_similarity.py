"""HaarPSI and GMSD against values of piq 0.8.0, and what KID says of equal and of different sets."""

import numpy as np
import pytest
from dpmtrain.evaluate.similarity import gmsd, haarpsi, kid


def pair(rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and its truth."""
    down, along = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
    truth = (0.5 + 0.3 * np.sin(down / 5) + 0.2 * np.cos(along / 3 + down / 9)).astype(np.float32)
    return (truth + 0.1 * np.sin(down * 1.3 + along * 0.7)).astype(np.float32), truth


@pytest.mark.parametrize(
    ("size", "of_haarpsi", "of_gmsd"),
    [((64, 64), 0.7820430994033813, 0.027294263243675232), ((61, 47), 0.7793264389038086, 0.02793917804956436)],
)
def test_they_are_those_of_piq(size, of_haarpsi, of_gmsd):
    image, truth = pair(*size)
    assert haarpsi(image, truth) == pytest.approx(of_haarpsi, abs=1e-5)
    assert gmsd(image, truth) == pytest.approx(of_gmsd, abs=1e-5)
    assert haarpsi(truth, truth) == pytest.approx(1, abs=1e-3) and gmsd(truth, truth) == pytest.approx(0, abs=1e-6)


def test_kid_is_near_zero_for_sets_of_one_kind_and_grows_with_their_distance():
    rng = np.random.default_rng(0)
    one, same, far = rng.normal(size=(200, 7)), rng.normal(size=(150, 7)), 0.5 + rng.normal(size=(150, 7))
    assert abs(kid(same, one)) < 0.1 * kid(far, one)
    brute = [[(a @ b / 7 + 1) ** 3 for b in one] for a in far]
    within = [
        np.mean([(a @ b / 7 + 1) ** 3 for i, a in enumerate(s) for j, b in enumerate(s) if i != j]) for s in (one, far)
    ]
    assert kid(far, one) == pytest.approx(sum(within) - 2 * np.mean(brute))
