"""`dpmtrain residuals`: data residuals of sound and contradictory scans, and the gate's verdicts.

The limits of dpmrecon.recon.gate are chosen from its table. Scans are simulated. Each draws matrix, coils, R,
calibration, noise, object and source of the noise level.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from dpmrecon.arrays import slice_of_arrays
from dpmrecon.data import LostSlice
from dpmrecon.errors import BadInputError
from dpmrecon.options import Options
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.recon.gate import CHECKS, expected_residual
from dpmrecon.recon.plan import sampling_of
from dpmrecon.recon.prepare import with_coil_maps
from dpmrecon.recon.sample import draw
from dpmrecon.recon.types import Reconstruction
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.slices import simulated_kspace

from ..evaluate.metrics import nrmse
from ..evaluate.tables import fields_of, write_tables

MATRICES = ((32, 32), (48, 64), (64, 64), (96, 80), (128, 128), (192, 160), (256, 256))
NOISES = (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15)  # 0: the floor is the noise level
FOV_MM = 230.0
NARROW_MM = 150.0  # of the lines: the head is wider
GOOD = 0.25  # NRMSE of an image that shows its object
BRIGHT = 2.0  # times of the largest sample: a spike


Scan = tuple[np.ndarray, np.ndarray]  # k-space (n_coils, rows, cols), all of it, and the truth (rows, cols)


@dataclass(frozen=True)
class Row:
    """One scan. signal: root mean square of its samples over the noise's; expected: what the gate takes the residual
    for; excess: the model's over it; verdict: the gate's, a dash where there is none."""

    scan: str
    matrix: str
    coils: int
    R: int
    calibration: int
    noise: float
    sigma: str
    samples: int
    signal: float
    model: float
    cg_sense: float
    expected: float
    excess: float
    nrmse: float
    verdict: str


def wrapped(settings: SimulationSettings) -> Scan:
    """Of a field of view that is narrower than the head, along the lines: what lies outside folds in."""
    rows, cols = settings.matrix
    twice = replace(settings, matrix=(2 * rows, cols), fov_mm=(2 * NARROW_MM, FOV_MM), acceleration=1)
    kspace, truth = simulated_kspace(twice)
    return kspace[:, ::2], truth[rows // 2 : rows // 2 + rows]


def sound(settings: SimulationSettings) -> Scan:
    """As it should be."""
    return simulated_kspace(replace(settings, acceleration=1))


def ghosted(settings: SimulationSettings) -> Scan:
    """Every other line lies three pixels further along the readout."""
    kspace, truth = sound(settings)
    place = np.arange(kspace.shape[2]) - kspace.shape[2] // 2
    kspace[:, 1::2] *= np.exp(-6j * np.pi * place / kspace.shape[2]).astype(np.complex64)
    return kspace, truth


def off_centre(settings: SimulationSettings) -> Scan:
    """The header's centre line is wrong by an eighth of the lines."""
    kspace, truth = sound(settings)
    return np.roll(kspace, settings.rows // 8, 1), truth


def spiked(settings: SimulationSettings) -> Scan:
    """One bright sample in one coil, on the row of the centre."""
    kspace, truth = sound(settings)
    kspace[0, settings.rows // 2, kspace.shape[2] // 8] += BRIGHT * np.abs(kspace).max()
    return kspace, truth


HEAD = ["scan", "NRMSE", "scans", "residual 5 %", "50 %", "95 %", "excess 5 %", "50 %", "95 %", "largest", "none",
        "remark", "fallback", "distrust"]  # fmt: skip
NOTES = f"""Every scan is simulated with a draw of its own of matrix (32 to 256), 2 to 16 coils, R 1 to 6, 16 or 24
calibration lines (few lines: 8), noise 0 to .15 of the bright parts, head or letters, noise level known or estimated.
Wrap: the field of view is {NARROW_MM:g} mm along the lines; ghost: every other line lies 3 pixels further; centre: the
header's centre line is wrong by an eighth; spike: one sample of one coil, {BRIGHT:g} times as bright as the brightest,
before it is left out. Excess: the residual over what the gate expects of a sound scan; the verdicts are the gate's."""


SCANS: dict[str, Callable[[SimulationSettings], Scan]] = {
    "sound": sound, "few lines": sound, "wrap": wrapped, "ghost": ghosted, "centre": off_centre, "spike": spiked
}  # fmt: skip


def drawn_settings(
    count: int, seed: int, lines_of: Sequence[int] = (16, 24)
) -> Iterator[tuple[SimulationSettings, bool]]:
    """Settings of a slice, and whether its noise level is known."""
    rng = np.random.default_rng(seed)
    while count:
        matrix = MATRICES[rng.integers(len(MATRICES))]
        coils, acceleration, lines = (int(rng.choice(found)) for found in ((2, 4, 6, 8, 16), (1, 2, 3, 4, 6), lines_of))
        noise, letters, known = float(rng.choice(NOISES)), rng.random() < 0.25, bool(rng.integers(2))
        subject, contrast = int(rng.integers(1000)), str(rng.choice(["flair", "t1", "t2", "dwi"]))
        if lines > matrix[0] // 2 or acceleration > coils:
            continue
        count -= 1
        yield (
            SimulationSettings(
                matrix=matrix, n_coils=coils, acceleration=acceleration, calibration_lines=lines, noise=noise,
                phantom="letters" if letters else "head", subject=subject, seed=subject, contrast=contrast, n_slices=1,
                noise_correlation=0.0,
            ),
            known and noise > 0,
        )  # fmt: skip


def residuals(checkpoint: Checkpoint, count: int, kinds: Sequence[str], seed: int) -> Iterator[Row]:
    """A row for each of `count` scans of each kind."""
    for kind in kinds:
        for settings, known in drawn_settings(count, seed, (8,) if kind == "few lines" else (16, 24)):
            row = row_of(checkpoint, kind, settings, known=known)
            if row is not None:
                yield row


def row_of(checkpoint: Checkpoint, kind: str, settings: SimulationSettings, *, known: bool) -> Row | None:
    """None where there is nothing to reconstruct."""
    rows = sorted({*settings.grid_rows(), *settings.calibration_rows()})
    kspace, truth = SCANS[kind](settings)
    level = settings.noise * float(np.percentile(truth, 99))
    kspace[:, np.setdiff1d(np.arange(settings.rows), rows)] = 0
    data = slice_of_arrays(kspace, None, None, level if known else None)
    try:
        (mapped,) = with_coil_maps([data], checkpoint.model.device)
    except BadInputError:
        return None
    if isinstance(mapped, LostSlice):
        return None
    sampling = sampling_of(Options(samples=1), checkpoint, checkpoint.model.device, None, data.acceleration)
    (draws,), _ = draw([mapped], checkpoint, None, sampling)
    image = draws[0] * mapped.scale
    misfit = mapped.misfit(image)
    item = Reconstruction(mapped, mapped.model.combined(image), None, None, misfit.residual, misfit=misfit)
    verdicts = [verdict.kind for check in CHECKS if (verdict := check(item)) is not None]
    expected = expected_residual(mapped)
    samples = int(mapped.data.mask.sum()) * len(mapped.data.kspace)
    energy = float(torch.view_as_real(mapped.data.kspace).square().sum())
    return Row(
        scan=kind,
        matrix=f"{settings.rows}x{settings.cols}",
        coils=settings.n_coils,
        R=settings.acceleration,
        calibration=settings.calibration_lines,
        noise=settings.noise,
        sigma="known" if known else "estimated",
        samples=samples,
        signal=(energy / (2 * samples)) ** 0.5 / mapped.data.sigma_n,
        model=item.residual,
        cg_sense=mapped.residual(mapped.conventional),
        expected=expected,
        excess=item.residual / expected,
        nrmse=nrmse(item.image.abs().cpu().numpy(), truth),
        verdict=next((kind for kind in ("fallback", "distrust", "remark") if kind in verdicts), "-"),
    )


def write_residuals(out: Path, rows: Sequence[Row], model_id: str) -> None:
    """table.csv of all scans and table.md of the kinds, which is printed too."""
    lines = [HEAD]
    for kind in dict.fromkeys(row.scan for row in rows):
        for good in (True, False):
            some = [row for row in rows if row.scan == kind and (row.nrmse < GOOD) == good]
            if some:
                lines.append(_summary(kind, good, some))
    write_tables(out, fields_of(Row, rows, digits=4), f"# Data residuals, {model_id}", NOTES, lines)


def _summary(kind: str, good: bool, rows: Sequence[Row]) -> list[str]:
    residual, excess = ([getattr(row, name) for row in rows] for name in ("model", "excess"))
    verdicts = [row.verdict for row in rows]
    return [
        kind,
        f"{'below' if good else 'from'} {GOOD}",
        str(len(rows)),
        *(f"{value:.2f}" for value in np.quantile(residual, (0.05, 0.5, 0.95))),
        *(f"{value:.2f}" for value in np.quantile(excess, (0.05, 0.5, 0.95, 1))),
        *(str(verdicts.count(word)) for word in ("-", "remark", "fallback", "distrust")),
    ]
