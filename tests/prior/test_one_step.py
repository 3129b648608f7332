"""The conditional denoiser of the kind one-step and its sampler, against what is known in closed form."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from dpmrecon.api import load_model
from dpmrecon.cli import main
from dpmrecon.errors import CheckpointError
from dpmrecon.physics.fourier import origin_to_corner
from dpmrecon.physics.volume import VolumeModel
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint
from dpmrecon.prior.conditional import RESIDUAL, ConditionalDenoiser, Conditioned, signal_and_noise
from dpmrecon.prior.denoiser import Denoiser, complex_noise
from dpmrecon.prior.kinds import ONE_STEP
from dpmrecon.prior.problem import NoiseSource, Planes, Problem
from dpmrecon.prior.samplers.diffusion import SamplerSettings, sample_prox
from dpmrecon.prior.samplers.one_step import OneStepSettings, net_acceleration, sample_one_step

from support.results import images, report

CONFIG = {"widths": [4, 6, 8], "blocks": [1, 1, 1], "embedding": 8, "labels": ["flair", "t1", "swi"],
          "conditioning": "cg-sense"}  # fmt: skip


class Given:
    """A prior whose v is a function of z_t and t."""

    conditioning, refiner, later = "cg-sense", None, None

    def __init__(self, velocity):
        self.velocity = velocity

    def __call__(self, noisy, time, conventional, acceleration, sigma_n):
        return self.velocity(noisy, torch.tensor(time))


def gaussian_velocity(mean, std):
    """E[v | z_t] of z ~ N(mean, std^2): alpha E[noise | z_t] - sigma E[z | z_t]."""

    def velocity(noisy, time):
        alpha, sigma = signal_and_noise(time)
        total = alpha**2 * std**2 + sigma**2
        clean = mean + alpha * std**2 / total * (noisy - alpha * mean)
        return alpha * (noisy - alpha * clean) / sigma.clamp_min(1e-9) - sigma * clean

    return velocity


REFINER = {"widths": [4, 6], "blocks": [1, 1], "embedding": 8}


def model(seed=0, **more):
    torch.manual_seed(seed)
    found = ConditionalDenoiser({**CONFIG, **more})
    for name, weight in found.named_parameters():  # those that begin at zero leave the conditions out
        if name.endswith(("second.weight", "head.weight")):
            torch.nn.init.normal_(weight, std=0.1)
    return found.eval().requires_grad_(False)


@pytest.mark.parametrize(("std", "steps"), [(0.4, 64), (2.0, 256)])
def test_many_steps_draw_the_gaussian_that_v_belongs_to(world, std, steps):
    """DDIM is the probability-flow ODE: mean and spread of what is drawn are the prior's."""
    problem = dataclasses.replace(world.problem(), start=torch.zeros_like(world.problem().start))
    # data that say nothing: the error may be 0
    settings = OneStepSettings(steps=steps, error=1e-6)
    noise = NoiseSource(list(range(300)))
    prior = Given(gaussian_velocity(torch.tensor(0.5 + 0.2j), std))
    drawn = sample_one_step(problem, prior, settings, noise) / RESIDUAL
    inside = drawn[:, problem.model.support[0] > 0] if problem.model.support.ndim == 3 else drawn.flatten(1)
    assert torch.allclose(inside.mean(), torch.tensor(0.5 + 0.2j), atol=0.05 * std)
    assert float(torch.view_as_real(inside - inside.mean()).std()) == pytest.approx(std, rel=0.05)


def test_one_evaluation_from_noise_alone_is_the_mean(world):
    """At t = 1 nothing is known but the conventional image: v is the negative of the residual's mean."""
    problem = world.problem()
    prior = Given(gaussian_velocity(torch.tensor(0.3 - 1.0j), 0.7))
    found = sample_one_step(problem, prior, OneStepSettings(error=1e-6), NoiseSource([0]))
    expected = (problem.start + RESIDUAL * (0.3 - 1.0j)) * problem.model.support
    assert torch.allclose(found, expected.expand_as(found), atol=1e-5)


def test_data_consistency_is_the_proximal_step_or_the_papers_replacement(world):
    problem = world.problem()
    prior = Given(lambda noisy, time: torch.zeros_like(noisy))
    soft = OneStepSettings(error=0.2, noise_factor=0.5, model_error=0.01, cg_steps=60)
    found = sample_one_step(problem, prior, soft, NoiseSource([0]))
    start = problem.start * problem.model.support
    weight = (0.5 * problem.sigma_n + 0.01) ** 2 / 0.2**2
    gradient = problem.model.normal(found) - problem.zero_filled + weight.view(-1, 1, 1) * (found - start)
    assert float(gradient.abs().max()) < 1e-3 * float(problem.zero_filled.abs().max())
    hard = sample_one_step(problem, prior, OneStepSettings(hard=True), NoiseSource([0]))
    # the measured samples in each coil, the model's elsewhere, combined
    kspace = problem.model.forward(start)
    full = dataclasses.replace(problem.model, mask=torch.ones_like(problem.model.mask))
    mixed = full.forward(start) - kspace + problem.model.mask * problem.kspace
    assert torch.allclose(hard, full.adjoint(mixed).expand_as(hard), atol=1e-5)


def test_net_acceleration_counts_samples(world):
    problem = world.problem()
    assert torch.allclose(net_acceleration(problem), 1 / problem.model.mask.mean(), rtol=1e-6)


@pytest.mark.parametrize("shape", [(37, 22), (16, 51)])
def test_the_network_takes_any_matrix_and_the_conditions_matter(shape):
    network, ones = model(), torch.ones(2)
    generator = torch.Generator().manual_seed(3)
    noisy, conventional = (complex_noise((2, *shape), generator) for _ in range(2))
    label = network.one_hot(["flair", None])
    assert label.tolist() == [[1, 0, 0], [0, 0, 0]]
    found = network(noisy, 0.5 * ones, conventional, 4 * ones, 0.02 * ones, label)
    assert found.shape == (2, *shape) and found.dtype == torch.complex64
    for other in (
        network(noisy, 0.6 * ones, conventional, 4 * ones, 0.02 * ones, label),
        network(noisy, 0.5 * ones, noisy, 4 * ones, 0.02 * ones, label),
        network(noisy, 0.5 * ones, conventional, 8 * ones, 0.02 * ones, label),
        network(noisy, 0.5 * ones, conventional, 4 * ones, 0.1 * ones, label),
    ):
        assert not torch.allclose(found, other)
    network.warm_up()
    counted = []
    Conditioned(network, network.one_hot(["t1"]), counted.append)(noisy, 0.5, conventional, 4 * ones, 0.02 * ones)
    assert counted == [2]


def test_the_schedule_keeps_the_variance():
    alpha, sigma = signal_and_noise(torch.linspace(0, 1, 9))
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(9)) and math.isclose(float(sigma[-1]), 1.0)
    assert float(alpha[0]) == 1.0 and float(alpha[-1]) == pytest.approx(0.0, abs=1e-6)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, model(), {"kind": ONE_STEP, "sampling": {"samples": 2, "one-step": {"cg_steps": 3}}})
    return path


@pytest.fixture
def with_refiner(tmp_path):
    path = tmp_path / "two.safetensors"
    settings = {"cg_steps": 3}
    save_checkpoint(path, model(refiner=REFINER), {"kind": ONE_STEP, "sampling": {"samples": 2, "one-step": settings}})
    return path


@pytest.mark.parametrize("file", ["checkpoint", "with_refiner"])
@pytest.mark.parametrize("scan", [{}, {"partitions": 17, "contrast": "t1"}])
def test_slices_and_volumes_are_reconstructed(file, request, simulated_scan, tmp_path, scan):
    out, checkpoint = tmp_path / "out", request.getfixturevalue(file)
    assert main(["replay", str(simulated_scan(**scan)), "--model", str(checkpoint), "--out", str(out)]) == 0
    told = report(out)
    entry = told["slices"][0]
    assert (told["sampler"], entry["samples"], entry["steps"], entry["evaluations"]) == ("one-step", 2, 1, 2)
    assert len(images(out)) == 1


def test_what_a_card_may_not_say(tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, model(), {"kind": ONE_STEP})
    card = path.with_suffix(".json")
    card.write_text(card.read_text().replace('"cg-sense"', '"l1"'))
    with pytest.raises(CheckpointError, match="conditioning is 'l1'"):
        load_checkpoint(path)


@pytest.mark.parametrize("file", ["checkpoint", "with_refiner"])
def test_release_0_1_0_finds_other_tensors(file, request):
    """It does not read `kind`: it would build its denoiser and load these tensors, whose names it does not know."""
    checkpoint = request.getfixturevalue(file)
    weights = load_checkpoint(checkpoint).model.state_dict()
    old = Denoiser({**{k: CONFIG[k] for k in ("widths", "blocks", "embedding", "labels")}, "sigma_data": 0.25})
    assert not set(weights) & set(old.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):  # of which that release makes one sentence
        old.load_state_dict(weights)


class Halving:
    """A prior by regression whose image is half of what it sees; keeps the images and net R that it was asked about."""

    conditioning, refiner, later = "cg-sense", None, None

    def __init__(self):
        self.seen = []

    def __call__(self, noisy, time, conventional, acceleration, sigma_n):
        assert time == 1.0 and not noisy.abs().any()
        self.seen.append((conventional.clone(), float(acceleration[0])))
        return conventional / (2 * RESIDUAL)


def test_a_network_by_regression_is_asked_again_about_its_image_moved_to_the_data(world):
    problem = world.problem()
    settings = OneStepSettings(steps=3, a_round=1, later_acceleration=0.9, noise_scale=0.0, error=0.05)
    prior = Halving()
    found = sample_one_step(problem, prior, settings, NoiseSource([0]))
    net = float(net_acceleration(problem)[0])
    assert [told for _, told in prior.seen] == pytest.approx([max(1.0, net * 0.9**k) for k in range(3)])
    once = dataclasses.replace(settings, steps=1)
    expected = problem.start
    for seen, _ in prior.seen:
        assert torch.allclose(seen, expected.expand_as(seen), atol=1e-6)
        expected = sample_one_step(dataclasses.replace(problem, start=expected), Halving(), once, NoiseSource([0]))
    assert torch.equal(found, expected)
    asked = iter([False, True])  # to stop after the second
    stopped = sample_one_step(problem, Halving(), settings, NoiseSource([0]), lambda: next(asked))
    assert torch.equal(stopped, prior.seen[2][0])


class HalvingTwice(Halving):
    """Its refiner gives half of what it sees, its diffusion prior 90 %; keeps what each is asked."""

    sigma_data = 0.3

    def __init__(self):
        super().__init__()
        self.asked, self.levels = [], []

    @property
    def refiner(self):
        def velocity(difference, time, image, acceleration, sigma_n):
            self.asked.append((difference, image, time, float(acceleration[0])))
            return image / (2 * RESIDUAL)

        return velocity

    @property
    def later(self):
        outer = self

        class Shrinking:
            sigma_data = outer.sigma_data

            def __call__(self, x, sigma):
                outer.levels.append(float(sigma[0]))
                return 0.9 * x

            def of_planes(self, planes, sigma, at_once):
                return self(planes, torch.full((1,), sigma))

        return Shrinking()


def test_the_refiner_sees_the_image_moved_to_the_data_and_what_it_began_with(world):
    """Unlike cascades: after the network's rounds, as one more proximal step."""
    problem = world.problem()
    settings = OneStepSettings(noise_scale=0.0, error=0.05)
    prior = HalvingTwice()
    found = sample_one_step(problem, prior, settings, NoiseSource([0]))
    ((difference, image, time, net),) = prior.asked
    assert time == 1.0 and net == pytest.approx(float(net_acceleration(problem)[0]))
    half = sample_one_step(problem, Halving(), settings, NoiseSource([0]))
    assert len(prior.seen) == 1 and torch.equal(image, half)
    expected = sample_one_step(dataclasses.replace(problem, start=half), Halving(), settings, NoiseSource([0]))
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(image + RESIDUAL * difference, problem.start.expand_as(image), atol=1e-5)


@pytest.mark.parametrize(("steps", "levels"), [(1, []), (2, [0.01]), (3, [0.04, 0.01]), (4, [0.04, None, 0.01])])
def test_the_diffusion_prior_ends_from_the_refined_image_on(world, steps, levels):
    """As the sampler prox does without noise, at its last noise levels."""
    problem, prior = world.problem(), HalvingTwice()
    settings = OneStepSettings(
        steps=steps, noise_scale=0.0, error=0.04, looser=1.5, sigma_max=0.04, noise_factor=0.7, model_error=0.002
    )
    found = sample_one_step(problem, prior, settings, NoiseSource([0]))
    assert len(prior.seen) == len(prior.asked) == 1
    assert prior.levels == [pytest.approx(level) if level else pytest.approx(0.025, abs=0.012) for level in levels]
    error = settings.error if steps == 1 else 1.5 * settings.error
    once = dataclasses.replace(settings, steps=1, error=error)
    first = sample_one_step(problem, HalvingTwice(), once, NoiseSource([0]))
    if steps == 1:
        assert torch.equal(found, first)
        return
    same = SamplerSettings(
        steps=steps - 1,
        sigma_max=levels[0],
        noise_scale=0.0,
        cg_steps=8,
        noise_factor=0.7,
        model_error=0.002,
        turns=True,
    )
    expected = sample_prox(dataclasses.replace(problem, start=first), HalvingTwice().later, same, NoiseSource([9]))
    assert torch.equal(found, expected)
    stopped = sample_one_step(problem, HalvingTwice(), settings, NoiseSource([0]), lambda: True)
    assert torch.equal(stopped, first)


def test_a_volume_is_shown_to_the_prior_across_the_other_axes_first():
    seen, size = [], (5, 4, 6)
    maps = complex_noise((2, *size), torch.Generator().manual_seed(2))
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    volume = VolumeModel(origin_to_corner(maps.permute(3, 0, 1, 2)).contiguous(), torch.ones(size))
    start = torch.ones(1, *size, dtype=torch.complex64)
    problem = Problem(volume, volume.forward(start[0])[None], start, torch.full((1,), 0.1), start, Planes((0, 1, 2), 4))

    class Prior(HalvingTwice):
        def of_planes(self, images, time, beside, acceleration, sigma_n, at_once):
            seen.append(("network", len(images)))
            return torch.zeros_like(images)

        @property
        def refiner(self):
            return None

        @property
        def later(self):
            def of_planes(planes, sigma, at_once):
                seen.append(("prior", len(planes)))
                return planes

            return SimpleNamespace(sigma_data=0.3, of_planes=of_planes)

    settings = OneStepSettings(steps=4, noise_scale=0.0, error=0.05, sigma_max=0.04)
    sample_one_step(problem, Prior(), settings, NoiseSource([0]))
    assert seen == [("network", 5), ("prior", 4), ("prior", 6), ("prior", 5)]


def test_a_refiner_is_a_network_of_its_own_and_part_of_the_evaluation_before_it():
    network, counted = model(refiner=REFINER), []
    prior = Conditioned(network, network.one_hot(["t1"]), counted.append)
    generator, ones = torch.Generator().manual_seed(4), torch.ones(2)
    noisy, image = (complex_noise((2, 19, 14), generator) for _ in range(2))
    both, counts = [], []
    for part in (prior, prior.refiner):
        both.append(part(noisy, 0.5, image, 4 * ones, 0.02 * ones))
        counts.append(list(counted))
    assert counts == [[2], [2]] and not torch.allclose(*both)
    assert {name.split(".")[0] for name in network.state_dict()} == {"network", "refiner"}
    assert model().of_contrast("t1").refiner is None


@pytest.fixture
def ended_by_a_prior(tmp_path):
    path = tmp_path / "three.safetensors"
    settings = {"cg_steps": 3, "steps": 3, "sigma_max": 0.02, "noise_scale": 0.0}
    card = {"kind": ONE_STEP, "sampling": {"samples": 1, "one-step": settings}}
    save_checkpoint(path, model(refiner=REFINER), card)
    return path


def test_a_card_that_asks_for_a_prior_gets_the_one_that_ships_or_is_given(ended_by_a_prior, tiny_model):
    shipped, own = load_checkpoint(), load_checkpoint(tiny_model())
    found = load_checkpoint(ended_by_a_prior)
    assert found.model_id.endswith(f"+{shipped.model_id}") and found.model_id.startswith("three-")
    assert not any(name.startswith("later") for name in found.model.state_dict())
    other = load_model(ended_by_a_prior, "cpu", prior=own)
    assert other.model_id.endswith(f"+{own.model_id}") and other.model.later.denoiser is own.denoiser
    with pytest.raises(CheckpointError, match="leave out the prior"):
        load_model(None, "cpu", prior=own)
    counted = []
    later = other.model.of_contrast("t1", counted.append).later
    later(torch.zeros(2, 16, 16, dtype=torch.complex64), torch.full((2,), 0.02))
    assert counted == [2]


def test_a_sites_own_model_is_the_prior_of_the_sampler_one_step(simulated_scan, tiny_model, tmp_path):
    out = tmp_path / "out"
    command = ["replay", str(simulated_scan()), "--out", str(out), "--model", str(tiny_model())]
    assert main([*command, "--sampler", "one-step", "--steps", "3"]) == 0
    told = report(out)
    assert told["sampler"] == "one-step" and told["slices"][0]["evaluations"] == 3
    assert told["model_id"].startswith("one_step-")
    assert told["model_id"].endswith(f"+{load_checkpoint(tiny_model()).model_id}")


@pytest.mark.parametrize("own", [True, False])
def test_one_step_alone_loads_no_prior(simulated_scan, tiny_model, tmp_path, own):
    command = [
        "replay",
        str(simulated_scan()),
        "--out",
        str(tmp_path),
        *(["--model", str(tiny_model())] if own else []),
    ]
    assert main([*command, "--sampler", "one-step", "--steps", "1", "--deadline", "600"]) == 0
    told = report(tmp_path)
    assert told["slices"][0]["evaluations"] == 1 and "+" not in told["model_id"]
