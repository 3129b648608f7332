"""Small foci painted into training slices: a few pixels wide, often many, as emboli, microbleeds and gliosis are.

To a denoiser of least mean square what is rare is noise. Foci of label maps have sizes in mm, in simulated volumes
alone; these are as large as pixels, whatever those are, and lie in all slices.
"""

import math

import torch
from dpmrecon.physics.scale import image_scale

# share of the slices that get some; of these foci, brighter ones
SHARE, SHARE_ELSEWHERE = {"dwi": 0.8}, 0.4
BRIGHT = {"dwi": 0.9, "flair": 0.8, "t2": 0.8, "t1": 0.3, "swi": 0.1}
MOST, MOST_ELSEWHERE = {"dwi": 150}, 40  # in a slice; few are as frequent as many, in octaves
RADIUS = (0.5, 2.5)  # pixels
HEIGHT, DEPTH = (0.2, 1.2), (0.15, 0.8)  # of the tissue's signal
TISSUE = 0.25  # of the scale: foci lie where the slice is brighter
REACH = 5  # pixels around a focus's centre that it may touch
SEEN = 0.05  # share of its signal that a focus changes in its pixels


def with_foci(image: torch.Tensor, contrast: str, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The slice (rows, cols), magnitude or complex, at times with foci; and where they are, (rows, cols) of 0 and 1."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    factor = torch.ones(image.shape)
    if uniform(0, 1) > SHARE.get(contrast, SHARE_ELSEWHERE):
        return image, 1 - factor
    places = torch.nonzero(image.abs() > TISSUE * image_scale(image))
    if not len(places):
        return image, 1 - factor
    for _ in range(round(math.exp(uniform(0, math.log(MOST.get(contrast, MOST_ELSEWHERE)))))):
        row, col = places[int(uniform(0, len(places)))].tolist()
        rows, cols = (
            torch.arange(max(0, place - REACH), min(size, place + REACH + 1)) - place - uniform(-0.5, 0.5)
            for place, size in ((row, image.shape[0]), (col, image.shape[1]))
        )
        radius, ratio, angle = (
            RADIUS[0] * (RADIUS[1] / RADIUS[0]) ** uniform(0, 1),
            uniform(0.7, 1),
            uniform(0, math.pi),
        )
        along = math.cos(angle) * rows[:, None] + math.sin(angle) * cols
        across = math.cos(angle) * cols - math.sin(angle) * rows[:, None]
        # a pixel at the rim is partly the focus's
        inside = (radius - torch.hypot(along, across / ratio) + 0.5).clamp(0, 1)
        change = uniform(*HEIGHT) if uniform(0, 1) < BRIGHT.get(contrast, 0.5) else -uniform(*DEPTH)
        here = slice(max(0, row - REACH), row + REACH + 1), slice(max(0, col - REACH), col + REACH + 1)
        # where two meet the later lies above: products have no bound
        factor[here] = factor[here] + (1 + change - factor[here]) * inside
    return image * factor, ((factor - 1).abs() > SEEN).float()
