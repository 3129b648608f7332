"""Coil maps of volumes: the true ones, BART's, on coarse grids, and from calibrations of no use."""

import shutil
from functools import cache

import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.physics import volume_maps
from dpmrecon.physics.fourier import origin_to_centre, to_kspace
from dpmrecon.physics.volume_maps import estimate_volume_maps

from support.bart import bart_maps
from support.volumes import AXES, SHAPE, head, volume


def centred(maps: torch.Tensor) -> torch.Tensor:
    """(cols, n_coils, partitions, rows) as the model has it to (n_coils, partitions, rows, cols)."""
    return origin_to_centre(maps).permute(1, 2, 3, 0)


def lost(found: torch.Tensor, maps: torch.Tensor, image: torch.Tensor) -> float:
    """Share of the coil images' energy that found maps (n_coils, ...) cannot explain."""
    explained = (found.conj() * maps * image).sum(0).abs().square().sum()
    return 1 - float(explained / image.abs().square().sum())


@cache
def fine_maps() -> torch.Tensor:
    """As the model has them; no test changes them."""
    return estimate_volume_maps(volume().calibration, SHAPE)


def of_noisy_data() -> torch.Tensor:
    return centred(fine_maps())


def test_maps_of_noisy_data_explain_the_coil_images():
    image, maps = head()
    found = of_noisy_data()
    norm = torch.linalg.vector_norm(found, dim=0)
    assert found.shape == maps.shape
    assert torch.allclose(norm[norm > 0], torch.ones(1), atol=1e-4)
    assert norm[image.abs() > 0.3].min() > 0.99
    assert (norm[image.abs() < 0.01] == 0).float().mean() > 0.3
    assert lost(found, maps, image) < 0.003


def test_phase_is_smooth():
    image, maps = head()
    found = of_noisy_data()
    phase = (found.conj() * maps).sum(0)
    inside = image.abs() > 0.3
    for axis in range(3):
        size = SHAPE[axis] - 1
        step = (phase.narrow(axis, 0, size) * phase.narrow(axis, 1, size).conj()).angle().abs()
        both = inside.narrow(axis, 0, size) & inside.narrow(axis, 1, size)
        assert (step[both] < 0.5).float().mean() > 0.998  # all but some at the head's edge


@pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")
def test_bart_agrees(tmp_path):
    image, maps = head(n_coils=5)
    calibration = volume(sigma_n=0.001, n_coils=5).calibration
    full = to_kspace(maps * image, AXES)
    found = centred(estimate_volume_maps(calibration, SHAPE))
    theirs = bart_maps(tmp_path, full, "-m1", "-r16", "-k6", "-c0.9")
    both = (torch.linalg.vector_norm(found, dim=0) > 0) & (torch.linalg.vector_norm(theirs, dim=0) > 0)
    assert both[image.abs() > 0.3].float().mean() > 0.99
    agreement = (found.conj() * theirs).sum(0).abs()[both & (image.abs() > 0.3)]
    assert agreement.quantile(0.01) > 0.97 and agreement.mean() > 0.997
    assert lost(found, maps, image) < 1.2 * lost(theirs, maps, image) + 1e-4


def test_a_coarse_grid_changes_little(monkeypatch):
    calibration, fine = volume().calibration, fine_maps()
    monkeypatch.setattr(volume_maps, "POINTS", 30)  # rows and cols every second point
    coarse = estimate_volume_maps(calibration, SHAPE)
    both = (fine != 0).any(1) & (coarse != 0).any(1)
    agreement = (fine.conj() * coarse).sum(1).abs()
    assert both.sum() > 0.93 * (fine != 0).any(1).sum()
    assert agreement[both].mean() > 0.997 and agreement[both].quantile(0.01) > 0.96  # of points 12 mm apart
    image, maps = head()
    assert lost(centred(coarse), maps, image) < lost(centred(fine), maps, image) + 0.002


def test_interpolation_keeps_the_origin():
    for size, coarse in ((9, 5), (8, 4), (10, 5), (7, 4)):
        line = (torch.arange(coarse) - coarse // 2) * (size / coarse)  # the place of each point on the finer grid
        found = volume_maps._interpolated(line[:, None, None].expand(coarse, 2, 3).contiguous(), (size, 2, 3))[:, 0, 0]
        exact = torch.arange(size) - size // 2
        inside = (exact >= line[0]) & (exact <= line[-1])
        assert torch.allclose(found[inside], exact[inside].float(), atol=1e-5)


def test_order_of_coils_scale_and_chunks_change_nothing(monkeypatch):
    calibration, maps = volume().calibration, fine_maps()
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    monkeypatch.setattr(volume_maps, "CHUNK", 3 * SHAPE[1] * 36)
    permuted = estimate_volume_maps(3j * calibration[order], SHAPE)
    inside = (maps != 0).any(1) & (permuted != 0).any(1)
    assert ((permuted - maps[:, order]).abs().amax(1)[inside] < 1e-2).float().mean() > 0.999


def test_a_calibration_of_no_use_is_refused():
    calibration = volume().calibration
    for bad, told in (
        (calibration[:, :7], "7 partitions"),
        (calibration[:, :, :6], "6 lines"),
        (0 * calibration, "zero"),
        (calibration * float("nan"), "not finite"),
    ):
        with pytest.raises(BadInputError, match=told):
            estimate_volume_maps(bad, SHAPE)
