"""protocol.json: a row for each scan of a patient, kept on disk as scans are done, so that a broken run can go on."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BadInputError
from ..files import from_json, write_text
from .writers import telling

Row = dict[str, Any]


@dataclass
class ProtocolReport:
    """told: what is said of all scans; names: of the scans there are; rows: of those done in this run, by name;
    earlier, earlier_uid: scans and study of the file as
    it was found."""

    path: Path
    told: Mapping[str, Any]
    names: Collection[str]
    rows: dict[str, Row] = field(default_factory=dict)
    earlier: dict[str, Row] = field(default_factory=dict)
    earlier_uid: str | None = None

    def __post_init__(self) -> None:
        """Raises BadInputError where a file of that name is not ours."""
        if not self.path.exists():
            return
        try:
            content = from_json(self.path.read_text())
            self.earlier, self.earlier_uid = {row["name"]: row for row in content["scans"]}, content["StudyInstanceUID"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInputError(
                f"{self.path} is not of an earlier run ({error}): remove it or choose another --out"
            ) from error

    def study_of(self, digests: Collection[str], *, anonymize: bool) -> str | None:
        """StudyInstanceUID of the earlier run, where it had one of the scans with these digests and told as much."""
        had = (row["scan_sha256"] in digests and (row["scan"] is None) == anonymize for row in self.earlier.values())
        return self.earlier_uid if any(had) else None

    def done(self, row: Row, folder: Path) -> Row | None:
        """The row of an earlier run of the same whose files are there."""
        found = self.earlier.get(row["name"], {})
        same = row["key"] is not None and found.get("key") == row["key"] and found["error"] is None
        return found if same and found["files"] == files_in(folder) else None

    def add(self, row: Row) -> None:
        """Take a row and see it on disk. Raises BadInputError."""
        self.rows[row["name"]] = row
        waiting = [old for name, old in self.earlier.items() if name in self.names and name not in self.rows]
        content = {**self.told, "scans": [*self.rows.values(), *waiting]}
        with telling(self.path.parent, "make room or choose another --out"):
            write_text(self.path, json.dumps(content, indent=1) + "\n")


def key_of(*decides: Any) -> str:
    """A digest, hex, of all that decides a scan's results."""
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()


def files_in(folder: Path) -> dict[str, int]:
    """What lies in a scan's folder: 1 for a file, of a folder how many files it has."""
    if not folder.is_dir():
        return {}
    return {
        path.name: sum(inner.is_file() for inner in path.rglob("*")) if path.is_dir() else 1
        for path in sorted(folder.iterdir())
    }
