"""Whose a scan is, by its header, and whether scans are of one patient."""

import re
from collections import defaultdict
from collections.abc import Mapping

from ..errors import BadInputError
from .header import Header

# what tells patients apart, as MRD names it and in words
_FIELDS = {"patientID": "patient IDs", "patientName": "patient names", "patientBirthdate": "birth dates"}
_MEASUREMENT = "measurementID"
# What anonymisation leaves in place of an ID
_PLACEHOLDER = re.compile(
    r"[x0*?_.-]+|(.)\1\1+|anon(ym(ous|i[sz]ed)?)?|de-?identified|removed|none|null|nil|n/?a|unknown|unnamed|"
    r"no[ _-]?(name|id)|patient|subject|test|redacted|private|hidden",
    re.IGNORECASE,
)


def is_placeholder(patient_id: str) -> bool:
    """Whether an ID tells no patient apart: one character over and over, or a word such as anonymous."""
    return _PLACEHOLDER.fullmatch(patient_id.strip()) is not None


def identity(header: Header) -> dict[str, str]:
    """A header's patient ID, name and birth date by MRD's names, spelt one way; without placeholders."""
    stated = {name: str(getattr(header.subjectInformation, name, None) or "").strip() for name in _FIELDS}
    stated["patientBirthdate"] = stated["patientBirthdate"].replace("-", "")
    return {
        name: " ".join(re.split(r"[\s^,]+", text.casefold())).strip()
        for name, text in stated.items()
        if text.strip("^ ") and not is_placeholder(text)
    }


def measured_patient(header: Header) -> str | None:
    """Serial number and patient of a measurementID SERIAL_PATIENT_STUDY_MEASUREMENT, as siemens_to_ismrmrd makes it;
    None of others."""
    parts = str(getattr(header.measurementInformation, _MEASUREMENT, None) or "").split("_")
    return "_".join(parts[:2]) if len(parts) >= 4 and all(parts[:2]) else None


def check_one_patient(headers: Mapping[str, Header], *, same_patient: bool = False) -> list[str]:
    """Remarks about what is taken for granted. headers: by the scan's name.

    same_patient: the user says that all scans are of one patient. Raises BadInputError where headers contradict each
    other, or do not tell and the user did not say so. It names scans and no patient.
    """
    stated = {name: identity(header) for name, header in headers.items()}
    for field, words in _FIELDS.items():
        values: dict[str, str] = {}  # value -> a scan
        for name, found in stated.items():
            if field in found:
                values.setdefault(found[field], name)
        if len(values) > 1:
            first, second, *_ = values.values()
            raise BadInputError(
                f"the scans are of different patients ({first} and {second} have different {words}): give those of one"
            )
    measured = {name: measured_patient(header) for name, header in headers.items()}
    if not any(stated.values()):
        if len(set(measured.values()) - {None}) > 1 and not same_patient:
            raise BadInputError(
                "no scan names its patient, and their measurementIDs are of different ones: give the scans of one "
                "patient (or --same-patient where you know that they are)"
            )
        alone = len(headers) < 2
        return [] if alone else ["no scan names its patient: that they are of one is taken from their lying together"]
    apart = _apart(stated, measured)
    if not apart:
        return []
    told = f"nothing in the headers tells that {', '.join(apart)} {'is' if len(apart) == 1 else 'are'}"
    if not same_patient:
        raise BadInputError(
            f"{told} of the same patient as the other scans: leave them out (or --same-patient where you know it)"
        )
    return [f"{told} of the same patient as the other scans: it is taken from --same-patient"]


def _apart(stated: Mapping[str, Mapping[str, str]], measured: Mapping[str, str | None]) -> list[str]:
    """Scans that share neither ID, nor name, nor a measurement's patient, directly or through others, with the scan
    that states most. Many have a birth date in common: it tells nothing."""
    scans: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name, found in stated.items():
        same = measured[name]
        for field, value in {**found, _MEASUREMENT: same, "patientBirthdate": None}.items():
            if value:
                scans[field, value].add(name)
    joined = {max(stated, key=lambda name: len(stated[name]))}
    while more := {name for group in scans.values() if group & joined for name in group} - joined:
        joined |= more
    return [name for name in stated if name not in joined]
