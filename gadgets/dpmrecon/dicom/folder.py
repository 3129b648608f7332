"""The last step of a replay: diffusion maps where there are several b-values, then DIR/dicom/ from DIR/images.h5."""

import shutil
from dataclasses import asdict
from pathlib import Path

import ismrmrd

from ..data import LostSlice
from ..errors import BadInputError
from ..mrd.scan import Scan
from ..output.maps import Weighting, add_maps, weighting_of
from ..output.report import Report
from ..recon.types import Reconstruction
from .write import DicomOptions, write_dicom


class DicomFolder:
    """A writer of the maps and of dicom/, once the scan is done and `images`, images.h5, is closed.

    stated: the user's b-values, None for the header's. Maps or DICOM that cannot be made are a note of the report: the
    images stay. Raises BadInputError where the report cannot be written.
    """

    def __init__(self, images: Path, scan: Scan, report: Report, options: DicomOptions, stated: Weighting | None):
        self.images, self.scan, self.report, self.options, self.stated = images, scan, report, options, stated

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None:
        """One rescale and one window serve a whole series: it is written at the end."""

    def close(self, failure: BaseException | None) -> None:
        if failure is not None:
            return
        report, run, weighting = self.report, self.report.deciding(), None
        try:
            weighting = weighting_of(self.scan.header, self.stated)
            if weighting is not None:
                report.notes += add_maps(self.images, weighting)
                run["weighting"] = asdict(weighting)
        except BadInputError as error:
            weighting = None
            report.notes.append(f"no trace and ADC: {error}")
        target, files = self.images.with_name("dicom"), []
        try:
            files = write_dicom(self.images, target, self.scan.digest, run, self.options, weighting)
        except BadInputError as error:
            shutil.rmtree(target, ignore_errors=True)  # half a series looks like a whole one
            report.notes.append(f"no DICOM: {error}")
        report.scan_sha256, report.dicom_files = self.scan.digest, len(files)
        report.write()
