"""`dpmrecon replay` end to end on small simulated scans, with a small network, and its failures."""

import shutil

import h5py
import ismrmrd
import numpy as np
import pytest
from dpmrecon.cli import main
from dpmrecon.mrd.file import open_scan
from dpmrecon.output import preview
from dpmrecon.simulation.simulate import truth_path

from support.edited import edited
from support.results import images, replay, report

SCAN = {"matrix": (48, 64), "n_slices": 3, "acceleration": 2}
UNCERTAINTY = {"samples": 4, "steps": 6, "eta": 0.0, "warm_start": False, "prior_std": 0.1, "prior_power": 0.4}


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


@pytest.mark.parametrize("counter", ["contrast", "repetition"])
def test_a_truth_is_of_the_first_b_value_alone(simulated_epi, model, tmp_path, monkeypatch, counter):
    scan = simulated_epi(n_slices=2, directions_per_b=1, weighting_counter=counter)
    shown: list[list[dict]] = []
    monkeypatch.setattr(preview, "write_preview", lambda path, rows, titles, aspects: shown.append(rows))
    assert replay(scan, tmp_path, model, "--truth", str(truth_path(scan))) == 0
    nrmse = report(tmp_path)["nrmse"]["CG-SENSE"]
    assert len(nrmse["slices"]) == 2
    assert nrmse["mean"] < 0.25
    (rows,) = shown
    assert ["error DPM x5" in row for row in rows] == [True, True, False, False]


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


def test_a_deadline_that_has_passed(simulated_scan, model, tmp_path):
    assert replay(simulated_scan(**SCAN), tmp_path, model, "--deadline", "0") == 3
    assert "deadline" in report(tmp_path)["slices"][0]["fallback"]


def test_combined_averages_have_a_preview_and_the_bar_counts_them_once(simulated_scan, model, tmp_path, capsys):
    scan = simulated_scan(**{**SCAN, "n_slices": 2}, averages=4)
    assert replay(scan, tmp_path, model, "--combine-averages") == 0
    assert len(report(tmp_path)["slices"]) == 2
    printed = capsys.readouterr()
    assert "16/16" in printed.err  # two slices, two samples, four steps
    assert "dicom/, preview.png, report.json" in printed.out


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


def test_an_unknown_protocol_is_said(simulated_scan, model, tmp_path, capsys):
    scan = tmp_path / "copy.h5"
    shutil.copy(simulated_scan(**SCAN), scan)
    with h5py.File(scan, "r+") as file:
        xml = file["dataset/xml"][0].decode().replace("T2_FLAIR", "LOCALIZER")
        file["dataset/xml"][0] = xml.encode()
    assert replay(scan, tmp_path / "out", model) == 0
    assert "unlabelled prior" in capsys.readouterr().err
    assert report(tmp_path / "out")["contrast"] is None


def test_the_uncertainty_mode_has_its_settings_and_its_series(simulated_scan, tiny_model, tmp_path, capsys):
    scan, model = simulated_scan(**{**SCAN, "n_slices": 4}), tiny_model(uncertainty=UNCERTAINTY)
    assert replay(scan, tmp_path, model, "--mode", "uncertainty") == 0
    found = report(tmp_path)
    assert (found["mode"], found["samples"], found["settings"]["steps"]) == ("uncertainty", 4, 6)
    assert found["settings_source"] == "model card, for every scan, uncertainty mode"
    assert replay(scan, tmp_path / "fast", model) == 0  # whose image it is
    fast = report(tmp_path / "fast")
    assert found["image"] == {name: fast[name] for name in ("samples", "settings")}
    pixels = [np.array([image.data for image in images(folder)]) for folder in (tmp_path, tmp_path / "fast")]
    np.testing.assert_allclose(*pixels, atol=1e-4 * pixels[0].max())  # other slices share a batch
    entry = found["slices"][0]
    assert entry["image"] == {"samples": 2, "steps": 4} and entry["evaluations"] == 2 * 4 + 4 * 6
    dataset = ismrmrd.Dataset(str(tmp_path / "images.h5"), "dataset", create_if_needed=False)
    assert dataset.number_of_images("image_2") == 4
    for index in range(4):
        image, spread = (dataset.read_image(f"image_{series}", index) for series in (1, 2))
        assert (spread.meta["DataRole"], spread.meta["dpmrecon_mode"]) == ("Uncertainty", "uncertainty")
        assert (image.meta["dpmrecon_samples"], image.meta["dpmrecon_steps"]) == ("2", "4")
        assert (spread.meta["dpmrecon_samples"], spread.meta["RescaleSlope"]) == ("4", image.meta["RescaleSlope"])
        assert (spread.image_series_index, spread.slice, spread.image_index) == (2, index, index + 1)
        assert list(spread.position) == list(image.position)
        assert 0 < spread.data.max() < image.data.max()
    dataset.close()
    assert replay(scan, tmp_path / "one", model, "--mode", "uncertainty", "--samples", "1") == 2
    assert "mode uncertainty tells the spread of samples, and 1 is asked for" in capsys.readouterr().err
    assert main(["replay", str(scan), "--out", str(tmp_path), "--mode", "uncertainty", "--sampler", "dps"]) == 2
    assert "mode uncertainty is for the sampler prox" in capsys.readouterr().err
