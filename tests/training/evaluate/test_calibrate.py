"""`dpmtrain calibrate`: the fit of the prior."""

import numpy as np
from dpmtrain.evaluate.calibrate import prior_fit


def test_the_fit_of_the_prior_finds_a_white_one():
    sigma = np.geomspace(0.01, 1.2, 8)
    error = sigma * 0.2 / np.sqrt(sigma**2 + 0.2**2)
    assert prior_fit(np.stack([sigma, error, error], 1)) == {"prior_std": 0.2, "prior_power": 0.0}
