"""How near is `dpmrecon estimate` to a run? `python tests/commands/check_estimate.py [SCAN.h5] [-- options of replay]`.

Prints both in seconds. Without a scan: a simulated one of three slices. For a machine that does nothing else.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.simulate import simulate


def command(*given: object) -> str:
    """What a command of dpmrecon prints."""
    words = [sys.executable, "-m", "dpmrecon.cli", *map(str, given)]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def main(arguments: list[str]) -> None:
    scans, options = arguments, []
    if "--" in arguments:
        place = arguments.index("--")
        scans, options = arguments[:place], arguments[place + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(scans[0]) if scans else Path(folder) / "scan.h5"
        if not scans:
            simulate(scan, SimulationSettings(matrix=(128, 128), n_slices=3))
        estimated = float(re.search(r"the scan: ([\d.]+) s", command("estimate", scan, *options))[1])
        began = time.monotonic()
        command("replay", scan, "--out", Path(folder) / "out", *options)
        seconds = time.monotonic() - began
    print(f"estimated {estimated:.1f} s, took {seconds:.1f} s: {estimated / seconds:.2f} of it")


if __name__ == "__main__":
    main(sys.argv[1:])
