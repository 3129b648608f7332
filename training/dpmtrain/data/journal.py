"""The folder of prepared slices as a run finds and leaves it: its manifest, and a line for each finished input."""

import json
from dataclasses import asdict
from pathlib import Path

from ..files import write_text, writing
from .items import Fault


class Journal:
    """The prepared folder's list of finished items: records[key] has volumes (entries of the manifest), faults and
    the files' sizes and times. A record whose files have changed, or are gone, does not count."""

    def __init__(self, out: Path):
        self.path, self.manifest = out / "done.jsonl", out / "manifest.json"
        self.records: dict[str, dict] = {}
        with writing(self.path):
            for part in out.glob(".*.part"):  # of a run that was killed
                part.unlink()
            lines = self.path.read_text().splitlines() if self.path.exists() else []
            for line in lines:
                try:
                    record = json.loads(line)
                except ValueError:  # the run was killed, or the disk was full, in the middle of it
                    continue
                if all(self._stat(name) == stat for name, stat in record["files"].items()):
                    self.records[record["key"]] = record
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.records.values()))

    def add(self, key: str, entries: list[dict], faults: list[Fault]) -> None:
        files = {entry["file"]: self._stat(entry["file"]) for entry in entries}
        record = {"key": key, "volumes": entries, "faults": [asdict(fault) for fault in faults], "files": files}
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.records[key] = record

    def write_manifest(self, manifest: dict) -> None:
        write_text(self.manifest, json.dumps(manifest, indent=1) + "\n")

    def _stat(self, name: str) -> list[int] | None:
        path = self.path.with_name(name)
        return [path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else None
