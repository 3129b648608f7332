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
from dpmrecon.mrd import contrast_label, open_scan
from dpmrecon.output import nrmse
from dpmrecon.reconstruct import MappedSlice, sample_seed, with_coil_maps
from dpmrecon.samplers import (
    SAMPLERS,
    Denoise,
    NoiseSource,
    Problem,
    SamplerSettings,
    initial_image,
    noise_levels,
    settings_from,
)
from tqdm import tqdm

TOLERANCE = 0.05  # of NRMSE: what still counts as the reference's own quality
SPEED_UP = 15.0
DEEPINV_DEFAULT = "deepinv DPS"
DEEPINV_PUBLISHED = "deepinv DPS, published step"


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
    """What to run. zetas: of `dps` and of deepinv's DPS with the published step; deepinv_weights: of deepinv's DPS as
    it comes; l1_weights: of L1-wavelet; dps_steps, prox_steps: evaluations of the network."""

    zetas: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    deepinv_weights: tuple[float, ...] = (300.0, 1000.0, 3000.0)
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
) -> dict:
    """Print the table for the first `n_slices` slices of a scan (None: all), on the CPU; returns it as a report.

    truth_file, mask_file: .npy (slices, rows, cols); NRMSE is that of `dpmrecon.output.nrmse`: one least-squares
    factor for the slices taken, their mean is quoted. contrast: None takes it from the scan's protocol name.
    Raises BadInputError where scan and truth do not fit.
    """
    truth = _read_array(truth_file)
    mask = np.ones_like(truth, dtype=bool) if mask_file is None else _read_array(mask_file) > 0
    with open_scan(scan_file) as scan:
        header = scan.header
        stream = with_coil_maps(slices(scan.acquisitions(), header), torch.device("cpu"))
        cases = [_complete(case, scan_file) for case in islice(stream, n_slices)]
    contrast = contrast or contrast_label(header)
    numbers = [case.data.key.slice for case in cases]
    shape = tuple(to_recon_space(cases[0].zero_filled, header).shape)
    if truth.ndim != 3 or truth.shape[1:] != shape or max(numbers) >= len(truth) or mask.shape[-2:] != shape:
        raise BadInputError(
            f"the truth has shape {truth.shape} and the mask {mask.shape}, the scan needs {max(numbers) + 1} slices of "
            f"{shape}: give the truth and the mask of this scan"
        )
    targets = truth[numbers]
    masks = np.broadcast_to(mask, truth.shape)[numbers]

    print(f"{scan_file.name}, slices {numbers}, contrast {contrast}, model {checkpoint.model_id}")
    methods = [
        *conventional_methods(cases, settings),
        *own_methods(checkpoint, settings),
        *deepinv_methods(checkpoint, settings),
    ]
    denoiser = checkpoint.denoiser
    label = denoiser.one_hot([contrast])
    denoiser(cases[0].conventional[None], torch.ones(1), label)  # the first call is slower: keep it out of the times
    rows = []
    with tqdm(total=len(cases) * sum(method.evaluations for method in methods), unit="eval", smoothing=0.05) as bar:

        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            bar.update(len(x))
            return denoiser(x, sigma, label.expand(len(x), -1))

        for method in methods:
            started = time.perf_counter()
            images = [method.run(case, denoise) for case in cases]
            seconds = (time.perf_counter() - started) / len(cases)
            pictures = np.stack([to_recon_space(image, header).abs().numpy() for image in images])
            scores = [float(score) for score in nrmse(pictures, targets, masks)]
            rows.append(Row(method.group, method.setting, method.evaluations, float(np.mean(scores)), scores, seconds))
            bar.write(line(rows[-1]))
    mark_best(rows)
    found = claims(rows)
    print("\n".join([table(rows), *found]))
    return {
        "scan": scan_file.name,
        "slices": numbers,
        "contrast": contrast,
        "model_id": checkpoint.model_id,
        "threads": torch.get_num_threads(),
        "settings": dataclasses.asdict(settings),
        "rows": [dataclasses.asdict(row) for row in rows],
        "claims": found,
    }


def _complete(case: MappedSlice | LostSlice, scan_file: Path) -> MappedSlice:
    if isinstance(case, LostSlice):
        raise BadInputError(f"{scan_file}: slice {case.key.slice}: {case.reason}; give a complete scan")
    return case


def conventional_methods(cases: list[MappedSlice], settings: BenchSettings) -> list[Method]:
    """Zero-filled, CG-SENSE as the product has it, and L1-wavelet where BART is installed and the grids are even."""

    def cg_sense(case: MappedSlice, _: Denoise) -> torch.Tensor:
        return slice_scale(case.model, case.data.kspace, case.data.sigma_n)[1]

    found = [
        Method("zero-filled", "", 0, lambda case, _: zero_filled(case.model, case.data.kspace)),
        Method("CG-SENSE", "", 0, cg_sense),
    ]
    if shutil.which("bart") is None:
        print("L1-wavelet is left out: `bart` is not on the PATH")
    elif any(size % 2 for case in cases for size in case.data.kspace.shape[-2:]):
        print("L1-wavelet is left out: BART's pics needs even sizes")
    else:
        for weight in settings.l1_weights:

            def wavelet(case: MappedSlice, _: Denoise, weight: float = weight) -> torch.Tensor:
                return l1_wavelet(case, weight)

            found.append(Method("L1-wavelet", f"weight {weight:g}", 0, wavelet))
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
        dps = _dps_settings(checkpoint, settings, zeta)
        found.append(_sampling("dps", dps, 1, checkpoint, settings.seed, f"zeta {zeta:g}"))
    return found


def _dps_settings(checkpoint: Checkpoint, settings: BenchSettings, zeta: float) -> SamplerSettings:
    return settings_from({**checkpoint.card["sampling"]["dps"], "steps": settings.dps_steps, "zeta": zeta})


def _sampling(
    group: str, chosen: SamplerSettings, samples: int, checkpoint: Checkpoint, seed: int, setting: str
) -> Method:
    sample = SAMPLERS[group.split(",")[0]]
    sigma_data = checkpoint.denoiser.sigma_data

    def run(case: MappedSlice, denoise: Denoise) -> torch.Tensor:
        noise = NoiseSource([sample_seed(seed, case.data, index) for index in range(samples)])
        return sample(problem(case, samples), denoise, noise, chosen, sigma_data).mean(0) * case.scale

    return Method(group, setting, samples * chosen.steps, run)


def problem(case: MappedSlice, samples: int = 1) -> Problem:
    """The slice at scale 1, as `replay` gives it to a sampler."""
    return Problem(
        case.model,
        (case.data.kspace / case.scale).unsqueeze(0),
        torch.full((samples,), case.data.sigma_n / case.scale),
        (case.conventional / case.scale).expand(samples, -1, -1),
    )


def l1_wavelet(case: MappedSlice, weight: float) -> torch.Tensor:
    """`bart pics -l1 -r weight` on the slice's coil maps and k-space: (rows, cols) complex64.

    BART divides by a scale of its own, to which the weight refers, and multiplies by it again (-S). On grids whose
    size is no multiple of 4 its image has a global phase of its own. Raises BadInputError for odd sizes, where
    version 0.8 misplaces k-space against the maps.
    """
    shape = tuple(case.data.kspace.shape[-2:])
    if any(size % 2 for size in shape):
        raise BadInputError(f"the grid is {shape[0]} x {shape[1]}, and BART's pics needs even sizes: leave it out")
    with tempfile.TemporaryDirectory() as folder:
        for name, array in (("kspace", case.data.kspace), ("maps", case.model.coil_maps)):
            n_coils, rows, cols = array.shape
            # BART is column-major: cols, rows, one partition, coils
            Path(folder, f"{name}.hdr").write_text(f"# Dimensions\n{cols} {rows} 1 {n_coils}\n")
            array.contiguous().numpy().astype(np.complex64).tofile(Path(folder, f"{name}.cfl"))
        command = ["bart", "pics", "-S", "-l1", "-r", f"{weight:g}", "kspace", "maps", "image"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise BadInputError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()[-200:]}")
        image = np.fromfile(Path(folder, "image.cfl"), np.complex64)
    return torch.from_numpy(image.reshape(shape))


def import_deepinv() -> tuple[Any, str | None]:
    """deepinv, or None and the reason: it may be absent, or its torchvision built for another torch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's packages
            import deepinv
    except (ImportError, RuntimeError, OSError) as error:
        return None, f"deepinv cannot be imported ({str(error).splitlines()[0]}): pip install dpmrecon[bench]"
    return deepinv, None


def deepinv_methods(checkpoint: Checkpoint, settings: BenchSettings) -> list[Method]:
    """deepinv's DPS as it comes for every weight, and with the published step for every zeta, where installed."""
    reason = import_deepinv()[1]
    if reason is not None:
        print(f"deepinv's DPS is left out: {reason}")
        return []
    found = []
    for weight in settings.deepinv_weights:

        def default(case: MappedSlice, denoise: Denoise, weight: float = weight) -> torch.Tensor:
            seed = sample_seed(settings.seed, case.data, 0)
            return (
                deepinv_dps(problem(case), _supported(denoise, case), settings.dps_steps, weight, seed)[0] * case.scale
            )

        found.append(Method(DEEPINV_DEFAULT, f"weight {weight:g}", settings.dps_steps, default))
    for zeta in settings.zetas:
        chosen = _dps_settings(checkpoint, settings, zeta)

        def published(case: MappedSlice, denoise: Denoise, chosen: SamplerSettings = chosen) -> torch.Tensor:
            seed = sample_seed(settings.seed, case.data, 0)
            return deepinv_published_dps(problem(case), _supported(denoise, case), chosen, seed)[0] * case.scale

        found.append(Method(DEEPINV_PUBLISHED, f"zeta {zeta:g}", settings.dps_steps, published))
    return found


def _supported(denoise: Denoise, case: MappedSlice) -> Denoise:
    """As in our samplers: where no coil sees anything there is no head."""
    return lambda x, sigma: case.model.support * denoise(x, sigma)


class RealDenoiser(torch.nn.Module):
    """A denoiser of complex images as deepinv calls it: (batch, 2, rows, cols) float32, sigma a number or (batch,).

    Our sigma is per real channel and so is theirs; images of scale 1 lie about in [-1, 1], the range of their
    samplers' state, so nothing is rescaled (`minus_one_one=False`).
    """

    def __init__(self, denoise: Denoise):
        super().__init__()
        self.denoise = denoise

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float, *args, **kwargs) -> torch.Tensor:
        levels = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1).expand(len(x))
        return as_channels(self.denoise(as_complex(x), levels))


def as_complex(channels: torch.Tensor) -> torch.Tensor:
    """(batch, 2, ...) float -> (batch, ...) complex."""
    return torch.view_as_complex(channels.movedim(1, -1).contiguous())


def as_channels(array: torch.Tensor) -> torch.Tensor:
    """(batch, ...) complex -> (batch, 2, ...) float."""
    return torch.view_as_real(array).movedim(-1, 1)


def deepinv_dps(problem: Problem, denoise: Denoise, steps: int, weight: float, seed: int) -> torch.Tensor:
    """`deepinv.sampling.DPS` as it comes (VP schedule from sigma = 152 down, DDPM solver): (batch, rows, cols).

    Two things are not its defaults: the network's output is not clipped to [-1, 1], which suits photographs and cuts
    the brightest percent of a slice, and `minus_one_one` is off (see RealDenoiser).
    """
    # time points: the network is not evaluated at the last one, sigma = 0
    sampler = _deepinv_sampler(denoise, seed, weight=weight, num_steps=steps + 1)
    shape = (len(problem.start), 2, *problem.start.shape[-2:])
    return _deepinv_run(sampler, problem, shape)


def deepinv_published_dps(
    problem: Problem, denoise: Denoise, settings: SamplerSettings, seed: int, *, ancestral: bool = True
) -> torch.Tensor:
    """deepinv's DPS on the noise levels of `sample_dps`, with the published step size: (batch, rows, cols).

    In variance-exploding coordinates the data term of deepinv 0.5 is weight (sigma_i^2 - sigma_{i+1}^2) grad ||r||,
    which fades with sigma; the published algorithm (Chung et al., ICLR 2023), and `sample_dps`, take the same
    2 zeta grad ||r|| in every step. The weight of each step is chosen so here. ancestral: DDPM steps, deepinv's
    default; without, DDIM steps, which `sample_dps` must then reproduce number by number.
    """
    deepinv, reason = import_deepinv()
    if deepinv is None:
        raise BadInputError(reason)
    levels = torch.tensor(noise_levels(settings), dtype=torch.float64)
    high, low = levels[:-1], levels[1:]
    weights = iter((2 * settings.zeta / (high.square() - (low.square() if ancestral else high * low))).tolist())

    class PublishedStep(deepinv.sampling.DPSDataFidelity):  # type: ignore[name-defined]
        def forward(self, *args, **kwargs):
            self.weight = next(weights)  # called once a step
            return super().forward(*args, **kwargs)

    solver = deepinv.sampling.DDPMSolver if ancestral else deepinv.sampling.DDIMSolver
    solver = solver(timesteps=vp_times(levels), rng=torch.Generator().manual_seed(seed))
    sampler = _deepinv_sampler(denoise, seed, solver=solver)
    sampler.data_fidelity = PublishedStep(sampler.data_fidelity.denoiser)
    start = initial_image(problem, NoiseSource([seed]), settings)
    # a variance-preserving state is x / sqrt(1 + sigma^2)
    return _deepinv_run(sampler, problem, as_channels(start).double() / (1 + levels[0].square()).sqrt())


def vp_times(levels: torch.Tensor) -> torch.Tensor:
    """The times at which deepinv's VariancePreservingDiffusion (beta from 0.1 to 20) has the noise `levels`."""
    slope = 20.0 - 0.1
    return ((0.1**2 + 2 * slope * levels.square().log1p()).sqrt() - 0.1) / slope


def _deepinv_sampler(denoise: Denoise, seed: int, **options) -> Any:
    deepinv, reason = import_deepinv()
    if reason is not None:
        raise BadInputError(reason)
    rng = torch.Generator().manual_seed(seed)
    sampler = deepinv.sampling.DPS(RealDenoiser(denoise), minus_one_one=False, rng=rng, **options)
    sampler.data_fidelity.clip = None
    return sampler


def _deepinv_run(sampler: Any, problem: Problem, start: torch.Tensor | tuple[int, ...]) -> torch.Tensor:
    physics = import_deepinv()[0].physics.LinearPhysics(
        A=lambda x, **_: as_channels(problem.model.forward(as_complex(x))),
        A_adjoint=lambda y, **_: as_channels(problem.model.adjoint(as_complex(y))),
    )
    return as_complex(sampler(as_channels(problem.kspace), physics, x_init=start).float())


def mark_best(rows: list[Row]) -> None:
    """In every group of settings the lowest NRMSE is the best."""
    for group in {row.group for row in rows}:
        min((row for row in rows if row.group == group), key=lambda row: row.nrmse).best = True


def table(rows: list[Row]) -> str:
    """The rows as text; the best setting of a group is marked."""
    lines = [f"{'method':<27} {'setting':<12} {'evaluations':>11} {'NRMSE':>7} {'s/slice':>8}"]
    for row in rows:
        several = sum(other.group == row.group for other in rows) > 1
        lines.append(line(row) + (" * best by the truth" if row.best and several else ""))
    return "\n".join(lines)


def line(row: Row) -> str:
    """One row as text."""
    return f"{row.group:<27} {row.setting:<12} {row.evaluations or '':>11} {row.nrmse:>7.4f} {row.seconds:>8.2f}"


def claims(rows: list[Row]) -> list[str]:
    """What the table says about `dps` as a reference and about `prox`, each with its figures and yes or NO."""
    best = {row.group: row for row in rows if row.best}
    dps, prox = best["dps"], best["prox"]
    found = []
    theirs = [best[group] for group in (DEEPINV_DEFAULT, DEEPINV_PUBLISHED) if group in best]
    if theirs:
        other = min(theirs, key=lambda row: row.nrmse)
        ratio = dps.nrmse / other.nrmse
        text = f"dps {dps.nrmse:.4f}, the better of deepinv's {other.nrmse:.4f}: ratio {ratio:.3f}, within 5 %"
        found.append((text, abs(ratio - 1) <= TOLERANCE))
    if "L1-wavelet" in best:
        wavelet = best["L1-wavelet"].nrmse
        found.append((f"dps {dps.nrmse:.4f} is below L1-wavelet {wavelet:.4f}", dps.nrmse < wavelet))
    found.append(
        (
            f"prox at {prox.evaluations} evaluations {prox.nrmse:.4f} is no worse than dps at {dps.evaluations} "
            f"{dps.nrmse:.4f}",
            prox.nrmse <= dps.nrmse,
        )
    )
    speed = dps.seconds / max(prox.seconds, 1e-9)
    found.append((f"prox is {speed:.0f} times faster than dps, at least {SPEED_UP:g}", speed >= SPEED_UP))
    return [f"{'yes' if holds else 'NO':<4} {text}" for text, holds in found]


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path} is not a readable .npy file ({error})") from error
