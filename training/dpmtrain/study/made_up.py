"""DICOM of made-up subjects, each arm as its maker would write it: what a blinded study must hide."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .questions import ACCELERATED, STANDARD

SPACING_MM = (0.9, 0.8)
THICKNESS_MM = 4.0


def write_sources(
    folder: Path, subjects: Sequence[str], contrasts: Sequence[str], shape: tuple[int, int, int], seed: int = 0
) -> None:
    """folder/standard and folder/accelerated, SUBJECT/CONTRAST/*.dcm each: a scanner's 12 bits with patient data, a
    reconstruction's 16 bits. shape: (slices, rows, columns); seed: of the images' noise."""
    for place, subject in enumerate(subjects):
        for index, contrast in enumerate(contrasts):
            chance = np.random.default_rng([seed, place, index])
            grids = np.meshgrid(*[np.linspace(-1.2, 1.2, size) for size in shape], indexing="ij")
            inside = sum(grid**2 for grid in grids) < 1
            head = inside * (0.5 + 0.4 * np.cos(5 * grids[1]) * np.cos(4 * grids[2])) + 0.02
            for arm in (STANDARD, ACCELERATED):
                image = np.abs(head + 0.05 * chance.standard_normal(shape))
                _write(folder / arm / subject / contrast, image, arm, subject, contrast, index)


def _write(folder: Path, image: np.ndarray, arm: str, subject: str, contrast: str, index: int) -> None:
    folder.mkdir(parents=True)
    largest = 300 if arm == STANDARD else 40000
    stored = np.rint(image / image.max() * largest).astype(np.uint16)
    for part in range(len(stored)):
        file = _header(arm, subject, contrast, index, part)
        file.Rows, file.Columns = stored.shape[1:]
        file.PixelData = stored[part].astype("<u2").tobytes()
        file.save_as(folder / (f"{part:03d}.dcm" if arm == STANDARD else f"IM{part:04d}"), enforce_file_format=True)


def _header(arm: str, subject: str, contrast: str, index: int, part: int) -> Any:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    standard = arm == STANDARD
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID = MRImageStorage
    file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid(
        entropy_srcs=[arm, subject, contrast, str(part)]
    )
    file.StudyInstanceUID = generate_uid(entropy_srcs=[subject])
    file.SeriesInstanceUID = generate_uid(entropy_srcs=[arm, subject, contrast])
    file.PatientName, file.PatientID = f"Doe^{subject}", subject
    file.StudyDate = "20260105" if standard else "20260301"
    file.Modality, file.Manufacturer = "MR", "Scanner" if standard else "dpmrecon"
    file.SeriesNumber, file.SeriesDescription = index + 1, f"{contrast}_tse" if standard else f"{contrast} DPM RESEARCH"
    if not standard:
        file.ImageComments = "diffusion prior, R = 2"
    file.InstanceNumber = part + 1
    file.ImagePositionPatient = [-10, -12.5, THICKNESS_MM * part + (0 if standard else 1e-4)]
    file.ImageOrientationPatient, file.PixelSpacing = [1, 0, 0, 0, 1, 0], list(SPACING_MM)
    file.SliceThickness = THICKNESS_MM
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME2", 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12 if standard else 16, 11 if standard else 15
    file.WindowCenter, file.WindowWidth = (150, 300) if standard else (20000, 40000)
    if not standard:
        file.RescaleSlope, file.RescaleIntercept, file.RescaleType = "0.1", "0", "US"
    return file
