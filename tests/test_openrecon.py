"""The OpenRecon label, its schema and its package. What the service does with parameters: hosts/test_parameters.py."""

import base64
import copy
import json
import subprocess
import sys
import zipfile

import pytest
from dpmrecon.hosts.parameters import parameters_of
from dpmrecon.options import Options, from_pairs
from dpmrecon.prior.kinds import DENOISER, KINDS
from dpmrecon.version import __version__

from support.paths import ROOT

FOLDER = ROOT / "docker/openrecon"
LABEL = json.loads((FOLDER / "label.json").read_text())
FIELDS = {entry["id"]: entry for entry in LABEL["parameters"]}


def printed(script: str, *options: str) -> str:
    command = [sys.executable, str(FOLDER / script), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def chosen(**values: object) -> Options:
    """What a scan gets whose card has these values, and its defaults elsewhere."""
    told = {name: entry["default"] for name, entry in FIELDS.items()} | values
    config, pairs = parameters_of(json.dumps({"version": "1.1.0", "parameters": told}).encode() + b"\0")
    assert config == "dpm"
    return from_pairs(pairs, service=True)


def test_the_label_is_what_the_generator_writes():
    assert json.loads(base64.b64decode(printed("label.py", "--base64"))) == LABEL
    assert printed("label.py", "--name") == f"OpenRecon_dpmrecon_dpmrecon_V{__version__}"
    gpu = json.loads(base64.b64decode(printed("label.py", "--gpu", "--base64")))
    assert gpu["reconstruction"]["can_use_gpu"] and not LABEL["reconstruction"]["can_use_gpu"]
    assert LABEL["general"]["version"] == __version__


def test_the_label_follows_the_schema():
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install -e .[dev]")
    schema = json.loads((FOLDER / "schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(LABEL)


def _without(label, *path):
    *path, last = path
    for name in path:
        label = label[name]
    del label[last]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda label: label["parameters"].append({**FIELDS["gate"], "id": "another"}),  # the fifteenth
        lambda label: label["parameters"][1].update(id="combine-averages"),
        lambda label: label["parameters"][1].update(default=""),
        lambda label: label["parameters"][1].update(hint="none"),
        lambda label: label["parameters"].pop(0),  # config
        lambda label: next(one for one in label["parameters"] if one["id"] == "deadline").update(unit={"en": "secs"}),
        lambda label: next(one for one in label["parameters"] if one["id"] == "seed").update(maximum=2**31),
        lambda label: next(one for one in label["parameters"] if one["id"] == "deadline").update(default=0.05),
        lambda label: _without(label, "parameters", 4, "default"),
        lambda label: _without(label, "general", "regulatory_information", "udi"),
        lambda label: label["general"].update(version="0.1"),
        lambda label: label["reconstruction"].update(injector="raw"),
        lambda label: label["reconstruction"]["transfer_protocol"].update(version="2.0"),
    ],
)
def test_the_schema_sees_what_is_wrong(spoil):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install -e .[dev]")
    label = copy.deepcopy(LABEL)
    spoil(label)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(json.loads((FOLDER / "schema.json").read_text())).validate(label)


def test_no_id_stands_there_twice():
    assert len(FIELDS) == len(LABEL["parameters"]) == 14
    for entry in FIELDS.values():
        if entry["type"] == "choice":
            assert entry["default"] in [value["id"] for value in entry["values"]]
        if "minimum" in entry:
            assert entry["minimum"] <= entry["default"] <= entry["maximum"]


def test_the_cards_defaults_are_the_services_own():
    assert chosen() == Options()


def test_every_choice_and_limit_is_an_option_that_the_service_takes():
    for name, entry in FIELDS.items():
        if name == "config":
            continue
        values = [value["id"] for value in entry.get("values", [])]
        values += [entry["maximum"]] if "maximum" in entry else [True, False] if entry["type"] == "boolean" else []
        for value in values:
            changed = chosen(**{name: value})
            assert (changed == Options()) == (value == entry["default"]), (name, value)
    assert [value["id"] for value in FIELDS["sampler"]["values"]][1:] == list(KINDS[DENOISER].samplers)
    assert chosen(combineaverages="True").combine_averages


def test_the_package_holds_image_and_manual_under_one_name(tmp_path):
    image = tmp_path / "image.tar"
    image.write_bytes(b"layers" * 1000)
    path = tmp_path / "build" / f"OpenRecon_dpmrecon_dpmrecon_V{__version__}.zip"
    assert printed("package.py", str(image), "--out", str(tmp_path / "build")) == str(path)
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == [f"{path.stem}.pdf", f"{path.stem}.tar"]
        assert archive.read(f"{path.stem}.tar") == image.read_bytes()
        assert archive.read(f"{path.stem}.pdf").startswith(b"%PDF-")
    assert sorted(one.suffix for one in path.parent.iterdir()) == [".pdf", ".zip"]


def test_the_manual_tells_every_parameter():
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); from package import manual; print(*manual(), sep=chr(10))"
    text = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "RESEARCH: not for diagnostic use" in text
    for entry in FIELDS.values():
        assert f"  {entry['label']['en']} [" in text


def test_an_image_that_is_not_there_is_one_sentence(tmp_path):
    command = [sys.executable, str(FOLDER / "package.py"), str(tmp_path / "none.tar"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "does not exist" in done.stderr


def test_the_dockerfile_bears_the_labels_key_and_port():
    dockerfile = (FOLDER / "Dockerfile").read_text()
    key = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
    assert f'LABEL "{key}"="${{OPENRECON}}"' in dockerfile
    port = str(LABEL["reconstruction"]["port"])
    assert f"EXPOSE {port}" in dockerfile and f'"--port", "{port}"' in dockerfile.split("CMD [")[-1]
