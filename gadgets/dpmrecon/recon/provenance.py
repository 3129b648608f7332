"""What decides the images of a scan besides the scan itself: told in report, MRD meta, DICOM and audit log."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..prior.checkpoint import Checkpoint
from ..prior.kinds import Settings
from ..version import __version__
from .types import Sampling

# what makes DICOM's UIDs: other words for the same images change none
DECIDING = ("package_version", "model_id", "contrast", "sampler", "settings", "samples", "seed", "combine_averages")


@dataclass(frozen=True)
class Provenance:
    """Version, model, and how it sampled. combine_averages: one image of all averages; taken: options that say which
    data it was, by name, unless defaults."""

    package_version: str
    model_id: str
    model_sha256: str
    contrast: str | None
    sampler: str
    mode: str
    settings: Settings
    settings_source: str
    samples: int
    seed: int
    deadline: float | None
    combine_averages: bool
    conjugated: bool = False  # k-space was, as the vendor's files need it
    gate: str = "off"
    adapt: bool = False  # the prior was fitted to the scan, as each slice tells
    precision: str = "auto"
    image: dict[str, Any] | None = None  # samples and settings of the image, where others are those of the spread
    taken: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        contrast: str | None,
        sampling: Sampling,
        *,
        combine_averages: bool = False,
        conjugated: bool = False,
        taken: Mapping[str, str] | None = None,
    ) -> "Provenance":
        """Of a scan that is about to be sampled."""
        return cls(
            package_version=__version__,
            model_id=checkpoint.id_by((sampling.image or sampling).settings),
            model_sha256=str(checkpoint.card["checksum_sha256"]),
            contrast=contrast,
            sampler=sampling.sampler,
            mode=sampling.mode,
            settings=sampling.settings,
            settings_source=sampling.source,
            samples=sampling.samples,
            seed=sampling.seed,
            deadline=sampling.deadline,
            combine_averages=combine_averages,
            conjugated=conjugated,
            gate=sampling.gate,
            adapt=sampling.adapt,
            precision=sampling.precision,
            image=None if sampling.image is None else _how(sampling.image),
            taken=dict(taken or {}),
        )

    def deciding(self) -> dict[str, Any]:
        """The part that decides the pixels, as JSON values."""
        values = dataclasses.asdict(self)
        found = {name: values[name] for name in DECIDING}
        found |= {"conjugated": True} if self.conjugated else {}
        found |= {"gate": self.gate} if self.gate == "fallback" else {}  # else it decides no pixel
        found |= {"adapt": True} if self.adapt else {}
        found |= {"image": self.image} if self.image else {}
        found |= {"precision": self.precision} if self.precision != "auto" else {}
        return {**found, "taken": dict(self.taken)} if self.taken else found


def _how(sampling: Sampling) -> dict[str, Any]:
    return {"samples": sampling.samples, "settings": dataclasses.asdict(sampling.settings)}
