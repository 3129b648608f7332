"""Tables and pictures of `dpmtrain.bench.latent`."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.output.scores import METHODS
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.prior.latent import LatentModel
from matplotlib.figure import Figure

from ..evaluate.metrics import nrmse, on_scale, psnr, ssim
from ..evaluate.pictures import Shown, panels
from ..evaluate.references import ReferenceSlice
from ..evaluate.similarity import gmsd, haarpsi, kid
from ..evaluate.tables import formatted, markdown, write_tables
from ..files import save_figure
from ..train.latent import psnr as complex_psnr
from ..train.latent_stages import Features

PATCH, SHARE = 64, 0.3  # pixels a side; in the head at least
HEAD = 0.1  # of the truth's 99th percentile
WINDOW, WORST = 48, 2  # pixels a side, and pictures of each of WRONG
OURS, FROM_NOISE = "latent prior", "dual stage, from noise alone"
WRONG = (OURS, FROM_NOISE)
SHOWN = ("CG-SENSE", "Sketcher", "pixel prior", *WRONG)
OBJECT_CONTRAST = "none"
REPLAY = """
import json, sys, time
import torch
from dpmrecon.cli import main
from dpmtrain.hardware import PeakMemory
peak = PeakMemory(torch.device("cpu"))
code = main(sys.argv[1:])
print(json.dumps({"seconds": time.process_time(), "bytes": peak.read()}))
sys.exit(code)
"""
METRICS = ("NRMSE", "PSNR dB", "SSIM", "NMSE", "HaarPSI", "GMSD")


@dataclass(frozen=True)
class Case:
    """A slice at one R. pictures, seconds: by method; image: the complex truth at scale 1."""

    full: ReferenceSlice
    acceleration: int
    pictures: Mapping[str, np.ndarray]
    seconds: Mapping[str, float]
    image: torch.Tensor

    @property
    def is_head(self) -> bool:
        return self.full.contrast != OBJECT_CONTRAST

    def fitted(self, method: str) -> np.ndarray:
        """On the truth's scale."""
        return on_scale(self.pictures[method], self.full.truth)

    def scores(self, method: str) -> list[float]:
        """As METRICS."""
        found, truth, everywhere = self.fitted(method), self.full.truth, self.full.mask
        error = nrmse(found, truth)
        similar = [psnr(found, truth, everywhere), ssim(found, truth, everywhere), error**2]
        return [error, *similar, haarpsi(found, truth), gmsd(found, truth)]


@dataclass(frozen=True)
class Replayed:
    """`dpmrecon replay` of a scan by a model: NRMSE, None without a truth; seconds of the processor over slices, with
    the program's start; peak memory in MB, None where it is not known; slices that fell back."""

    model: str
    nrmse: float | None
    seconds: float
    megabytes: float | None
    fallbacks: int


def replayed(scan: Path, truth: Path | None, model: str) -> Replayed:
    """In a process of its own, on one thread. Raises BadInputError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["replay", str(scan), "--out", folder, "--model", model, "--device", "cpu"]
        options += [] if truth is None else ["--truth", str(truth)]
        done = subprocess.run(
            [sys.executable, "-c", REPLAY, *options],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if done.returncode not in (0, 3):
            raise BadInputError(f"dpmrecon {' '.join(options)} fails ({done.stderr.strip().splitlines()[-1:]})")
        report = json.loads(Path(folder, "report.json").read_text())
    used = json.loads(done.stdout.splitlines()[-1])
    slices, found = report["slices"], report.get("nrmse")
    return Replayed(
        model,
        found[METHODS[-1]]["mean"] if found else None,
        used["seconds"] / len(slices),
        None if used["bytes"] is None else used["bytes"] / 2**20,
        sum(entry["fallback"] is not None for entry in slices),
    )


class Describer:
    """Mean features of patches of magnitudes, by the deepest level of the default denoiser's way down."""

    def __init__(self) -> None:
        self.features = Features().requires_grad_(False)

    @torch.no_grad()
    def of(self, image: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """(patches, channels): of those that the head fills enough."""
        head = truth > HEAD * np.percentile(truth, 99)
        corners = [
            (top, left)
            for top in range(0, truth.shape[0] - PATCH + 1, PATCH // 2)
            for left in range(0, truth.shape[1] - PATCH + 1, PATCH // 2)
            if head[top : top + PATCH, left : left + PATCH].mean() > SHARE
        ]
        scaled = image / np.percentile(truth, 99)
        patches = np.stack([scaled[top : top + PATCH, left : left + PATCH] for top, left in corners])
        return self.features(torch.from_numpy(patches).to(torch.complex64))[-1].float().mean((2, 3)).numpy()


def main_table(cases: Sequence[Case], describer: Describer) -> list[list[str]]:
    """Means over slices; KID over their patches."""
    wanted = np.concatenate([describer.of(case.full.truth, case.full.truth) for case in cases])
    lines = [["", *METRICS, "KID", "CPU s a slice"]]
    for method in cases[0].pictures:
        means = np.mean([case.scores(method) for case in cases], 0)
        found = np.concatenate([describer.of(case.fitted(method), case.full.truth) for case in cases])
        cells = [f"{means[0]:.4f}", f"{means[1]:.2f}", f"{means[2]:.3f}", *(f"{value:.4f}" for value in means[3:])]
        seconds = np.mean([case.seconds[method] for case in cases])
        lines.append([method, *cells, f"{kid(found, wanted):.3f}", f"{seconds:.2f}"])
    return lines


def by_contrast(cases: Sequence[Case], accelerations: Sequence[int]) -> list[list[str]]:
    """NRMSE."""
    groups = [(c, r) for r in accelerations for c in dict.fromkeys(case.full.contrast for case in cases)]
    name = {OBJECT_CONTRAST: "no head"}
    lines = [["", *(f"{name.get(contrast, contrast)} R = {r}" for contrast, r in groups)]]
    for method in cases[0].pictures:
        cells = []
        for contrast, r in groups:
            group = [case for case in cases if (case.full.contrast, case.acceleration) == (contrast, r)]
            found = [nrmse(case.fitted(method), case.full.truth) for case in group if method in case.pictures]
            cells.append(f"{np.mean(found):.4f}" if found else "")
        lines.append([method, *cells])
    return lines


@torch.no_grad()
def round_trips(cases: Sequence[Case], autoencoders: Mapping[str, LatentModel]) -> list[list[str]]:
    """PSNR of decode(encode(x)), complex, in dB: mean and least of the slices."""
    first = [case for case in cases if case.acceleration == cases[0].acceleration]
    contrasts = list(dict.fromkeys(case.full.contrast for case in first))
    lines = [["autoencoder", *("no head" if c == OBJECT_CONTRAST else c for c in contrasts), "least, heads"]]
    for name, model in autoencoders.items():
        found = [(case, complex_psnr(_back(model, case.image), case.image)) for case in first]
        cells = [f"{np.mean([value for case, value in found if case.full.contrast == c]):.2f}" for c in contrasts]
        lines.append([name, *cells, f"{min(value for case, value in found if case.is_head):.2f}"])
    return lines


def _back(model: LatentModel, image: torch.Tensor) -> torch.Tensor:
    return model.decode(model.encode(image[None]), *image.shape)[0]


def worst_places(cases: Sequence[Case], method: str) -> Iterator[tuple[Case, tuple[slice, slice]]]:
    """The window of the largest error over the truth's scale, of each of the WORST slices."""
    found = []
    for number, case in enumerate(cases):
        if method not in case.pictures:
            continue
        scale = np.percentile(case.full.truth, 99)
        squared = torch.from_numpy(((case.fitted(method) - case.full.truth) / scale) ** 2)[None, None]
        means = torch.nn.functional.avg_pool2d(squared, WINDOW, 8)[0, 0]
        row, col = divmod(int(means.argmax()), means.shape[1])
        place = slice(8 * row, 8 * row + WINDOW), slice(8 * col, 8 * col + WINDOW)
        found.append((float(means.max()), number, place))
    for _, number, place in sorted(found, key=lambda entry: -entry[0])[:WORST]:
        yield cases[number], place


def worst_picture(cases: Sequence[Case]) -> Figure:
    """Truth and methods in the worst windows of each of WRONG, errors below them."""
    rows: list[list[Shown | None]] = []
    for wrong in WRONG:
        for case, place in worst_places(cases, wrong):
            truth = case.full.truth[place]
            top = float(np.percentile(truth, 99.5))
            found = {name: case.fitted(name)[place] for name in SHOWN if name in case.pictures}
            titles = {name: name + ("\nworst" if name == wrong else "") for name in found}
            rows.append([(f"{case.full.contrast}, R = {case.acceleration}", truth, 0.0, top)])
            rows[-1] += [(titles[name], image, 0.0, top) for name, image in found.items()]
            rows.append([None, *(("", np.abs(image - truth), 0.0, 0.4 * top) for image in found.values())])
    return panels(rows, 1.7)


@torch.no_grad()
def round_trip_picture(case: Case, autoencoders: Mapping[str, LatentModel]) -> Figure:
    """Truth, and what comes back, errors ten times as bright below."""
    image = case.image.abs().numpy()
    top = float(np.percentile(image, 99.5))
    rows: list[list[Shown | None]] = [[("truth", image, 0.0, top)], [None]]
    for name, model in autoencoders.items():
        back = _back(model, case.image)
        rows[0].append((f"{name}: {complex_psnr(back, case.image):.1f} dB", back.abs().numpy(), 0.0, top))
        rows[1].append(("", (back - case.image).abs().numpy(), 0.0, top / 10))
    return panels(rows, 2.6)


def write_report(
    out: Path,
    cases: Sequence[Case],
    autoencoders: Mapping[str, LatentModel],
    checkpoint: Checkpoint,
    replays: Sequence[Replayed],
) -> None:
    """table.md, printed too, table.csv, worst.png and round_trip.png."""
    heads, describer = [case for case in cases if case.is_head], Describer()
    accelerations = list(dict.fromkeys(case.acceleration for case in cases))
    count = len(heads) // len(accelerations)
    text = [f"# The latent prior, {checkpoint.model_id}, {count} test slices and an object that is no head", ""]
    text += ["## Round trip of the autoencoder, PSNR in dB, complex; peak: 99.9th percentile", ""]
    text += [*markdown(round_trips(cases, autoencoders)), ""]
    for acceleration in accelerations:
        text += [f"## R = {acceleration}, lines at random; KID on features of the default denoiser", ""]
        group = [case for case in heads if case.acceleration == acceleration]
        text += [*markdown(main_table(group, describer)), ""]
    text += ["## By contrast, NRMSE", "", *markdown(by_contrast(cases, accelerations)), ""]
    if replays:
        lines = [
            ["--model", "NRMSE", "CPU s a slice, the start of the program included", "peak MB", "slices that fell back"]
        ]
        for row in replays:
            error, memory = formatted(row.nrmse, ".4f"), formatted(row.megabytes, ".0f")
            name = "latent" if row.model.endswith(".safetensors") else row.model
            lines.append([name, error, f"{row.seconds:.2f}", memory, f"{row.fallbacks}"])
        text += ["## dpmrecon replay, one thread", "", *markdown(lines), ""]
    rows = [
        [case.full.scan, case.full.number, case.acceleration, method, *(f"{v:.4g}" for v in case.scores(method))]
        for case in cases
        for method in case.pictures
    ]
    write_tables(out, [["scan", "slice", "R", "method", *METRICS], *rows], "\n".join(text).rstrip())
    save_figure(out / "worst.png", worst_picture(heads), 64)
    save_figure(out / "round_trip.png", round_trip_picture(heads[0], autoencoders), 64)
