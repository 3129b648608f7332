"""The study that DICOM files belong to: one for each scan, or one for all scans of a patient's protocol."""

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BadInputError
from ..mrd.header import Header
from ..mrd.patient import identity, is_placeholder
from ..mrd.scan import Scan

TABLE_MM = 0.1  # places of the table are told apart in such steps


@dataclass(frozen=True)
class Study:
    """What files of a scan say of patient, study and frame of reference.

    subject, info: MRD's elements of patient and study, None where nothing is told of them; uid: StudyInstanceUID;
    frame: FrameOfReferenceUID; fallback_id: stands in for patient and study IDs, by which archives file; number: of the
    scan in its study, hundreds of SeriesNumber; label: added to SeriesDescription.
    """

    subject: Any
    info: Any
    uid: str
    frame: str
    fallback_id: str
    number: int
    label: str = ""

    @classmethod
    def of_scan(cls, header: Header, digest: str, *, anonymize: bool) -> "Study":
        """Of a scan alone; digest: see `Scan.digest`."""
        subject, info = (None, None) if anonymize else (header.subjectInformation, header.studyInformation)
        frame = None if anonymize else _stated_frame(header)
        return cls(
            subject=subject,
            info=info,
            uid=_stated_study(info) or reproducible_uid("study", digest, anonymize),
            frame=frame or reproducible_uid("frame of reference", digest, anonymize),
            fallback_id=digest[:12],
            number=series_number(header) or 0,
        )


@dataclass(frozen=True)
class Placed:
    """A scan's header, content and place. table_mm: of the patient table, with each image line (0, 0, 0 where
    unknown)."""

    header: Header
    digest: str
    table_mm: tuple[float, ...]

    @classmethod
    def of(cls, scan: Scan) -> "Placed":
        line = scan.groups[0][0]
        table = [float(value) for value in scan.heads["patient_table_position"][line]]
        relative = getattr(scan.header.measurementInformation, "relativeTablePosition", None)
        table += [float(getattr(relative, axis, None) or 0) for axis in "xyz"]
        return cls(scan.header, scan.digest, tuple(table))


def common_study(
    placed: Mapping[str, Placed], *, anonymize: bool, earlier: str | None = None
) -> tuple[dict[str, Study], list[str]]:
    """What the files of each of several scans of one patient say of their common study, and remarks. placed: by name.

    StudyInstanceUID is the headers', where they do not contradict each other; else it follows from the study's patient,
    date, time and ID, if stated; else it is `earlier`, that of a run that had one of these scans; without such a run it
    follows from the scans' digests. Scans share a frame of reference where their headers state the same; where they
    state none, by the same study, patient position and place of the table. Raises BadInputError for scans of several
    exams.
    """
    scans = list(placed.values())
    headers = [scan.header for scan in scans]
    subject = None if anonymize else _merged([header.subjectInformation for header in headers])
    info = None if anonymize else _merged([header.studyInformation for header in headers])
    stated = {uid for header in headers if (uid := _stated_study(header.studyInformation))}
    dates = {date for header in headers if (date := getattr(header.studyInformation, "studyDate", None))}
    if len(stated) > 1 or len({str(date) for date in dates}) > 1:
        raise BadInputError(
            "the scans are of several exams, by their headers' StudyInstanceUIDs or dates: give those of one"
        )
    digest = hashlib.sha256("".join(sorted(scan.digest for scan in scans)).encode()).hexdigest()
    remarks = []
    if len({_exam(header) for header in headers}) > 1:
        remarks.append(
            "the headers do not all name the same study (UID, date, time, ID): the DICOM files are of one study and of "
            "several frames of reference"
        )
    uid = next(iter(stated)) if len(stated) == 1 and not anonymize else _made_uid(headers, info, digest, earlier)
    fallback_id = hashlib.sha256(uid.encode()).hexdigest()[:12]
    places = [_place(scan) for scan in scans]
    # a place in numbers tells nothing of the study
    made = [reproducible_uid("frame of reference", uid, places.index(key) if anonymize else key) for key in places]
    own = [] if anonymize else [_stated_frame(header) for header in headers]
    frames = [stated or frame for stated, frame in zip(own or [None] * len(made), made)]
    numbers = [series_number(header) for header in headers]
    if None in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(1, 1 + len(scans)))
    return {
        name: Study(subject, info, uid, frame, fallback_id, number or 0)
        for name, frame, number in zip(placed, frames, numbers)
    }, remarks


def _made_uid(headers: Sequence[Header], info: Any, digest: str, earlier: str | None) -> str:
    """A StudyInstanceUID where the headers have no common one; info: of the study, None to tell nothing of it."""
    patient = {name: value for header in headers for name, value in identity(header).items()}
    when = [str(getattr(info, name, None) or "") for name in ("studyDate", "studyTime", "studyID", "accessionNumber")]
    # many have a birth date in common
    if patient.keys() - {"patientBirthdate"} and when[0] and when[1]:
        return reproducible_uid("protocol", patient, when)
    return earlier or reproducible_uid("protocol", digest, info is None)


def _stated_study(info: Any) -> str | None:
    return valid_uid(getattr(info, "studyInstanceUID", None))


def _stated_frame(header: Header) -> str | None:
    return valid_uid(getattr(header.measurementInformation, "frameOfReferenceUID", None))


def _place(scan: Placed) -> list[Any]:
    """What scans of one frame of reference have in common."""
    position = getattr(scan.header.measurementInformation, "patientPosition", None)
    stated = _stated_frame(scan.header)
    table = [round(value / TABLE_MM) for value in scan.table_mm]
    return [stated] if stated else [_exam(scan.header), str(getattr(position, "value", position)), table]


def _exam(header: Header) -> tuple[str, ...]:
    """What a header states of its study."""
    names = ("studyInstanceUID", "studyDate", "studyTime", "studyID")
    return tuple(str(getattr(header.studyInformation, name, None) or "") for name in names)


def _merged(elements: Sequence[Any]) -> Any:
    """One element with the first value of each field that is no placeholder; None where there is no element."""
    found = [element for element in elements if element is not None]
    if not found:
        return None
    chosen = {}
    for field in dataclasses.fields(found[0]):
        stated = [value for element in found if (value := getattr(element, field.name)) not in (None, "")]
        if stated:
            chosen[field.name] = min(stated, key=lambda value: is_placeholder(str(value)))
    return dataclasses.replace(found[0], **chosen)


def series_number(header: Header) -> int | None:
    """initialSeriesNumber, where it is a number."""
    value = getattr(header.measurementInformation, "initialSeriesNumber", None)
    return int(value) if isinstance(value, int | float) and value == value and abs(value) < 1e6 else None


def valid_uid(value: Any) -> str | None:
    """A header's UID, None where it is none, or a number alone."""
    from pydicom import config
    from pydicom.uid import UID

    text = str(value or "").strip()
    return text if "." in text and UID(text, validation_mode=config.IGNORE).is_valid else None


def reproducible_uid(*parts: Any) -> str:
    """A UID under 2.25 (a UUID as a number), from the parts alone."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return f"2.25.{uuid.uuid5(uuid.UUID(int=0), text).int}"
