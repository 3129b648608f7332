"""A hospital's scans, simulated: FLAIR slices of prepared volumes, and what is known of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from dpmrecon.options import Options
from dpmrecon.physics.scale import image_scale
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint
from dpmrecon.recon.plan import sampling_of
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
TESTED_AT = 4  # R
VOLUMES = ["patient0[134]_*_FLAIR", "py_synthsr", "torchio_fernando", "training_seg_0[3-9]_flair_1"]
SLICES = 6  # of each volume
LABEL_MAP, PATIENT = "training_seg_02", "patient09"  # held out
OWN_PIXEL_MM = {LABEL_MAP: 1.0, PATIENT: 0.9}


class Site(NamedTuple):
    """How a hospital scans. R: regular; sigma_n: of the noise, over the scale, per real channel; volumes: patterns."""

    R: int = 3
    sigma_n: float = 0.035
    volumes: tuple[str, ...] = tuple(VOLUMES)

    def __str__(self) -> str:
        return f"R{self.R}_{self.sigma_n:g}_{len(self.volumes)}"


@dataclass(frozen=True)
class Scans:
    """A site's scans, each kind of image made when it is first asked for, and kept in `folder`.

    start: what the posterior images and samples are of, by the settings of the model that ships. All are (slices, rows,
    cols) complex64 at scale 1.
    """

    data: Path
    site: Site
    start: Checkpoint
    folder: Path

    @cached_property
    def clean(self) -> torch.Tensor:
        """Fully sampled and without noise, which nobody has."""
        return self._kept("clean", clean_image)

    @cached_property
    def sense(self) -> torch.Tensor:
        """CG-SENSE images."""
        return self._kept("sense", lambda case, mapped: mapped.conventional / image_scale(mapped.conventional))

    @cached_property
    def drawn(self) -> torch.Tensor:
        """A posterior sample each."""
        how = replace(self._how(Options(samples=1, mode="uncertainty")), image=None)
        return self._kept("drawn", self._posterior(how))

    @cached_property
    def mean(self) -> torch.Tensor:
        """The images that the product makes by default, means of cooled samples: `dpmtrain kit` trains on them."""
        return self._kept("mean", self._posterior(self._how(Options())))

    @cached_property
    def modes(self) -> Modes:
        """For the noise-aware loss."""
        several = self._states("modes", _modes)
        return Modes(several["vectors"], several["variance"], several["image"])

    def _how(self, options: Options) -> Sampling:
        return sampling_of(options, load_checkpoint(None), CPU, CONTRAST, self.site.R)

    def _posterior(self, how: Sampling) -> "Make":
        return lambda _, mapped: reconstructed(mapped, self.start, CONTRAST, how).image / mapped.scale

    def _kept(self, name: str, make: "Make") -> torch.Tensor:
        return self._states(name, lambda case, mapped: {"image": make(case, mapped)})["image"]

    def _states(self, name: str, make: Callable[[Undersampled, MappedSlice], dict[str, torch.Tensor]]) -> dict:
        file = self.folder / f"{name}.pt"
        if not file.exists():
            cases = tqdm(training_slices(self.data, self.site), desc=name, mininterval=10)
            found = [make(case, case.mapped) for case in cases if case.mapped.n_sets == 1]
            write_state(file, {key: torch.stack([each[key] for each in found]) for key in found[0]})
        return read_tensors(file, {"image"})


Make = Callable[[Undersampled, MappedSlice], torch.Tensor]


def _modes(case: Undersampled, mapped: MappedSlice) -> dict[str, torch.Tensor]:
    found = modes_of(mapped.model, mapped.zero_filled / mapped.scale, mapped.data.sigma_n / mapped.scale)
    return {name: part[0] for name, part in vars(found).items()}


def measured(magnitude: torch.Tensor, scan: str, number: int, site: Site) -> Undersampled:
    return Undersampled(full_slice(scan, number, CONTRAST, magnitude, site.sigma_n), Condition("regular", site.R), CPU)


def training_slices(data: Path, site: Site) -> Iterator[Undersampled]:
    """Axial slices, those with the most of the head. Raises BadInputError where no volume is there."""
    found = PreparedSlices(data, 1.0, list(site.volumes))
    for volume, array in zip(found.volumes, found.data):
        first, end = volume["spans"][0]
        for number in np.linspace(first + 0.3 * (end - first), first + 0.85 * (end - first), SLICES).astype(int):
            image = at_pixel_size(np.asarray(array[number], np.float32), volume["voxel_mm"][1], PIXEL_MM, MATRIX)
            yield measured(image, volume["file"], int(number), site)


def held_out(
    images: Path, n_slices: int, contrast: str = CONTRAST, sigma_n: float | None = None, scan_R: int = 1
) -> list[Undersampled]:
    """Slices of PATIENT (each volume) and of LABEL_MAP at R = TESTED_AT, which are those of scans with R = scan_R,
    undersampled further, where that divides it. sigma_n: of the noise, over the scale; None: as validation slices have.
    """
    found = []
    condition = Condition("regular", TESTED_AT, scan_R=scan_R if TESTED_AT % scan_R == 0 else 1)
    for subject, pixel in OWN_PIXEL_MM.items():
        for full in subject_slices(images, subject, n_slices):
            if full.contrast == contrast:
                image = at_pixel_size(full.truth, pixel, PIXEL_MM, MATRIX)
                found.append(Undersampled(full_slice(full.scan, full.number, contrast, image, sigma_n), condition, CPU))
    return found


def clean_image(case: Undersampled, mapped: MappedSlice) -> torch.Tensor:
    """The truth with the phase that the coil maps leave, at scale 1."""
    assert case.full.coil_images is not None
    image = (mapped.model.coil_maps.conj() * case.full.coil_images).sum(0)
    return image / image_scale(image)
