"""The last step of a replay: DIR/dicom/ from DIR/images.h5."""

import os
import shutil
from dataclasses import asdict
from pathlib import Path

import ismrmrd

from ..data import LostSlice
from ..errors import BadInputError
from ..mrd.scan import Scan
from ..output.maps import Maps
from ..output.report import Report
from ..output.writers import telling
from ..recon.types import Reconstruction
from .write import DicomOptions, write_dicom

PART = ".dicom.part"  # what dicom/ is called until it is whole


class DicomFolder:
    """A writer of dicom/, once the scan is done and `images`, images.h5, is closed. The folder gets its name once it is
    whole: half a series looks like a whole one.

    maps: tells the weighting of a diffusion scan. DICOM that cannot be made is a note of the report: the images stay.
    Raises BadInputError where the report cannot be written.
    """

    def __init__(self, images: Path, scan: Scan, report: Report, options: DicomOptions, maps: Maps):
        self.images, self.scan, self.report, self.options, self.maps = images, scan, report, options, maps

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None:
        """One rescale and one window serve a whole series: it is written at the end."""

    def close(self, failure: BaseException | None) -> None:
        if failure is not None:
            return
        report, run, weighting = self.report, self.report.deciding(), self.maps.weighting
        if weighting is not None:
            run["weighting"] = asdict(weighting)
        part, files = self.images.with_name(PART), []
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        try:
            note, missing = report.notes.append, report.missing
            files = write_dicom(self.images, part, self.scan.digest, run, self.options, note, missing)
            if files:
                with telling(part.parent, "make room or choose another --out"):
                    os.replace(part, self.images.with_name("dicom"))
        except BadInputError as error:
            files = []
            report.not_made("DICOM", error)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        report.scan_sha256, report.dicom_files = self.scan.digest, len(files)
        report.write()
