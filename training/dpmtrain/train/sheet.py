"""The sample sheet of a run: what the averaged weights make of noise, as one PNG."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from dpmrecon.prior.denoiser import ContrastDenoiser, Denoiser, complex_noise, uncounted
from dpmrecon.prior.problem import NoiseSource, Problem
from dpmrecon.prior.samplers.diffusion import SamplerSettings, sample_prox

from .batches import Batches, crop_of, example_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGMAS = (0.1, 0.4, 1.5)
EXAMPLES = 4
WHITE = 1.2  # magnitude drawn white
# without data and without fresh noise `prox` is Euler's method on the probability-flow ODE
FROM_NOISE = SamplerSettings(steps=20, sigma_max=10.0, sigma_min=0.01, eta=0.0, warm_start=False)


@torch.no_grad()
def write_sheet(path: Path, ema: Denoiser, batches: Batches, step: int) -> None:
    """Rows of four training crops, the same at every step: clean, then noisy and denoised for each of SIGMAS (standard
    deviations of a real channel); under them images of each label drawn from noise alone. Magnitudes."""
    seed = batches.settings["seed"]
    pairs = [
        batches.slices.example(
            crop_of(step, batches.settings), torch.Generator().manual_seed(example_seed(seed, -1, number))
        )
        for number in range(EXAMPLES)
    ]
    clean = torch.stack([example.image for example in pairs]).to(ema.device)
    names = [batches.target or example.contrast for example in pairs]
    columns = [("clean", clean)]
    for sigma in SIGMAS:
        generator = torch.Generator().manual_seed(seed)
        noisy = clean + sigma * complex_noise(tuple(clean.shape), generator).to(ema.device)
        denoised = ema(noisy, torch.full((EXAMPLES,), sigma, device=ema.device), ema.one_hot(list(names)))
        columns += [(f"noise {sigma:g}", noisy), ("denoised", denoised)]
    labels = [batches.target] if batches.target else [name for name in ema.labels if not name.startswith("spare")]
    drawn = from_noise(ema, labels[: len(columns)], clean.shape[-1], seed)

    rows = [[images[row] for _, images in columns] for row in range(EXAMPLES)] + [list(drawn)]
    titles = [
        [f"{title} {names[row]}" if title == "clean" else title for title, _ in columns] for row in range(EXAMPLES)
    ]
    titles.append([f"{name} from noise" for name in labels[: len(columns)]])
    path.parent.mkdir(parents=True, exist_ok=True)
    mosaic(rows, titles).savefig(path, dpi=100)


def mosaic(rows: list[list[torch.Tensor]], titles: list[list[str]]) -> "Figure":
    """Square images of one size in rows, each under its title. One picture: a hundred axes would take seconds."""
    from matplotlib.figure import Figure

    side, width = rows[0][0].shape[-1], max(map(len, rows))
    above, between = math.ceil(side / 8), math.ceil(side / 32)
    high, wide = side + above, side + between
    canvas = np.full((len(rows) * high, width * wide), WHITE, np.float32)
    figure = Figure((1.5 * width, 1.5 * width * canvas.shape[0] / canvas.shape[1]))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            top, left = row * high + above, column * wide
            canvas[top : top + side, left : left + side] = image.abs().cpu().numpy()
            axis.text(left + side / 2, top - above / 2, titles[row][column], fontsize=7, ha="center", va="center")
    axis.imshow(canvas, cmap="gray", vmin=0, vmax=WHITE)
    return figure


def from_noise(ema: Denoiser, labels: list[str], side: int, seed: int) -> torch.Tensor:
    """One unconditional sample a label: (n_labels, side, side) complex64."""
    problem = Problem.without_data(len(labels), side, side, ema.device)
    noise = NoiseSource([seed + number for number in range(len(labels))], ema.device)
    prior = ContrastDenoiser(ema, ema.one_hot(list(labels)), uncounted)
    return sample_prox(problem, prior, FROM_NOISE, noise)
