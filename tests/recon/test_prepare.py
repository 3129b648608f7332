"""One slice that has no coil maps does not end the others."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from dpmrecon.data import LostSlice
from dpmrecon.errors import BadInputError, DeviceError
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.recon import prepare
from dpmrecon.recon.prepare import with_calibration_as_data, with_coil_maps
from dpmrecon.recon.types import MappedSlice

CPU = torch.device("cpu")


@pytest.fixture
def parts(simulated_scan):
    with open_scan(simulated_scan(n_slices=2)) as scan:
        return list(slices(scan.acquisitions(), scan.header))


def test_a_slice_without_maps_is_lost_and_the_others_go_on(parts):
    bare, good = replace(parts[0], calibration=None), parts[1]
    empty = replace(parts[0], calibration=torch.zeros_like(parts[0].calibration))
    first, second, third = with_coil_maps([bare, empty, good], CPU)
    assert isinstance(first, LostSlice)
    assert isinstance(second, LostSlice)
    assert isinstance(third, MappedSlice)
    assert first.reason.startswith("it has no calibration lines and no fully sampled centre")
    assert second.reason.startswith("it has no coil maps: The calibration is zero")


def test_where_no_slice_has_maps_the_first_reason_is_the_error(parts):
    bare = [replace(part, calibration=None) for part in parts]
    lost = LostSlice(parts[0].key, "incomplete")
    stream = with_coil_maps([lost, *bare], CPU)
    assert all(isinstance(item, LostSlice) for item in islice(stream, 3))
    with pytest.raises(BadInputError, match="slice 0: it has no calibration lines"):
        next(stream)
    assert list(with_coil_maps([lost], CPU)) == [lost]  # incomplete slices are no fault of the calibration


def test_a_slice_for_which_the_device_fails_is_lost_and_the_others_go_on(parts, monkeypatch):
    own, calls = prepare.estimate_map_sets, []

    def full(*args):
        calls.append(args)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")
        return own(*args)

    monkeypatch.setattr(prepare, "estimate_map_sets", full)
    first, second = with_coil_maps(parts, CPU)
    assert isinstance(first, LostSlice) and "the device failed" in first.reason and "3 GiB" in first.reason
    assert isinstance(second, MappedSlice)


def test_a_device_that_fails_at_every_slice_is_no_bad_input(parts, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    monkeypatch.setattr(prepare, "estimate_map_sets", full)
    stream = with_coil_maps(parts, CPU)
    assert all(isinstance(item, LostSlice) for item in islice(stream, 2))
    with pytest.raises(DeviceError, match="slice 0: the device failed while coil maps"):
        next(stream)


def test_a_lost_device_ends_the_scan_at_once(parts, monkeypatch):
    def lost(*args):
        raise RuntimeError("CUDA error: unspecified launch failure\nand more")

    monkeypatch.setattr(prepare, "estimate_map_sets", lost)
    monkeypatch.setattr("dpmrecon.device.synchronize", lost)
    with pytest.raises(
        DeviceError, match=r"device cpu is lost \(CUDA error: unspecified launch failure\): start again"
    ):
        next(with_coil_maps(parts, CPU))


def test_a_pooled_calibration_is_no_data(simulated_scan):
    """Lines of other averages or repetitions would blur what changes between them."""
    with open_scan(simulated_scan(n_slices=1, calibration="separate", noise=0.0)) as scan:
        (part,) = slices(scan.acquisitions(), scan.header)
    more = with_calibration_as_data(part)
    assert more.n_lines_got > part.n_lines_got
    assert with_calibration_as_data(replace(part, pooled=True)).n_lines_got == part.n_lines_got


@pytest.mark.parametrize(
    ("factor", "used"), [(1.2 * np.exp(0.7j), True), (0.5, True), (4.0, False), ("one channel", False)]
)
def test_a_calibration_that_differs_by_a_factor_is_data(simulated_scan, factor, used):
    """As where the receiver's phase, or the signal, drifts between two acquisitions of one sequence."""
    with open_scan(simulated_scan(n_slices=1, calibration="separate")) as scan:
        (part,) = slices(scan.acquisitions(), scan.header)
    same = with_calibration_as_data(part)
    by_channel = torch.tensor([2.0, 1, 1, 1, 1, 1] if isinstance(factor, str) else [factor] * 6, dtype=torch.complex64)
    found = with_calibration_as_data(replace(part, calibration=part.calibration * by_channel[:, None, None]))
    assert found.n_lines_got == (same if used else part).n_lines_got
    if used:
        assert float((found.kspace - same.kspace).norm() / same.kspace.norm()) < 0.01


@pytest.mark.parametrize(
    ("volume", "cut", "told"),
    [
        ({}, np.s_[:, 2:], "line 1 below"),
        ({}, np.s_[:, :-6], "line 3 above"),
        ({"partitions": 20, "slice_thickness_mm": 8.0}, np.s_[:, :-2, 4:], "partition 1 above and line 2 below"),
        ({}, np.s_[:, 8:], None),
    ],
)
def test_a_calibration_that_is_counted_a_few_lines_off_is_data_in_its_place(simulated_scan, volume, cut, told):
    """Rows cut off at one end move the middle, which is taken for the centre of k-space."""
    scanned = {"matrix": (44, 40), "calibration": "separate", "calibration_lines": 16, "noise": 0.003, **volume}
    with open_scan(simulated_scan(n_slices=1, **scanned)) as scan:
        (part,) = slices(scan.acquisitions(), scan.header)
    whole, expected = with_calibration_as_data(replace(part, kspace=part.kspace.clone())), part.kspace.clone()
    found = with_calibration_as_data(replace(part, kspace=part.kspace.clone(), calibration=part.calibration[cut]))
    if told is None:
        assert found.n_lines_got == part.n_lines_got and found.remarks == part.remarks
        return
    assert told in found.remarks[-1] and part.n_lines_got < found.n_lines_got < whole.n_lines_got
    came = found.mask > 0
    expected[:, came] = whole.kspace[:, came]
    assert torch.equal(found.kspace, expected)


def test_noise_alone_puts_no_calibration_elsewhere(simulated_scan):
    """Lines that hold nothing else agree in any place."""
    with open_scan(simulated_scan(n_slices=1, matrix=(44, 40), calibration="separate")) as scan:
        (part,) = slices(scan.acquisitions(), scan.header)
    generator = torch.Generator().manual_seed(1)
    noisy = part.sigma_n * part.mask * torch.randn(part.kspace.shape, generator=generator, dtype=torch.complex64)
    found = with_calibration_as_data(replace(part, kspace=noisy * 2**0.5))
    assert found.n_lines_got == part.n_lines_got and found.remarks == part.remarks


@pytest.mark.parametrize("volume", [{}, {"partitions": 20, "slice_thickness_mm": 8.0}])
def test_a_calibration_of_one_average_is_data_beside_averages(simulated_scan, volume):
    """It is noisier than they are. The level of all lines together is their mean."""
    scanned = {"matrix": (44, 40), "calibration": "separate", "calibration_lines": 16, "noise": 0.01, **volume}
    with open_scan(simulated_scan(n_slices=1, averages=4, **scanned)) as scan:
        (part,) = slices(scan.acquisitions(), scan.header, combine_averages=True)
    assert part.calibration_noise == 2.0
    found = with_calibration_as_data(part)
    joined = found.n_lines_got - part.n_lines_got
    assert joined > 0
    expected = (part.n_lines_got + 4 * joined) / found.n_lines_got * part.sigma_n**2
    assert found.sigma_n**2 == pytest.approx(expected)


def test_swi_keeps_what_its_quick_phase_hides(simulated_scan):
    """No voxel is lost, some are won, and the maps that both have are the same."""
    with open_scan(simulated_scan(contrast="swi", matrix=(96, 90), n_slices=1, acceleration=2)) as scan:
        parts = list(slices(scan.acquisitions(), scan.header))
    usual, swi = (next(with_coil_maps(parts, torch.device("cpu"), contrast)).model for contrast in ("t1", "swi"))
    both = (usual.support > 0) & (swi.support > 0)
    assert torch.equal(both, usual.support > 0)
    assert swi.support.sum() > 1.02 * usual.support.sum()
    agreement = (usual.coil_maps.conj() * swi.coil_maps).sum(0).abs()[both]
    assert agreement.min() > 0.999
