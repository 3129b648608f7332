"""A folded head from the scan to the image: both sets of maps reach sampler, spread, fallback, report and API."""

import json

import h5py
import numpy as np
import pytest
import torch
from dpmrecon.api import reconstruct_scan
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.options import Options
from dpmrecon.physics.soft_sense import SoftSense
from dpmrecon.recon.gate import Verdict
from dpmrecon.recon.plan import load, sampling_of
from dpmrecon.recon.prepare import with_coil_maps
from dpmrecon.recon.sample import draw
from dpmrecon.recon.stream import sampled
from dpmrecon.simulation.simulate import truth_path

from support.results import replay

NOISE = 0.0075
FOLDED = {
    "matrix": (96, 96),
    "fov_mm": (150.0, 230.0),
    "acceleration": 2,
    "wrap": True,
    "contrast": "t1",
    "noise": NOISE,
}


def mapped_slices(path):
    with open_scan(path) as scan:
        return list(with_coil_maps(slices(scan.acquisitions(), scan.header), torch.device("cpu")))


def nrmse(image, truth):
    image = image * (image * truth).sum() / np.square(image).sum()
    return float(np.linalg.norm(image - truth) / np.linalg.norm(truth))


def test_the_conventional_image_of_two_maps_fits_the_data_and_the_truth(simulated_scan):
    path = simulated_scan(**FOLDED)
    (mapped,) = mapped_slices(path)
    assert mapped.n_sets == 2 and isinstance(mapped.model, SoftSense)
    assert mapped.phase.shape == (96, 96)
    assert mapped.residual(mapped.conventional) < 1.3
    truth = np.load(truth_path(path))[0]
    combined = mapped.model.combined(mapped.conventional)
    assert nrmse(combined.abs().numpy(), truth) < 0.06
    assert mapped.scale == pytest.approx(mapped.data.sigma_n / NOISE, rel=0.05)


def test_dps_samples_both_images(simulated_scan, model):
    (mapped,) = mapped_slices(simulated_scan(**FOLDED))
    options = Options(model=model, device="cpu", sampler="dps", steps=3, samples=2)
    checkpoint, device = load(options)
    (draws,), _ = draw([mapped], checkpoint, None, sampling_of(options, checkpoint, device))
    assert draws.shape == (2, 2, 96, 96) and bool(torch.isfinite(torch.view_as_real(draws)).all())


def test_the_mean_spread_and_evaluations_of_two_images(simulated_scan, model):
    (mapped,) = mapped_slices(simulated_scan(**FOLDED))
    options = Options(model=model, device="cpu", steps=3, samples=4)
    checkpoint, device = load(options)
    seen = []
    (item,) = sampled(
        [mapped], checkpoint, None, sampling_of(options, checkpoint, device, keep_samples=True), seen.append
    )
    assert item.fallback is None
    assert item.image.shape == item.spread.shape == (96, 96) and item.draws.shape == (4, 96, 96)
    assert item.evaluations == sum(seen) == 12  # of the slice, whatever its number of maps
    assert not item.stopped
    assert float(item.spread.max()) > 0 and bool(torch.isfinite(item.spread).all())


def test_neighbours_with_one_and_two_sets_are_sampled_apart(simulated_scan, model):
    whole = mapped_slices(simulated_scan(**{**FOLDED, "fov_mm": (230.0, 230.0)}))
    folded = mapped_slices(simulated_scan(**FOLDED))
    options = Options(model=model, device="cpu", steps=2, samples=1)
    checkpoint, device = load(options)
    sampling = sampling_of(options, checkpoint, device)
    together = list(sampled([*whole, *folded, *whole], checkpoint, None, sampling))
    alone = [*sampled(whole, checkpoint, None, sampling), *sampled(folded, checkpoint, None, sampling)]
    assert [item.mapped.n_sets for item in together] == [1, 2, 1]
    for item, other in zip(together, alone):
        assert torch.equal(item.image, other.image)


def test_the_report_tells_the_sets_and_the_fallback_has_one_image(simulated_scan, model, tmp_path, monkeypatch):
    monkeypatch.setattr("dpmrecon.recon.gate.CHECKS", (lambda item: Verdict("fallback", "a test"),))
    assert replay(simulated_scan(**FOLDED), tmp_path, model, "--conventional", "--steps", "1") == 3
    (entry,) = json.loads((tmp_path / "report.json").read_text())["slices"]
    assert entry["maps"]["sets"] == 2 and entry["fallback"] == "a test"
    with h5py.File(tmp_path / "images.h5") as file:
        image, conventional = (file[f"dataset/image_{number}/data"][:].astype(float) for number in (1, 3))
    assert image.shape[-2:] == (96, 96)
    assert np.allclose(image, conventional, atol=0.002 * image.max())


def test_the_api_gives_one_image_with_its_phase(simulated_scan, model):
    (result,) = reconstruct_scan(simulated_scan(**FOLDED), model=model, steps=2, samples=2, device="cpu")
    assert result.image.shape == result.conventional.shape == result.std.shape == (96, 96)
    assert result.residual < 3
