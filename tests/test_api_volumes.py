"""The front door for Python takes volumes as it takes slices."""

from dataclasses import replace

import dpmrecon
import numpy as np
import pytest
import torch
from dpmrecon.arrays import slice_of_arrays
from dpmrecon.data import Volume
from dpmrecon.errors import BadInputError, DpmreconError
from dpmrecon.physics.fourier import to_image, to_kspace
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.slices import simulated_kspace

from support.volumes import AXES, SHAPE, VOXEL_MM, head, volume

pytestmark = pytest.mark.usefixtures("short_kernel")


@pytest.fixture(scope="module")
def loaded(model):
    return dpmrecon.load_model(model, "cpu")


def error(image):
    truth = head()[0].abs().numpy()
    return np.linalg.norm(np.abs(image) - truth) / np.linalg.norm(truth)


def test_a_volume_in_and_a_volume_out(loaded):
    data = volume()
    kspace = data.kspace.numpy().copy()
    kept = kspace.copy()
    found = dpmrecon.reconstruct(
        kspace, model=loaded, contrast="t1", noise_std=0.01, samples=2, keep_samples=True, voxel_mm=VOXEL_MM
    )
    assert np.array_equal(kspace, kept)  # the caller's own
    assert found.image.shape == found.std.shape == found.conventional.shape == SHAPE
    assert found.samples.shape == (2, *SHAPE) and found.fallback is None and 0.7 < found.residual < 1.2
    assert error(found.conventional) < 0.05
    lines = data.mask[..., 0].numpy()
    again = dpmrecon.reconstruct(kspace, mask=lines, model=loaded, contrast="t1", noise_std=0.01, samples=2)
    np.testing.assert_allclose(again.image, found.image, atol=1e-5)


def test_maps_and_calibration_may_be_given(loaded):
    data = volume()
    given = dpmrecon.reconstruct(data.kspace, head()[1] * (head()[0].abs() > 0.02), model=loaded, noise_std=0.01)
    assert error(given.conventional.numpy()) < 0.06
    # the phase is that of the maps' coil combination: the object's own
    inside = head()[0].abs() > 0.5
    turn = (given.conventional * head()[0].conj())[inside].angle().abs()
    assert turn.mean() < 0.1
    apart = dpmrecon.reconstruct(data.kspace, calibration=data.calibration, model=loaded, noise_std=0.01)
    assert error(apart.conventional.numpy()) < 0.05


def test_a_calibration_of_fewer_columns_makes_the_same_maps(loaded):
    """Which are of the middle 24 samples at most, and its lines are no lines of the image."""
    data = volume()
    found, same = (
        dpmrecon.reconstruct(data.kspace, calibration=calibration, model=loaded, noise_std=0.01)
        for calibration in (data.calibration[..., 9:33], data.calibration)
    )
    np.testing.assert_array_equal(found.conventional, same.conventional)


def test_rounding_of_a_volume_is_not_acquired():
    data = volume(first_col=9)
    again = to_kspace(to_image(data.kspace, AXES), AXES)
    assert (again != 0).any(0).float().mean() > 0.99
    found, given = slice_of_arrays(again, None, None, None), slice_of_arrays(again, np.ones(SHAPE), None, None)
    assert torch.equal(found.mask, data.mask) and "nothing but rounding" in found.remarks[0]
    assert torch.equal(given.mask, data.mask) and "that the mask marks" in given.remarks[0]
    assert not slice_of_arrays(data.kspace, data.mask, None, None).remarks


def test_slices_are_no_volume(loaded):
    """Of shape (slices, coils, rows, cols), as fastMRI stores them, or (coils, slices, rows, cols)."""
    settings = SimulationSettings(matrix=(48, 64), n_coils=8, calibration_lines=16, acceleration=2)
    slices = np.stack([simulated_kspace(replace(settings, subject=subject))[0] for subject in range(8)])
    for kspace in (slices, slices.swapaxes(0, 1)):
        with pytest.raises(BadInputError, match="has no peak at the middle of its second axis") as caught:
            dpmrecon.reconstruct(kspace, model=loaded)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("sigma_n", "partitions"), [(1.0, 28), (0.5, 9), (0.0, 8)])
def test_a_noisy_or_thin_volume_is_one(sigma_n, partitions):
    image, maps = head()
    first = (SHAPE[0] - partitions) // 2
    part = (maps * image)[:, first : first + partitions]
    noise = sigma_n * torch.randn(part.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    data = slice_of_arrays(to_kspace(part, AXES) + 2**0.5 * noise, None, None, None)
    assert isinstance(data, Volume)


def test_what_a_volume_cannot_be_is_said(loaded):
    data = volume()
    uneven = data.mask.clone()
    uneven[12, 12, 5] = 0
    sparse = data.kspace * (data.mask[..., :1] * 0)
    for kwargs, told in (
        ({"mask": uneven}, "other columns"),
        ({"mask": data.mask[0]}, "mask has shape"),
        *(
            ({"voxel_mm": voxel}, "voxel_mm is .*: three lengths")
            for voxel in ((1, 0, 1), 5, "123", (1, None, 1), (1,))
        ),
        ({"calibration": data.calibration[:, 0]}, "calibration has shape"),
        ({"calibration": data.kspace[:, 4:20, 9:24]}, "of the calibration's 240 lines are zero"),
        ({"calibration": data.calibration.repeat(1, 2, 1, 1)}, "calibration is 32 x 15 x 42 and the k-space 28 x 33"),
        ({"maps": head()[1][:, 0]}, "coil maps"),
    ):
        with pytest.raises(BadInputError, match=told):
            dpmrecon.reconstruct(data.kspace, model=loaded, **kwargs)
    with pytest.raises(BadInputError, match="zero"):
        dpmrecon.reconstruct(sparse, model=loaded)
    without = data.kspace.clone()
    without[:, 14] = 0
    with pytest.raises(DpmreconError, match="no fully sampled centre"):
        dpmrecon.reconstruct(without, model=loaded)
