"""What a replay writes: the list of writers of its result folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .dicom.folder import DicomFolder
from .dicom.write import DicomOptions
from .mrd.completeness import first_slice
from .mrd.header import Header, n_partitions
from .mrd.scan import Scan
from .options import Options
from .output.folder import cleared, seconds_to_finish
from .output.images_file import ImagesFile, Outputs
from .output.maps import Maps
from .output.names import Names
from .output.nifti import NiftiFolder
from .output.preview import PLANES, Preview
from .output.report import Report
from .output.scores import Scores, Truth
from .output.swi import CONTRAST, SwiSeries
from .output.weighting import Weighting
from .output.writers import Writer
from .prior.checkpoint import Checkpoint
from .recon.provenance import Provenance
from .version import __version__


@dataclass(frozen=True)
class Wanted:
    """What is to be written. dicom: None writes none; weighting: the user's b-values, None for the header's; truth,
    mask: files to score against, see `Truth`; vein_phase: sign of the phase of veins in SWI, auto for the vendor's."""

    outputs: Outputs = Outputs()
    dicom: DicomOptions | None = None
    weighting: Weighting | None = None
    truth: Path | None = None
    mask: Path | None = None
    vein_phase: str = "auto"

    def seconds_to_finish(self, header: Header, contrast: str | None, n_slices: int) -> float:
        """About what preview and files take after the last slice, or volume."""
        rows = PLANES if n_partitions(header) > 1 else 1
        files = self.files(header, contrast)
        return seconds_to_finish(n_slices, truth=self.truth is not None, files=files, rows=rows)

    def files(self, header: Header, contrast: str | None) -> int:
        """About as many images of a slice, or of a volume's partitions, go to DICOM and NIfTI."""
        partitions = n_partitions(header)
        kinds = self.outputs.files * (2 if contrast == CONTRAST else 1)
        planes = 2 if partitions > 1 and self.dicom is not None and self.dicom.reformat is not None else 1
        return kinds * planes * partitions


def made_by(checkpoint: Checkpoint, options: Options, wanted: Wanted) -> dict[str, Any]:
    """All that decides the results beside the scan, as JSON values."""
    return {
        "version": __version__,
        "model": str(checkpoint.card["checksum_sha256"]),
        "options": {**asdict(options), "model": None, "device": None, "batch": None},
        "wanted": asdict(wanted),
    }


def result_writers(
    wanted: Wanted, scan: Scan, out: Path, provenance: Provenance, n_slices: int, combine_averages: bool
) -> tuple[Report, Maps, list[Writer]]:
    """The report, the diffusion maps and all writers of `out`, which is cleared. Raises BadInputError where it cannot
    be."""
    header, hidden = scan.header, wanted.outputs.anonymize
    keys = scan.keys(combine_averages)
    truth = Truth(wanted.truth, wanted.mask, header, first_slice(header, {key.slice for key in keys}))
    folder = cleared(out, scan.path)
    name, secret = (None, str(scan.path)) if hidden else (scan.path.name, None)
    names = Names.of(keys, header)
    report = Report(folder / "report.json", name, provenance, scan.log, secret, names=names)
    images = ImagesFile(folder / "images.h5", scan.header, scan.xml, wanted.outputs)
    maps = Maps(
        header,
        wanted.weighting,
        images.put,
        report.notes.append,
        combine_averages=combine_averages,
        last=scan.last,
    )
    report.weighting = truth.weighting = maps.weighting
    if maps.weighting is not None:
        for remark in maps.weighting.remarks:
            scan.log.remark(remark)
    swi = SwiSeries(header, provenance, wanted.vein_phase, images.put, report.notes.append)
    writers: list[Writer] = [
        maps,
        swi,
        images,
        Scores(truth, header, report),
        report,
        Preview(folder / "preview.png", header, truth, names, n_slices),
    ]
    if wanted.dicom is not None:
        writers.append(DicomFolder(images.path, scan, report, wanted.dicom, maps))
    if wanted.outputs.nifti:
        writers.append(NiftiFolder(images.path, report))
    return report, maps, writers
