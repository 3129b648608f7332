"""`dpmrecon compare`: result folders side by side on one HTML page that needs neither a network nor other files.

The page carries the pixels of images.h5, compressed, and what report.json says of them. Its viewer is a canvas and a
script of some 200 lines: the reader study's viewer shows volumes alone, without differences or regions.
"""

import base64
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np

from ..errors import BadInputError, first_line
from ..files import from_json, write_text
from .template import rendered

# series of images.h5 that are shown, in this order, none of them complex
KINDS = {
    1: "reconstruction",
    3: "CG-SENSE",
    2: "spread of the samples",
    4: "trace",
    5: "ADC, mm²/s",
    11: "exponential map",
    6: "phase, mrad",
    8: "filtered phase, mrad",
    9: "SWI",
    10: "minimum-intensity projection",
}
COUNTERS = ("contrast", "set", "phase", "repetition", "average")
LEVELS = 65535  # of a pixel on the page


@dataclass(frozen=True)
class Result:
    """A result folder. label: how the page calls it; scan: what stands side by side; report: of report.json."""

    folder: Path
    label: str
    scan: str
    report: dict[str, Any]


def results_in(folders: Sequence[Path]) -> list[Result]:
    """The results of each folder: itself, or what lies below it, as `protocol` and a bulk run leave it.

    Folders that are results themselves stand side by side; others by the path below them. The reference of a protocol
    stands beside its scans. Raises BadInputError for a folder without a result.
    """
    names = [folder.resolve().name for folder in folders]
    found = []
    for folder, name in zip(folders, names):
        label = name if names.count(name) == 1 else str(folder)
        reports = [folder / "report.json"]
        if not reports[0].is_file():
            reports = sorted(folder.rglob("report.json"))
        if not reports:
            raise BadInputError(f"{folder} holds no report.json: give folders that `dpmrecon replay` wrote")
        for path in reports:
            parts = path.parent.relative_to(folder).parts
            own = label
            if len(parts) > 1 and parts[0] == "reference":
                own, parts = f"{label}, reference", parts[1:]
            found.append(Result(path.parent, own, "/".join(parts), _report(path)))
    return found


def _report(path: Path) -> dict[str, Any]:
    try:
        report = from_json(path.read_text())
        report["slices"], report["sampler"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{path} is no report of a replay ({first_line(error)}): replay the scan again") from error
    return report


def panels_of(result: Result) -> Iterator[dict[str, Any]]:
    """The series of a result as JSON values: what they show, sizes in mm, the window, and frames by counters and place,
    each with its pixels in base64. Raises BadInputError where images.h5 cannot be read."""
    path = result.folder / "images.h5"
    try:
        with h5py.File(path, "r") as file:
            for number, kind in KINDS.items():
                series = file["dataset"].get(f"image_{number}")
                if series is not None:
                    yield {"kind": kind, "label": result.label, **_series(series)}
    except (OSError, KeyError, ValueError) as error:
        raise BadInputError(f"{path} cannot be read ({first_line(error)}): replay the scan again") from error


def _series(series: h5py.Group) -> dict[str, Any]:
    """Values are in the units that RescaleSlope and RescaleIntercept of the meta give."""
    heads, pixels = series["header"][:], series["data"]
    metas = [ismrmrd.Meta.deserialize(_text(text)) for text in series["attributes"][:]]
    slope, intercept = (
        float(metas[0].get(name, value)) for name, value in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    values = slope * pixels[:, 0].astype(np.float32) + intercept  # (images, partitions, rows, cols)
    low, high = float(values.min()), float(values.max())
    levels = np.round((values - low) * (LEVELS / ((high - low) or 1))).astype(np.uint16)
    volume = values.shape[1] > 1
    across, down = (float(size) for size in heads[0]["field_of_view"][:2])
    frames = []
    for head, meta, image in zip(heads, metas, levels):
        counters = [int(head[name]) for name in COUNTERS]
        for partition, picture in enumerate(image):
            place = partition if volume else int(head["slice"])
            frames.append({"counters": counters, "place": place, "b": _b_value(meta), "pixels": _packed(picture)})
    bright = float(np.percentile(values, 99.5))
    return {
        "size": list(values.shape[-2:]),
        "mm": [down, across],
        "volume": volume,
        "range": [low, high],
        "window": [min(0.0, -bright if low < 0 else 0.0), bright or 1.0],
        "frames": frames,
    }


def _b_value(meta: ismrmrd.Meta) -> str | None:
    found = meta.get("DiffusionBValue")
    return None if found is None else str(found)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _packed(picture: np.ndarray) -> str:
    """(rows, cols) uint16: all high bytes, then all low ones, deflated, in base64."""
    planes = picture.astype(">u2").reshape(-1, 1).view(np.uint8).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode()


def told(result: Result) -> dict[str, Any]:
    """What the report says of a result: a row of the page's table, and facts of each slice."""
    report = result.report
    slices = report["slices"]
    done = [entry for entry in slices if "missing" not in entry]
    residuals = [entry["residual"] for entry in done]
    return {
        "label": result.label,
        "model": report.get("model_id", "?"),
        "sampling": f"{report['sampler']}, {report.get('mode', '?')}",
        "R": _between([entry["R"] for entry in done], ".3g"),
        "verdicts": ", ".join(f"{count} {word}" for word, count in Counter(map(verdict_of, slices)).items()),
        "residual": _between(residuals, ".2f"),
        "NRMSE": ", ".join(f"{name} {found['mean']:.4f}" for name, found in (report.get("nrmse") or {}).items()),
        "seconds": f"{report['seconds']:.0f}" if report.get("seconds") is not None else "",
        "remarks": [*filter(None, [report.get("error")]), *report.get("remarks", []), *report.get("notes", [])],
        "slices": [_facts(entry) for entry in slices],
    }


def verdict_of(entry: dict[str, Any]) -> str:
    """Of an entry of report.json, in a word or two."""
    if "missing" in entry:
        return "missing"
    if entry["fallback"] is not None:
        return "CG-SENSE fallback"
    if not entry["trusted"]:
        return "not to be trusted"
    return "caution" if str(entry.get("verdict", "")).startswith("caution") else "trusted"


def _facts(entry: dict[str, Any]) -> dict[str, Any]:
    facts = {"counters": [entry[name] for name in COUNTERS], "slice": entry["slice"], "verdict": verdict_of(entry)}
    if "missing" in entry:
        return {**facts, "text": entry["missing"]}
    drawn, image = f"{entry['samples']} x {entry['steps']} steps", entry.get("image")
    if image:
        drawn = f"{image['samples']} x {image['steps']} steps, {drawn} for the spread"
    parts = [
        f"residual {entry['residual']:.2f}",
        f"R {entry['R']:.3g}",
        drawn if entry["fallback"] is None else entry["fallback"],
        f"{sum(entry['seconds'].values()):.1f} s",
    ]
    distance = (entry.get("agreement") or {}).get("distance")
    if distance is not None:
        parts.append(f"distance from sound scans {distance:.2f}")
    return {**facts, "text": "; ".join([*parts, *entry.get("remarks", [])])}


def _between(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def page(folders: Sequence[Path]) -> str:
    """The page of all results. Raises BadInputError."""
    scans: dict[str, dict[str, Any]] = {}
    for result in results_in(folders):
        scan = scans.setdefault(result.scan, {"name": result.scan, "results": [], "panels": []})
        number = len(scan["results"])
        scan["results"].append(told(result))
        if result.report.get("error") is None or (result.folder / "images.h5").exists():
            scan["panels"] += [{"result": number, **panel} for panel in panels_of(result)]
    return rendered(Path(__file__).with_name("compare.html"), scans=list(scans.values()), levels=LEVELS)


def write(folders: Sequence[Path], path: Path) -> None:
    """Write the page. Raises BadInputError where it cannot be made or written."""
    text = page(folders)
    try:
        write_text(path, text)
    except OSError as error:
        raise BadInputError(f"{path} cannot be written ({error.strerror}): choose another --out") from error
