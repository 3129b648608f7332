"""The report of a bulk run, a row for each scan: bulk.csv and bulk.html."""

import csv
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from ..files import write_text
from ..output.mrd_images import RESEARCH
from ..output.protocol_report import Row
from ..output.writers import telling
from ..tools.template import rendered

COUNTS = ("model", "fallback", "missing", "not trusted", "caution")
COLUMNS = (
    *("name", "scan", "outcome", "error", "protocol", "contrast", "matrix", "R"),
    *COUNTS,
    *("remarks", "seconds", "exit_code", "scan_sha256"),
)
OUTCOMES = {0: "done", 3: "done, with fallbacks", 4: "done, with slices missing"}  # by exit code; others have failed
WAITING = "not reached"


def write(out: Path, rows: Mapping[str, Row | None]) -> list[str]:
    """Write the report; the names of its files. rows: None for a scan that the run has not reached. Raises
    BadInputError."""
    table = [_line(name, row) for name, row in rows.items()]
    written = ["bulk.csv"]
    with telling(out, "make room or choose another --out"):
        text = StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(table)
        write_text(out / "bulk.csv", text.getvalue())
        if find_spec("jinja2") is not None:
            page = rendered(
                Path(__file__).with_name("bulk.html"),
                notice=RESEARCH,
                columns=[column for column in COLUMNS if any(line[column] not in ("", 0) for line in table)],
                lines=table,
                outcomes=Counter(line["outcome"] for line in table),
                previews={name for name, row in rows.items() if row and row["files"].get("preview.png")},
            )
            write_text(out / "bulk.html", page)
            written.append("bulk.html")
    return written


def _line(name: str, row: Row | None) -> dict[str, Any]:
    if row is None:
        return dict.fromkeys(COLUMNS, "") | {"name": name, "outcome": WAITING}
    counts = row.get("verdicts") or dict.fromkeys(COUNTS, "")
    failed = row["error"] is not None
    return {
        **{column: _told(row.get(column)) for column in COLUMNS},
        **{count: counts[count] for count in COUNTS},
        "matrix": " x ".join(map(str, row["matrix"] or [])),
        "R": "" if row.get("R") is None else f"{row['R']:.3g}",
        "remarks": "; ".join([*row.get("fallback", []), *row.get("missing", []), *row.get("remarks", [])]),
        "seconds": "" if row.get("seconds") is None else f"{row['seconds']:.1f}",
        "exit_code": row["exit_code"],
        "outcome": "failed" if failed else OUTCOMES[row["exit_code"]],
    }


def _told(value: Any) -> str:
    return "" if value is None else str(value)
