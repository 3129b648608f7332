"""Susceptibility from undersampled echoes: `python -m dpmtrain.one_step.qsm --images DATA --out DIR`.

Simulates a head's gradient echoes (`qsm_cases.py`), fully sampled and at R = 8. Each echo is made by CG-SENSE, the
one-step network and the default prior. Their phase gives the field and the susceptibility. Writes a table in markdown
and CSV and a picture. Images that are there already are not made again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.errors import BadInputError, DpmreconError
from dpmrecon.physics.fourier import to_image, to_kspace
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.prior.kinds import ONE_STEP
from dpmrecon.recon.types import MappedVolume
from matplotlib.figure import Figure

from ..arguments import exit_code, module_parser
from ..data.veins import LARMOR_HZ_PER_PPM, dipole
from ..evaluate.methods import by_card
from ..evaluate.metrics import nrmse
from ..evaluate.swi_cases import in_map_phase
from ..evaluate.tables import fields_of, write_tables
from ..evaluate.validation_volumes import HELD_OUT
from ..files import kept, save_figure
from .qsm_cases import BLOCK, ECHOES_MS, FIRST_BLOCK, NUCLEI, Head, R, Scan, head

THRESHOLD = 0.15  # of the dipole's modulus
REFINED = 2  # fits to what the last one leaves of the phase
TRUTH, FULL = "truth, without noise", "full scan"
SHOWN_PPM = 0.15
ERROR = 0.03  # of the networks at R = 8; the card for volumes has it at R = 2 x 2
NOTES = """{shape} voxels of 2 mm, {coils} coils, 8 echoes of {first:g} to {last:g} ms, a Poisson disc of lines
for each. The first has a block of {block} x {block} lines, for the coil maps of all, the others {rest} x {rest}: R is
{net:.1f} net. Each echo is reconstructed alone. Field: a line through the phase, weighted by the squared magnitude.
Susceptibility: truncated k-space division (Shmueli et al., MRM 2009) at {threshold:g}, over the mean of what it keeps
(Schweser et al., MRM 2013). Slope, intercept and R2: of the line through the means of thalamus, caudate, putamen and
pallidum of both sides, against the truth. Vein, bleed: mean over the truth's. Field: root mean square error in the
brain. NRMSE: of magnitudes. "one-step, n": n evaluations an echo, error {error:g}, else both models by
their cards for volumes."""


def field_hz(echoes: np.ndarray, times_ms: Sequence[float]) -> np.ndarray:
    """Hz, (...) float32, of complex echoes (n_echoes, ...) at equal distances, each with the same phase at 0 ms.

    From echo to echo the phase must change by less than half a turn.
    """
    times = np.asarray(times_ms).reshape(-1, *[1] * (echoes.ndim - 1))
    slope = np.angle((echoes[1:] * echoes[:-1].conj()).sum(0)) / (times[1] - times[0])  # rad / ms
    weight = np.square(np.abs(echoes)) + 1e-12
    centre = (weight * times).sum(0) / weight.sum(0)
    spread = (weight * np.square(times - centre)).sum(0)
    for _ in range(REFINED):
        left = echoes * np.exp(-1j * slope * times)
        rest = np.angle(left * left.sum(0).conj())
        slope = slope + (weight * (times - centre) * rest).sum(0) / spread
    return (1e3 * slope / (2 * np.pi)).astype(np.float32)


def inverted(field: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Susceptibility in ppm, float32, of a field in Hz (partitions, rows, cols), the main one along partitions."""
    response = dipole(field.shape, 0)
    response[tuple(size // 2 for size in field.shape)] = 0  # the mean has no field
    division = response.sign() / response.abs().clamp_min(threshold)
    kept = (response * division).mean()
    kspace = to_kspace(torch.from_numpy(field / LARMOR_HZ_PER_PPM).to(torch.complex64), (0, 1, 2))
    return (to_image(kspace * division, (0, 1, 2)).real / kept).numpy()


@dataclass(frozen=True)
class QsmRow:
    method: str
    evaluations: int
    first: float
    last: float
    field_hz: float
    slope: float
    intercept: float
    r2: float
    vein: float
    bleed: float
    seconds: float


@dataclass(frozen=True)
class Found:
    """A method's echoes, (n_echoes, partitions, rows, cols) complex64; seconds of sampling an echo; evaluations of the
    network for each."""

    method: str
    echoes: np.ndarray
    seconds: float
    evaluations: int


def images_of(scan: Scan, folder: Path) -> Iterator[Found]:
    """Of every method; an echo is mapped once for all that were not made before."""
    yield Found(TRUTH, scan.head.echoes.numpy(), 0.0, 0)
    one_step, default = load_model(ONE_STEP, "cpu"), load_model(None, "cpu")
    makers: dict[str, tuple[int, Checkpoint | None, dict]] = {
        FULL: (1, None, {}),
        "CG-SENSE": (R, None, {}),
        "one-step, 1": (R, one_step, {"steps": 1, "error": ERROR}),
        "one-step, 4": (R, one_step, {"steps": 4, "error": ERROR}),
        "default": (R, default, {}),
    }
    mapped = lru_cache(2)(scan.mapped)
    made: dict[str, list[tuple[np.ndarray, float, int]]] = {name: [] for name in makers}
    for echo in range(len(ECHOES_MS)):
        for name, (acceleration, checkpoint, changes) in makers.items():
            make = partial(_made, mapped, echo, acceleration, checkpoint, changes)
            held = kept(folder / f"{name}, echo {echo + 1}.npz", make)
            made[name].append((held["image"], float(held["seconds"]), int(held["evaluations"])))
    for name, found in made.items():
        echoes, seconds_of, evaluations_of = zip(*found)
        yield Found(name, np.stack(echoes), float(np.mean(seconds_of)), evaluations_of[0])


def _made(
    mapped_at: Callable[[int, int], MappedVolume],
    echo: int,
    acceleration: int,
    checkpoint: Checkpoint | None,
    changes: dict,
) -> dict[str, np.ndarray]:
    """Image, seconds and evaluations; without a checkpoint the CG-SENSE image."""
    mapped = mapped_at(echo, acceleration)
    image, seconds, evaluations = mapped.conventional, mapped.seconds["conventional"], 0
    if checkpoint is not None:
        item = by_card(mapped, checkpoint, "swi", changes)
        if item.fallback:
            raise DpmreconError(f"the sampler's image is not used: {item.fallback}")
        image, seconds, evaluations = item.image, item.seconds["sampling"], item.evaluations
    found = (in_map_phase(mapped, image), np.array(seconds), np.array(evaluations))
    return dict(zip(("image", "seconds", "evaluations"), found))


def judged(found: Found, of: Head) -> tuple[QsmRow, np.ndarray, np.ndarray]:
    """The row, the susceptibility in ppm, and the means of the nuclei (2, n): the truth's and the found ones."""
    truth_field = field_hz(of.echoes.numpy(), ECHOES_MS)
    field = field_hz(found.echoes, ECHOES_MS)
    ppm = inverted(field * of.brain)
    error = (field - truth_field)[of.brain]
    means = np.array(
        [[image[where].mean() for name, where in of.places.items() if "," in name] for image in (of.ppm, ppm)]
    )
    slope, intercept = np.polyfit(means[0], means[1], 1)
    ratio = {name: float(ppm[of.places[name]].sum() / of.ppm[of.places[name]].sum()) for name in ("vein", "bleed")}
    first, last = (nrmse(np.abs(found.echoes[n]), np.abs(of.echoes[n].numpy())) for n in (0, -1))
    row = QsmRow(
        found.method, found.evaluations, first, last, float(np.sqrt(np.square(error - np.median(error)).mean())),
        float(slope), float(intercept), float(np.corrcoef(*means)[0, 1] ** 2), **ratio, seconds=found.seconds,
    )  # fmt: skip
    return row, ppm, means


def picture(of: Head, maps: dict[str, np.ndarray], means: dict[str, np.ndarray]) -> Figure:
    """A partition through the nuclei: the truth and all methods, their errors below, and the nuclei's means."""
    names = list(maps)
    inside = np.any([where for name, where in of.places.items() if "pallidum" in name], 0)
    middle = int(inside.sum((1, 2)).argmax())
    made = Figure((2.4 * (len(names) + 1), 8.2), layout="constrained")
    axes = made.subplots(3, len(names) + 1)
    shown = {"truth": of.ppm, **maps}
    for column, (name, ppm) in enumerate(shown.items()):
        error = (ppm - of.ppm) * of.brain
        for line, image in enumerate((ppm * of.brain, error)):
            panel = axes[line, column]
            panel.imshow(image[middle], cmap="gray", vmin=-SHOWN_PPM, vmax=SHOWN_PPM, interpolation="nearest")
            panel.set_title(name if not line else "error", fontsize=8)
            panel.set_axis_off()
    axes[2, 0].set_axis_off()
    for column, name in enumerate(names, 1):
        panel, (truth, found) = axes[2, column], means[name]
        for number, nucleus in enumerate(NUCLEI):
            panel.plot(truth[2 * number : 2 * number + 2], found[2 * number : 2 * number + 2], "o", label=nucleus)
        ends = np.array([0, 0.14])
        panel.plot(ends, ends, color="grey", linewidth=0.8)
        panel.plot(ends, np.polyval(np.polyfit(truth, found, 1), ends), color="black", linewidth=0.8)
        panel.set(xlabel="truth, ppm", xlim=(0, 0.14), ylim=(-0.03, 0.14))
        panel.tick_params(labelsize=7)
    axes[2, 1].set_ylabel("found, ppm")
    axes[2, 1].legend(fontsize=6)
    return made


def report(scan: Scan, out: Path) -> None:
    rows, maps, means = [], {}, {}
    for found in images_of(scan, out / "images"):
        row, maps[found.method], means[found.method] = judged(found, scan.head)
        rows.append(row)
    heads = ["", "evaluations", "NRMSE, first echo", "last", "field, Hz", "slope", "intercept, ppm", "R2"]
    lines = [[*heads, "vein", "bleed", "seconds an echo"]]
    for row in rows:
        numbers = (f"{row.first:.4f}", f"{row.last:.4f}", f"{row.field_hz:.2f}", f"{row.slope:.3f}")
        more = (f"{row.intercept:+.4f}", f"{row.r2:.3f}", f"{row.vein:.2f}", f"{row.bleed:.2f}", f"{row.seconds:.1f}")
        lines.append([row.method, str(row.evaluations), *numbers, *more])
    notes = NOTES.format(
        shape=" x ".join(map(str, scan.shape)), coils=len(scan.coils), first=ECHOES_MS[0], last=ECHOES_MS[-1],
        block=FIRST_BLOCK, rest=BLOCK, net=float(1 / scan.mapped(len(ECHOES_MS) - 1, R).data.mask.mean()),
        threshold=THRESHOLD, error=ERROR,
    )  # fmt: skip
    save_figure(out / "qsm.png", picture(scan.head, maps, means), 80)
    write_tables(out, fields_of(QsmRow, rows, digits=5), f"# Susceptibility at R = {R}", notes, lines)


def main() -> None:
    args = module_parser(__doc__, "images", "out").parse_args()
    torch.set_num_threads(1)
    path = args.images / f"synthseg_labels/{HELD_OUT}.nii.gz"
    if not path.is_file():
        raise BadInputError(f"{path} does not exist: give the folder with synthseg_labels/ as --images")
    report(Scan(head(path, 0)), args.out)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
