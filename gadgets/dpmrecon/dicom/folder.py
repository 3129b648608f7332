"""The last step of a replay: DIR/dicom/ from DIR/images.h5."""

import shutil
from dataclasses import asdict
from pathlib import Path

import ismrmrd

from ..data import LostSlice
from ..errors import BadInputError
from ..mrd.scan import Scan
from ..output.maps import Maps
from ..output.report import Report
from ..recon.types import Reconstruction
from .write import DicomOptions, write_dicom


class DicomFolder:
    """A writer of dicom/, once the scan is done and `images`, images.h5, is closed.

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
        target, files = self.images.with_name("dicom"), []
        try:
            files = write_dicom(self.images, target, self.scan.digest, run, self.options, report.notes.append)
        except BadInputError as error:
            shutil.rmtree(target, ignore_errors=True)  # half a series looks like a whole one
            report.notes.append(f"no DICOM: {error}")
        report.scan_sha256, report.dicom_files = self.scan.digest, len(files)
        report.write()
