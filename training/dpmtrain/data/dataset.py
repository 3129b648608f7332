"""Training examples from prepared slices: crops at random pixel sizes, their phase measured or drawn, and mostly
without its smooth part."""

import json
import math
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from dpmrecon.errors import BadInputError, first_line
from dpmrecon.physics.fourier import crop_or_pad, to_image, to_kspace
from dpmrecon.physics.phase import smooth_phase
from dpmrecon.physics.scale import image_scale

# share of the magnitude images whose drawn phase jumps between tissues too
TISSUE_PHASE = 0.5
# share of the examples whose smooth phase is taken off as in a reconstruction; the rest keep any, so that the network
# stands an image whose phase could not be told. And the largest standard deviation of what is left of it, in radians
DEMODULATED, LEFT_PHASE = 0.8, 0.25


class PreparedSlices:
    """Memory-mapped prepared volumes; `real_fraction` of the examples are real images, the rest simulated.

    patterns: of the names of the volumes to take (`patient0[13]_*_FLAIR`). Raises BadInputError where none fits.
    """

    def __init__(self, folder: Path, real_fraction: float, patterns: Sequence[str] = ("*",)):
        found = read_manifest(folder)["volumes"]
        self.volumes = [v for v in found if any(fnmatch(v["file"].removesuffix(".npy"), p) for p in patterns)]
        if not self.volumes:
            names = ", ".join(v["file"].removesuffix(".npy") for v in found[:4])
            raise BadInputError(f"none of the volumes in {folder} ({names} ...) is named like {', '.join(patterns)}")
        self.data = [_open(folder, v) for v in self.volumes]
        # Real and simulated data have fixed shares; within each, contrasts are equally likely, then slices.
        kinds = [("simulated" if _is_simulated(v) else "real", v["contrast"]) for v in self.volumes]
        totals: dict = {}
        for kind, volume in zip(kinds, self.volumes):
            totals[kind] = totals.get(kind, 0) + volume["shape"][0]
        share = {"real": real_fraction, "simulated": 1 - real_fraction}
        contrasts = {name: len({c for k, c in totals if k == name}) for name in share}
        self.weights = torch.tensor(
            [v["shape"][0] / totals[k] * share[k[0]] / contrasts[k[0]] for k, v in zip(kinds, self.volumes)],
            dtype=torch.float64,
        )

    def example(self, crop: int, generator: torch.Generator) -> tuple[torch.Tensor, str]:
        """One (crop, crop) complex64 crop of a slice, scaled by the rule, and its contrast label."""

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        index = int(torch.multinomial(self.weights, 1, generator=generator))
        volume = self.volumes[index]
        chosen = int(uniform(0, volume["shape"][0]))
        # a magnitude, real and positive, or complex where the phase was measured
        image = torch.from_numpy(np.array(self.data[index][chosen], dtype=np.float32))
        measured = image.ndim == 3
        image = torch.view_as_complex(image) if measured else image
        if uniform(0, 1) < 0.25:
            image = affine(image, uniform(-0.3, 0.3), uniform(0.85, 1.2), uniform(0.85, 1.2))
        if uniform(0, 1) < 0.25:
            power = uniform(0.8, 1.25)
            image = torch.polar(image.abs() ** power, image.angle()) if image.is_complex() else image.clamp(0) ** power
        if not measured and uniform(0, 1) < TISSUE_PHASE:
            image = image * tissue_phase(image / image_scale(image), generator)
        # a coarser pixel, as an MRI scanner would make it: keep the centre of k-space
        coarsest = min(2.0 / volume["pixel_mm"], min(image.shape) / crop)
        if uniform(0, 1) < 0.6 and coarsest > 1:
            factor = math.exp(uniform(0, math.log(coarsest)))
            kspace = to_kspace(image)
            for axis, size in enumerate(image.shape):
                kspace = crop_or_pad(kspace, min(max(crop, round(size / factor / uniform(0.9, 1.1))), size), axis)
            coarse = to_image(kspace)
            image = coarse if image.is_complex() else coarse.real
        demodulated = uniform(0, 1) < DEMODULATED
        if demodulated:
            image = image * smooth_phase(image.to(torch.complex64)).conj()
        image = image / (image_scale(image) * math.exp(uniform(-0.1, 0.1)))
        for axis, size in enumerate(image.shape):  # a small matrix gets air around it; its scale is its own
            image = crop_or_pad(image, max(crop, size), axis)
        for _ in range(8):  # a crop with some head in it
            top, left = (int(uniform(0, size - crop + 1)) for size in image.shape)
            piece = image[top : top + crop, left : left + crop]
            if (piece.abs() > 0.1).float().mean() > 0.15:
                break
        turns = int(uniform(0, 8))
        piece = torch.rot90(piece, turns % 4, (0, 1))
        piece = piece.flip(0) if turns > 3 else piece
        if demodulated:
            phase = smooth_field(piece.shape, uniform(0, LEFT_PHASE), generator)
            piece = piece * torch.polar(torch.ones_like(phase), phase)
        else:
            piece = piece * random_phase(piece.shape, crop / max(image.shape), generator)
        return piece, volume["contrast"]


def _open(folder: Path, volume: dict) -> np.ndarray:
    """A volume's memory map. Raises BadInputError where the file is not what the manifest says."""
    file = folder / volume["file"]
    try:
        data = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise BadInputError(f"{file} cannot be read ({first_line(error)}): run `dpmtrain prepare` again") from error
    if list(data.shape[:3]) != list(volume["shape"]):
        raise BadInputError(
            f"{file} has the shape {data.shape} where the manifest says {volume['shape']}: run `dpmtrain prepare` again"
        )
    return data


def _is_simulated(volume: dict) -> bool:
    """Manifests of earlier versions tell it by the source alone."""
    return bool(volume.get("simulated", volume["source"].startswith("SynthSeg")))


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

    image: magnitude (rows, cols) at scale 1. For want of a measured phase the brightest and the darkest tissue differ
    from the rest by random angles, and a few spots, two to six pixels wide, by others.
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


def read_manifest(data: Path) -> dict:
    """Raises BadInputError where `data` was not written by `prepare`."""
    file = data / "manifest.json"
    if not file.is_file():
        raise BadInputError(f"{data} has no manifest.json: run `dpmtrain prepare` first")
    return json.loads(file.read_text())
