"""`dpmtrain kit` end to end: a few tiny scans, one of them broken, to a model that `replay` takes."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from dpmrecon.cli import main as dpmrecon
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.patient import is_placeholder
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.simulation.settings import VolumeSettings
from dpmrecon.simulation.simulate import simulate
from dpmtrain.cli import main
from dpmtrain.data.dataset import read_manifest
from dpmtrain.data.items import Settings, pseudonym
from dpmtrain.data.kinds import inspect
from dpmtrain.data.kspace import read_ismrmrd
from dpmtrain.evaluate.plan import Condition
from dpmtrain.evaluate.scoring import Row
from dpmtrain.kit import data as kit_data
from dpmtrain.kit.card import findings, limits, nameless, tuned_before
from dpmtrain.kit.data import patterns
from dpmtrain.train.keeper import read_start

from support.acquisitions import read_lines, write_lines
from support.models import TINY, saved_model
from support.scores import score_of

SCAN = {"matrix": (48, 40), "n_slices": 2, "n_coils": 4, "acceleration": 1, "calibration_lines": 16}
SCAN_3D = {
    "contrast": "t1",
    "matrix": (34, 32),
    "fov_mm": (81.6, 76.8),
    "partitions": 32,
    "slice_thickness_mm": 2.4,
    "position_mm": (0.0, 0.0, 20.0),
    "n_coils": 3,
    "acceleration": 1,
    "partition_acceleration": 1,
    "calibration": "none",
    "noise": 0.004,
}
MODEL = {**TINY, "widths": [4, 6], "labels": ["t1", "spare1"]}
RECIPE = """
[target]
label = "swi"
slot = "swi"
[train]
seed = 3
optimizer = "muon"
precision = "float32"
steps = 4
batch = 2
draws = 1
crops = [64]
rate = 1e-3
warmup = 1
decay_fraction = 0
clip = 1.0
ema_half_life = 4
label_dropout = 0.1
p_mean = -1.2
p_std = 1.2
volumes = ["none"]
real_fraction = 0.5
focus_weight = 1
save_every = 2
sheet_every = 0
"""


@pytest.fixture(scope="module")
def scans(simulated_scan, tmp_path_factory):
    """Four patients, the first with two scans; a T1 scan, a truncated one, one of R = 4, and notes."""
    folder = tmp_path_factory.mktemp("hospital")
    for subject in range(4):
        (folder / f"p{subject}").mkdir()
        shutil.copy(simulated_scan(**SCAN, subject=subject), folder / f"p{subject}" / "flair.h5")
    shutil.copy(simulated_scan(**SCAN, subject=0, seed=9), folder / "p0" / "again.h5")
    shutil.copy(simulated_scan(**{**SCAN, "n_slices": 1}, contrast="t1", subject=1), folder / "p1" / "t1.h5")
    shutil.copy(simulated_scan(**{**SCAN, "acceleration": 4}, subject=2), folder / "p2" / "r4.h5")
    whole = (folder / "p3" / "flair.h5").read_bytes()
    (folder / "p3" / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("exported on Monday\n")
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "model.safetensors"
    sampling = {"samples": 2, "prox": {"steps": 3, "sigma_max": 1.0}}
    return saved_model(path, MODEL, sampling=sampling, history={"images": 7})


@pytest.fixture(scope="module", autouse=True)
def two_lengths():
    """1 and 2 of the recipe's 4 steps are tried, and the start itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpmtrain.kit.tuning.LENGTHS", (0.25, 0.5))
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "finetune.toml"
    path.write_text(RECIPE)
    return path


def command(scans: Path, out: Path, start: Path, recipe: Path, *more: str) -> list[str]:
    files = ["kit", str(scans), "--out", str(out), "--start", str(start), "--recipe", str(recipe)]
    return [
        *files,
        "--R",
        "3",
        "--acs",
        "16",
        "--slices",
        "1",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--jobs",
        "1",
        *more,
    ]


@pytest.fixture(scope="module")
def made(scans, start, recipe, tmp_path_factory):
    """(folder, what was printed) of a whole run."""
    out = tmp_path_factory.mktemp("kit")
    assert main(command(scans, out, start, recipe, "--contrast", "flair")) == 3  # two files could not be used
    return out


def test_the_model_is_fine_tuned_and_replay_takes_it(made, scans, tmp_path):
    model = made / "flair.safetensors"
    checkpoint = load_checkpoint(model)
    assert list(checkpoint.denoiser.labels) in (
        ["t1", "flair"],
        ["t1", "spare1"],
    )  # the second: no better than the start
    assert {path.stem for path in (made / "candidates").glob("*.safetensors")} >= {"start", "000001", "000002"}
    assert dpmrecon(
        ["replay", str(scans / "p2" / "r4.h5"), "--model", str(model), "--out", str(tmp_path), "--device", "cpu"]
    ) in (0, 3)
    assert checkpoint.model_id in (tmp_path / "report.json").read_text()


@pytest.fixture(scope="module")
def scans_3d(tmp_path_factory):
    """Three patients, each with a 3D scan."""
    folder = tmp_path_factory.mktemp("hospital_3d")
    for subject in range(3):
        (folder / f"p{subject}").mkdir()
        simulate(folder / f"p{subject}" / "mprage.h5", VolumeSettings(**SCAN_3D, subject=subject))
    return folder


def test_3d_scans_are_trained_on_and_scored_whole(scans_3d, start, recipe, tmp_path, short_kernel):
    out = tmp_path / "out"
    assert main(command(scans_3d, out, start, recipe)) == 0
    card = json.loads((out / "t1.json").read_text())
    assert "3D Cartesian" in card["intended_use"] and "matrix 32x34x32" in card["intended_use"]
    assert all(len(volume["spans"]) == 3 for volume in read_manifest(out / "prepared")["volumes"])
    lines = [json.loads(line) for line in (out / "evaluation" / "scores.jsonl").read_text().splitlines()]
    assert {line["key"]["mask"] for line in lines} == {"caipirinha"}
    assert len({line["key"]["scan"] for line in lines if "scan" in line["key"]}) == 1  # of the test patient


def test_3d_scans_begin_with_the_model_of_volumes(short_kernel, scans_3d, scans, recipe, tmp_path, monkeypatch):
    """With the model of slices as start, the comparison with it said nothing of what 3D scans have without a kit."""
    begun = []

    def target(_, start):
        begun.append(start.model_id)
        raise BadInputError("enough")

    monkeypatch.setattr("dpmtrain.kit.tuning.target", target)
    for given, more in ((scans_3d, []), (scans, ["--contrast", "flair"])):
        assert main(["kit", str(given), "--out", str(tmp_path / "out"), "--recipe", str(recipe), *more]) == 2
    assert [model_id.split("-")[0] for model_id in begun] == ["volumes", "default"]


def test_patients_are_split_and_none_is_in_two_parts(made):
    patients = json.loads((made / "kit.json").read_text())["patients"]
    names = [name for part in patients.values() for name in part]
    assert len(names) == len(set(names)) == 4
    assert sorted(map(len, patients.values())) == [1, 1, 2]
    volumes = json.loads((made / "prepared" / "manifest.json").read_text())["volumes"]
    assert len(volumes) == 5  # the first patient's two scans
    trained = {
        f"{pattern}.npy" for pattern in json.loads((made / "kit.json").read_text())["recipe"]["train"]["volumes"]
    }
    assert {v["subject"] for v in volumes if v["file"] in trained} == set(patients["train"])
    train = read_manifest(made / "train")
    assert {v["subject"] for v in train["volumes"]} == set(patients["train"])
    assert set(train["exclude"]) == {*patients["validation"], *patients["test"]}
    (reference,) = {v["reference"] for v in train["volumes"]}
    for file in {v["file"] for v in train["volumes"]}:
        own, conventional = (np.load(made / part / file).astype(np.float32) for part in ("train", "prepared"))
        assert own.shape == conventional.shape and 0.01 < abs(own - conventional).mean() / abs(conventional).mean() < 1
    assert reference == f"image by {load_checkpoint(made / 'candidates' / 'start.safetensors').model_id}"
    lines = [json.loads(line) for line in (made / "evaluation" / "scores.jsonl").read_text().splitlines()]
    of_test = {v["file"].removesuffix(".npy") for v in volumes if v["subject"] in patients["test"]}
    assert {line["key"]["scan"] for line in lines if "scan" in line["key"]} == of_test
    of_validation = {v["file"].removesuffix(".npy") for v in volumes if v["subject"] in patients["validation"]}
    tuned_on = {scan for line in lines if "tuned" in line["key"] for scan, _ in line["value"]["on"]}
    assert tuned_on == of_validation
    asked = [json.loads(line)["key"]["scan"] for line in (made / "left_out.jsonl").read_text().splitlines()]
    assert set(asked) in (of_validation, of_validation | of_test)  # the latter where the tuned model was chosen


def test_the_card_tells_use_limits_and_findings_and_names_nobody(made):
    text = (made / "flair.json").read_text()
    card = json.loads(text)
    assert card["data"]["train"]["patients"] == 2
    assert card["data"]["references"] == ["fully sampled"]
    assert card["data"]["trained_on"].startswith("images that model-")
    assert "48x40" in card["intended_use"]
    assert "not for diagnosis" in card["limits"][0]
    (line,) = card["evaluation"]
    assert line["R"] == 3
    assert {name.split()[0] for name in line} >= {"CG-SENSE", "L1-wavelet"}
    assert len(card["findings"]) >= 2
    assert card["length_by_lines_left_out"].keys() >= {"0", "1"}
    patients = json.loads((made / "kit.json").read_text())["patients"]
    for secret in (*sum(patients.values(), []), "SIMULATED0", "SIMULATED1", "p0_", "p1_", "p2_", "p3_"):
        assert secret not in text


def test_a_start_that_was_trained_on_who_is_tested_on_is_refused(made, scans, recipe, tmp_path, capsys):
    """Of a model that `finetune` made of the same patients nothing was said where it had gone on in between."""
    patients = json.loads((made / "kit.json").read_text())["patients"]
    data = {"sources": ["own data"], "begun_with": [{"subjects": [*patients["train"], *patients["test"]]}]}
    again = saved_model(tmp_path / "own.safetensors", MODEL, data=data)
    assert main(command(scans, tmp_path / "out", again, recipe, "--contrast", "flair")) == 2
    assert f"was trained on {patients['test'][0]}, on whom it is to be judged" in capsys.readouterr().err
    saved_model(again, MODEL, history={"start_history": {"target": {"label": "flair"}}})
    assert tuned_before(read_start(again)) and not tuned_before(read_start(None))
    one = {"sources": ["own data"], "subjects": ["a name"]}
    assert nameless({**one, "begun_with": [one]}) == {**nameless(one), "begun_with": [{"sources": ["own data"]}]}
    assert nameless(load_checkpoint().card["data"])["subjects"]


def test_a_start_that_was_fine_tuned_itself_is_said(made, scans, recipe, tmp_path, capsys):
    """It may have seen the patients that are tested on."""
    again = saved_model(tmp_path / "own.safetensors", MODEL, history={"images": 7, "target": {"label": "flair"}})
    told = "The model it began with was fine-tuned itself"
    assert main(command(scans, tmp_path / "out", again, recipe, "--contrast", "flair")) == 3
    assert told in capsys.readouterr().err
    assert any(told in limit for limit in json.loads((tmp_path / "out" / "flair.json").read_text())["limits"])
    assert told not in (made / "flair.json").read_text()


def test_every_b_value_is_a_reference_and_a_volume_of_its_own(simulated_epi, tmp_path):
    """The last one of each slice alone was; those that are counted as repetitions were one volume."""
    settings = {"contrast": "dwi", "b_values": (0.0, 1000.0), "n_slices": 2, "acceleration": 1}
    for counter, key in (("contrast", "contrast"), ("repetition", "repetition")):
        folder = tmp_path / counter
        folder.mkdir()
        for patient in range(2):
            scan = simulated_epi(**settings, weighting_counter=counter, subject=patient)
            shutil.copy(scan, folder / f"patient{patient}.h5")
        found = [
            item for path in sorted(folder.iterdir()) for item in inspect(path, folder, Settings(), in_folder=True)
        ]
        seen = [getattr(full.data.key, key) for full in kit_data.references(found, "dwi", 2)]
        assert seen == [3, 1, 2, 0]  # b = 0, and three directions
        volumes, _ = read_ismrmrd(found[0])
        assert [(v.name, len(v.slices)) for v in volumes] == [(f"patient0_{key}{n}", 2) for n in range(4)]


def test_repetitions_are_volumes_of_their_own_without_a_diffusion_table(simulated_epi, tmp_path):
    """Weightings counted so were one stack."""
    scan = simulated_epi(
        contrast="dwi", b_values=(0.0, 1000.0), n_slices=2, acceleration=1, weighting_counter="repetition"
    )
    xml, lines = read_lines(scan)
    bare = re.sub(r"<(diffusion\w*)>.*?</\1>", "", xml.decode(), flags=re.S)
    assert bare != xml.decode()
    path = write_lines(tmp_path / "patient0.h5", bare, lines)
    (item,) = inspect(path, tmp_path, Settings(), in_folder=True)
    volumes, _ = read_ismrmrd(item)
    assert [(v.name, len(v.slices)) for v in volumes] == [(f"patient0_repetition{n}", 2) for n in range(4)]


def test_a_tuned_model_has_no_limits_of_the_gate_and_its_card_says_so(start, tmp_path):
    counts = {part: {"patients": 3, "slices": 9} for part in ("train", "test")}
    tuned, start_itself = (limits("flair", counts, [], "4", tuned=tuned) for tuned in (True, False))
    assert any("gate does not ask" in text for text in tuned) and not any("gate" in text for text in start_itself)
    assert read_start(start).gate is None and read_start(None).gate == load_checkpoint().card["gate"]


def test_the_same_command_goes_on_without_doing_anything_twice(made, scans, start, recipe, capsys):
    before = {path: path.stat().st_mtime_ns for path in (made / "candidates").iterdir()}
    scores = (made / "evaluation" / "scores.jsonl").read_text()
    (made / "flair.safetensors").unlink()
    assert main(command(scans, made, start, recipe, "--contrast", "flair")) == 3
    assert {path: path.stat().st_mtime_ns for path in (made / "candidates").iterdir()} == before
    assert (made / "evaluation" / "scores.jsonl").read_text() == scores
    assert (made / "flair.safetensors").exists()
    # another plan in the same folder is refused
    assert main(command(scans, made, start, recipe, "--contrast", "flair", "--R", "2")) == 2
    assert "was begun with other R" in capsys.readouterr().err.splitlines()[-1]


def test_a_scan_that_was_changed_is_not_taken_for_the_one_that_was_trained_on(
    made, scans, start, recipe, simulated_scan, tmp_path, capsys
):
    """The same file with other lines: the models of before were taken for those of it."""
    hospital, out = tmp_path / "hospital", tmp_path / "out"
    shutil.copytree(scans, hospital)
    shutil.copytree(made, out)
    trained = json.loads((out / "kit.json").read_text())["patients"]["train"]
    number = next(n for n in range(1, 4) if pseudonym(f"SIMULATED{n}") in trained)
    shutil.copy(simulated_scan(**SCAN, subject=number, seed=77), hospital / f"p{number}" / "flair.h5")
    assert main(command(hospital, out, start, recipe, "--contrast", "flair")) == 2
    assert "was begun with other scans to train on" in capsys.readouterr().err.splitlines()[-1]


def test_check_names_every_file_that_cannot_be_used(scans, start, recipe, tmp_path, capsys):
    assert main(command(scans, tmp_path / "out", start, recipe, "--contrast", "flair", "--check")) == 3
    told = capsys.readouterr()
    named = {
        line.split(":")[1].strip().rsplit("/", 1)[-1]: line for line in told.err.splitlines() if "dpmtrain:" in line
    }
    assert named.keys() == {"cut.h5", "r4.h5", "t1.h5"}
    assert "accelerated R = 4" in named["r4.h5"]
    assert "is a scan of t1: not used" in named["t1.h5"]
    assert "p0/again.h5, p0/flair.h5" in told.out
    assert not (tmp_path / "out").exists()


def test_diffusion_scans_of_several_averages_are_named_before_anything_is_prepared(
    simulated_scan, start, recipe, tmp_path, capsys
):
    for subject in range(4):
        settings = {**SCAN, "contrast": "dwi", "averages": 2 if subject == 3 else 1, "subject": subject}
        (tmp_path / "scans" / f"p{subject}").mkdir(parents=True)
        shutil.copy(simulated_scan(**settings), tmp_path / "scans" / f"p{subject}" / "dwi.h5")
    assert main(command(tmp_path / "scans", tmp_path / "out", start, recipe, "--check")) == 3
    told = capsys.readouterr()
    assert "p3/dwi.h5: has 2 averages with a phase each" in told.err and "p3" not in told.out


def test_several_contrasts_and_too_few_patients_are_refused(scans, start, recipe, tmp_path, capsys):
    assert main(command(scans, tmp_path / "out", start, recipe)) == 2
    assert "the scans are of flair (5), t1 (1): say with --contrast" in capsys.readouterr().err
    assert main(command(scans / "p0", tmp_path / "out", start, recipe)) == 2
    assert "flair scans of 1 patient can be used: 3 are needed" in capsys.readouterr().err
    assert main(command(scans, tmp_path / "out", start, recipe, "--contrast", "swi")) == 2
    assert "none of" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["weights", "scale_rule"])
def test_a_model_that_does_not_match_its_card_or_the_scale_rule_is_refused(
    made, scans, start, recipe, tmp_path, capsys, change
):
    model = tmp_path / "flair.safetensors"
    for suffix in (".safetensors", ".json"):
        shutil.copy(made / f"flair{suffix}", model.with_suffix(suffix))
    if change == "weights":
        data = bytearray(model.read_bytes())
        data[-1] ^= 1
        model.write_bytes(bytes(data))
    else:
        card = json.loads(model.with_suffix(".json").read_text())
        model.with_suffix(".json").write_text(json.dumps({**card, "scale_rule": "the maximum is 1"}))
    words = {"weights": "checksum", "scale_rule": "scale rule 'the maximum is 1'"}[change]
    assert main(command(scans, tmp_path / "out", model, recipe, "--contrast", "flair")) == 2
    assert words in capsys.readouterr().err
    assert (
        dpmrecon(["replay", str(scans / "p0" / "flair.h5"), "--model", str(model), "--out", str(tmp_path / "r")]) == 2
    )
    assert words in capsys.readouterr().err
    assert dpmrecon(["serve", "--port", "0", "--model", str(model)]) == 2
    assert words in capsys.readouterr().err


def test_a_model_that_foretells_the_test_patients_worse_than_its_start_is_not_written(
    made, scans, start, recipe, tmp_path, monkeypatch, capsys
):
    out = shutil.copytree(made, tmp_path / "out")
    (out / "flair.safetensors").unlink()
    (out / "left_out.jsonl").unlink()
    patients = json.loads((out / "kit.json").read_text())["patients"]["test"]
    volumes = read_manifest(out / "prepared")["volumes"]
    of_test = {v["file"].removesuffix(".npy") for v in volumes if v["subject"] in patients}
    models = {load_checkpoint(path).model_id: path.stem for path in (out / "candidates").glob("*.safetensors")}

    def missed(checkpoint, cases, plan, lines):
        """The tuned ones are better on the validation patients, worse on the test patients."""
        tested = any(case.full.scan in of_test for case in cases)
        return [2.0 if tested != (models[checkpoint.model_id] == "start") else 1.5] * len(cases)

    monkeypatch.setattr("dpmtrain.kit.tuning.missed", missed)
    assert main(command(scans, out, start, recipe, "--contrast", "flair")) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "worse than the one it began with, 2.0000 times their noise against 1.5000: no model is written" in told
    assert not (out / "flair.safetensors").exists()


def test_findings_say_better_worse_or_cannot_tell(start):
    checkpoint = load_checkpoint(start)

    def row(method: str, values: list[float], setting: str) -> Row:
        condition = Condition("regular", 4, 24)
        places = [(f"scan {number}", 0) for number in range(len(values))]
        scores, subjects = [score_of(value) for value in values], [scan for scan, _ in places]
        return Row("flair", condition, method, setting, places, scores, subjects)

    mine = row("prox", [0.05, 0.06, 0.05, 0.06, 0.05], f"{checkpoint.model_id}, 1 samples")
    rows = [
        mine,
        row("CG-SENSE", [value + 0.02 for value in mine.nrmse], "weight 10"),
        row("L1-wavelet", [value - 0.01 for value in mine.nrmse], "weight 1"),
        row("start prox", [0.06, 0.05, 0.06, 0.05, 0.056], "other"),
    ]
    found = findings(rows, checkpoint, 5)
    assert all(text.startswith("R = 4, 5 slices of 5 patients: ") for text in found["findings"])
    assert [text.split(": ", 1)[1].split(" (")[0] for text in found["findings"]] == [
        "better than CG-SENSE",
        "worse than L1-wavelet",
        "not clearly better than start prox",
    ]
    assert found["evaluation"][0]["CG-SENSE"]["difference"] == [-0.02, -0.02, -0.02]
    assert "95 % of 5 patients -0.0200" in found["findings"][0]
    few = [row(r.method, r.nrmse[:2], r.setting) for r in rows[:2]]
    (told,) = findings(few, checkpoint, 2)["findings"]
    assert told.startswith("R = 4, 2 slices of 2 patients: ") and "too few patients" in told
    few = [replace(each, subjects=["one"] * 2) for each in few]
    (told,) = findings(few, checkpoint, 1)["findings"]
    assert told.startswith("R = 4, 2 slices of 1 patient: ") and "too few slices" in told
    one = [replace(each, subjects=["one"] * 5) for each in rows[:2]]
    (told,) = findings(one, checkpoint, 1)["findings"]
    assert "better than CG-SENSE" in told and "95 % of slices of one patient" in told


def test_volumes_whose_names_hold_wildcards_are_taken_by_name():
    assert patterns([{"file": "p[1]_a*.npy"}]) == ["p[[]1]_a[*]"]


ANONYMISED = {
    "SIMULATED^HEAD": "xxxxxxxx",
    "<patientID>SIMULATED{0}": "<patientID>xxxxxxxx",
    "simulated_{0}_0": "41000_{1}_200_{2}",
}


def anonymised(simulated_scan, folder: Path, names=ANONYMISED, patients=(100, 101, 102, 102)) -> Path:
    """Four scans of three patients, whose headers tell them apart by their measurementID alone."""
    folder.mkdir()
    for number, patient in enumerate(patients):
        path = shutil.copy(simulated_scan(**SCAN, subject=number), folder / f"meas{number}.h5")
        with h5py.File(path, "r+") as file:
            xml = file["dataset/xml"][0].decode()
            for text, other in names.items():
                assert text.format(number) in xml
                xml = xml.replace(text.format(number), other.format(number, patient, 17 + number))
            file["dataset/xml"][0] = xml.encode()
    return folder


@pytest.mark.parametrize("text", ["xxxxxxxx", "ANONYMOUS", "none", "unknown", "000000", "77777"])
def test_a_placeholder_is_no_patient(simulated_scan, start, recipe, tmp_path, capsys, text):
    names = {**ANONYMISED, "<patientID>SIMULATED{0}": f"<patientID>{text}"}
    scans = anonymised(simulated_scan, tmp_path / "scans", names)
    check = command(scans, tmp_path / "out", start, recipe, "--contrast", "flair", "--check")
    assert main(check) == 0
    told = capsys.readouterr()
    assert [line for line in told.out.splitlines() if line.startswith("patient")] == [
        f"patient meas{number}: meas{number}.h5" for number in range(4)
    ]
    assert f"a placeholder that anonymisation left there, '{text}' (4): folders or file names" in told.err
    assert "--patients measurement tells them apart by the header's measurementID" in told.err


def test_patients_by_folder_measurement_and_id(simulated_scan, start, recipe, tmp_path, capsys):
    scans = anonymised(simulated_scan, tmp_path / "scans")
    check = command(scans, tmp_path / "out", start, recipe, "--contrast", "flair", "--check")
    assert main([*check, "--patients", "measurement"]) == 0
    told = capsys.readouterr()
    assert sum(line.startswith("patient id-") for line in told.out.splitlines()) == 3
    assert "meas2.h5, meas3.h5" in told.out and "dpmtrain:" not in told.err
    found = kit_data.check([scans], "flair", "measurement")
    assert not kit_data.prepared(found, tmp_path / "prepared", 1)
    assert {v["subject"] for v in read_manifest(tmp_path / "prepared")["volumes"]} == {i.subject for i in found.items}
    capsys.readouterr()
    assert main([*check, "--patients", "id"]) == 2
    assert "its patient ID is 'xxxxxxxx', which tells no patient apart" in capsys.readouterr().err
    for number in range(4):
        folder = scans / f"p{number // 2}"
        folder.mkdir(exist_ok=True)
        (scans / f"meas{number}.h5").rename(folder / f"{'ab'[number % 2]}.h5")
    assert main([*check, "--patients", "folder"]) == 2  # two folders are two patients
    told = capsys.readouterr()
    assert "patient p0: p0/a.h5, p0/b.h5" in told.out
    assert "are told apart by --patients folder" in told.err
    assert "flair scans of 2 patients can be used: 3 are needed" in told.err


def test_a_copy_of_a_scan_is_no_second_patient(simulated_scan, tmp_path, capsys):
    """Under another patient's name it was trained and tested on."""
    hospital = tmp_path / "hospital"
    hospital.mkdir()
    for subject in range(3):
        shutil.copy(simulated_scan(**{**SCAN, "n_slices": 1, "subject": subject}), hospital / f"p{subject}.h5")
    shutil.copy(hospital / "p1.h5", hospital / "p7.h5")
    with h5py.File(hospital / "p7.h5", "r+") as file:
        file["dataset/xml"][0] = file["dataset/xml"][0].replace(b"SIMULATED1", b"SIMULATED7")
    found = kit_data.check([hospital], "flair")
    assert len({item.subject for item in found.items}) == 3 and not found.broken
    assert f"p7.h5: holds the same scan as {hospital / 'p1.h5'}: not used" in capsys.readouterr().err


def test_scans_of_one_contrast_may_lie_deeper_than_the_others(simulated_scan, tmp_path):
    """Their names were told by different folders in the check and when they were prepared: no scan was found again."""
    hospital = tmp_path / "hospital"
    for contrast in ("flair", "t1"):
        (hospital / contrast).mkdir(parents=True)
        for subject in range(3):
            scan = simulated_scan(**{**SCAN, "n_slices": 1, "contrast": contrast, "subject": subject})
            shutil.copy(scan, hospital / contrast / f"p{subject}.h5")
    found = kit_data.check([hospital], "flair")
    assert not kit_data.prepared(found, tmp_path / "prepared", 1)
    split = kit_data.split(found, tmp_path / "prepared")
    assert [len(split.scans[part]) for part in kit_data.PARTS] == [1, 1, 1]


def test_scans_that_name_no_patient_at_all(simulated_scan, start, recipe, tmp_path, capsys):
    scans = anonymised(simulated_scan, tmp_path / "scans")
    for path in scans.iterdir():
        with h5py.File(path, "r+") as file:
            xml = file["dataset/xml"][0]
            before, after = xml.index(b"<subjectInformation>"), xml.index(b"</subjectInformation>")
            file["dataset/xml"][0] = xml[:before] + xml[after + len(b"</subjectInformation>") :]
    check = command(scans, tmp_path / "out", start, recipe, "--contrast", "flair", "--check")
    assert main(check) == 0
    assert "4 scans have no patient ID in their header: folders or file names" in capsys.readouterr().err
    # their IDs alone would have made four patients of three
    assert main([*check, "--patients", "measurement"]) == 0
    assert "meas2.h5, meas3.h5" in capsys.readouterr().out


def test_a_measurement_id_of_another_form_is_named(scans, start, recipe, tmp_path, capsys):
    check = command(scans, tmp_path / "out", start, recipe, "--contrast", "flair", "--check")
    assert main([*check, "--patients", "measurement"]) == 2
    assert "its measurementID is 'simulated_0_0': SERIAL_PATIENT_STUDY_MEASUREMENT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("xxxx", True), ("0", True), ("999", True), ("Anonymized", True), ("No Name", True), ("n/a", True), (" ? ", True)]
    + [(text, False) for text in ("7", "11", "1000", "P001", "patientB", "test-4711", "Anonuevo", "SIMULATED0")],
)
def test_what_a_placeholder_is(text, expected):
    assert is_placeholder(text) is expected
