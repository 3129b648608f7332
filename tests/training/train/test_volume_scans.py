"""Volume scans for training inside the sampler: what they hold, that they are kept, and what is trained on them."""

import json
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.physics.scale import RULE
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint
from dpmrecon.prior.denoiser import uncounted
from dpmrecon.prior.problem import NoiseSource
from dpmrecon.prior.samplers.diffusion import SamplerSettings, sample_prox, turned_back
from dpmtrain.cli import main
from dpmtrain.data import shapes
from dpmtrain.data.dataset import PreparedSlices
from dpmtrain.train import volume_runs, volume_scans
from dpmtrain.train.in_sampler import LEAST_ERROR, squared
from dpmtrain.train.volume_runs import Evaluation, Recorder, VolumeRuns, recorded
from dpmtrain.train.volume_scans import VolumeScans, scanned

from support.recipes import TIMED
from support.small_denoiser import denoiser

VOXEL_MM = (4.5, 4.0, 5.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def head(shape=(28, 34, 26)):
    """An ellipsoid with a bright rim and a dark half."""
    grids = np.meshgrid(*[np.linspace(-1.3, 1.3, size) for size in shape], indexing="ij")
    radius = np.sqrt(sum(grid**2 for grid in grids))
    return ((radius < 1) * (0.6 + 0.2 * (grids[1] > 0) + 0.4 * (radius > 0.85))).astype(np.float32)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """One volume that is cut in three directions, one that is not."""
    folder = tmp_path_factory.mktemp("prepared")
    entries = []
    for name, voxel in (("patient01_cube", VOXEL_MM), ("patient03_slices", (5.0, 1.0, 1.0))):
        volume = head() if voxel == VOXEL_MM else head((5, 41, 44))
        np.save(folder / f"{name}.npy", volume.astype(np.float16))
        axes = 3 if voxel == VOXEL_MM else 1
        entries.append(
            {"file": f"{name}.npy", "contrast": "t2", "subject": name[:9], "source": "a test", "licence": "none",
             "reference": "none", "simulated": False, "voxel_mm": list(voxel), "shape": list(volume.shape),
             "spans": [[0, size] for size in volume.shape[:axes]]}
        )  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({"scale_rule": RULE, "exclude": [], "volumes": entries}))
    return folder


@pytest.fixture(autouse=True, scope="module")
def few_coils():
    """Maps of more take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volume_scans, "COILS", (4,))
        yield


@pytest.fixture(scope="module")
def scans(prepared, tmp_path_factory):
    made = VolumeScans(tmp_path_factory.mktemp("run") / "volumes", 2)
    made.make(PreparedSlices(prepared, 1.0), 5)
    return made


def test_with_all_lines_and_hardly_any_noise_the_zero_filled_image_is_the_truth(monkeypatch):
    monkeypatch.setattr(volume_scans, "FACTORS", ((1, 1),))
    monkeypatch.setattr(volume_scans, "POISSON", 0.0)
    monkeypatch.setattr(volume_scans, "SIGMA_N", (1e-3, 1e-3))
    for seed in range(2):
        found = scanned(head(), VOXEL_MM, seed)
        image, clean = (torch.view_as_complex(found[name].float()) for name in ("zero_filled", "clean"))
        assert squared(image[0] - clean).sum().sqrt() < 0.1 * squared(clean).sum().sqrt()
        assert found["lines"].all() and float(found["sigma_n"]) == pytest.approx(1e-3, rel=0.3)
        assert 0.9 < np.percentile(clean.abs().numpy(), 99) < 1.1


def test_scans_are_drawn_as_they_were_made_and_made_once(scans, prepared):
    before = [file.stat().st_mtime_ns for file in sorted(scans.folder.iterdir())]
    scans.make(PreparedSlices(prepared, 1.0), 5)
    assert [file.stat().st_mtime_ns for file in sorted(scans.folder.iterdir())] == before and len(before) == 2
    scan = scans.draw(generator())
    problem = scan.problem
    assert scan.contrast == "t2" and problem.start.shape[1:] == scan.clean.shape == problem.model.mask.shape
    assert bool((scan.clean[problem.model.support == 0] == 0).all())
    # CG-SENSE is nearer to the truth than the zero-filled image
    left = [float(squared(image[0] - scan.clean).sum()) for image in (problem.start, problem.zero_filled)]
    assert left[0] < left[1]


def test_scans_of_other_data_and_data_without_volumes_are_refused(scans, prepared, tmp_path, monkeypatch):
    with pytest.raises(BadInputError, match="another seed"):
        scans.make(PreparedSlices(prepared, 1.0), 6)
    with pytest.raises(BadInputError, match="other volume_shapes"):
        VolumeScans(scans.folder, 2, 0.5).make(PreparedSlices(prepared, 1.0), 5)
    with pytest.raises(BadInputError, match="no prepared volume is cut in three directions"):
        VolumeScans(tmp_path, 1).make(PreparedSlices(prepared, 1.0, ["*_slices"]), 5)
    monkeypatch.setattr(volume_scans, "scanned", lambda *given: None)
    with pytest.raises(BadInputError, match="50 scans of the prepared volumes fold"):
        VolumeScans(tmp_path, 1).make(PreparedSlices(prepared, 1.0), 5)


def test_a_share_of_the_scans_is_of_shapes(prepared, tmp_path, monkeypatch):
    made = []

    def noted(rng):
        made.append(rng)
        return head(), VOXEL_MM

    monkeypatch.setattr(volume_scans, "random_shapes", noted)
    monkeypatch.setattr(volume_scans, "scanned", lambda data, voxel_mm, seed: {"seed": seed})
    VolumeScans(tmp_path, 10, 0.3).make(PreparedSlices(prepared, 1.0), 5)
    contrasts = [torch.load(file, weights_only=True)["contrast"] for file in sorted(tmp_path.iterdir())]
    assert len(made) == 3 and contrasts.count("t2") == 7
    assert all(contrast in shapes.LABELS for contrast in contrasts if contrast != "t2")


def test_a_run_is_that_of_the_network_itself_and_its_planes_turned_back_are_where_they_were(scans, monkeypatch):
    scan, model = scans.draw(generator()), denoiser()
    settings = SamplerSettings(steps=7, sigma_max=0.5, noise_scale=0.3, turns=True)
    monkeypatch.setattr(volume_runs, "KEPT", 1000)  # all
    # so that the order is kept, and a plane is known by its number
    monkeypatch.setattr(torch, "multinomial", lambda share, number, generator: torch.arange(number))
    prior = Recorder(model, torch.eye(2)[1:], uncounted, scan, generator())
    with torch.no_grad():
        found = sample_prox(scan.problem, prior, settings, NoiseSource([5]))
        wanted = sample_prox(scan.problem, model.of_contrast("t2"), settings, NoiseSource([5]))
    assert torch.equal(found, wanted) and len(prior.kept) == 7
    axes = scan.problem.planes.axes
    support = scan.problem.model.support
    for number, kept in enumerate(prior.kept):
        axis, orientation = axes[number % len(axes)], number // len(axes)
        clean = turned_back(torch.view_as_complex(kept.clean.float()), orientation).movedim(0, axis)
        assert torch.allclose(clean, scan.clean, atol=2e-3)
        assert torch.equal(turned_back(kept.support, orientation).movedim(0, axis), support > 0)
    # it is shown its start and noise first
    first = turned_back(torch.view_as_complex(prior.kept[0].planes.float()), 0).movedim(0, axes[0])
    noise = (first - scan.problem.start[0]) / (settings.noise_scale * settings.sigma_max)
    assert torch.view_as_real(noise).std().item() == pytest.approx(1, abs=0.05)


def test_planes_with_more_left_are_kept_and_a_support_may_have_an_axis_before(scans, monkeypatch):
    scan = scans.draw(generator())
    monkeypatch.setattr(type(scan.problem.model), "support", torch.ones(1, *scan.clean.shape))
    monkeypatch.setattr(volume_runs, "KEPT", 2)
    axis = scan.problem.planes.axes[0]
    planes = scan.clean.movedim(axis, 0).clone()
    planes[[3, 5]] += 1
    prior = Recorder(denoiser(), torch.zeros(1, 2), uncounted, scan, generator())
    with torch.no_grad():
        prior.of_planes(planes, 0.1, 8)
    (kept,) = prior.kept
    wanted = {float(scan.clean.movedim(axis, 0)[number].abs().sum()) for number in (3, 5)}
    found = {float(torch.view_as_complex(clean.float()).abs().sum()) for clean in kept.clean}
    assert sorted(found) == pytest.approx(sorted(wanted), rel=1e-3) and kept.sigma == 0.1


def evaluation(sigma, seed=0):
    """Of twelve planes, half of each outside the support."""
    planes, clean = torch.randn(2, 12, 10, 9, 2, generator=generator(seed)).half()
    support = torch.zeros(12, 10, 9, dtype=torch.bool)
    support[:, :5] = True
    return Evaluation(planes, clean, support, sigma)


def test_the_loss_is_the_mean_over_groups_of_planes_of_one_evaluation(monkeypatch):
    model, kept = denoiser(), evaluation(0.2)
    some, label = torch.tensor([7, 2, 3]), torch.eye(2)[:1]
    planes, clean = (torch.view_as_complex(pairs[some].float()) for pairs in (kept.planes, kept.clean))
    found = model(planes, torch.full((3,), 0.2), label.expand(3, -1))
    wanted = squared(found - clean)[:, :5].sum() / squared(planes - clean)[:, :5].sum()
    loss = kept.loss(model, label, some)
    assert loss.requires_grad and loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    # over the least error where nothing is left to remove
    same = kept._replace(planes=kept.clean)
    left = squared(model(clean, torch.full((3,), 0.2), label.expand(3, -1)) - clean)[:, :5].sum() / clean.numel()
    assert same.loss(model, label, some).item() == pytest.approx(left.item() / LEAST_ERROR**2, rel=1e-5)

    asked = []

    def noted(self, model, label, some):
        asked.append((self.sigma, label.tolist(), some.tolist()))
        return torch.tensor(self.sigma)

    monkeypatch.setattr(Evaluation, "loss", noted)
    runs = VolumeRuns(None, label_dropout=0.3, calls=1)
    runs.runs.append(volume_runs.Run("t2", [evaluation(float(sigma)) for sigma in range(5)]))
    for seed in range(200):
        before = len(asked)
        loss = runs(model, generator(seed))
        groups = asked[before:]
        assert len(groups) == 4 and loss.item() == pytest.approx(np.mean([sigma for sigma, *_ in groups]))
        runs.calls = 1  # none is made
    assert all(len(set(some)) == 8 and max(some) < 12 for *_, some in asked)
    # a quarter, and a fifth of the rest
    assert np.mean([sigma == 4 for sigma, *_ in asked]) == pytest.approx(0.4, abs=0.06)
    assert {sigma for sigma, *_ in asked} == {0, 1, 2, 3, 4}
    # dropped group by group
    assert np.mean([label == [[0, 0]] for _, label, _ in asked]) == pytest.approx(0.3, abs=0.06)
    assert {str(label) for _, label, _ in asked} == {"[[0.0, 0.0]]", str(model.one_hot(["t2"]).tolist())}


def test_a_run_is_made_now_and_then_and_the_latest_are_kept(monkeypatch):
    monkeypatch.setattr(volume_runs, "RUNS", 3)
    monkeypatch.setattr(volume_runs, "RUN_EVERY", 4)
    made = []

    def noted(model, scan, generator):
        made.append(len(made))
        return volume_runs.Run(None, [evaluation(0.1 * len(made), len(made))])

    monkeypatch.setattr(volume_runs, "recorded", noted)
    runs, model = VolumeRuns(Mock()), denoiser()
    for call in range(20):
        with torch.no_grad():
            assert runs(model, generator(call)).isfinite()
        assert len(made) == 1 + call // 4 and len(runs.runs) == min(len(made), 3)
    assert [run.evaluations[0].sigma for run in runs.runs] == pytest.approx([0.3, 0.4, 0.5])


def test_a_run_has_all_its_evaluations_and_no_gradients(scans):
    run = recorded(denoiser(), scans.draw(generator()), generator())
    assert run.contrast == "t2" and 16 <= len(run.evaluations) <= 20
    levels = [kept.sigma for kept in run.evaluations]
    assert levels == sorted(levels, reverse=True) and levels[-1] == pytest.approx(0.01)
    for kept in run.evaluations:
        assert kept.planes.dtype == kept.clean.dtype == torch.float16 and not kept.planes.requires_grad
        assert kept.planes.shape == kept.clean.shape == (*kept.support.shape, 2) and len(kept.planes) <= 32


def test_training_lowers_the_loss_of_volumes(scans):
    model = denoiser()
    seen, unseen = VolumeRuns(scans), VolumeRuns(scans)

    def left():
        with torch.no_grad():
            return sum(unseen(model, generator(seed)).item() for seed in range(100, 110))

    before = left()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(20):
        optimizer.zero_grad()
        seen(model, generator(step)).backward()
        optimizer.step()
    unseen.calls = 1  # none is made: the same planes
    assert left() < 0.8 * before


def test_a_run_makes_its_scans_and_keeps_a_share_of_its_start(prepared, tmp_path, capsys, monkeypatch):
    recipe, start, out = (tmp_path / name for name in ("r.toml", "start.safetensors", "out.safetensors"))
    volumes = "slice_weight = 1.0\nvolume_scans = 1\nvolume_shapes = {}\nvolume_share = 1.0\nvolume_weight = 0.5\n"
    recipe.write_text(TIMED + volumes.format(0))
    save_checkpoint(start, denoiser(), {"sampling": {"prox": {"steps": 4}}, "history": "begun"})
    given = [
        "in-sampler", str(recipe), "--start", str(start), "--data", str(prepared), "--run", str(tmp_path / "run"),
        "--out", str(out), "--workers", "0", "--minutes", "0.001",
    ]  # fmt: skip
    assert main(given) == 0
    trained, begun = (load_checkpoint(path).model.state_dict() for path in (out, start))
    assert [file.name for file in (tmp_path / "run/volumes").iterdir()] == ["0000.pt"]
    assert main([*given, "--keep", "0.75"]) == 0  # of the same training
    for name, value in load_checkpoint(out).model.state_dict().items():
        assert torch.allclose(value, 0.25 * trained[name] + 0.75 * begun[name], atol=1e-6)
    assert "0.75 are kept" in load_checkpoint(out).card["history"]["note"]
    assert main([*given, "--keep", "1"]) == 2 and "share from 0 on and below 1" in capsys.readouterr().err
    recipe.write_text(TIMED + volumes.format(1))
    assert main(given) == 2 and "other volume_shapes" in capsys.readouterr().err
    (tmp_path / "run/volumes/0000.pt").unlink()  # without it the state speaks
    monkeypatch.setattr("dpmtrain.train.volume_scans.random_shapes", lambda rng: (head(), VOXEL_MM))
    assert main(given) == 2 and "volume_shapes is 0 there and 1 here" in capsys.readouterr().err
