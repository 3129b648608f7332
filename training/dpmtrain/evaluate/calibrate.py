"""`dpmtrain calibrate`: settings with which the spread of the samples tells their error.

First the network alone: its error on noisy slices with known truth, beside the error that it implies itself (sigma^2
times the trace of its derivative, by Hutchinson's estimate; Tweedie's formula of second order). The sampler needs the
first to weigh data against prior, and no sampler can be better calibrated than the network. Then V/B of samples, as
metrics.py defines it, for every combination of a grid.
"""

import itertools
from dataclasses import replace

import numpy as np
import torch
from dpmrecon.options import Options
from dpmrecon.prior.checkpoint import UNCERTAINTY, Checkpoint
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.prior.kinds import settings_from
from dpmrecon.prior.samplers.diffusion import SamplerSettings
from dpmrecon.recon.plan import sampling_of

from .methods import label_for, reconstructed
from .plan import Condition
from .references import CPU, ReferenceSlice
from .scoring import Undersampled, true_image
from .sweep import check_grid, with_entries

SIGMAS = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2)
# of the noise itself, for the derivative; bfloat16 would drown a smaller step
DIFFERENCE = 0.02
# where card and grid say nothing: the probability-flow ODE from noise alone, noise as measured
START = {"steps": 50, "sigma_max": 5.0, "sigma_min": 0.01, "eta": 0.0, "warm_start": False, "cg_steps": 10,
         "noise_factor": 1.0, "turns": True}  # fmt: skip


def calibrate(
    checkpoint: Checkpoint,
    slices: list[ReferenceSlice],
    grid: dict[str, list],
    samples: int,
    acceleration: int,
) -> dict:
    """Print the network's own calibration and V/B for each combination; the settings with V/B nearest to 1.

    The fit to these slices sets the prior of the data consistency, where the grid does not.
    """
    check_grid(grid, SamplerSettings)
    base = {**START, **checkpoint.card.get("sampling", {}).get("uncertainty", {})}
    base.pop("samples", None)
    if "prior_std" not in grid:
        base |= prior_fit(network_errors(checkpoint, slices))
    cases = [Undersampled(full, Condition("regular", acceleration), CPU) for full in slices]
    rows = []
    for values in itertools.product(*grid.values()):
        chosen = base | dict(zip(grid, values))
        ratio = _ratio(checkpoint, cases, chosen, samples)
        rows.append((abs(np.log(max(ratio, 1e-9))), chosen))
        print(f"V/B {ratio:.2f}: {chosen}", flush=True)
    return {"samples": samples, **min(rows, key=lambda row: row[0])[1]}


def with_chosen(sampling: dict, chosen: dict, contrast: str | None, acceleration: int) -> dict:
    """The card's `sampling` with the settings chosen for the uncertainty mode: of all scans, or what differs from those
    for one contrast at R. What differed from the settings of all before goes with them."""
    if contrast is None or UNCERTAINTY not in sampling:
        found = {**sampling, UNCERTAINTY: chosen}
        if entries := sampling.get("by_contrast_R"):
            found["by_contrast_R"] = [entry for entry in entries if entry["sampler"] != UNCERTAINTY]
        return found
    common = sampling[UNCERTAINTY]
    own = {name: value for name, value in chosen.items() if name != "samples" and common.get(name) != value}
    return with_entries(sampling, [{"sampler": UNCERTAINTY, "contrast": contrast, "R": acceleration, "settings": own}])


def _ratio(checkpoint: Checkpoint, cases: list[Undersampled], settings: dict, samples: int) -> float:
    """V/B of magnitudes over all slices, each weighted by the square of its scale; prints it for each contrast."""
    sums: dict[str | None, list[np.ndarray]] = {}
    for case in cases:
        own = sampling_of(Options(), checkpoint, CPU, label_for(checkpoint, case.full.contrast), case.condition.R)
        sampling = replace(
            own, settings=settings_from(settings), samples=samples, image=own, keep_samples=True, fallback=False
        )
        found = reconstructed(case.mapped, checkpoint, case.full.contrast, sampling)
        score = case.score(found.image, found.draws)
        squared = [score[name] for name in ("V_magnitude", "B_magnitude", "V", "B", "truth")]
        sums.setdefault(case.full.contrast, []).append(np.array(squared) / case.mapped.scale**2)
    for contrast, values in sums.items():
        spread, error, complex_spread, complex_error, truth = np.sum(values, 0)
        print(f"  {contrast}: V/B {spread / error:.2f} of magnitudes, V^.5 {(spread / truth) ** 0.5:.4f} and B^.5 "
              f"{(error / truth) ** 0.5:.4f} of the truth; {complex_spread / complex_error:.2f} of complex images; "
              f"{len(values)} slices", flush=True)  # fmt: skip
    spread, error, *_ = np.sum([np.sum(values, 0) for values in sums.values()], 0)
    return float(spread / error)


def network_errors(checkpoint: Checkpoint, slices: list[ReferenceSlice]) -> np.ndarray:
    """(sigmas, 3): sigma, rms error of the denoised image per real channel in the head, and the one it implies."""
    rows = []
    for sigma in SIGMAS:
        squares = [_squares(checkpoint, full, sigma) for full in slices]
        error, implied = np.mean(squares, 0)
        rows.append((sigma, error**0.5, max(implied, 0.0) ** 0.5))
        print(f"sigma {sigma:g}: error of the network {rows[-1][1]:.4f}, implied {rows[-1][2]:.4f}, "
              f"squared ratio {implied / error:.2f}", flush=True)  # fmt: skip
    return np.array(rows)


@torch.no_grad()
def _squares(checkpoint: Checkpoint, full: ReferenceSlice, sigma: float) -> tuple[float, float]:
    case = Undersampled(full, Condition("regular", 2), CPU)  # for maps and scale alone
    assert full.coil_images is not None
    clean = true_image(case.mapped, full.coil_images).reshape(-1, *full.truth.shape) / case.mapped.scale
    head = case.mapped.model.support.reshape(clean.shape) > 0
    generator = torch.Generator().manual_seed(full.number)
    noisy = clean + sigma * complex_noise(clean.shape, generator)
    step = complex_noise(clean.shape, generator)
    level, label = torch.full((len(clean),), sigma), checkpoint.denoiser.one_hot([full.contrast] * len(clean))
    denoised = checkpoint.denoiser(noisy, level, label)
    moved = checkpoint.denoiser(noisy + DIFFERENCE * sigma * step, level, label)
    trace = ((moved - denoised) * step.conj()).real[head].mean() / (DIFFERENCE * sigma)
    return float((denoised - clean)[head].abs().square().mean()) / 2, sigma**2 * float(trace) / 2


def prior_fit(errors: np.ndarray) -> dict[str, float]:
    """prior_std and prior_power: a line in the logarithms of sigma and of the white prior's standard deviation. With
    that the clean image, given the noisy one, is as uncertain as the network's error."""
    sigma, error, _ = errors.T
    white = (1 / np.maximum(1 / error**2 - 1 / sigma**2, 1e-9)) ** 0.5
    power, level = np.polyfit(np.log(sigma), np.log(white), 1)
    found = {"prior_std": round(float(np.exp(level)), 3), "prior_power": round(float(power), 2)}
    print("fitted:", ", ".join(f"{name} = {value:g}" for name, value in found.items()))
    return found
