"""What the paper's arms are worth: chosen on patient09 and a held-out label map, tested on patient12."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from dpmrecon.output.scores import nrmse
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.prior.samplers.diffusion import SamplerSettings
from dpmrecon.recon.stream import sampled
from dpmrecon.recon.types import MappedSlice, Reconstruction, Sampling
from tqdm import tqdm

from ..data.labelmaps import simulated_slices
from ..evaluate.plan import CALIBRATION_LINES
from ..evaluate.references import CPU
from ..evaluate.undersampling import sampling_mask, undersampled, with_maps
from ..evaluate.validation import full_slice, subject_slices
from .arms import Arm, Candidate, candidates, label_of

Cases = list[tuple[MappedSlice, np.ndarray]]
# as in the card that shipped when the report was made, with fewer steps of DPS
PROX = SamplerSettings(steps=20, sigma_max=0.5, cg_steps=4, noise_scale=0.4, noise_factor=0.75, turns=True)
DPS = SamplerSettings(steps=100, sigma_max=1.0, sigma_min=0.01, noise_scale=0.4)
ACCELERATIONS = (3, 4, 6, 8)
CHOSEN_AT = 4  # the R at which an arm's best checkpoint is chosen
ZETAS = (0.25, 0.5, 1.0, 2.0, 4.0)
N_SLICES = 6  # of each volume
VALIDATION, TEST = "patient09", "patient12"


def cases(images: Path, acceleration: int, subject: str) -> Cases:
    """Undersampled FLAIR slices with maps, and their truth: of the test patient, or of patient09 and a label map."""
    full = [case for case in subject_slices(images, subject, N_SLICES) if case.contrast == "flair"]
    if subject == VALIDATION:
        simulated = simulated_slices(images / "synthseg_labels/training_seg_02.nii.gz", "flair", 2, seed=6)
        full += [
            full_slice("training_seg_02", n, "flair", torch.from_numpy(image)) for n, image in enumerate(simulated)
        ]
    found = []
    for case in full:
        mask = sampling_mask("regular", case.data.mask, acceleration, CALIBRATION_LINES, 0)
        data = undersampled(case.data, mask, acceleration, CALIBRATION_LINES)
        found.append((with_maps(data, CPU), case.truth))
    return found


def scores(model: Path, label: str | None, cases: Cases, sampler: str, settings: SamplerSettings) -> list[float]:
    """NRMSE of one sample of each slice, with one least-squares factor a slice; inf where it does not fit the data."""
    checkpoint = load_checkpoint(model)
    sampling = Sampling(sampler, settings, samples=1, seed=0, batch=1, fallback=True)
    found = []
    for mapped, truth in cases:
        (result,) = sampled([mapped], checkpoint, label, sampling)
        assert isinstance(result, Reconstruction)
        found.append(math.inf if result.fallback else score(result.image, truth))
    return found


def conventional_scores(cases: Cases) -> list[float]:
    """As `scores`, of CG-SENSE."""
    return [score(mapped.conventional, truth) for mapped, truth in cases]


def score(image: torch.Tensor, truth: np.ndarray) -> float:
    everywhere = np.ones_like(truth, dtype=bool)
    return float(nrmse(image.abs().numpy()[None], truth[None], everywhere[None])[0])


class Results:
    """Scores by key in a JSON file, so that a second run goes on where the first one stopped."""

    def __init__(self, path: Path):
        self.path = path
        self.values: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, key: str, make: Callable[..., list[float]], *arguments) -> list[float]:
        """The scores of `key`; made by make(*arguments) where they are not there."""
        if key not in self.values:
            self.values[key] = make(*arguments)
            self.path.write_text(json.dumps(self.values, indent=0))
        return self.values[key]


def score_validation(
    results: Results, images: Path, paths: dict[str, Path], candidates: list[Candidate], acceleration: int
) -> None:
    """One sample of every candidate on the slices that checkpoints are chosen on."""
    found = cases(images, acceleration, VALIDATION)
    results.get(f"validation CG-SENSE R={acceleration}", conventional_scores, found)
    for candidate in tqdm(candidates, desc=f"validation, R = {acceleration}"):
        key, label = f"validation {candidate.name} R={acceleration}", label_of(candidate.arm)
        results.get(key, scores, paths[candidate.name], label, found, "prox", PROX)


def score_test(results: Results, images: Path, paths: dict[str, Path], chosen: list[Candidate]) -> None:
    """One sample of the chosen candidates on the test patient."""
    for acceleration in ACCELERATIONS:
        found = cases(images, acceleration, TEST)
        results.get(f"test CG-SENSE R={acceleration}", conventional_scores, found)
        for candidate in tqdm(chosen, desc=f"test, R = {acceleration}"):
            key, label = f"test {candidate.name} R={acceleration}", label_of(candidate.arm)
            results.get(key, scores, paths[candidate.name], label, found, "prox", PROX)


def score_zeta(results: Results, images: Path, model: Path) -> None:
    """DPS at every zeta on two validation slices of patient09."""
    for acceleration in ACCELERATIONS:
        found = cases(images, acceleration, VALIDATION)[:2]
        for zeta in tqdm(ZETAS, desc=f"zeta, R = {acceleration}"):
            settings = dataclasses.replace(DPS, zeta=zeta)
            results.get(f"zeta {zeta:g} R={acceleration}", scores, model, "flair", found, "dps", settings)


def best_candidate(arm: Arm, results: Results) -> Candidate:
    """The one with the lowest mean NRMSE on the validation slices."""
    return min(candidates(arm), key=lambda candidate: mean(results, "validation", candidate.name, CHOSEN_AT))


def mean(results: Results, part: str, name: str, acceleration: int) -> float:
    return float(np.mean(results.values[f"{part} {name} R={acceleration}"]))
