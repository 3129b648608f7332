"""What is light stays light: help and health checks come at once, and a scan is read while torch is imported."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "h5py", "ismrmrd", "matplotlib", "scipy", "pydicom"}
HELP = """
from {package}.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
"""
FILE = "import dpmrecon.mrd.file"


def modules(code: str) -> set[str]:
    """What a fresh Python has imported once it has run `code`."""
    told = f"{code}\nimport sys\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("package", ["dpmrecon", "dpmtrain"])
def test_help_imports_nothing_heavy(package):
    loaded = modules(HELP.format(package=package))
    assert f"{package}.cli" in loaded
    assert loaded & HEAVY == set()


def test_the_package_imports_nothing_heavy():
    loaded = modules("import dpmrecon; dpmrecon.BadInputError")
    assert "dpmrecon.errors" in loaded
    assert loaded & (HEAVY | {"numpy"}) == set()


def test_a_scan_is_opened_without_torch():
    """So that its lines are read while torch is imported."""
    loaded = modules(FILE)
    assert "h5py" in loaded and "torch" not in loaded


def test_the_doctor_tells_its_text_without_torch(simulated_scan):
    loaded = modules(f"from dpmrecon.cli import main\nmain(['doctor', {str(simulated_scan())!r}])")
    assert "h5py" in loaded and "torch" not in loaded
