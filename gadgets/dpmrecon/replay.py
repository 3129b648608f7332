"""The front door: an ISMRMRD file goes in, images come out. Read `replay` from top to bottom.

Each step is a generator over slices; a socket can stand at either end instead of a file.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .data import LostSlice
from .mrd.collect import slices
from .mrd.lines import LineHeaders
from .mrd.receiving import Receiving, untold
from .mrd.scan import Scan
from .output.mrd_images import mrd_images
from .output.report import Report
from .output.writers import writing
from .prior.checkpoint import Checkpoint
from .recon.deadline import Deadline
from .recon.prepare import with_coil_maps
from .recon.provenance import Provenance
from .recon.stream import sampled
from .recon.types import Reconstruction, Sampling
from .results import Wanted, result_writers


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
    wanted: Wanted = Wanted(),  # noqa: B008
    receiving: Receiving = Receiving(),  # noqa: B008
    combine_averages: bool = False,
    progress: Progress = Progress(),  # noqa: B008
    started: float | None = None,
) -> Report:
    """Reconstruct a scan into the folder `out`: images.h5, dicom/, nifti/, preview.png, report.json.

    wanted: what is written; receiving: how the lines are taken; started: reading of time.monotonic() from which a
    deadline counts, None is now. Returns the report, whose `exit_code` tells whether every slice came out. Raises
    DpmreconError, in one sentence, when the scan cannot be used; what was done by then is in the folder.
    """
    header, n_slices = scan.header, scan.n_images(combine_averages)
    deadline = None
    if sampling.deadline is not None:
        reserve = wanted.seconds_to_finish(header, contrast, n_slices)
        deadline = Deadline(sampling.deadline, n_slices, started or time.monotonic(), reserve)
    provenance = Provenance.of(
        checkpoint,
        contrast,
        sampling,
        combine_averages=combine_averages,
        conjugated=receiving.conjugate,
        taken=untold(receiving.taken) if wanted.outputs.anonymize else receiving.taken,
    )
    report, maps, writers = result_writers(wanted, scan, out, provenance, n_slices, combine_averages)
    line_headers: LineHeaders = {}
    with writing(writers) as add:
        stream = scan.acquisitions()
        stream = slices(
            stream, header, line_headers, combine_averages=combine_averages, receiving=receiving, log=scan.log
        )
        stream = with_coil_maps(stream, device, contrast)
        stream = sampled(stream, checkpoint, contrast, sampling, progress.evaluations, deadline)
        stream = mrd_images(stream, header, line_headers, provenance, wanted.outputs.images, maps.weighting)
        for item, images in stream:
            add(item, images)
            progress.slice(item)
    return report
