"""The kinds of input files: each becomes items, and one function per kind reads an item's volumes."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
from dpmrecon.contrasts import label_of
from dpmrecon.errors import BadInputError, first_line
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.header import Header
from dpmrecon.mrd.patient import is_placeholder, measured_patient

from . import images, kspace, labelmaps
from .items import Fault, Item, Settings, Volume, pseudonym
from .open_sets import FASTMRI, KNOWN_SETS, KnownSet

# Files that end so and cannot be recognised are damaged, others no data
DATA_SUFFIXES = (".h5", ".hdf5", ".mrd", ".nii", ".dcm", ".ima", ".gz")
LABEL_MAP_NAME = re.compile(r"(^|[_.-])(seg|segmentation|labels?|aseg|synthseg)([_.-]|$)")
CONTRAST_WORD = re.compile(r"((^|[_-])(flair|t1w?|t2w?|dwi|swi|mprage))+$", re.IGNORECASE)
# image types that are no magnitude images of an anatomy
NO_MAGNITUDE = {
    *("P", "R", "I", "PHASE", "REAL", "IMAGINARY", "PHASE MAP", "PHASE_MAP", "ADC", "EADC", "FA", "LOCALIZER"),
    *("PROJECTION IMAGE", "MIP", "MIN_IP", "MNIP", "SUB", "SUBTRACTION", "T1 MAP", "T1_MAP", "T2 MAP", "T2_MAP"),
}
# The same, as the description of a derived series or a NIfTI file's last words tell it
_MAP = r"e?adc([ _-]?map)?|(col)?fa|[tr][12](star)?[ _-]?map|m(in|n)?ip"
MAP_SERIES = re.compile(
    rf"(?<![a-z])({_MAP}|sub(traction)?)(?![a-z0-9])|apparent.diffusion|fractional.anis", re.IGNORECASE
)
# ... before the numbers of a series and an echo too, as converters write them
MAP_FILE = re.compile(
    rf"_part-(phase|real|imag)|(pha|mip)_images|(^|[_-])({_MAP}|ph|pha|phase|real|imag|imaginary)$"
    r"|(^|[_-])(e?adc|pha|phase|imaginary)([_-]e?\d+)+$",
    re.IGNORECASE,
)
# ... of which these are no derived images on some scanners
ORIGINAL_MAP = re.compile(r"(?<![a-z])t[12][ _-]?map(?![a-z0-9])", re.IGNORECASE)
OURS = "dpmrecon made, which are left out: a prior does not learn from its own images"
GE_COMPONENT = (0x0043, 0x102F)
COMPONENTS = ("MAGNITUDE", "PHASE", "REAL", "IMAGINARY")


def inspect(path: Path, root: Path, settings: Settings, *, in_folder: bool) -> list[Item | Fault]:
    """The items of one file below the folder `root`, nothing where it is no data, or what is wrong with it.

    in_folder: whether it was found in a folder, where other files are expected.
    """
    try:
        kind = _kind(path)
        if kind is None:
            if in_folder and not path.name.lower().endswith(DATA_SUFFIXES):
                return []
            return [
                Fault(
                    str(path),
                    "is none of fastMRI, ISMRMRD, DICOM and NIfTI, or is damaged; give files of these kinds, or copy "
                    "it again",
                )
            ]
        return _INSPECT[kind](path, root, settings) + _contradicted(kind, path, root, settings)
    except BadInputError as error:
        return [Fault(str(path), _without(path, str(error)))]
    except Exception as error:  # readers of foreign formats raise all kinds
        return [Fault(str(path), f"cannot be read ({type(error).__name__}: {first_line(error)})")]


def _contradicted(kind: str, path: Path, root: Path, settings: Settings) -> list[Item | Fault]:
    """A remark on a file that says another contrast of itself than is asked for."""
    if settings.contrast is None or kind == "label map":
        return []
    try:
        own = _INSPECT[kind](path, root, replace(settings, contrast=None))
    except BadInputError:  # it says nothing
        return []
    place = str(path.parent if kind == "DICOM" else path)
    return [
        Fault(
            place, f"says {item.contrast} of itself, and is taken for {settings.contrast} all the same", expected=True
        )
        for item in own
        if isinstance(item, Item) and item.contrast != settings.contrast
    ]


def read(item: Item) -> tuple[list[Volume], list[Fault]]:
    """The volumes of an item, and what of it had to be left out. Raises what its reader raises."""
    readers = {
        "fastMRI": kspace.read_fastmri,
        "ISMRMRD": kspace.read_ismrmrd,
        "DICOM": images.read_dicom,
        "NIfTI": images.read_nifti,
        "label map": labelmaps.read_label_map,
    }
    return readers[item.kind](item)


def _kind(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith(b"\x89HDF"):
        with h5py.File(path, "r") as scan:
            return "fastMRI" if "kspace" in scan and "ismrmrd_header" in scan else "ISMRMRD"
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return "label map" if LABEL_MAP_NAME.search(_stem(path).lower()) else "NIfTI"
    return "DICOM" if images.is_dicom(path) else None


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (".gz", *DATA_SUFFIXES):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    return name


def _without(path: Path, message: str) -> str:
    return message.removeprefix(f"{path}: ").removeprefix(f"{path} ")


def _known(path: Path) -> tuple[KnownSet | None, Path | None]:
    """The known set that a file is in, and that set's folder."""
    for parent in path.absolute().parents:
        for name in (parent.name, f"{parent.name}/{CONTRAST_WORD.sub('', _stem(path))}"):
            if name in KNOWN_SETS:
                return KNOWN_SETS[name], parent
    return None, None


def _path_facts(path: Path, root: Path, settings: Settings) -> dict[str, Any]:
    """Name, subject, source and licence as the path tells them. The subject is the first folder below `root`, else
    BIDS's sub-NAME, else the file's name without its contrast."""
    known, folder = _known(path)
    parts = path.absolute().relative_to(folder or root.absolute()).parts
    name = "_".join([*parts[:-1], _stem(path)])
    bids = re.search(r"(?:^|_)(sub-[A-Za-z0-9]+)", name)
    alone = CONTRAST_WORD.sub("", _stem(path)) or path.absolute().parent.name
    subject = bids[1] if bids else parts[0] if len(parts) > 1 else alone
    if known is None:
        return {"name": name, "subject": subject, "source": settings.source, "licence": settings.licence}
    subject = known.subject or subject
    name = subject if known.named_by_subject else name
    return {"name": name, "subject": subject, "source": known.source, "licence": known.licence}


def _contrast(settings: Settings, where: str, *names: object) -> str:
    label = settings.contrast or label_of(*names)
    if label is None:
        told = ", ".join(repr(str(name)) for name in names if name) or "nothing"
        raise BadInputError(f"its contrast is not known ({where}: {told}); give --contrast")
    return label


def _fastmri(path: Path, root: Path, settings: Settings) -> list[Item | Fault]:
    facts = _path_facts(path, root, settings)
    with h5py.File(path, "r") as file:
        attributes = {name: file.attrs.get(name) for name in ("acquisition", "patient_id")}
    facts.update(source=FASTMRI.source, licence=FASTMRI.licence)
    facts["subject"] = _named(attributes["patient_id"]) or facts["subject"]
    contrast = _contrast(settings, "attribute acquisition", attributes["acquisition"])
    return [Item("fastMRI", contrast=contrast, files=(path,), options={"drop_last": settings.drop_last}, **facts)]


def _ismrmrd(path: Path, root: Path, settings: Settings) -> list[Item | Fault]:
    facts = _path_facts(path, root, settings)
    with open_scan(path) as scan:
        header = scan.header
    measurement = header.measurementInformation
    facts["subject"] = _patient(header, settings.patients) or facts["subject"]
    names = [getattr(measurement, name, None) for name in ("protocolName", "sequenceName")]
    contrast = _contrast(settings, "protocol and sequence name", *names)
    options = {} if settings.prior is None else {"prior": str(settings.prior)}
    return [Item("ISMRMRD", contrast=contrast, files=(path,), options=options, **facts)]


def _patient(header: Header, patients: str | None) -> str | None:
    """A pseudonym by what the header holds; None leaves it to the path. Raises BadInputError where what is asked for
    is not there."""
    if patients == "folder":
        return None
    if patients == "measurement":
        measured = measured_patient(header)
        if measured is None:
            text = str(getattr(header.measurementInformation, "measurementID", None) or "")
            raise BadInputError(
                f"its measurementID is '{text}': SERIAL_PATIENT_STUDY_MEASUREMENT is needed to tell patients apart"
            )
        return pseudonym(measured)
    patient = getattr(header.subjectInformation, "patientID", None) or ""
    found = _named(patient)
    if found is None and patients == "id":
        raise BadInputError(f"its patient ID is '{patient}', which tells no patient apart: use another --patients")
    return found


def known_patient(header: Header) -> str | None:
    """A pseudonym by the patient ID of a header, else by its measurementID; None where neither tells patients apart."""
    measured = measured_patient(header)
    named = _named(getattr(header.subjectInformation, "patientID", None))
    return named or (None if measured is None else pseudonym(measured))


def _named(patient_id: Any) -> str | None:
    """A pseudonym by a patient ID; None of one that tells no patient apart."""
    text = str(patient_id or "").strip()
    return pseudonym(text) if text and not is_placeholder(text) else None


def _nifti(path: Path, root: Path, settings: Settings) -> list[Item | Fault]:
    if found := MAP_FILE.search(_stem(path)) or MAP_FILE.fullmatch(path.parent.name):
        return [Fault(str(path), f"is named as a map or a phase image ({found[0]}): not used", expected=True)]
    if told := ", ".join(sorted(_types_beside(path) & NO_MAGNITUDE)):
        return [Fault(str(path), f"is of the type {told}, as the JSON beside it says: not used", expected=True)]
    if images.is_our_nifti(path):
        return [Fault(str(path), f"holds images that {OURS}", expected=True)]
    facts = _path_facts(path, root, settings)
    folders = [parent.name for parent in path.relative_to(root).parents]  # flair/patient7.nii.gz
    contrast = _contrast(settings, "file name", _stem(path), *folders)
    return [Item("NIfTI", contrast=contrast, files=(path,), **facts)]


def _types_beside(path: Path) -> set[str]:
    """The image types that dcm2niix writes into a JSON beside a NIfTI file."""
    try:
        told = json.loads(path.with_name(f"{_stem(path)}.json").read_text())
    except (OSError, ValueError):
        return set()
    types = told.get("ImageType") if isinstance(told, dict) else None
    return {str(kind).upper() for kind in types} if isinstance(types, list) else set()


def _label_map(path: Path, root: Path, settings: Settings) -> list[Item | Fault]:
    facts = _path_facts(path, root, settings)
    return [
        Item(
            "label map",
            contrast=sequence.contrast,
            files=(path,),
            options={"sequence": name, "number": number, "seed": settings.seed},
            **{**facts, "name": f"{facts['name']}_{name}_{number}"},
        )
        for number in range(1, settings.volumes + 1)
        for name, sequence in labelmaps.PREPARED.items()
        if settings.contrast in (None, sequence.contrast)
    ]


def _dicom(path: Path, root: Path, settings: Settings) -> list[Item | Fault]:
    facts = _path_facts(path, root, settings)
    dataset = images.open_dicom(path, pixels=False)
    kinds = {str(kind).upper() for kind in dataset.get("ImageType", ())}
    where = str(path.parent)  # one sentence for a folder of them
    if (modality := dataset.get("Modality", "MR")) != "MR":
        return [Fault(where, f"holds DICOM files of the modality {modality}, which are left out", expected=True)]
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        return [Fault(where, "holds multi-frame DICOM files; export them as single-frame MR images")]
    if "PixelSpacing" not in dataset or "ImagePositionPatient" not in dataset:
        return [Fault(where, "holds DICOM files that are no images with a position in the patient", expected=True)]
    if images.is_ours(dataset):
        return [Fault(where, f"holds DICOM images that {OURS}", expected=True)]
    if "MOSAIC" in kinds:
        return [
            Fault(
                where,
                "holds mosaics, many slices in one image; export them as single images, or convert them to NIfTI "
                "(dcm2niix)",
            )
        ]
    if named := ", ".join(sorted(kinds & NO_MAGNITUDE)) or _no_magnitude(dataset, kinds):
        return [Fault(where, f"holds DICOM images of the type {named}, which are left out", expected=True)]
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        return [
            Fault(where, "holds DICOM images whose largest values are black (MONOCHROME1); export them as MONOCHROME2")
        ]
    known, _ = _known(path)
    patient, options = _named(dataset.get("PatientID")), {}
    if known is None and patient is not None:
        facts["subject"] = patient
    elif known is None:
        options["study"] = pseudonym(str(dataset.get("StudyInstanceUID") or dataset.SeriesInstanceUID))
        if path.absolute().parent == root.absolute():  # there is no folder that stands for the patient
            facts["subject"] = options["study"]
    names = [dataset.get(name) for name in ("SeriesDescription", "ProtocolName")]
    try:
        contrast = _contrast(settings, "SeriesDescription and ProtocolName", *names)
    except BadInputError as error:
        return [Fault(where, str(error))]
    series = hashlib.sha256(str(dataset.SeriesInstanceUID).encode()).hexdigest()[:6]
    name = facts["subject"] if known else f"{facts['subject']}_{contrast}_{series}"
    b = images.b_value(dataset)
    if contrast == "dwi" and b is not None:
        name = f"{name}_b{b}"
    return [Item("DICOM", contrast=contrast, files=(path,), options=options, **{**facts, "name": name})]


def _no_magnitude(dataset: Any, kinds: set[str]) -> str | None:
    """What an image is, if no magnitude of an anatomy, where its type does not say so."""
    if int(dataset.get("SamplesPerPixel", 1)) > 1:
        return "colour"
    component = str(dataset.get("ComplexImageComponent", "")).upper()
    if GE_COMPONENT in dataset and str(dataset.get("Manufacturer", "")).upper().startswith("GE"):
        value = dataset[GE_COMPONENT].value  # GE's images are OTHER, whatever they are
        number = int.from_bytes(value, "little") if isinstance(value, bytes) else value
        component = COMPONENTS[number] if number in range(len(COMPONENTS)) else component
    if component in COMPONENTS[1:]:
        return component
    maps = MAP_SERIES if "DERIVED" in kinds else ORIGINAL_MAP
    found = maps.search(str(dataset.get("SeriesDescription", "")))
    return found[0] if found else None


_INSPECT = {
    "fastMRI": _fastmri,
    "ISMRMRD": _ismrmrd,
    "DICOM": _dicom,
    "NIfTI": _nifti,
    "label map": _label_map,
}
