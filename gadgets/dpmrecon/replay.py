"""The front door: an ISMRMRD file goes in, images come out. Read `replay` from top to bottom.

Each step is a generator over slices; a socket can stand at either end instead of a file.
"""

import time
from pathlib import Path

import torch
from tqdm import tqdm

from .mrd.collect import slices
from .mrd.header import open_scan
from .output.folder import Outputs, ResultFolder, seconds_to_finish
from .output.mrd_images import mrd_images
from .prior.checkpoint import Checkpoint
from .recon.deadline import Deadline
from .recon.sample import Sampling, sampled, with_coil_maps


def replay(
    scan_file: Path,
    out: Path,
    checkpoint: Checkpoint,
    contrast: str | None,
    sampling: Sampling,
    device: torch.device,
    *,
    outputs: Outputs,
    combine_averages: bool = False,
    truth: Path | None = None,
    mask: Path | None = None,
    started: float | None = None,
) -> int:
    """Reconstruct `scan_file` into the folder `out` (images.h5, preview.png, report.json).

    started: time.monotonic() from which a deadline counts, None is now.
    Returns the exit code: 0 every slice by the model, 3 some by the conventional fallback, 4 some missing.
    Raises DpmreconError with one sentence when the scan cannot be used.
    """
    with open_scan(scan_file) as scan:
        n_slices = scan.n_images(combine_averages)
        evaluations = n_slices * sampling.samples * sampling.settings.steps
        deadline = None
        if sampling.deadline is not None:
            reserve = seconds_to_finish(n_slices, truth=truth is not None)
            deadline = Deadline(sampling.deadline, n_slices, started or time.monotonic(), reserve)
        with (
            ResultFolder(out, scan, checkpoint, contrast, sampling, outputs, n_slices, truth, mask) as results,
            tqdm(total=None if deadline else evaluations, unit="eval", smoothing=0.05) as bar,
        ):
            stream = scan.acquisitions()
            stream = slices(stream, scan.header, combine_averages=combine_averages)
            stream = with_coil_maps(stream, device)
            stream = sampled(stream, checkpoint, contrast, sampling, bar.update, deadline)
            stream = mrd_images(stream, scan.header, checkpoint, sampling)
            for item, images in stream:
                bar.write(results.add(item, images))
    return results.exit_code
