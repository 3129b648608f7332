"""What a diffusion scan costs: `python tests/commands/diffusion_cost.py [--matrix 128] [--epi] [-- replay options]`.

Simulates slices x (b = 0 and 3 directions x 4 averages), reconstructs them with `dpmrecon replay` and prints seconds
and peak memory. --matrix 312 has the source paper's .8 mm and b = 1200. Without --epi the scan is Cartesian,
R = 3, and b = 0 is averaged as the directions are. For a machine that does nothing else.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VIEW_MM = 250.0
DIRECTIONS, AVERAGES = 3, 4


def command(*given: object) -> None:
    """Run a command of dpmrecon; what it prints is shown where it fails."""
    done = subprocess.run([sys.executable, "-m", "dpmrecon.cli", *map(str, given)], capture_output=True, text=True)
    if done.returncode not in (0, 3, 4):  # slices above the head have nothing to correct their ghost by
        sys.exit(done.stdout + done.stderr)


def peak_mb() -> float:
    """Of the largest process that was waited for."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrix", type=int, default=128)
    parser.add_argument("--slices", type=int, default=30)
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument("--epi", action="store_true", help="as scanners acquire it: EPI, R = 2, 6/8 partial Fourier")
    mark = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, options = parser.parse_args(sys.argv[1:mark]), sys.argv[mark + 1 :]
    b = 1200 if VIEW_MM / args.matrix < 1 else 1000
    scan = ["--contrast", "dwi", "--matrix", args.matrix, args.matrix, "--fov", VIEW_MM, VIEW_MM]
    scan += ["--slices", args.slices, "--coils", args.coils, "--averages", AVERAGES]
    if args.epi:
        scan += ["--epi", "--R", 2, "--partial-fourier", 0.75, "--ramp-sampling"]
        scan += ["--b-values", 0, b, "--directions", DIRECTIONS, "--b0-averages", 1]
    else:
        scan += ["--R", 3, "--b-values", 0, *[b] * DIRECTIONS]
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "scan.h5", Path(folder) / "out"
        command("simulate", path, *scan)
        simulating, began = peak_mb(), time.monotonic()
        command("replay", path, "--out", out, *options)
        seconds = time.monotonic() - began
        entries = json.loads((out / "report.json").read_text())["slices"]
        size = path.stat().st_size / 1e6
    stages: dict[str, float] = {}
    for entry in entries:
        for name, value in entry.get("seconds", {}).items():
            stages[name] = stages.get(name, 0.0) + value
    told = ", ".join(f"{name} {value:.0f}" for name, value in stages.items())
    peak = f"{peak_mb():.0f}" if peak_mb() > simulating else f"at most {simulating:.0f} (the simulation's)"
    kind = "EPI" if args.epi else "Cartesian"
    print(
        f"{kind}, {args.slices} slices of {args.matrix} x {args.matrix}, {args.coils} coils, b = 0 and {DIRECTIONS} "
        f"directions x {AVERAGES} averages, {size:.0f} MB: {len(entries)} images, {seconds:.0f} s ({told}), peak "
        f"{peak} MB"
    )


if __name__ == "__main__":
    main()
