"""The pair of settings that a scan chooses by the lines that are kept back."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dpmtrain.evaluate import trust
from dpmtrain.evaluate.plan import Condition
from dpmtrain.evaluate.scoring import Undersampled
from dpmtrain.evaluate.validation import full_slice


@pytest.fixture(scope="module")
def case():
    rows, cols = np.mgrid[:97, :60]
    disc = ((rows - 48) / 40) ** 2 + ((cols - 30) / 22) ** 2 < 1
    full = full_slice("disc", 0, "t1", torch.from_numpy(disc * (1 + 0.3 * np.cos(rows / 3))).float(), 0.01)
    return Undersampled(full, Condition("regular", 3, trust.CALIBRATION_LINES), torch.device("cpu"))


def test_lines_that_are_kept_back_lie_outside_the_calibration(case):
    rows = trust.lines_kept_back(case.mapped)
    assert len(rows) == pytest.approx((97 - 24) / 3 / trust.HELD_BACK, abs=1)
    assert all(abs(row - 48) > trust.CALIBRATION_LINES // 2 for row in rows)
    assert bool(case.mapped.data.mask[rows].any(1).all())


def test_the_pair_is_taken_that_tells_the_lines_best(case, monkeypatch):
    """Of two images, made without those lines, one is the negative of the other."""
    seen = []

    def image_of(mapped, checkpoint, contrast, pair):
        seen.append(mapped.data.mask)
        return SimpleNamespace(image=mapped.conventional * pair[0])

    monkeypatch.setattr(trust, "image_of", image_of)
    assert trust.chosen_pair(case.mapped, None, "t1", [(-1.0, 0.0), (1.0, 0.0)]) == (1.0, 0.0)
    acquired, rows = case.mapped.data.mask, trust.lines_kept_back(case.mapped)
    assert len(seen) == 2
    for mask in seen:
        assert not mask[rows].any() and mask.sum() == acquired.sum() - acquired[rows].sum()
