"""`dpmrecon replay` end to end on small simulated scans, with a small network, and its failures."""

import resource
import shutil
import subprocess
import sys
import weakref

import h5py
import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.cli import main
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.header import open_scan
from dpmrecon.output.mrd_images import to_recon_space
from dpmrecon.prior.denoiser import Denoiser
from dpmrecon.recon.sample import with_coil_maps
from dpmrecon.tools.simulate import truth_path

from support.edited import edited
from support.results import images, replay, report

SCAN = {"matrix": (48, 64), "n_slices": 3, "acceleration": 2}


def test_images_report_and_preview(simulated_scan, model, tmp_path, capsys):
    scan = simulated_scan(**SCAN)
    truth = np.load(truth_path(scan))
    assert replay(scan, tmp_path, model, "--truth", str(truth_path(scan))) == 0
    found = report(tmp_path)
    assert [entry["slice"] for entry in found["slices"]] == [0, 1, 2]
    assert all(entry["fallback"] is None for entry in found["slices"])
    assert {"maps", "conventional", "sampling"} <= set(found["slices"][0]["seconds"])
    assert found["nrmse"]["DPM"]["mean"] < 0.25
    assert (tmp_path / "preview.png").stat().st_size > 10_000
    magnitude, spread = images(tmp_path, 1), images(tmp_path, 2)
    assert len(magnitude) == len(spread) == 3
    with open_scan(scan) as opened:
        lines = {line.idx.slice: line for line in opened.acquisitions() if line.idx.kspace_encode_step_1 == 24}
    for index, image in enumerate(magnitude):
        head = image.getHead()
        assert (head.slice, head.image_index, head.image_series_index) == (index, index + 1, 1)
        assert list(head.field_of_view) == pytest.approx([230, 230, 4])
        for name in ("position", "read_dir", "phase_dir", "slice_dir"):
            assert list(getattr(head, name)) == pytest.approx(list(getattr(lines[index], name)))
        assert image.data.shape == (1, 1, 48, 64)
        assert image.data.dtype == np.float32
        meta = image.meta
        assert "not for diagnostic use" in meta["ImageComments"]
        assert meta["GADGETRON_DataRole"] == meta["DataRole"] == "Image"
        assert meta["dpmrecon_model"].startswith("tiny-")
        # compared as it stands: the truth of this slice, not of another and not flipped
        picture = image.data[0, 0] / image.data.max()
        own = np.corrcoef(picture.ravel(), truth[index].ravel())[0, 1]
        assert own > np.corrcoef(picture.ravel(), truth[index][::-1].ravel())[0, 1]
        assert own > np.corrcoef(picture.ravel(), truth[index][:, ::-1].ravel())[0, 1]
        assert own == max(np.corrcoef(picture.ravel(), other.ravel())[0, 1] for other in truth)
    assert "slice 2: DPM" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["separate", "embedded"])
def test_batching_changes_nothing_and_the_seed_does(simulated_scan, model, tmp_path, kind):
    scan = simulated_scan(**SCAN, calibration=kind)
    runs = {"a": ("--batch", "1"), "b": ("--batch", "6"), "c": ("--batch", "4"), "d": ("--seed", "1")}
    for name, options in runs.items():
        assert replay(scan, tmp_path / name, model, *options) == 0
    data = {name: np.stack([image.data for image in images(tmp_path / name)]) for name in runs}
    peak = data["a"].max()
    assert np.abs(data["a"] - data["b"]).max() < 1e-4 * peak
    assert np.abs(data["a"] - data["c"]).max() < 1e-4 * peak
    assert np.abs(data["a"] - data["d"]).max() > 1e-3 * peak


def test_dps_runs_with_its_own_defaults(simulated_scan, model, tmp_path):
    # a white prior does not bring DPS to the data in 40 steps, and that is noticed
    assert replay(simulated_scan(**SCAN), tmp_path, model, "--sampler", "dps") == 3
    found = report(tmp_path)
    assert (found["sampler"], found["settings"]["zeta"], found["settings"]["steps"]) == ("dps", 0.2, 40)
    assert "misses the data" in found["slices"][0]["fallback"]


@pytest.mark.parametrize("options", [{"partial_fourier": 0.8}, {"asymmetric_echo": 0.8}, {"noise_scan": False}])
def test_sampling_variety_keeps_the_truth(simulated_scan, model, tmp_path, options):
    scan = simulated_scan(**SCAN, **options)
    assert replay(scan, tmp_path, model, "--truth", str(truth_path(scan))) == 0
    assert report(tmp_path)["nrmse"]["DPM"]["mean"] < 0.3
    source = report(tmp_path)["slices"][0]["noise_source"]
    assert source == ("k-space periphery" if "noise_scan" in options else "noise scan")


def test_half_a_slice_is_missing_and_the_others_come_out(simulated_scan, model, tmp_path, capsys):
    def cut(number, line):
        noise = line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        return None if not noise and line.idx.slice == 1 and line.idx.kspace_encode_step_1 > 30 else line

    scan = edited(simulated_scan(**SCAN), tmp_path, cut)
    assert replay(scan, tmp_path / "out", model) == 4
    entries = report(tmp_path / "out")["slices"]
    assert ["missing" in entry for entry in entries] == [False, True, False]
    assert "of the 24 lines" in entries[1]["missing"]
    assert [image.getHead().slice for image in images(tmp_path / "out")] == [0, 2]
    assert "slice 1: MISSING" in capsys.readouterr().out


def test_nan_in_a_line_loses_that_slice_alone(simulated_scan, model, tmp_path):
    def spoil(number, line):
        if line.idx.slice == 2 and not line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            line.data[0, 5] = np.nan
        return line

    scan = edited(simulated_scan(**SCAN), tmp_path, spoil)
    assert replay(scan, tmp_path / "out", model) == 4
    assert "NaN" in report(tmp_path / "out")["slices"][2]["missing"]
    assert len(images(tmp_path / "out")) == 2


def test_a_failing_model_gives_labelled_cg_sense(simulated_scan, model, tmp_path, monkeypatch, capsys):
    def broken(self, x, sigma, label):
        raise RuntimeError("out of memory: tried to allocate 3 GiB")

    monkeypatch.setattr(Denoiser, "forward", broken)
    scan = simulated_scan(**SCAN)
    assert replay(scan, tmp_path, model) == 3
    assert all("out of memory" in entry["fallback"] for entry in report(tmp_path)["slices"])
    for image in images(tmp_path):
        assert "CG-SENSE FALLBACK" in image.meta["ImageComments"]
        assert "CG-SENSE FALLBACK" in image.meta["SeriesDescription"]
        assert image.data.max() > 0
    assert "CG-SENSE FALLBACK" in capsys.readouterr().out
    assert replay(scan, tmp_path, model, "--fallback", "off") == 2
    assert "fallback is off" in capsys.readouterr().err


def test_a_batch_that_fails_is_tried_slice_by_slice_without_its_memory(
    simulated_scan, model, tmp_path, monkeypatch, caplog
):
    forward = Denoiser.forward
    failed = []

    def picky(self, x, sigma, label):
        if len(x) > 2:
            failed.append(weakref.ref(x))
            raise RuntimeError("out of memory")
        assert failed[0]() is None
        return forward(self, x, sigma, label)

    monkeypatch.setattr(Denoiser, "forward", picky)
    assert replay(simulated_scan(**SCAN), tmp_path, model, "--batch", "6") == 0
    assert "6 images at once: the sampler failed (out of memory): they are tried one by one" in caplog.text


def test_samples_that_do_not_fit_are_drawn_one_by_one(simulated_scan, model, tmp_path, monkeypatch, caplog):
    forward = Denoiser.forward

    def small(self, x, sigma, label):
        if len(x) > 1:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")
        return forward(self, x, sigma, label)

    scan = simulated_scan(**SCAN)
    assert replay(scan, tmp_path / "whole", model, "--samples", "3") == 0
    monkeypatch.setattr(Denoiser, "forward", small)
    assert replay(scan, tmp_path / "single", model, "--samples", "3") == 0
    assert "3 images at once: the sampler failed (tried to allocate 3 GiB): they are tried one by one" in caplog.text
    for whole, single in zip(images(tmp_path / "whole"), images(tmp_path / "single")):
        np.testing.assert_allclose(single.data, whole.data, rtol=1e-3, atol=1e-3 * whole.data.max())


@pytest.mark.parametrize(("value", "words"), [(float("nan"), "not finite"), (0.0, "misses the data")])
def test_an_image_that_is_wrong_falls_back(simulated_scan, model, tmp_path, monkeypatch, value, words):
    monkeypatch.setattr(Denoiser, "forward", lambda self, x, sigma, label: x * value)
    monkeypatch.setattr("dpmrecon.physics.forward.ForwardModel.prox", lambda self, adjoint, start, *settings: start)
    from dpmrecon.physics import cg_sense as conventional

    monkeypatch.setattr(conventional, "cg_sense", lambda model, zero_filled, sigma_n, scale: zero_filled)
    assert replay(simulated_scan(**SCAN, noise=0.001), tmp_path, model) == 3
    assert words in report(tmp_path)["slices"][0]["fallback"]


def test_a_deadline_that_has_passed(simulated_scan, model, tmp_path):
    assert replay(simulated_scan(**SCAN), tmp_path, model, "--deadline", "0") == 3
    assert "deadline" in report(tmp_path)["slices"][0]["fallback"]


def test_full_disk_keeps_what_was_done(simulated_scan, model, tmp_path, monkeypatch, capsys):
    append = ismrmrd.Dataset.append_image
    stored = []

    def limited(self, name, image):
        if len(stored) == 2:
            raise OSError(28, "No space left on device")
        stored.append(name)
        append(self, name, image)

    monkeypatch.setattr(ismrmrd.Dataset, "append_image", limited)
    assert replay(simulated_scan(**SCAN), tmp_path, model) == 2
    assert "No space left" in capsys.readouterr().err
    assert len(images(tmp_path)) == 1
    assert len(report(tmp_path)["slices"]) == 1


@pytest.mark.parametrize(("kilobytes", "stored"), [(80, 0), (160, 2)])
def test_a_file_that_cannot_grow_is_one_line_and_stays_readable(simulated_scan, model, tmp_path, kilobytes, stored):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024))

    arguments = ["--out", str(tmp_path), "--model", str(model), "--device", "cpu"]
    command = [sys.executable, "-m", "dpmrecon.cli", "replay", str(simulated_scan(**SCAN)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2  # HDF5 that runs into the limit crashes instead
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr.splitlines()[-1]
    assert "File too large" in report(tmp_path)["error"]
    assert len(report(tmp_path)["slices"]) == stored
    with h5py.File(tmp_path / "images.h5") as file:
        assert len(file["dataset"].get("image_1/data", ())) >= stored


@pytest.mark.parametrize("options", [("--fallback", "off", "--deadline", "0"), ()])
def test_a_run_that_fails_leaves_nothing_of_the_one_before(simulated_scan, model, tmp_path, capsys, options):
    scan = tmp_path / "scan.h5"
    shutil.copy(simulated_scan(**SCAN), scan)
    assert replay(scan, tmp_path / "out", model) == 0
    assert (tmp_path / "out" / "preview.png").exists()
    assert any((tmp_path / "out" / "dicom").rglob("*.dcm"))
    assert report(tmp_path / "out")["error"] is None
    if not options:
        with h5py.File(scan, "r+") as file:
            file["dataset/xml"][0] = file["dataset/xml"][0].replace(b">cartesian<", b">epi<")
    assert replay(scan, tmp_path / "out", model, *options) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["images.h5", "report.json"]
    assert report(tmp_path / "out")["error"] in capsys.readouterr().err


@pytest.mark.parametrize("name", ["images.h5", "dicom/scan.h5"])
def test_the_scan_is_never_removed(simulated_scan, model, tmp_path, capsys, name):
    scan = tmp_path / name
    scan.parent.mkdir(exist_ok=True)
    shutil.copy(simulated_scan(**SCAN), scan)
    assert replay(scan, tmp_path, model) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert scan.read_bytes() == simulated_scan(**SCAN).read_bytes()


@pytest.mark.parametrize(
    ("option", "array", "words"),
    [
        ("--truth", np.ones((3, 40, 64)), "(48, 64)"),
        ("--truth", np.ones((1, 3, 48, 64)), "(48, 64)"),
        ("--truth", np.ones((3, 48, 64), complex), "real numbers"),
        ("--truth", {"a": np.ones((3, 48, 64))}, ".npy"),
        ("--mask", np.ones((3, 40, 64)), "(48, 64)"),
        ("--mask", np.ones((2, 48, 64)), "as many slices"),
    ],
)
def test_truth_and_mask_that_do_not_fit_are_refused_first(
    simulated_scan, model, tmp_path, capsys, option, array, words
):
    scan, file = simulated_scan(**SCAN), tmp_path / "given.npy"
    with open(file, "wb") as opened:
        np.savez(opened, **array) if isinstance(array, dict) else np.save(opened, array)
    truth = () if option == "--truth" else ("--truth", str(truth_path(scan)))
    assert replay(scan, tmp_path / "out", model, *truth, option, str(file)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_truth_and_mask_of_one_slice_may_be_images(simulated_scan, model, tmp_path):
    scan = simulated_scan(**{**SCAN, "n_slices": 1})
    np.save(tmp_path / "truth.npy", np.load(truth_path(scan))[0])
    np.save(tmp_path / "mask.npy", np.load(truth_path(scan))[0] > 0.1)
    options = ("--truth", str(tmp_path / "truth.npy"), "--mask", str(tmp_path / "mask.npy"))
    assert replay(scan, tmp_path / "out", model, *options) == 0
    assert report(tmp_path / "out")["nrmse"]["DPM"]["mean"] < 0.25


def test_combined_averages_have_a_preview_and_the_bar_counts_them_once(simulated_scan, model, tmp_path, capsys):
    scan = simulated_scan(**{**SCAN, "n_slices": 2}, averages=4)
    assert replay(scan, tmp_path, model, "--combine-averages") == 0
    assert len(report(tmp_path)["slices"]) == 2
    printed = capsys.readouterr()
    assert "16/16" in printed.err  # two slices, two samples, four steps
    assert "dicom/, preview.png, report.json" in printed.out


def test_a_run_names_only_what_it_wrote(simulated_scan, model, tmp_path, capsys):
    def cut(number, line):
        noise = line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        return None if not noise and line.idx.kspace_encode_step_1 > 30 else line

    assert replay(edited(simulated_scan(**SCAN), tmp_path, cut), tmp_path / "out", model) == 4
    assert capsys.readouterr().out.endswith("out/images.h5, report.json\n")


def test_the_report_of_an_anonymous_run_does_not_name_the_file(simulated_scan, model, tmp_path):
    scan = truncated_lines(simulated_scan(**SCAN), tmp_path)
    assert replay(scan, tmp_path / "out", model, "--anonymize") == 2
    assert "the scan: line" in report(tmp_path / "out")["error"]


def test_the_selftest_refuses_a_device_and_slices_that_are_not_the_models(model, tmp_path, capsys, monkeypatch):
    from dpmrecon.tools import selftest

    arguments = ["selftest", "--out", str(tmp_path), "--model", str(model)]
    assert main([*arguments, "--device", "cuda:99"]) == 2
    assert "cuda:99" in capsys.readouterr().err
    monkeypatch.setattr(selftest, "ORIENTATIONS", {"coronal": selftest.ORIENTATIONS["coronal"]})
    monkeypatch.setattr(selftest, "_SHARED", {**selftest._SHARED, "n_slices": 1, "n_coils": 2, "acceleration": 1})
    monkeypatch.setattr("dpmrecon.replay.replay", lambda *given, **more: 3)
    assert main(arguments) == 2
    assert "coronal: not every slice came out of the model" in capsys.readouterr().err


def test_both_commands_show_an_example(capsys):
    from dpmtrain import cli

    for command in (main, cli.main):
        with pytest.raises(SystemExit):
            command(["replay" if command is main else "sweep", "--help"])
        assert "example:\n  dpm" in capsys.readouterr().out


def truncated_lines(scan, folder):
    """A line that holds fewer samples than its head announces."""
    path = folder / "DOE_JANE.h5"
    shutil.copy(scan, path)
    with h5py.File(path, "r+") as file:
        line = file["dataset/data"][40]
        line["data"] = line["data"][:10]
        file["dataset/data"][40] = line
    return path


def truncated(scan, folder):
    path = folder / "short.h5"
    path.write_bytes(scan.read_bytes()[:20_000])
    return path


def text_file(scan, folder):
    path = folder / "text.h5"
    path.write_text("not HDF5")
    return path


def other_hdf5(scan, folder):
    path = folder / "other.h5"
    with h5py.File(path, "w") as file:
        file["something"] = 1
    return path


def without_center(scan, folder):
    """Neither calibration lines nor a fully sampled centre."""

    def drop(number, line):
        return None if line.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION) else line

    return edited(scan, folder, drop)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda s, f: f / "missing.h5", (), "missing.h5"),
        (truncated, (), "short.h5"),
        (text_file, (), "text.h5"),
        (other_hdf5, (), "dataset"),
        (without_center, (), "calibration"),
        (lambda s, f: s, ("--contrast", "pd"), "valid ones are flair, t1, t2, dwi, swi"),
        (lambda s, f: s, ("--steps", "0"), "--steps"),
        (lambda s, f: s, ("--device", "cuda:99"), "cuda:99"),
        (lambda s, f: s, ("--truth", "/nowhere/truth.npy"), "truth.npy"),
        (lambda s, f: s, ("--out", "/dev/null/out"), "/dev/null/out"),
        (lambda s, f: s, ("--model", "/nowhere/model.safetensors"), "model.safetensors"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(simulated_scan, model, tmp_path, capsys, make, options, words):
    scan = make(simulated_scan(**{**SCAN, "acceleration": 4}), tmp_path)
    assert replay(scan, tmp_path / "out", model, *options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dpmrecon: ")]
    assert len(lines) == 1
    assert words in lines[0]


def test_somebody_elses_dicom_folder_is_left_alone(simulated_scan, model, tmp_path, capsys):
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "original.dcm").write_text("from the scanner")
    assert replay(simulated_scan(**SCAN), tmp_path, model) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert (tmp_path / "dicom" / "original.dcm").exists()


def test_an_unknown_protocol_is_said(simulated_scan, model, tmp_path, capsys):
    scan = tmp_path / "copy.h5"
    shutil.copy(simulated_scan(**SCAN), scan)
    with h5py.File(scan, "r+") as file:
        xml = file["dataset/xml"][0].decode().replace("T2_FLAIR", "LOCALIZER")
        file["dataset/xml"][0] = xml.encode()
    assert replay(scan, tmp_path / "out", model) == 0
    assert "unlabelled prior" in capsys.readouterr().err
    assert report(tmp_path / "out")["contrast"] is None


def test_recon_space_keeps_centre_and_intensity(simulated_scan):
    with open_scan(simulated_scan(**SCAN)) as scan:
        header = scan.header
    space = header.encoding[0]
    space.encodedSpace.matrixSize.y, space.encodedSpace.fieldOfView_mm.y = 48, 230 * 48 / 40  # 40 rows are kept
    space.reconSpace.matrixSize.y, space.reconSpace.matrixSize.x = 80, 65
    image = torch.zeros(48, 64, dtype=torch.complex64)
    image[24 - 6 : 24 + 7, 32 - 5 : 32 + 6] = 1
    found = to_recon_space(image, header).abs()
    assert found.shape == (80, 65)
    rows, cols = torch.meshgrid(torch.arange(80.0), torch.arange(65.0), indexing="ij")
    assert float((found * rows).sum() / found.sum()) == pytest.approx(40, abs=0.1)
    assert float((found * cols).sum() / found.sum()) == pytest.approx(32, abs=0.1)
    assert found[40, 32] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("gain", "used"), [(1.0, True), (1.3, False)])
def test_separate_calibration_is_data_where_it_agrees(simulated_scan, tmp_path, gain, used):
    """Lines of the same contrast fill the centre of k-space, as embedded ones do; of another they make maps alone."""

    def weigh(number, line):
        if line.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION):
            line.data[:] *= gain
        return line

    options = {**SCAN, "acceleration": 4, "n_slices": 1}
    scans = [edited(simulated_scan(**options, calibration="separate"), tmp_path, weigh), simulated_scan(**options)]
    masks = []
    for path in scans:
        with open_scan(path) as scan:
            (mapped,) = with_coil_maps(slices(scan.acquisitions(), scan.header), torch.device("cpu"))
        assert torch.equal(mapped.data.kspace.abs().sum((0, 2)) > 0, mapped.data.mask[:, 0] > 0)
        assert mapped.data.n_lines_got == int(mapped.data.mask[:, 0].sum())
        masks.append(mapped.data.mask)
    assert torch.equal(*masks) == used
    assert (int(masks[0][:, 0].sum()) > 48 // 4) == used


def test_the_scale_is_the_same_on_full_and_undersampled_data(simulated_scan):
    scales = []
    for acceleration in (1, 4):
        with open_scan(simulated_scan(matrix=(96, 80), n_coils=8, acceleration=acceleration, noise=0.03)) as scan:
            (mapped,) = with_coil_maps(slices(scan.acquisitions(), scan.header), torch.device("cpu"))
        scales.append(mapped.scale)
    assert scales[1] == pytest.approx(scales[0], rel=0.05)
