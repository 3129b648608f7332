"""Whitening and the noise level, from a noise scan and without one."""

import math

import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.noise_lines import NoiseLines
from dpmrecon.physics.covariance import quiet_covariance
from dpmrecon.physics.fourier import to_image, to_kspace
from dpmrecon.physics.noise import estimated_sigma, estimated_volume_sigma, whitening

from support.hand_made import MIXING, OVERSAMPLED, header, line, noise_lines, noisy, only


@pytest.mark.parametrize("dwells", [(5.0, math.inf), (5.0, math.nan), (math.inf, 5.0), (0.0, 5.0)])
def test_a_dwell_time_that_is_none_scales_nothing(dwells):
    of_noise, of_image = dwells
    measured = NoiseLines()
    for noise in noise_lines(np.random.default_rng(0), dwell=of_noise):
        measured.add(noise)
    matrix, level = measured.whitener((0, 1, 2), of_image, 52, 26)
    expected, same = measured.whitener((0, 1, 2), of_noise, 52, 52)
    torch.testing.assert_close(matrix, expected)
    assert level == pytest.approx(math.sqrt(0.5), rel=0.05) and same == pytest.approx(math.sqrt(0.5), rel=0.01)


@pytest.mark.parametrize("dwell", [5.0, 20.0])
def test_whitening_and_measured_noise_level(dwell):
    # image lines are pure noise; noise lines with n times the dwell time have 1/n of the variance
    rng = np.random.default_rng(0)
    lines = noise_lines(rng, scale=math.sqrt(5.0 / dwell), dwell=dwell)
    lines += [line(n, noisy(rng, 52, MIXING)) for n in range(33)]
    result = only(slices(lines, header(**OVERSAMPLED)))
    assert result.noise_source == "noise scan"
    flat = result.kspace.flatten(1)
    covariance = flat @ flat.conj().T / flat.shape[1]
    torch.testing.assert_close(covariance, torch.eye(3, dtype=torch.complex64), rtol=0, atol=0.12)
    measured = torch.view_as_real(flat).square().mean().sqrt()
    assert result.sigma_n == pytest.approx(float(measured), rel=0.04)
    assert result.sigma_n == pytest.approx(math.sqrt(0.5), rel=0.03)


def test_noise_level_follows_the_receiver_filter():
    # the receiver passes the kept half of the band only: all noise power lies in the columns that stay
    rng = np.random.default_rng(1)

    def filtered():
        narrow = torch.from_numpy(noisy(rng, 52, MIXING).astype(np.complex64))
        image = to_image(narrow, axes=(-1,))
        image[:, :13] = 0
        image[:, 39:] = 0
        return to_kspace(image, axes=(-1,)).numpy()

    lines = [line(0, filtered(), (ismrmrd.ACQ_IS_NOISE_MEASUREMENT,)) for _ in range(64)]
    lines += [line(n, filtered()) for n in range(33)]
    result = only(slices(lines, header(**OVERSAMPLED)))
    assert result.sigma_n == pytest.approx(1.0, rel=0.03)  # not sqrt(1/2)
    measured = torch.view_as_real(result.kspace).square().mean().sqrt()
    assert result.sigma_n == pytest.approx(float(measured), rel=0.04)


def smooth_object(rows, cols):
    """An ellipse (rows, cols) that leaves columns beside it empty, in 4 coils: complex64."""
    y, x = np.mgrid[:rows, :cols]
    y, x = (y - rows // 2) / rows, (x - cols // 2) / cols
    image = ((y / 0.42) ** 2 + (x / 0.38) ** 2 < 1) * (1 + 0.5 * np.sin(9 * x + 4 * y) + 0.3 * (y > 0.1))
    coils = [np.exp(-3 * ((y - a) ** 2 + (x - b) ** 2) + 2j * a * x) for a in (-0.4, 0.4) for b in (-0.4, 0.4)]
    return torch.from_numpy((image * np.stack(coils)).astype(np.complex64))


@pytest.mark.parametrize("level", [0.005, 0.03])
@pytest.mark.parametrize("pattern", ["full", "r4", "asymmetric", "partial Fourier"])
def test_noise_level_estimated_without_a_noise_scan(level, pattern):
    kspace = to_kspace(smooth_object(121, 96))
    kspace += level * torch.view_as_complex(torch.randn(*kspace.shape, 2, generator=torch.Generator().manual_seed(3)))
    mask = torch.ones(121, 96)
    if pattern == "r4":
        mask = torch.zeros(121, 96)
        mask[1::4] = 1
        mask[48:72] = 1
    elif pattern == "asymmetric":
        mask[:, :20] = 0
    elif pattern == "partial Fourier":
        mask[:30] = 0
    assert estimated_sigma(kspace * mask, mask) == pytest.approx(level, rel=0.12)


@pytest.mark.parametrize("pattern", ["full", "2 x 2", "elliptical", "asymmetric"])
def test_noise_level_of_a_volume_estimated_without_a_noise_scan(pattern):
    level, profile = 0.02, torch.hann_window(41)[:, None, None]  # of the object along the partitions
    kspace = to_kspace(smooth_object(48, 40)[:, None] * profile, axes=(-3, -2, -1))
    kspace += level * torch.view_as_complex(torch.randn(*kspace.shape, 2, generator=torch.Generator().manual_seed(4)))
    mask = torch.ones(41, 48, 40)
    if pattern == "2 x 2":
        mask[1::2], mask[:, ::2] = 0, 0
        mask[14:26, 18:30] = 1
    elif pattern == "elliptical":
        down, along = torch.arange(41) - 20, torch.arange(48) - 24
        mask *= ((down[:, None] / 20.5) ** 2 + (along / 24) ** 2 <= 1)[..., None]
    elif pattern == "asymmetric":
        mask[..., :9] = 0
    assert estimated_volume_sigma(kspace * mask, mask) == pytest.approx(level, rel=0.1)
    kspace = torch.full_like(kspace, 1e-9)
    kspace[:, 20, 24] = 1
    rms = float((kspace * mask).abs().square().sum().div(4 * mask.sum()).sqrt())
    assert estimated_volume_sigma(kspace * mask, mask) == pytest.approx(1e-4 * rms)


def test_noise_level_has_a_floor():
    kspace, mask = to_kspace(smooth_object(60, 48)), torch.ones(60, 48)
    # three orders of magnitude under the corners' true content there is nothing left to estimate
    kspace[:, :20] = kspace[:, 40:] = 1e-9
    rms = float(kspace.abs().square().mean().sqrt())
    assert estimated_sigma(kspace, mask) == pytest.approx(1e-4 * rms)


def test_weak_channels_are_not_singular():
    rng = np.random.default_rng(0)
    noise = noisy(rng, 400, np.diag([1.0, 1e-5, 1.0]))
    matrix = whitening([noise.astype(np.complex64)], 1.0)
    assert float(matrix[1, 1].abs()) == pytest.approx(1e5 / math.sqrt(2), rel=0.1)


def readouts(width, level, n_lines=41, n_samples=90):
    """(n_lines, n_coils, n_samples), the outermost first, and their noise's covariance: an object of `width` of the
    readout, which three channels see, and noise that they share in part."""
    rng = np.random.default_rng(3)
    mixing = np.array([[1, 0.4j, 0], [0.3, 1.5, 0], [0.2, 0.5, 0.7]])
    along = np.abs(np.arange(n_samples) - n_samples // 2) < width * n_samples / 2
    image = along * np.hanning(n_lines)[:, None] * np.exp(1j * rng.normal(size=(n_lines, n_samples)))
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image), norm="ortho"))
    seen = kspace[:, None] * np.array([1, 2j, 0.5])[:, None]
    noise = np.stack([noisy(rng, n_samples, mixing) for _ in range(n_lines)])
    outward = np.argsort(-np.abs(np.arange(n_lines) - n_lines // 2))
    return (seen + level * noise)[outward].astype(np.complex64), level**2 * 2 * mixing @ mixing.conj().T


def test_the_channels_noise_is_told_beside_the_head():
    lines, wanted = readouts(0.5, 0.1)
    found = quiet_covariance(lines)
    # the window and the transform scale all alike
    apart = found / np.trace(found) - wanted / np.trace(wanted)
    assert np.abs(apart).max() < 0.05


def test_a_spike_in_a_line_is_none_of_the_channels_noise():
    lines, wanted = readouts(0.5, 0.1)
    lines[7, 1, 30] += 100
    found = quiet_covariance(lines)
    assert np.abs(found / np.trace(found) - wanted / np.trace(wanted)).max() < 0.06


@pytest.mark.parametrize(
    ("width", "level", "n_lines"), [(1.0, 0.1, 41), (0.5, 0.0, 41), (0.5, 0.1, 9)], ids=["wide", "noiseless", "few"]
)
def test_a_head_everywhere_no_noise_or_few_lines_tell_no_covariance(width, level, n_lines):
    assert quiet_covariance(readouts(width, level, n_lines)[0]) is None


def test_many_channels_need_few_samples_and_columns_that_a_filter_emptied_tell_nothing():
    rng, n_coils = np.random.default_rng(4), 24
    mixing = np.eye(n_coils) + 0.3 * np.eye(n_coils, k=1)
    along = np.stack([noisy(rng, 64, mixing) for _ in range(77)])  # (n_lines, n_coils, n_samples)
    along += 200 * np.linspace(0, 1, 77)[:, None, None] ** 4 * np.exp(-((np.arange(64) - 31.5) ** 2) / 30)
    filtered = along * (np.abs(np.arange(64) - 31.5) < 28)
    wanted = mixing @ mixing.T
    for part in (along, filtered):
        kspace = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(part, -1), norm="ortho"), -1)
        found = quiet_covariance(kspace.astype(np.complex64))
        assert found is not None
        scaled = found * (np.trace(wanted) / np.trace(found))
        whitener = np.linalg.inv(np.linalg.cholesky(scaled))
        left = whitener @ wanted @ whitener.conj().T
        assert np.abs(left - np.eye(n_coils)).max() < 0.5
