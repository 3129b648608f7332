"""Averages that have a phase each: one problem of all of them, from arrays, from a file and from a peer."""

from dataclasses import replace

import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.data import LostSlice, Slice, SliceKey
from dpmrecon.dicom.viewer import read_series
from dpmrecon.hosts.engine import Engine
from dpmrecon.mrd.averages import have_phases, together
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.receiving import Receiving
from dpmrecon.options import Options
from dpmrecon.output.mrd_images import remarks_of
from dpmrecon.physics.fourier import to_image, to_kspace
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.recon.conventional import mapped_slice
from dpmrecon.recon.phases import with_phases
from dpmrecon.recon.prepare import with_coil_maps

from support import fake_peer
from support.edited import edited
from support.results import images, replay, report
from support.sessions import Here
from support.streams import edited_stream, raw_stream

CPU = torch.device("cpu")
ROWS, COLS, N_COILS = 45, 37, 4
DIFFUSION = {"contrast": "dwi", "b_values": (0.0, 1000.0), "averages": 3, "matrix": (48, 40)}


def head_and_maps():
    """A magnitude (ROWS, COLS) and smooth maps (N_COILS, ROWS, COLS) with sum |s|^2 = 1 on it."""
    down, along = torch.meshgrid(torch.linspace(-1, 1, ROWS), torch.linspace(-1, 1, COLS), indexing="ij")
    inside = (down / 0.85) ** 2 + (along / 0.8) ** 2 < 1
    head = inside * (0.7 + 0.3 * torch.sin(6 * down) * torch.cos(5 * along))
    turns = torch.arange(N_COILS)[:, None, None] * torch.pi / 2
    maps = torch.exp(-((down - turns.cos()) ** 2) - (along - turns.sin()) ** 2 + 1j * (turns + along))
    return head, maps / maps.abs().square().sum(0).sqrt() * inside


def smooth(generator):
    down, along = torch.meshgrid(torch.linspace(-1, 1, ROWS), torch.linspace(-1, 1, COLS), indexing="ij")
    start, one, other, bend = 3 * torch.randn(4, generator=generator)
    return torch.exp(1j * (start + one * down / 2 + other * along / 2 + bend * down * along / 4))


def averages(count, sigma, seed=1, *, scrambled=True):
    generator = torch.Generator().manual_seed(seed)
    head, maps = head_and_maps()
    mask = torch.zeros(ROWS, COLS)
    mask[::2] = 1
    mask[14:30] = 1
    found = []
    for number in range(count):
        phase = smooth(generator) if scrambled else torch.ones(ROWS, COLS)
        kspace = to_kspace(maps * head * phase) + sigma * complex_noise((N_COILS, ROWS, COLS), generator)
        key = SliceKey(0, average=number)
        found.append(Slice(key, mask * kspace, mask, None, sigma, "given", 2, 31, 31, key.seed_key))
    return found, head, maps


def test_the_joint_model_is_all_averages_with_their_phases_and_has_an_adjoint():
    parts, _, maps = averages(3, 0.02)
    joint = with_phases(parts, maps, {})
    model, generator = joint.model, torch.Generator().manual_seed(5)
    assert model.coil_maps.shape == (3 * N_COILS, ROWS, COLS)
    inside = model.support > 0
    assert torch.allclose(model.coil_maps.abs().square().sum(0)[inside], torch.ones(1), atol=1e-5)
    image, kspace = complex_noise((ROWS, COLS), generator), complex_noise((3 * N_COILS, ROWS, COLS), generator)
    one = torch.vdot(model.forward(image).flatten(), kspace.flatten())
    other = torch.vdot(image.flatten(), model.adjoint(kspace).flatten())
    assert abs(one - other) < 1e-4 * abs(one)
    for number, part in enumerate(parts):
        own = slice(number * N_COILS, (number + 1) * N_COILS)
        phase = (model.coil_maps[own] * maps.conj()).sum(0) * 3**0.5
        assert torch.allclose(phase.abs()[inside], torch.ones(1), atol=1e-4)
        expected = part.mask * to_kspace(maps * (phase * image))
        assert torch.allclose(3**0.5 * model.forward(image)[own], expected, atol=1e-4)
        assert torch.allclose(3**0.5 * joint.data.kspace[own], part.kspace, atol=1e-5)
    assert joint.data.sigma_n == pytest.approx(0.02 / 3**0.5)
    assert (joint.data.n_averages, joint.n_sets) == (3, 1)
    # what the first average's phase leaves of the image is nearly real
    assert joint.conventional.imag.norm() < 0.1 * joint.conventional.real.norm()


def error(image, head):
    return float((image.abs() - head).norm() / head.norm())


def test_scrambled_averages_are_worth_one_of_twice_the_snr_and_their_mean_is_not():
    sigma = 0.1
    joint, better, mean = [], [], []
    for seed in range(4):
        parts, head, maps = averages(4, sigma, seed)
        joint.append(error(with_phases(parts, maps, {}).conventional, head))
        (one,), head, maps = averages(1, sigma / 2, seed, scrambled=False)
        better.append(error(mapped_slice(one, maps, {}).conventional, head))
        lines = replace(parts[0], kspace=sum(part.kspace for part in parts) / 4, sigma_n=sigma / 2)
        mean.append(error(mapped_slice(lines, maps, {}).conventional, head))
    assert np.mean(joint) == pytest.approx(np.mean(better), rel=0.1)
    assert min(mean) > 2 * max(joint)


def in_shots(part, n_shots, generator):
    """The slice as acquired in interleaved shots, each of which has another phase."""
    rows = torch.full((ROWS,), -1)
    acquired = torch.nonzero(part.mask.any(1)).flatten()
    rows[acquired] = torch.arange(len(acquired)) % n_shots
    head, maps = head_and_maps()
    kspace = part.kspace.clone()
    for shot in range(n_shots):
        own = to_kspace(maps * head * smooth(generator)) + part.sigma_n * complex_noise(kspace.shape, generator)
        kspace[:, rows == shot] = own[:, rows == shot]
    return replace(part, kspace=kspace, shots=rows, acceleration=1)


@pytest.mark.parametrize("count, n_shots", [(1, 2), (2, 3)])
def test_shots_with_a_phase_each_are_one_image(count, n_shots):
    parts, head, maps = averages(count, 0.02)
    generator = torch.Generator().manual_seed(3)
    shots = [in_shots(part, n_shots, generator) for part in parts]
    joint = with_phases(shots, maps, {})
    assert error(joint.conventional, head) < 1.15 * error(with_phases(parts, maps, {}).conventional, head)
    assert error(with_phases([replace(part, shots=None) for part in shots], maps, {}).conventional, head) > 0.2
    model = joint.model
    assert model.mask.shape == (count * n_shots * N_COILS, ROWS, COLS)
    assert torch.equal(model.mask.amax(0), parts[0].mask) and torch.equal(joint.data.mask, parts[0].mask)
    # each sample that came is there once
    assert float(model.mask.sum()) == count * N_COILS * float(parts[0].mask.sum())
    assert joint.data.sigma_n == pytest.approx(0.02 / count**0.5)
    assert joint.residual(joint.conventional) < 1.1
    # the dense normal operator, and the packed one that the solver has
    image, kspace = complex_noise((ROWS, COLS), generator), complex_noise(model.mask.shape, generator)
    one = torch.vdot(model.forward(image).flatten(), kspace.flatten())
    assert abs(one - torch.vdot(image.flatten(), model.adjoint(kspace).flatten())) < 1e-4 * abs(one)
    assert torch.allclose(model.normal(image[None])[0], model.adjoint(model.forward(image)), atol=1e-4)


def test_rows_and_channels_of_shots_count_what_they_hold():
    """Noise alone leaves 1 in each."""
    (part,), _, maps = averages(1, 0.02)
    joint = with_phases([in_shots(part, 3, torch.Generator().manual_seed(4))], maps, {})
    kspace = joint.model.mask * 0.02 * complex_noise(joint.model.mask.shape, torch.Generator().manual_seed(5))
    noise = replace(joint, data=replace(joint.data, kspace=kspace))
    found = noise.misfit(torch.zeros(ROWS, COLS, dtype=torch.complex64))
    assert found.residual == pytest.approx(1, abs=0.05) and noise.energy.residual == pytest.approx(1, abs=0.05)
    rows = part.mask.any(1)
    assert torch.allclose(found.by_row[rows], torch.ones(1), atol=0.25) and bool(found.by_row[~rows].isnan().all())
    assert torch.allclose(found.by_channel, torch.ones(1), atol=0.15)


def test_shots_that_coils_do_not_unfold_are_refused_and_those_near_it_said():
    (part,), _, maps = averages(1, 0.02)
    shots = in_shots(part, 2, torch.Generator().manual_seed(3))
    joint = with_phases([replace(shots, acceleration=2)], maps, {})
    assert any("undersampled 4 times, with 4 coils" in remark for remark in joint.data.remarks)
    lost = with_phases([replace(shots, acceleration=3)], maps, {})
    assert isinstance(lost, LostSlice) and "undersampled 6 times, which 4 coils do not unfold" in lost.reason


def test_noise_of_averages_is_pooled():
    parts, _, maps = averages(2, 0.02)
    joint = with_phases([parts[0], replace(parts[1], sigma_n=0.04)], maps, {})
    assert joint.data.sigma_n == pytest.approx((0.02**2 + 0.04**2) ** 0.5 / 2)


def scrambled(scan, folder, lost=()):
    """The scan with a phase for each average, contrast and slice that varies along the readout; lost: (average,
    contrast) of which half the lines do not come."""

    def edit(number, line):
        if line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            return line
        idx = line.idx
        if (idx.average, idx.contrast) in lost and idx.kspace_encode_step_1 > 30:
            return None
        rng = np.random.default_rng([idx.average, idx.contrast, idx.slice])
        along = np.linspace(-1, 1, line.data.shape[1])
        phase = np.exp(1j * np.polyval(rng.normal(0, 3, 3), along)).astype(np.complex64)
        image = to_image(torch.from_numpy(line.data.copy()), (-1,)) * torch.from_numpy(phase)
        line.data[:] = to_kspace(image, (-1,)).numpy()
        return line

    return edited(scan, folder, edit)


def test_averages_of_a_diffusion_scan_are_joined_and_not_added(simulated_scan, model, tmp_path):
    scan = scrambled(simulated_scan(**DIFFUSION, noise=0.02), tmp_path)
    with open_scan(scan) as opened:
        assert have_phases(opened.header)
        first, second = slices(opened.acquisitions(), opened.header, combine_averages=True)
        assert [len(item.others) for item in (first, second)] == [2, 2]
        header = opened.header
        header.sequenceParameters.diffusion, header.measurementInformation.protocolName = [], "T2"
        assert not have_phases(header)
        lost = list(slices(opened.acquisitions(), header, combine_averages=True))
        assert all("averages differ by more than noise" in item.reason for item in lost)
    assert replay(scan, tmp_path / "out", model, "--combine-averages") == 0
    assert [(image.contrast, image.average) for image in images(tmp_path / "out")] == [(0, 0), (1, 0)]
    assert len(images(tmp_path / "out", 5)) == 1
    for entry in report(tmp_path / "out")["slices"]:
        assert (entry["averages"], entry["coils"], entry["matrix"]) == (3, 6, [18, 48, 40])
        assert entry["residual"] < 1.3


def test_peers_get_what_replay_writes(simulated_scan, model, tmp_path):
    scan = scrambled(simulated_scan(**DIFFUSION), tmp_path)
    assert replay(scan, tmp_path / "out", model, "--combine-averages") == 0
    expected = [image.data for image in images(tmp_path / "out")]
    engine = Engine.of(Options(model=model, device="cpu"))
    chain = b"<configuration><stream><external><execute name='dpmrecon.gadget'/><configuration>"
    chain += b"<property name='combine-averages' value='on'/></configuration></external></stream></configuration>"
    sent = Here(engine).exchange(fake_peer.text_message(fake_peer.CONFIG, chain), *raw_stream(scan)[1:])
    found = [image.data for image in sent.images if image.getHead().image_series_index == 1]
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected):
        assert one == pytest.approx(other, abs=0.51)


def test_a_lost_average_is_a_remark(simulated_scan, model, tmp_path):
    scan = scrambled(simulated_scan(**DIFFUSION), tmp_path, lost={(0, 1)})
    assert replay(scan, tmp_path / "out", model, "--combine-averages") == 0
    first, second = report(tmp_path / "out")["slices"]
    assert (first["averages"], second["averages"]) == (3, 2)
    assert any("average 0 is missing: incomplete" in remark for remark in second["remarks"])
    (tmp_path / "more").mkdir()
    scan = scrambled(simulated_scan(**DIFFUSION), tmp_path / "more", lost={(0, 1), (1, 1), (2, 1)})
    assert replay(scan, tmp_path / "none", model, "--combine-averages") == 4


def test_an_image_that_lacks_the_first_average_keeps_its_place(simulated_scan, model, tmp_path):
    """Between its neighbours in DICOM, and in one NIfTI file with them."""

    def without_first(number, line):
        noise = line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        lost = line.idx.slice == 0 and line.idx.average == 0 and line.idx.kspace_encode_step_1 > 30
        return None if lost and not noise else line

    (tmp_path / "lost").mkdir()
    scan = edited(scrambled(simulated_scan(**DIFFUSION, n_slices=3), tmp_path), tmp_path / "lost", without_first)
    assert replay(scan, tmp_path / "out", model, "--combine-averages", "--nifti", "--steps", "1") == 0
    assert [entry["averages"] for entry in report(tmp_path / "out")["slices"] if entry["slice"] == 0] == [2, 2]
    assert {image.average for image in images(tmp_path / "out")} == {0}
    files = read_series(tmp_path / "out" / "dicom")[0]
    assert [round(file.SliceLocation - files[0].SliceLocation) for file in files[:3]] == [0, 5, 10]
    assert [file.DiffusionBValue for file in files] == [0.0] * 3 + [1000.0] * 3
    assert (tmp_path / "out" / "nifti" / "01_reconstruction.nii.gz").exists()
    assert len(images(tmp_path / "out", 5)) == 3


def test_a_last_average_that_no_slice_has_is_said_by_all_hosts(simulated_scan, model, tmp_path):
    def without_last(number, line):
        return None if line.idx.contrast == 1 and line.idx.average == 2 else line

    scan = edited(simulated_scan(**DIFFUSION), tmp_path, without_last)
    said = "1 of the 3 averages that the header announces never came"
    assert replay(scan, tmp_path / "out", model, "--combine-averages", "--steps", "1") == 0
    first, second = (entry["remarks"] for entry in report(tmp_path / "out")["slices"])
    assert not any(said in remark for remark in first)
    assert any(said in remark for remark in second)
    engine = Engine.of(Options(model=model, device="cpu", combine_averages=True, steps=1))
    for messages in (raw_stream(scan, "dpm_dwi"), edited_stream(scan)):
        sent = Here(engine).exchange(*messages)
        remarks = [remarks_of(image.meta) for image in sent.images if image.getHead().image_series_index == 1]
        assert [any(said in remark for remark in own) for own in remarks] == [False, True]


def test_what_cannot_be_put_together_is_said(simulated_scan):
    with open_scan(simulated_scan(**DIFFUSION)) as opened:
        header, found = opened.header, list(slices(opened.acquisitions(), opened.header))
    one = [item for item in found if item.key.contrast == 0]
    joint, late = together([*one, replace(one[0], key=replace(one[0].key, average=3))], header, {})
    assert len(joint.others) == 2
    assert isinstance(late, LostSlice) and "more averages came than the header announces (3)" in late.reason
    shifted = replace(one[1], mask=one[1].mask.roll(1, 0))
    (lost,) = together([one[0], shifted, one[2]], header, {})
    assert isinstance(lost, LostSlice) and "hold different lines" in lost.reason
    (lost,) = together([one[0], one[1], replace(one[2], kspace=one[2].kspace[:3], channels=(0, 1, 3))], header, {})
    assert isinstance(lost, LostSlice) and "averages 0 and 2 have different channels" in lost.reason
    header.encoding[0].encodingLimits.average = None
    (waited,) = together(one, header, {})
    assert len(waited.others) == 2


def test_averages_with_different_dead_channels_are_told_apart(simulated_scan, tmp_path):
    """Where as many work in each: maps of one average are not those of another."""

    def dying(number, line):
        if not line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            line.data[1 if line.idx.average == 0 else 4] = 0
        return line

    with open_scan(edited(simulated_scan(**DIFFUSION), tmp_path, dying)) as opened:
        found = list(slices(opened.acquisitions(), opened.header, combine_averages=True))
        for item in found:
            assert isinstance(item, LostSlice)
            assert "averages 0 and 1 have different channels that work, 0, 2, 3, 4, 5 and 0, 1, 2, 3, 5" in item.reason
        both = Receiving(coils=(0, 2, 3, 5))
        found = list(slices(opened.acquisitions(), opened.header, combine_averages=True, receiving=both))
    assert [len(item.others) for item in found] == [2, 2]


def test_many_coils_become_the_same_virtual_ones(simulated_scan):
    with open_scan(simulated_scan(**DIFFUSION, n_coils=16)) as opened:
        stream = slices(opened.acquisitions(), opened.header, combine_averages=True)
        mapped = next(with_coil_maps(stream, CPU))
    assert mapped.n_coils == 16 and len(mapped.data.kspace) % 3 == 0
    assert mapped.residual(mapped.conventional) < 1.5


def test_fewer_averages_of_one_weighting_are_the_scanners_plan(simulated_scan, model, tmp_path):
    """Limits announce as many averages of b = 0 as of the others; one that some slices have is missed, though."""

    def fewer(number, line):
        idx = line.idx
        noise = line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        unplanned = idx.contrast == 0 and idx.average > 0
        lost = (idx.contrast, idx.average, idx.slice) == (1, 2, 1)
        return line if noise or not (unplanned or lost) else None

    scan = edited(simulated_scan(**DIFFUSION, n_slices=2), tmp_path, fewer)
    with open_scan(scan) as opened:
        assert opened.n_images(True) == 4
        found = list(slices(opened.acquisitions(), opened.header, combine_averages=True))
        apart = list(slices(opened.acquisitions(), opened.header))
    assert {item.key: len(item.others) for item in found} == {
        SliceKey(0): 0,
        SliceKey(1): 0,
        SliceKey(0, 1): 2,
        SliceKey(1, 1): 1,
    }
    (missed,) = (remark for item in found for remark in item.remarks)
    assert missed.startswith("average 2 is missing: it is announced")
    assert [item.key for item in apart if isinstance(item, LostSlice)] == [SliceKey(1, 1, average=2)]
