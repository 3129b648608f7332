"""`dpmtrain calibrate`: the fit of the prior."""

import numpy as np
from dpmtrain.evaluate.calibrate import prior_fit, with_chosen


def test_the_fit_of_the_prior_finds_a_white_one():
    sigma = np.geomspace(0.01, 1.2, 8)
    error = sigma * 0.2 / np.sqrt(sigma**2 + 0.2**2)
    assert prior_fit(np.stack([sigma, error, error], 1)) == {"prior_std": 0.2, "prior_power": 0.0}


def test_settings_of_one_contrast_lie_beside_those_of_all():
    entry = {"sampler": "uncertainty", "contrast": "t1", "R": 4, "settings": {"steps": 8}}
    other = {**entry, "R": 8}
    sampling = {"uncertainty": {"samples": 4, "steps": 30, "eta": 0.0}, "by_contrast_R": [entry, other]}
    chosen = {"samples": 4, "steps": 20, "eta": 0.0}
    assert with_chosen(sampling, chosen, None, 4) == {**sampling, "uncertainty": chosen}
    assert with_chosen({}, chosen, "t1", 4) == {"uncertainty": chosen}
    found = with_chosen(sampling, chosen, "t1", 4)
    assert found == {**sampling, "by_contrast_R": [{**entry, "settings": {"steps": 20}}, other]}
