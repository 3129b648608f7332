"""DICOM series (classic MR Image Storage) from a replay's images.h5.

A slice is a file; of a volume, each partition is, in the plane it was acquired in. `reformat` adds series of volumes in
another plane of the patient.

They are written when the scan is done: one rescale and one window for a whole series need its largest value, and
half a series should not reach an archive. images.h5 is read twice, image by image, so memory holds one slice or volume.
Nothing of the clock or of chance is in the files: the same scan and options give the same bytes, UIDs included.
"""

import datetime
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np

from ..data import SliceKey
from ..errors import BadInputError
from ..mrd.geometry import ORIENTATIONS, Plane, are_parallel, grid_of_mrd, plane_of_mrd, slice_spacing
from ..mrd.header import Header, is_epi, read_header
from ..mrd.stack import close_mm
from ..output.images_file import series_of
from ..output.maps import ADC_SLOPE, ADC_WINDOW, EXPONENTIAL_SLOPE
from ..output.mrd_images import COMPLEX, COUNTERS, THICKNESS, remarks_of
from ..output.names import Names
from ..output.swi import MINIP, VEIN_PHASE
from ..output.whole_numbers import FIRST_MRAD, MRAD_PER_STEP, phase_steps
from .diffusion import add_weighting
from .study import Study, reproducible_uid

LARGEST_STORED = 65535
REFORMATTED = 50  # is added to the number of a series that is reformatted
STRAIGHT = 5.0  # degrees that a volume may be turned by without a word
FINENESS = 1000
FEW_LEVELS = 100  # of the bright parts
LONGEST_TEXT = 1024  # bytes of a comment or derivation
LONGEST_MISSING = 200  # of what is missing, before the comment's other parts
SHARED = "SLICES SHARE A PLACE: their positions are missing or repeated"
LONGEST_WORDS = 64  # of a name or a series' description
SMALL_WINDOW = 100
# DataRole of the MRD image -> what is added to the tag in ImageType
SUFFIXES = {
    "Image": "",
    "Uncertainty": "_STD",
    "Conventional": "_CONV",
    "Trace": "_TRACE",
    "ADC": "_ADC",
    "Exponential": "_EADC",
    "Phase": "_PHASE",
    "FilteredPhase": "_HPASS",
    "SWI": "_SWI",
    "MinIP": "_MNIP",
}
# DataRole -> ImageType's third value and what follows it
TYPES = {"Phase": ("P",), "FilteredPhase": ("P", "SWI"), "SWI": ("M", "SWI"), "MinIP": ("MNIP", "SWI")}
FALLBACK_TAG = "CGSENSE_FALLBACK"
POSITIONS = {position.value for position in ismrmrd.xsd.patientPositionType}
# parts of MRD sequence_type -> ScanningSequence; what is not known is RM
_SEQUENCES = ((r"epi", "EP"), (r"flash|gre|gradient|spgr|mprage", "GR"), (r"tse|fse|rare|haste|spin", "SE"))

# in names of protocols and sequences that invert
_INVERSION = (
    r"flair|tir|dark.?fluid|da.?fl|mpr|mp2|bravo|tfl|tfe|turbo.?flash|inver|(?<![a-z])(d|ps)?ir(?![a-z])|"
    r"ir.?(fspgr|spgr|tse|fse)"
)


@dataclass(frozen=True)
class DicomOptions:
    """anonymize: leave patient and study data out; tag: last value of ImageType, before what tells the series;
    reformat: one of ORIENTATIONS, in which volumes get series of their own; study: what the files belong to, None for a
    study of the scan alone."""

    anonymize: bool = False
    tag: str = "DPM"
    reformat: str | None = None
    study: Study | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Z0-9][A-Z0-9_]{0,9}", self.tag):
            raise BadInputError(
                f"image type tag '{self.tag}' is not usable: give 1 to 10 capital letters, digits or underscores"
            )
        if self.reformat is not None and self.reformat not in ORIENTATIONS:
            raise BadInputError(f"plane '{self.reformat}' is unknown: give {', '.join(ORIENTATIONS)}")


@dataclass(frozen=True)
class _Scale:
    """What stored values mean, and how to show them. unit: UCUM's code, "1" of a ratio, "US" for none.

    label, text: for viewers that read RealWorldValueMapping rather than the rescale.
    """

    slope: float
    width: float
    unit: str = "US"
    intercept: float = 0.0
    center: float | None = None
    label: str = ""
    text: str = ""

    @classmethod
    def of(cls, role: str, bright: float, largest: float) -> "_Scale":
        """Of a series; bright, largest: see `stored_unit`."""
        if role == "ADC":
            return cls(ADC_SLOPE, ADC_WINDOW, "mm2/s", label="ADC", text="Apparent diffusion coefficient")
        if role == "Exponential":
            return cls(EXPONENTIAL_SLOPE, 1.0, "1", label="eADC", text="Exponential map exp(-b ADC)")
        if role in ("Phase", "FilteredPhase"):
            return cls(MRAD_PER_STEP, -2 * FIRST_MRAD, "mrad", FIRST_MRAD, 0.0, "PHASE", "Phase of the signal")
        return cls(stored_unit(bright, largest), bright or 1.0)

    def stored(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of the MRD image as uint16."""
        if self.unit == "mrad":
            return phase_steps(pixels)
        return np.rint(pixels.astype(float) / self.slope).clip(0, LARGEST_STORED).astype(np.uint16)

    def tell(self, file: Any) -> None:
        """Rescale, window and, where there is a unit, the mapping to values."""
        file.RescaleIntercept = _number_text(self.intercept) if self.intercept else "0"
        file.RescaleSlope, file.RescaleType = _number_text(self.slope), self.unit if self.unit != "1" else "US"
        center = self.width / 2 if self.center is None else self.center
        file.WindowCenter, file.WindowWidth = _number_text(center), _number_text(self.width)
        if self.width < SMALL_WINDOW:
            file.VOILUTFunction = "LINEAR_EXACT"  # the plain one takes 1 off the width
        if self.label:
            file.RealWorldValueMappingSequence = [_mapping(self)]


@dataclass
class _Image:
    """One slice of a series without its pixels: the one numbered `part` of the MRD image numbered `index`."""

    index: int
    part: int
    head: ismrmrd.ImageHeader
    meta: dict[str, Any]
    plane: Plane
    shape: tuple[int, ...]
    thickness_mm: float

    @property
    def order(self) -> tuple:
        """By counters, then by place along the slice direction."""
        counters = tuple(int(getattr(self.head, name)) for name in COUNTERS)
        return (*counters, round(float(self.plane.first @ self.plane.normal), 3), self.index)

    @property
    def key(self) -> SliceKey:
        return SliceKey.of(self.head)

    def shares_place(self, following: "_Image", within_mm: float) -> bool:
        """Whether the next one by `order` has the same counters and lies no further off."""
        (*own, place, _), (*others, there, _) = self.order, following.order
        return own == others and there - place <= within_mm


def write_dicom(
    images: Path,
    folder: Path,
    digest: str,
    run: dict[str, Any],
    options: DicomOptions,
    note: Callable[[str], None] = lambda text: None,
    missing: str = "",
) -> list[Path]:
    """Write every image series of `images` (images.h5) to folder/NUMBER_KIND/IMnnnn.dcm; returns the files.

    digest: of the scan, see `Scan.digest`; run: what else decides the images (JSON values: model, sampler, seed ...).
    Both make the UIDs, and so do the pixels of a series: a host with bfloat16, or of another kind, has others. note:
    gets a line for each image that is left out because it is not finite, and where volumes are not reformatted as the
    options say. missing: the scan's images that are not there, in words: every file says so, because an archive shows
    a stack with a gap as any other. Raises BadInputError where headers hold no geometry or nothing can be written.
    """
    with h5py.File(images, "r") as file:
        header = read_header(np.ravel(file["dataset/xml"][()])[0])
        numbers = [number for number in series_of(images) if number != COMPLEX]  # which a classic MR image cannot hold
        # the header may be wrong about that
        volume = bool(numbers) and file[f"dataset/image_{numbers[0]}/data"].shape[-3] > 1
    dataset = ismrmrd.Dataset(str(images), "dataset", create_if_needed=False)
    try:
        written: list[Path] = []
        scan = _Scan(header, volume, digest, run, options, missing)
        for number in numbers:
            written += _write_series(dataset, number, scan, folder, None, note)
        if numbers and not written:
            raise BadInputError("every image holds NaN or infinite values: check the scan's samples")
        if numbers and _may_be_reformatted(dataset, numbers[0], options.reformat, note):
            for number in numbers:
                if number != MINIP:  # thick in the acquired plane
                    written += _write_series(dataset, number, scan, folder, options.reformat, note)
        return written
    except OSError as error:
        raise BadInputError(f"cannot write to {folder} ({error}): make room or choose another --out") from error
    finally:
        dataset.close()


def stored_unit(bright: float, largest: float) -> float:
    """What one stored unit of a series is worth: a power of ten, so that integers stay readable.

    bright: 99.5th percentile of the brightest image, which gets at least FINENESS units; largest: of the series, which
    must fit. An image of the usual scale (bright parts about 1000) gets 1. The standard leaves the rescale out of this
    image type: viewers that ignore it show the right window all the same.
    """
    exponent = np.floor(np.log10((bright or largest or FINENESS) / FINENESS) + 1e-9)
    if largest > 0:
        exponent = max(exponent, np.ceil(np.log10(largest / LARGEST_STORED)))
    return float(10.0**exponent)


def _slices(image: ismrmrd.Image, orientation: str | None) -> tuple[list[Plane], np.ndarray, float]:
    """The planes of an image's slices, their pixels (slices, rows, columns) float32, and their thickness in mm.

    A volume has a slice for each partition, or those of its reformatted grid where an orientation is named.
    """
    head, pixels = image.getHead(), np.asarray(image.data[0], np.float32)
    if len(pixels) == 1:
        return [plane_of_mrd(head, pixels.shape[1:])], pixels, float(head.field_of_view[2])
    grid = grid_of_mrd(head, pixels.shape)
    if orientation is not None:
        grid, pixels = grid.resliced(pixels, orientation)
    return [grid.plane(number) for number in range(len(pixels))], pixels, grid.spacing_mm[0]


@dataclass(frozen=True)
class _Scan:
    """What all series of a scan follow from, see `write_dicom`."""

    header: Header
    volume: bool
    digest: str
    run: dict[str, Any]
    options: DicomOptions
    missing: str

    def series_uid(self, *parts: str | None) -> str:
        told: dict[str, Any] = {"anonymize": self.options.anonymize, "tag": self.options.tag}
        if (study := self.options.study) is not None:  # a series is of one study alone
            told["study"] = [study.uid, study.frame, study.fallback_id, study.number]
        return reproducible_uid("series", self.digest, self.run, told, *filter(None, parts))


def _write_series(
    dataset: ismrmrd.Dataset,
    number: int,
    scan: _Scan,
    folder: Path,
    orientation: str | None,
    note: Callable[[str], None],
) -> list[Path]:
    """orientation: of the reformatted series of volumes; None for the slices as they were acquired. note: gets a line
    for each image that is not finite, and is left out."""
    name, header = f"image_{number}", scan.header
    images, bright, largest, content = [], 0.0, 0.0, hashlib.sha256()
    for index in range(dataset.number_of_images(name)):
        image = dataset.read_image(name, index)
        planes, pixels, thickness = _slices(image, orientation)
        head, meta = image.getHead(), dict(image.meta)
        thickness = float(meta.get(THICKNESS, thickness))
        for part, plane in enumerate(planes):
            if not np.isfinite(pixels[part]).all():
                note(f"no DICOM of {name}, {_place(head, part, len(planes))}: it holds NaN or infinite values")
                continue
            images.append(_Image(index, part, head, meta, plane, pixels[part].shape, thickness))
            bright = max(bright, float(np.percentile(pixels[part], 99.5)))
            largest = max(largest, float(pixels[part].max()))
            content.update(np.ascontiguousarray(pixels[part]).tobytes())
    if not images:
        return []
    images = _in_order(images)
    role = str(images[0].meta.get("DataRole", "Image"))
    kind = scan.options.tag + SUFFIXES.get(role, f"_{number}")
    series_uid = scan.series_uid(name, orientation, images[0].meta.get(VEIN_PHASE), content.hexdigest())
    study = scan.options.study or Study.of_scan(header, scan.digest, anonymize=scan.options.anonymize)
    common = _common(header, study, volume=scan.volume, anonymize=scan.options.anonymize)
    common.SeriesInstanceUID = series_uid
    common.SeriesNumber = 100 * study.number + number + (REFORMATTED if orientation else 0)
    description, plane_name = images[0].meta.get("SeriesDescription") or f"{kind} RESEARCH", (orientation or "").upper()
    protocol = getattr(header.measurementInformation, "protocolName", None)
    common.SeriesDescription = _description(" ".join(filter(None, (description, plane_name, study.label))), protocol)
    scale = _Scale.of(role, bright, largest)
    if 0 < bright < FEW_LEVELS * scale.slope and scale.unit == "US":
        note(f"{name} has few grey levels in DICOM: pixels of up to {largest:.3g} are among others of {bright:.3g}")
    thickness = 0.0 if scan.volume else header.encoding[0].reconSpace.fieldOfView_mm.z
    shared = any(one.shares_place(other, close_mm(thickness)) for one, other in pairwise(images))
    spacing = None if shared else slice_spacing([image.plane for image in images])
    doubts = [f"INCOMPLETE SCAN: {_text(scan.missing, LONGEST_MISSING)}"] if scan.missing else []
    doubts += [SHARED] if shared else []
    parts = (f"{number + (REFORMATTED if orientation else 0):02d}", kind.replace(" ", "_"), plane_name)
    target = folder / "_".join(filter(None, parts))
    target.mkdir(parents=True, exist_ok=True)
    files, held, stored = [], -1, np.empty(0)
    names = Names.of([image.key for image in images], header)
    for instance, (image, acquisition) in enumerate(zip(images, _acquisitions(images, names)), 1):
        if image.index != held:  # a volume's slices follow each other
            held = image.index
            stored = scale.stored(_slices(dataset.read_image(name, held), orientation)[1])
        file = _file(common, image, header, kind, reformatted=orientation is not None)
        file.AcquisitionNumber = acquisition
        if counters := names.counters(image.key):
            notice, *others = str(file.ImageComments).split("; ")
            file.ImageComments = _text("; ".join([notice, counters, *others]), LONGEST_TEXT)
        if doubts:
            file.ImageComments = _text("; ".join([*doubts, file.ImageComments]), LONGEST_TEXT)
        file.InstanceNumber = instance
        file.SOPInstanceUID = reproducible_uid("image", series_uid, image.order, file.ImageType[-1])
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
        if spacing is not None:
            file.SpacingBetweenSlices = _decimal(spacing)
        scale.tell(file)
        add_weighting(file, image.meta, image.plane)
        file.PixelData = stored[image.part].astype("<u2").tobytes()
        path = target / f"IM{instance:04d}.dcm"
        file.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def _in_order(images: Sequence[_Image]) -> list[_Image]:
    """By counters, stack by stack, then by place; what shares a place by its slice's number, however it was
    acquired."""
    stacks: list[Plane] = []
    found = []
    for image in images:
        number = next((n for n, plane in enumerate(stacks) if are_parallel([plane, image.plane])), len(stacks))
        if number == len(stacks):
            stacks.append(image.plane)
        *counters, place, index = image.order
        found.append(((*counters, number, place, image.head.slice, index), image))
    return [image for _, image in sorted(found, key=lambda entry: entry[0])]


def _acquisitions(images: Sequence[_Image], names: Names) -> list[int]:
    """AcquisitionNumber of each: from 1 on, one for each setting of the counters; echoes are of one acquisition."""
    counted = [name for name in COUNTERS if names.words.get(name) != "echo"]
    found = [tuple(getattr(image.key, name) for name in counted) for image in images]
    numbers = {setting: number for number, setting in enumerate(sorted(set(found)), 1)}
    return [numbers[setting] for setting in found]


def _place(head: ismrmrd.ImageHeader, part: int, n_parts: int) -> str:
    """Which slice of a series an image is, in words."""
    counters = [f"{name} {value}" for name in COUNTERS if (value := getattr(head, name))]
    return ", ".join([f"partition {part}" if n_parts > 1 else f"slice {head.slice}", *counters])


def _may_be_reformatted(
    dataset: ismrmrd.Dataset, number: int, orientation: str | None, note: Callable[[str], None]
) -> bool:
    """Whether a series is of volumes whose partitions lie another way; note: gets a line where not, or where they lie
    across the patient's axes."""
    if orientation is None:
        return False
    image = dataset.read_image(f"image_{number}", 0)
    if image.data.shape[1] == 1:
        note(f"no {orientation} series: the images are 2D slices, and volumes alone are reformatted")
        return False
    grid = grid_of_mrd(image.getHead(), image.data.shape)
    if np.allclose(grid.resliced(image.data[0], orientation)[0].directions[1:], grid.directions[1:]):
        note(f"no second {orientation} series: the acquired one is {orientation}, as readers look at it")
        return False
    if grid.tilt() > STRAIGHT:
        note(
            f"the {orientation} series is tilted by {grid.tilt():.0f} degrees, as the acquired one is: voxels are "
            "swapped and never interpolated"
        )
    return True


def _common(header: Header, study: Study, *, volume: bool, anonymize: bool) -> Any:
    """What all images of all series of a scan share: patient, study, frame of reference, equipment, sequence."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    subject, info, measurement = study.subject, study.info, header.measurementInformation
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = MRImageStorage
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SpecificCharacterSet = "ISO_IR 192"

    file.PatientName = _name(getattr(subject, "patientName", None))
    # archives file by these two, or else by the scan's checksum
    file.PatientID = _text(getattr(subject, "patientID", None), 64) or f"SCAN-{study.fallback_id}"
    file.PatientBirthDate = _date(getattr(subject, "patientBirthdate", None))
    sex = str(getattr(subject, "patientGender", None) or "").upper()
    file.PatientSex = sex if sex in ("M", "F", "O") else ""
    weight, height = _number(subject, "patientWeight_kg"), _number(subject, "patientHeight_m")
    if weight:
        file.PatientWeight = _decimal(weight)
    if height:
        file.PatientSize = _decimal(height)
    if anonymize:
        file.PatientIdentityRemoved = "YES"
        file.DeidentificationMethod = "patient and study data of the scan's header left out"

    file.StudyInstanceUID = study.uid
    file.StudyDate = _date(getattr(info, "studyDate", None))
    file.StudyTime = _time(getattr(info, "studyTime", None))
    file.StudyID = _text(getattr(info, "studyID", None), 16) or study.fallback_id
    file.AccessionNumber = _text(getattr(info, "accessionNumber", None), 16)
    file.ReferringPhysicianName = _name(getattr(info, "referringPhysicianName", None))
    if getattr(info, "studyDescription", None):
        file.StudyDescription = _text(info.studyDescription, 64)

    file.Modality = "MR"
    part = re.sub(r"[^A-Z0-9_ ]", "", str(getattr(header.studyInformation, "bodyPartExamined", None) or "").upper())
    file.BodyPartExamined = part[:16].strip() or "HEAD"
    if not anonymize and _date(getattr(measurement, "seriesDate", None)):
        file.SeriesDate = _date(measurement.seriesDate)
        file.SeriesTime = _time(measurement.seriesTime)
    position = getattr(measurement, "patientPosition", None)
    word = str(getattr(position, "value", position) or "").strip().upper()
    file.PatientPosition = word if word in POSITIONS else ""
    file.FrameOfReferenceUID = study.frame
    file.PositionReferenceIndicator = ""
    if getattr(measurement, "protocolName", None):
        file.ProtocolName = _text(measurement.protocolName, 64)

    system = header.acquisitionSystemInformation
    file.Manufacturer = _text(getattr(system, "systemVendor", None), 64)
    if getattr(system, "systemModel", None):
        file.ManufacturerModelName = _text(system.systemModel, 64)
    if not anonymize:
        for keyword, field, length in (
            ("InstitutionName", "institutionName", 64),
            ("StationName", "stationName", 16),
            ("DeviceSerialNumber", "deviceSerialNumber", 64),
        ):
            if getattr(system, field, None):
                setattr(file, keyword, _text(getattr(system, field), length))
    if _number(system, "systemFieldStrength_T"):
        file.MagneticFieldStrength = _decimal(system.systemFieldStrength_T)
    frequency = _number(header.experimentalConditions, "H1resonanceFrequency_Hz")
    if frequency:
        file.ImagingFrequency = _decimal(frequency / 1e6)
    _add_sequence(file, header)
    file.MRAcquisitionType = "3D" if volume else "2D"

    file.SamplesPerPixel = 1
    file.PhotometricInterpretation = "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit = 15
    file.PixelRepresentation = 0
    return file


def _add_sequence(file: Any, header: Header) -> None:
    sequence, encoding = header.sequenceParameters, header.encoding[0]
    kind = "epi" if is_epi(header) else str(getattr(sequence, "sequence_type", None) or "").lower()
    scanning = next((code for pattern, code in _SEQUENCES if re.search(pattern, kind)), "RM")
    file.ScanningSequence = [scanning, "IR"] if _inverts(header) else scanning
    length = encoding.echoTrainLength if isinstance(encoding.echoTrainLength, int) else None
    file.SequenceVariant = "SK" if (length or 1) > 1 else "NONE"
    file.ScanOptions = ""
    repetition = _first(sequence, "TR")
    file.RepetitionTime = "" if repetition is None else _decimal(repetition)
    file.EchoTrainLength = "" if length is None else str(length)
    if getattr(header.measurementInformation, "sequenceName", None):
        file.SequenceName = _text(header.measurementInformation.sequenceName, 16)


def _file(common: Any, image: _Image, header: Header, kind: str, *, reformatted: bool) -> Any:
    """The DICOM data set of one image, without its pixels, numbers and UIDs."""
    from copy import deepcopy

    from pydicom.dataset import FileDataset

    file = FileDataset("", deepcopy(common), file_meta=deepcopy(common.file_meta), preamble=b"\0" * 128)
    meta, plane = image.meta, image.plane
    fallback = meta.get("dpmrecon_fallback")
    types = TYPES.get(str(meta.get("DataRole")), ("OTHER",))
    order = ("SECONDARY", "MPR", *types[1:]) if reformatted else ("PRIMARY", *types)
    file.ImageType = ["DERIVED", *order, kind if fallback is None else FALLBACK_TAG]
    file.ImagePositionPatient = [_decimal(value) for value in plane.first]
    file.ImageOrientationPatient = [_decimal(value) for value in (*plane.along_columns, *plane.along_rows)]
    file.PixelSpacing = [_decimal(value) for value in plane.spacing_mm]
    file.SliceThickness = _decimal(image.thickness_mm) if image.thickness_mm > 0 else ""
    file.SliceLocation = _decimal(float(plane.first @ plane.normal))
    file.Rows, file.Columns = image.shape
    file.EchoTime = ""
    for keyword, name in (("EchoTime", "TE"), ("InversionTime", "TI"), ("FlipAngle", "flipAngle_deg")):
        if name == "TI" and "IR" not in common.ScanningSequence:
            continue
        values = _told(header.sequenceParameters, name)
        number = _number_in(values, image.head, header)
        if number is not None and (value := _finite(values[number])) is not None:
            setattr(file, keyword, _decimal(value))
            if keyword == "EchoTime" and len(values) > 1:
                file.EchoNumbers = 1 + number  # by which readers part echoes
    file.BurnedInAnnotation = "NO"
    file.ContentQualification = "RESEARCH"
    file.ImageComments = _text(meta.get("ImageComments"), LONGEST_TEXT)
    file.DerivationDescription = _text(_derivation(meta), LONGEST_TEXT)
    file.ContributingEquipmentSequence = [_equipment(meta)]
    return file


def _derivation(meta: dict[str, Any]) -> str:
    def of(name: str) -> str:
        return str(meta.get(f"dpmrecon_{name}", "unknown"))

    how = (
        f"model {of('model')}, sha256 {of('checksum')}; "
        f"sampler {of('sampler')}, steps {of('steps')}, samples {of('samples')}, "
        f"evaluations {of('evaluations')}, seed {of('seed')}"
    )
    if of("sampler") == "cg-sense":
        how = f"CG-SENSE, without the model {of('model')}, sha256 {of('checksum')}"
    text = (
        f"Reconstructed from k-space by dpmrecon {of('version')}: {how}; "
        f"data residual {of('residual')} times the noise."
    )
    if "dpmrecon_fallback" in meta:
        text += f" CG-SENSE FALLBACK: {of('fallback')}."
    if "dpmrecon_adaptation" in meta:
        text += f" {of('adaptation').capitalize()}."
    if "dpmrecon_conjugated" in meta:
        text += " k-space was conjugated, as the vendor's files need it."
    if "dpmrecon_map" in meta:
        text += f" Computed from these images: {of('map')}."
    text += " RESEARCH, not for diagnostic use"
    remarks = f". Remarks: {'; '.join(remarks_of(meta))}"
    # what is cut off here is in ImageComments
    return text + remarks if "dpmrecon_remarks" in meta and len((text + remarks).encode()) <= LONGEST_TEXT else text


def _equipment(meta: dict[str, Any]) -> Any:
    from pydicom.dataset import Dataset

    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109102", "DCM"
    purpose.CodeMeaning = "Processing Equipment"
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [purpose]
    item.Manufacturer = "dpmrecon"
    item.ManufacturerModelName = _text(meta.get("dpmrecon_model"), 64)
    item.SoftwareVersions = _text(meta.get("dpmrecon_version"), 64)
    item.ContributionDescription = _text(_derivation(meta), LONGEST_TEXT)
    return item


def _mapping(scale: _Scale) -> Any:
    from pydicom.dataset import Dataset

    unit, item = Dataset(), Dataset()
    unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = scale.unit, "UCUM", scale.unit
    item.MeasurementUnitsCodeSequence = [unit]
    item.LUTLabel, item.LUTExplanation = scale.label, scale.text
    # US or SS by PixelRepresentation, which an item does not hold
    item.add_new("RealWorldValueFirstValueMapped", "US", 0)
    item.add_new("RealWorldValueLastValueMapped", "US", LARGEST_STORED)
    item.RealWorldValueIntercept, item.RealWorldValueSlope = scale.intercept, scale.slope
    return item


def _decimal(value: float) -> Any:
    """Of lengths, directions and times, where what is tiny is rounding."""
    return _number_text(value if abs(value) > 1e-12 else 0.0)


def _number_text(value: float) -> Any:
    """In the 16 characters that DICOM has for a number."""
    from pydicom.valuerep import DSfloat

    return DSfloat(float(value) + 0.0, auto_format=True)


def _text(value: Any, length: int) -> str:
    """Text without what means something in DICOM (backslashes, control characters), cut to `length` bytes.

    The standard counts characters, but not every reader does.
    """
    text = re.sub(r"[\x00-\x1f\x7f\\]+", " ", str(value if value is not None else "")).strip()
    return text.encode()[:length].decode(errors="ignore").strip()


def _description(text: str, protocol: str | None) -> str:
    """Of a series. Where it is too long its beginning, the protocol's name, is cut, and what the series is stays."""
    start, whole = _text(protocol, LONGEST_TEXT), _text(text, 2 * LONGEST_TEXT)
    if not whole.startswith(start):
        start = ""
    rest = whole.removeprefix(start)
    return _text(_text(start, max(0, LONGEST_WORDS - len(rest.encode()))) + rest, LONGEST_WORDS)


def _name(value: Any) -> str:
    """A person's name: five components, so at most four ^, in up to three scripts with = between."""
    scripts = _text(value, LONGEST_TEXT).split("=")[:3]
    return "=".join("^".join(_text(script, LONGEST_WORDS).split("^")[:5]) for script in scripts)


def _date(value: Any) -> str:
    match = re.match(r"(\d{4})-?(\d\d)-?(\d\d)", str(value or ""))
    try:
        return datetime.date(*map(int, match.groups())).strftime("%Y%m%d") if match else ""
    except ValueError:
        return ""


def _time(value: Any) -> str:
    match = re.match(r"([01]\d|2[0-3]):?([0-5]\d):?([0-5]\d)", str(value or ""))
    return "".join(match.groups()) if match else ""


def _number(element: Any, name: str) -> Any:
    return _finite(getattr(element, name, None))


def _number_in(values: Sequence[Any], head: ismrmrd.ImageHeader, header: Header) -> int | None:
    """Which of the sequence's times or angles an image has: the only one, or its contrast's; in a scan of one contrast,
    that of the one other counter that has as many values. None where the header does not tell."""
    if len(values) == 1:
        return 0
    name = _counter_of(values, header)
    if name is None:
        return None
    limit = getattr(header.encoding[0].encodingLimits, name, None)
    number = int(getattr(head, name)) - (limit.minimum if limit else 0)
    return number if 0 <= number < len(values) else None


def _counter_of(values: Sequence[Any], header: Header) -> str | None:
    """The counter that tells an image's value among several."""
    limits = header.encoding[0].encodingLimits
    counted = {name: getattr(limits, name, None) for name in ("contrast", "set", "phase")}
    sizes = {name: limit.maximum - limit.minimum + 1 for name, limit in counted.items() if limit}
    if sizes.get("contrast") != 1:
        return "contrast"
    names = [name for name in ("set", "phase") if sizes.get(name) == len(values)]
    return names[0] if len(names) == 1 else None


def _inverts(header: Header) -> bool:
    """Whether the header's inversion times are those of the images: Siemens's headers have what the protocol holds of
    them unused. Names tell, where there are any, or a time for each of several images."""
    measurement, sequence = header.measurementInformation, header.sequenceParameters
    told = [getattr(measurement, name, None) for name in ("protocolName", "sequenceName")]
    names = [str(name).lower() for name in (*told, getattr(sequence, "sequence_type", None)) if name]
    times = _told(sequence, "TI")
    if not times or not names or any(re.search(_INVERSION, name) for name in names):
        return bool(times)
    return len(times) > 1 and _counter_of(times, header) is not None


def _told(sequence: Any, name: str) -> list[Any]:
    """Times or angles without those at the end that are none: GE's headers have a second echo of 0."""
    values = list(getattr(sequence, name, None) or [])
    while values and not (_finite(values[-1]) or 0) > 0:
        values.pop()
    return values


def _finite(value: Any) -> float | None:
    return value if isinstance(value, int | float) and np.isfinite(value) else None


def _first(element: Any, name: str) -> float | None:
    values = getattr(element, name, None) or []
    return _finite(values[0]) if values else None
