"""`dpmtrain latent`: a stage of a latent model's training, for a given time; a run that was stopped goes on."""

import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from dpmrecon.errors import BadInputError, first_line
from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint, shipped_sketcher
from dpmrecon.prior.kinds import LATENT
from dpmrecon.prior.latent import LatentModel

from ..data.dataset import PreparedSlices, read_manifest
from ..files import writing
from .crop_pool import CropPool
from .latent_recipe import read_latent_recipe
from .latent_stages import STAGES
from .pretrain import data_card
from .sketcher import SwinSketcher
from .timed import Clock, TimedRun

CHECKED, CHECKED_SIDE = 16, 192  # crops of the held-back volumes, for the round trip


def train_stage(
    recipe_file: Path,
    data: Path,
    folder: Path,
    out: Path,
    start: Path | None,
    minutes: float,
    device: torch.device,
    workers: int,
    clock: Clock = time.monotonic,
) -> None:
    """Train for `minutes`, less what the run in `folder` has had; writes `out`, its card, and `folder`/log.csv.

    start: the model of the stage before; None begins with random weights, as the autoencoder may. Raises BadInputError
    for a recipe, a start or a state that do not fit.
    """
    recipe = read_latent_recipe(recipe_file)
    settings = recipe["train"]
    slices = PreparedSlices(data, settings["real_fraction"], settings["volumes"])
    for name in (volume["file"].removesuffix(".npy") for volume in slices.volumes):
        if any(fnmatch(name, pattern) for pattern in settings["held_back"]):
            raise BadInputError(
                f"recipe {recipe_file}: {name} is of volumes and held_back: leave it out of one of them"
            )
    model, before = _start(recipe, start)
    torch.manual_seed(settings["seed"])
    model.requires_grad_(False).train().to(device)
    stage = STAGES[recipe["stage"]](model, settings, device)
    made_with = {name: table for name, table in recipe.items() if name != "sampling"}
    made_with["the start"] = before["model"] if before else None
    made_with["the data"] = slices.digest[:12]
    card = {**_card(recipe, data, before), "minutes": minutes}
    if recipe["stage"] == "control":
        model.sketcher, card["sketcher"] = shipped_sketcher(device)
        made_with["the sketcher"] = card["sketcher"]
    run = TimedRun(folder / f"{recipe['stage']}.pt", stage, made_with, settings, minutes, clock)
    pool = CropPool(data, settings, model.labels, device, workers, f"{settings['seed']} {run.steps}")

    def save() -> None:
        with writing(out):
            save_checkpoint(out, model, {**card, "steps": run.steps})

    try:
        if run.steps == 0:
            stage.prepare(pool, before is None)
        run.train(iter(lambda: pool.draw(settings["batch"]), None), save)
    finally:
        pool.close()
    found = None
    if isinstance(model, LatentModel) and recipe["stage"] == "autoencoder":
        found = round_trip(model, data, settings)
    if found is not None:
        card["round_trip_psnr"] = found
        print(
            f"round trip of {CHECKED} crops of held-back volumes: PSNR {found['mean']:.2f} dB, "
            f"least {found['least']:.2f}"
        )
    save()
    print(f"{recipe['stage']}: {run.steps} steps, {pool.taken} crops, {run.seconds:.0f} s; {out}")


@torch.no_grad()
def round_trip(model: LatentModel, data: Path, settings: dict) -> dict[str, float] | None:
    """PSNR in dB of decode(encode(x)), complex, peak = 99.9th percentile of |x|, on crops of the volumes that
    `held_back` names; None where the data has none."""
    names = [volume["file"] for volume in read_manifest(data)["volumes"]]
    try:
        slices = PreparedSlices(data, 1.0, settings["held_back"])
    except BadInputError:
        print(f"none of {len(names)} volumes is one of {', '.join(settings['held_back'])}: no round trip is measured")
        return None
    model.eval()
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(CHECKED):
        image = slices.example(CHECKED_SIDE, generator).image.to(torch.complex64)
        back = model.decode(model.encode(image[None].to(model.device)), *image.shape)[0].cpu()
        found.append(psnr(back, image))
    return {"mean": sum(found) / len(found), "least": min(found)}


def psnr(found: torch.Tensor, truth: torch.Tensor) -> float:
    """In dB, of complex images (rows, cols); peak = 99.9th percentile of |truth|."""
    magnitude = truth.abs().flatten()
    peak = magnitude.kthvalue(max(1, round(0.999 * magnitude.numel()))).values
    return float(10 * torch.log10(peak.square() / (found - truth).abs().square().mean().clamp_min(1e-30)))


def _start(recipe: dict, start: Path | None) -> tuple[LatentModel | SwinSketcher, dict | None]:
    if recipe["stage"] == "sketcher":
        if start is not None:
            raise BadInputError("the stage sketcher begins with random weights: leave --start out")
        torch.manual_seed(recipe["train"]["seed"])
        return SwinSketcher(recipe["model"]), None
    if start is not None:
        loaded = load_checkpoint(start)
        if not isinstance(loaded.model, LatentModel):
            raise BadInputError(
                f"--start {start} is of kind '{loaded.card.get('kind')}': give a model of kind {LATENT}"
            )
        spent = {name: loaded.card[name] for name in ("minutes", "steps") if name in loaded.card}
        known = {**spent, **loaded.card.get("history", {}), "data": loaded.card.get("data")}
        return loaded.model, {"model": loaded.model_id, **known}
    if recipe["stage"] != "autoencoder":
        raise BadInputError(f"the stage {recipe['stage']} needs --start: give the model of the stage before")
    torch.manual_seed(recipe["train"]["seed"])
    try:
        return LatentModel(recipe["model"]), None
    except (TypeError, ValueError) as error:
        raise BadInputError(f"the recipe's [model] cannot be built ({first_line(error)}): correct it") from error


def _card(recipe: dict, data: Path, before: dict | None) -> dict[str, Any]:
    known = {name: value for name, value in (before or {}).items() if name != "data"}
    history = {"stage": recipe["stage"], "start": known or "random weights"}
    return {
        "kind": "sketcher" if recipe["stage"] == "sketcher" else LATENT,
        "recipe": recipe["train"],
        "history": history,
        "sampling": recipe.get("sampling", {}),
        "data": data_card(data, recipe["train"], (before or {}).get("data")),
    }
