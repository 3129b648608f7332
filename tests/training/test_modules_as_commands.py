"""Modules that are commands of their own, `python -m dpmtrain.ROOM.NAME`: bad input is one sentence and exit code 2."""

import runpy
import sys
from pathlib import Path

import dpmtrain
import pytest
from dpmtrain.study import made_up

PACKAGE = Path(dpmtrain.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.glob("*/*.py")
    if '__name__ == "__main__"' in path.read_text()
)
IMAGES = ["--images", "nowhere"]
OUT = [*IMAGES, "--out", "out"]
OPTIONS = {
    "bench.controls": ["nowhere.toml", *IMAGES, "--data", "nowhere", "--run", "run", "--minutes", "1"],
    "bench.latent": [*OUT, "--run", "run", "--model", "nowhere.safetensors"],
    "robustness.adapt": [*OUT, "--objects", "unknown"],
    "evaluate.checkpoints": [*IMAGES, "--checkpoint", "nowhere.safetensors"],
    "evaluate.diffusion": ["--model", "nowhere.safetensors"],
    "evaluate.foci": ["--scans", "nowhere", "--out", "out"],
    "evaluate.folded": [*IMAGES, "--model", "nowhere.safetensors"],
    "evaluate.lesion_noise": [*IMAGES, "--lines", "lines.jsonl"],
    "evaluate.lesion_spread": OUT,
    "evaluate.lesions": OUT,
    "evaluate.overview": OUT,
    "evaluate.patient": OUT,
    "experiments.capacity": [*OUT, "--data", "nowhere", "--run", "run"],
    "experiments.imperfect": [*OUT, "--data", "nowhere", "--run", "run", "--start", "nowhere.safetensors"],
    "experiments.per_target": [*OUT, "--data", "nowhere", "--run", "run", "--start", "nowhere.safetensors"],
    "one_step.distillation": [*OUT, "--teacher", "nowhere.safetensors", "--students", "nowhere.safetensors"],
    "one_step.paper": OUT,
    "one_step.volumes": [*OUT, "--model", "nowhere.safetensors"],
    "one_step.qsm": OUT,
    "evaluate.shots": ["--model", "nowhere.safetensors"],
    "evaluate.swi": OUT,
    "evaluate.swi_slices": ["--out", "out", "--matrices", "2"],
    "evaluate.volumes": ["support", *OUT],
    "study.check": ["--out", "out", "--studies", "0"],
    "study.page_time": ["--out", "out", "--viewer", "nowhere"],
}


@pytest.mark.parametrize("name", MODULES)
def test_bad_input_is_one_sentence(name, tmp_path, monkeypatch, capsys):
    module = f"dpmtrain.{name}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(made_up, "write_sources", lambda *args: None)  # of a study: none can be made of no sources
    monkeypatch.delitem(sys.modules, module, raising=False)  # it is loaded again, as the program
    monkeypatch.setattr(sys, "argv", [module, *OPTIONS.get(name, IMAGES)])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__")
    assert end.value.code == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("dpmtrain: ")
