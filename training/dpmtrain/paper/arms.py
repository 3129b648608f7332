"""The arms of the paper's comparison, each a small recipe, and their training."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpmrecon.contrasts import LABELS
from dpmrecon.prior.checkpoint import save_checkpoint

from ..data.open_sets import HELD_OUT
from ..train.keeper import read_start
from ..train.train import train

# A third of the shipped network's work: twelve in two hours of one core
MODEL: dict[str, Any] = {
    "widths": [32, 56, 88, 112],
    "blocks": [1, 1, 1, 1],
    "embedding": 128,
    "labels": list(LABELS),
    "sigma_data": 0.25,
}
SCRATCH: dict[str, Any] = {
    "seed": 11, "optimizer": "muon", "precision": "bf16", "steps": 2000, "batch": 16, "draws": 1, "crops": [96],
    "rate": 1e-3, "warmup": 50, "decay_fraction": 0.45, "clip": 1.0, "ema_half_life": 480, "label_dropout": 0.1,
    "p_mean": -1.5, "p_std": 1.2, "real_fraction": 0.7, "focus_weight": 1.0, "save_every": 100, "sheet_every": 0,
}  # fmt: skip
# the start is good: less warm-up, and an average that forgets within 10 steps
FINE_TUNING: dict[str, Any] = {"seed": 12, "warmup": 20, "ema_half_life": 160}
FINE_TUNING_GRID: tuple[tuple[float, ...], tuple[int, ...]] = ((3e-4, 1e-3), (100, 400, 1600))

EXTERNAL = ["*_T1W", "*_T2W", *(f"training_seg_*_{name}_*" for name in ("t1", "t2", "dwi", "swi"))]
ALL_FLAIR = ["*_FLAIR", "py_synthsr", "torchio_fernando", "training_seg_*_flair_*"]
FEW = ["patient01_*_FLAIR", "patient03_*_FLAIR"]


@dataclass(frozen=True)
class Arm:
    """One way to make a FLAIR prior. rates, lengths: the grid of its candidates (six, or one run of the recipe); start:
    the arm whose weights it begins with."""

    name: str
    title: str
    volumes: list[str]
    rates: tuple[float, ...] = (SCRATCH["rate"],)
    lengths: tuple[int, ...] = (SCRATCH["steps"],)
    start: str | None = None
    changes: dict = field(default_factory=dict)


ARMS = (
    Arm("pre", "pre-trained on other contrasts", EXTERNAL),
    Arm("ft_few", "4 pre-trained, fine-tuned on few", FEW, *FINE_TUNING_GRID, "pre", FINE_TUNING),
    Arm("few_only", "5 few only", FEW, (1e-3, 2e-3), (400, 1000, 2000)),
    Arm("target_only", "3 target only (all FLAIR)", ALL_FLAIR),
    Arm("joint_few", "6 joint (others and few)", EXTERNAL + FEW),
    Arm("all", "1 all data", EXTERNAL + ALL_FLAIR),
    Arm("ft_all", "2 pre-trained, fine-tuned on all", ALL_FLAIR, *FINE_TUNING_GRID, "pre", FINE_TUNING),
)


@dataclass(frozen=True)
class Candidate:
    """One checkpoint of an arm."""

    arm: Arm
    rate: float
    length: int

    @property
    def name(self) -> str:
        return f"{self.arm.name}_{self.rate:g}_{self.length}"


def candidates(arm: Arm) -> list[Candidate]:
    return [Candidate(arm, rate, length) for rate in arm.rates for length in arm.lengths]


def trained(prepared: Path, run: Path, threads: int | None) -> Iterator[tuple[Candidate, Path]]:
    """Every candidate's checkpoint in `run`, trained where it is missing, each in a run of its own."""
    for arm in ARMS:
        for candidate in candidates(arm):
            path = run / f"{candidate.name}.safetensors"
            if not path.exists():
                settings = {**SCRATCH, **arm.changes, "volumes": arm.volumes}
                settings = {**settings, "rate": candidate.rate, "steps": candidate.length}
                before = f"{arm.start}_{SCRATCH['rate']:g}_{SCRATCH['steps']}.safetensors"
                start = read_start(run / before) if arm.start else None
                recipe = {"model": MODEL, "train": settings}
                denoiser = train(recipe, prepared, run / candidate.name, threads, start)
                save_checkpoint(path, denoiser, {"recipe": settings, "data": {"excluded": list(HELD_OUT)}})
            yield candidate, path


def label_of(arm: Arm) -> str | None:
    """The pre-trained arm never saw the target's label: it is used without one."""
    return None if arm.name == "pre" else "flair"
