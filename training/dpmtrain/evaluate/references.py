"""Slices with a reference to score against: what `evaluate` and `sweep` undersample."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.data import LostSlice, Slice, Volume
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.completeness import first_slice
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.header import contrast_label
from dpmrecon.mrd.receiving import Receiving
from dpmrecon.options import Options
from dpmrecon.output.mrd_images import recon_shape, to_recon_space
from dpmrecon.output.protocol_report import key_of
from dpmrecon.output.scores import is_first, load_pictures
from dpmrecon.output.weighting import weighting_of
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.simulate import simulate, truth_path

from ..data.kinds import known_patient
from ..data.kspace import LARGEST_ACCELERATION
from .metrics import Moments, scan_factor
from .undersampling import sampling_mask, undersampled, with_maps

CPU = torch.device("cpu")


@dataclass
class ReferenceSlice:
    """A slice or a volume to undersample, and what its reconstructions are scored against.

    data: its k-space, fully sampled or of R about 2; truth: magnitude (rows, cols) float32; mask: bool, where to score;
    coil_images: without noise, (n_coils, rows, cols) complex64, None where not known; header: of a measured scan, whose
    truth lies on the recon space, else None; content: a digest of what was measured and is scored, empty where scan and
    number tell it; subject: whose it is, empty where nothing but the scan tells it. Arrays of a volume have partitions
    first.
    """

    scan: str
    number: int
    contrast: str
    data: Slice
    truth: np.ndarray
    mask: np.ndarray
    coil_images: torch.Tensor | None = None
    header: Any = None
    content: str = ""
    subject: str = ""

    @property
    def key(self) -> dict[str, Any]:
        """What tells its scores from those of others. Files of one name differ in content, and so do a slice's
        b-values, echoes and repetitions."""
        return {"scan": self.scan, "slice": self.number} | ({"content": self.content} if self.content else {})

    @cached_property
    def digest(self) -> str:
        """Of its k-space, and of what its reconstructions are scored against, and where."""
        return digest_of(self.data.kspace.cpu().numpy(), self.truth, self.mask)

    @property
    def place(self) -> tuple[str, int]:
        """Scan and number."""
        return self.scan, self.number

    @property
    def is_volume(self) -> bool:
        return isinstance(self.data, Volume)

    def picture(self, image: torch.Tensor) -> np.ndarray:
        """Magnitude of a reconstruction on the truth's grid."""
        return (image if self.header is None else to_recon_space(image, self.header)).abs().cpu().numpy()


def digest_of(*arrays: np.ndarray) -> str:
    """SHA-256 of values, shapes and types, hex."""
    found = sha256()
    for array in arrays:
        found.update(f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def standard_of_care(full: ReferenceSlice, acceleration: int, calibration_lines: int) -> ReferenceSlice:
    """The slice as a scan with a low R has it: its CG-SENSE image is the reference, and the noise-free one is lost."""
    kind = "caipirinha" if full.is_volume else "regular"
    mask = sampling_mask(kind, full.data.mask, acceleration, calibration_lines, 0)
    data = undersampled(full.data, mask, acceleration, calibration_lines)
    mapped = with_maps(data, CPU, contrast=full.contrast)
    truth = full.picture(mapped.model.combined(mapped.conventional))
    return replace(full, data=data, truth=truth, coil_images=None)


def simulated(
    settings: SimulationSettings, kind: str = "truth", **how: Any
) -> tuple[list[Slice | LostSlice], np.ndarray]:
    """What comes of a simulated scan, taken as `slices` does, and its truth. kind: see `simulate`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scan.h5")
        simulate(path, settings)
        with open_scan(path) as scan:
            return list(slices(scan.acquisitions(), scan.header, **how)), np.load(truth_path(path, kind))


def scan_names(paths: Sequence[Path]) -> list[str]:
    """A name for each scan: its file's, with the folders before it where several files share one."""
    often = Counter(path.stem for path in paths)
    return [path.stem if often[path.stem] == 1 else path.with_suffix("").as_posix() for path in paths]


def measured_slices(
    path: Path, truth_file: Path | None = None, mask_file: Path | None = None, contrast: str | None = None
) -> list[ReferenceSlice]:
    """The slices, or the volume, of an ISMRMRD scan of at most LARGEST_ACCELERATION.

    truth_file, mask_file: .npy (slices or partitions, rows, cols) on the recon space; the truth is taken to the scan's
    scale by one factor, and is that of the first echo or b-value: others are left out then. Without it, the coil
    combination of the full data is the truth, or the CG-SENSE image of accelerated ones and of shots with a phase each.
    contrast: None takes it from the protocol's name. Raises BadInputError for one that cannot serve.
    """
    found: list[ReferenceSlice] = []
    with open_scan(path) as scan:
        shape = recon_shape(scan.header)
        truth, mask = (None if file is None else load_pictures(file, shape) for file in (truth_file, mask_file))
        scored = [None if array is None else sha256(array.tobytes()).hexdigest() for array in (truth, mask)]
        contrast = contrast or contrast_label(scan.header)
        if contrast is None:
            raise BadInputError(f"{path}: the protocol names no known contrast: give it as --contrast")
        receiving = Receiving.of(Options(), scan.header)
        weighting = None if truth is None else weighting_of(scan.header)
        first = first_slice(scan.header, {key.slice for key in scan.keys(combine_averages=True)})
        for data in slices(scan.acquisitions(), scan.header, combine_averages=True, receiving=receiving):
            number, place = data.key.slice, data.key.slice - first
            if isinstance(data, LostSlice):
                raise BadInputError(f"{path}: slice {number}: {data.reason}; give a complete scan")
            if data.others:
                raise BadInputError(
                    f"{path}: slice {number} has {1 + len(data.others)} averages with a phase each, which are not "
                    "undersampled here: give a scan of one average"
                )
            if data.acceleration > LARGEST_ACCELERATION:
                raise BadInputError(
                    f"{path} is accelerated R = {data.acceleration:g}: a scan with R of at most "
                    f"{LARGEST_ACCELERATION:g} is needed, to be undersampled further"
                )
            if truth is not None and not is_first(data.key, weighting):
                continue
            if truth is not None and not 0 <= place < len(truth):
                raise BadInputError(
                    f"{truth_file} holds {len(truth)} slices from {first} on and the scan has a slice {number}"
                )
            where = np.ones(shape, bool) if mask is None else mask[place if 0 <= place < len(mask) else 0] > 0
            here = ReferenceSlice(path.stem, number, contrast, data, np.empty(0), where, header=scan.header)
            here.subject = known_patient(scan.header) or ""
            here.content = key_of(scan.digest, data.key.seed_key, scored)
            mapped = with_maps(data, CPU, contrast=contrast)
            full = bool(data.mask.amax(-1).all()) and data.shots is None
            here.truth = here.picture(mapped.model.combined(mapped.zero_filled if full else mapped.conventional))
            found.append(here)
    if truth is not None:
        given = [truth[here.number - first].astype(np.float32) for here in found]
        factor = scan_factor([Moments.of(picture, here.truth, here.mask) for picture, here in zip(given, found)])
        for picture, here in zip(given, found):
            here.truth = np.float32(factor) * picture
    return found
