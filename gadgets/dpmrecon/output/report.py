"""The report of a scan: what became of every slice. `report.json` is what it holds."""

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ismrmrd

from ..data import LostSlice, SliceKey, Volume
from ..errors import BAD_INPUT, BadInputError
from ..files import write_text
from ..mrd.scan_log import ScanLog
from ..physics.epi import ghost_outside
from ..recon.provenance import Provenance
from ..recon.types import Reconstruction
from .mrd_images import RESEARCH
from .names import Names
from .weighting import Weighting
from .writers import telling

_CHOSEN = ("fallback", "samples", "evaluations")  # a deadline's part in the images, slice by slice


@dataclass
class Report:
    """A writer that keeps the books. scan: the file's name, None where it is not to be told.

    log: what became of the scan's lines; slices: an entry each, JSON values; error: what broke the scan off; nrmse: by
    method, where there is a truth; weighting: of a diffusion scan; notes: lines for the screen; secret: a text, such as
    the scan's path, that is not told; names: of the images.
    """

    path: Path
    scan: str | None
    provenance: Provenance
    log: ScanLog = field(default_factory=ScanLog)
    secret: str | None = None
    error: str | None = None
    slices: list[dict[str, Any]] = field(default_factory=list)
    seconds: float | None = None
    nrmse: dict[str, Any] | None = None
    scan_sha256: str | None = None
    dicom_files: int | None = None
    weighting: Weighting | None = None
    notes: list[str] = field(default_factory=list)
    names: Names = Names()
    started: float = field(default_factory=time.perf_counter)

    @property
    def exit_code(self) -> int:
        """0: every slice by the model; 3: some by the conventional fallback; 4: some are missing; 2: files are."""
        if self.error is not None:
            return BAD_INPUT
        if any("missing" in entry for entry in self.slices):
            return 4
        return 3 if any(entry["fallback"] is not None for entry in self.slices) else 0

    @property
    def remarks(self) -> list[str]:
        """What was repaired, left out or is doubtful, in lines for the screen: of the scan, then of slices."""
        said = {_key_of(entry): entry["remarks"] for entry in self.slices if "remarks" in entry}
        told = []
        for text in dict.fromkeys(text for texts in said.values() for text in texts):
            keys = [key for key, texts in said.items() if text in texts]
            told.append(f"{self.names.images(keys, said.keys() - set(keys))}: {text}")
        return [*self.log.remarks, *told]

    @property
    def missing(self) -> str:
        """How many images are missing, and which; empty where none is."""
        found = [self.names.image(_key_of(entry)) for entry in self.slices if "missing" in entry]
        return f"{len(found)} of {len(self.slices)} images missing: {'; '.join(found)}" if found else ""

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None:
        """Note what became of a slice."""
        key = dataclasses.asdict(item.key)
        if isinstance(item, LostSlice):
            self.slices.append({**key, "missing": item.reason, "fallback": None})
            return
        data = item.mapped.data
        extent = {"partitions": len(data.mask)} if isinstance(data, Volume) else {}
        extent |= {"averages": data.n_averages} if data.n_averages > 1 else {}
        assert data.calibration is not None  # else there were no maps
        self.slices.append(
            {
                **key,
                **extent,
                "fallback": item.fallback,
                "R": data.acceleration,
                "lines": data.n_lines_got,
                "coils": item.mapped.n_coils,
                "matrix": list(data.kspace.shape),
                "maps": {"calibration": list(data.calibration.shape), "sets": item.mapped.n_sets},
                "scale": item.mapped.scale,
                "sigma_n": data.sigma_n,
                "noise_source": data.noise_source,
                "residual": item.residual,
                **_ghost(item),
                "remarks": list(item.remarks),
                "trusted": item.trusted,
                "verdict": item.verdict,
                **({} if item.agreement is None else {"agreement": dataclasses.asdict(item.agreement)}),
                **({} if item.unasked is None else {"prior_and_data_not_asked": item.unasked}),
                **({} if item.adaptation is None else {"adaptation": item.adaptation}),
                "samples": item.samples,
                **({} if item.image_draws is None else {"image": dict(zip(("samples", "steps"), item.image_draws))}),
                "steps": item.steps,
                "evaluations": item.evaluations,
                "seconds": item.seconds,
            }
        )

    def close(self, failure: BaseException | None) -> None:
        """Write report.json, also when the scan broke off. Raises BadInputError."""
        self.seconds = time.perf_counter() - self.started
        if failure is not None:
            self.error = str(failure) or type(failure).__name__
            if self.secret is not None:
                self.error = self.error.replace(self.secret, "the scan")
        self.write()

    def not_made(self, what: str, error: BadInputError) -> None:
        """Note files that cannot be made: an error where the disk is at fault, because another run can make them."""
        self.notes.append(f"no {what}: {error}")
        if isinstance(error.__cause__, OSError):
            self.error = self.error or self.notes[-1]

    def write(self) -> None:
        """Write report.json as things stand. Raises BadInputError."""
        with telling(self.path.parent, "make room or choose another --out"):
            write_text(self.path, json.dumps(self.as_json(), indent=1) + "\n")

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        optional = {
            name: getattr(self, name)
            for name in ("seconds", "nrmse", "scan_sha256", "dicom_files")
            if getattr(self, name) is not None
        }
        if self.weighting is not None:
            optional["weighting"] = self.weighting.rows
        return {
            "scan": self.scan,
            **dataclasses.asdict(self.provenance),
            "notice": RESEARCH,
            "error": self.error,
            "lines": {"kinds": dict(self.log.kinds), "flags": dict(self.log.flags)},
            "remarks": list(self.log.remarks),
            "slices": self.slices,
            **optional,
            "notes": self.notes,
        }

    def summary(self) -> dict[str, Any]:
        """The scan in a row of a table, as JSON values: how many slices or volumes became what, and why."""
        done = [entry for entry in self.slices if "missing" not in entry]
        fallbacks = [entry["fallback"] for entry in done if entry["fallback"] is not None]
        return {
            "R": max((entry["R"] for entry in done), default=None),
            "verdicts": {
                "model": len(done) - len(fallbacks),
                "fallback": len(fallbacks),
                "missing": len(self.slices) - len(done),
                "not trusted": sum(not entry["trusted"] for entry in done),
                "caution": sum(entry["verdict"].startswith("caution") for entry in done),
            },
            "fallback": sorted(set(fallbacks)),
            "missing": sorted({entry["missing"] for entry in self.slices if "missing" in entry}),
            "remarks": [*self.remarks, *self.notes],
            "seconds": self.seconds,
            "error": self.error,
        }

    def deciding(self) -> dict[str, Any]:
        """What decided the images besides the scan, as JSON values: the UIDs of DICOM files follow from it."""
        found = self.provenance.deciding()
        if self.provenance.deadline is not None:
            found["chosen"] = [[entry.get(name) for name in _CHOSEN] for entry in self.slices]
        return found


def _key_of(entry: dict[str, Any]) -> SliceKey:
    return SliceKey(*(entry[part.name] for part in dataclasses.fields(SliceKey)))


def _ghost(item: Reconstruction) -> dict[str, Any]:
    """Of EPI, the N/2 ghost: its amplitude over the signal's by the navigators, before and after correction, and its
    energy over the signal's as found outside the head."""
    data = item.mapped.data
    if data.ghost is None:
        return {}
    support = item.mapped.model.support.cpu()
    head = support.reshape(-1, *data.mask.shape).any(0)  # by any set of maps
    outside = None
    if data.shots is None:  # whose coils would hold some of the lines each
        outside = ghost_outside(data.kspace.cpu(), data.mask.cpu(), round(data.acceleration), head, data.sigma_n)
    after, before = data.ghost
    return {"ghost": {"before": before, "after": after, "energy_outside_head": outside}}


def described(item: Reconstruction | LostSlice, names: Names) -> str:
    """A slice, or a volume, in one line, for the screen."""
    if isinstance(item, LostSlice):
        return f"{names.image(item.key)}: MISSING: {item.reason}"
    seconds = sum(item.seconds.values())
    source = f"DPM, {item.drawn}" if item.fallback is None else f"CG-SENSE FALLBACK: {item.fallback}"
    data = item.mapped.data
    volume = f"volume of {len(data.mask)} partitions" if isinstance(data, Volume) else None
    line = f"{names.image(item.key, volume)}: {source}, residual {item.residual:.2f}, {seconds:.1f} s"
    if item.adaptation is not None and "adaptation" in item.seconds:
        line += f"; {item.adaptation}, {item.seconds['adaptation']:.1f} s"
    if not item.trusted:
        return f"{line}, NOT TO BE TRUSTED"
    return line if item.verdict == "trusted" else f"{line}, CAUTION"
