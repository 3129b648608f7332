"""`dpmrecon simulate`: a scan of the phantom as ISMRMRD, in the shape a scanner sends, and the truth beside it."""

import argparse
import dataclasses
import os
from pathlib import Path

import numpy as np

from ..errors import BadInputError
from .phantom import CONTRASTS
from .simulated_file import write
from .simulated_slice import noise_mixing, slice_and_truth, the_object
from .simulation_settings import SimulationSettings


def simulate(path: str | os.PathLike, settings: SimulationSettings) -> None:
    """Write the scan to `path` (ISMRMRD HDF5, group "dataset") and its truth to PATH_truth.npy beside it.

    The truth is float32 (n_slices, rows, cols) in the order of the slice index: magnitude of the noise-free,
    fully sampled, pre-whitened coil images, combined by the true coil maps with sum |s|^2 = 1; that of the first of
    several b-values. With `wrap` there are several maps at a pixel, made orthonormal: the root of the sum of squares
    of the images that they combine.
    Raises BadInputError where the file cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise BadInputError(f"the folder {path.parent} does not exist; create it or name another output file")
    if path.is_dir():
        raise BadInputError(f"{path} is a folder; name the file to write")
    phantom = the_object(settings)
    mixing = noise_mixing(settings)
    b_values = settings.b_values or (settings.b_value,)
    shape = (settings.n_slices, settings.n_coils, settings.rows, settings.samples)
    kspace = np.empty((len(b_values), *shape), np.complex64)
    truths = np.empty((len(b_values), settings.n_slices, settings.rows, settings.cols), np.float32)
    for number, b_value in enumerate(b_values):
        for index in range(settings.n_slices):
            kspace[number, index], truths[number, index] = slice_and_truth(phantom, settings, index, b_value, mixing)
    truth = truths[0]
    # sigma is what whitened noise has per real channel in units of the truth
    level = settings.noise * float(np.percentile(truth, 99))
    partial = path.with_name(path.name + ".part")
    try:
        partial.unlink(missing_ok=True)
        write(partial, settings, kspace, level * mixing)
        os.replace(partial, path)
        np.save(truth_path(path), truth)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise BadInputError(f"{path} cannot be written ({error}); name a file in a folder with free space") from error


def truth_path(path: str | os.PathLike) -> Path:
    """OUT_truth.npy of OUT.h5."""
    path = Path(path)
    return path.with_name(path.stem + "_truth.npy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dpmrecon simulate`; the defaults are those of SimulationSettings."""
    default = SimulationSettings()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "example:\n  dpmrecon simulate scan.h5 --contrast t1 --matrix 240 320 --R 3 --calibration separate\n"
        "writes scan.h5 and scan_truth.npy, float32 (slices, rows, cols)"
    )
    parser.add_argument("out", metavar="OUT.h5", type=Path, help="ISMRMRD file to write; the truth goes beside it")

    def option(flag: str, name: str, text: str, **how) -> None:
        value = getattr(default, name)
        shown = (" ".join(map(str, value)) or "none") if isinstance(value, tuple) else value
        parser.add_argument(flag, dest=name, default=value, help=f"{text} (default: {shown})", **how)

    option("--contrast", "contrast", "contrast", choices=tuple(CONTRASTS))
    option("--matrix", "matrix", "lines and readout samples", nargs=2, type=int, metavar=("ROWS", "COLS"))
    option("--fov", "fov_mm", "field of view in mm", nargs=2, type=float, metavar=("ROWS", "COLS"))
    option("--slices", "n_slices", "number of slices", type=int, metavar="N")
    option("--thickness", "slice_thickness_mm", "slice thickness in mm", type=float, metavar="MM")
    option("--gap", "slice_gap_mm", "gap between slices in mm", type=float, metavar="MM")
    option("--R", "acceleration", "undersampling factor", type=int, metavar="R")
    option("--calibration", "calibration", "calibration lines", choices=("embedded", "separate", "none"))
    option("--calibration-lines", "calibration_lines", "their number", type=int, metavar="N")
    option("--coils", "n_coils", "number of coils", type=int, metavar="N")
    option("--noise", "noise", "sigma per real channel over the image's 99th percentile", type=float, metavar="LEVEL")
    option("--noise-correlation", "noise_correlation", "typical correlation of two channels", type=float, metavar="C")
    parser.add_argument("--no-noise-scan", dest="noise_scan", action="store_false", help="no noise measurement")
    option("--oversampling", "oversampling", "readout oversampling", type=int, choices=(1, 2))
    option("--partial-fourier", "partial_fourier", "part of the lines acquired", type=float, metavar="PART")
    option("--asymmetric-echo", "asymmetric_echo", "part of each readout acquired", type=float, metavar="PART")
    degrees = ("X", "Y", "Z")
    option("--rotation", "rotation_deg", "slice rotation in degrees", nargs=3, type=float, metavar=degrees)
    option("--position", "position_mm", "centre of the slices, LPS mm", nargs=3, type=float, metavar=degrees)
    parser.add_argument("--sequential", dest="interleaved", action="store_false", help="slices in order of position")
    option("--averages", "averages", "averages", type=int, metavar="N")
    option("--repetitions", "repetitions", "repetitions", type=int, metavar="N")
    option("--b-value", "b_value", "diffusion weighting in s/mm^2, for dwi", type=float, metavar="B")
    option("--b-values", "b_values", "several of them", nargs="+", type=float, metavar="B")
    option("--patient-position", "patient_position", "what the header says", metavar="HFS")
    parser.add_argument("--wrap", action="store_true", help="what lies beyond the field of view along the lines folds")
    parser.add_argument("--swap-phase", action="store_true", help="lines and readout change directions")
    option("--phantom", "phantom", "what is scanned", choices=("head", "letters"))
    option("--subject", "subject", "seed of the anatomy, the coils and the phase", type=int, metavar="N")
    option("--seed", "seed", "seed of the noise", type=int, metavar="N")
    option("--vendor", "vendor", "of the scanner, whose convention the file follows", metavar="NAME")
    option("--lesion-side", "lesion_side", "hemisphere of the acute infarct", choices=("left", "right"))


def run(args: argparse.Namespace) -> int:
    """`dpmrecon simulate`; the exit code. Raises BadInputError."""
    names = {field.name for field in dataclasses.fields(SimulationSettings)}
    chosen = {name: value for name, value in vars(args).items() if name in names}
    chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}
    simulate(args.out, SimulationSettings(**chosen))
    print(f"wrote {args.out} and {truth_path(args.out)}")
    return 0
