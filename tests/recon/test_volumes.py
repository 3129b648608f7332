"""Volumes from their k-space to an image: maps, scale, phase, misfit, samples, and what happens when they fail."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from dpmrecon.data import ESTIMATED, LostSlice
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.physics import volume_maps
from dpmrecon.physics.fourier import origin_to_corner
from dpmrecon.physics.scale import image_scale
from dpmrecon.physics.soft_sense import SoftVolume
from dpmrecon.physics.volume import VolumeModel, hybrid
from dpmrecon.physics.volume_maps import MATRIX, estimate_volume_maps
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint
from dpmrecon.prior.conditional import ConditionalDenoiser
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.prior.kinds import KINDS, ONE_STEP
from dpmrecon.prior.problem import NoiseSource, Planes, Problem
from dpmrecon.prior.samplers.diffusion import SamplerSettings, sample_prox
from dpmrecon.prior.samplers.one_step import OneStepSettings
from dpmrecon.recon.deadline import Deadline
from dpmrecon.recon.prepare import with_maps
from dpmrecon.recon.repairs import despiked, reduced_volume, two_sets
from dpmrecon.recon.sample import volume_problem
from dpmrecon.recon.stream import sampled, try_out
from dpmrecon.recon.types import MappedVolume, Sampling, planes_of
from dpmrecon.recon.volumes import mapped_volume
from dpmrecon.simulation.simulate import truth_path

from support.clock import Clock
from support.volumes import SHAPE, head, volume

CPU = torch.device("cpu")
FOLDED = {
    "matrix": (44, 46),
    "fov_mm": (140.0, 230.0),
    "partitions": 30,
    "slice_thickness_mm": 6.0,
    "calibration_lines": 16,
    "noise": 0.005,
    "contrast": "t1",
    "wrap": True,
}
pytestmark = pytest.mark.usefixtures("short_kernel")
SAMPLING = Sampling("prox", SamplerSettings(steps=4, sigma_max=0.5, cg_steps=8), 1, 0, 4, fallback=True)


@pytest.fixture
def long_kernel(monkeypatch):
    """The kernel that ships, for limits of what its maps are worth; elsewhere one that takes a fifth of the time."""
    monkeypatch.setattr(volume_maps, "MATRIX", MATRIX)


def mapped(**settings) -> MappedVolume:
    return _mapped(volume_maps.MATRIX, **settings)


@cache  # no test changes it
def _mapped(matrix: int, **settings) -> MappedVolume:
    found = with_maps(volume(**settings), CPU)
    assert isinstance(found, MappedVolume)
    return found


def error(image: torch.Tensor) -> float:
    truth = head()[0].abs()
    return float((image.abs() - truth).norm() / truth.norm())


@pytest.mark.parametrize("first_col", [0, 9])
def test_a_volume_gets_maps_scale_and_phase(first_col, long_kernel):
    found = mapped(first_col=first_col)
    truth, maps = head()
    assert found.zero_filled.shape == found.conventional.shape == found.phase.shape == SHAPE
    assert error(found.conventional) < 0.05 < 0.07 < error(found.zero_filled)
    assert found.scale == pytest.approx(image_scale(truth), rel=0.05)
    inside = (truth.abs() > 0.5) & (found.model.support > 0)
    assert inside.sum() > 0.99 * (truth.abs() > 0.5).sum()
    estimated = found.model.coil_maps.permute(1, 2, 3, 0)
    agreement = (estimated.conj() * origin_to_corner(maps, (1, 2))).sum(0).abs()
    assert agreement[origin_to_corner(inside, (0, 1))].min() > 0.97
    # the smooth phase is in the maps: the image is nearly real
    assert found.conventional[inside].imag.abs().mean() < 0.05 * found.conventional[inside].abs().mean()
    assert (found.phase.abs() - 1).abs().max() < 1e-5
    assert found.residual(found.conventional) < 1.3


def test_misfit_and_energy_are_counted_line_by_line_and_coil_by_coil():
    found = mapped()
    image = complex_noise(SHAPE, torch.Generator().manual_seed(3))
    misfit = found.misfit(image)
    difference = (found.model.forward(image) - found.data.kspace).abs().square()
    variance, lines = 2 * found.data.sigma_n**2, found.data.mask[..., 0] > 0
    assert misfit.residual == pytest.approx(float((difference[:, lines].mean() / variance).sqrt()), rel=1e-4)
    by_line = (difference.mean((0, -1)) / variance).sqrt()
    assert torch.allclose(misfit.by_row[lines], by_line[lines], rtol=1e-4)
    assert misfit.by_row[~lines].isnan().all()
    assert torch.allclose(misfit.by_channel, (difference[:, lines].mean((1, 2)) / variance).sqrt(), rtol=1e-4)
    energy = found.data.kspace.abs().square()[:, lines].mean() / variance
    assert found.energy.residual == pytest.approx(float(energy.sqrt()), rel=1e-4)


def test_spikes_are_taken_out_and_named():
    data = volume()
    clean = data.kspace.clone()
    place = (3, 10, 12, 20)  # coil, partition, row, sample
    data.kspace[place] += 40 * data.kspace.abs().mean()
    found = despiked(replace(data, noise_source=ESTIMATED))
    assert (found.kspace - clean)[place].abs() < 0.2 * (data.kspace - clean)[place].abs()
    assert torch.equal(found.calibration, found.kspace[:, 6:22, 9:24])
    (remark,) = found.remarks
    assert "coil 3" in remark and "line 12, sample 20 of partition 10" in remark
    assert despiked(volume()).remarks == ()


@pytest.mark.parametrize("first_col", [0, 14])
def test_spikes_of_a_separate_calibration_are_taken_out_and_named(first_col):
    data = volume(first_col=first_col)
    clean = volume(first_col=first_col, seed=1).kspace[:, 6:22, 9:24].clone()
    apart = replace(data, calibration=clean.clone())
    assert despiked(apart) is apart
    place = (3, 4, 3, 24)  # coil, partition, row, sample
    apart.calibration[place] += 40 * clean.abs().mean()
    found = despiked(apart)
    assert found.kspace is data.kspace
    assert (found.calibration - clean)[place].abs() < 0.2 * (apart.calibration - clean)[place].abs()
    (remark,) = found.remarks
    assert "in the calibration" in remark and "coil 3" in remark and "line 3, sample 24 of partition 4" in remark


def test_a_block_of_its_own_joins_the_data_where_it_is_the_same():
    data, full = volume(), volume(seed=1)
    apart = replace(data, calibration=full.kspace[:, 6:22, 9:24].clone())
    lines = data.mask.clone()
    lines[6:22, 9:24] = 0
    lines[6:22:2, 9:24:2] = 1
    apart = replace(apart, mask=lines, kspace=data.kspace * lines)
    found = with_maps(apart, CPU)
    assert int(found.data.mask[..., 0].sum()) == int(volume().mask[..., 0].sum())
    brighter = replace(apart, calibration=1.5 * apart.calibration, kspace=data.kspace * lines)
    assert int(with_maps(brighter, CPU).data.mask[..., 0].sum()) == int(volume().mask[..., 0].sum())
    sharper = apart.calibration * torch.linspace(1.5, 0.5, 16)[:, None, None]  # as of another contrast
    other = replace(apart, calibration=sharper, kspace=data.kspace * lines)
    assert int(with_maps(other, CPU).data.mask[..., 0].sum()) == int(lines[..., 0].sum())


def test_many_coils_are_compressed():
    found = mapped(n_coils=24)
    assert 12 <= found.model.coil_maps.shape[1] < 24 and found.n_coils == 24
    assert error(found.conventional) < 0.07


@pytest.mark.parametrize("steps", [(1, 2), (2, 1), (2, 2), (1, 3)])
def test_sense_lines_counted_in_their_reduced_field_of_view_are_refused(steps, simulated_scan):
    """Every step-th partition and line, counted one by one around the centre; a low resolution of as many is not."""
    whole = {"fov_mm": (230.0, 230.0), "acceleration": 1, "partition_acceleration": 1, "wrap": False}
    with open_scan(simulated_scan(**{**FOLDED, **whole})) as scan:
        (data,) = slices(scan.acquisitions(), scan.header)
    shape = data.mask.shape
    low, every = [slice(None)], [slice(None)]
    for size, step in zip(shape, steps):
        half = (size // 2 - 1) // step
        low.append(slice(size // 2 - half, size // 2 + half + 1))
        every.append(slice(size // 2 - half * step, size // 2 + half * step + 1, step))
    mask, kspace = torch.zeros(shape), torch.zeros_like(data.kspace)
    mask[tuple(low[1:])] = 1
    kspace[tuple(low)] = data.kspace[tuple(every)]
    low_resolution = replace(data, kspace=data.kspace * mask, mask=mask, calibration=data.kspace[tuple(low)])
    assert reduced_volume(low_resolution) is None
    found = with_maps(replace(low_resolution, kspace=kspace, calibration=kspace[tuple(low)]), CPU)
    assert isinstance(found, LostSlice)
    for name, part, size, step in zip(("partitions", "lines"), low[1:], shape, steps):
        told = f"its {part.stop - part.start} {name} without a gap are of a matrix of {size}"
        assert (told in found.reason) == (step > 1)


def test_lost_without_signal_or_calibration():
    data = volume()
    assert "no calibration" in with_maps(replace(data, calibration=None), CPU).reason
    small = replace(data, calibration=data.calibration[:, :5])
    found = with_maps(small, CPU)
    assert isinstance(found, LostSlice) and "5 partitions" in found.reason


@pytest.mark.parametrize(("axes", "cut"), [((1,), 2), ((0, 1, 2), 0)])
def test_samples_are_those_of_the_posterior(axes, cut):
    """A white prior, whose denoiser is the same in all planes: mean and variance in closed form."""
    size, sigma_data, sigma_n, count = (5, 4, 6), 0.25, 0.1, 100
    generator = torch.Generator().manual_seed(0)
    maps = complex_noise((2, *size), generator)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    mask = (torch.rand(*size[:2], 1, generator=generator) < 0.6).float().expand(size).clone()
    mask[..., :cut] = 0
    model = VolumeModel(origin_to_corner(maps.permute(3, 0, 1, 2)).contiguous(), mask)
    units = torch.eye(120, dtype=torch.complex64).view(-1, *size)
    matrix = torch.stack([model.forward(unit).flatten() for unit in units], 1)
    covariance = torch.linalg.inv(matrix.mH @ matrix / sigma_n**2 + torch.eye(120) / sigma_data**2)
    y = matrix @ (sigma_data * complex_noise((120,), generator)) + sigma_n * complex_noise((240,), generator)
    y = y.view(2, *size)
    mean = covariance @ (matrix.mH @ y.flatten()) / sigma_n**2

    class White:
        sigma_data = 0.25

        def of_planes(self, planes, sigma, at_once):
            assert planes.shape[1:] == tuple(s for a, s in enumerate(size) if a != axes[self.step % len(axes)])
            self.step += 1
            return planes * self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    prior = White()
    prior.step = 0
    settings = SamplerSettings(steps=40, sigma_max=5.0, sigma_min=0.01, eta=0.0, warm_start=False, cg_steps=40)
    zero_filled = model.adjoint(y)[None]
    start, sigmas = zero_filled.expand(count, *size), torch.full((count,), sigma_n)
    problem = Problem(model, y[None], zero_filled, sigmas, start, Planes(axes, 4))
    draws = sample_prox(problem, prior, settings, NoiseSource(list(range(count)))).flatten(1)
    assert (draws.mean(0) - mean).abs().max() < 0.1
    variance, exact = draws.var(0).mean() / 2, covariance.diagonal().real.mean()
    assert float(variance / exact) == pytest.approx(1, abs=0.1)


def test_planes_that_the_network_sees_are_made_to_agree():
    """The total variation across the planes acts in every direction that a volume is cut in."""
    problem = volume_problem(mapped(), 4)

    class Unchanged:
        sigma_data = 0.25

        def of_planes(self, planes, sigma, at_once):
            return planes

    def drawn(axes, across):
        settings = SamplerSettings(steps=4, sigma_max=0.5, across=across)
        return sample_prox(replace(problem, planes=Planes(axes, 4)), Unchanged(), settings, NoiseSource([0]))[0]

    for axes in ((0,), (1,), (2,), (0, 1)):
        loose, tight = drawn(axes, 0.0), drawn(axes, 0.5)
        for axis in axes:
            assert torch.diff(tight, dim=axis).abs().mean() < 0.97 * torch.diff(loose, dim=axis).abs().mean()


def test_seeds_planes_at_once_and_samples(model):
    checkpoint, problem = load_checkpoint(model), mapped()
    two = replace(SAMPLING, samples=2)
    found = [list(sampled([problem], checkpoint, "t1", sampling)) for sampling in (two, two, replace(two, batch=7))]
    (first,), (again,), (other,) = found
    assert torch.equal(first.image, again.image)
    assert torch.allclose(first.image, other.image, atol=1e-4 * problem.scale)
    assert first.spread.shape == SHAPE and first.fallback is None
    assert first.evaluations == 8
    (reseeded,) = sampled([problem], checkpoint, "t1", replace(two, seed=1))
    assert not torch.allclose(first.image, reseeded.image, atol=1e-3 * problem.scale)


def test_a_folded_volume_has_two_images_until_it_is_one(simulated_scan, model, long_kernel):
    path = simulated_scan(**FOLDED)
    with open_scan(path) as scan:
        (data,) = slices(scan.acquisitions(), scan.header)
    single = estimate_volume_maps(data.calibration, tuple(data.mask.shape))[:, 0].contiguous()
    alone = mapped_volume(replace(data, kspace=data.kspace.clone()), single, {})
    folded = with_maps(data, CPU)
    assert isinstance(folded.model, SoftVolume) and folded.n_sets == 2 and folded.data.remarks == (two_sets(data),)
    truth = torch.from_numpy(np.load(truth_path(path)))
    assert folded.phase.shape == truth.shape and folded.conventional.shape == (2, *truth.shape)

    def off(mapped: MappedVolume) -> float:
        image = mapped.model.combined(mapped.conventional).abs()
        return float((image * (image * truth).sum() / image.square().sum() - truth).norm() / truth.norm())

    assert off(folded) < 0.09 < 0.15 < off(alone)
    assert folded.residual(folded.conventional) < 1.3 < alone.residual(alone.conventional)
    two = replace(SAMPLING, samples=2, keep_samples=True)
    (item,) = sampled([folded], load_checkpoint(model), "t1", two)
    assert item.image.shape == item.spread.shape == truth.shape and item.draws.shape == (2, *truth.shape)
    assert item.evaluations == 8 and item.fallback is None and item.verdict == f"caution: {two_sets(data)}"


def test_volumes_pass_alone_between_slices_and_the_lost(model):
    stream = [mapped(), LostSlice(volume().key, "x"), mapped()]
    found = list(sampled(stream, load_checkpoint(model), None, SAMPLING))
    assert [isinstance(item, LostSlice) for item in found] == [False, True, False]


def test_a_deadline_cuts_steps_and_then_falls_back(model):
    clock, checkpoint, problem = Clock(per_image=0.01), load_checkpoint(model), mapped()
    clock.watch(checkpoint.denoiser)
    many = replace(SAMPLING, settings=replace(SAMPLING.settings, steps=400))
    (found,) = sampled([problem], checkpoint, None, many, deadline=Deadline(10.0, 1, clock(), clock=clock))
    assert 3 <= found.evaluations < 100 and found.fallback is None and clock.now <= 11
    (late,) = sampled([problem], checkpoint, None, many, deadline=Deadline(1.0, 1, clock() - 5, clock=clock))
    assert late.fallback is not None and torch.equal(late.image, problem.conventional)


def test_trying_a_volume_out_costs_a_few_planes(model):
    """What an evaluation of all planes takes is known before one is made: a short deadline is kept."""
    clock, checkpoint, problem = Clock(per_image=1.0), load_checkpoint(model), mapped()  # 28 to 42 s an evaluation
    clock.watch(checkpoint.denoiser)
    (found,) = sampled([problem], checkpoint, None, SAMPLING, deadline=Deadline(60.0, 1, clock(), clock=clock))
    assert found.fallback is not None and clock.now <= 2 * 3 * SAMPLING.batch
    began = clock()
    many = replace(SAMPLING, settings=replace(SAMPLING.settings, steps=400))
    (found,) = sampled([problem], checkpoint, None, many, deadline=Deadline(600.0, 1, began, clock=clock))
    assert found.fallback is None and found.evaluations >= 10 and clock.now - began <= 600 + 42


def test_one_step_on_a_volume_keeps_a_deadline():
    config = {"widths": [4, 6], "blocks": [1, 1], "embedding": 8, "labels": ["t1"], "conditioning": "cg-sense"}
    own = {name: config[name] for name in ("widths", "blocks", "embedding")}
    network, clock, problem = ConditionalDenoiser({**config, "refiner": own}), Clock(per_image=0.01), mapped()
    checkpoint = Checkpoint(network.eval().requires_grad_(False), {}, "one", KINDS[ONE_STEP])
    for part in (network.network, network.refiner):
        clock.watch(part)
    sampling = replace(SAMPLING, sampler=ONE_STEP, settings=OneStepSettings(noise_scale=0.0))
    (found,) = sampled([problem], checkpoint, None, sampling, deadline=Deadline(10.0, 1, clock(), clock=clock))
    assert found.fallback is None and found.evaluations == 1
    (late,) = sampled([problem], checkpoint, None, sampling, deadline=Deadline(0.5, 1, clock(), clock=clock))
    assert (
        late.fallback is not None and clock.now < 2.5
    )  # both networks on the planes of an evaluation take .6 s or more


@pytest.mark.parametrize("sets", [1, 2])
def test_a_volume_is_tried_out_in_the_images_of_all_its_sets(model, sets):
    """The planes that an evaluation shows the network, of each set, in the mean over the axes."""
    data, clock, checkpoint = volume(), Clock(per_image=1.0), load_checkpoint(model)
    clock.watch(checkpoint.denoiser)
    maps = estimate_volume_maps(data.calibration, tuple(data.mask.shape))
    maps = maps[:, 0].contiguous() if maps.ndim == 5 else maps
    if sets == 2:
        maps = torch.stack([maps, torch.roll(maps, 1, 1)], 1)
    problem = mapped_volume(data, maps, {})
    problem = replace(problem, seconds={})
    deadline = Deadline(1e6, 1, clock(), clock=clock)
    try_out([problem], checkpoint, None, SAMPLING, deadline)
    assert problem.n_sets == sets
    assert deadline.per_evaluation == pytest.approx(sets * np.mean([SHAPE[axis] for axis in problem.planes]))


@pytest.mark.parametrize("samples", [1, 2])
def test_a_device_without_room_for_so_many_planes_gets_fewer(model, monkeypatch, samples):
    checkpoint, problem, tried = load_checkpoint(model), mapped(), []
    forward = checkpoint.denoiser.forward

    def small(x, *rest):
        tried.append(len(x))
        if len(x) > 3:
            raise RuntimeError("out of memory")
        return forward(x, *rest)

    monkeypatch.setattr(checkpoint.denoiser, "forward", small)
    (found,) = sampled([problem], checkpoint, None, replace(SAMPLING, batch=8, samples=samples))
    assert found.fallback is None and found.samples == samples
    assert tried[:2] == [8, 4] and tried[2] == 2


def test_a_broken_device_gives_the_conventional_volume(model, monkeypatch):
    checkpoint, problem = load_checkpoint(model), mapped()

    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(VolumeModel, "prox", broken)
    (found,) = sampled([problem], checkpoint, None, SAMPLING)
    assert "out of memory" in found.fallback and torch.equal(found.image, problem.conventional)


def test_a_line_that_contradicts_the_others_is_named(model):
    data = volume()
    data.kspace[:, 12, 20] *= -1
    (found,) = sampled([with_maps(data, CPU)], load_checkpoint(model), None, SAMPLING)
    assert any("line (partition, row) (12, 20) contradicts" in remark for remark in found.remarks)


def test_planes_are_large_enough_and_of_nearly_square_pixels():
    assert planes_of((88, 120, 96), (2, 2, 2)) == (0, 1, 2)
    assert planes_of((15, 256, 256), (1, 1, 1)) == (0,)  # a thin slab
    assert planes_of((16, 256, 256), (1.25, 1, 1)) == (0, 1, 2)
    assert planes_of((64, 256, 256), (3, 0.7, 0.7)) == (0,)  # and thick partitions
    assert planes_of((8, 8, 8), (1, 1, 1)) == (0,)


def test_a_full_scan_is_calibrated_by_its_centre_alone():
    """The calibration of a scan without undersampling is all of it: no copy is made of that."""
    data = volume()
    full = replace(data, mask=torch.ones(SHAPE), kspace=data.kspace.clone(), calibration=data.kspace)
    found = with_maps(full, CPU)
    assert max(found.data.calibration.shape[1:]) <= 24
    assert found.data.calibration.untyped_storage().nbytes() < data.kspace.untyped_storage().nbytes()


def test_hybrid_is_the_image_along_the_readout_in_place():
    kspace = complex_noise((2, *SHAPE), torch.Generator().manual_seed(0))
    kept = kspace.clone()
    found = hybrid(kspace)
    assert found is kspace and not torch.equal(found, kept)
    assert torch.linalg.vector_norm(found) == pytest.approx(float(torch.linalg.vector_norm(kept)), rel=1e-5)
