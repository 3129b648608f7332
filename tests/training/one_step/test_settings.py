"""The command that measures a one-step network's settings: what it remembers, chooses, and puts into a card."""

from functools import partial

import numpy as np
import pytest
import torch
from dpmrecon.prior.checkpoint import load_checkpoint, sampler_defaults, save_checkpoint, write_card
from dpmrecon.prior.conditional import ConditionalDenoiser, Conditioned
from dpmrecon.prior.kinds import KINDS, ONE_STEP
from dpmrecon.recon.sample import problem_of
from dpmtrain.evaluate.methods import by_card
from dpmtrain.evaluate.plan import Condition
from dpmtrain.evaluate.scoring import Undersampled
from dpmtrain.evaluate.trust import scores
from dpmtrain.evaluate.validation import full_slice
from dpmtrain.one_step import settings

CONFIG = {"widths": [4, 6], "blocks": [1, 1], "embedding": 8, "labels": ["flair", "t1"], "conditioning": "cg-sense"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(2)
    found = ConditionalDenoiser(CONFIG).eval().requires_grad_(False)
    torch.nn.init.normal_(found.network.head.weight, std=0.05)
    return found


@pytest.fixture(scope="module")
def of(model):
    """Cases of two noise levels of a disc."""
    rows, cols = np.mgrid[:97, :60]
    disc = ((rows - 48) / 40) ** 2 + ((cols - 30) / 22) ** 2 < 1
    found = []
    for sigma in settings.SIGMAS:
        full = full_slice("disc", 0, "t1", torch.from_numpy(disc * (1 + 0.3 * np.cos(rows / 3))).float(), sigma)
        mapped = Undersampled(full, Condition("regular", 4, 24), torch.device("cpu")).mapped
        prior = settings.Remembering(model, model.one_hot(["t1"]), lambda images: None)
        found.append(settings.Case(("t1", 4), sigma, full.truth, mapped, problem_of([mapped]), prior))
    return found


def test_what_is_remembered_changes_no_image(of, model):
    case, variant = of[0], settings.variants((0.3, 0.01), False)[-1]
    evaluated = []
    plain = Conditioned(model, model.one_hot(["t1"]), evaluated.append)
    again = [settings.nrmse(case, variant) for _ in range(2)]
    fresh = settings.nrmse(settings.replace(case, prior=plain), variant)
    assert again[0] == again[1] == fresh
    steps = variant.settings.steps
    assert len(evaluated) == steps * len(settings.ERRORS)
    # the first evaluation is one for all errors
    assert len(case.prior.known) == (steps - 1) * len(settings.ERRORS) + 1


def test_later_evaluations_are_told_less_unless_they_are_the_priors():
    later = [one.settings for one in settings.variants((0.3, 0.01), False) if one.settings.steps > 1]
    assert [(one.steps, one.later_acceleration) for one in later] == [(2, 1.0), (2, 0.7), (3, 0.7), (4, 0.7)]
    assert all(one.sigma_max is None for one in later)
    assert all((one.settings.steps, one.settings.sigma_max) == (4, 0.02) for one in settings.variants(None, True))
    later = [one.settings for one in settings.variants((0.3, 0.01), True) if one.settings.steps > 1]
    assert [(one.steps, one.sigma_max) for one in later] == [
        (steps, level) for steps, levels in settings.LEVELS.items() for level in levels
    ]


def test_the_weight_of_training_is_one(of):
    same = settings.with_cg_weight(of[0], 1.0).problem.start
    assert torch.allclose(same, of[0].problem.start, atol=1e-3)
    assert not torch.allclose(settings.with_cg_weight(of[0], 3.0).problem.start, same, atol=1e-2)


def test_the_best_error_of_a_group_goes_into_the_card(of, tmp_path, monkeypatch):
    variant = settings.variants((0.3, 0.01), False)[2]
    row = settings.measured(variant, of, [("t1", 4)])
    table = np.array([settings.nrmse(case, variant) for case in of])
    best = int(np.log(table).mean(0).argmin())
    mean = table[:, best].prod() ** (1 / len(settings.SIGMAS))
    assert row.errors == {("t1", 4): settings.ERRORS[best]}
    assert row.figures == pytest.approx([mean, *table[:, best], mean])
    default = load_checkpoint()
    images = [by_card(case.mapped, default, "t1", samples=1).image for case in of]
    monkeypatch.setattr(settings, "by_card", partial(by_card, samples=1))
    errors = [scores(case.truth, image)[0] for case, image in zip(of, images)]
    figures = settings.default_figures(default, of, [("t1", 4)])
    assert figures[1:-1] == pytest.approx(errors) and figures[0] == figures[-1]
    path = tmp_path / "m.safetensors"
    other = {"sampler": "else", "contrast": "t1", "R": 4, "settings": {}}
    save_checkpoint(
        path, of[0].prior.denoiser, {"kind": ONE_STEP, "sampling": {"samples": 1, "by_contrast_R": [other]}}
    )
    write_card(path, sampling=settings.sampling_with(load_checkpoint(path).card, row))
    card = load_checkpoint(path).card
    assert other in card["sampling"]["by_contrast_R"] and card["sampling"]["samples"] == 1
    chosen, _ = sampler_defaults(card, ONE_STEP, "t1", 5)
    made = KINDS[ONE_STEP].samplers[ONE_STEP].settings_from(chosen)
    assert made == settings.replace(variant.settings, error=settings.ERRORS[best])
    once = settings.replace(row, errors={("t1", 4): settings.ERRORS[best] / 1.5})
    base = settings.sampling_with({"sampling": {}}, row, once)
    assert base[ONE_STEP]["looser"] == 1.5 and base[ONE_STEP]["error"] == pytest.approx(settings.ERRORS[best] / 1.5)
