"""The front door: an ISMRMRD file goes in, images come out. Read `replay` from top to bottom.

Each step is a generator over slices; a socket can stand at either end instead of a file.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .data import LostSlice
from .dicom.folder import DicomFolder
from .dicom.write import DicomOptions
from .mrd.collect import slices
from .mrd.file import Scan
from .mrd.lines import LineHeaders
from .output.folder import cleared, seconds_to_finish
from .output.images_file import ImagesFile, Outputs
from .output.maps import Maps
from .output.mrd_images import mrd_images
from .output.preview import Preview
from .output.report import Report
from .output.scores import Scores, Truth
from .output.weighting import Weighting
from .output.writers import Writer, writing
from .prior.checkpoint import Checkpoint
from .recon.deadline import Deadline
from .recon.prepare import with_coil_maps
from .recon.provenance import Provenance
from .recon.stream import sampled
from .recon.types import Reconstruction, Sampling


@dataclass(frozen=True)
class Progress:
    """Who watches. evaluations: called with the images of each evaluation of the network; slice: with each slice."""

    evaluations: Callable[[int], object] = lambda images: None
    slice: Callable[[Reconstruction | LostSlice], object] = lambda item: None


def replay(
    scan: Scan,
    out: Path,
    checkpoint: Checkpoint,
    contrast: str | None,
    sampling: Sampling,
    device: torch.device,
    *,
    outputs: Outputs = Outputs(),  # noqa: B008
    dicom: DicomOptions | None = None,
    weighting: Weighting | None = None,
    combine_averages: bool = False,
    truth: Path | None = None,
    mask: Path | None = None,
    progress: Progress = Progress(),  # noqa: B008
    started: float | None = None,
) -> Report:
    """Reconstruct a scan into the folder `out`: images.h5, dicom/, preview.png, report.json.

    dicom: None writes none; weighting: the user's b-values, None for the header's; truth, mask: see `Truth`; started:
    reading of time.monotonic() from which a deadline counts, None is now. Returns the report, whose `exit_code` tells
    whether every slice came out. Raises DpmreconError, in one sentence, when the scan cannot be used; what was done by
    then is in the folder.
    """
    header, n_slices = scan.header, scan.n_images(combine_averages)
    deadline = None
    if sampling.deadline is not None:
        reserve = seconds_to_finish(n_slices, truth=truth is not None)
        deadline = Deadline(sampling.deadline, n_slices, started or time.monotonic(), reserve)
    provenance = Provenance.of(checkpoint, contrast, sampling, combine_averages=combine_averages)
    wanted = Truth(truth, mask, header)
    folder = cleared(out, scan.path)
    hidden = outputs.anonymize
    report = Report(
        folder / "report.json", None if hidden else scan.path.name, provenance, str(scan.path) if hidden else None
    )
    images = ImagesFile(folder / "images.h5", scan, outputs)
    maps = Maps(header, weighting, images.put, report.notes.append, combine_averages=combine_averages)
    writers: list[Writer] = [maps, images, Scores(wanted, header, report), report]
    writers.append(Preview(folder / "preview.png", header, wanted, n_slices))
    if dicom is not None:
        writers.append(DicomFolder(images.path, scan, report, dicom, maps))
    line_headers: LineHeaders = {}
    with writing(writers) as add:
        stream = scan.acquisitions()
        stream = slices(stream, header, line_headers, combine_averages=combine_averages)
        stream = with_coil_maps(stream, device)
        stream = sampled(stream, checkpoint, contrast, sampling, progress.evaluations, deadline)
        stream = mrd_images(stream, header, line_headers, provenance, maps.weighting)
        for item, found in stream:
            add(item, found)
            progress.slice(item)
    return report
