"""What the doctor says of a scan, as a text and as JSON. Nothing of the patient is in it."""

from dataclasses import asdict, dataclass, field
from typing import Any

SUPPORTED, FALLBACK, REFUSED = "supported", "fallback", "refused"


@dataclass
class Diagnosis:
    """What is to be said of a scan.

    verdict: supported, fallback (every slice would be conventional) or refused; exit_code: that of `dpmrecon replay`;
    reasons: of the verdict; advice: what to change at the scanner, or in the command; R: that is reconstructed, R_net:
    lines of the matrix over those that came; calibration: kind and lines; the rest, by topic, is told as it stands.
    maps, cost: with the page alone; pictures: PNG by title.
    """

    verdict: str = REFUSED
    exit_code: int = 2
    reasons: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    R: float | None = None
    R_net: float | None = None
    calibration: dict[str, Any] | None = None
    holds: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    noise: dict[str, Any] = field(default_factory=dict)
    coils: dict[str, Any] = field(default_factory=dict)
    geometry: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    repairs: list[str] = field(default_factory=list)
    maps: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    pattern: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All but the pictures, as JSON values."""
        found = asdict(self)
        del found["pictures"]
        return found

    def text(self) -> str:
        """For the screen."""
        lines = [f"verdict: {self.verdict}", *(f"  {reason}" for reason in self.reasons)]
        for title, values in self.topics():
            lines += [f"{title}:", *(f"  {name}: {told(value)}" for name, value in values.items())]
        if self.pattern:
            lines += ["lines acquired (#) and not (.), of a volume in the middle of k-space:"]
            lines += [f"  {row}" for row in self.pattern]
        for title, texts in (("repaired or doubtful", self.repairs), ("advice", self.advice)):
            lines += [f"{title}:", *(f"  {text}" for text in texts)] if texts else []
        return "\n".join(lines)

    def topics(self) -> list[tuple[str, dict[str, Any]]]:
        """What is told in names and values, by topic; none that is empty."""
        found = {
            "holds": self.holds,
            "sampling": self.sampling,
            "calibration": self.calibration or {},
            "noise": self.noise,
            "coils": self.coils,
            "geometry": self.geometry,
            "protocol": self.protocol,
            "maps": self.maps,
            "cost": self.cost,
        }
        return [(title, values) for title, values in found.items() if values]


def told(value: Any) -> str:
    """A value of a topic in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {told(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return " ".join(told(part) for part in value) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "not known" if value is None else str(value)
