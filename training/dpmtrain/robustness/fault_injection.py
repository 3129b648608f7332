"""`dpmtrain faults`: random sound scans, each with one random fault put in, through the whole product.

A fault may be refused, remarked on, or harmless. A bad image without a word is unseen, and is listed. The same scans
without a fault come out without a remark.
"""

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from dpmrecon.cli import main
from dpmrecon.mrd.flags import LAST_IN_SLICE
from dpmrecon.physics.fourier import crop_or_pad, to_image, to_kspace
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.simulation.simulate import SimulationSettings, simulate, truth_path

from ..evaluate.metrics import nrmse
from ..evaluate.score_lines import ScoreLines
from ..evaluate.tables import fields_of, write_tables
from .faults import FAULTS, ORDER, RawScan

SIZES = (64, 72, 77, 80, 91, 96, 112)
BAD = 2.0  # times the NRMSE of the sound scan: an image that the fault has spoilt
OPTIONS = ("--samples", "1", "--gate", "off")  # of `replay`; a tenth of these phantoms is no head to the gate

Key = tuple[int, ...]  # slice, contrast, repetition, average


@dataclass(frozen=True)
class Outcome:
    """What a user gets. text: remarks, or why there is no image."""

    exit: int
    text: str
    nrmse: dict[Key, float]


@dataclass(frozen=True)
class Row:
    """One scan. sound: exit and remarks without the fault; ratio: of the NRMSE with the fault to that without, of the
    image that suffered most, infinite where one is missing; verdict: refused, said, harmless or UNSEEN."""

    seed: int
    scan: str
    fault: str
    what: str
    sound_exit: int
    sound_text: str
    sound_nrmse: float
    exit: int
    ratio: float
    verdict: str
    text: str


def drawn_scan(fault: str, rng: np.random.Generator) -> SimulationSettings:
    """Settings of a valid scan in which the fault can be."""
    acceleration = int(rng.integers(1, 5))
    partial_fourier = float(rng.choice([1, 1, 0.875, 0.75]))
    rows, cols = (int(size) for size in rng.choice(SIZES, 2))
    n_slices = int(rng.integers(2, 4)) if fault == "slices of one label" else int(rng.integers(1, 3))
    averages = int(rng.choice([1, 1, 1, 2]))
    echoes = fault == "echoes of one label"
    return SimulationSettings(
        contrast="dwi" if echoes else str(rng.choice(["flair", "t1", "t2"])),
        b_values=(0.0, 1000.0) if echoes else (),
        matrix=(rows, cols),
        n_slices=n_slices,
        acceleration=acceleration,
        calibration="embedded" if "calibration" not in fault and acceleration == 1 else
        str(rng.choice(["embedded", "separate"])),
        calibration_lines=int(rng.choice([16, 20, 24])),
        n_coils=int(rng.integers(max(4, 2 * acceleration), 9)),
        noise=float(rng.choice([0.005, 0.01, 0.02])),
        oversampling=int(rng.integers(1, 3)),
        partial_fourier=partial_fourier,
        asymmetric_echo=float(rng.choice([1, 1, 0.875])),
        interleaved=bool(rng.integers(2)),
        averages=averages,
        repetitions=int(rng.choice([1, 1, 1, 2])) if averages == 1 else 1,
        swap_phase=bool(rng.integers(2)),
        subject=int(rng.integers(1000)),
        seed=int(rng.integers(1000)),
        vendor=str(rng.choice(["SIMULATED", "SIEMENS", "GE", "Philips"])),
    )  # fmt: skip


def reordered(scan: RawScan, rng: np.random.Generator) -> str:
    """Lines in an order, and with flags, that a scanner may use; which, in words."""
    order = str(rng.choice(["linear", "random", "slice by slice in every line"]))
    if order != "linear":
        image, keys = scan.image, _keys(scan)
        if order == "random":  # within each image
            for key in np.unique(keys[image], axis=0):
                lines = image[(keys[image] == key).all(1)]
                scan.records[lines] = scan.records[rng.permutation(lines)]
        else:
            counters = scan.heads["idx"]
            by = (counters["slice"], scan.rows, counters["average"], counters["contrast"], counters["repetition"])
            scan.records[image] = scan.records[image[np.lexsort([part[image] for part in by])]]
    flags = scan.heads["flags"]
    if order != "linear" or rng.integers(2):
        flags &= ~np.uint64(ORDER)
        if order == "random" and rng.integers(2):
            image, keys = scan.image, _keys(scan)
            for key in np.unique(keys[image], axis=0):
                flags[image[(keys[image] == key).all(1)][-1]] |= np.uint64(LAST_IN_SLICE)
            order += ", the last of a slice flagged"
        else:
            order += ", no flags of order"
    return order


def _keys(scan: RawScan) -> np.ndarray:
    counters = scan.heads["idx"]
    return np.stack([counters[name] for name in ("slice", "contrast", "repetition", "average")], 1)


def reconstructed(scan: Path, truth: np.ndarray, model: Path | None) -> Outcome:
    """By the command line, as a user would."""
    screen = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(screen))
        stack.enter_context(contextlib.redirect_stderr(screen))
        out = Path(folder) / "out"
        code = main(["replay", str(scan), "--out", str(out), *OPTIONS, *(["--model", str(model)] if model else [])])
        report = json.loads((out / "report.json").read_text()) if (out / "report.json").exists() else {}
        found = _scores(out / "images.h5", truth)
    told = [line[len("dpmrecon: ") :] for line in screen.getvalue().splitlines() if line.startswith("dpmrecon: ")]
    told += [part["missing"] for part in report.get("slices", []) if part.get("missing")]
    told += [f"fallback: {part['fallback']}" for part in report.get("slices", []) if part["fallback"]]
    return Outcome(code, "; ".join(dict.fromkeys(told)), found)


def _scores(path: Path, truth: np.ndarray) -> dict[Key, float]:
    """NRMSE of the images of contrast 0, of which there is a truth."""
    if not path.exists():
        return {}
    found = {}
    with h5py.File(path) as file:
        group = file.get("dataset/image_1")
        for head, image in zip(group["header"], group["data"]) if group is not None else ():
            key = tuple(int(head[name]) for name in ("slice", "contrast", "repetition", "average"))
            if key[1] == 0 and key[0] < len(truth):
                found[key] = nrmse(_resampled(image[0, 0], truth[key[0]].shape), truth[key[0]])
    return found


def _resampled(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """On the truth's matrix: a header may ask for another one of the same field of view."""
    kspace = to_kspace(torch.from_numpy(image.astype(np.complex64)))
    for axis, size in enumerate(shape):
        kspace = crop_or_pad(kspace, size, axis)
    return to_image(kspace).abs().numpy().astype(float)


def injected(seeds: Sequence[int], model: Path | None, lines: ScoreLines) -> Iterator[Row]:
    """A row for each seed, but for those that the results file holds."""
    model_id = load_checkpoint(model).model_id  # another model may have the same name
    for seed in seeds:
        yield lines.row(Row, {"seed": seed, "model": model_id}, partial(row_of, seed, model))


def row_of(seed: int, model: Path | None) -> Row:
    """One scan and its fault. Seeds of a range take every kind of fault in turn."""
    rng, names = np.random.default_rng([seed, 31]), list(FAULTS)
    name = names[seed % len(names)]
    settings = drawn_scan(name, rng)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        simulate(path, settings)
        truth = np.load(truth_path(path))
        scan = RawScan.read(path)
        order = reordered(scan, rng)
        scan.write(path)
        sound = reconstructed(path, truth, model)
        what = FAULTS[name](scan, rng)
        scan.write(path)
        spoilt = reconstructed(path, truth, model)
    text = spoilt.text.replace(sound.text, "").strip("; ")  # what the fault has added
    ratio = max((spoilt.nrmse.get(key, float("inf")) / value for key, value in sound.nrmse.items()), default=0.0)
    return Row(
        seed=seed,
        scan=_described(settings, order),
        fault=name,
        what=what,
        sound_exit=sound.exit,
        sound_text=sound.text,
        sound_nrmse=max(sound.nrmse.values(), default=float("inf")),
        exit=spoilt.exit,
        ratio=ratio,
        verdict=_verdict(spoilt.exit, text, ratio),
        text=text,
    )


def _verdict(exit_code: int, text: str, ratio: float) -> str:
    if exit_code:
        return "refused"
    if text:
        return "said"
    return "harmless" if ratio <= BAD else "UNSEEN"


def _described(settings: SimulationSettings, order: str) -> str:
    s = settings
    return (
        f"{s.rows}x{s.cols}, {s.n_coils} coils, R={s.acceleration}, {s.calibration_lines} {s.calibration}, partial "
        f"Fourier {s.partial_fourier:g}, echo {s.asymmetric_echo:g}, {s.n_slices} slices, {s.averages} averages, "
        f"{s.repetitions} repetitions, oversampling {s.oversampling}, noise {s.noise:g}, {s.vendor}, {order}"
    )


NOTES = f"""Every scan is simulated with a draw of its own of sizes, R, calibration, partial Fourier, echo, order,
averages, repetitions, flags and vendor, reconstructed as it is and with one fault. Refused: exit other than 0 (2 no
image, 3 a CG-SENSE image, 4 a slice is missing); said: exit 0 and a remark; harmless: no word, and no image's NRMSE
above {BAD:g} times that of the sound scan; UNSEEN: no word and above."""


def write_faults(out: Path, rows: Sequence[Row]) -> None:
    """table.csv of all scans and table.md of the kinds, which is printed too."""
    words = ("refused", "said", "harmless", "UNSEEN")
    lines = [["fault", "scans", *words]]
    for name in [*FAULTS, "all"]:
        found = [row.verdict for row in rows if name in (row.fault, "all")]
        if found:
            lines.append([name, str(len(found)), *(str(found.count(word)) for word in words)])
    loud = [row for row in rows if row.sound_exit or row.sound_text]
    parts = [f"Without the fault: {len(rows) - len(loud)} of {len(rows)} with exit 0 and no remark."]
    parts += [f"- seed {row.seed}, {row.scan}: exit {row.sound_exit}, {row.sound_text}" for row in loud]
    parts += [
        f"- UNSEEN, seed {row.seed}: {row.what}, {row.ratio:.1f} times the sound NRMSE of {row.sound_nrmse:.3f}; "
        f"{row.scan}"
        for row in rows
        if row.verdict == "UNSEEN"
    ]
    write_tables(out, fields_of(Row, rows, digits=3), "# Faults put into sound scans", NOTES, lines, *parts)
