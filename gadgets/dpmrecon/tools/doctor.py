"""`dpmrecon doctor`: what a scan's file holds, what would be done with it and why, and what to change at the scanner.

The lines go through the steps of a reconstruction up to where k-space would be made, without torch. What needs it, coil
maps, cost and pictures, is in `doctor_page.py`. Nothing of the patient is told: no name, no number, no name of a file.
"""

import gzip
import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..contrasts import CONTRAST_LABELS
from ..data import LostSlice
from ..errors import BadInputError, DpmreconError
from ..mrd.collect import SettledSlice, settled
from ..mrd.geometry import orientation_letters
from ..mrd.header import Header, acceleration, contrast_label, encoded_grid, n_partitions, view_mm
from ..mrd.lines import LineHeaders
from ..mrd.noise_lines import NoiseLines
from ..mrd.receiving import CONJUGATION, Receiving, open_as
from ..mrd.scan import Scan
from ..mrd.version2 import MAGIC
from ..options import Options, checked, path_of
from .diagnosis import REFUSED, SUPPORTED, Diagnosis

ENOUGH_CALIBRATION = 16  # lines; fewer give coil maps that explain the data less well
COILS_PER_R = 1.5  # fewer coils for each fold leave CG-SENSE, and the prior, little to go on
FAINT_DB = 10.0  # of the loudest channel over its noise: below, a scan is very noisy
WIDE, HIGH = 64, 20  # characters of a drawn pattern
OF_THE_MODEL = ("contrast", "model", "sampler", "mode", "adapt", "device")  # options that it may not take


def doctor(scan: str | Path, options: Options = Options(), *, page: bool = False) -> Diagnosis:  # noqa: B008
    """What the file `scan` holds and what would become of it.

    Parameters
    ----------
    scan : str or Path
        An ISMRMRD file, or anything else, which is named as what it is.
    options : Options
        Those that a reconstruction would have.
    page : bool
        Coil maps, cost and pictures too, which load the model and torch.

    Returns
    -------
    Diagnosis
        Refused, with the reason, where the file cannot be used.

    Raises
    ------
    BadInputError
        For options that cannot be had, and a scan that is no path.
    """
    path, found = path_of("scan", scan), Diagnosis()
    options = checked(options)
    try:
        other = foreign(path)
        if other is not None:
            found.reasons.append(other)
            return found
        with open_as(path, options) as opened:
            _look(opened, options, found)
            if any(getattr(options, name) != getattr(Options, name) for name in OF_THE_MODEL):
                _ask_model(opened.header, options, found)
            if page and found.verdict != REFUSED:
                from .doctor_page import examine

                examine(opened, options, found)
    except DpmreconError as error:
        found.verdict, found.exit_code = REFUSED, 2
        # the file's name may be the patient's
        found.reasons = [str(error).replace(f"{path}: ", "").replace(str(path), "the file"), *found.reasons]
    return found


@lru_cache(maxsize=1)
def _model(options: Options) -> Any:
    """Loaded once for many scans."""
    from ..recon import plan  # it imports torch

    return plan.load(options, final=True)[0]


def _ask_model(header: Header, options: Options, found: Diagnosis) -> None:
    """Whether the model takes these options. Raises DpmreconError."""
    from ..recon import plan

    try:
        plan.asked(options, _model(options), header)
    except DpmreconError:
        found.reasons.clear()  # what would be done without them
        raise


def _look(scan: Scan, options: Options, found: Diagnosis) -> None:
    """Fill in what the file holds, and the verdict."""
    header = scan.header
    receiving = Receiving.of(options, header)
    found.protocol, found.geometry = _protocol(header, options), _geometry(header)
    found.R = acceleration(header)
    looks, lost = [], []
    headers: LineHeaders = {}
    noise = NoiseLines()
    stream = settled(
        _noted(scan, noise), header, headers, receiving, scan.log, combine_averages=options.combine_averages
    )
    try:
        for item in stream:
            if isinstance(item, LostSlice):
                lost.append(item)
            else:
                looks.append(_Look.of(item, header))
    finally:
        kinds = dict(scan.log.kinds)
        found.holds = {"lines": kinds, "flags": dict(scan.log.flags), "channels": scan.n_coils}
    found.holds["slices" if n_partitions(header) == 1 else "volumes"] = len(looks) + len(lost)
    for key, line in headers.items():
        if key in {look.key for look in looks}:
            found.geometry |= _orientation(line)
            break
    if receiving.conjugate:
        found.repairs.append(CONJUGATION)
    found.repairs += scan.log.remarks
    found.repairs += list(dict.fromkeys(remark for look in looks for remark in look.remarks))
    _verdict(looks, lost, found)
    if looks:
        _describe(looks, noise, header, found)
    _advise(looks, header, options, found)


def _noted(scan: Scan, noise: NoiseLines):
    """The scan's lines; those of its noise are kept too."""
    from ..mrd.flags import NOISE

    for line in scan.acquisitions():
        if int(line.flags) & NOISE:
            noise.add(line)
        yield line


@dataclass
class _Look:
    """What stays of a slice once its lines are gone. levels: energy of each channel in the centre of k-space over that
    of its noise, where that is known, else over nothing."""

    key: Any
    acquired: np.ndarray
    span: tuple[int, int]
    acceleration: int
    n_lines: int
    echo: tuple[int, int]
    block: tuple[int, ...] | None
    separate: bool
    numbers: tuple[int, ...]
    levels: list[float]
    dwell: float
    remarks: tuple[str, ...]

    @classmethod
    def of(cls, item: SettledSlice, header: Header) -> "_Look":
        found, lines = item.found, item.found.lines
        assert lines.header is not None
        rows = encoded_grid(header)[0]
        limits = found.limits
        echo = lines.echo(found.grid)
        block = None
        if found.block is not None:
            sizes = [part.stop - part.start for part in found.block]
            block = tuple(sizes if n_partitions(header) > 1 else sizes[1:])
        span = (limits[1].minimum - limits[1].center + rows // 2, limits[1].maximum - limits[1].center + rows // 2)
        return cls(
            key=item.key,
            acquired=found.acquired,
            span=span,
            acceleration=found.acceleration,
            n_lines=len(lines.sums),
            echo=(echo.end - echo.first, found.grid),
            block=block,
            separate=found.calibration is not None,
            numbers=lines.numbers,
            levels=item.levels.tolist(),
            dwell=lines.header.sample_time_us,
            remarks=found.remarks,
        )


def _verdict(looks: list[_Look], lost: list[LostSlice], found: Diagnosis) -> None:
    """As `replay` would end: nothing of all slices is no scan."""
    without = [look for look in looks if look.block is None]
    what = "it has no calibration lines and no fully sampled centre of k-space, so that it gets no coil maps"
    missing = [(item.key.slice, item.reason) for item in lost] + [(look.key.slice, what) for look in without]
    told_of = Counter(reason for _, reason in missing)
    reasons = []
    for reason, count in told_of.items():
        numbers = sorted({number for number, own in missing if own == reason})
        which = ", ".join(map(str, numbers[:8])) + (" ..." if len(numbers) > 8 else "")
        reasons.append(f"slice{'s' * (len(numbers) > 1)} {which} ({count} image{'s' * (count > 1)}): {reason}")
    whole = len(looks) - len(without)
    if whole:
        found.verdict, found.exit_code = SUPPORTED, 4 if missing else 0
        end = f", {len(missing)} cannot and are named" if missing else ""
        found.reasons = [f"{whole} of {whole + len(missing)} images can be reconstructed by the model{end}", *reasons]
    else:
        found.verdict, found.exit_code, found.reasons = REFUSED, 2 if looks else 4, reasons


def _partial_fourier(acquired: np.ndarray) -> str:
    """Of lines, and of a volume's partitions; acquired: ([partitions,] rows) bool."""
    told = []
    for axis, name in enumerate(("lines", "partitions")[: acquired.ndim]):
        there = np.flatnonzero(acquired if acquired.ndim == 1 else acquired.any(axis)) - acquired.shape[-1 - axis] // 2
        low, high = -int(there[0]), int(there[-1]) + 1
        share = (low + high) / (2 * max(low, high)) if max(low, high) > 0 else 1.0
        # undersampling alone leaves out less at one end than its step
        if share <= 0.95 and abs(low - high) > np.diff(there).max(initial=1):
            told.append(f"{share:.2f} of the {name}")
    return " and ".join(told) or "none"


def _describe(looks: list[_Look], noise: NoiseLines, header: Header, found: Diagnosis) -> None:
    first = looks[0]
    size, came = first.acquired.size, int(first.acquired.sum())
    if first.acquired.ndim == 1:
        size = first.span[1] - first.span[0] + 1
    found.R, found.R_net = float(first.acceleration), size / max(1, came)
    samples, grid = first.echo
    found.sampling = {
        "R announced": acceleration(header),
        "R": found.R,
        "R net": found.R_net,
        "lines": f"{came} of {size}",
        "pattern": _pattern_name(first),
        "partial Fourier": _partial_fourier(first.acquired),
        "echo": "full" if samples >= grid else f"asymmetric, {samples} of {grid} samples",
        "patterns that differ": len({look.acquired.tobytes() for look in looks}) - 1,
    }
    kind = "none" if first.block is None else "separate" if first.separate else "embedded"
    found.calibration = {
        "kind": kind,
        "lines": None if first.block is None else first.block[-1],
        "block": None if first.block is None else " x ".join(map(str, first.block)),
    }
    found.pattern = _drawn(first.acquired)
    found.noise = _noise(noise, first)
    unit = "dB over the noise" if found.noise["measured"] else "dB, relative to the quietest"
    levels = np.array(first.levels)
    if len(levels):
        scale = levels if found.noise["measured"] else levels / max(levels[levels > 0].min(initial=np.inf), 1e-30)
        decibel = [round(10 * math.log10(max(float(level), 1e-6)), 1) for level in scale]
        found.coils = {
            "used": len(levels),
            f"levels ({unit}, centre of k-space)": dict(zip(map(str, first.numbers), decibel)),
        }


def _pattern_name(look: _Look) -> str:
    """regular, or by chance."""
    if look.acceleration == 1:
        return "full"
    if look.acquired.ndim == 2:
        return "in two directions"
    rows = np.flatnonzero(look.acquired)
    outside = (
        rows
        if look.block is None or look.separate
        else rows[np.abs(rows - len(look.acquired) // 2) > look.block[-1] // 2]
    )
    steps = np.diff(outside) % look.acceleration
    return "regular" if len(steps) and np.mean(steps == 0) > 0.7 else "irregular"


def _drawn(acquired: np.ndarray) -> list[str]:
    """A character for each line, in rows of WIDE; of a volume the middle of k-space, partitions downwards."""
    if acquired.ndim == 1:
        marks = "".join("#" if came else "." for came in acquired)
        return [marks[first : first + WIDE] for first in range(0, len(marks), WIDE)]
    middle = acquired
    for axis, most in enumerate((HIGH, WIDE)):
        first = max(0, middle.shape[axis] // 2 - most // 2)
        middle = middle.take(range(first, min(middle.shape[axis], first + most)), axis)
    return ["".join("#" if came else "." for came in row) for row in middle]


def _noise(noise: NoiseLines, first: _Look) -> dict[str, Any]:
    found: dict[str, Any] = {"lines": len(noise.lines), "measured": bool(noise.fitting(first.numbers))}
    covariance = noise.covariance(first.numbers)
    if covariance is None:
        return found
    power = covariance.diagonal().real
    correlation = np.abs(covariance) / np.sqrt(np.outer(power, power)) - np.eye(len(power))
    dwell = sorted({own for own, _ in noise.fitting(first.numbers)})
    return {
        **found,
        "samples": int(sum(data.shape[1] for _, data in noise.fitting(first.numbers))),
        "dwell time (us)": [float(value) for value in dwell],
        "dwell time of the image (us)": float(first.dwell),
        "loudest over quietest channel": float(np.sqrt(power.max() / power.min())),
        "largest correlation": float(correlation.max()) if len(power) > 1 else 0.0,
    }


def _geometry(header: Header) -> dict[str, Any]:
    encoding = header.encoding[0]
    encoded, recon = encoding.encodedSpace, encoding.reconSpace

    def sides(values, partitions: bool) -> str:
        return " x ".join(f"{getattr(values, axis):g}" for axis in ("zyx" if partitions else "yx"))

    partitions, view = n_partitions(header) > 1, view_mm(header)
    found = {
        "k-space": sides(encoded.matrixSize, partitions),
        "k-space without oversampling": " x ".join(map(str, encoded_grid(header))),
        "images": sides(recon.matrixSize, partitions),
        "field of view (mm)": " x ".join(f"{length:g}" for length in reversed(view if partitions else view[:2])),
        "pixels (mm)": f"{view[1] / recon.matrixSize.y:.3g} x {view[0] / recon.matrixSize.x:.3g}",
    }
    return found if partitions else {**found, "slice thickness (mm)": float(recon.fieldOfView_mm.z)}


def _orientation(line) -> dict[str, str]:
    """Of a slice, in the patient."""
    normal = np.abs(np.array(line.slice_dir))
    if not 0.9 < np.linalg.norm(normal) < 1.1:
        return {"orientation": "not known: the lines' directions are no unit vectors"}
    names = ("sagittal", "coronal", "axial")
    angle = math.degrees(math.acos(min(1.0, float(normal.max()))))
    tilt = f", tilted by {angle:.0f} degrees" if angle > 2 else ""
    return {
        "orientation": f"{names[int(normal.argmax())]}{tilt}; columns run to "
        f"{orientation_letters(np.array(line.read_dir))}, rows to {orientation_letters(np.array(line.phase_dir))}"
    }


def _protocol(header: Header, options: Options) -> dict[str, Any]:
    measurement, system = header.measurementInformation, header.acquisitionSystemInformation
    sequence = header.sequenceParameters
    label = options.contrast or contrast_label(header)
    field_T = getattr(system, "systemFieldStrength_T", None)
    found = {
        "protocol": getattr(measurement, "protocolName", None),
        "contrast": label or "none that the model knows: the unlabelled prior is used",
        "vendor": getattr(system, "systemVendor", None),
        "field (T)": field_T,
        "TR (ms)": list(getattr(sequence, "TR", None) or []),
        "TE (ms)": list(getattr(sequence, "TE", None) or []),
        "TI (ms)": list(getattr(sequence, "TI", None) or []),
        "flip angle (degrees)": list(getattr(sequence, "flipAngle_deg", None) or []),
        "trajectory": str(
            getattr(header.encoding[0].trajectory, "value", header.encoding[0].trajectory) or "cartesian"
        ),
    }
    return {name: value for name, value in found.items() if value not in (None, [])}


def _advise(looks: list[_Look], header: Header, options: Options, found: Diagnosis) -> None:
    advice = found.advice
    if (options.contrast or contrast_label(header)) is None:
        advice.append(
            f"name the protocol after its contrast ({', '.join(CONTRAST_LABELS)}), or give --contrast: the labelled "
            "prior fits better"
        )
    if not looks:
        return
    first = looks[0]
    if not found.noise.get("measured"):
        advice.append("acquire a noise measurement with the scan, or name a file that has one (--noise)")
    if first.block is None:
        advice.append("acquire 24 calibration lines around the centre of k-space, embedded or separate")
    elif min(first.block) < ENOUGH_CALIBRATION:
        advice.append(f"acquire 24 calibration lines: {min(first.block)} give coil maps that explain less of the data")
    n_coils, fold = len(first.numbers), first.acceleration
    if fold > 1 and n_coils < COILS_PER_R * fold:
        advice.append(f"R = {fold} with {n_coils} coils leaves much to the prior: use more coils or a lower R")
    if found.noise.get("measured") and first.levels and 10 * math.log10(max(*first.levels, 1e-6)) < FAINT_DB:
        advice.append("the scan is very noisy: more averages or larger voxels show more than any prior can")
    if re.search("is dead and left out|holds noise alone", " ".join(found.repairs)):
        advice.append("have the coil looked at: a channel of it is dead, or sees nothing")


def foreign(path: Path) -> str | None:
    """What a file is that is no scan, and what to give instead; None for what may be one."""
    if path.is_dir():
        return "it is a folder: name the scan's file"
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        return "it is a pipe or a device: write the scan into a file and name that"
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise BadInputError(f"{path} cannot be read ({error.strerror}): name the scan's file") from error
    packed = head.startswith(b"\x1f\x8b")
    if packed:
        try:
            with gzip.open(path) as file:
                head = file.read(4096)
        except (OSError, EOFError) as error:
            raise BadInputError(f"{path} is a damaged gzip file ({error}): copy it again") from error
    hdf5, version2 = head.startswith(b"\x89HDF\r\n\x1a\n"), head.startswith(MAGIC)
    if packed and (hdf5 or version2):
        return f"it is {'an HDF5 file' if hdf5 else 'MRD version 2'} packed with gzip: unpack it first (gunzip)"
    if version2:
        return None
    what = _image_file(path) if hdf5 else _kind(path, head)
    if what is None:
        return None
    return f"it is {what}{', packed with gzip' if packed else ''}: an ISMRMRD file with raw acquisitions is needed"


def _kind(path: Path, head: bytes) -> str | None:
    number = int.from_bytes(head[:2], "little")
    if head[128:132] == b"DICM":
        return "a DICOM file"
    if head[344:347] in (b"n+1", b"ni1"):
        return "a NIfTI image"
    if head.startswith(b"\x93NUMPY"):
        return "an array of numpy"
    if head.startswith(b"\x89PNG"):
        return "a picture"
    if path.suffix in (".cfl", ".hdr") or head.startswith(b"# Dimensions"):
        return "k-space or images of BART (cfl, hdr)"
    if number in (1, 2, 3) and b"<" in head[:1200]:
        recorded = {1: "the name of a configuration", 2: "a configuration", 3: "a header"}[number]
        return f"a recorded MRD stream that begins with {recorded}, which `dpmrecon stream` takes on standard input"
    if path.suffix == ".dat":
        return "a scanner's raw file, which siemens_to_ismrmrd may convert"
    return None if not head else "no HDF5 file"


def _image_file(path: Path) -> str | None:
    """An HDF5 file of ISMRMRD images, without acquisitions."""
    names: list[str] = []
    lines = False

    def visit(name: str, item: Any) -> None:
        nonlocal lines
        if isinstance(item, h5py.Dataset) and item.dtype.names and "head" in item.dtype.names:
            lines = True
        if isinstance(item, h5py.Group) and {"header", "data"} <= set(item):
            names.append(name)

    try:
        with h5py.File(path) as file:
            file.visititems(visit)
    except (OSError, RuntimeError):
        return None  # opening it as a scan tells what is wrong
    if lines or not names:
        return None
    return f"a file of ISMRMRD images ({', '.join(names[:4])})"
