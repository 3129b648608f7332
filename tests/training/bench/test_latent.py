"""LDPM's experiments: the methods are the product's own, the report finds what is wrong where it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dpmrecon.api import load_model
from dpmrecon.errors import BadInputError
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dpmrecon.prior.kinds import KINDS, LATENT
from dpmtrain.bench import latent as bench
from dpmtrain.bench.latent_report import Case, Replayed, replayed, worst_places, write_report
from dpmtrain.evaluate.methods import by_card
from dpmtrain.evaluate.plan import Condition
from dpmtrain.evaluate.scoring import Undersampled

from support.latent import latent_model
from support.phantoms import head

CPU = torch.device("cpu")
CARD = {"kind": "latent", "sampling": {"samples": 1, "latent": {"steps": 2, "first": 200, "p": 100}}}


@pytest.fixture
def models(tmp_path):
    save_checkpoint(tmp_path / "latent.safetensors", latent_model(), CARD)
    latent = load_checkpoint(tmp_path / "latent.safetensors")
    return bench.Models(latent, bench.sketching(), load_model(None, "cpu"), None, None)


def test_the_methods_are_those_of_the_product_and_their_images_are_kept(models, tmp_path):
    here = Undersampled(head(48, 40), Condition("random", 3, 12), CPU)
    chosen = {**bench.compared(models), **bench.ablations(models)}
    for name, checkpoint in (("Sketcher", models.one_step), ("latent prior", models.latent)):
        image, seconds = bench.made(tmp_path / "run", here, name, chosen[name])
        own = by_card(here.mapped, checkpoint, "flair", samples=1).image.abs().numpy()
        np.testing.assert_allclose(image, own, rtol=1e-4, atol=1e-5 * own.max())
        again = bench.Method(lambda mapped, contrast: pytest.fail("made twice"), chosen[name].made_with)
        assert bench.made(tmp_path / "run", here, name, again)[1] == seconds
    other, _ = bench.made(tmp_path / "run", here, "no Sketcher", chosen["latent prior, zero-filled for the sketch"])
    assert np.abs(other - image).max() > 0.01 * image.max()


def test_the_true_image_is_what_the_sampler_sees(models):
    full = head(48, 40)
    here = Undersampled(full, Condition("random", 2, 12), CPU)
    truth = bench.complex_truth(here)
    inside = here.mapped.model.support > 0
    scaled = torch.from_numpy(full.truth) / here.mapped.scale
    assert (truth.abs() - scaled)[inside].norm() < 0.05 * scaled.norm()
    assert truth.imag.norm() < 0.2 * truth.norm()


def test_a_replay_tells_what_it_took(simulated_scan, tmp_path):
    found = replayed(simulated_scan(matrix=(48, 40)), None, "one-step")
    assert found.nrmse is None and found.fallbacks == 0 and found.seconds > 0
    assert found.megabytes is None or 50 < found.megabytes < 10_000
    with pytest.raises(BadInputError, match="dpmrecon replay .*no.h5 .* fails"):
        replayed(tmp_path / "no.h5", None, "one-step")


def test_the_report_has_every_table_and_shows_the_worst_place(tmp_path, capsys):
    rng, cases = np.random.default_rng(0), []
    for acceleration in (8, 4):
        for contrast in ("flair", "none"):
            full = replace(head(128, 96), contrast=contrast)
            bad = full.truth.copy()
            bad[72:112, 16:48] += 0.5
            good = full.truth + 0.01 * rng.normal(size=bad.shape).astype(np.float32)
            pictures = {"Sketcher": good, "latent prior": bad}
            image = torch.from_numpy(full.truth).to(torch.complex64)
            cases.append(Case(full, acceleration, pictures, dict.fromkeys(pictures, 1.0), image))
    model = latent_model()
    checkpoint = Checkpoint(model, CARD, "latent-abc", KINDS[LATENT])
    write_report(tmp_path, cases, {"tuned": model}, checkpoint, [Replayed("latent.safetensors", 0.1, 2.0, 300.0, 0)])
    text = capsys.readouterr().out
    assert "1 test slices and an object that is no head" in text and text.count("| latent prior |") == 3
    assert "| latent | 0.1000 | 2.00 | 300 | 0 |" in text and "| tuned |" in text
    assert (tmp_path / "worst.png").stat().st_size > 1000 and (tmp_path / "round_trip.png").stat().st_size > 1000
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + 2 * len(cases)
    case, (rows, cols) = next(worst_places(cases, "latent prior"))
    assert rows.start <= 72 < 112 <= rows.stop and cols.start <= 16 < 48 <= cols.stop and case.acceleration in (4, 8)
