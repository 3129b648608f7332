"""SSDM-MRI's experiments (Liu et al.) in kind: `python -m dpmtrain.one_step.paper --images DATA --out DIR`.

Validation slices: FLAIR of patient09 with 8 coils and with one, T1 of the held-out label map with 8. Table I: seconds a
slice, all methods in turn on the same slices of one run. Table II: PSNR and SSIM by masks and R. Figure 7: PSNR and
NRMSE against R. Figure 8 in kind: the shipped one-step network has no draws to compare, so the scan is repeated with
noise of its own. A run that was stopped goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.options import Options
from dpmrecon.physics.cg_sense import WEIGHT_FACTOR
from dpmrecon.physics.fourier import to_kspace
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.prior.kinds import ONE_STEP
from dpmrecon.recon.plan import sampling_of
from matplotlib.figure import Figure

from ..arguments import exit_code, module_parser
from ..evaluate.baselines import tuned_cg_sense
from ..evaluate.engine import Group, Made, Method, Tuner, compare
from ..evaluate.methods import conventional, label_for, model_method
from ..evaluate.metrics import nrmse, on_scale
from ..evaluate.pictures import Shown, panels
from ..evaluate.plan import Condition
from ..evaluate.references import CPU, ReferenceSlice
from ..evaluate.report import HEAD, cells
from ..evaluate.score_lines import ScoreLines
from ..evaluate.scoring import Row, Undersampled
from ..evaluate.tables import write_tables
from ..evaluate.undersampling import MASKS, sampling_mask
from ..evaluate.validation import unit_maps, validation_scan
from ..files import kept, save_figure

CONTRASTS = ("flair", "t1")
TABLE_R, SINGLE_R, FIGURE_R = (4, 8, 12), (4, 8), (4, 6, 8, 10, 12)  # SINGLE_R: with one coil
TIMED = "gaussian"  # masks of Table I and figures 7 and 8
PICTURED = ("flair", Condition(TIMED, 8), 1)  # and the slice of figures 3 and 8
REPEATS = 6
DEFAULT, QUICK = "default", "default, 20 evaluations"
STEPS = {f"one-step, {steps}": Options(sampler=ONE_STEP, steps=steps) for steps in (1, 2, 4)}
HEAD_LEVEL, MAGNIFIED = 0.1, 4  # of the truth: what is brighter is head; of errors
NOTES = """{slices} validation slices of each contrast, {contrasts} (one coil: {first}); 24 calibration lines, in 2D
masks their square. R of 1D masks is nominal, as these come on top; net: samples of the matrix over those acquired.
"one-step, n": n evaluations of the shipped network. "default, 20 evaluations": one sample; "default": as it ships.
L1-wavelet has the weight that is best for one of these very slices in each condition, CG-SENSE the product's."""


class Comparison:
    """The methods on the validation slices with so many coils; scores of a run before are in the folder `out`."""

    def __init__(self, images: Path, count: int, coils: int, out: Path):
        self.images, self.count, self.coils, self.out = images, count, coils, out
        self.lines = ScoreLines(out / f"scores_{coils}.jsonl")
        self.tuner = Tuner(self.slices, 1, self.lines, CPU)
        self.models = {None: load_model(None, "cpu"), ONE_STEP: load_model(ONE_STEP, "cpu")}

    def slices(self, contrast: str) -> list[ReferenceSlice]:
        found = validation_scan(self.images, contrast)[: self.count]
        return found if self.coils > 1 else [single_coil(full) for full in found]

    def contrasts(self) -> tuple[str, ...]:
        return CONTRASTS if self.coils > 1 else CONTRASTS[:1]

    def in_full(self, contrast: str, mask: str) -> bool:
        """Whether every R is asked, and the default as it ships too."""
        return (contrast, mask) == (CONTRASTS[0], TIMED) and self.coils > 1

    def conditions(self, contrast: str) -> list[Condition]:
        usual = TABLE_R if self.coils > 1 else SINGLE_R
        return [
            Condition(mask, acceleration)
            for mask in MASKS
            for acceleration in (FIGURE_R if self.in_full(contrast, mask) else usual)
        ]

    def methods(self, contrast: str, condition: Condition) -> list[Method]:
        asked = {QUICK: Options(samples=1, steps=20), **STEPS}
        asked |= {DEFAULT: Options()} if self.in_full(contrast, condition.mask) else {}
        shapes = [tuple(full.data.mask.shape) for full in self.slices(contrast)]
        found = [Method("CG-SENSE", f"weight {WEIGHT_FACTOR:g}", _cg_sense)]
        found += conventional(("L1-wavelet",), contrast, condition, shapes, self.tuner)
        return found + [self.own(name, options, contrast, condition.R) for name, options in asked.items()]

    def own(self, name: str, options: Options, contrast: str, acceleration: int) -> Method:
        """A model with the card's settings but for the options."""
        model = self.models[options.sampler]
        sampling = sampling_of(options, model, CPU, label_for(model, contrast), acceleration)
        return model_method(name, model, sampling)

    @cached_property
    def rows(self) -> list[Row]:
        def groups() -> Iterator[Group]:
            for contrast in self.contrasts():
                for condition in self.conditions(contrast):
                    cases = (Undersampled(full, condition, CPU) for full in self.slices(contrast))
                    yield cases, self.methods(contrast, condition)

        return compare(groups(), self.lines)


def _cg_sense(here: Undersampled) -> Made:
    return Made(tuned_cg_sense(here.mapped, WEIGHT_FACTOR))


def single_coil(full: ReferenceSlice) -> ReferenceSlice:
    """The slice as one coil of uniform sensitivity sees it, with the same noise level."""
    assert full.coil_images is not None
    image = (unit_maps(*full.truth.shape).conj() * full.coil_images).sum(0, keepdim=True)
    return with_noise(replace(full, coil_images=image), full.number)


def with_noise(full: ReferenceSlice, seed: int) -> ReferenceSlice:
    """The same slice scanned once more."""
    assert full.coil_images is not None
    noise = complex_noise(tuple(full.coil_images.shape), torch.Generator().manual_seed(seed))
    kspace = to_kspace(full.coil_images) + full.data.sigma_n * noise
    return replace(full, data=replace(full.data, kspace=kspace, calibration=kspace))


def table_1(rows: Sequence[Row]) -> list[list[str]]:
    """Seconds of FLAIR slices by R, and what all take over one evaluation; what comes before is a line of its own."""
    timed = [row for row in rows if (row.condition.mask, row.contrast) == (TIMED, CONTRASTS[0])]
    by_method: dict[str, list[Row]] = {}
    for row in timed:
        by_method.setdefault(row.method, []).append(row)
    seconds = {name: [row.seconds("network", "rest") for row in found] for name, found in by_method.items()}
    first = next(iter(STEPS))
    seconds["before all: coil maps, scale and CG-SENSE"] = [row.seconds("maps", "start") for row in by_method[first]]
    lines = [["", "evaluations", *(f"R = {row.condition.R}" for row in by_method[first]), f"over {first}"]]
    for name, found in seconds.items():
        evaluations = [f"{row.mean('evaluations'):.0f}" for row in by_method.get(name, [])]
        ratio = sum(found) / sum(seconds[first])
        lines.append(
            [name, ", ".join(dict.fromkeys(evaluations)), *(f"{value:.2f}" for value in found), f"{ratio:.1f}"]
        )
    return lines


def table_2(rows: Sequence[Row], full: ReferenceSlice) -> list[list[str]]:
    """PSNR / SSIM over the slices of all contrasts by masks and R; full: whose net R is told."""
    methods = [name for name in dict.fromkeys(row.method for row in rows) if name != DEFAULT]
    lines = [["masks", "R", "net", *methods]]
    for condition in dict.fromkeys(row.condition for row in rows):
        if condition.R in TABLE_R:
            figures = []
            for name in methods:
                here = [row for row in rows if (row.condition, row.method) == (condition, name)]
                decibels, similarity = (np.mean([row.mean(value) for row in here]) for value in ("psnr", "ssim"))
                figures.append(f"{decibels:.2f} / {similarity:.3f}")
            mask = sampling_mask(condition.mask, full.data.mask, condition.R, condition.calibration_lines, full.number)
            lines.append([condition.sampling().split(",")[0], f"{condition.R}", f"{1 / mask.mean():.1f}", *figures])
    return lines


def figure_7(rows: Sequence[Row]) -> Figure:
    """PSNR and NRMSE against R, a row of panels for each contrast."""
    made = Figure((9, 6.6), layout="constrained")
    axes = made.subplots(len(CONTRASTS), 2)
    timed = [row for row in rows if row.condition.mask == TIMED]
    for line, contrast in zip(axes, CONTRASTS):
        for name in dict.fromkeys(row.method for row in timed):
            here = [row for row in timed if (row.contrast, row.method) == (contrast, name)]
            places = [row.condition.R for row in here]
            line[0].plot(places, [row.mean("psnr") for row in here], "o-", markersize=4, label=name)
            line[1].plot(places, [np.mean(row.nrmse) for row in here], "o-", markersize=4)
        for axis, label in zip(line, ("PSNR, dB", "NRMSE")):
            axis.set(xlabel="R (nominal)", ylabel=label, title=f"{contrast}, 1D Gaussian masks", xticks=FIGURE_R)
            axis.grid(alpha=0.3)
    made.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return made


Images = dict[str, np.ndarray]  # by method: magnitudes on the truth's scale, of one scan or of some


def in_half(path: Path, make: Callable[[], Images]) -> Images:
    """`kept` in half precision."""
    held = kept(path, lambda: {name: image.astype(np.float16) for name, image in make().items()})
    return {name: image.astype(np.float32) for name, image in held.items()}


def one_slice(comparison: Comparison) -> Images:
    contrast, condition, number = PICTURED
    here = Undersampled(comparison.slices(contrast)[number], condition, CPU)
    found = {"truth": here.full.truth}
    for method in comparison.methods(contrast, condition):
        found[method.name] = on_scale(here.full.picture(method.run(here).image), here.full.truth)
    return found


def repeated(comparison: Comparison) -> Images:
    """Images (REPEATS, rows, cols) of the slice scanned again, and draws of the default from the first scan."""
    contrast, condition, number = PICTURED
    full = comparison.slices(contrast)[number]
    scans = [Undersampled(with_noise(full, seed), condition, CPU) for seed in range(REPEATS)]
    found = {"truth": full.truth}

    def add(name: str, runs: list[tuple[Method, Undersampled]]) -> None:
        found[name] = np.stack([on_scale(full.picture(method.run(scan).image), full.truth) for method, scan in runs])

    for method in comparison.methods(contrast, condition):
        if method.name != DEFAULT:
            add(method.name, [(method, scan) for scan in scans])
    draws = [Options(samples=1, steps=20, seed=seed) for seed in range(REPEATS)]
    name = f"draws of {QUICK}"
    add(name, [(comparison.own(name, options, contrast, condition.R), scans[0]) for options in draws])
    return found


def deviations(found: Images) -> tuple[Images, list[list[str]]]:
    """Maps of the standard deviation; a table: its root mean square in the head, over the truth's, and errors."""
    truth = found["truth"]
    head = truth > HEAD_LEVEL
    maps, lines = {}, [["", "deviation", "NRMSE of one", "NRMSE of their mean"]]
    for name, images in found.items():
        if name != "truth":
            maps[name] = images.std(0, ddof=1)
            share = np.sqrt(np.square(maps[name][head]).mean() / np.square(truth[head]).mean())
            one = np.mean([nrmse(image, truth) for image in images])
            lines.append([name, f"{share:.4f}", f"{one:.4f}", f"{nrmse(images.mean(0), truth):.4f}"])
    return maps, lines


def grey(images: Images) -> list[Shown]:
    return [(name, image, 0.0, 1.0) for name, image in images.items()]


def figure_3(found: Images) -> Figure:
    """A slice by every method, MAGNIFIED errors below."""
    errors = {name: MAGNIFIED * np.abs(image - found["truth"]) for name, image in found.items()}
    return panels([grey(found), grey(errors)])


def report(multi: Comparison, single: Comparison, out: Path) -> None:
    """table.md, table.csv and the figures."""
    full = multi.slices(CONTRASTS[0])[0]
    maps, stability = deviations(in_half(out / "images" / "repeated.npz", partial(repeated, multi)))
    save_figure(out / "figure7.png", figure_7(multi.rows), 80)
    save_figure(out / "figure3.png", figure_3(in_half(out / "images" / "slice.npz", partial(one_slice, multi))), 60)
    save_figure(out / "figure8.png", panels([grey({name: 10 * image for name, image in maps.items()})]), 60)
    lines = [["coils", *HEAD], *(["8", *cells(row, multi.rows, QUICK)] for row in multi.rows)]
    lines += [["1", *cells(row, single.rows, QUICK)] for row in single.rows]
    contrast, condition, _ = PICTURED
    write_tables(
        out,
        lines,
        "# The experiments of SSDM-MRI in kind",
        NOTES.format(slices=multi.count, contrasts=" and ".join(CONTRASTS), first=CONTRASTS[0]),
        "## Table I: seconds a slice of 256 x 256, 8 coils, 1D Gaussian masks, one thread",
        table_1(multi.rows),
        "## Table II: PSNR in dB / SSIM, 8 coils",
        table_2(multi.rows, full),
        "## Table II: PSNR in dB / SSIM, one coil",
        table_2(single.rows, full),
        f"## Figure 8: {REPEATS} scans of one slice of {contrast}, R = {condition.R}, or draws of one scan",
        stability,
    )


def main() -> None:
    parser = module_parser(__doc__, "images", "out")
    parser.add_argument("--slices", type=int, default=3, choices=(1, 2, 3), help="of each contrast")
    args = parser.parse_args()
    torch.set_num_threads(1)
    multi, single = (Comparison(args.images, args.slices, coils, args.out) for coils in (8, 1))
    report(multi, single, args.out)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
