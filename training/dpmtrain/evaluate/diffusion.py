"""ADC and emboli of simulated EPI diffusion: `python -m dpmtrain.evaluate.diffusion`.

The head of `dpmrecon simulate --epi`: R = 2, 6/8 partial Fourier; three directions of b = 1000 with four averages, b =
0 with two; navigators, ghosts and a phase for each shot. SNR 10 a shot at b = 1000: the median signal of the head over
the noise of a real channel; b = 0 has about 21, with its two averages 30. Each image is made of all its averages, for
all methods. L1-wavelet has the weight that is best for the contrast of these very emboli, or for NRMSE. Contrast of
emboli: the mean of their voxels less the median of the ring around, added up, over the truth's.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ismrmrd
import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.navigators import Navigators
from dpmrecon.mrd.readouts import Readouts
from dpmrecon.output.maps import adc_map, trace_of
from dpmrecon.physics.epi import Ghost
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.recon.prepare import with_coil_maps
from dpmrecon.recon.types import MappedSlice
from dpmrecon.simulation.epi import DiffusionTruth, diffusion_truth
from dpmrecon.simulation.epi_settings import EpiSettings
from dpmrecon.simulation.simulate import simulate, truth_path
from scipy import ndimage

from ..arguments import exit_code, module_parser
from .baselines import tuned_cg_sense, wavelet_tool, with_weight
from .methods import by_card
from .metrics import on_scale
from .references import CPU
from .tables import show

SNR, HEAD = 10.0, 0.1  # at b = 1000; of the 99th percentile: what is head
WEIGHTS = (0.008, 0.016, 0.032, 0.064)
DIAMETERS_MM = (1, 2, 3, 4)
RING = (2, 4)  # dilations of an embolus between which its surroundings lie
Images = dict[tuple[int, int], np.ndarray]  # by (weighting, slice)
Make = Callable[[MappedSlice], torch.Tensor]


@dataclass(frozen=True)
class Scan:
    """A simulated scan: its mapped slices; truth (weightings, slices, rows, cols); what lies where; of each shot the
    N/2 ghost by its navigators, with noise and without."""

    settings: EpiSettings
    mapped: list[MappedSlice]
    truth: np.ndarray
    told: DiffusionTruth
    ghosts: list[tuple[Ghost, Ghost]]

    @classmethod
    def of(cls, subject: int, n_slices: int) -> "Scan":
        parts = {"subject": subject, "n_slices": n_slices, "averages": 4, "unweighted_averages": 2}
        clean = EpiSettings(**parts, partial_fourier=0.75, noise=0.0)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "scan.h5")
            simulate(path, clean)
            truth = np.load(truth_path(path, "truth_b"))
            without_noise = ghosts_of(path)
            weighted = truth[1:][truth[1:] > HEAD * np.percentile(truth[1:], 99)]
            noise = float(np.median(weighted) / SNR / np.percentile(truth[0], 99))
            settings = EpiSettings(**parts, partial_fourier=0.75, noise=noise)  # type: ignore[arg-type]
            simulate(path, settings)
            with open_scan(path) as scan:
                stream = slices(scan.acquisitions(), scan.header, combine_averages=True, log=scan.log)
                mapped = [item for item in with_coil_maps(stream, CPU) if isinstance(item, MappedSlice)]
            ghosts = list(zip(ghosts_of(path), without_noise))
        return cls(settings, mapped, truth, diffusion_truth(settings), ghosts)

    @property
    def ghosts_left(self) -> np.ndarray:
        """(n_shots,): amplitude of what noise in the navigators leaves of the ghost, over the signal's."""
        columns = np.square(self.truth).sum((0, 1, 2))
        place = np.arange(len(columns)) - len(columns) // 2
        wrong = [found.constant - true.constant + (found.slope - true.slope) * place for found, true in self.ghosts]
        return np.sqrt(np.average(np.sin(np.stack(wrong) / 2) ** 2, axis=1, weights=columns))

    def images(self, make: Make) -> np.ndarray:
        """Magnitudes like the truth, in its scale by one factor."""
        found = np.zeros_like(self.truth)
        for mapped in self.mapped:
            found[mapped.key.contrast, mapped.key.slice] = make(mapped).abs().numpy()
        return on_scale(found, self.truth)

    def maps(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Trace and ADC (slices, rows, cols)."""
        trace = trace_of(images[1:])
        b = self.settings.weightings
        adc = [adc_map(np.stack(pair), np.array([b[0], b[1]])) for pair in zip(images[0], trace)]
        return trace, np.stack(adc)

    def contrasts(self, trace: np.ndarray) -> dict[int, float]:
        """By the embolus' number."""
        labels = self.told.labels
        brain = self.told.fractions[:3].sum(0) > 0.9
        found = {}
        for number in range(1, int(labels.max()) + 1):
            own = labels == number
            if not own.any():
                continue
            inner, outer = (ndimage.binary_dilation(own, _cross(), iterations=n) for n in RING)
            ring = outer & ~inner & brain & (labels == 0)
            if ring.any():
                found[number] = float(trace[own].mean() - np.median(trace[ring]))
        return found


def ghosts_of(path: Path) -> list[Ghost]:
    """Of each shot, in the order of the file's slices."""
    shots: list[Navigators] = []
    with open_scan(path) as scan:
        readout = Readouts(scan.header).of(0)
        for line in scan.acquisitions():
            backwards = line.is_flag_set(ismrmrd.ACQ_IS_REVERSE)
            if not line.is_flag_set(ismrmrd.ACQ_IS_PHASECORR_DATA):
                if shots:
                    shots[-1].used = True
                continue
            if not shots or shots[-1].used:
                shots.append(Navigators())
            shots[-1].lines.append((backwards, line.data[:, ::-1].copy() if backwards else line.data))
    found = [shot.ghost(readout, shot.lines[0][1].shape) for shot in shots]
    return [ghost for ghost in found if ghost is not None]


def _cross() -> np.ndarray:
    """In the plane."""
    return np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool)


def ours(checkpoint: Checkpoint, noise_factor: float | None = None) -> Make:
    """noise_factor: None is the card's."""

    changes = {} if noise_factor is None else {"noise_factor": noise_factor}

    def make(mapped: MappedSlice) -> torch.Tensor:
        item = by_card(mapped, checkpoint, "dwi", changes)
        assert item.fallback is None, item
        return item.image

    return make


def nrmse(scan: Scan, images: np.ndarray) -> float:
    return float(np.linalg.norm(images[1:] - scan.truth[1:]) / np.linalg.norm(scan.truth[1:]))


def kept(scan: Scan, images: np.ndarray, diameters_mm: Sequence[int] = DIAMETERS_MM) -> float:
    """Contrast of all emboli of these diameters over the truth's."""
    wanted, found = (scan.contrasts(scan.maps(each)[0]) for each in (scan.truth, images))
    chosen = [number for number in wanted if round(scan.told.emboli[number - 1].diameter_mm) in diameters_mm]
    return sum(found[number] for number in chosen) / sum(wanted[number] for number in chosen)


def methods(scan: Scan, checkpoint: Checkpoint, factors: Sequence[float]) -> Iterator[tuple[str, np.ndarray]]:
    yield f"dpmrecon, {checkpoint.model_id}", scan.images(ours(checkpoint))
    for factor in factors:
        yield f"the same, noise_factor {factor:g}", scan.images(ours(checkpoint, factor))
    yield "CG-SENSE", scan.images(with_weight(tuned_cg_sense, 10.0))
    name, wavelet = wavelet_tool([scan.truth.shape[-2:]])
    tried = {weight: scan.images(with_weight(wavelet, weight)) for weight in WEIGHTS}
    by_contrast = max(WEIGHTS, key=lambda weight: -abs(1 - kept(scan, tried[weight])))
    by_error = min(WEIGHTS, key=lambda weight: nrmse(scan, tried[weight]))
    yield f"{name}, {by_error:g}, best NRMSE", tried[by_error]
    yield f"{name}, {by_contrast:g}, best contrast", tried[by_contrast]


def adc_cells(scan: Scan, adc: np.ndarray) -> Iterator[str]:
    """Mean ADC of white matter and of the infarct over the truth's, and the error of the tissues' own values."""
    true = scan.maps(scan.truth)[1]
    for where in (scan.told.white, scan.told.infarct):
        inside = ndimage.binary_erosion(where, _cross())
        if not inside.any():
            yield "none"
            continue
        mean = adc[inside].mean()
        yield f"{mean * 1e3:.3f} ({mean / true[inside].mean() - 1:+.1%})"


def rows(scan: Scan, checkpoint: Checkpoint, factors: Sequence[float]) -> Iterator[list[str]]:
    yield _row(scan, "truth", scan.truth)
    yield from (_row(scan, *found) for found in methods(scan, checkpoint, factors))


def _row(scan: Scan, name: str, images: np.ndarray) -> list[str]:
    trace, adc = scan.maps(images)
    dark = (scan.maps(scan.truth)[0] < HEAD * np.percentile(scan.truth[1:], 99)) & (scan.told.fractions.sum(0) > 0.9)
    bias = (trace - scan.maps(scan.truth)[0])[dark].mean() / np.median(trace[scan.told.white])
    return [
        name,
        *adc_cells(scan, adc),
        f"{nrmse(scan, images):.4f}",
        f"{kept(scan, images):.2f}",
        *(f"{kept(scan, images, [diameter]):.2f}" for diameter in DIAMETERS_MM),
        f"{bias:+.3f}",
    ]


HEADS = ["method", "ADC of white matter", "of the infarct", "NRMSE, b = 1000", "emboli: all"]
HEADS += [*(f"{diameter} mm" for diameter in DIAMETERS_MM), "bias where dark"]


def main() -> None:
    parser = module_parser(__doc__, "model")
    parser.add_argument("--slices", type=int, default=3)
    parser.add_argument("--noise-factor", type=float, nargs="*", default=[], help="of `prox`, beside the card's")
    parser.add_argument("--subject", type=int, default=0)
    args = parser.parse_args()
    checkpoint = load_model(args.model, "cpu")
    scan = Scan.of(args.subject, args.slices)
    count = len(scan.contrasts(scan.maps(scan.truth)[0]))
    print(f"# Diffusion by EPI, subject {args.subject}, {args.slices} slices, {count} emboli, SNR {SNR:g} a shot\n")
    left = scan.ghosts_left
    print(
        f"N/2 ghost of {len(left)} shots over the signal: {max(true.before for _, true in scan.ghosts):.1%} at most; "
        f"once it is corrected {np.sqrt(np.mean(left**2)):.2%} (RMS), {left.max():.2%} at most.\n"
    )
    print("ADC in 1e-3 mm^2/s, and its error against that of the true images.\n")
    show(HEADS, rows(scan, checkpoint, args.noise_factor))


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
