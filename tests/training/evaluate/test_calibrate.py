"""`dpmtrain calibrate`: the fit of the prior."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dpmtrain.evaluate.calibrate import _squares, prior_fit, with_chosen
from dpmtrain.evaluate.plan import Condition
from dpmtrain.evaluate.scoring import Undersampled, true_image
from dpmtrain.evaluate.validation import full_slice


def test_the_fit_of_the_prior_finds_a_white_one():
    sigma = np.geomspace(0.01, 1.2, 8)
    error = sigma * 0.2 / np.sqrt(sigma**2 + 0.2**2)
    assert prior_fit(np.stack([sigma, error, error], 1)) == {"prior_std": 0.2, "prior_power": 0.0}


def test_settings_of_one_contrast_lie_beside_those_of_all():
    entry = {"sampler": "uncertainty", "contrast": "t1", "R": 4, "settings": {"steps": 8}}
    other = {**entry, "R": 8}
    sampling = {"uncertainty": {"samples": 4, "steps": 30, "eta": 0.0}, "by_contrast_R": [entry, other]}
    chosen = {"samples": 4, "steps": 20, "eta": 0.0}
    prox = {**entry, "sampler": "prox"}
    whole = with_chosen({**sampling, "by_contrast_R": [entry, prox, other]}, chosen, None, 4)
    assert whole == {"uncertainty": chosen, "by_contrast_R": [prox]}  # the old ones of t1 would win over those chosen
    assert with_chosen({}, chosen, "t1", 4) == {"uncertainty": chosen}
    found = with_chosen(sampling, chosen, "t1", 4)
    assert found == {**sampling, "by_contrast_R": [{**entry, "settings": {"steps": 20}}, other]}


def test_spread_and_network_of_a_head_that_folds():
    """Two sets of coil maps: samples at equal distances from the truth have no error, and D(x) = x / 2 implies half of
    the noise's variance in both images."""
    down, along = torch.meshgrid(torch.linspace(-1, 1, 63), torch.linspace(-1, 1, 56), indexing="ij")
    inside = (down / 1.1) ** 2 + (along / 0.7) ** 2 < 1
    full = full_slice("folds", 0, "t1", inside * (0.6 + 0.3 * torch.sin(7 * down) * torch.cos(5 * along)))
    case = Undersampled(full, Condition("regular", 2, 20), torch.device("cpu"))
    model = case.mapped.model
    assert case.mapped.n_sets == 2
    truth = model.combined(true_image(case.mapped, full.coil_images))
    score = case.score(truth, torch.stack([truth + 0.1, truth - 0.1]))
    head = float((model.support.amax(0) > 0).sum())
    assert (score["V"], score["B"]) == pytest.approx((2 * 0.01 * head, 0), rel=1e-3)  # the image is the truth

    class Half:
        def __call__(self, x, sigma, label):
            assert len(x) == len(sigma) == len(label) == 2
            return x / 2

        def one_hot(self, labels):
            return torch.zeros(len(labels), 1)

    _, implied = _squares(SimpleNamespace(denoiser=Half()), full, 1.5)
    assert implied == pytest.approx(1.5**2 / 2, rel=0.05)
