"""`dpmtrain evaluate`: metrics by hand, masks, tuned weights, and a small evaluation that is interrupted."""

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path

import ismrmrd
import nibabel
import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.file import open_scan
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.simulation.simulate import truth_path
from dpmtrain.cli import main
from dpmtrain.data.kinds import known_patient
from dpmtrain.evaluate.baselines import tuned_weight
from dpmtrain.evaluate.engine import Made, Tuner
from dpmtrain.evaluate.evaluation import evaluate
from dpmtrain.evaluate.methods import own_methods
from dpmtrain.evaluate.metrics import Moments, paired_difference, psnr, scan_factor, ssim, variance_and_error
from dpmtrain.evaluate.plan import Condition, Plan
from dpmtrain.evaluate.references import measured_slices, standard_of_care
from dpmtrain.evaluate.score_lines import ScoreLines
from dpmtrain.evaluate.scoring import Undersampled
from dpmtrain.evaluate.undersampling import MASKS, OF_ROWS, sampling_mask, undersampled
from dpmtrain.evaluate.validation import subject_slices, validation_scan

from support.edited import edited
from support.models import TINY, saved_model
from support.phantoms import head

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tiny_model):
    return load_checkpoint(tiny_model(prox={"steps": 3, "cg_steps": 3}))


def test_error_measures_agree_with_hand_computed_ones():
    truth = np.array([[3.0, 4.0], [0.0, 100.0]], np.float32)
    image = np.array([[3.0, 2.0], [1.0, -7.0]], np.float32)
    mask = np.array([[True, True], [True, False]])
    moments = Moments.of(image, truth, mask)  # truth (3, 4, 0), image (3, 2, 1)
    assert moments == Moments(cross=17, image=14, truth=25)
    assert moments.nrmse() == pytest.approx(math.sqrt(5) / 5)
    assert scan_factor([moments]) == pytest.approx(17 / 14)
    assert moments.nrmse(17 / 14) == pytest.approx(math.sqrt(25 - 17**2 / 14) / 5)
    # one factor for both slices: the second alone would like another one
    assert scan_factor([moments, Moments(1, 1, 1)]) == pytest.approx(18 / 15)
    assert psnr(image, truth, mask) == pytest.approx(10 * math.log10(100**2 / (5 / 3)))


def test_ssim_is_one_for_the_truth_and_falls_with_noise():
    truth = head(45, 38).truth
    noise = np.random.default_rng(0).normal(0, 0.05, truth.shape).astype(np.float32)
    everywhere = np.ones_like(truth, bool)
    assert ssim(truth, truth, everywhere) == pytest.approx(1)
    assert 0.2 < ssim(truth + 3 * noise, truth, everywhere) < ssim(truth + noise, truth, everywhere) < 0.95


@pytest.mark.parametrize("width, expected", [(1.0, 1.0), (0.5, 1 / 4)])
def test_variance_ratio_of_gaussian_samples(width, expected):
    """Truth and samples of one Gaussian about the image: V/B is 1; of samples half as wide: a quarter, whatever K is,
    and wherever their own mean lies."""
    rng = np.random.default_rng(1)
    shape, samples = (61, 47), 5

    def draw(*size):
        return rng.normal(size=size) + 1j * rng.normal(size=size)

    truth, drawn = 0.3 * draw(*shape), 0.3 * width * draw(samples, *shape)
    inside = rng.random(shape) < 0.7
    drawn, image = drawn + 2, np.zeros(shape)
    for found, wanted in ((drawn, truth), (drawn.real, truth.real)):
        variance, error = variance_and_error(found, image, wanted, inside)
        assert variance / error == pytest.approx(expected, rel=0.1)  # 4 standard errors of about 2000 pixels


def test_paired_differences_take_out_what_slices_have_in_common():
    slices = np.linspace(0.05, 0.5, 11)
    wobble = np.tile([0.001, -0.001], 6)[:11]
    gap, low, high = paired_difference(slices + 0.01 + wobble, slices)
    assert low < 0.01 < high and high - low < 0.002 and gap == pytest.approx(0.01 + wobble.mean())
    assert np.isnan(paired_difference([0.1], [0.2])[1:]).all()


def test_slices_of_a_subject_are_drawn_together():
    rng = np.random.default_rng(4)
    subjects = [name for name in "abcdefgh" for _ in range(1 + 3 * "abcdefgh".index(name))]  # 1 to 22 slices
    own = {name: rng.normal() for name in "abcdefgh"}
    gaps = np.array([own[name] + 0.01 * rng.normal() for name in subjects])
    gap, low, high = paired_difference(gaps, 0 * gaps, subjects)
    _, narrow, wide = paired_difference(gaps, 0 * gaps)
    assert gap == pytest.approx(gaps.mean()) and low < gap < high
    assert high - low > 2 * (wide - narrow)  # by the square root of slices a subject, about
    one = paired_difference(gaps, 0 * gaps, ["a"] * len(gaps))
    assert one == paired_difference(gaps, 0 * gaps)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("R, lines", [(4, 0), (3, 10)])
def test_masks_have_the_net_R_they_name(kind, R, lines):
    rows, cols = 97, 82
    mask = sampling_mask(kind, torch.ones(rows, cols), R, lines, seed=3)
    assert mask.unique().tolist() == [0, 1]
    centre = slice(rows // 2 - lines // 2, rows // 2 - lines // 2 + lines)
    if kind not in OF_ROWS:
        assert mask.numel() / float(mask.sum()) == pytest.approx(R, rel=0.1)
        assert mask[centre, cols // 2 - lines // 2 : cols // 2 - lines // 2 + lines].all()
    else:
        assert (mask == mask[:, :1]).all() and mask[centre].all()
        outside = mask[:, 0].clone()
        outside[centre] = 0
        n_lines = float(outside.sum())
        expected = (rows - lines) / R if kind == "regular" else rows / R
        assert n_lines == pytest.approx(expected, abs=1) if kind == "regular" else n_lines <= expected + 1
        assert mask[rows // 2].all() or kind != "regular"
    assert torch.equal(mask, sampling_mask(kind, torch.ones(rows, cols), R, lines, seed=3))


@pytest.mark.parametrize("kind", ["random", "gaussian", "gaussian 2D"])
def test_random_masks_are_denser_at_the_centre(kind):
    masks = [sampling_mask(kind, torch.ones(96, 40), 4, 0, seed).mean(1) for seed in range(20)]
    density = torch.stack(masks).mean(0)
    assert density[32:64].mean() > 2 * density[:32].mean() and density.mean() == pytest.approx(1 / 4, rel=0.02)


def test_an_accelerated_scan_is_undersampled_further():
    full = head(45, 38)
    acquired = torch.zeros(45, 38)
    acquired[1::2] = 1  # begins at an odd row, and the centre row 22 is not among them
    mask = sampling_mask("regular", acquired, 4, 0, 0)
    assert (mask <= acquired).all() and int(mask[:, 0].sum()) in (11, 12)
    with pytest.raises(BadInputError, match="multiple of its R"):
        sampling_mask("regular", acquired, 3, 0, 0)
    for kind in set(MASKS) - set(OF_ROWS):
        with pytest.raises(BadInputError, match="fully sampled"):
            sampling_mask(kind, acquired, 4, 0, 0)
    scan = standard_of_care(full, 2, 12)
    here = Undersampled(scan, Condition("regular", 4, 12, scan_R=2), CPU).mapped.data
    assert (here.mask <= scan.data.mask).all() and here.calibration.shape == (8, 12, 38)
    assert scan.coil_images is None and not np.array_equal(scan.truth, full.truth)
    wide = Plan(accelerations=(3, 4), masks=("regular", "poisson", "gaussian 2D"), scan_Rs=(1, 2)).conditions(1)
    assert {(c.mask, c.R) for c in wide if c.scan_R == 2} == {("regular", 4)} and len(wide) == 7


def test_calibration_of_undersampled_slices():
    full = head(45, 38).data
    poisson = undersampled(full, sampling_mask("poisson", full.mask, 3, 10, 0), 3, 10)
    assert poisson.calibration.shape == (8, 10, 10)
    assert torch.equal(poisson.calibration, full.kspace[:, 17:27, 14:24])
    assert undersampled(full, full.mask, 1, 0).calibration is None
    assert not poisson.kspace[:, poisson.mask == 0].any()


def test_the_weight_is_found_inside_and_beyond_the_first_ones():
    calls = []

    def error(weight):
        calls.append(weight)
        return abs(math.log2(weight / 40))

    best, tried = tuned_weight(error, (1.0, 2.0, 4.0))
    assert best == 32 and sorted(tried) == [1, 2, 4, 8, 16, 32, 64] and len(calls) == 7
    assert tuned_weight(error, (20.0, 40.0, 80.0))[0] == 40
    assert tuned_weight(error, (400.0, 800.0))[0] == 50


def test_a_line_that_was_cut_short_is_made_again(tmp_path):
    lines = ScoreLines(tmp_path / "scores.jsonl")
    lines.get({"b": 1, "a": [2]}, lambda: {"x": 1.5})
    with lines.path.open("a") as file:
        file.write('{"key": {"b": 2}, "va')
    again = ScoreLines(lines.path)
    assert again.get({"a": [2], "b": 1}, pytest.fail) == {"x": 1.5} and {"b": 2} not in again
    again.get({"b": 2}, lambda: {"x": 2.5})
    assert len(ScoreLines(lines.path).values) == 2


def test_scans_of_one_patient_are_of_one_subject(simulated_scan):
    with open_scan(simulated_scan(matrix=(48, 64))) as scan:
        header = scan.header
    assert measured_slices(simulated_scan(matrix=(48, 64)))[0].subject == known_patient(header)

    def subject(identity, measurement) -> str | None:
        header.subjectInformation.patientID, header.measurementInformation.measurementID = identity, measurement
        return known_patient(header)

    assert subject("47", "7") == subject("47", "1_2_3_4") != subject("48", "1_2_3_4")
    assert subject("xxxx", "1_2_3_4") == subject(None, "1_2_5_6") != subject(None, "1_3_5_6")
    assert subject("xxxx", "7") is None


def test_evaluation_goes_on_where_it_stopped(checkpoint, tmp_path, capsys):
    slices = [head(45, 38, number) for number in (0, 1)]  # an odd size: sigpy does L1-wavelet
    plan = Plan((4,), ("regular",), (12, 0), (1, 2), samples=3, tuning_slices=1)

    def run():
        return evaluate(slices, lambda contrast: [head(45, 38, 2)], [checkpoint], plan, tmp_path, CPU)

    rows = run()
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    (tmp_path / "scores.jsonl").write_text("\n".join(lines[:-3]) + "\n" + lines[-3][:40])
    assert [(r.method, r.condition, r.values("psnr")) for r in run()] == [
        (r.method, r.condition, r.values("psnr")) for r in rows
    ]
    assert (tmp_path / "scores.jsonl").read_text().count("\n") == len(lines)

    by = {(r.method.split()[0], r.condition): r for r in rows}
    for acs in (12, 0):
        zero, sense, ours = (by[m, Condition("regular", 4, acs)] for m in ("zero-filled", "CG-SENSE", "prox"))
        assert np.mean(zero.nrmse) > 1.3 * np.mean(sense.nrmse) and ours.mean("samples") == 3
        assert ours.variance_ratio > 0 and sense.variance_ratio is None
        assert np.mean(sense.nrmse) <= np.mean(sense.nrmse_paper)
    assert by["prox", Condition("regular", 4, 12, 2)].variance_ratio is None  # no noise-free truth there
    table = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert len(table) == len(rows) == 4 * 4
    assert {row["difference"] == "" for row in table if row["method"] == "prox"} == {True}
    report = (tmp_path / "report.md").read_text()
    assert "(95 % of slices of one subject; 5 or more)" in report
    assert "maps from the full data" in report and "of an R=2 scan" in report and "tiny-" in report
    assert (tmp_path / "nrmse_flair.png").stat().st_size > 10000
    assert "1D regular, ACS 12" in capsys.readouterr().out


def test_weights_are_those_of_the_validation_data_at_hand(tmp_path):
    condition, tried = Condition("regular", 4, 12), []

    def best(slices, count=1):
        tuner = Tuner(lambda contrast: slices, count, ScoreLines(tmp_path / "scores.jsonl"), CPU)
        tried.clear()
        run = lambda here, weight: tried.append(weight) or Made(here.mapped.conventional)  # noqa: E731
        tuner.best("CG-SENSE", "flair", condition, run, (1.0, 2.0))
        return bool(tried)

    one = head(45, 38, 2)
    other = replace(one, data=replace(one.data, kspace=1.001 * one.data.kspace))
    assert best([one]) and not best([one]) and not best([replace(one), other])
    assert best([other]) and best([one, other], 2)
    assert best([replace(one, truth=2 * one.truth)]) and not best([one])


def test_scores_are_those_of_the_images_at_hand(tmp_path):
    def key(folder, value) -> dict:
        path = tmp_path / folder / "open_ms/patient77/study1_FLAIR.nii.gz"
        path.parent.mkdir(parents=True)
        volume = np.zeros((36, 40, 6), np.float32)
        volume[9:27, 9:31] = value
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([0.9, 0.9, 5, 1])), path)
        (full,) = subject_slices(tmp_path / folder, "patient77", 1)
        assert full.subject == "patient77"
        return full.key

    assert key("a", 1.0) == key("b", 1.0) != key("c", 2.0)


def test_scores_on_subjects_that_the_model_was_trained_on_are_said(tmp_path, capsys):
    path = tmp_path / "own.safetensors"
    saved_model(
        path, TINY, sampling={"samples": 1, "prox": {"steps": 2}}, data={"subjects": ["patient01", "patient03"]}
    )
    slices = [replace(head(40, 36, number), scan=f"patient0{number}/study1_FLAIR") for number in (1, 2)]
    plan = Plan((4,), ("regular",), (12,), conventional=("zero-filled",))
    for chosen, told in ((slices, True), (slices[1:], False)):
        evaluate(chosen, lambda contrast: [], [load_checkpoint(path)], plan, tmp_path / str(told), CPU)
        for text in (capsys.readouterr().out, (tmp_path / str(told) / "report.md").read_text()):
            assert ("was trained on patient01: its scores there say nothing of others" in text) == told
            assert ("(95 % of 2 subjects; 5 or more)" in text) == told
    patient = [replace(full, scan="export_17", subject="id-0123") for full in slices[:1]]  # a scan of a known patient
    saved_model(
        path, TINY, sampling={"samples": 1, "prox": {"steps": 2}}, data={"begun_with": [{"subjects": ["id-0123"]}]}
    )
    evaluate(patient, lambda contrast: [], [load_checkpoint(path)], plan, tmp_path / "patient", CPU)
    assert "was trained on id-0123: its scores" in capsys.readouterr().out
    tuned = [replace(full, subject="patient09") for full in slices[1:]]
    evaluate(tuned, lambda contrast: [], [load_checkpoint(path)], plan, tmp_path / "tuned", CPU)
    assert "settings are chosen on patient09: scores there flatter" in (tmp_path / "tuned" / "report.md").read_text()


def test_models_are_sampled_as_the_product_does(tmp_path):
    path, where = tmp_path / "own.safetensors", ("flair", Condition("regular", 6, 12), CPU)
    sampling = {"samples": 5, "prox": {"steps": 3}}
    sampling["by_contrast_R"] = [{"sampler": "prox", "contrast": "flair", "R": 8, "settings": {"steps": 7}}]
    saved_model(path, sampling=sampling)
    plan = Plan(samplers=("prox", "uncertainty"))
    with pytest.raises(BadInputError, match="choose mode fast"):
        own_methods([load_checkpoint(path)], plan, *where)
    saved_model(path, sampling={**sampling, "uncertainty": {"samples": 9, "steps": 11}})
    prox, uncertainty = own_methods([load_checkpoint(path)], plan, *where)
    assert "5 samples" in prox.setting and '"steps": 7' in prox.setting
    assert "9 samples" in uncertainty.setting and '"steps": 11' in uncertainty.setting


def test_a_contrast_without_validation_data_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="no validation scan of contrast 'pd'"):
        validation_scan(tmp_path, "pd")
    with pytest.raises(BadInputError, match="training_seg_02.nii.gz does not exist"):
        validation_scan(tmp_path, "t1")


def test_a_measured_scan_and_its_truth(simulated_scan):
    scan = simulated_scan(acceleration=1, contrast="t1")
    (own,) = measured_slices(scan)
    (given,) = measured_slices(scan, truth_path(scan))
    assert own.contrast == "t1" and own.truth.shape == given.truth.shape == (64, 64)
    assert Moments.of(own.truth, given.truth, own.mask).nrmse() < 0.1  # it carries the scan's noise
    (twice,) = measured_slices(simulated_scan(acceleration=2, contrast="t1"))
    assert Plan((4,)).conditions(round(twice.data.acceleration)) == [Condition("regular", 4, 24, 2)]
    with pytest.raises(BadInputError, match="at most 2.5"):
        measured_slices(simulated_scan(acceleration=4, contrast="t1"))


def test_the_truth_of_slices_that_are_counted_from_1_begins_with_the_first(simulated_scan, tmp_path):
    def edit(number, line):
        line.idx.slice += not line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        return line

    scan = simulated_scan(acceleration=1, contrast="t1", n_slices=2)
    counted_from_1 = Path(edited(scan, tmp_path, edit))
    for one, other in zip(*(measured_slices(path, truth_path(scan)) for path in (scan, counted_from_1)), strict=True):
        assert other.number == one.number + 1 and other.truth == pytest.approx(one.truth, rel=1e-5)


def scores(out, *scans, model):
    """The zero-filled images' |truth|^2 of `dpmtrain evaluate`, by place."""
    options = ["--R", "4", "--sampling", "regular", "--conventional", "zero-filled", "--model", str(model)]
    assert main(["evaluate", *map(str, scans), "--images", "none", *options, "--out", str(out)]) == 0
    values = ScoreLines(out / "scores.jsonl").values
    return [entry["truth"] for key, entry in values.items() if "zero-filled" in key]


def test_files_of_one_name_are_scored_each(simulated_scan, tiny_model, tmp_path):
    model, patients = tiny_model(prox={"steps": 2}, samples=1), []
    for subject in (0, 1):
        patients.append(tmp_path / f"patient{subject}" / "t1.h5")
        patients[-1].parent.mkdir()
        shutil.copy(simulated_scan(acceleration=1, contrast="t1", subject=subject), patients[-1])
    both = scores(tmp_path / "both", *patients, model=model)
    assert len(both) == len(set(both)) == 2
    assert (
        f"{patients[0].with_suffix('')} 0; {patients[1].with_suffix('')} 0"
        in (tmp_path / "both" / "report.md").read_text()
    )
    # one after the other into one folder
    assert [len(scores(tmp_path / "each", patient, model=model)) for patient in patients] == [1, 2]
    assert scores(tmp_path / "each", patients[0], model=model) == both


def test_a_scan_under_two_names_is_scored_once(simulated_scan, tiny_model, tmp_path, capsys):
    scan = simulated_scan(acceleration=1, contrast="t1")
    model, copy = tiny_model(prox={"steps": 2}, samples=1), shutil.copy(scan, tmp_path / "copy.h5")
    given = [str(scan), str(copy), "--images", "none", "--model", str(model), "--out", str(tmp_path / "out")]
    assert main(["evaluate", *given, "--conventional", "", "--R", "4"]) == 2
    assert "slice 0 of copy is that of" in capsys.readouterr().err


def test_calibration_lines_that_are_all_lines_are_no_undersampling():
    """A fully sampled image was scored as one of R = 4."""
    here = Undersampled(replace(head(40, 36), scan="small"), Condition("regular", 4, 40), CPU)
    with pytest.raises(BadInputError, match="R = 4 with 40 calibration lines is all that small has"):
        here.mapped  # noqa: B018


def test_each_b_value_is_scored(simulated_scan, tiny_model, tmp_path):
    scan = simulated_scan(acceleration=1, contrast="dwi", b_values=(0.0, 1000.0))
    found = scores(tmp_path / "out", scan, model=tiny_model(prox={"steps": 2}, samples=1))
    assert len(found) == 2 and found[0] > 2 * found[1]
    assert len(measured_slices(scan)) == 2
    (first,) = measured_slices(scan, truth_path(scan))  # whose truth it is
    assert first.data.key.contrast == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (["--sampling", "spiral"], "'spiral' is none of regular, random, gaussian, poisson, gaussian 2D"),
        (["--R", "4,x"], "--R 4,x cannot be read"),
        ([], "nothing to evaluate"),
        (["--subjects", "patient99"], "name a subject that is there"),
        (["a.h5", "--truth", "a.npy", "b.npy"], "--truth names 2 files for 1 scans"),
        (["--samples", "0"], "--samples is 0: give 1 or more"),
        (["--slices", "0"], "--slices is 0: give 1 or more"),
        (["--contrast", "pd"], "--contrast is pd, which no model knows: give one of dwi, flair"),
    ],
)
def test_bad_requests_are_one_sentence(options, message, tmp_path, capsys):
    assert main(["evaluate", *options, "--images", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
