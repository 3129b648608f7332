"""`dpmtrain pretrain` and `dpmtrain finetune`: from a recipe and prepared slices to a checkpoint with its card."""

import argparse
import sys
from pathlib import Path
from typing import Any

from dpmrecon.errors import BadInputError
from dpmrecon.prior.checkpoint import save_checkpoint

from ..data.dataset import PreparedSlices, read_manifest
from ..files import writing
from .keeper import Start, read_start, read_state
from .recipe import read_recipe
from .train import Stopped, train


def run(args: argparse.Namespace) -> int:
    """The command in one process."""
    start = None if args.start is None else read_start(args.start)
    recipe = completed(read_recipe(args.recipe, args.kind), start)
    try:
        denoiser = train(
            recipe, args.data, args.folder, args.threads, start, device=args.device, workers=args.workers
        )  # fmt: skip
    except Stopped as stopped:
        if _is_first():
            print(f"dpmtrain: {stopped}", file=sys.stderr, flush=True)
        return 130
    if _is_first():
        with writing(args.out):
            save_checkpoint(args.out, denoiser.cpu(), card(recipe, args.data, args.folder, start))
    return 0


def _is_first() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process


def completed(recipe: dict, start: Start | None) -> dict:
    """The recipe, with the start's model and sampling where it lacks them.

    Fine-tuning: the target's slot takes the target's label. Raises BadInputError where recipe and start do not fit.
    """
    if "target" not in recipe:
        if start is not None:
            for key, value in recipe["model"].items():
                if start.config[key] != value:
                    raise BadInputError(
                        f"the recipe's model has {key} = {value} and {start.model_id} has {start.config[key]}: only "
                        "the weights of an equal network can be gone on with"
                    )
        return recipe
    assert start is not None
    labels = target_labels(start.config["labels"], **recipe["target"])
    return {**recipe, "model": {**start.config, "labels": labels}, "sampling": start.sampling}


def target_labels(labels: list[str], label: str, slot: str) -> list[str]:
    """The model's labels with `label` in `slot`, which has that label already or is a spare one."""
    if slot not in labels:
        raise BadInputError(f"the model has no slot '{slot}': it has {', '.join(labels)}")
    if slot == label:
        return list(labels)
    if not slot.startswith("spare"):
        raise BadInputError(f"slot '{slot}' is not free for '{label}': take a spare one, or the label {slot} itself")
    if label in labels or label.startswith("spare"):
        raise BadInputError(f"the model has a slot '{label}' already: give slot = \"{label}\", or another label")
    return [label if name == slot else name for name in labels]


def card(recipe: dict, data: Path, folder: Path, start: Start | None) -> dict[str, Any]:
    """What the card says of this training; `folder`: of the run, which has finished."""
    settings, history = recipe["train"], history_of(recipe, start)
    plans = read_state(folder / "state.pt")["plans"]
    if len(plans) > 1:
        history["lengths"] = [f"from step {first} as of {steps} steps" for first, steps in plans]
    return {
        "recipe": settings,
        "history": history,
        "sampling": recipe["sampling"],
        "data": data_card(data, settings, start.data if start else None),
    }


def history_of(recipe: dict, start: Start | None) -> dict[str, Any]:
    """What the weights have gone through; of a start, what its card says of that."""
    settings = recipe["train"]
    before = start.history.get("images", 0) if start is not None and isinstance(start.history, dict) else 0
    history: dict[str, Any] = {"images": settings["steps"] * settings["batch"] + before}
    if start is None:
        history["start"] = "random weights"
    else:
        states = start.optimizers_for(settings["optimizer"])
        history["start"] = start.model_id
        history["start_checksum_sha256"] = start.checksum
        history["start_history"] = start.history
        history["optimizer"] = (
            f"{settings['optimizer']}, its state gone on with"
            if states
            else f"{settings['optimizer']}, begun afresh since the start has no state of it: the rate rises over the "
            f"first {settings['warmup']} steps instead"
        )
    if "history" in recipe:
        history["note"] = recipe["history"]
    if "target" in recipe:
        history["target"] = recipe["target"]
    return history


def data_card(data: Path, settings: dict, *begun: dict | None) -> dict[str, Any]:
    """Sources, licences and subjects of the recipe's volumes, who was left out, and the same of the models that it
    began with, as their cards have it."""
    volumes = PreparedSlices(data, settings["real_fraction"], settings["volumes"]).volumes

    def distinct(key: str) -> list[str]:
        return sorted({str(volume[key]) for volume in volumes if volume.get(key)})

    found = {
        "sources": distinct("source"),
        "licences": distinct("licence"),
        "references": distinct("reference"),
        "subjects": distinct("subject"),
        "excluded": read_manifest(data).get("exclude", []),
        "slices": sum(end - first for volume in volumes for first, end in volume["spans"]),
        "begun_with": [known for known in begun if known],
    }
    return {key: value for key, value in found.items() if value or key == "excluded"}
