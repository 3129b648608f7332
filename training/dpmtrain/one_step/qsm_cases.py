"""Multi-echo gradient echoes of a label map whose susceptibility is known, as 3D scans bring them.

Sources are veins, iron in the deep grey matter and a microbleed, all inside the brain: there is no field of air and
bone, and no background to take off.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from dpmrecon.data import Volume
from dpmrecon.errors import BadInputError, DpmreconError
from dpmrecon.physics.fourier import crop_or_pad, to_image, to_kspace
from dpmrecon.physics.scale import image_scale
from dpmrecon.physics.volume_maps import estimate_volume_maps
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.recon.prepare import SWI_CROP
from dpmrecon.recon.types import MappedVolume
from dpmrecon.recon.volumes import mapped_volume
from dpmrecon.simulation.slices import coil_maps
from scipy import ndimage

from ..data.labelmaps import TISSUE_OF_LABEL, Sequence, head_labels, signal
from ..data.veins import BLEED_PPM, PALLIDUM_PPM, VEIN_PPM, WHITE_MATTER, dephasing, field_phase, veins
from ..evaluate.undersampling import volume_mask
from ..evaluate.validation_volumes import calibration_block, volume_data

AXES = (0, 1, 2)
ECHOES_MS = tuple(4.0 * number for number in range(1, 9))
COARSER, MARGIN, BESIDE = 2, 20, 16  # mm: a voxel's side; around the nuclei; beside the slab
R, N_COILS = 8, 8
FIRST_BLOCK, BLOCK = 24, 12  # calibration lines each way, of the first echo and the others
NOISE = 0.02  # per real channel, of the first echo's scale
BLEED_MM = 3.0  # radius
# by FreeSurfer number; IRON: over the pallidum's (Hallgren and Sourander, 1958)
NUCLEI = {"thalamus": (10, 49), "caudate": (11, 50), "putamen": (12, 51), "pallidum": (13, 52)}
IRON = {"thalamus": 4.76 / 21.3, "caudate": 9.28 / 21.3, "putamen": 13.32 / 21.3, "pallidum": 1.0}


@dataclass(frozen=True)
class Head:
    """Axial partitions of cubic voxels of COARSER mm, the main field along them, (partitions, rows, cols).

    echoes: (n_echoes, ...) complex64 at scale 1, without noise; ppm: float32, less that of tissue; brain: bool, without
    its outermost voxels; places: bool, by name: nuclei with their side, vein and bleed.
    """

    echoes: torch.Tensor
    ppm: np.ndarray
    brain: np.ndarray
    places: dict[str, np.ndarray]


def head(path: Path, seed: int) -> Head:
    """Of a label map. Raises BadInputError for what is no head's."""
    labels = _cut(head_labels(path)[::-1, ::-1])
    rng = np.random.default_rng(seed)
    brain = (labels > 0) & (labels < 500)
    fraction = veins(np.ascontiguousarray(labels), rng) * brain
    bleed = microbleed(labels)
    ppm = np.zeros(labels.shape, np.float32)
    for name, numbers in NUCLEI.items():
        ppm[np.isin(labels, numbers)] = PALLIDUM_PPM * IRON[name]
    ppm += fraction * (VEIN_PPM - ppm)
    ppm += bleed * (BLEED_PPM - ppm)
    padded = field_phase(np.pad(ppm, BESIDE), 1.0)
    phase = padded[tuple(slice(BESIDE, -BESIDE) for _ in AXES)]  # at 1 ms
    profile = slab_profile(labels.shape[2])
    echoes = torch.stack(
        [_coarse(torch.from_numpy(profile * _echo(labels, fraction, bleed, phase, te))) for te in ECHOES_MS]
    )
    places = {
        f"{name}, {side}": labels == number
        for name, numbers in NUCLEI.items()
        for side, number in zip(("left", "right"), numbers)
    }
    places |= {"vein": fraction > 0.3, "bleed": bleed > 0.5}
    inside = ndimage.binary_erosion(_every(brain & (profile == 1)), iterations=2)
    truth = _coarse(torch.from_numpy(ppm).to(torch.complex64)).real.numpy()
    return Head(
        echoes / image_scale(echoes[0].abs()), truth, inside, {k: _every(v) & inside for k, v in places.items()}
    )


def slab_profile(size: int) -> np.ndarray:
    """(size,) float32, what a slab's excitation leaves: its ends fall to 0 over half of MARGIN."""
    from_end = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    return np.sin(np.pi / 2 * (2 * from_end / MARGIN).clip(max=1)).astype(np.float32) ** 2


def microbleed(labels: np.ndarray) -> np.ndarray:
    """The share of each voxel, float32: a ball where white matter is thickest."""
    white = np.pad(np.isin(labels, WHITE_MATTER), 1)  # the slab ends where it is cut
    depth = ndimage.distance_transform_edt(white)[1:-1, 1:-1, 1:-1]
    centre = np.unravel_index(int(depth.argmax()), labels.shape)
    away = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(np.ogrid[tuple(map(slice, labels.shape))], centre)))
    return np.clip(BLEED_MM - away + 0.5, 0, 1).astype(np.float32)


def _echo(labels: np.ndarray, fraction: np.ndarray, bleed: np.ndarray, phase: np.ndarray, te: float) -> np.ndarray:
    """Spoiled gradient echo at 1 mm, complex64; phase: at 1 ms."""
    sequence, rng = (
        Sequence("swi", tr=45, te=te, flip_deg=15),
        np.random.default_rng(0),
    )  # the same tissue in all echoes
    table = np.zeros(int(labels.max()) + 1, np.float32)
    for label in np.unique(labels[labels > 0]):
        table[label] = signal(TISSUE_OF_LABEL.get(int(label), "grey"), sequence, rng)
    volume = table[labels]
    for share, tissue in ((fraction, "vein"), (bleed, "bleed")):
        volume += share * (signal(tissue, sequence, rng) - volume)
    return (volume * dephasing(phase * te) * np.exp(1j * phase * te)).astype(np.complex64)


def _cut(labels: np.ndarray) -> np.ndarray:
    """A slab around the nuclei, all sides multiples of twice COARSER. Raises BadInputError where there are none."""
    span = np.flatnonzero(np.isin(labels, sum(NUCLEI.values(), ())).any((0, 1)))
    if not len(span):
        raise BadInputError(
            "the label map has no deep grey matter: give one in FreeSurfer's numbers (10 to 13, 49 to 52)"
        )
    labels = labels[:, :, max(span[0] - MARGIN, 0) : span[-1] + 1 + MARGIN]
    return np.pad(labels, [(0, -size % (2 * COARSER)) for size in labels.shape])


def _coarse(volume: torch.Tensor) -> torch.Tensor:
    """(cols, rows, partitions) complex64 at 1 mm, by the centre of its k-space, as (partitions, rows, cols)."""
    kspace = to_kspace(volume.permute(2, 1, 0), AXES)
    for axis, size in enumerate(kspace.shape):
        kspace = crop_or_pad(kspace, size // COARSER, axis)
    return to_image(kspace, AXES) / COARSER**1.5


def _every(mask: np.ndarray) -> np.ndarray:
    """The same grid of a mask: its voxels in the middle of the coarse ones."""
    return mask[::COARSER, ::COARSER, ::COARSER].transpose(2, 1, 0)


@dataclass(frozen=True)
class Scan:
    """All echoes of a head, fully sampled and at R, with noise. The first one's coil maps are everyone's, so that the
    phase between echoes is kept."""

    head: Head

    @property
    def shape(self) -> tuple[int, int, int]:
        partitions, rows, cols = self.head.ppm.shape
        return partitions, rows, cols

    @cached_property
    def coils(self) -> torch.Tensor:
        """(n_coils, partitions, rows, cols) complex64."""
        axes = [COARSER * (np.arange(size) - size // 2) for size in self.shape]
        points = np.stack(np.meshgrid(*axes, indexing="ij")[::-1], -1).astype(np.float32)
        maps = torch.from_numpy(coil_maps(points, N_COILS))
        return maps / torch.linalg.vector_norm(maps, dim=0)

    @cached_property
    def maps(self) -> torch.Tensor:
        calibration = self._data(0, 1).calibration
        assert calibration is not None
        return estimate_volume_maps(calibration, self.shape, SWI_CROP)

    def mapped(self, echo: int, acceleration: int) -> MappedVolume:
        found = mapped_volume(self._data(echo, acceleration), self.maps.clone(), {})
        if not isinstance(found, MappedVolume):
            raise DpmreconError(f"echo {echo + 1} of the simulated scan is lost: {found.reason}")
        return found

    def _data(self, echo: int, acceleration: int) -> Volume:
        shape = (N_COILS, *self.shape)
        noise = NOISE * complex_noise(shape, torch.Generator().manual_seed(echo))
        full = torch.ones(self.shape)
        block = BLOCK if echo else FIRST_BLOCK
        mask = full if acceleration == 1 else volume_mask("poisson 3D", full, acceleration, block, echo)
        kspace = (to_kspace(self.coils * self.head.echoes[echo], (1, 2, 3)) + noise) * mask
        side = float(COARSER)
        return volume_data(kspace, mask, calibration_block(self.shape, block), NOISE, acceleration, (side, side, side))
