"""Volume scans for training inside the sampler: what they hold, that they are kept, and what is trained on them."""

import json

import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.physics.scale import RULE
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint
from dpmrecon.prior.denoiser import uncounted
from dpmrecon.prior.problem import NoiseSource
from dpmrecon.prior.samplers.diffusion import SamplerSettings, sample_prox, turned
from dpmtrain.cli import main
from dpmtrain.data.dataset import PreparedSlices
from dpmtrain.train import volume_scans
from dpmtrain.train.in_sampler import ShownPlanes, squared, volume_loss
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
    with pytest.raises(BadInputError, match="no prepared volume is cut in three directions"):
        VolumeScans(tmp_path, 1).make(PreparedSlices(prepared, 1.0, ["*_slices"]), 5)
    monkeypatch.setattr(volume_scans, "scanned", lambda *given: None)
    with pytest.raises(BadInputError, match="50 scans of the prepared volumes fold"):
        VolumeScans(tmp_path, 1).make(PreparedSlices(prepared, 1.0), 5)


def test_planes_are_trained_as_the_sampler_shows_them(scans, monkeypatch):
    scan, model, label = scans.draw(generator()), denoiser(), torch.eye(2)[1:]
    settings = SamplerSettings(steps=5, sigma_max=0.5, noise_scale=0.3, turns=True)
    seen = []

    class Watched(ShownPlanes):
        def of_planes(self, planes, sigma, at_once):
            seen.append((planes, sigma))
            return super().of_planes(planes, sigma, at_once)

    monkeypatch.setattr("dpmtrain.train.in_sampler.PLANES", 1000)  # all
    prior = Watched(model, label, uncounted, scan, {1, 4}, generator())
    found = sample_prox(scan.problem, prior, settings, NoiseSource([5]))
    with torch.no_grad():
        wanted = sample_prox(scan.problem, model.of_contrast("t2"), settings, NoiseSource([5]))
    assert torch.allclose(found, wanted, atol=1e-5) and not found.requires_grad and len(prior.losses) == 2
    axes = scan.problem.planes.axes
    for loss, number in zip(prior.losses, (1, 4)):
        planes, sigma = seen[number]
        axis, orientation = axes[number % len(axes)], number // len(axes)
        clean, support = (
            turned(part.movedim(axis, 0), orientation) for part in (scan.clean, scan.problem.model.support)
        )
        levels = torch.full((len(planes),), sigma)
        left = squared((model(planes, levels, label.expand(len(planes), -1)) - clean) * support).mean()
        assert loss.requires_grad
        assert loss.item() == pytest.approx((left / squared((planes - clean) * support).mean()).item(), rel=1e-3)


def test_training_lowers_the_loss_of_volumes(scans):
    model = denoiser()

    def loss(seed):
        scan = scans.draw(generator(seed))
        return volume_loss(model, scan, model.one_hot([scan.contrast]), generator(seed))

    with torch.no_grad():
        before = sum(loss(seed).item() for seed in (100, 101))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(12):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    with torch.no_grad():
        assert sum(loss(seed).item() for seed in (100, 101)) < 0.8 * before


def test_a_run_makes_its_scans_and_keeps_a_share_of_its_start(prepared, tmp_path, capsys):
    recipe, start, out = (tmp_path / name for name in ("r.toml", "start.safetensors", "out.safetensors"))
    recipe.write_text(TIMED + "slice_weight = 1.0\nvolume_scans = 1\nvolume_share = 1.0\nvolume_weight = 0.5\n")
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
