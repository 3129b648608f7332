"""The sample sheet of a run: what the averaged weights make of noise, as one PNG."""

from pathlib import Path

import torch
from dpmrecon.denoiser import Denoiser, complex_noise
from dpmrecon.forward import ForwardModel
from dpmrecon.samplers import NoiseSource, Problem, SamplerSettings, sample_prox

from .batches import Batches, crop_of, example_seed

SIGMAS = (0.1, 0.4, 1.5)
EXAMPLES = 4
# without data and without fresh noise `prox` is Euler's method on the probability-flow ODE
FROM_NOISE = SamplerSettings(steps=20, sigma_max=10.0, sigma_min=0.01, eta=0.0, warm_start=False)


@torch.no_grad()
def write_sheet(path: Path, ema: Denoiser, batches: Batches, step: int) -> None:
    """Rows of four training crops, the same at every step: clean, then noisy and denoised for each of SIGMAS (std
    per real channel); under them images of each label drawn from noise alone. Magnitudes, black 0, white 1.2."""
    from matplotlib.figure import Figure

    seed = batches.settings["seed"]
    pairs = [
        batches.slices.example(
            crop_of(step, batches.settings), torch.Generator().manual_seed(example_seed(seed, -1, number))
        )
        for number in range(EXAMPLES)
    ]
    clean = torch.stack([image for image, _ in pairs]).to(ema.device)
    names = [batches.target or contrast for _, contrast in pairs]
    columns = [("clean", clean)]
    for sigma in SIGMAS:
        generator = torch.Generator().manual_seed(seed)
        noisy = clean + sigma * complex_noise(tuple(clean.shape), generator).to(ema.device)
        denoised = ema(noisy, torch.full((EXAMPLES,), sigma, device=ema.device), ema.one_hot(list(names)))
        columns += [(f"noise {sigma:g}", noisy), ("denoised", denoised)]
    labels = [batches.target] if batches.target else [name for name in ema.labels if not name.startswith("spare")]
    drawn = from_noise(ema, labels[: len(columns)], clean.shape[-1], seed)

    figure = Figure((1.5 * len(columns), 1.6 * (EXAMPLES + 1)), layout="constrained")
    axes = figure.subplots(EXAMPLES + 1, len(columns))
    for axis in axes.flat:
        axis.axis("off")
    for column, (title, images) in enumerate(columns):
        for row in range(EXAMPLES):
            axes[row, column].set_title(f"{title} {names[row]}" if column == 0 else title, fontsize=7)
            axes[row, column].imshow(images[row].abs().cpu().numpy(), cmap="gray", vmin=0, vmax=1.2)
    for axis, name, image in zip(axes[-1], labels, drawn):
        axis.set_title(f"{name} from noise", fontsize=7)
        axis.imshow(image.abs().cpu().numpy(), cmap="gray", vmin=0, vmax=1.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def from_noise(ema: Denoiser, labels: list[str], side: int, seed: int) -> torch.Tensor:
    """One unconditional sample a label: (n_labels, side, side) complex64."""
    shape, device = (side, side), ema.device
    maps = torch.ones(1, *shape, dtype=torch.complex64, device=device)
    nothing = ForwardModel(maps, torch.zeros(shape, device=device))
    zeros = torch.zeros(len(labels), *shape, dtype=torch.complex64, device=device)
    problem = Problem(nothing, zeros[:, None], torch.ones(len(labels), device=device), zeros)
    noise = NoiseSource([seed + number for number in range(len(labels))], device)
    one_hot = ema.one_hot(list(labels))
    return sample_prox(problem, lambda x, sigma: ema(x, sigma, one_hot), noise, FROM_NOISE, ema.sigma_data)
