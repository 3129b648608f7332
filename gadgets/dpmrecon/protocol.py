"""A patient's protocol: every scan goes through `replay`, into one study, one report, one picture.

Read `protocol` from top to bottom. protocol.json is written after every scan: a run that was broken off goes on where
it was; what was done with the same content and options is not done again.
"""

import dataclasses
import itertools
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .dicom.study import Placed, Study, common_study
from .errors import UNEXPECTED, WORST, BadInputError, DpmreconError
from .mrd.file import SUFFIXES
from .mrd.patient import check_one_patient
from .mrd.scan import Scan
from .output.mrd_images import RESEARCH, recon_shape
from .output.overview import Shown, write_overview
from .output.protocol_report import ProtocolReport, Row, files_in, key_of
from .output.report import Report
from .output.writers import telling

SETS = ("accelerated", "reference")
OVERVIEW = "overview.png"


@dataclass(frozen=True)
class Steps:
    """What is done with a scan. open: its file; label: an open scan's contrast; reconstruct: file, folder, study and
    contrast to a report, as `replay` does; made_by: all that decides the results beside the scan and its study."""

    open: Callable[[Path], AbstractContextManager[Scan]]
    label: Callable[[Scan], str | None]
    reconstruct: Callable[[Path, Path, Study, str | None], Report]
    made_by: Mapping[str, Any]
    say: Callable[[str], object] = print


@dataclass(frozen=True)
class Member:
    """A scan of the protocol. name: of its folder below DIR; kind: one of SETS; placed: None where the file cannot be
    used, and `fault` says why; contrast: its label."""

    path: Path
    name: str
    kind: str
    placed: Placed | None
    fault: str | None
    contrast: str | None

    @property
    def protocol(self) -> str | None:
        measurement = self.placed and self.placed.header.measurementInformation
        return getattr(measurement, "protocolName", None)

    def row(self, study: Study | None, made_by: Mapping[str, Any], *, anonymize: bool) -> Row:
        """Of the report, before it is reconstructed."""
        placed = self.placed
        return {
            "name": self.name,
            "set": self.kind,
            "scan": None if anonymize else self.path.name,
            "scan_sha256": placed and placed.digest,
            "key": placed and key_of(placed.digest, dict(made_by), study and dataclasses.asdict(study)),
            "protocol": self.protocol,
            "contrast": self.contrast,
            "matrix": placed and list(recon_shape(placed.header)),
            "frame_of_reference": study and study.frame,
            "error": self.fault,
            "exit_code": 2 if self.fault else 0,
        }


def protocol(
    sets: Mapping[str, Sequence[Path]], out: Path, steps: Steps, *, anonymize: bool = False, same_patient: bool = False
) -> int:
    """Reconstruct a patient's scans into the folders DIR/<scan name>, those of the reference into DIR/reference/<scan
    name>, with protocol.json and overview.png.

    sets: files by SETS; anonymize: names of files are not told; same_patient: see `check_one_patient`. Returns the
    worst exit code of the scans, see WORST. A scan that fails does not stop the others. Raises BadInputError where the
    scans are of several patients, or nothing can be written.
    """
    members, remarks = _members(sets, steps, anonymize=anonymize)
    placed = {member.name: member.placed for member in members if member.placed is not None}
    remarks += check_one_patient({name: scan.header for name, scan in placed.items()}, same_patient=same_patient)
    told: dict[str, Any] = {"notice": RESEARCH, "remarks": remarks}
    report = ProtocolReport(out / "protocol.json", told, [member.name for member in members])
    earlier = report.study_of([scan.digest for scan in placed.values()], anonymize=anonymize)
    studies, more = common_study(placed, anonymize=anonymize, earlier=earlier)
    remarks += more
    for member in members:
        if member.kind == "reference" and member.name in studies:
            studies[member.name] = dataclasses.replace(studies[member.name], label="REFERENCE")
    told["StudyInstanceUID"] = next((study.uid for study in studies.values()), report.earlier_uid)
    with telling(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / OVERVIEW).unlink(missing_ok=True)  # that of an earlier run
    remarks += [
        f"{name}/ is of an earlier run and none of these scans" for name in report.earlier if name not in report.names
    ]
    for number, member in enumerate(members, 1):
        steps.say(f"{number} of {len(members)}: {member.name}")
        row, folder = member.row(studies.get(member.name), steps.made_by, anonymize=anonymize), out / member.name
        if done := report.done(row, folder):
            steps.say("done before, with the same content and options")
            row = done
        elif member.fault is None:
            row |= _reconstructed(member, folder, studies[member.name], steps, anonymize=anonymize)
        if row["error"]:
            steps.say(f"FAILED: {row['error']}")
        report.add(row)
    _draw(out, members, report.rows)
    for text in remarks:
        steps.say(f"remark: {text}")
    return max((row["exit_code"] for row in report.rows.values()), key=WORST.index)


def files_of(inputs: Sequence[Path]) -> list[Path]:
    """The files that are named, and those of named folders, without their subfolders. Raises BadInputError for a folder
    without any."""
    found: dict[Path, None] = {}
    for given in inputs:
        inside = [given]
        if given.is_dir():
            inside = sorted(path for path in given.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
        if not inside:
            raise BadInputError(f"{given} holds no scan: give a folder with {', '.join(SUFFIXES)} files, or the files")
        found |= dict.fromkeys(inside)
    return list(found)


def _members(sets: Mapping[str, Sequence[Path]], steps: Steps, *, anonymize: bool) -> tuple[list[Member], list[str]]:
    """All scans, and a remark for each file without a line of an image. Raises BadInputError where no scan is left."""
    members: list[Member] = []
    remarks, names = [], set(SETS)  # a scan's folder may not be that of a set
    for kind, paths in sets.items():
        for path in paths:
            placed, fault, label = None, None, None
            try:
                with steps.open(path) as scan:
                    if scan.n_slices == 0:
                        remarks.append(f"{'a file' if anonymize else path.name} holds no line of an image: left out")
                        continue
                    placed, label = Placed.of(scan), steps.label(scan)
            except DpmreconError as error:
                fault = _text(error, path, anonymize=anonymize)
            except Exception as error:  # of a damaged file: the other scans are not to wait for it
                fault = f"unexpected: {_text(error, path, anonymize=anonymize)}"
            stem = (label or "scan") if anonymize else path.stem
            name = stem if kind == "accelerated" else f"{kind}/{stem}"
            number = next(n for n in itertools.count(1) if (f"{name}_{n}" if n > 1 else name) not in names)
            name += f"_{number}" if number > 1 else ""
            names.add(name)
            members.append(Member(path, name, kind, placed, fault, label))
    if not members:
        raise BadInputError("none of the files holds a line of an image: give the scans of one patient")
    return members, remarks


def _reconstructed(member: Member, folder: Path, study: Study, steps: Steps, *, anonymize: bool) -> Row:
    """What a reconstruction adds to the row of a scan."""
    try:
        report = steps.reconstruct(member.path, folder, study, member.contrast)
    except DpmreconError as error:
        return {"error": _text(error, member.path, anonymize=anonymize), "exit_code": error.exit_code}
    except Exception as error:  # the others are not to wait for its repair
        traceback.print_exc()
        return {"error": f"unexpected: {_text(error, member.path, anonymize=anonymize)}", "exit_code": UNEXPECTED}
    return {**report.summary(), "exit_code": report.exit_code, "files": files_in(folder)}


def _text(error: Exception, path: Path, *, anonymize: bool) -> str:
    text = str(error) or type(error).__name__
    return text.replace(str(path), "the scan") if anonymize else text


def _draw(out: Path, members: Sequence[Member], rows: Mapping[str, Row]) -> None:
    """overview.png: the reference above the scans that stand for it."""
    members = [member for member in members if rows[member.name]["error"] is None]
    shown = [
        Shown(
            out / member.name,
            member.protocol or member.name,
            member.kind,
            member.contrast,
            rows[member.name]["frame_of_reference"],
            _told(rows[member.name]),
        )
        for member in members
    ]
    write_overview(out / OVERVIEW, shown, sorted({member.kind for member in members}, reverse=True))


def _told(row: Row) -> tuple[str, ...]:
    """Under a picture's name: how the scan was accelerated and reconstructed."""
    verdicts = row["verdicts"]
    source = "DPM" if not verdicts["fallback"] else "CG-SENSE" if not verdicts["model"] else "DPM and CG-SENSE"
    line = f"R = {row['R']:.3g}, {source}" if row["R"] else source
    told = "NOT TO BE TRUSTED" if verdicts["not trusted"] else "CAUTION" if verdicts["caution"] else None
    return (line,) if told is None else (line, told)
