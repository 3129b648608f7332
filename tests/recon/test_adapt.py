"""`--adapt`: the prior is fitted to a scan, once, and what a scan's images get of it."""

import re
from dataclasses import replace

import dpmrecon
import numpy as np
import pydicom
import pytest
import torch
from dpmrecon.cli import main
from dpmrecon.errors import BadInputError
from dpmrecon.hosts.engine import Engine
from dpmrecon.hosts.session import on_device
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.options import Options
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dpmrecon.prior.low_rank import with_low_rank
from dpmrecon.recon import adapt
from dpmrecon.recon.adapt import Adaptation, can_be_fitted, fitted, foreseen
from dpmrecon.recon.held_back import held_back, outer_lines
from dpmrecon.recon.plan import sampling_of
from dpmrecon.recon.prepare import with_maps
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.slices import simulated_kspace

from support.clock import Clock
from support.models import SAMPLING, random_denoiser, saved_model
from support.results import images, replay, report

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network whose weights are not zero, in the place of a trained one."""
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    save_checkpoint(path, random_denoiser(), {"sampling": SAMPLING})
    return path


@pytest.fixture
def checkpoint(trained) -> Checkpoint:
    return load_checkpoint(trained, CPU)


def mapped_of(path):
    with open_scan(path) as scan:
        (data,) = slices(scan.acquisitions(), scan.header)
    return with_maps(data, CPU)


@pytest.fixture
def mapped(simulated_scan):
    return mapped_of(simulated_scan(matrix=(61, 48), n_coils=5, acceleration=2, noise=0.01))


def test_the_lines_apart_and_their_misfit(mapped):
    rows = outer_lines(mapped)
    away, unused = rows[1::5], rows[2::5]
    held = held_back(mapped, away, unused)
    assert set(torch.nonzero(held.left_out.mask[:, 0]).flatten().tolist()) == set(away)
    kept = set(torch.nonzero(held.problem.model.mask[:, 0]).flatten().tolist())
    everything = set(torch.nonzero(mapped.model.mask[:, 0]).flatten().tolist())
    assert kept == everything - {*away, *unused}
    image = mapped.conventional / mapped.scale
    wrong = (held.left_out.forward(image) - held.kspace)[:, away]
    expected = torch.view_as_real(wrong).square().mean() / held.sigma_n**2
    assert float(held.missed(image)) == pytest.approx(float(expected), rel=1e-4)


def test_the_data_step_hands_gradients_back_by_its_adjoint(mapped):
    """It is affine in its start: <J u, v> = <u, J^H v>."""
    generator = torch.Generator().manual_seed(0)
    u, v, start = (torch.randn(1, 61, 48, dtype=torch.complex64, generator=generator) for _ in range(3))
    held = held_back(mapped, outer_lines(mapped)[::4])
    fixed = (held.problem.model, held.problem.zero_filled, torch.tensor([0.5]))
    start.requires_grad_()
    found = adapt._Prox.apply(start, *fixed)
    (torch.view_as_real(found) * torch.view_as_real(v)).sum().backward()
    moved = adapt._Prox.apply(start.detach() + u, *fixed) - found.detach()
    left = (torch.view_as_real(moved) * torch.view_as_real(v)).sum()
    right = (torch.view_as_real(u) * torch.view_as_real(start.grad)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-3)


def test_held_back_lines_are_foretold_better_once_it_is_fitted(mapped, checkpoint, monkeypatch):
    monkeypatch.setattr(adapt, "RATE", 0.02)
    before = {name: value.clone() for name, value in checkpoint.model.state_dict().items()}
    sampling = sampling_of(Options(adapt=True), checkpoint, CPU)
    fit = fitted(mapped, checkpoint, "flair", sampling)
    assert 0 < fit.rounds <= adapt.ROUNDS and fit.after < (1 - adapt.LEAST) * fit.before
    assert f"{fit.after:.2f} times the noise instead of {fit.before:.2f}" in fit.text
    again = fitted(mapped, checkpoint, "flair", sampling)
    weights = (found.checkpoint.model.state_dict() for found in (fit, again))
    assert all(torch.equal(one, two) for one, two in zip(*(found.values() for found in weights)))
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.model.state_dict().items())


def test_a_fit_that_foretells_nothing_better_is_not_used(mapped, checkpoint, monkeypatch):
    monkeypatch.setattr(adapt, "RATE", 0.0)
    fit = fitted(mapped, checkpoint, None, sampling_of(Options(adapt=True), checkpoint, CPU))
    assert (fit.rounds, fit.after, fit.checkpoint) == (0, fit.before, checkpoint) and "not adapted" in fit.text


def pixels(out) -> np.ndarray:
    return np.stack([image.data for image in images(out)])


def test_no_round_is_the_default_bit_by_bit(simulated_scan, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(adapt, "ROUNDS", 0)
    scan = simulated_scan(n_slices=2)
    codes = [replay(scan, tmp_path / "plain", trained), replay(scan, tmp_path / "adapted", trained, "--adapt")]
    assert codes == [0, 0]
    assert np.array_equal(pixels(tmp_path / "plain"), pixels(tmp_path / "adapted"))


def test_a_scan_s_slices_share_it_and_it_is_told(simulated_scan, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(adapt, "RATE", 0.02)
    monkeypatch.setattr(adapt, "ROUNDS", 2 * adapt.ASKED)
    scan = simulated_scan(n_slices=3)
    for name, options in {"plain": (), "adapted": ("--adapt",), "one": ("--adapt", "--batch", "1")}.items():
        assert replay(scan, tmp_path / name, trained, *options) == 0
    screen = "".join(capsys.readouterr())
    plain, adapted, one = (pixels(tmp_path / name) for name in ("plain", "adapted", "one"))
    assert np.abs(adapted - one).max() < 1e-4 * adapted.max() < np.abs(adapted - plain).max()
    assert not any(np.array_equal(ours, theirs) for ours, theirs in zip(adapted, plain))
    told, untold = report(tmp_path / "adapted"), report(tmp_path / "plain")
    assert (told["adapt"], untold["adapt"]) == (True, False)
    (text,) = {entry["adaptation"] for entry in told["slices"]}
    assert text.startswith("prior adapted to the scan, rank") and "adaptation" not in untold["slices"][0]
    assert ["adaptation" in entry["seconds"] for entry in told["slices"]] == [True, False, False]
    assert screen.count(text) == 2 and screen.count("fitted to the scan's first slice") == 2
    for image in images(tmp_path / "adapted"):
        assert image.meta["dpmrecon_adaptation"] == text and text in image.meta["ImageComments"]
    files = [pydicom.dcmread(next((tmp_path / name / "dicom").glob("01_*/*.dcm"))) for name in ("adapted", "plain")]
    assert text in files[0].ImageComments and f" P{text[1:]}. RESEARCH" in files[0].DerivationDescription
    assert "adapted" not in files[1].ImageComments + files[1].DerivationDescription
    assert files[0].SOPInstanceUID != files[1].SOPInstanceUID


def test_nothing_of_it_is_left_for_the_next_scan(checkpoint, monkeypatch):
    monkeypatch.setattr(adapt, "RATE", 0.02)
    monkeypatch.setattr(adapt, "ROUNDS", 2 * adapt.ASKED)
    settings = SimulationSettings(matrix=(64, 64), n_coils=5, acceleration=2, n_slices=1)
    first, other = (simulated_kspace(replace(settings, subject=number))[0] for number in (0, 1))

    def image(kspace, *, adapt: bool) -> np.ndarray:
        return dpmrecon.reconstruct(kspace, model=checkpoint, adapt=adapt).image

    plain, alone = image(first, adapt=False), image(first, adapt=True)
    image(other, adapt=True)
    assert np.array_equal(image(first, adapt=False), plain)
    assert np.array_equal(image(first, adapt=True), alone) and not np.array_equal(alone, plain)


def test_where_it_cannot_work_it_is_refused(checkpoint, simulated_scan, trained, tmp_path, capsys):
    for options, volume, sentence in [
        (Options(adapt=True), True, "--adapt is for slices"),
        (Options(adapt=True, sampler="dps"), False, "sampler prox and the model's is dps"),
        (Options(adapt=True, deadline=60.0), False, "longer than a deadline can foresee"),
    ]:
        with pytest.raises(BadInputError, match=sentence):
            sampling_of(options, checkpoint, CPU, volume=volume)
    assert replay(simulated_scan(partitions=20), tmp_path / "volume", trained, "--adapt") == 2
    assert "leave it out" in capsys.readouterr().err


def test_a_slice_that_cannot_be_fitted_to_says_so(mapped, checkpoint):
    few = replace(
        mapped, model=replace(mapped.model, mask=mapped.model.mask * ((torch.arange(61) - 28).abs() < 8)[:, None])
    )
    assert can_be_fitted(mapped) and not can_be_fitted(few)
    adapted = Adaptation(checkpoint, None, sampling_of(Options(adapt=True), checkpoint, CPU)).of([few])
    assert adapted.checkpoint is checkpoint and "no slice so far" in adapted.text


def test_a_device_that_fails_leaves_the_prior_as_it_is(mapped, checkpoint, monkeypatch):
    def fails(*given):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(adapt, "fitted", fails)
    adaptation = Adaptation(checkpoint, None, sampling_of(Options(adapt=True), checkpoint, CPU))
    adapted = adaptation.of([mapped])
    assert adapted.checkpoint is checkpoint and adapted.text.endswith("the device failed (out of memory)")
    assert adaptation.of([mapped]).text == adapted.text


def test_a_white_prior_is_no_obstacle(mapped, tmp_path):
    """A network that is zero has no gradient but that of its last layer."""
    checkpoint = load_checkpoint(saved_model(tmp_path / "tiny.safetensors", sampling=SAMPLING), CPU)
    fit = fitted(mapped, checkpoint, None, sampling_of(Options(adapt=True), checkpoint, CPU))
    assert np.isfinite(fit.after)


def test_its_cost_is_foreseen_from_a_few_steps(mapped, checkpoint, monkeypatch):
    """Where an evaluation takes a second, with or without a gradient."""
    clock = Clock(per_image=1.0)

    def watched(*given):
        model, parameters = with_low_rank(*given)
        clock.watch(model)
        return model, parameters

    monkeypatch.setattr(adapt, "with_low_rank", watched)
    sampling = sampling_of(Options(adapt=True, steps=7), checkpoint, CPU)
    asked = 1 + adapt.ROUNDS // adapt.ASKED
    assert foreseen(mapped, checkpoint, None, sampling, clock) == pytest.approx(7 * (adapt.ROUNDS + asked))


def test_its_cost_is_shown_beforehand(simulated_scan, trained, capsys):
    scan, common = str(simulated_scan()), ("--model", str(trained), "--device", "cpu")
    assert main(["estimate", scan, *common, "--adapt"]) == 0
    assert re.search(r"adaptation +\d+\.\d s once", capsys.readouterr().out)
    assert main(["estimate", scan, *common]) == 0
    assert "adaptation" not in capsys.readouterr().out
    costs = [
        dpmrecon.doctor(scan, Options(adapt=wanted, model=trained, device="cpu"), page=True).cost
        for wanted in (True, False)
    ]
    (key,) = costs[0].keys() - costs[1].keys()
    assert "adaptation" in key and costs[0]["seconds of the scan"] > costs[0][key] > 0


def test_a_service_fits_once_to_a_scan_and_anew_to_the_next(simulated_scan, checkpoint, monkeypatch):
    monkeypatch.setattr(adapt, "RATE", 0.02)
    monkeypatch.setattr(adapt, "ROUNDS", 2 * adapt.ASKED)
    fits = []
    monkeypatch.setattr(adapt, "fitted", lambda *given: fits.append(fitted(*given)) or fits[-1])
    with open_scan(simulated_scan(n_slices=3)) as scan:
        parts = list(slices(scan.acquisitions(), scan.header))
    engine = Engine(checkpoint, CPU, Options())

    def scanned(*, adapt: bool) -> list[torch.Tensor]:
        sampling = sampling_of(Options(adapt=adapt), checkpoint, CPU)
        return [item.image for item in on_device([[part] for part in parts], engine, None, sampling, len(parts))]

    plain, adapted = scanned(adapt=False), scanned(adapt=True)
    assert len(fits) == 1 and fits[0].rounds > 0
    assert not any(torch.equal(ours, theirs) for ours, theirs in zip(adapted, plain))
    again = scanned(adapt=True)
    assert len(fits) == 2 and all(torch.equal(ours, theirs) for ours, theirs in zip(again, adapted))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(scanned(adapt=False), plain))
