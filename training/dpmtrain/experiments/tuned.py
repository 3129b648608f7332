"""A small network tuned from another: what `imperfect` and `per_target` share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpmrecon.prior.checkpoint import load_checkpoint, save_checkpoint
from tqdm import tqdm

from ..train.keeper import Start
from ..train.train import Trainer

TRAIN: dict[str, Any] = {
    "optimizer": "muon", "precision": "bf16", "steps": 640, "batch": 8, "rate": 3e-4, "warmup": 20,
    "decay_fraction": 0.5, "clip": 1.0, "ema_half_life": 400, "p_mean": -1.8, "p_std": 1.2,
}  # fmt: skip
MakeBatch = Callable[[int], Any]  # of a step, with labels


def tuned(
    start: Start, settings: dict[str, Any], make: MakeBatch | None, path: Path, form: type[Trainer] = Trainer
) -> None:
    """The start, tuned on the batches that `make` gives, at `path`, with the settings of sampling that ship; nothing
    where it is there.

    settings: TRAIN with `steps` and `seed`; make: None for no steps; form: of the loss.
    """
    if path.with_suffix(".json").exists():
        return
    trainer = form({"model": start.config, "train": settings}, start, "cpu")
    for step in tqdm(range(settings["steps"]), desc=path.stem, mininterval=10):
        assert make is not None
        trainer.step(step, make(step))
    save_checkpoint(path, trainer.ema, {"recipe": settings, "sampling": load_checkpoint(None).card["sampling"]})
