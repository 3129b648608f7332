"""The training loop: EDM loss, EMA, label dropout, resumable at any step with the same numbers."""

import csv
import math
import time
from pathlib import Path

import torch
from dpmrecon.denoiser import Denoiser, complex_noise
from dpmrecon.errors import BadInputError
from tqdm import tqdm

from .dataset import PreparedSlices

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

RECIPE_KEYS = {
    "model": ("widths", "blocks", "embedding", "labels", "sigma_data"),
    "train": (
        "seed", "steps", "batch", "crops", "rate", "warmup", "decay_fraction", "clip", "ema_half_life",
        "label_dropout", "p_mean", "p_std", "real_fraction", "save_every",
    ),
    "sampling": ("samples", "prox", "dps"),
}  # fmt: skip


def read_recipe(path: Path) -> dict:
    """A recipe: tables model, train and sampling, each with exactly the keys that are used."""
    try:
        recipe = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInputError(f"recipe {path} cannot be read ({error})") from error
    for table, valid in RECIPE_KEYS.items():
        found = set(recipe.get(table, {}))
        if found != set(valid):
            wrong = ", ".join(sorted(found ^ set(valid)))
            raise BadInputError(
                f"recipe {path}, table [{table}]: unknown or missing {wrong}; it has {', '.join(valid)}"
            )
    return recipe


def train(recipe: dict, data: Path, run: Path, threads: int) -> Denoiser:
    """Train by `recipe` on the prepared slices in `data`; state and log.csv live in `run`. Returns the EMA weights.

    Every random number of step k comes from a generator seeded with (seed, k): a resumed run repeats exactly
    what an uninterrupted one would have done.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(recipe["train"]["seed"])
    slices = PreparedSlices(data, recipe["train"]["real_fraction"])
    model, ema = Denoiser(recipe["model"]), Denoiser(recipe["model"])
    ema.load_state_dict(model.state_dict())
    ema.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))
    run.mkdir(parents=True, exist_ok=True)
    state_file, first = run / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    settings = recipe["train"]
    losses, started = [], time.monotonic()
    for step in tqdm(range(first, settings["steps"]), initial=first, total=settings["steps"], desc="training"):
        generator = torch.Generator().manual_seed(settings["seed"] * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        crop = settings["crops"][step * len(settings["crops"]) // settings["steps"]]
        loss = step_loss(model, slices, settings, crop, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
        optimizer.step()
        # half-life in steps, shorter at the start
        decay = min(0.5 ** (1 / settings["ema_half_life"]), (1 + step) / (10 + step))
        with torch.no_grad():
            for average, current in zip(ema.parameters(), model.parameters()):
                average.lerp_(current, 1 - decay)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise RuntimeError(f"the loss is {losses[-1]} at step {step}: lower the rate in the recipe")
        if (step + 1) % settings["save_every"] == 0 or step + 1 == settings["steps"]:
            with (run / "log.csv").open("a") as log:
                csv.writer(log).writerow([step + 1, sum(losses) / len(losses), f"{time.monotonic() - started:.0f}"])
            losses.clear()
            state = {
                "model": model.state_dict(),
                "ema": ema.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            torch.save(state, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)
    return ema


def learning_rate(step: int, settings: dict) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last `decay_fraction` of the steps."""
    remaining = (settings["steps"] - step) / (settings["steps"] * settings["decay_fraction"])
    return settings["rate"] * min(1.0, (step + 1) / settings["warmup"], remaining)


def step_loss(
    model: Denoiser, slices: PreparedSlices, settings: dict, crop: int, generator: torch.Generator
) -> torch.Tensor:
    """Weighted denoising error (EDM, table 1): mean over real channels of lambda(sigma) (D - clean)^2."""
    examples = [slices.example(crop, generator) for _ in range(settings["batch"])]
    clean = torch.stack([image for image, _ in examples])
    dropped = torch.rand(len(examples), generator=generator) < settings["label_dropout"]
    label = model.one_hot([None if drop else name for (_, name), drop in zip(examples, dropped)])
    sigma = torch.exp(settings["p_mean"] + settings["p_std"] * torch.randn(len(examples), generator=generator))
    noisy = clean + sigma[:, None, None] * complex_noise(tuple(clean.shape), generator)
    weight = (sigma.square() + model.sigma_data**2) / (sigma * model.sigma_data).square()
    error = (model(noisy, sigma, label) - clean).abs().square().mean((1, 2)) / 2
    return (weight * error).mean()
