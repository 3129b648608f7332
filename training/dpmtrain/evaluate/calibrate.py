"""`dpmtrain calibrate`: settings of the uncertainty mode, with which the spread of the samples tells their error.

First the network alone: its error on noisy slices with known truth, beside the error that it implies itself (sigma^2
times the trace of its derivative, by Hutchinson's estimate; Tweedie's formula of second order). The sampler needs the
first to weigh data against prior, and no sampler can be better calibrated than the network. Then V/B of samples, as
metrics.py defines it, for every combination of a grid.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from dpmrecon.cli import add_command
from dpmrecon.errors import BadInputError
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint, write_card
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.prior.samplers import settings_from
from dpmrecon.recon.sample import Reconstruction, Sampling, sampled

from .references import CPU, ReferenceSlice
from .scoring import Condition, Undersampled
from .sweep_command import read_grid
from .undersampling import CALIBRATION_LINES

SIGMAS = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2)
# of the noise itself, for the derivative; bfloat16 would drown a smaller step
DIFFERENCE = 0.02
# what the prior's fit is added to where neither the card nor the grid says otherwise: the probability-flow ODE from
# noise alone, data consistency solved, noise as measured
START = {"steps": 50, "sigma_max": 5.0, "sigma_min": 0.01, "eta": 0.0, "warm_start": False, "cg_steps": 10,
         "noise_factor": 1.0, "turns": True}  # fmt: skip


def add_calibrate(commands) -> None:
    parser = add_command(
        commands,
        "calibrate",
        "Settings with which the spread of the samples tells their error (V/B near 1), on the validation scans",
        "dpmtrain calibrate --images images --grid prior_std=0.07,0.1 steps=50,100",
    )
    parser.add_argument("--images", type=Path, required=True, help="folder with open_ms/ and synthseg_labels/")
    parser.add_argument("--model", type=Path, help="checkpoint (default: the one that ships)")
    parser.add_argument("--grid", nargs="*", default=[], metavar="KEY=V1,V2", help="settings to combine")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--R", type=int, default=4, dest="acceleration")
    parser.add_argument("--contrasts", default="flair,t1,t2", help="of the validation scans, with commas")
    parser.add_argument("--slices", type=int, default=3, help="of each scan")
    parser.add_argument("--subjects", nargs="*", default=[], metavar="NAME", help="report on these, choose nothing")
    parser.add_argument("--write", action="store_true", help="put the best settings into the card of --model")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from .validation import subject_slices, validation_scan

    if args.samples < 2 or args.slices < 1 or args.acceleration < 2:
        raise BadInputError("--samples and --R need 2 or more, --slices 1 or more")
    if args.write and (args.model is None or args.subjects):
        raise BadInputError("--write needs --model, and settings chosen on the validation scans: leave --subjects out")
    grid = read_grid(args.grid)
    if "noise_factor" in grid:
        raise BadInputError("noise_factor is no setting of the uncertainty mode: the noise is taken as measured")
    if args.subjects:
        slices = [found for name in args.subjects for found in subject_slices(args.images, name, args.slices)]
    else:
        names = args.contrasts.split(",")
        slices = [found for name in names for found in validation_scan(args.images, name)[: args.slices]]
    checkpoint = load_checkpoint(args.model)
    chosen = calibrate(checkpoint, slices, grid, args.samples, args.acceleration, choose=not args.subjects)
    if args.write:
        write_card(args.model, sampling={**checkpoint.card.get("sampling", {}), "uncertainty": chosen})
        print(f"written to the card of {args.model}")
    return 0


def calibrate(
    checkpoint: Checkpoint,
    slices: list[ReferenceSlice],
    grid: dict[str, list],
    samples: int,
    acceleration: int,
    *,
    choose: bool = True,
) -> dict:
    """Print the network's own calibration and V/B for each combination; the settings with V/B nearest to 1.

    choose: whether the fit to these slices sets the prior of the data consistency, where the grid does not.
    """
    base = {**START, **checkpoint.card.get("sampling", {}).get("uncertainty", {})}
    base.pop("samples", None)
    if choose and "prior_std" not in grid:
        base |= prior_fit(network_errors(checkpoint, slices))
    cases = [Undersampled(full, Condition("regular", acceleration, CALIBRATION_LINES), CPU) for full in slices]
    rows = []
    for values in itertools.product(*grid.values()):
        chosen = base | dict(zip(grid, values))
        ratio = _ratio(checkpoint, cases, chosen, samples)
        rows.append((abs(np.log(max(ratio, 1e-9))), chosen))
        print(f"V/B {ratio:.2f}: {chosen}", flush=True)
    return {"samples": samples, **min(rows, key=lambda row: row[0])[1]}


def _ratio(checkpoint: Checkpoint, cases: list[Undersampled], settings: dict, samples: int) -> float:
    """V/B over all slices, each weighted by the square of its scale; prints it for each contrast."""
    sampling = Sampling("prox", settings_from(settings), samples, seed=0, batch=4, fallback=False)
    sums: dict[str | None, list[np.ndarray]] = {}
    for case in cases:
        (found,) = sampled([case.mapped], checkpoint, case.full.contrast, sampling)
        assert isinstance(found, Reconstruction), found.reason
        score = case.score(found.image, found.spread, samples)
        squared = score["V"], score["B"], score["truth"]
        sums.setdefault(case.full.contrast, []).append(np.array(squared) / case.mapped.scale**2)
    for contrast, values in sums.items():
        spread, error, truth = np.sum(values, 0)
        print(f"  {contrast}: V/B {spread / error:.2f}, V^.5 {(spread / truth) ** 0.5:.4f} and B^.5 "
              f"{(error / truth) ** 0.5:.4f} of the truth, {len(values)} slices", flush=True)  # fmt: skip
    spread, error, _ = np.sum([np.sum(values, 0) for values in sums.values()], 0)
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
    case = Undersampled(full, Condition("regular", 2, CALIBRATION_LINES), CPU)  # for maps and scale alone
    assert full.coil_images is not None
    maps, head = case.mapped.model.coil_maps, case.mapped.model.support > 0
    clean = ((maps.conj() * full.coil_images).sum(0) / case.mapped.scale)[None]
    generator = torch.Generator().manual_seed(full.number)
    noisy = clean + sigma * complex_noise(clean.shape, generator)
    step = complex_noise(clean.shape, generator)
    level, label = torch.tensor([sigma]), checkpoint.denoiser.one_hot([full.contrast])
    denoised = checkpoint.denoiser(noisy, level, label)
    moved = checkpoint.denoiser(noisy + DIFFERENCE * sigma * step, level, label)
    trace = ((moved - denoised) * step.conj()).real[0][head].mean() / (DIFFERENCE * sigma)
    return float((denoised - clean)[0][head].abs().square().mean()) / 2, sigma**2 * float(trace) / 2


def prior_fit(errors: np.ndarray) -> dict[str, float]:
    """prior_std and prior_power: a line in the logarithms of sigma and of the white prior's standard deviation with
    which the clean image, given the noisy one, would be as uncertain as the network's error."""
    sigma, error, _ = errors.T
    white = (1 / np.maximum(1 / error**2 - 1 / sigma**2, 1e-9)) ** 0.5
    power, level = np.polyfit(np.log(sigma), np.log(white), 1)
    found = {"prior_std": round(float(np.exp(level)), 3), "prior_power": round(float(power), 2)}
    print("fitted:", ", ".join(f"{name} = {value:g}" for name, value in found.items()))
    return found
