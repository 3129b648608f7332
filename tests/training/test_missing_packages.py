"""A package that is not installed is named in one sentence."""

import sys

import pytest
from dpmtrain import cli


def test_a_missing_package_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "dpmtrain.robustness.fault_injection", None)  # a fault of ours keeps its traceback
    with pytest.raises(ModuleNotFoundError):
        cli.main(["faults", "--scans", "1", "--out", str(tmp_path)])
    monkeypatch.delitem(sys.modules, "dpmtrain.robustness.fault_injection")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert cli.main(["faults", "--scans", "1", "--out", str(tmp_path)]) == 2
    assert "tqdm is not installed: pip install -e .[train,study]" in capsys.readouterr().err
