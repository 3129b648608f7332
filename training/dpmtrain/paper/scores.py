"""What the paper's arms are worth: chosen on patient09 and a held-out label map, tested on patient12."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.prior.samplers.diffusion import SamplerSettings
from dpmrecon.recon.types import Sampling
from tqdm import tqdm

from ..data.labelmaps import simulated_slices
from ..evaluate.methods import reconstructed
from ..evaluate.metrics import nrmse
from ..evaluate.plan import CALIBRATION_LINES, Condition
from ..evaluate.references import CPU
from ..evaluate.score_lines import ScoreLines
from ..evaluate.scoring import Undersampled
from ..evaluate.validation import full_slice, subject_slices
from .arms import Arm, Candidate, candidates, label_of

# as the card had it then, with fewer steps of DPS
PROX = SamplerSettings(steps=20, sigma_max=0.5, cg_steps=4, noise_scale=0.4, noise_factor=0.75, turns=True)
DPS = SamplerSettings(steps=100, sigma_max=1.0, sigma_min=0.01, noise_scale=0.4)
ACCELERATIONS = (3, 4, 6, 8)
CHOSEN_AT = 4  # the R at which an arm's best checkpoint is chosen
ZETAS = (0.25, 0.5, 1.0, 2.0, 4.0)
N_SLICES = 6  # of each volume
VALIDATION, TEST = "patient09", "patient12"


def cases(images: Path, acceleration: int, subject: str) -> list[Undersampled]:
    """Undersampled FLAIR slices: of the test patient, or of patient09 and a label map."""
    full = [case for case in subject_slices(images, subject, N_SLICES) if case.contrast == "flair"]
    if subject == VALIDATION:
        simulated = simulated_slices(images / "synthseg_labels/training_seg_02.nii.gz", "flair", 2, seed=6)
        full += [
            full_slice("training_seg_02", n, "flair", torch.from_numpy(image)) for n, image in enumerate(simulated)
        ]
    return [Undersampled(case, Condition("regular", acceleration, CALIBRATION_LINES), CPU) for case in full]


def scores(
    model: Path, label: str | None, cases: list[Undersampled], sampler: str, settings: SamplerSettings
) -> list[float]:
    """NRMSE of one sample of each slice, with one least-squares factor a slice; inf where it does not fit the data."""
    checkpoint = load_checkpoint(model)
    sampling = Sampling(sampler, settings, samples=1, seed=0, batch=1, fallback=True)
    found = []
    for case in cases:
        result = reconstructed(case.mapped, checkpoint, label, sampling)
        found.append(math.inf if result.fallback else nrmse(result.image.abs().numpy(), case.full.truth))
    return found


def conventional_scores(cases: list[Undersampled]) -> list[float]:
    """As `scores`, of CG-SENSE."""
    return [nrmse(case.mapped.conventional.abs().numpy(), case.full.truth) for case in cases]


class Results(ScoreLines):
    """Scores of the slices, by what they are of."""

    def of(self, part: str, name: str, acceleration: int) -> list[float]:
        """part: validation, test or zeta; name: the candidate's, CG-SENSE, or a zeta."""
        return self.get(self.key(part, name, acceleration), dict)["nrmse"]

    def score(self, part: str, name: str, acceleration: int, make: Callable[..., list[float]], *arguments) -> None:
        """By make(*arguments) where they are not there."""
        self.get(self.key(part, name, acceleration), lambda: {"nrmse": make(*arguments)})

    @staticmethod
    def key(part: str, name: str, acceleration: int) -> dict:
        return {"part": part, "name": name, "R": acceleration}


def score_validation(
    results: Results, images: Path, paths: dict[str, Path], candidates: list[Candidate], acceleration: int
) -> None:
    """One sample of every candidate on the slices that checkpoints are chosen on."""
    found = cases(images, acceleration, VALIDATION)
    results.score("validation", "CG-SENSE", acceleration, conventional_scores, found)
    for candidate in tqdm(candidates, desc=f"validation, R = {acceleration}"):
        how = (paths[candidate.name], label_of(candidate.arm), found, "prox", PROX)
        results.score("validation", candidate.name, acceleration, scores, *how)


def score_test(results: Results, images: Path, paths: dict[str, Path], chosen: list[Candidate]) -> None:
    """One sample of the chosen candidates on the test patient."""
    for acceleration in ACCELERATIONS:
        found = cases(images, acceleration, TEST)
        results.score("test", "CG-SENSE", acceleration, conventional_scores, found)
        for candidate in tqdm(chosen, desc=f"test, R = {acceleration}"):
            how = (paths[candidate.name], label_of(candidate.arm), found, "prox", PROX)
            results.score("test", candidate.name, acceleration, scores, *how)


def score_zeta(results: Results, images: Path, model: Path) -> None:
    """DPS at every zeta on two validation slices of patient09."""
    for acceleration in ACCELERATIONS:
        found = cases(images, acceleration, VALIDATION)[:2]
        for zeta in tqdm(ZETAS, desc=f"zeta, R = {acceleration}"):
            settings = dataclasses.replace(DPS, zeta=zeta)
            results.score("zeta", f"{zeta:g}", acceleration, scores, model, "flair", found, "dps", settings)


def best_candidate(arm: Arm, results: Results) -> Candidate:
    """The one with the lowest mean NRMSE on the validation slices."""
    return min(candidates(arm), key=lambda candidate: mean(results, "validation", candidate.name, CHOSEN_AT))


def mean(results: Results, part: str, name: str, acceleration: int) -> float:
    return float(np.mean(results.of(part, name, acceleration)))
