"""What surrounds the images, without building one: `make image-test` does that."""

import configparser
import json
import re
import runpy
import subprocess
import sys
from importlib.metadata import requires

import pytest
from dpmrecon.hosts.metrics import Metrics

from support.paths import ROOT

COMPOSE = [ROOT / "docker" / name for name in ("compose.yaml", "compose.gpu.yaml")]


def test_the_compose_files_follow_their_schema(tmp_path):
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, *map(str, COMPOSE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE[0].read_text().replace("mem_limit", "memlimit"))
    done = subprocess.run([*command, str(wrong)], capture_output=True, text=True)
    assert done.returncode == 1  # it looks
    assert "memlimit" in done.stdout


def test_no_port_is_open_to_the_network_unasked():
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load(COMPOSE[0].read_text())["services"]
    assert "ports" not in services["dpmrecon"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert len(published) == 4
    assert all(re.match(r"127\.0\.0\.1:|\$\{DPMRECON_LISTEN:-127\.0\.0\.1\}:", port) for port in published)
    assert all(service["restart"] == "unless-stopped" and "mem_limit" in service for service in services.values())


def test_the_dashboard_asks_for_what_the_service_counts():
    """And Prometheus asks where the service answers."""
    client, yaml = pytest.importorskip("prometheus_client"), pytest.importorskip("yaml")
    metrics = Metrics("0", "a model", lambda: 0, lambda: 0, lambda: 0)
    try:
        text = client.generate_latest(metrics.registry).decode()
    finally:
        metrics.stop()
    counted = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    board = json.loads((ROOT / "docker/metrics/dpmrecon.json").read_text())
    asked = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    named = {name.removesuffix("_bucket") for name in re.findall(r"(?:dpmrecon|process)_\w+", asked)}
    assert named - counted == set() and {name for name in counted if name.startswith("dpmrecon_")} <= named | {
        name for name in counted if name.endswith("_created")
    }
    commands = [yaml.safe_load(path.read_text())["services"]["dpmrecon"]["command"] for path in COMPOSE]
    asked_at = yaml.safe_load((ROOT / "docker/metrics/prometheus.yml").read_text())["scrape_configs"][0]
    (target,) = asked_at["static_configs"][0]["targets"]
    assert target == "dpmrecon:9021" and all("--metrics 0.0.0.0:9021" in command for command in commands)
    mounted = re.findall(r"- \./metrics/(\S+?):", COMPOSE[0].read_text())
    assert sorted(mounted) == sorted(path.name for path in (ROOT / "docker/metrics").iterdir())


def test_the_compose_files_chains_are_what_the_generator_writes():
    written = runpy.run_path(str(ROOT / "config_xml/make_chains.py"))["compose_chains"]()
    assert {path.name: path.read_text() for path in (ROOT / "docker/chains").iterdir()} == written
    mounted = re.findall(
        r"\./chains/(\S+?):/opt/conda/envs/gadgetron/share/gadgetron/config/(\S+):ro", COMPOSE[0].read_text()
    )
    assert sorted(mounted) == sorted((name, name) for name in written)


@pytest.mark.parametrize("name", ["constraints.txt", "docker/constraints.gadgetron.txt"])
def test_everything_in_an_image_is_pinned(name):
    """The packages that the runtime needs, and those that these need, as they are installed here."""
    packaging = pytest.importorskip("packaging.requirements")
    lines = [line.split("#")[0].split(";")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    pinned = {packaging.Requirement(line).name.replace("_", "-").lower() for line in lines if "==" in line}
    needed, waiting = set(), ["dpmrecon"]
    while waiting:
        package = waiting.pop()
        for text in requires(package) or []:
            requirement = packaging.Requirement(text)
            found = requirement.name.replace("_", "-").lower()
            if found not in needed and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                needed.add(found)
                waiting.append(found)
    assert {"torch", "numpy", "sympy", "pillow"} <= needed
    assert sorted(needed - pinned - {"setuptools"}) == []


def test_training_is_left_out_and_nothing_else(tmp_path):
    path = tmp_path / "setup.cfg"
    path.write_text((ROOT / "setup.cfg").read_text())
    script = [sys.executable, str(ROOT / "docker/without_training.py"), str(path)]
    subprocess.run(script, check=True)
    before, after = configparser.ConfigParser(interpolation=None), configparser.ConfigParser(interpolation=None)
    before.read(ROOT / "setup.cfg")
    after.read(path)
    kept = [name for name in before["options"]["packages"].split() if not name.startswith("dpmtrain")]
    assert after["options"]["packages"].split() == kept and "dpmrecon.checkpoints" in kept
    assert after["options.entry_points"]["console_scripts"].strip() == "dpmrecon = dpmrecon.cli:main"
    for name in ("install_requires", "python_requires"):
        assert after["options"][name].split() == before["options"][name].split()
    again = subprocess.run(script, capture_output=True, text=True)
    assert again.returncode == 1  # nothing left to take out: said, not passed over
    assert "out of date" in again.stderr
