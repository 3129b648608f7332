"""The shared scans, slice by slice, against their truth."""

import functools

import numpy as np
import pytest
import torch
from dpmrecon.data import Slice
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.flags import NOISE
from dpmrecon.mrd.header import contrast_label
from dpmrecon.physics.fourier import to_image, to_kspace
from dpmrecon.physics.noise import estimated_sigma

from support.paths import shared


@functools.lru_cache(maxsize=2)
def shared_slices(name, first=0):
    with open_scan(shared(f"ismrmrd/{name}")) as scan:
        scan.groups = scan.groups[first:]
        return scan.header, list(slices(scan.acquisitions(), scan.header))


def test_shared_t1_without_noise_scan():
    head, (item,) = shared_slices("t1_brain_r4.h5")
    assert contrast_label(head) == "t1"
    assert item.kspace.shape == (8, 180, 230) and item.n_lines_got == 63 and item.mask[:, 0].sum() == 63
    assert item.noise_source == "k-space periphery" and item.calibration.shape[1] >= 24
    truth = torch.from_numpy(np.load(shared("ismrmrd/t1_brain_truth_coil_images.npy")))[0]
    torch.testing.assert_close(item.kspace, to_kspace(truth) * item.mask, rtol=1e-3, atol=1.0)


def test_shared_flair_patterns_and_noise():
    head, embedded = shared_slices("flair_3slices_r4.h5")
    _, separate = shared_slices("flair_3slices_r4_separate_acs.h5")
    assert contrast_label(head) == "flair"
    assert [item.key.slice for item in embedded] == [item.key.slice for item in separate] == [0, 1, 2]
    for one, other in zip(embedded, separate):
        rows, pattern = one.mask[:, 0], other.mask[:, 0]
        assert rows.sum() == 82 and pattern.sum() == 64 and one.n_lines_needed == other.n_lines_needed == 64
        assert bool((pattern <= rows).all()) and rows[116:140].sum() == 24
        assert other.calibration.shape == (8, 24, 256)
        center = one.calibration.shape[1] // 2
        torch.testing.assert_close(one.calibration[:, center], one.kspace[:, 128])
        # the same signal at the k-space centre, with other noise
        assert (other.calibration[:, 12] - one.kspace[:, 128]).norm() < 0.1 * one.kspace[:, 128].norm()
        assert one.noise_source == "noise scan"
        assert estimated_sigma(one.kspace, one.mask) == pytest.approx(one.sigma_n, rel=0.1)


def test_shared_flair_noise_level_without_its_noise_scan():
    _, (_, _, whitened) = shared_slices("flair_3slices_r4.h5")
    with open_scan(shared("ismrmrd/flair_3slices_r4.h5")) as scan:
        scan.groups = scan.groups[2:]
        lines = list(scan.acquisitions())
    noise = torch.from_numpy(np.stack([a.data for a in lines if a.flags & NOISE]))
    item, *missing = slices((a for a in lines if not a.flags & NOISE), scan.header)
    assert [lost.key.slice for lost in missing] == [0, 1]  # whose lines were taken away
    assert item.noise_source == "k-space periphery"
    assert item.sigma_n == pytest.approx(float(torch.view_as_real(noise).square().mean().sqrt()), rel=0.1)
    assert not torch.allclose(item.kspace, whitened.kspace)


def test_shared_full_scan_gives_the_truth_upright():
    _, items = shared_slices("flair_3slices_full.h5", first=1)
    items = [item for item in items if isinstance(item, Slice)]
    truth = torch.from_numpy(np.load(shared("ismrmrd/flair_3slices_truth.npy")))[1:]
    # sum |s|^2 = 1 on the head makes the root sum of squares the SENSE magnitude, up to noise
    images = torch.stack([(to_image(item.kspace).abs().square().sum(0)).sqrt() for item in items])
    noise = 2 * items[0].kspace.shape[0] * items[0].sigma_n ** 2
    images = (images.square() - noise).clamp_min(0).sqrt()

    def error(image):
        factor = (image * truth).sum() / image.square().sum()
        return float((factor * image - truth).norm() / truth.norm())

    flipped = [images.flip(-1), images.flip(-2), images.flip(-1, -2), images.flip(0)]
    assert error(images) < 0.08
    assert all(error(image) > 3 * error(images) for image in flipped)
    assert all(error(images.roll(1, axis)) > 1.5 * error(images) for axis in (-1, -2))
