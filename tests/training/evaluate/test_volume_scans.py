"""3D scans in `evaluate`, `kit` and `prepare`: masks of lines, whole volumes as references, volumes to train on."""

import csv

import numpy as np
import pytest
import torch
from dpmrecon.data import Volume
from dpmrecon.errors import BadInputError
from dpmrecon.simulation.settings import VolumeSettings
from dpmrecon.simulation.simulate import simulate, truth_path
from dpmtrain.cli import main
from dpmtrain.data.dataset import read_manifest
from dpmtrain.data.items import Settings
from dpmtrain.data.kinds import inspect, read
from dpmtrain.evaluate.metrics import Moments, scan_factor
from dpmtrain.evaluate.plan import Condition, Plan
from dpmtrain.evaluate.references import measured_slices
from dpmtrain.evaluate.scoring import Undersampled
from dpmtrain.evaluate.undersampling import sampling_mask, undersampled

pytestmark = pytest.mark.usefixtures("short_kernel")
CPU = torch.device("cpu")
SCAN = {
    "contrast": "t1",
    "matrix": (30, 26),
    "fov_mm": (240.0, 234.0),
    "partitions": 20,
    "slice_thickness_mm": 8.0,
    "slice_oversampling": 1.1,
    "n_coils": 6,
    "calibration_lines": 10,
    "noise": 0.004,
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Fully sampled, R = 2 along the rows, and R = 4."""
    folder = tmp_path_factory.mktemp("hospital")
    for name, rows, partitions in (("full", 1, 1), ("twice", 2, 1), ("four", 2, 2)):
        simulate(folder / f"{name}.h5", VolumeSettings(**SCAN, acceleration=rows, partition_acceleration=partitions))
    return folder


@pytest.fixture(scope="module")
def full(scans):
    """The fully sampled one as a reference."""
    (found,) = measured_slices(scans / "full.h5")
    return found


@pytest.mark.parametrize("R, partitions, rows", [(4, 2, 2), (6, 2, 3), (5, 1, 5), (2, 1, 2)])
def test_a_regular_mask_of_a_volume_takes_every_rth_line(R, partitions, rows):
    mask = sampling_mask("caipirinha", torch.ones(31, 37, 5), R, 0, 0)
    lines = mask[..., 0].bool()
    assert torch.equal(mask, mask[..., :1].expand_as(mask))
    assert lines.sum().item() == pytest.approx(31 * 37 / R, rel=0.1) and lines[31 // 2, 37 // 2]
    taken = lines.any(0).nonzero().flatten()
    assert set(taken.diff().tolist()) == {rows}
    steps = {tuple(set(lines[:, row].nonzero().flatten().diff().tolist())) for row in taken}
    assert steps == {(partitions,)}
    if partitions == 2:  # neighbouring rows take other partitions
        assert not (lines[:, taken[:-1]] & lines[:, taken[1:]]).any()


def test_masks_of_volumes_keep_a_block_and_what_was_acquired():
    poisson = sampling_mask("poisson 3D", torch.ones(30, 41, 3), 5, 9, 2)[..., 0]
    assert poisson[15 - 4 : 15 + 5, 20 - 4 : 20 + 5].all() and poisson.mean().item() == pytest.approx(0.2, abs=0.06)
    acquired = torch.zeros(30, 41, 3)
    acquired[:, 1::2, 1:] = 1  # R = 2 along the rows, an echo that is cut
    twice = sampling_mask("caipirinha", acquired, 4, 0, 0)
    assert torch.equal(twice, twice * acquired) and twice.sum().item() == pytest.approx(acquired.sum().item() / 2)
    with pytest.raises(BadInputError, match="R = 3 cannot be had"):
        sampling_mask("caipirinha", acquired, 3, 0, 0)
    with pytest.raises(BadInputError, match="needs fully sampled data"):
        sampling_mask("poisson 3D", acquired, 4, 0, 0)


def test_volumes_have_their_own_conditions():
    plan = Plan((4,), ("regular", "random", "poisson"), (12,))
    assert [c.mask for c in plan.conditions(1, volume=True)] == ["caipirinha", "poisson 3D"]
    assert plan.conditions(2, volume=True) == [Condition("caipirinha", 4, 12, 2)]
    assert "volumes" in plan.conditions(2, volume=True)[0].sampling()


def test_a_3d_scan_is_one_reference_and_stays_as_it_is(scans, full):
    """Maps of a block and of the full data; the reference's k-space is not used up."""
    (given,) = measured_slices(scans / "full.h5", truth_path(scans / "full.h5"))
    assert full.is_volume and full.truth.shape == (20, 30, 26)  # without its oversampled partitions
    moments = Moments.of(full.truth, given.truth, np.ones(full.truth.shape, bool))
    assert moments.nrmse(scan_factor([moments])) < 0.05
    before = full.data.kspace.clone()
    errors = {}
    for lines in (10, 0):
        here = Undersampled(given, Condition("caipirinha", 4, lines), CPU)
        assert isinstance(here.mapped.data, Volume) and here.mapped.data.acceleration == 4
        for name in ("zero_filled", "conventional"):
            score = here.score(here.mapped.model.combined(getattr(here.mapped, name)))
            found = Moments(score["cross"], score["image"], score["truth"])
            errors[name, lines] = found.nrmse(scan_factor([found]))
        assert errors["conventional", lines] < 0.7 * errors["zero_filled", lines]
    here = Undersampled(given, Condition("caipirinha", 4, 10), CPU)
    assert not (here.left_out.data.mask * here.mapped.data.mask).any()
    assert here.missed(here.mapped.conventional) < 0.5 * here.missed(0 * here.mapped.conventional)
    assert torch.equal(given.data.kspace, before) and torch.equal(full.data.kspace, before)
    with pytest.raises(BadInputError, match="is accelerated R = 4"):
        measured_slices(scans / "four.h5")


def test_a_separate_calibration_of_a_volume_is_cropped(full):
    apart = full.data
    mask = apart.mask.clone()
    mask[:, 1::2] = 0
    apart = Volume(**{**vars(apart), "mask": mask, "kspace": apart.kspace * mask, "calibration": apart.calibration})
    found = undersampled(apart, mask, 2, 8)
    middle = apart.calibration.shape[1] // 2, apart.calibration.shape[2] // 2
    wanted = apart.calibration[:, middle[0] - 4 : middle[0] + 4, middle[1] - 4 : middle[1] + 4]
    assert torch.equal(found.calibration, wanted)
    assert found.n_lines_got == int(mask.amax(-1).sum())


def test_evaluate_scores_whole_volumes(scans, tmp_path, model, capsys):
    command = [
        "evaluate",
        str(scans / "full.h5"),
        str(scans / "twice.h5"),
        "--truth",
        str(truth_path(scans / "full.h5")),
    ]
    command += ["-", "--images", str(tmp_path), "--R", "4", "--sampling", "regular,random", "--acs", "10"]
    command += [
        "--conventional",
        "zero-filled",
        "--model",
        str(model),
        "--samples",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    where = {(row["sampling"], row["method"]): float(row["NRMSE"]) for row in rows}
    regular = "volumes, 2D regular (CAIPIRINHA), ACS 10"
    assert set(where) == {(f"{regular}{of}", m) for of in ("", ", of an R=2 scan") for m in ("zero-filled", "prox")}
    assert where[regular, "prox"] < 0.8 * where[regular, "zero-filled"]


def test_prepare_takes_3d_scans_that_are_full_or_of_r_two(scans, tmp_path, capsys):
    assert main(["prepare", str(scans), "--out", str(tmp_path), "--jobs", "1"]) == 3
    assert "four.h5: it is accelerated R=4" in capsys.readouterr().err
    volumes = {entry["file"]: entry for entry in read_manifest(tmp_path)["volumes"]}
    assert sorted(volumes) == ["full.npy", "twice.npy"]
    assert volumes["full.npy"]["reference"] == "fully sampled" and volumes["twice.npy"]["reference"] == "SENSE R=2"
    for entry in volumes.values():
        assert entry["voxel_mm"] == pytest.approx([8.0, 8.0, 9.0]) and entry["shape"][1:] == [30, 26]


def test_a_3d_scan_becomes_a_volume_of_one_phase_on_the_encoded_grid(scans):
    (item,) = inspect(scans / "full.h5", scans, Settings(), in_folder=True)
    (volume,), faults = read(item)
    truth = np.load(truth_path(scans / "full.h5"))
    assert not faults and volume.coherent and volume.slices.shape == (22, 30, 26)
    image = np.abs(volume.slices[1:21])  # without the oversampled partitions
    moments = Moments.of(image, truth, np.ones(truth.shape, bool))
    assert moments.nrmse(scan_factor([moments])) < 0.05
    assert np.abs(np.angle(volume.slices[1:21][truth > 0.5 * truth.max()])).mean() < 0.3  # without its smooth part
