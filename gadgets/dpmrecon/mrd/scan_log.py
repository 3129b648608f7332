"""What became of a scan's lines, beside its slices: how many of each kind and flag came, and what was repaired."""

from collections import Counter
from dataclasses import dataclass, field

from .flags import names_of


@dataclass
class ScanLog:
    """kinds: lines by what they were taken for, as "image" or "left out: phase correction"; flags: lines by flag;
    remarks: about the scan, each once, in order."""

    kinds: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)

    def count(self, kind: str, flags: int, lines: int = 1) -> None:
        """Note what lines were taken for."""
        self.kinds[kind] += lines
        for name in names_of(flags):
            self.flags[name] += lines

    def remark(self, text: str) -> None:
        """Note what was repaired or left out."""
        if text not in self.remarks:
            self.remarks.append(text)
