"""From slices to images: what a sampler that fails, runs out of memory or misses the data gives."""

import math
import weakref
from dataclasses import replace

import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.options import Options
from dpmrecon.prior.denoiser import Denoiser
from dpmrecon.recon import sample
from dpmrecon.recon.plan import load, sampling_of
from dpmrecon.recon.prepare import with_coil_maps
from dpmrecon.recon.provenance import Provenance
from dpmrecon.recon.stream import sampled
from dpmrecon.recon.types import MappedSlice

from support.edited import edited
from support.results import images, replay, report

SCAN = {"matrix": (48, 64), "n_slices": 3, "acceleration": 2}


def test_a_failing_model_gives_labelled_cg_sense(simulated_scan, model, tmp_path, monkeypatch, capsys):
    def broken(self, x, sigma, label):
        raise RuntimeError("out of memory: tried to allocate 3 GiB")

    monkeypatch.setattr(Denoiser, "forward", broken)
    scan = simulated_scan(**SCAN)
    assert replay(scan, tmp_path, model) == 3
    assert all("out of memory" in entry["fallback"] for entry in report(tmp_path)["slices"])
    for image in images(tmp_path):
        assert "CG-SENSE FALLBACK" in image.meta["ImageComments"]
        assert "CG-SENSE FALLBACK" in image.meta["SeriesDescription"]
        assert image.data.max() > 0
    assert "CG-SENSE FALLBACK" in capsys.readouterr().out
    assert replay(scan, tmp_path, model, "--fallback", "off") == 2
    assert "fallback is off" in capsys.readouterr().err


def test_a_batch_that_fails_is_tried_slice_by_slice_without_its_memory(
    simulated_scan, model, tmp_path, monkeypatch, caplog
):
    forward = Denoiser.forward
    failed = []

    def picky(self, x, sigma, label):
        if len(x) > 2:
            failed.append(weakref.ref(x))
            raise RuntimeError("out of memory")
        assert failed[0]() is None
        return forward(self, x, sigma, label)

    monkeypatch.setattr(Denoiser, "forward", picky)
    assert replay(simulated_scan(**SCAN), tmp_path, model, "--batch", "6") == 0
    assert "6 images at once: the sampler failed (out of memory): fewer are tried" in caplog.text


def test_samples_that_do_not_fit_are_drawn_one_by_one(simulated_scan, model, tmp_path, monkeypatch, caplog):
    forward = Denoiser.forward

    def small(self, x, sigma, label):
        if len(x) > 1:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")
        return forward(self, x, sigma, label)

    scan = simulated_scan(**SCAN)
    assert replay(scan, tmp_path / "whole", model, "--samples", "3") == 0
    monkeypatch.setattr(Denoiser, "forward", small)
    assert replay(scan, tmp_path / "single", model, "--samples", "3") == 0
    assert "3 images at once: the sampler failed (tried to allocate 3 GiB): fewer are tried" in caplog.text
    for whole, single in zip(images(tmp_path / "whole"), images(tmp_path / "single")):
        np.testing.assert_allclose(single.data, whole.data, rtol=1e-3, atol=1e-3 * whole.data.max())


def test_a_mean_that_does_not_fit_is_tried_slice_by_slice(simulated_scan, model, tmp_path, monkeypatch, caplog):
    mean, calls = sample._mean, []

    def picky(*args):
        calls.append(args)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")
        return mean(*args)

    scan = simulated_scan(**SCAN)
    assert replay(scan, tmp_path / "whole", model) == 0
    monkeypatch.setattr(sample, "_mean", picky)
    assert replay(scan, tmp_path / "single", model) == 0
    assert "the sampler failed (tried to allocate 3 GiB): fewer are tried" in caplog.text
    for whole, single in zip(images(tmp_path / "whole"), images(tmp_path / "single")):
        np.testing.assert_allclose(single.data, whole.data, rtol=1e-3, atol=1e-3 * whole.data.max())


def test_a_device_that_makes_no_image_at_all_ends_the_scan_with_1(simulated_scan, model, tmp_path, monkeypatch, capsys):
    def broken(*args):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(Denoiser, "forward", broken)
    monkeypatch.setattr(MappedSlice, "misfit", broken)
    assert replay(simulated_scan(**SCAN), tmp_path, model) == 1
    told = capsys.readouterr().err
    assert "the device failed at its CG-SENSE image too (CUDA error: unspecified launch failure)" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(("value", "words"), [(float("nan"), "not finite"), (0.0, "misses the data")])
def test_an_image_that_is_wrong_falls_back(simulated_scan, model, tmp_path, monkeypatch, value, words):
    monkeypatch.setattr(Denoiser, "forward", lambda self, x, sigma, label: x * value)
    monkeypatch.setattr("dpmrecon.physics.forward.ForwardModel.prox", lambda self, adjoint, start, *settings: start)
    from dpmrecon.physics import cg_sense as conventional

    monkeypatch.setattr(conventional, "cg_sense", lambda model, zero_filled, *settings, **options: zero_filled)
    assert replay(simulated_scan(**SCAN, noise=0.001), tmp_path, model) == 3
    assert words in report(tmp_path)["slices"][0]["fallback"]


@pytest.mark.parametrize(("fall", "used"), [(0.0, True), (0.3, False)])
def test_separate_calibration_is_data_where_it_agrees(simulated_scan, tmp_path, fall, used):
    """Lines of the same contrast fill the centre of k-space, as embedded ones do; of another, here with less at its
    edge, they make maps alone."""

    def weigh(number, line):
        if line.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION):
            line.data[:] *= math.exp(-fall * abs(line.idx.kspace_encode_step_1 - 24))
        return line

    options = {**SCAN, "acceleration": 4, "n_slices": 1}
    scans = [edited(simulated_scan(**options, calibration="separate"), tmp_path, weigh), simulated_scan(**options)]
    masks = []
    for path in scans:
        with open_scan(path) as scan:
            (mapped,) = with_coil_maps(slices(scan.acquisitions(), scan.header), torch.device("cpu"))
        assert torch.equal(mapped.data.kspace.abs().sum((0, 2)) > 0, mapped.data.mask[:, 0] > 0)
        assert mapped.data.n_lines_got == int(mapped.data.mask[:, 0].sum())
        masks.append(mapped.data.mask)
    assert torch.equal(*masks) == used
    assert (int(masks[0][:, 0].sum()) > 48 // 4) == used


def test_the_scale_is_the_same_on_full_and_undersampled_data(simulated_scan):
    scales = []
    for acceleration in (1, 4):
        with open_scan(simulated_scan(matrix=(96, 80), n_coils=8, acceleration=acceleration, noise=0.03)) as scan:
            (mapped,) = with_coil_maps(slices(scan.acquisitions(), scan.header), torch.device("cpu"))
        scales.append(mapped.scale)
    assert scales[1] == pytest.approx(scales[0], rel=0.05)


def test_units_of_another_host_change_an_image_by_rounding_alone_in_float32(simulated_scan, monkeypatch):
    """Whitened k-space of a Gadgetron is louder: bfloat16 makes 1e-4 of the rounding, float32 does not."""
    monkeypatch.setattr("dpmrecon.prior.checkpoint.has_bfloat16", lambda device: True)
    with open_scan(simulated_scan(**{**SCAN, "n_slices": 1})) as opened:
        (own,) = slices(opened.acquisitions(), opened.header)
    louder = replace(own, kspace=1.26 * own.kspace, calibration=1.26 * own.calibration, sigma_n=1.26 * own.sigma_n)
    apart = []
    for precision in ("auto", "float32"):
        options = Options(device="cpu", contrast="flair", steps=3, precision=precision)
        checkpoint, device = load(options)
        sampling = sampling_of(options, checkpoint, device, "flair", own.acceleration)
        one, other = (
            item.image.abs() for item in sampled(with_coil_maps([own, louder], device), checkpoint, "flair", sampling)
        )
        apart.append(float((one - other / 1.26).norm() / one.norm()))
        decided = Provenance.of(checkpoint, "flair", sampling).deciding()
        assert decided.get("precision") == (None if precision == "auto" else precision)
    lower, exact = apart
    assert exact < 1e-5 < lower
