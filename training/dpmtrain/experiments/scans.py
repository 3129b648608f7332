"""A hospital's scans, simulated: FLAIR slices of prepared volumes, R = 3 and noisy, and what is known of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from dpmrecon.physics.scale import image_scale
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.recon.types import MappedSlice, Sampling
from tqdm import tqdm

from ..data.dataset import PreparedSlices
from ..evaluate.methods import reconstructed
from ..evaluate.plan import Condition
from ..evaluate.references import CPU
from ..evaluate.scoring import Undersampled
from ..evaluate.validation import at_pixel_size, full_slice, subject_slices
from ..train.keeper import read_tensors, write_state
from .noise_aware import Modes, modes_of

CONTRAST = "flair"
MATRIX, PIXEL_MM = (128, 128), 1.8  # as in evaluate/lesions.py
SIGMA_N = 0.035  # of the scale, per real channel
TRAINED_AT, TESTED_AT = Condition("regular", 3), Condition("regular", 4)
VOLUMES = ["patient0[134]_*_FLAIR", "py_synthsr", "torchio_fernando", "training_seg_0[3-9]_flair_1"]
SLICES = 6  # of each volume
LABEL_MAP, PATIENT = "training_seg_02", "patient09"  # held out
OWN_PIXEL_MM = {LABEL_MAP: 1.0, PATIENT: 0.9}


@dataclass(frozen=True)
class Scans:
    """clean, sense, drawn: (slices, rows, cols) complex64 at scale 1, each a way to have images: without noise and
    fully sampled, the CG-SENSE image that `dpmtrain kit` trains on, and a posterior sample of the start; modes: of the
    same slices, for the noise-aware loss."""

    clean: torch.Tensor
    sense: torch.Tensor
    drawn: torch.Tensor
    modes: Modes


def measured(magnitude: torch.Tensor, scan: str, number: int, condition: Condition) -> Undersampled:
    return Undersampled(full_slice(scan, number, CONTRAST, magnitude, SIGMA_N), condition, CPU)


def training_slices(data: Path) -> Iterator[Undersampled]:
    """Axial slices, those with the most of the head. Raises BadInputError where no volume is there."""
    found = PreparedSlices(data, 1.0, VOLUMES)
    for volume, array in zip(found.volumes, found.data):
        first, end = volume["spans"][0]
        for number in np.linspace(first + 0.3 * (end - first), first + 0.85 * (end - first), SLICES).astype(int):
            image = at_pixel_size(np.asarray(array[number], np.float32), volume["voxel_mm"][1], PIXEL_MM, MATRIX)
            yield measured(image, volume["file"], int(number), TRAINED_AT)


def held_out(images: Path, n_slices: int) -> list[Undersampled]:
    """FLAIR slices of PATIENT (each volume) and of LABEL_MAP."""
    found = []
    for subject, pixel in OWN_PIXEL_MM.items():
        for full in subject_slices(images, subject, n_slices):
            if full.contrast == CONTRAST:
                image = at_pixel_size(full.truth, pixel, PIXEL_MM, MATRIX)
                found.append(measured(image, full.scan, full.number, TESTED_AT))
    return found


def clean_image(case: Undersampled, mapped: MappedSlice) -> torch.Tensor:
    """The truth with the phase that the coil maps leave, at scale 1."""
    assert case.full.coil_images is not None
    image = (mapped.model.coil_maps.conj() * case.full.coil_images).sum(0)
    return image / image_scale(image)


def scans(data: Path, start: Checkpoint, sampling: Sampling, file: Path) -> Scans:
    """All training slices, in `file` if they are there. sampling: of the posterior samples."""
    if not file.exists():
        parts: dict[str, list[torch.Tensor]] = {}
        for case in tqdm(training_slices(data), desc="scans", mininterval=10):
            mapped = case.mapped
            if mapped.n_sets > 1:
                continue
            modes = modes_of(mapped.model, mapped.zero_filled / mapped.scale, mapped.data.sigma_n / mapped.scale)
            drawn = reconstructed(mapped, start, CONTRAST, sampling).image
            sense = mapped.conventional
            kinds = {"clean": clean_image(case, mapped), "sense": sense / image_scale(sense)}
            kinds |= {"drawn": drawn / mapped.scale, **{name: part[0] for name, part in vars(modes).items()}}
            for name, part in kinds.items():
                parts.setdefault(name, []).append(part)
        write_state(file, {name: torch.stack(several) for name, several in parts.items()})
    found = read_tensors(file, {"clean", "sense", "drawn", "vectors", "variance", "image"})
    return Scans(
        found["clean"], found["sense"], found["drawn"], Modes(found["vectors"], found["variance"], found["image"])
    )
