"""What is said of an image that its data contradict, and that it arrives wherever an image is told of."""

from dataclasses import replace

import dpmrecon
import numpy as np
import pydicom
import pytest
import torch
from dpmrecon.errors import DpmreconError
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.recon.gate import (
    CHECKS,
    Verdict,
    channels_contradict,
    expected_residual,
    judged,
    misses_data,
    too_few_coils,
)
from dpmrecon.recon.prepare import despiked, with_coil_maps
from dpmrecon.recon.sample import fall_back
from dpmrecon.recon.types import Reconstruction, Sampling
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.slices import simulated_kspace

from support.edited import with_spike
from support.results import images, replay, report

SMALL = {"matrix": (64, 64), "n_coils": 6, "calibration_lines": 16, "acceleration": 2, "n_slices": 1}


@pytest.fixture(scope="module")
def shipped():
    return dpmrecon.load_model(None, "cpu")


def simulated(acceleration: int = 1, **settings) -> np.ndarray:
    return simulated_kspace(SimulationSettings(**{**SMALL, **settings, "acceleration": acceleration}))[0]


def undersampled(kspace: np.ndarray) -> np.ndarray:
    settings = SimulationSettings(**{**SMALL, "matrix": kspace.shape[1:]})
    kspace[:, np.setdiff1d(range(settings.rows), [*settings.grid_rows(), *settings.calibration_rows()])] = 0
    return kspace


@pytest.mark.parametrize("noise", [0.0, 0.0005, 0.003, 0.01, 0.04])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_coils": 16, "matrix": (96, 80)},
        {"n_coils": 3, "phantom": "letters"},
        {"matrix": (48, 48), "contrast": "t1"},
    ],
    ids=["small", "many coils", "few coils", "smaller"],
)
def test_nothing_is_said_of_sound_scans(shipped, noise, settings):
    found = dpmrecon.reconstruct(simulated(2, noise=noise, **settings), model=shipped)
    assert (found.remarks, found.trusted, found.fallback) == ((), True, None)


def of_lines(mapped, came: np.ndarray, n_coils: int, fold: float) -> Reconstruction:
    """As if these lines, (rows,) or (partitions, rows) bool, had come at an R of `fold` in so many coils."""
    data = replace(mapped.data, mask=torch.from_numpy(came)[..., None].float(), acceleration=float(fold))
    return Reconstruction(replace(mapped, data=data, n_coils=n_coils), mapped.conventional, None, None, 1.0)


def lattice(shape: tuple[int, ...], *steps: int) -> np.ndarray:
    """Every so many lines along each axis, and a fully sampled centre."""
    came = np.zeros(shape, bool)
    came[tuple(slice(None, None, step) for step in steps)] = True
    came[tuple(slice(size // 2 - 6, size // 2 + 6) for size in shape)] = True
    return came


@pytest.mark.parametrize("n_coils, fold", [(1, 2), (1, 1), (3, 4), (3, 3)])
@pytest.mark.parametrize("volume", [False, True], ids=["slice", "volume"])
def test_more_folds_than_coils_are_a_caution(mapped, n_coils, fold, volume):
    came = lattice((48, 63), 2 - fold % 2, fold // (2 - fold % 2)) if volume else lattice((63,), fold)
    said = too_few_coils(of_lines(mapped, came, n_coils, fold))
    assert (said is not None) == (fold > n_coils)
    assert said is None or said.text.startswith(f"R = {fold} is more than {n_coils} coil{'s' * (n_coils > 1)} can")


@pytest.mark.parametrize("shape", [(63,), (64,), (48, 63)])
@pytest.mark.parametrize("fold", [2, 4, 3.9])
def test_lines_that_do_not_fold_are_no_caution(mapped, shape, fold):
    chance = lattice(shape, *shape) | (np.random.default_rng(3).random(shape) < 1 / fold)
    full = np.ones(shape, bool)
    partial = np.arange(shape[-1]) >= shape[-1] // 3
    for came in (full, full & partial, chance):
        assert too_few_coils(of_lines(mapped, came, 1, fold)) is None


def with_misfit(mapped, misfit) -> Reconstruction:
    return Reconstruction(mapped, mapped.conventional, None, None, misfit.residual, misfit=misfit)


@pytest.mark.parametrize("contrast", ["t1", "t2"])
def test_channels_that_nobody_whitened_are_no_contradiction(simulated_scan, contrast):
    settings = {"matrix": (96, 80), "n_coils": 32, "acceleration": 3, "noise_correlation": 0.2}
    with open_scan(simulated_scan(contrast=contrast, noise=0.02, noise_scan=False, **settings)) as scan:
        (mapped,) = with_coil_maps(slices(scan.acquisitions(), scan.header), torch.device("cpu"))
    misfit = mapped.misfit(mapped.conventional)
    assert channels_contradict(with_misfit(mapped, misfit)) is None
    by_channel = misfit.by_channel.clone()
    by_channel[3] *= 3  # its gain changed during the scan
    loud = replace(misfit, by_channel=by_channel)
    said = channels_contradict(with_misfit(mapped, loud))
    assert "channel 3 of 12" in said.text and "noise measurement" not in said.text


def off_centre() -> np.ndarray:
    return np.roll(simulated(noise=0.005), 10, 1)


def ghosted(noise: float = 0.005, **settings) -> np.ndarray:
    kspace = simulated(noise=noise, **settings)
    kspace[:, 1::2] *= np.exp(-6j * np.pi * (np.arange(64) - 32) / 64)
    return kspace


@pytest.mark.parametrize("scan, said", [(off_centre, "misses the data by"), (ghosted, "contradicts the others")])
def test_scans_that_contradict_themselves_are_said(shipped, scan, said):
    found = dpmrecon.reconstruct(undersampled(scan()), model=shipped)
    assert said in " ".join([*found.remarks, found.fallback or ""])


@pytest.fixture(scope="module")
def mapped(simulated_scan):
    with open_scan(simulated_scan(noise=0.01)) as scan:
        (found,) = with_coil_maps(slices(scan.acquisitions(), scan.header), torch.device("cpu"))
    return found


def reconstruction(mapped, residual: float, conventional: float | None = None) -> Reconstruction:
    """With these residuals in units of what is expected; the CG-SENSE image's is its own where none is given."""
    expected = expected_residual(mapped)
    mapped = replace(mapped)
    if conventional is not None:
        mapped.residual = lambda image: conventional * expected
    return Reconstruction(mapped, mapped.conventional, None, None, residual * expected)


def test_verdicts(mapped):
    assert misses_data(reconstruction(mapped, 1.25)) is None
    remark = misses_data(reconstruction(mapped, 1.6))
    assert remark.kind == "remark"
    assert f"misses the data by {1.6 * expected_residual(mapped):.1f} times the noise" in remark.text
    assert misses_data(reconstruction(mapped, 3.1)).kind == "fallback"
    assert misses_data(reconstruction(mapped, 4.0, 3.9)).kind == "fallback"
    distrust = misses_data(reconstruction(mapped, 4.0, 4.0))
    assert distrust.kind == "distrust" and distrust.text.startswith("NOT TO BE TRUSTED: ")
    fallen = replace(reconstruction(mapped, 4.0, 1.0), fallback="the deadline had passed")
    assert misses_data(fallen).kind == "distrust"
    assert judged(reconstruction(mapped, float("nan")))[1] == "the model's image is not finite"


def test_remarks_of_earlier_steps_come_out_with_the_image(mapped):
    mapped = replace(mapped, data=replace(mapped.data, remarks=("averages differ",)))
    item, reason = judged(reconstruction(mapped, 4.0, 4.0))
    assert item.remarks[0].startswith("NOT TO BE TRUSTED") and item.remarks[1:] == ("averages differ",)
    assert (item.trusted, reason) == (False, None)
    sampling = Sampling("prox", None, 1, 0, 1, fallback=True)
    assert fall_back(mapped, "a reason", sampling).remarks == ("averages differ",)


def test_an_image_that_nothing_fits_is_told_apart_from_a_fallback(shipped, monkeypatch):
    """Without the fallback a scan stops only where one would be taken."""
    spoiled = undersampled(ghosted(0.001, n_coils=8))
    found = dpmrecon.reconstruct(spoiled, model=shipped)
    assert not found.trusted and found.remarks[0].startswith("NOT TO BE TRUSTED: ")
    monkeypatch.setattr("dpmrecon.recon.gate.CHECKS", (lambda item: Verdict("distrust", "NOT TO BE TRUSTED: so"),))
    assert not dpmrecon.reconstruct(spoiled, model=shipped, fallback=False).trusted
    monkeypatch.setattr("dpmrecon.recon.gate.CHECKS", (lambda item: Verdict("fallback", "so it is"),))
    with pytest.raises(DpmreconError, match="so it is; the fallback is off"):
        dpmrecon.reconstruct(spoiled, model=shipped, fallback=False)
    assert len(CHECKS) == 6


@pytest.mark.parametrize("apart", [False, True], ids=["embedded", "separate"])
def test_a_spike_changes_neither_maps_nor_image(simulated_scan, shipped, tmp_path, apart):
    scan = simulated_scan(noise=0.01, calibration="separate" if apart else "embedded")
    with open_scan(with_spike(scan, tmp_path, calibration=apart)) as opened:
        (spoiled,) = slices(opened.acquisitions(), opened.header)
    with open_scan(scan) as opened:
        (sound,) = slices(opened.acquisitions(), opened.header)
    assert despiked(sound) is sound
    cleaned = despiked(spoiled)
    (remark,) = cleaned.remarks
    where = "the calibration" if apart else "k-space"
    assert remark.startswith(f"1 spike in {where} (coil 2") and "left out" in remark
    ours, theirs = (next(with_coil_maps([data], torch.device("cpu"))) for data in (spoiled, sound))
    assert (ours.model.coil_maps - theirs.model.coil_maps).norm() < 0.02 * theirs.model.coil_maps.norm()
    assert (ours.conventional - theirs.conventional).norm() < 0.01 * theirs.conventional.norm()
    assert ours.residual(ours.conventional) < 1.2


@pytest.fixture
def gives_up(monkeypatch):
    """Every image contradicts its data."""
    text = "NOT TO BE TRUSTED: the image misses the data by 4.0 times the noise"
    monkeypatch.setattr("dpmrecon.recon.gate.CHECKS", (lambda item: Verdict("distrust", text),))
    return text


def test_remarks_arrive_wherever_an_image_is_told_of(simulated_scan, model, tmp_path, gives_up, capsys):
    scan = simulated_scan(noise=0.01, noise_correlation=0.0)
    out = tmp_path / "out"
    assert replay(with_spike(scan, tmp_path), out, model, "--conventional") == 0
    (entry,) = report(out)["slices"]
    assert entry["trusted"] is False and entry["fallback"] is None
    assert entry["remarks"][0] == gives_up and entry["remarks"][1].startswith("1 spike in k-space (")
    screen = "".join(capsys.readouterr())
    for series in (1, 2, 3):
        (image,) = images(out, series)
        meta = image.meta
        assert list(meta["dpmrecon_remarks"]) == entry["remarks"] and meta["dpmrecon_trusted"] == "false"
        for remark in entry["remarks"]:
            assert remark in meta["ImageComments"] and remark in meta["GADGETRON_ImageComment"] and remark in screen
        assert meta["ImageComments"].startswith("RESEARCH: not for diagnostic use")
    files = sorted((out / "dicom").rglob("*.dcm"))
    assert len(files) == 3
    for path in files:
        file = pydicom.dcmread(path)
        for remark in entry["remarks"]:
            assert remark in file.ImageComments and remark in file.DerivationDescription
        assert len(file.DerivationDescription) <= 1024
