"""The wheel holds what the tree holds: modules, model, recipes, chains, licence; and it asks for what it imports."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from support.paths import ROOT

PACKAGES = {"dpmrecon": ROOT / "gadgets" / "dpmrecon", "dpmtrain": ROOT / "training" / "dpmtrain"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", minversion="70.1", reason="a wheel needs setuptools 70.1 or later")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    # a copy, because setuptools takes along what an earlier build left in the tree
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("gadgets", "training", "config_xml"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("dpmrecon-*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_modules_model_recipes_chains_and_licence_are_in_the_wheel(wheel):
    found = set(wheel.namelist())
    wanted = set()
    for name, folder in PACKAGES.items():
        files = [
            path for path in folder.rglob("*") if path.suffix in (".py", ".json", ".safetensors", ".typed", ".html")
        ]
        wanted |= {f"{name}/{path.relative_to(folder).as_posix()}" for path in files}
    assert {"dpmrecon/checkpoints/default.safetensors", "dpmrecon/checkpoints/default.json"} <= wanted
    recipes = {f"dpmtrain/recipes/{path.name}" for path in (ROOT / "training" / "recipes").glob("*.toml")}
    assert "dpmtrain/recipes/default.toml" in recipes
    wanted |= recipes
    info = next(name for name in found if name.endswith(".dist-info/METADATA")).split("/")[0]
    data = info.replace(".dist-info", ".data/data/share/gadgetron/config")
    chains = {f"{data}/{path.name}" for path in (ROOT / "config_xml").glob("*.xml")}
    assert len(chains) >= 10
    assert sorted((wanted | chains) - found) == []
    assert any(name.startswith(info) and name.endswith("LICENSE") for name in found)
    # and nothing that makes the tree's folders importable
    assert {name.split("/")[0] for name in found} == {*PACKAGES, info, info.replace(".dist-info", ".data")}


def test_what_the_runtime_imports_is_asked_for(wheel):
    info = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    asked = [line for line in wheel.read(info).decode().splitlines() if line.startswith("Requires-Dist: ")]
    always = {re.split("[<>=~!;]", line.split()[1])[0] for line in asked if "extra ==" not in line}
    # the host of gadget.py brings the first; what asks for one of the others says that it is missing
    extra = {"gadgetron", "nibabel", "diffusers", "jinja2", "fsspec", "ray", "mrd", "prometheus_client"}
    imported = set()
    for path in PACKAGES["dpmrecon"].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).split(".")[0])
    third = {{"PIL": "pillow"}.get(name, name) for name in imported - set(sys.stdlib_module_names) - set(PACKAGES)}
    assert {"torch", "xsdata"} <= third
    assert sorted(third - always - extra) == []
