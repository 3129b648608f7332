"""The help of the training package comes at once: nothing that takes long to import is imported for it."""

import subprocess
import sys

HELP = """
import sys
from dpmtrain.cli import main
try:
    main(["--help"])
except SystemExit:
    print(*{name.split(".")[0] for name in sys.modules}, file=sys.stderr)
"""


def test_help_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert "bench-gpu" in done.stdout
    loaded = set(done.stderr.split())
    assert {"dpmtrain", "dpmrecon"} <= loaded
    assert loaded & {"torch", "numpy", "h5py", "ismrmrd", "matplotlib", "scipy", "tqdm"} == set()
