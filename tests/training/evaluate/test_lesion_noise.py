"""What spreads the contrast of small lesions, on cases whose answer is known."""

import sys

import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.prior.denoiser import complex_noise
from dpmtrain.arguments import changes_from
from dpmtrain.evaluate import lesion_noise as command
from dpmtrain.evaluate import lesions

from support.phantoms import even_head


@pytest.fixture(autouse=True)
def slice_of_tissue(monkeypatch):
    head = even_head()
    for module in (command, lesions):
        monkeypatch.setattr(module, "tissue_of", lambda images, contrast: head)
    return head


def test_the_truth_has_every_lesion_and_the_tissue_none(slice_of_tissue):
    mapped, truth, lesions = command.case_of("", "dwi", 1e4, 0.4, 3)
    assert mapped.model.mask.shape == truth.shape
    assert [lesion.radius for lesion in lesions] == 6 * list(command.RADII)
    assert command.kept(torch.from_numpy(truth), truth, lesions)[0] == pytest.approx([1] * 12)
    none, error = command.kept(torch.from_numpy(slice_of_tissue), truth, lesions)
    assert np.abs(none).max() < 1e-3
    assert error > 0.01


def test_the_bound_is_the_deviation_of_a_matched_filter():
    mapped, truth, lesions = command.case_of("", "dwi", 20.0, 0.4, 0)
    least = command.bound(mapped, truth, lesions)
    one = lesions[2]
    change = one.height * one.fraction(truth.shape)
    added = mapped.model.forward(torch.from_numpy((truth * change / (1 + change)).astype(np.complex64)))
    generator = torch.Generator().manual_seed(0)
    noise = complex_noise((400, *added.shape), generator) * mapped.data.sigma_n
    found = (added.conj() * (added + noise)).real.sum((1, 2, 3)) / added.abs().square().sum()
    assert float(found.mean()) == pytest.approx(1, abs=4 * least[2] / 20)
    assert float(found.std()) == pytest.approx(least[2], rel=0.15)


def test_from_draw_to_draw_the_noise_and_the_radii_change_places():
    (one, _, first), (two, _, second) = (command.case_of("", "dwi", 20.0, 0.4, draw) for draw in (0, 1))
    assert not torch.equal(one.data.kspace, two.data.kspace)
    assert {(lesion.row, lesion.col) for lesion in first} == {(lesion.row, lesion.col) for lesion in second}
    assert first != second


def test_the_deviation_is_the_datas_and_the_samplers_apart():
    rng, draws, samples, lesions = np.random.default_rng(0), 200, 4, 12
    data = rng.normal(0.7, 0.3, (draws, 1, lesions))
    drawn = data + rng.normal(0, 0.1, (draws, samples, lesions))
    scores = [{"kept": several.mean(0), "samples": several, "nrmse": 0.1} for several in drawn]
    error, mean, deviation, lowest, highest, sampler, ratio = (float(cell) for cell in command.row(scores))
    assert error == 0.1
    assert mean == pytest.approx(0.7, abs=0.03)
    assert deviation == pytest.approx(np.hypot(0.3, 0.1 / samples**0.5), abs=0.02)
    assert sampler == pytest.approx(0.1, abs=0.005)
    assert ratio == pytest.approx(mean / deviation, rel=0.05)
    assert lowest == pytest.approx(0.7 - 1.63 * deviation, abs=0.05)  # expected extremes of twelve normal draws
    assert highest == pytest.approx(0.7 + 1.63 * deviation, abs=0.05)


@pytest.mark.parametrize("text", ["noise_factor=0.5", "[1]"])
def test_changes_that_are_no_object_are_refused(text):
    with pytest.raises(BadInputError, match="give changes as"):
        changes_from(text)


def test_the_command_goes_on_with_what_is_there(tiny_model, monkeypatch, tmp_path, capsys):
    checkpoint = load_checkpoint(tiny_model(samples=1, prox={"steps": 2}), torch.device("cpu"))
    monkeypatch.setattr(command, "load_model", lambda *args: checkpoint)
    monkeypatch.setattr(command, "methods", lambda *args: iter([]))
    made = []
    case_of = command.case_of
    monkeypatch.setattr(command, "case_of", lambda *args: made.append(args) or case_of(*args))
    line = f"lesion_noise --images . --lines {tmp_path / 'lines'} --snr 20 --heights 0.4 --set"
    for expected in (4, 0):
        made.clear()
        monkeypatch.setattr(sys, "argv", [*line.split(), "{}", '{"samples": 2, "noise_factor": 0.4}', "--draws", "2"])
        command.main()
        assert len(made) == expected + 1  # of the bound
        one, two = capsys.readouterr().out.splitlines()[-2:]
        assert "| - |" in one
        assert '{"samples": 2, "noise_factor": 0.4}' in two
        assert "| - |" not in two
