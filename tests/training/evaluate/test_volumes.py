"""What volumes are judged by."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint
from dpmrecon.simulation.settings import VolumeSettings
from dpmtrain.evaluate import methods, volume_spread
from dpmtrain.evaluate.metrics import high_band_energy
from dpmtrain.evaluate.validation_volumes import phantom_volume
from dpmtrain.evaluate.volumes import Case, partitions_as_rows

from support.models import random_denoiser


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_high_band_counts_waves_of_the_upper_third_along_its_axis(axis):
    n = 12

    def wave(cycles):
        shape = [1, 1, 1]
        shape[axis] = n
        return np.broadcast_to(np.cos(2 * np.pi * cycles * np.arange(n) / n).reshape(shape), (n, n, n))

    head = np.zeros((n, n, n), bool)
    head[2:9, 1:, 3:10] = True
    truth = wave(5) + wave(2)  # k_max is 6: beyond 4 lies the first alone
    assert high_band_energy(0.5 * wave(5) + 3 * wave(3), truth, head, axis) == pytest.approx(0.25)
    for other in {0, 1, 2} - {axis}:  # along which the volume is constant
        assert high_band_energy(truth + wave(5), truth + 0, head, axis) == pytest.approx(4)
        assert np.abs(np.diff(truth, axis=other)).max() == 0


def test_partitions_take_the_place_of_rows_in_all_that_a_volume_has():
    given = phantom_volume(
        VolumeSettings(matrix=(30, 26), partitions=19, calibration_lines=10, n_coils=3, fov_mm=(240.0, 208.0))
    )
    turned = partitions_as_rows(given)
    assert turned.truth.shape == turned.data.mask.shape == turned.data.kspace.shape[1:] == (30, 19, 26)
    assert turned.data.voxel_mm[:2] == given.data.voxel_mm[1::-1] and given.data.voxel_mm[0] != given.data.voxel_mm[1]
    back = partitions_as_rows(turned)
    assert np.array_equal(back.truth, given.truth) and torch.equal(back.data.calibration, given.data.calibration)
    assert torch.equal(back.data.kspace, given.data.kspace) and torch.equal(back.data.mask, given.data.mask)


def test_the_spread_of_a_volume_is_over_the_error_of_its_image_in_the_head(tmp_path, monkeypatch):
    """Known of both; outside of the head neither counts."""
    case = Case(phantom_volume(VolumeSettings(matrix=(30, 26), partitions=19, calibration_lines=10, n_coils=3)))
    head = torch.from_numpy(case.truth > volume_spread.HEAD)
    asked = []

    def made(mapped, checkpoint, contrast, sampling):
        asked.append((sampling.mode, sampling.samples, sampling.settings.eta, sampling.settings.steps))
        image = torch.from_numpy(case.truth) + torch.where(head, 0.1, 5.0)
        return SimpleNamespace(image=image.to(torch.complex64), spread=torch.where(head, 0.2, 9.0))

    monkeypatch.setattr(methods, "reconstructed", made)
    mode = {"samples": 5, "steps": 9, "eta": 0.0}
    save_checkpoint(tmp_path / "m.safetensors", random_denoiser(), {"sampling": {"uncertainty": mode}})
    checkpoint = load_checkpoint(tmp_path / "m.safetensors")
    ratio, spread, error, _ = volume_spread.spread(case, checkpoint, 4, {"eta": 0.25})
    assert (ratio, float(spread) / float(error)) == ("4.00", pytest.approx(2, rel=1e-3))
    assert asked == [("uncertainty", 4, 0.25, 9)]
