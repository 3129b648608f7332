"""Every method on one scan, in one process: same weights, coil maps, scale, noise level and scoring.

The slices come by the product's own way (`open_scan`, `slices`, `with_coil_maps`); references from outside, BART's
L1-wavelet and deepinv's DPS, get the same coil maps, k-space and, for deepinv, the same denoiser. Regularization and
step sizes of the references are the best of a list by the truth, which flatters the reference and never `prox`.
"""

import dataclasses
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.acquisitions import LostSlice, slices
from dpmrecon.checkpoint import Checkpoint
from dpmrecon.conventional import slice_scale, zero_filled
from dpmrecon.errors import BadInputError
from dpmrecon.images import to_recon_space
from dpmrecon.mrd import open_scan
from dpmrecon.output import nrmse
from dpmrecon.reconstruct import MappedSlice, sample_seed, with_coil_maps
from dpmrecon.samplers import (
    SAMPLERS,
    Denoise,
    NoiseSource,
    Problem,
    SamplerSettings,
    noise_levels,
    settings_from,
)
from tqdm import tqdm

TOLERANCE = 0.05  # of NRMSE: what still counts as the reference's own quality
SPEED_UP = 15.0


@dataclasses.dataclass
class Row:
    """One line of the table. evaluations: of the network for each slice (with a gradient in the DPS rows);
    seconds: wall time for each slice; nrmse: mean over slices; best: of its group of settings."""

    group: str
    setting: str
    evaluations: int
    nrmse: float
    slices: list[float]
    seconds: float
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Method:
    """`run` takes a slice and a denoiser to an image (rows, cols) complex64 in units of the slice's k-space."""

    group: str
    setting: str
    evaluations: int
    run: Callable[[MappedSlice, Denoise], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class BenchSettings:
    """What to run: step sizes of `dps`, weights of deepinv's DPS and of L1-wavelet, evaluations of the networks."""

    zetas: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    deepinv_weights: tuple[float, ...] = (30.0, 100.0, 300.0, 1000.0)
    l1_weights: tuple[float, ...] = (0.002, 0.005, 0.01, 0.02)
    dps_steps: int = 300
    prox_steps: int = 20
    seed: int = 0


def bench(
    scan_file: Path,
    truth_file: Path,
    mask_file: Path | None,
    checkpoint: Checkpoint,
    contrast: str | None,
    settings: BenchSettings,
    n_slices: int | None = None,
) -> list[Row]:
    """Print and return the table for the first `n_slices` slices of a scan (None: all).

    truth_file, mask_file: .npy (slices, rows, cols); NRMSE is that of `dpmrecon.output.nrmse`: one least-squares
    factor for the slices taken, their mean is quoted. Raises BadInputError where scan and truth do not fit.
    """
    truth = _read_array(truth_file)
    mask = np.ones_like(truth, dtype=bool) if mask_file is None else _read_array(mask_file) > 0
    denoiser = checkpoint.denoiser
    label = denoiser.one_hot([contrast])
    with open_scan(scan_file) as scan:
        header = scan.header
        stream = with_coil_maps(slices(scan.acquisitions(), header), denoiser.device)
        cases = list(islice(stream, n_slices))
    lost = [case for case in cases if isinstance(case, LostSlice)]
    if lost:
        raise BadInputError(f"{scan_file}: slice {lost[0].key.slice} is {lost[0].reason}; give a complete scan")
    numbers = [case.data.key.slice for case in cases]
    shape = to_recon_space(cases[0].zero_filled, header).shape
    if truth.ndim != 3 or truth.shape[1:] != shape or max(numbers) >= len(truth) or mask.shape[1:] != shape:
        raise BadInputError(
            f"the truth has shape {truth.shape} and the mask {mask.shape}, the scan needs {max(numbers) + 1} slices of "
            f"{tuple(shape)}: give the truth and the mask of this scan"
        )
    targets = truth[numbers]
    masks = np.stack([mask[number if len(mask) > 1 else 0] for number in numbers])

    methods = [*conventional_methods(settings), *own_methods(checkpoint, settings), *_deepinv_methods(settings)]
    total = len(cases) * sum(method.evaluations for method in methods)
    rows = []
    with tqdm(total=total, unit="eval", smoothing=0.05) as bar:

        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            bar.update(len(x))
            return denoiser(x, sigma, label.expand(len(x), -1))

        for method in methods:
            started = time.perf_counter()
            images = [method.run(case, denoise).cpu() for case in cases]
            seconds = (time.perf_counter() - started) / len(cases)
            pictures = np.stack([to_recon_space(image, header).abs().numpy() for image in images])
            scores = [float(score) for score in nrmse(pictures, targets, masks)]
            row = Row(method.group, method.setting, method.evaluations, float(np.mean(scores)), scores, seconds)
            rows.append(row)
            bar.write(f"  {row.group} {row.setting}: {row.nrmse:.4f}, {row.seconds:.2f} s a slice")
    mark_best(rows)
    print(f"{scan_file.name}, slices {numbers}, contrast {contrast}, model {checkpoint.model_id}")
    print(table(rows))
    for line in claims(rows):
        print(line)
    return rows


def conventional_methods(settings: BenchSettings) -> list[Method]:
    """Zero-filled, CG-SENSE as the product has it, and L1-wavelet where BART is installed."""
    found = [
        Method("zero-filled", "", 0, lambda case, _: zero_filled(case.model, _kspace(case))),
        Method("CG-SENSE", "", 0, lambda case, _: slice_scale(case.model, _kspace(case), case.data.sigma_n)[1]),
    ]
    if shutil.which("bart") is None:
        print("L1-wavelet is left out: `bart` is not on the PATH")
        return found
    for weight in settings.l1_weights:
        found.append(
            Method("L1-wavelet", f"weight {weight:g}", 0, lambda case, _, weight=weight: l1_wavelet(case, weight))
        )
    return found


def own_methods(checkpoint: Checkpoint, settings: BenchSettings) -> list[Method]:
    """`prox`: one sample, and the mean of four; `dps` for every zeta."""
    card = checkpoint.card["sampling"]
    prox = settings_from({**card["prox"], "steps": settings.prox_steps})
    found = [
        _sampling("prox", prox, 1, checkpoint, settings.seed, "1 sample"),
        _sampling("prox, mean of 4", prox, 4, checkpoint, settings.seed, "4 samples"),
    ]
    for zeta in settings.zetas:
        dps = settings_from({**card["dps"], "steps": settings.dps_steps, "zeta": zeta})
        found.append(_sampling("dps", dps, 1, checkpoint, settings.seed, f"zeta {zeta:g}"))
    return found


def _sampling(
    group: str, chosen: SamplerSettings, samples: int, checkpoint: Checkpoint, seed: int, setting: str
) -> Method:
    sample = SAMPLERS[group.split(",")[0]]
    sigma_data = checkpoint.denoiser.sigma_data

    def run(case: MappedSlice, denoise: Denoise) -> torch.Tensor:
        noise = NoiseSource([sample_seed(seed, case.data, index) for index in range(samples)], case.zero_filled.device)
        return sample(problem(case, samples), denoise, noise, chosen, sigma_data).mean(0) * case.scale

    return Method(group, setting, samples * chosen.steps, run)


def problem(case: MappedSlice, samples: int = 1) -> Problem:
    """The slice at scale 1, as `replay` gives it to a sampler."""
    return Problem(
        case.model,
        (_kspace(case) / case.scale).unsqueeze(0),
        torch.full((samples,), case.data.sigma_n / case.scale, device=case.zero_filled.device),
        (case.conventional / case.scale).expand(samples, -1, -1),
    )


def _kspace(case: MappedSlice) -> torch.Tensor:
    return case.data.kspace.to(case.zero_filled.device)


def l1_wavelet(case: MappedSlice, weight: float) -> torch.Tensor:
    """`bart pics -l1 -r weight` on the slice's coil maps and k-space: (rows, cols) complex64.

    BART divides by a scale of its own, to which the weight refers, and multiplies by it again (-S).
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, array in (("kspace", case.data.kspace), ("maps", case.model.coil_maps)):
            n_coils, rows, cols = array.shape
            # BART is column-major: cols, rows, one partition, coils
            Path(folder, f"{name}.hdr").write_text(f"# Dimensions\n{cols} {rows} 1 {n_coils}\n")
            array.cpu().contiguous().numpy().astype(np.complex64).tofile(Path(folder, f"{name}.cfl"))
        command = ["bart", "pics", "-S", "-l1", "-r", f"{weight:g}", "kspace", "maps", "image"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise BadInputError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()[-200:]}")
        image = np.fromfile(Path(folder, "image.cfl"), np.complex64)
    return torch.from_numpy(image.reshape(tuple(case.data.kspace.shape[-2:])))


def import_deepinv() -> tuple[Any, str | None]:
    """deepinv, or None and the reason: it may be absent, or its torchvision built for another torch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's packages
            import deepinv
    except (ImportError, RuntimeError, OSError) as error:
        return None, f"deepinv cannot be imported ({str(error).splitlines()[0]}): pip install dpmrecon[bench]"
    return deepinv, None


def _deepinv_methods(settings: BenchSettings) -> list[Method]:
    reason = import_deepinv()[1]
    if reason is not None:
        print(f"deepinv's DPS is left out: {reason}")
        return []
    found = []
    for weight in settings.deepinv_weights:

        def run(case: MappedSlice, denoise: Denoise, weight: float = weight) -> torch.Tensor:
            seed = sample_seed(settings.seed, case.data, 0)
            return deepinv_dps(problem(case), denoise, settings.dps_steps, weight, seed)[0] * case.scale

        found.append(Method("deepinv DPS", f"weight {weight:g}", settings.dps_steps, run))
    return found


class RealDenoiser(torch.nn.Module):
    """A denoiser of complex images as deepinv calls it: (batch, 2, rows, cols) float32, sigma a number or (batch,).

    Our sigma is per real channel and so is theirs; images of scale 1 lie about in [-1, 1], the range of their
    samplers' state, so nothing is rescaled (`minus_one_one=False`).
    """

    def __init__(self, denoise: Denoise):
        super().__init__()
        self.denoise = denoise

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float, *args, **kwargs) -> torch.Tensor:
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1).expand(len(x))
        return as_channels(self.denoise(as_complex(x), levels))


def as_complex(channels: torch.Tensor) -> torch.Tensor:
    """(batch, 2, ...) float -> (batch, ...) complex."""
    return torch.view_as_complex(channels.movedim(1, -1).contiguous())


def as_channels(array: torch.Tensor) -> torch.Tensor:
    """(batch, ...) complex -> (batch, 2, ...) float."""
    return torch.view_as_real(array).movedim(-1, 1)


def deepinv_dps(problem: Problem, denoise: Denoise, steps: int, weight: float, seed: int) -> torch.Tensor:
    """deepinv's DPS (`deepinv.sampling.DPS`, VP schedule, DDPM solver: its defaults) on one slice -> (1, rows, cols).

    Two things are not its defaults: the network's output is not clipped to [-1, 1], which suits photographs and cuts
    the brightest percent of a slice, and `minus_one_one` is off (see RealDenoiser).

    In the coordinates of a variance-exploding process its data term is weight (sigma_i^2 - sigma_{i+1}^2) grad ||r||,
    where `sample_dps`, like the published algorithm, takes 2 zeta grad ||r||: the two weights are no multiples of
    each other, and each sampler needs its own best one.
    """
    deepinv, reason = import_deepinv()
    if reason is not None:
        raise BadInputError(reason)
    physics = deepinv.physics.LinearPhysics(
        A=lambda x, **_: as_channels(problem.model.forward(as_complex(x))),
        A_adjoint=lambda y, **_: as_channels(problem.model.adjoint(as_complex(y))),
    )
    kspace = as_channels(problem.kspace)
    device = kspace.device
    sampler = deepinv.sampling.DPS(
        RealDenoiser(denoise),
        weight=weight,
        num_steps=steps + 1,  # time points: the network is not evaluated at the last one, sigma = 0
        minus_one_one=False,
        device=device,
        rng=torch.Generator(device).manual_seed(seed),
    )
    sampler.data_fidelity.clip = None
    shape = (len(problem.start), 2, *problem.start.shape[-2:])
    return as_complex(sampler(kspace, physics, x_init=shape).float())


def mark_best(rows: list[Row]) -> None:
    """In every group of settings the lowest NRMSE is the best."""
    for group in {row.group for row in rows}:
        min((row for row in rows if row.group == group), key=lambda row: row.nrmse).best = True


def table(rows: list[Row]) -> str:
    """The rows as text; the best setting of a group is marked."""
    lines = [f"{'method':<16} {'setting':<13} {'evaluations':>11} {'NRMSE':>7} {'s/slice':>8}"]
    for row in rows:
        several = sum(other.group == row.group for other in rows) > 1
        lines.append(
            f"{row.group:<16} {row.setting:<13} {row.evaluations or '':>11} {row.nrmse:>7.4f} {row.seconds:>8.2f}"
            f"{' * best by the truth' if row.best and several else ''}"
        )
    return "\n".join(lines)


def claims(rows: list[Row]) -> list[str]:
    """What the table says about `dps` as a reference and about `prox`, each with its figures and yes or NO."""
    best = {row.group: row for row in rows if row.best}
    dps, prox = best["dps"], best["prox"]
    found = []
    if "deepinv DPS" in best:
        ratio = dps.nrmse / best["deepinv DPS"].nrmse
        found.append((f"dps / deepinv's DPS in NRMSE: {ratio:.3f} (at most {1 + TOLERANCE:g})", ratio <= 1 + TOLERANCE))
    if "L1-wavelet" in best:
        other = best["L1-wavelet"].nrmse
        found.append((f"dps {dps.nrmse:.4f}, L1-wavelet {other:.4f} (dps lower)", dps.nrmse < other))
    found.append(
        (f"prox at {prox.evaluations}: {prox.nrmse:.4f}, dps: {dps.nrmse:.4f} (no worse)", prox.nrmse <= dps.nrmse)
    )
    speed = dps.seconds / max(prox.seconds, 1e-9)
    found.append((f"prox is {speed:.0f} times faster than dps (at least {SPEED_UP:g})", speed >= SPEED_UP))
    return [f"{'yes' if holds else 'NO':<4} {text}" for text, holds in found]


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path} is not a readable .npy file ({error})") from error
