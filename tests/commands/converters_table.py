"""Prints the table of docs/converters.md: the cases of support/converters.py by `dpmrecon replay` with default options.

    python tests/commands/converters_table.py

What one number does not tell is tested by tests/test_converters.py, tests/output/test_maps.py and
tests/training/kit/test_kit.py, and stands in the table as it is tested.
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for support

from dpmrecon.cli import main

from support.converters import CASES, TOLD, Case, Head, nrmse
from support.results import images


def outcome(case: Case, head: Head, folder: Path) -> str:
    """What becomes of a case: NRMSE of its images, or what is said."""
    out, told = folder / "out", io.StringIO()
    scan = case.write(head, folder / "scan.h5")
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = main(["replay", str(scan), "--out", str(out), "--device", "cpu", *case.options])
    if code != 0:
        # case.right holds the words that matter
        found = str(case.right) in told.getvalue()
        return f"{'slice named' if code == 4 else 'refused'}: {case.right}" if found else f"exit code {code}"
    found = sorted({f"{nrmse(image.data[0, 0], head.truth[0]):.3f}".lstrip("0") for image in images(out)})
    return " and ".join(found) + (", said" if case.remark else "")


def right(case: Case) -> str:
    return case.right if isinstance(case.right, str) else f"{case.right:.3f}".lstrip("0")


def table() -> list[str]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        head = Head.of(Path(folder))
        for number, case in enumerate(CASES):
            place = Path(folder) / str(number)
            place.mkdir()
            rows.append((case.number[:2], case.title, case.before, outcome(case, head, place), right(case)))
    rows += [(f"{entry[0]}", *entry[1:3], entry[3], entry[3]) for entry in TOLD]
    rows.sort(key=lambda row: row[0])  # of one number, "the same" after what it is the same as
    titles = ("case", "what converters and scanners write", "release 0.1.0", "now", "right")
    return ["| " + " | ".join(row) + " |" for row in (titles, ("---",) * 5, *rows)]


if __name__ == "__main__":
    print("\n".join(table()))
