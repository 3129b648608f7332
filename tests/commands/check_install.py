"""`python tests/commands/check_install.py`: sdist and wheel, each in an environment of its own, do their work.

Run in a clone, with an index of packages at hand; it takes some minutes. Each is installed with constraints.txt, and
then simulates a scan and reconstructs it in an empty folder, so that nothing of the clone can help. Prints a line each.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "gadgets", "training", "config_xml")
SDIST = "import sys, setuptools.build_meta as build; build.build_sdist(sys.argv[1])"
COMMANDS = (
    ("--version",),
    ("simulate", "scan.h5", "--contrast", "flair", "--R", "4", "--matrix", "64", "64"),
    ("replay", "scan.h5", "--out", "results", "--truth", "scan_truth.npy"),
    ("compare", "results", "--out", "page.html"),
)


def run(*command: object, folder: Path) -> str:
    """Standard output. The end of what was said, and exit, where it fails."""
    told = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in command], cwd=folder, env=told, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def check(package: Path, folder: Path) -> None:
    run(sys.executable, "-m", "venv", folder / "env", folder=folder)
    program = folder / "env" / "bin"
    constraints = ROOT / "constraints.txt"
    run(program / "python", "-m", "pip", "install", "-q", "-c", constraints, f"{package}[page]", folder=folder)
    said = [run(program / "dpmrecon", *command, folder=folder) for command in COMMANDS]
    chains = list((folder / "env" / "share" / "gadgetron" / "config").glob("*.xml"))
    if len(chains) < 10:
        sys.exit(f"{package.name} installs {len(chains)} chains")
    run(program / "dpmtrain", "--help", folder=folder)
    scores = next(line for line in said[2].splitlines() if line.startswith("NRMSE"))
    print(f"{package.name}: version {said[0].strip()}, {len(chains)} chains, {scores}")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, out = folder / "source", folder / "out"
        source.mkdir()
        for part in PARTS:  # not what earlier builds left in the clone
            if (ROOT / part).is_dir():
                shutil.copytree(
                    ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "reports")
                )
            else:
                shutil.copy(ROOT / part, source)
        run(sys.executable, "-c", SDIST, out, folder=source)
        (sdist,) = out.glob("*.tar.gz")
        run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", out, sdist, folder=folder)
        (wheel,) = out.glob("*.whl")
        for package in (sdist, wheel):
            with tempfile.TemporaryDirectory() as own:
                check(package, Path(own))


if __name__ == "__main__":
    main()
