"""Training examples from prepared volumes: slices in up to three directions, crops of them at random pixel sizes; their
phase is measured or drawn, mostly without its smooth part.

Pixel sizes. A volume at 1 mm becomes one of up to 2 mm: the centre of k-space is kept, as a scanner would measure it;
clinical slices of .5 to .9 mm likewise, from up to 448 pixels. Coarser scans are rare in stroke imaging; finer voxels
than the volume's would be blurred. In a share of the slices one axis is 1.5 to 3.5 times coarser: as in planes through
3D SWI (.6 x .6 x 2 mm). What counts is the ratio: a label map's 1 mm stands for .6 as well.

Scale. A reconstruction of slices scales each by its own 99th percentile; one of a volume scales all planes by the
volume's: a share of the slices from volumes has theirs. Those at the edges of the head are dim, bright or empty.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from dpmrecon.errors import BadInputError, first_line
from dpmrecon.files import from_json
from dpmrecon.physics.fourier import crop_or_pad, to_image, to_kspace
from dpmrecon.physics.phase import smooth_phase
from dpmrecon.physics.scale import image_scale

from .painted_foci import with_foci

# share of the magnitude images whose drawn phase jumps between tissues too
TISSUE_PHASE = 0.5
DEMODULATED = 0.8  # share without smooth phase; the rest are as where it could not be told
LEFT_PHASE = 0.25  # rad, the largest standard deviation of what is left of it
# shares of the slices of volumes: with the volume's scale, thin, oblong, with air around
VOLUME_SCALE, THIN, OBLONG, AIR = 0.4, 0.5, 0.35, 0.5
THICKEST_MM = 5.0  # of a slice that is more than one voxel thick
FADING = 0.7  # share of the planes whose lower end fades, as the neck does
FADE = 0.2  # of its extent at most; cut off, it would ring
COARSEST_MM, OBLONG_RATIO, MOST_AIR = 2.0, (1.5, 3.5), 1.35
# share of all slices that keep their pixels
NATIVE = 0.3
# of the scale at most: a nearly empty slice has air's scale
BRIGHTEST = 8.0
# share of the crop that a slice fills at least; else air
SMALLEST = 0.7


class Cut(NamedTuple):
    """A slice of a volume: image (rows, cols) float32, or complex64 where the phase was measured; pixel_mm: along rows
    and columns; from_3d: of a volume that is cut in three directions; scaled: by the volume's factor, to be kept."""

    image: torch.Tensor
    pixel_mm: tuple[float, ...]
    from_3d: bool
    scaled: bool


class Example(NamedTuple):
    """image: (crop, crop) complex64; foci: (crop, crop) float32, 1 where a focus was painted; contrast: its label."""

    image: torch.Tensor
    foci: torch.Tensor
    contrast: str


class PreparedSlices:
    """Slices of memory-mapped prepared volumes; `real_fraction` of the examples are real images, the rest simulated.

    patterns: of the names of the volumes to take (`patient0[13]_*_FLAIR`). Raises BadInputError where none fits.
    """

    def __init__(self, folder: Path, real_fraction: float, patterns: Sequence[str] = ("*",)):
        self.given = folder, real_fraction, patterns
        found = read_manifest(folder)["volumes"]
        self.volumes = [v for v in found if any(fnmatch(v["file"].removesuffix(".npy"), p) for p in patterns)]
        if not self.volumes:
            names = ", ".join(v["file"].removesuffix(".npy") for v in found[:4])
            raise BadInputError(f"none of the volumes in {folder} ({names} ...) is named like {', '.join(patterns)}")
        self.data = [_open(folder, v) for v in self.volumes]
        # contrasts are equally likely, then directions; not slices, of which fine volumes have many
        kinds = [("simulated" if v["simulated"] else "real", v["contrast"]) for v in self.volumes]
        totals: dict = {}
        for kind, volume in zip(kinds, self.volumes):
            totals[kind] = totals.get(kind, 0) + len(volume["spans"])
        share = {"real": real_fraction, "simulated": 1 - real_fraction}
        contrasts = {name: len({c for k, c in totals if k == name}) for name in share}
        self.weights = torch.tensor(
            [len(v["spans"]) / totals[k] * share[k[0]] / contrasts[k[0]] for k, v in zip(kinds, self.volumes)],
            dtype=torch.float64,
        )
        if not self.weights.any():
            raise BadInputError(
                f"real_fraction = {real_fraction:g} takes none of the {len(self.volumes)} volumes, which are "
                f"{kinds[0][0]}: change it in the recipe, or name others (volumes)"
            )

    def __reduce__(self):
        return type(self), self.given  # each process maps the files: a map would be copied

    @property
    def digest(self) -> str:
        """See `digest_of`."""
        return digest_of(self.volumes)

    def example(self, crop: int, generator: torch.Generator) -> Example:
        """A crop of a slice, scaled by the rule, with the foci that were painted into it."""

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        index = int(torch.multinomial(self.weights, 1, generator=generator))
        volume = self.volumes[index]
        cut = _cut(self.data[index], volume, generator)
        image, measured = cut.image, cut.image.is_complex()
        if uniform(0, 1) < 0.25:
            image = affine(image, uniform(-0.3, 0.3), uniform(0.85, 1.2), uniform(0.85, 1.2))
        if uniform(0, 1) < 0.25:
            power = uniform(0.8, 1.25)
            image = torch.polar(image.abs() ** power, image.angle()) if measured else image.clamp(0) ** power
        if not measured and uniform(0, 1) < TISSUE_PHASE:
            image = image * tissue_phase(image / (image_scale(image) or 1.0), generator)
        image, foci = with_foci(coarser(image, _matrix(cut, crop, generator)), volume["contrast"], generator)
        if cut.from_3d and uniform(0, 1) < AIR:
            for axis, size in enumerate(image.shape):
                size = round(size * uniform(1, MOST_AIR))
                image, foci = crop_or_pad(image, size, axis), crop_or_pad(foci, size, axis)
        demodulated = uniform(0, 1) < DEMODULATED
        if demodulated:
            image = image * smooth_phase(image.to(torch.complex64)).conj()
        scale = 1.0 if cut.scaled else max(image_scale(image), float(image.abs().max()) / BRIGHTEST) or 1.0
        image = image / (scale * math.exp(uniform(-0.1, 0.1)))
        for axis, size in enumerate(image.shape):  # a small matrix gets air around it; its scale is its own
            size = max(crop, size)
            image, foci = crop_or_pad(image, size, axis), crop_or_pad(foci, size, axis)
        for _ in range(8):  # a crop with some head in it
            top, left = (int(uniform(0, size - crop + 1)) for size in image.shape)
            here = slice(top, top + crop), slice(left, left + crop)
            piece = image[here]
            if (piece.abs() > 0.1).float().mean() > 0.15:
                break
        turns = int(uniform(0, 8))
        piece, foci = (torch.rot90(part, turns % 4, (0, 1)) for part in (piece, foci[here]))
        if turns > 3:
            piece, foci = piece.flip(0), foci.flip(0)
        if demodulated:
            phase = smooth_field(piece.shape, uniform(0, LEFT_PHASE), generator)
            piece = piece * torch.polar(torch.ones_like(phase), phase)
        else:
            piece = piece * random_phase(piece.shape, crop / max(image.shape), generator)
        return Example(piece, foci, volume["contrast"])


def _cut(data: np.ndarray, volume: dict, generator: torch.Generator) -> Cut:
    """A slice in a direction that the volume allows, sometimes several voxels thick."""
    draw = torch.rand(6, generator=generator).tolist()
    spans, voxel = volume["spans"], volume["voxel_mm"]
    from_3d = len(spans) == 3
    axis = int(draw[0] * len(spans))
    scaled = from_3d and draw[1] < VOLUME_SCALE
    first, end = (0, data.shape[axis]) if scaled else spans[axis]
    number = first + int(draw[2] * (end - first))
    count = 1
    if from_3d and draw[3] > THIN:
        count += int((draw[3] - THIN) / (1 - THIN) * (THICKEST_MM / voxel[axis]))
    thick = data[(*[slice(None)] * axis, slice(number, number + count))]
    image = torch.from_numpy(np.asarray(thick, dtype=np.float32).mean(axis))
    if axis > 0 and draw[5] < FADING:
        rows = 2 + int(draw[5] / FADING * FADE * len(image))
        ramp = torch.sin(math.pi / 2 * (torch.arange(rows) + 0.5) / rows).square()
        image[:rows] *= ramp.reshape(-1, *[1] * (image.ndim - 1))
    if image.ndim == 3:
        image = torch.view_as_complex(image)
        image = image if draw[4] < 0.5 else image.conj().resolve_conj()  # vendors' signs differ
    return Cut(image, tuple(np.delete(voxel, axis).tolist()), from_3d, scaled)


def _matrix(cut: Cut, crop: int, generator: torch.Generator) -> tuple[int, ...]:
    """The matrix at a coarser pixel, square or oblong (see the file's head); the same one at times."""
    draw = torch.rand(5, generator=generator).tolist()
    shape, pixels = cut.image.shape, np.array(cut.pixel_mm)
    if cut.from_3d and draw[0] < OBLONG:
        factors = np.exp(draw[1] * np.log(1.25)) * np.ones(2)
        low, high = np.log(OBLONG_RATIO)
        factors[int(2 * draw[2])] *= np.exp(low + draw[3] * (high - low))
        return tuple(round(size / factor) for size, factor in zip(shape, factors))
    coarsest = min(COARSEST_MM / pixels.max(), min(shape) / (SMALLEST * crop))
    if draw[0] > 1 - NATIVE or coarsest <= 1:
        return tuple(shape)
    pixel = pixels.max() * np.exp(draw[1] * np.log(coarsest)) * (0.9 + 0.2 * np.array(draw[2:4]))
    return tuple(min(round(size * old / new), size) for size, old, new in zip(shape, pixels, pixel))


def coarser(image: torch.Tensor, matrix: tuple[int, ...]) -> torch.Tensor:
    """The image on a smaller matrix, as an MRI scanner would make it: the centre of k-space is kept."""
    if tuple(image.shape) == matrix:
        return image
    kspace = to_kspace(image)
    for axis, size in enumerate(matrix):
        kspace = crop_or_pad(kspace, size, axis)
    # the transform is orthonormal: a pixel's value falls with its size otherwise
    small = to_image(kspace) * math.sqrt(math.prod(matrix) / math.prod(image.shape))
    return small if image.is_complex() else small.real


def _open(folder: Path, volume: dict) -> np.ndarray:
    """A volume's memory map. Raises BadInputError where the file is not what the manifest says."""
    file = folder / volume["file"]
    try:
        data = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise BadInputError(f"{file} cannot be read ({first_line(error)}): run `dpmtrain prepare` again") from error
    if "spans" not in volume:
        raise BadInputError(f"{folder} was prepared by an earlier version: run `dpmtrain prepare` again")
    if list(data.shape[:3]) != list(volume["shape"]):
        raise BadInputError(
            f"{file} has the shape {data.shape} where the manifest says {volume['shape']}: run `dpmtrain prepare` again"
        )
    return data


def affine(image: torch.Tensor, angle: float, scale_rows: float, scale_cols: float) -> torch.Tensor:
    """Rotate by `angle` (rad) and stretch a magnitude or complex image; bicubic, the head's centre stays."""
    cos, sin = math.cos(angle), math.sin(angle)
    rows, cols = image.shape
    theta = torch.tensor([[cos * scale_cols, -sin * rows / cols, 0.0], [sin * cols / rows, cos * scale_rows, 0.0]])
    grid = F.affine_grid(theta[None], [1, 1, rows, cols], align_corners=False)
    channels = torch.view_as_real(image).permute(2, 0, 1) if image.is_complex() else image[None]
    moved = F.grid_sample(channels[None], grid, mode="bicubic", align_corners=False)[0]
    return torch.complex(*moved) if image.is_complex() else moved[0].clamp(min=0)


def tissue_phase(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """exp(i phi), phi that follows the tissues as in a gradient echo: fat's chemical shift, bone and air, vessels.

    image: magnitude (rows, cols) at scale 1. Where none was measured the brightest and the darkest tissue differ from
    the rest by random angles. A few spots, two to six pixels wide, differ by others.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    phase = torch.zeros_like(image)
    for low, high in ((0.5, 1.1), (0.05, 0.35)):
        angle = 1.2 * float(torch.randn((), generator=generator))
        phase += angle * torch.sigmoid((image - uniform(low, high)) / uniform(0.02, 0.15))
    width = uniform(2, 6)
    spots = torch.randn(1, 1, *(math.ceil(size / width) for size in image.shape), generator=generator)
    spots = uniform(0, 0.6) * spots * (spots.abs() > uniform(1.5, 3))
    phase += F.interpolate(spots, tuple(image.shape), mode="bicubic", align_corners=True)[0, 0]
    return torch.polar(torch.ones_like(phase), phase)


def random_phase(shape: Sequence[int], extent: float, generator: torch.Generator) -> torch.Tensor:
    """exp(i phi), phi smooth: a constant, a ramp and a few bumps, as receivers and fields make it.

    shape: of the crop; extent: its side as a fraction of the slice's, by which the phase's slopes shrink.
    """
    phase = smooth_field(shape, 1.5 * extent * float(torch.rand((), generator=generator)), generator)
    start, rows, cols = torch.rand(3, generator=generator) * 6.0
    rows, cols = (rows - 3) * extent, (cols - 3) * extent
    phase = (
        phase
        + start * math.pi / 3
        + rows * torch.linspace(0, 1, shape[0])[:, None]
        + cols * torch.linspace(0, 1, shape[1])
    )
    return torch.polar(torch.ones_like(phase), phase)


def smooth_field(shape: Sequence[int], amplitude: float, generator: torch.Generator) -> torch.Tensor:
    """A few bumps, normally distributed with the standard deviation `amplitude` at three to six points a side."""
    points = int(torch.randint(3, 7, (1,), generator=generator))
    bumps = torch.randn(1, 1, points, points, generator=generator) * amplitude
    return F.interpolate(bumps, tuple(shape), mode="bicubic", align_corners=True)[0, 0]


def digest_of(volumes: Sequence[dict]) -> str:
    """Of volumes' entries in the manifest, hex: other names, patients, sizes or contents are other data."""
    return hashlib.sha256(json.dumps(volumes, sort_keys=True).encode()).hexdigest()


def read_manifest(data: Path) -> dict:
    """Raises BadInputError where `data` was not written by `prepare`."""
    file = data / "manifest.json"
    if not file.is_file():
        raise BadInputError(f"{data} has no manifest.json: run `dpmtrain prepare` first")
    try:
        return from_json(file.read_text())
    except ValueError as error:
        raise BadInputError(f"{file} is damaged ({error}): run `dpmtrain prepare` again") from error
