"""`dpmrecon simulate`: a scan of the phantom as ISMRMRD, in the shape a scanner sends, and the truth beside it."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInputError
from ..files import replacing
from .epi import EpiSlice, diffusion_truth
from .epi_file import write_epi
from .epi_settings import DIRECTIONS, EpiSettings
from .file import write
from .phantom import CONTRASTS, Letters, Phantom
from .settings import SimulationSettings, VolumeSettings
from .slices import noise_mixing, slice_and_truth, the_object
from .volumes import volume_and_truth

# options of one or two numbers: rows, and partitions
_PAIRS = {"acceleration": "partition_acceleration", "partial_fourier": "partition_partial_fourier"}


def simulate(path: str | os.PathLike, settings: SimulationSettings) -> None:
    """Write the scan to `path` (ISMRMRD HDF5, group "dataset") and its truth to PATH_truth.npy.

    The truth is float32 (n_slices, rows, cols) in the order of the slice index, of a 3D scan (partitions, rows, cols)
    without those that slice oversampling adds: magnitude of the noise-free, fully sampled, pre-whitened coil images,
    combined by the true coil maps with sum |s|^2 = 1; that of the first of several b-values or echoes. With `wrap`
    there are several maps at a pixel, made orthonormal: the root of the sum of squares of the images they combine.
    Of a swi scan the same with its phase is written too, PATH_truth_complex.npy, complex64 with the echoes before the
    other axes.
    Of an EPI scan PATH_truth_b.npy is that of every weighting, float32 (weightings, n_slices, rows, cols), and of a
    head PATH_truth_adc.npy its mean ADC, float32 (n_slices, rows, cols) in mm^2/s, see `epi.diffusion_truth`.
    Raises BadInputError where the file cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise BadInputError(f"the folder {path.parent} does not exist; create it or name another output file")
    if path.is_dir():
        raise BadInputError(f"{path} is a folder; name the file to write")
    try:
        with replacing(path) as part:
            truths = _write_epi(part, settings) if isinstance(settings, EpiSettings) else _write(part, settings)
        for kind, truth in truths.items():
            np.save(truth_path(path, kind), truth)
    except OSError as error:
        raise BadInputError(f"{path} cannot be written ({error}); name a file in a folder with free space") from error


def _write(path: Path, settings: SimulationSettings) -> dict[str, np.ndarray]:
    """Write the scan; its truths by kind. Raises OSError."""
    phantom = the_object(settings)
    mixing = noise_mixing(settings)
    scans = [_scanned(phantom, settings, weighting, mixing) for weighting in settings.weightings]
    truth = np.abs(scans[0][1])
    write(path, settings, [kspace for kspace, _ in scans], _noise_level(settings, truth) * mixing)
    if settings.contrast == "swi":
        return {"truth": truth, "truth_complex": np.stack([truth for _, truth in scans])}
    return {"truth": truth}


def _write_epi(path: Path, settings: EpiSettings) -> dict[str, np.ndarray]:
    """Write the scan; its truths by kind. Raises OSError."""
    thing = the_object(settings)
    mixing = noise_mixing(settings)
    scanned = [EpiSlice(settings, index, thing, mixing) for index in range(settings.n_slices)]
    truths = np.stack([one.truths for one in scanned], 1)
    write_epi(path, settings, scanned, _noise_level(settings, truths[0]) * mixing)
    made = {"truth": truths[0], "truth_b": truths}
    return made if isinstance(thing, Letters) else {**made, "truth_adc": diffusion_truth(settings).adc}


def _noise_level(settings: SimulationSettings, truth: np.ndarray) -> float:
    """Sigma per real channel of whitened noise."""
    return settings.noise * float(np.percentile(truth, 99))


def _scanned(
    phantom: Phantom | Letters, settings: SimulationSettings, weighting: float, mixing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free k-space (slices, n_coils, partitions, rows, samples) complex64 and the truth (slices or partitions,
    rows, cols) complex64, real with `wrap`."""
    if isinstance(settings, VolumeSettings):
        lines, truth = volume_and_truth(phantom, settings, weighting, mixing)
        return lines[None], truth
    kspace = np.empty((settings.n_slices, settings.n_coils, 1, settings.rows, settings.samples), np.complex64)
    truths = []
    for index in range(settings.n_slices):
        kspace[index, :, 0], truth = slice_and_truth(phantom, settings, index, weighting, mixing)
        truths.append(truth)
    return kspace, np.stack(truths)


def truth_path(path: str | os.PathLike, kind: str = "truth") -> Path:
    """OUT_truth.npy of OUT.h5; kind: "truth_complex", "truth_b" or "truth_adc" for the others."""
    path = Path(path)
    return path.with_name(f"{path.stem}_{kind}.npy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dpmrecon simulate`; the defaults are those of SimulationSettings and VolumeSettings."""
    sorts = {"": SimulationSettings(), "in 3D": VolumeSettings(), "of EPI": EpiSettings()}
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "examples:\n  dpmrecon simulate scan.h5 --contrast t1 --matrix 240 320 --R 3 --calibration separate\n"
        "writes scan.h5 and scan_truth.npy, float32 (slices, rows, cols)\n"
        "  dpmrecon simulate mprage.h5 --three-d --contrast t1 --orientation sagittal --partitions 96 --R 2 2\n"
        "writes a volume and its truth (partitions, rows, cols)\n"
        "  dpmrecon simulate swi.h5 --three-d --contrast swi --partitions 48 --R 2 2 --echoes 3\n"
        "writes swi_truth_complex.npy too, complex64 (echoes, partitions, rows, cols)\n"
        "  dpmrecon simulate dwi.h5 --epi --ramp-sampling --partial-fourier 0.75 --averages 4\n"
        "writes dwi_truth_b.npy, float32 (b-values and directions, slices, rows, cols), and dwi_truth_adc.npy in mm^2/s"
    )
    parser.add_argument("out", metavar="OUT.h5", type=Path, help="ISMRMRD file to write; the truth goes beside it")

    def shown(value) -> str:
        return (" ".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)

    def option(flag: str, name: str, text: str, **how) -> None:
        """One that is left out is left to the settings, whose defaults differ from sort to sort of scan."""
        values = {}
        for sort, settings in sorts.items():
            if name in _names(type(settings)):
                values[sort] = shown(getattr(settings, name))
                if name in _PAIRS and isinstance(settings, VolumeSettings):
                    values[sort] += f" {getattr(settings, _PAIRS[name])}"
        usual = next(iter(values.values()))
        others = [f", {sort} {value}" for sort, value in values.items() if value != usual]
        default = usual + "".join(others)
        text = text if "action" in how else f"{text} (default: {default})"
        parser.add_argument(flag, dest=name, default=argparse.SUPPRESS, help=text, **how)

    option("--contrast", "contrast", "contrast", choices=tuple(CONTRASTS))
    option("--matrix", "matrix", "lines and readout samples", nargs=2, type=int, metavar=("ROWS", "COLS"))
    option("--fov", "fov_mm", "field of view in mm", nargs=2, type=float, metavar=("ROWS", "COLS"))
    option("--slices", "n_slices", "number of slices", type=int, metavar="N")
    option("--thickness", "slice_thickness_mm", "thickness of a slice or partition in mm", type=float, metavar="MM")
    option("--gap", "slice_gap_mm", "gap between slices in mm", type=float, metavar="MM")
    option(
        "--R", "acceleration", "undersampling factor; in 3D of rows and partitions", nargs="+", type=int, metavar="R"
    )
    option("--calibration", "calibration", "calibration lines", choices=("embedded", "separate", "none"))
    option("--calibration-lines", "calibration_lines", "their number, in 3D in both directions", type=int, metavar="N")
    option("--coils", "n_coils", "number of coils", type=int, metavar="N")
    option("--noise", "noise", "sigma per real channel over the image's 99th percentile", type=float, metavar="LEVEL")
    option("--noise-correlation", "noise_correlation", "typical correlation of two channels", type=float, metavar="C")
    option("--no-noise-scan", "noise_scan", "no noise measurement", action="store_false")
    option("--oversampling", "oversampling", "readout oversampling", type=int, choices=(1, 2))
    text = "part of the lines acquired; in 3D of rows and partitions"
    option("--partial-fourier", "partial_fourier", text, nargs="+", type=float, metavar="PART")
    option("--asymmetric-echo", "asymmetric_echo", "part of each readout acquired", type=float, metavar="PART")
    option("--orientation", "orientation", "plane before the rotation", choices=("axial", "sagittal", "coronal"))
    degrees = ("X", "Y", "Z")
    option("--rotation", "rotation_deg", "slice rotation in degrees", nargs=3, type=float, metavar=degrees)
    option("--position", "position_mm", "centre of the slices, LPS mm", nargs=3, type=float, metavar=degrees)
    option("--sequential", "interleaved", "slices in order of position", action="store_false")
    option("--averages", "averages", "averages", type=int, metavar="N")
    option("--repetitions", "repetitions", "repetitions", type=int, metavar="N")
    option("--b-value", "b_value", "diffusion weighting in s/mm^2, for dwi", type=float, metavar="B")
    option("--b-values", "b_values", "several of them", nargs="+", type=float, metavar="B")
    option("--echoes", "echoes", "echoes, for swi", type=int, metavar="N")
    option("--echo-times", "echo_times_ms", "their times in ms", nargs="+", type=float, metavar="MS")
    option("--patient-position", "patient_position", "what the header says", metavar="HFS")
    option("--wrap", "wrap", "what lies beyond the field of view along the lines folds", action="store_true")
    option("--swap-phase", "swap_phase", "lines and readout change directions", action="store_true")
    option("--phantom", "phantom", "what is scanned", choices=("head", "letters"))
    option("--subject", "subject", "seed of the anatomy, the coils and the phase", type=int, metavar="N")
    option("--seed", "seed", "seed of the noise", type=int, metavar="N")
    option("--vendor", "vendor", "of the scanner, whose convention the file follows", metavar="NAME")
    option("--lesion-side", "lesion_side", "hemisphere of the acute infarct", choices=("left", "right"))

    parser.add_argument("--three-d", action="store_true", help="a 3D scan: one slab of partitions")
    option("--partitions", "partitions", "3D: partitions of the image", type=int, metavar="N")
    option("--slice-oversampling", "slice_oversampling", "3D: encoded partitions over these", type=float, metavar="X")
    option("--caipirinha", "caipirinha", "3D: shift of the grid from row to row", type=int, metavar="SHIFT")
    option("--elliptical", "elliptical", "3D: no corners of k-space", action="store_true")
    option("--sampling", "sampling", "3D: pattern of the lines", choices=("regular", "random", "poisson"))

    parser.add_argument("--epi", action="store_true", help="a diffusion scan by EPI: b = 0, then each direction")
    option("--directions", "directions_per_b", "EPI: of each b-value; 0: trace", type=int, choices=tuple(DIRECTIONS))
    option("--b0-averages", "unweighted_averages", "EPI: averages of b = 0", type=int, metavar="N")
    option("--shots", "shots", "EPI: shots of an image, interleaved", type=int, metavar="N")
    option("--ramp-sampling", "ramp_sampling", "EPI: samples on the gradient's ramps too", action="store_true")
    text = "EPI: ramps keep the phase of an off-centre field of view, as Siemens's do"
    option("--fixed-receiver", "fixed_receiver", text, action="store_true")
    text = "EPI: calibration by shots of the same echo spacing, by a gradient echo, or that in its own encoding space"
    option("--calibration-by", "calibration_by", text, choices=("epi", "gre", "own-space"))
    text = "EPI: counter that tells b-values and directions"
    option("--weighting-counter", "weighting_counter", text, choices=("contrast", "repetition"))
    option("--ghost", "ghost", "EPI: N/2 ghost over the signal", type=float, metavar="LEVEL")
    option("--ghost-drift", "ghost_drift", "EPI: part of it that changes over the scan", type=float, metavar="PART")
    option("--motion", "motion", "EPI: strength of the shots' random phase", type=float, metavar="X")
    option("--eddy", "eddy", "EPI: strength of the directions' phase", type=float, metavar="X")
    option("--emboli", "emboli", "EPI: emboli in each slice", type=int, metavar="N")


def _names(kind: type[SimulationSettings]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def settings_of(args: argparse.Namespace) -> SimulationSettings:
    """The settings that the options of `add_arguments` say. Raises BadInputError."""
    if args.three_d and args.epi:
        raise BadInputError("EPI is simulated slice by slice; give --epi or --three-d")
    kind = VolumeSettings if args.three_d else EpiSettings if args.epi else SimulationSettings
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in vars(args).items()
    }
    for name, second in _PAIRS.items():
        if name not in given:
            continue
        first, *others = given[name]
        given[name] = first
        if len(others) > 1:
            raise BadInputError(
                f"{name} has {1 + len(others)} values; give one for the rows and one for the partitions"
            )
        if others or args.three_d:
            given[second] = others[0] if others else 1
    known = _names(VolumeSettings) | _names(EpiSettings)
    for sort, flag in ((VolumeSettings, "--three-d"), (EpiSettings, "--epi")):
        alien = sorted(given.keys() & (_names(sort) - _names(SimulationSettings)) - _names(kind))
        if alien:
            raise BadInputError(f"{', '.join(alien)}: only a scan with {flag} has that; add it or leave it out")
    if args.epi and "b_value" in given:
        raise BadInputError("b_value: EPI has b = 0 too; give b_values")
    return kind(**{name: value for name, value in given.items() if name in known})


def run(args: argparse.Namespace) -> int:
    """`dpmrecon simulate`; the exit code. Raises BadInputError."""
    settings = settings_of(args)
    simulate(args.out, settings)
    print(f"wrote {args.out} and {truth_path(args.out)}")
    if settings.contrast == "swi":
        print(f"and, with its phase, {truth_path(args.out, 'truth_complex')}")
    if args.epi:
        print(f"and, of each b-value and direction, {truth_path(args.out, 'truth_b')}")
    return 0
