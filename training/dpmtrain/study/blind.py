"""DICOM series without patient data, whose images alone may tell the arm.

Nothing of the source's header is kept but where its voxels lie. Both arms of a subject get the geometry of the standard
one. Every series gets the same scale, window, bit depth, names and dates; files of both arms are equally long. UIDs
follow from the study and from numbers.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dpmrecon.errors import BadInputError, first_line
from dpmrecon.mrd.geometry import Plane, plane_of_dicom, slice_spacing

from ..data.images import is_dicom, open_dicom

BITS = 12
BRIGHT = 2000  # the stored value of a series' 99.5th percentile, the window's upper end
SAME_PLACE = 0.5  # of a pixel: how far the arms of a subject may lie apart
PARALLEL, APART_MM = 0.999, 0.01  # least cosine of the slices' normals, least distance of their places
LONG_AGO = 315532800  # 1980-01-01 in seconds, the date of every file


@dataclass(frozen=True)
class Series:
    """pixels: (slices, rows, columns) float32, in the order of planes along their normal; step: between neighbouring
    values that the source could hold; thickness_mm: of a slice."""

    pixels: np.ndarray
    planes: list[Plane]
    step: float
    thickness_mm: float

    def stored(self, chance: np.random.Generator) -> np.ndarray:
        """(slices, rows, columns) uint16 of BITS, the 99.5th percentile at BRIGHT.

        A source whose steps are coarser than the stored ones would leave gaps that tell where it is from: noise of one
        of its steps fills them.
        """
        bright = float(np.percentile(self.pixels, 99.5))
        scale = BRIGHT / (bright if bright > 0 else 1.0)
        pixels = self.pixels
        if self.step * scale > 1:
            pixels = pixels + self.step * (chance.random(pixels.shape, np.float32) - 0.5)
        return np.rint(pixels * scale).clip(0, 2**BITS - 1).astype(np.uint16)


def read_series(folder: Path) -> Series:
    """The one DICOM series under a folder. Raises BadInputError, in one sentence, for none, for several, for colour and
    for multi-frame images, and for slices of unequal size or without a place."""
    files = _files(folder)
    uids = {file.SeriesInstanceUID: getattr(file, "SeriesDescription", "without a name") for file in files}
    if len(uids) > 1:
        raise BadInputError(
            f"{folder} holds {len(uids)} series ({', '.join(sorted(uids.values()))}): give one for each contrast, "
            "those of trace and ADC as contrasts of their own"
        )
    first = files[0]
    if getattr(first, "SamplesPerPixel", 1) != 1 or int(getattr(first, "NumberOfFrames", 1)) != 1:
        raise BadInputError(
            f"{folder} holds colour or multi-frame images: give classic grey ones, a file for each slice"
        )
    try:
        files.sort(key=lambda file: plane_of_dicom(file).first @ plane_of_dicom(first).normal)
        planes = [plane_of_dicom(file) for file in files]
        slope = min(float(getattr(file, "RescaleSlope", 1)) for file in files)
        pixels = np.stack([_values(file) for file in files])
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise BadInputError(
            f"{folder} cannot be read as slices of one volume ({error}): give another export"
        ) from error
    places = [plane.first @ planes[0].normal for plane in planes]
    if any(abs(plane.normal @ planes[0].normal) < PARALLEL for plane in planes) or np.any(np.diff(places) < APART_MM):
        raise BadInputError(
            f"{folder} holds several images of one place, or slices that are not parallel: give one volume for each "
            "contrast, b-values and echoes as contrasts of their own"
        )
    levels = np.unique(np.stack([file.pixel_array for file in files])).astype(np.int64)
    step = slope * (int(np.diff(levels).min()) if len(levels) > 1 else 1)
    return Series(pixels, planes, step, float(getattr(first, "SliceThickness", None) or 0))


def _files(folder: Path) -> list[Any]:
    """The DICOM images under a folder; other files are not looked at."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            if not is_dicom(path):
                continue
            file = open_dicom(path, pixels=True)
        except Exception as error:  # the file's bytes decide what is raised
            raise BadInputError(f"{path} cannot be read ({first_line(error)}): copy it again, or remove it") from error
        if "PixelData" in file and "SeriesInstanceUID" in file:
            found.append(file)
    if not found:
        raise BadInputError(f"{folder} holds no DICOM images: give SUBJECT/CONTRAST folders with a series each")
    return found


def _values(file: Any) -> np.ndarray:
    slope, intercept = float(getattr(file, "RescaleSlope", 1)), float(getattr(file, "RescaleIntercept", 0))
    return (file.pixel_array * slope + intercept).astype(np.float32)


def check_alike(what: str, standard: Series, accelerated: Series) -> None:
    """Raises BadInputError where a difference in matrix, slices or place would tell the arms."""
    shapes = [" x ".join(map(str, series.pixels.shape)) for series in (standard, accelerated)]
    if shapes[0] != shapes[1]:
        raise BadInputError(
            f"{what}: the standard series has {shapes[0]} voxels and the accelerated one {shapes[1]}, which tells the "
            "arms: reconstruct both on one matrix, or leave this contrast out"
        )
    far = 0.0
    for one, other in zip(standard.planes, accelerated.planes):
        rows, columns = standard.pixels.shape[1:]
        for row, column in ((0, 0), (rows - 1, 0), (0, columns - 1)):
            far = max(far, float(np.linalg.norm(one.point(row, column) - other.point(row, column))))
    if far > SAME_PLACE * min(standard.planes[0].spacing_mm):
        raise BadInputError(
            f"{what}: the arms lie up to {far:.1f} mm apart, which tells them: export both in the same plane, or leave "
            "this contrast out"
        )


def write_series(
    folder: Path, pixels: np.ndarray, geometry: Series, study: str, number: int, index: int, contrast: str
) -> None:
    """folder/IMnnnn.dcm. pixels: (slices, rows, columns) uint16; study: its seal; number: of the set; index: of the
    series in it, from 1."""
    folder.mkdir(parents=True)
    spacing = slice_spacing(geometry.planes)
    for part, plane in enumerate(geometry.planes, 1):
        file = _blank(study, number, index, contrast)
        file.InstanceNumber = part
        file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = _uid(study, "image", number, index, part)
        file.ImagePositionPatient = [_decimal(value) for value in plane.first]
        file.ImageOrientationPatient = [_decimal(value) for value in (*plane.along_columns, *plane.along_rows)]
        file.PixelSpacing = [_decimal(value) for value in plane.spacing_mm]
        file.SliceThickness = _decimal(geometry.thickness_mm) if geometry.thickness_mm > 0 else ""
        if spacing is not None:
            file.SpacingBetweenSlices = _decimal(spacing)
        file.Rows, file.Columns = pixels.shape[1:]
        file.PixelData = pixels[part - 1].astype("<u2").tobytes()
        path = folder / f"IM{part:04d}.dcm"
        file.save_as(path, enforce_file_format=True)
        os.utime(path, (LONG_AGO, LONG_AGO))


def _blank(study: str, number: int, index: int, contrast: str) -> Any:
    """A data set that says which set and contrast it is, and nothing else."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SpecificCharacterSet = MRImageStorage, "ISO_IR 192"
    file.PatientName = file.PatientID = f"SET-{number:03d}"
    file.PatientBirthDate = file.PatientSex = ""
    file.PatientIdentityRemoved = "YES"
    file.DeidentificationMethod = "header made anew for a blinded reading"
    file.StudyInstanceUID, file.SeriesInstanceUID = _uid(study, "set", number), _uid(study, "series", number, index)
    file.FrameOfReferenceUID = _uid(study, "frame", number)
    file.StudyDate = file.StudyTime = file.AccessionNumber = file.ReferringPhysicianName = file.StudyID = ""
    file.Modality, file.Manufacturer, file.PatientPosition, file.PositionReferenceIndicator = "MR", "", "", ""
    file.ScanningSequence, file.SequenceVariant, file.ScanOptions, file.MRAcquisitionType = "RM", "NONE", "", ""
    file.RepetitionTime = file.EchoTime = file.EchoTrainLength = ""
    file.SeriesNumber, file.SeriesDescription = index, contrast
    file.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME2", 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, BITS, BITS - 1
    file.WindowCenter, file.WindowWidth = str(BRIGHT // 2), str(BRIGHT)
    return file


def _uid(*parts: Any) -> str:
    """Under 2.25, always of 43 characters, so that files are equally long."""
    number = int(hashlib.sha256(repr(parts).encode()).hexdigest(), 16)
    return f"2.25.{10**37 + number % (9 * 10**37)}"


def _decimal(value: float) -> str:
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value))


def affine(planes: Sequence[Plane], thickness_mm: float) -> np.ndarray:
    """(4, 4) from voxel (column, row, slice) to NIfTI's patient coordinates, RAS mm."""
    first, spacing = planes[0], slice_spacing(list(planes)) or thickness_mm or 1.0
    matrix = np.eye(4)
    matrix[:3, 0] = first.along_columns * first.spacing_mm[1]
    matrix[:3, 1] = first.along_rows * first.spacing_mm[0]
    matrix[:3, 2] = first.normal * spacing
    matrix[:3, 3] = first.first
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
