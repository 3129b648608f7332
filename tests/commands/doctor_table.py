"""Prints the table of docs/doctor.md: what `dpmrecon doctor` says of every file of the shared data and of every scan
that the converters' scripts write, beside the exit code of `dpmrecon replay` (two steps, one sample).

    python tests/commands/doctor_table.py ../shared > table.md

The scripts run as they are, with a `dpmrecon` that notes both for each scan they replay.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from dpmrecon.cli import main

FEW = ("--steps", "2", "--samples", "1", "--device", "cpu")
SUFFIXES = (".h5", ".gz", ".cfl")
LONGEST = 160  # characters of a reason
STUB = """#!{python}
import sys
sys.path[:0] = {path}
from doctor_table import noted
from dpmrecon.cli import main
sys.exit(noted(sys.argv[1:], "{record}") if sys.argv[1:2] == ["replay"] else main(sys.argv[1:]))
"""


def noted(arguments: list[str], record: str) -> int:
    """Replay as asked; a line of JSON with what the doctor says of the same scan goes to the file `record`."""
    scan, options = arguments[1], arguments[2:]
    if "--out" in options:
        place = options.index("--out")
        del options[place : place + 2]
    entry = {"scan": Path(scan).name, "options": " ".join(options), **examined(scan, options)}
    entry["replay"] = main([*arguments, *(FEW if "--steps" not in arguments else ())])
    with open(record, "a") as file:
        file.write(json.dumps(entry) + "\n")
    return entry["replay"]


def examined(scan: str, options: list[str]) -> dict:
    """The doctor's exit code and JSON."""
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen):
        code = main(["doctor", scan, "--json", *options])
    return {"doctor": code, **json.loads(screen.getvalue())}


def replayed(scan: Path) -> int | None:
    """Exit code of `replay`; None for what is no HDF5 file."""
    if scan.suffix != ".h5":
        return None
    hush = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(hush), contextlib.redirect_stderr(hush):
        return main(["replay", str(scan), "--out", f"{folder}/out", *FEW])


def of_data(data: Path) -> list[dict]:
    """Of every file that may be taken for a scan."""
    files = sorted(path for path in data.rglob("*") if path.suffix in SUFFIXES and "images" not in path.parts)
    files += sorted((data / "images").rglob("*.gz"))[:1]
    return [
        {"scan": str(path.relative_to(data)), "options": "", **examined(str(path), []), "replay": replayed(path)}
        for path in files
    ]


def of_converters(scripts: Path) -> list[dict]:
    """Of every scan that they replay, and of those that they only write."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        tools = Path(folder) / "bin"
        tools.mkdir()
        record = Path(folder) / "record"
        stub = STUB.format(python=sys.executable, path=[str(Path(__file__).parent), *sys.path], record=record)
        for name, text in (("dpmrecon", stub), ("dpmtrain", "#!/bin/sh\n")):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        known: set[Path] = set()
        for script in sorted(scripts.glob("[0-9]*.py")):
            data = Path(folder) / script.stem
            env = {**os.environ, "DPMRECON": str(tools / "dpmrecon"), "CONVERTER_DATA": str(data), "PATH": path}
            subprocess.run([sys.executable, script.name], cwd=scripts, env=env, capture_output=True, check=False)
            rows = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
            record.unlink(missing_ok=True)
            seen = {row["scan"] for row in rows}
            for scan in sorted(data.rglob("*.h5")):
                written = scan.name not in seen and not scan.name.startswith("full") and scan not in known
                if written and scan.name != "images.h5":
                    rows.append({"scan": scan.name, "options": "", **examined(str(scan), []), "replay": replayed(scan)})
                    known.add(scan)
            found += [{**row, "scan": f"{script.stem[:2]}: {row['scan']}"} for row in rows]
    return found


def line(row: dict) -> str:
    calibration = row["calibration"] or {}
    words = "; ".join([*row["reasons"], *row["repairs"]]).replace("|", "/")
    cut = words if len(words) <= LONGEST else f"{words[:LONGEST]} ..."
    numbers = "" if row["R"] is None else f"{row['R']:g}"
    kind = f"{calibration['kind']}, {calibration['lines']}" if calibration.get("lines") else calibration.get("kind", "")
    replay = "" if row["replay"] is None else str(row["replay"])
    name = f"{row['scan']} {row['options']}".strip()
    return f"| {name} | {row['verdict']} | {row['doctor']} | {replay} | {numbers} | {kind} | {cut} |"


def table(shared: Path) -> list[str]:
    rows = of_data(shared / "data") + of_converters(shared / "converters")
    compared = [row for row in rows if row["replay"] is not None]
    equal = sum(row["doctor"] == row["replay"] for row in compared)
    return [
        "| file | verdict | exit | replay's | R | calibration | reasons, repairs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *map(line, rows),
        "",
        f"The exit code is that of `replay` for {equal} of the {len(compared)} scans that were replayed.",
    ]


if __name__ == "__main__":
    print("\n".join(table(Path(sys.argv[1]))))
