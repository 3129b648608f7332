"""Whether prior and data agree: the numbers, their limits in the card, and what a scan's images get of it."""

import math
from dataclasses import replace

import dpmrecon
import numpy as np
import pydicom
import pytest
import torch
from dpmrecon.cli import main
from dpmrecon.errors import BadInputError, CheckpointError
from dpmrecon.hosts.engine import Engine
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.options import Options
from dpmrecon.prior.checkpoint import load_checkpoint, write_card
from dpmrecon.recon.agreement import (
    COVARIATES,
    HELD_BACK,
    NAMES,
    SIGMAS,
    SLICES,
    VOLUMES,
    Limits,
    agreed,
    agreement,
    covariates,
    kind_of,
    known_of,
    parts_of,
    without_limits,
)
from dpmrecon.recon.gate import FAR, unfamiliar
from dpmrecon.recon.held_back import can_be_held_back, held_back, outer_lines
from dpmrecon.recon.planes import N_PLANES, planes_across_readout
from dpmrecon.recon.prepare import with_maps
from dpmrecon.recon.types import Agreement, MappedSlice, MappedVolume, Reconstruction
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.slices import simulated_kspace

from support.gate import gate_entry
from support.models import SAMPLING, TINY, saved_model
from support.results import images, report
from support.sessions import Here
from support.streams import raw_stream

CPU = torch.device("cpu")
UNASKED = "prior_and_data_not_asked"  # in report and audit line


@pytest.fixture
def mapped(simulated_scan):
    with open_scan(simulated_scan(matrix=(61, 48), n_coils=5, acceleration=3, noise=0.01)) as scan:
        (data,) = slices(scan.acquisitions(), scan.header)
    return with_maps(data, CPU)


@pytest.fixture
def prior(tmp_path):
    return load_checkpoint(saved_model(tmp_path / "tiny.safetensors")).denoiser.of_contrast("flair")


def test_what_a_white_prior_moves_is_known(mapped, prior):
    """D(x) = x / (1 + sigma^2 / s^2): of x + sigma n it takes a share of x away and leaves a share of n."""
    found, white = agreement(mapped, prior), TINY["sigma_data"]
    assert list(found) == list(NAMES)
    inside = mapped.model.support > 0
    energy = float((mapped.conventional[inside].abs() / mapped.scale).square().mean()) / 2  # a real channel's
    for sigma in SIGMAS:
        kept = white**2 / (white**2 + sigma**2)
        expected = math.sqrt((1 - kept) ** 2 * energy + (kept * sigma) ** 2) / sigma
        assert math.exp(found[f"denoised at {sigma:g}"]) == pytest.approx(expected, rel=0.1)
        assert math.exp(found[f"kept at {sigma:g}"]) == pytest.approx(kept, rel=0.1, abs=0.02)


def test_lines_that_moved_are_not_foretold(mapped, prior):
    place = torch.arange(48) - 24
    moved = mapped.data.kspace.clone()
    moved[:, 31::6] *= torch.polar(torch.ones(48), -2 * torch.pi * 4 * place / 48)
    spoiled = replace(mapped, data=replace(mapped.data, kspace=moved))
    assert agreement(spoiled, prior)[HELD_BACK] > agreement(mapped, prior)[HELD_BACK] + 0.3
    assert agreement(mapped, prior) == agreement(mapped, prior)


def test_the_distance_is_one_at_the_limit(mapped):
    limits = Limits.of({"gate": gate_entry(2.0, level=1.5)}, "flair")
    at = dict.fromkeys(NAMES, 1.5)
    assert limits.judge(at, mapped).distance == 0
    beside = limits.judge({**at, HELD_BACK: 3.5}, mapped)
    assert beside.distance == pytest.approx(1) and beside.deviations[HELD_BACK] == pytest.approx(2)
    assert beside.beyond is None
    noisy = replace(mapped, scale=mapped.data.sigma_n / 0.2)
    assert "its noise is 0.2 of the bright parts" in limits.judge(at, noisy).beyond
    fast = replace(mapped, data=replace(mapped.data, acceleration=12.0))
    assert "R = 12 is more than the 8" in limits.judge(at, fast).beyond
    small = replace(limits, ranges={**limits.ranges, "matrix": (9000.0, 9999.0)})
    assert limits.exclude(mapped) is None and "pixels are not the 9000 to 9999" in small.exclude(mapped)
    assert covariates(0.02, 4, 900)[:4] == [1, math.log(0.02), math.log(4), math.log(900)]


def test_noise_below_what_was_measured_counts_as_the_lowest(mapped):
    limits = Limits.of({"gate": gate_entry(1.0, by_noise=1.0)}, None)
    values = dict.fromkeys(NAMES, math.log(0.004))
    quiet = replace(mapped, scale=mapped.data.sigma_n / 1e-4)
    assert limits.judge(values, quiet).distance == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("distance, kind", [(0.99, None), (1.01, "remark"), (FAR + 0.01, "distrust")])
def test_far_is_said_and_farther_is_not_trusted(mapped, distance, kind):
    item = Reconstruction(mapped, mapped.conventional, None, None, 1.0)
    assert unfamiliar(item) is None
    deviations = {HELD_BACK: 0.5, "denoised at 0.06": -5.0}
    found = unfamiliar(replace(item, agreement=Agreement({}, deviations, distance)))
    assert (found and found.kind) == kind
    if found is not None:
        assert "less detail than in sound scans of this contrast, by 5.0" in found.text
        assert "--adapt fits the prior to it" in found.text
        adapted = replace(item, adaptation="prior adapted", agreement=Agreement({}, deviations, distance))
        assert "--adapt" not in unfamiliar(adapted).text
        usual = unfamiliar(replace(item, agreement=Agreement({}, {HELD_BACK: 0.5}, distance)))
        assert "does not go together" in usual.text
        beyond = unfamiliar(replace(item, agreement=Agreement({}, deviations, distance, "so noisy")))
        assert (beyond.kind, beyond.text) == ("remark", "so noisy")


@pytest.mark.parametrize("lacking", ["fits", "sigma_n", "R", "head", "matrix"])
def test_a_card_that_lacks_limits_says_so(lacking):
    assert Limits.of({}, "flair") is None
    card = gate_entry(1.0)
    del card[lacking]
    with pytest.raises(CheckpointError, match="dpmtrain gate"):
        Limits.of({"gate": card}, "flair")


def test_limits_of_another_version_are_refused():
    card = gate_entry(1.0)
    card["fits"][0]["slopes"] = card["fits"][0]["slopes"][1:]
    with pytest.raises(CheckpointError, match="another version"):
        Limits.of({"gate": card}, "flair")


def pixels(out) -> np.ndarray:
    return np.stack([image.data for image in images(out)])


@pytest.mark.parametrize("distance, verdict", [(0.9, "trusted"), (1.1, "caution"), (2.5, "not trusted")])
def test_the_gate_speaks_and_leaves_images_alone(simulated_scan, tmp_path, distance, verdict, capsys):
    model = saved_model(tmp_path / "tiny.safetensors", sampling=SAMPLING)
    with open_scan(simulated_scan(noise=0.01)) as opened:
        (data,) = slices(opened.acquisitions(), opened.header)
    values = agreement(with_maps(data, CPU), load_checkpoint(model).denoiser.of_contrast("flair"))
    write_card(model, gate=gate_entry(math.hypot(*values.values()) / distance))
    scan, common = str(simulated_scan(noise=0.01)), ("--model", str(model), "--device", "cpu")
    codes = {}
    for gate in ("off", "warn", "fallback"):
        codes[gate] = main(["replay", scan, "--out", str(tmp_path / gate), "--gate", gate, *common])
    screen = "".join(capsys.readouterr())
    assert np.array_equal(pixels(tmp_path / "off"), pixels(tmp_path / "warn"))
    (off,), (warn,), (fallback,) = (report(tmp_path / gate)["slices"] for gate in codes)
    assert off["verdict"] == "trusted" and "agreement" not in off and "gate" not in off["seconds"]
    assert warn["verdict"].partition(":")[0] == verdict and set(warn["agreement"]["values"]) == set(NAMES)
    distrusted = verdict == "not trusted"
    assert codes == {"off": 0, "warn": 0, "fallback": 3 if distrusted else 0}
    assert (fallback["fallback"] is not None) == distrusted
    assert np.array_equal(pixels(tmp_path / "warn"), pixels(tmp_path / "fallback")) != distrusted
    (image,) = images(tmp_path / "warn")
    assert image.meta["dpmrecon_verdict"] == warn["verdict"]
    file = pydicom.dcmread(next((tmp_path / "warn" / "dicom").glob("01_*/*.dcm")))
    word = {"trusted": None, "caution": "CAUTION", "not trusted": "NOT TO BE TRUSTED"}[verdict]
    for text in (file.ImageComments, screen):
        assert word is None or word in text
    if word is None:
        assert file.ImageComments == "RESEARCH: not for diagnostic use"


FOLDS = {"wrap": True, "contrast": "t1", "noise": 0.0075}
VOLUME = {"matrix": (27, 24), "partitions": 21, "n_coils": 5, "calibration_lines": 12, "noise": 0.01}


def mapped_of(path) -> MappedSlice:
    with open_scan(path) as scan:
        (data,) = slices(scan.acquisitions(), scan.header)
    return with_maps(data, CPU)


@pytest.fixture
def folded(simulated_scan) -> MappedSlice:
    found = mapped_of(simulated_scan(matrix=(96, 96), fov_mm=(150.0, 230.0), **FOLDS))
    assert found.n_sets == 2
    return found


@pytest.fixture
def volume(simulated_scan) -> MappedVolume:
    return mapped_of(simulated_scan(**VOLUME))


@pytest.fixture
def folded_volume(simulated_scan) -> MappedVolume:
    found = mapped_of(simulated_scan(**{**VOLUME, **FOLDS, "matrix": (30, 24), "fov_mm": (150.0, 230.0)}))
    assert found.n_sets == 2
    return found


@pytest.mark.parametrize("which", ["volume", "folded_volume"])
def test_a_plane_is_what_the_volume_has_there(which, request):
    """A x of the volume, at a position of the readout, is that of the plane: data, images and misfit too."""
    mapped = request.getfixturevalue(which)
    found = planes_across_readout(mapped)
    assert 1 < len(found) <= N_PLANES and all(can_be_held_back(plane) for plane in found)
    whole = mapped.model.forward(mapped.conventional)
    places = [
        int((whole - plane.model.forward(plane.conventional)[..., None]).abs().sum((0, 1, 2)).argmin())
        for plane in found
    ]
    assert places == sorted(set(places))
    for place, plane in zip(places, found):
        torch.testing.assert_close(plane.model.forward(plane.conventional), whole[..., place], rtol=1e-4, atol=1e-3)
        assert torch.equal(plane.data.kspace, mapped.data.kspace[..., place])
        torch.testing.assert_close(
            plane.model.adjoint(plane.data.kspace), mapped.zero_filled[..., place], rtol=1e-3, atol=1e-2
        )
        assert (plane.n_sets, plane.scale) == (mapped.n_sets, mapped.scale)
        assert plane.pixel_mm == mapped.data.voxel_mm[:2]
        assert plane.residual(plane.conventional) < 2


def test_points_outside_of_the_calibration_block_are_held_back(volume):
    plane = planes_across_readout(volume)[1]
    found = outer_lines(plane)
    acquired = {tuple(place) for place in torch.nonzero(plane.model.mask).tolist()}
    block = {(p, row) for p in range(10 - 6, 10 + 6) for row in range(13 - 6, 13 + 6)}
    assert plane.block == (12, 12) and set(found) == acquired - block
    held = held_back(plane, found[::4])
    assert {tuple(place) for place in torch.nonzero(held.left_out.mask).tolist()} == set(found[::4])
    assert torch.equal(held.left_out.mask + held.problem.model.mask, plane.model.mask)
    assert not can_be_held_back(replace(plane, block=tuple(plane.model.mask.shape)))


@pytest.mark.parametrize("which", ["volume", "folded_volume"])
def test_moved_partitions_are_not_foretold(which, request, prior):
    sound = request.getfixturevalue(which)
    moved = sound.data.kspace.clone()
    moved[:, 1::2] = sound.data.kspace[:, 1::2].roll(3, -1)
    spoiled = replace(sound, data=replace(sound.data, kspace=moved))
    before, after = ([agreement(part, prior)[HELD_BACK] for part in parts_of(one)] for one in (sound, spoiled))
    assert np.median(after) > np.median(before) + 0.3


def test_a_volume_without_calibration_is_not_asked(volume):
    """Maps of its own make a calibration needless."""
    shipped = dpmrecon.load_model(None, "cpu")
    bare = replace(volume, data=replace(volume.data, calibration=None))
    assert planes_across_readout(bare) == []
    assert "no calibration" in agreed(bare, shipped, None)


def test_a_cut_echo_couples_the_planes(simulated_scan, tmp_path):
    cut = mapped_of(simulated_scan(**{**VOLUME, "asymmetric_echo": 0.7}))
    assert planes_across_readout(cut) == []
    checkpoint = load_checkpoint(saved_model(tmp_path / "tiny.safetensors"))
    checkpoint.card["gate"] = {**gate_entry(1.0), VOLUMES: gate_entry(1.0, kind=VOLUMES)}
    assert "echo is cut" in agreed(cut, checkpoint, "flair")


def test_the_first_image_of_a_folded_head_is_denoised(folded, prior):
    found, white = agreement(folded, prior), TINY["sigma_data"]
    support = folded.model.support[0] > 0
    energy = float((folded.conventional[0][support].abs() / folded.scale).square().mean()) / 2
    for sigma in SIGMAS:
        kept = white**2 / (white**2 + sigma**2)
        expected = math.sqrt((1 - kept) ** 2 * energy + (kept * sigma) ** 2) / sigma
        assert math.exp(found[f"denoised at {sigma:g}"]) == pytest.approx(expected, rel=0.1)


def test_every_kind_of_scan_has_limits_of_its_own(mapped, folded, volume, folded_volume, tmp_path):
    checkpoint = load_checkpoint(saved_model(tmp_path / "tiny.safetensors"))
    prior = checkpoint.denoiser.of_contrast("flair")
    assert [kind_of(one) for one in (mapped, folded, volume, folded_volume)] == [SLICES, SLICES, VOLUMES, VOLUMES]
    checkpoint.card["gate"] = gate_entry(1.0)
    assert isinstance(agreed(mapped, checkpoint, "flair"), Agreement)
    assert agreed(volume, checkpoint, "flair") == without_limits(checkpoint, VOLUMES)
    checkpoint.card["gate"] = gate_entry(2.0) | {VOLUMES: gate_entry(2.0, kind=VOLUMES)}
    assert agreed(folded, checkpoint, "flair").distance == pytest.approx(
        math.hypot(*agreement(folded, prior).values()) / 2
    )
    for one in (volume, folded_volume):
        far = sorted(math.hypot(*agreement(part, prior).values()) / 2 for part in parts_of(one))
        assert agreed(one, checkpoint, "flair").distance == pytest.approx(far[len(far) // 2])
        assert known_of(parts_of(one)[0])["sets"] == one.n_sets


def test_planes_of_much_longer_pixels_than_known_are_not_asked(volume):
    limits = Limits.of({"gate": {VOLUMES: gate_entry(1.0, kind=VOLUMES)}}, "flair", VOLUMES)
    plane = planes_across_readout(volume)[0]
    assert limits.exclude(plane) is None
    assert limits.exclude(replace(plane, pixel_mm=(9.0, 3.0))).startswith("its pixels are 3.0 times as long as wide")
    assert "no lines to hold back" in limits.exclude(replace(plane, block=tuple(plane.model.mask.shape)))
    known = known_of(replace(plane, pixel_mm=(8.0, 2.0)))
    assert (known["pixel_mm"], known["ratio"], known["sets"]) == (4.0, 4.0, 1.0)
    assert len(covariates(**known)) == COVARIATES[VOLUMES]
    far = limits.judge(dict.fromkeys(NAMES, 0.0), replace(plane, data=replace(plane.data, acceleration=12.0)))
    assert "R = 12 is more than the 8" in far.beyond


def test_adaptation_is_not_advised_where_there_is_none(folded, volume):
    for mapped in (folded, volume):
        agreement = Agreement({}, {HELD_BACK: 5.0}, 1.5)
        item = Reconstruction(mapped, mapped.conventional, None, None, 1.0, agreement=agreement)
        assert "foretold worse" in unfamiliar(item).text and "--adapt" not in unfamiliar(item).text


@pytest.mark.parametrize("lacking", ["fits", "head", "sets"])
def test_a_card_whose_limits_of_volumes_lack_something_says_so(lacking):
    card = gate_entry(1.0, kind=VOLUMES)
    del card[lacking]
    assert Limits.of({"gate": gate_entry(1.0)}, "flair", VOLUMES) is None
    with pytest.raises(CheckpointError, match="dpmtrain gate"):
        Limits.of({"gate": {**gate_entry(1.0), VOLUMES: card}}, "flair", VOLUMES)


def test_the_gate_speaks_of_a_volume_and_leaves_its_image_alone(simulated_scan, tmp_path):
    model = saved_model(tmp_path / "tiny.safetensors", sampling=SAMPLING)
    write_card(model, gate={**gate_entry(1.0), VOLUMES: gate_entry(1e-3, kind=VOLUMES)})
    scan, common = str(simulated_scan(**VOLUME)), ("--model", str(model), "--device", "cpu")
    codes = [main(["replay", scan, "--out", str(tmp_path / gate), "--gate", gate, *common]) for gate in ("off", "warn")]
    assert codes == [0, 0] and np.array_equal(pixels(tmp_path / "off"), pixels(tmp_path / "warn"))
    (off,), (warn,) = (report(tmp_path / gate)["slices"] for gate in ("off", "warn"))
    assert "agreement" not in off and warn["verdict"].startswith("not trusted")
    assert warn["agreement"]["distance"] > FAR and warn["seconds"]["gate"] > 0


def test_a_model_that_is_not_asked_says_so(simulated_scan, mapped, model, tmp_path, capsys):
    default, one_step = load_checkpoint(), load_checkpoint("one-step")
    assert [without_limits(default, kind) for kind in (SLICES, VOLUMES)] == [None, None]
    assert without_limits(one_step, SLICES) is None  # the prior that ends it is asked
    alone = load_checkpoint("one-step", later=False)
    assert without_limits(alone, SLICES) == f"the card of {alone.model_id} has no limits of the gate for slices"
    site = load_checkpoint(model)
    assert agreed(mapped, site, "flair") == without_limits(site, SLICES)
    scan = str(simulated_scan())
    for gate, times in (("warn", 1), ("fallback", 1), ("off", 0)):
        assert main(["replay", scan, "--out", str(tmp_path), "--model", str(model), "--gate", gate]) == 0
        assert (
            capsys.readouterr().err.count(f"whether prior and data agree was not asked: the card of {site.model_id}")
            == times
        )
        said = [without_limits(site, SLICES)] * times
        assert [e[UNASKED] for e in report(tmp_path)["slices"] if UNASKED in e] == said


def test_the_audit_line_says_that_a_model_was_not_asked(simulated_scan, model):
    for gate, count in (("warn", 1), ("off", 0)):
        here = Here(Engine.of(Options(model=model, device="cpu", gate=gate)))
        here.exchange(*raw_stream(simulated_scan()))
        line = here.session.record
        assert line["verdicts"] == {"trusted": 1}
        assert list(line.get(UNASKED, {}).values()) == [1] * count


def test_python_has_the_gate_too(simulated_scan, tmp_path):
    model = saved_model(tmp_path / "tiny.safetensors", sampling=SAMPLING)
    write_card(model, gate=gate_entry(1e-3))
    kspace, _ = simulated_kspace(SimulationSettings(matrix=(64, 64), n_coils=5, acceleration=2, n_slices=1))
    found = {gate: dpmrecon.reconstruct(kspace, model=model, gate=gate) for gate in ("off", "warn", "fallback")}
    assert [result.verdict.partition(":")[0] for result in found.values()][:2] == ["trusted", "not trusted"]
    assert np.array_equal(found["off"].image, found["warn"].image)
    assert np.array_equal(found["fallback"].image, found["off"].conventional) and found["fallback"].fallback
    with pytest.raises(BadInputError, match="off, warn, fallback"):
        dpmrecon.reconstruct(kspace, model=model, gate="maybe")
