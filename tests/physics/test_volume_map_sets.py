"""When a volume gets a second set of maps, and what two sets hold of a head that folds."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from dpmrecon.physics import volume_maps
from dpmrecon.physics.fourier import origin_to_centre, to_image
from dpmrecon.physics.volume_maps import estimate_volume_maps
from dpmrecon.simulation.settings import VolumeSettings
from dpmrecon.simulation.volumes import simulated_volume

AXES = (-3, -2, -1)
SETTINGS = VolumeSettings(
    matrix=(36, 41),
    fov_mm=(140.0, 230.0),
    partitions=31,
    slice_thickness_mm=6.0,
    acceleration=1,
    partition_acceleration=1,
    calibration="none",
    n_coils=5,
    contrast="t1",
    noise=0.003,
    wrap=True,
)
FITTING = replace(SETTINGS, fov_mm=(225.0, 230.0))


@cache
def kspace_of(settings: VolumeSettings) -> torch.Tensor:
    """(n_coils, partitions, rows, cols), fully sampled."""
    return torch.from_numpy(simulated_volume(settings)[0])


@pytest.fixture(scope="module", autouse=True)
def one_operator_of_a_calibration():
    """Tests that ask for maps of one calibration in two ways share its operator, which takes most of their time."""
    make, made = volume_maps.volume_operator, {}

    def operator(calibration: torch.Tensor) -> torch.Tensor:
        key = calibration.shape, calibration.numpy().tobytes()
        if key not in made:
            made[key] = make(calibration)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volume_maps, "volume_operator", operator)
        yield


def maps_of(kspace: torch.Tensor, **options: float) -> torch.Tensor:
    """(n_sets, n_coils, partitions, rows, cols) of a block of 18 x 16 lines."""
    partitions, rows = kspace.shape[1:3]
    block = kspace[:, partitions // 2 - 9 : partitions // 2 + 9, rows // 2 - 8 : rows // 2 + 8]
    found = estimate_volume_maps(block, tuple(kspace.shape[1:]), **options)
    found = found if found.ndim == 5 else found[:, None]
    return origin_to_centre(found).permute(1, 2, 3, 4, 0)


@cache
def sets_of(settings: VolumeSettings) -> torch.Tensor:
    return maps_of(kspace_of(settings))


def one_set(kspace: torch.Tensor) -> torch.Tensor:
    return maps_of(kspace, fold=1.0)


def lost(sets: torch.Tensor, kspace: torch.Tensor) -> float:
    """Share of the coil images' energy, where there are maps, that these cannot explain."""
    images = to_image(kspace, AXES) * (sets[0] != 0).any(0)
    explained = (sets.conj() * images).sum(1).abs().square().sum()
    return 1 - float(explained / images.abs().square().sum())


@pytest.mark.parametrize("rows_mm, part", [(177.0, 0.5), (205.0, 0.9)])
def test_a_few_percent_too_much_ask_for_a_second_set(rows_mm, part):
    settings = replace(SETTINGS, fov_mm=(rows_mm, 230.0))
    kspace, sets = kspace_of(settings), sets_of(settings)
    assert len(sets) == 2
    assert lost(sets, kspace) < part * lost(one_set(kspace), kspace)


def test_a_head_that_is_cut_off_by_the_slab_has_one_set():
    slab = replace(FITTING, n_coils=8, partitions=24, slice_thickness_mm=3.0, wrap=False)
    assert len(sets_of(slab)) == 1


def test_a_head_that_folds_has_two_orthonormal_sets():
    kspace, sets = kspace_of(SETTINGS), sets_of(SETTINGS)
    assert len(sets) == 2
    one, other = (torch.linalg.vector_norm(maps, dim=0) for maps in sets)
    for norm in (one, other):
        assert torch.allclose(norm[norm > 0], torch.ones(1), atol=1e-4)
    assert (sets[0].conj() * sets[1]).sum(0).abs().max() < 1e-4
    assert not (other[one == 0] > 0).any()
    edges, middle = ((part > 0).float().mean() for part in (other[:, [0, -1]], other[:, 12:-12]))
    assert edges > 0.15 and middle < edges / 5
    assert lost(sets, kspace) < 0.3 * lost(sets[:1], kspace)


def test_the_first_set_goes_on_from_inside_the_head():
    """Neighbouring maps are alike across the border of the region with two."""
    sets = sets_of(SETTINGS)
    two = (sets[1] != 0).any(0)
    one = (sets[0] != 0).any(0)
    alike = (sets[0][:, :, 1:].conj() * sets[0][:, :, :-1]).sum(0).abs()
    border = (two[:, 1:] ^ two[:, :-1]) & one[:, 1:] & one[:, :-1]
    assert border.sum() > 50
    assert alike[border].quantile(0.1) > 0.85


def test_partitions_fold_as_rows_do():
    kspace = kspace_of(SETTINGS)
    turned = maps_of(kspace.transpose(1, 2).contiguous())
    assert len(turned) == 2
    assert lost(turned, kspace.transpose(1, 2)) < 1.5 * lost(sets_of(SETTINGS), kspace)


@pytest.mark.parametrize("changes", [{}, {"noise": 0.05}, {"fov_mm": (240.0, 230.0)}, {"n_coils": 3}])
def test_a_head_that_fits_has_one(changes):
    assert len(maps_of(kspace_of(replace(FITTING, **changes)))) == 1


@pytest.mark.parametrize("changes", [{"subject": 3}, {"contrast": "flair", "n_coils": 10}])
def test_other_heads_fold_too(changes):
    assert len(maps_of(kspace_of(replace(SETTINGS, **changes)))) == 2


def test_a_coarse_grid_has_them_as_well(monkeypatch):
    kspace = kspace_of(SETTINGS)
    monkeypatch.setattr(volume_maps, "POINTS", 30)
    sets = maps_of(kspace)
    assert len(sets) == 2
    assert (sets[0].conj() * sets[1]).sum(0).abs().max() < 1e-4
    assert lost(sets, kspace) < 0.5 * lost(sets[:1], kspace)


def end_errors(kspace: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """Squared difference of one set's image to the truth in the first row and the last, over the truth's energy in
    all."""
    images = to_image(kspace, AXES)
    image = (one_set(kspace)[0].conj() * images).sum(0).abs()
    first, last = ((image - truth)[:, [0, -1]].square().sum((0, 2)) / truth.square().sum()).tolist()
    return first, last


@pytest.mark.parametrize("contrast", ["t1", "flair"])
def test_a_head_at_the_last_row_leaves_the_maps_of_the_first_row(contrast, monkeypatch):
    settings = replace(
        SETTINGS,
        contrast=contrast,
        wrap=False,
        matrix=(50, 35),
        fov_mm=(196.0, 224.0),
        partitions=21,
        slice_thickness_mm=8.9,
        rotation_deg=(12.0, 0.0, 0.0),
    )
    kspace, truth = (torch.from_numpy(array) for array in simulated_volume(settings))
    now = end_errors(kspace, truth)
    monkeypatch.setattr(volume_maps, "continue_ends", lambda maps, head, calibration: None)
    before = end_errors(kspace, truth)
    assert now[0] < 0.5 * before[0]
    assert now[1] < before[1] + 0.1 * before[0]
