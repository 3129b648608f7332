"""The last step of a replay: diffusion maps where there are several b-values, then DIR/dicom/ from DIR/images.h5."""

import argparse
import json
import shutil
from pathlib import Path

from ..errors import BadInputError
from ..mrd.header import open_scan
from ..output.folder import Outputs
from ..output.maps import Weighting, add_maps, weighting_from_text, weighting_of
from .write import DicomOptions, scan_digest, write_dicom

# what decides the images, besides the scan
_DECIDING = ("package_version", "model_id", "contrast", "sampler", "settings", "samples", "seed")
_CHOSEN = ("fallback", "samples", "evaluations")  # and a deadline's part in them, slice by slice


def write_archive(
    folder: Path, scan_file: Path, options: DicomOptions, stated: Weighting | None, *, combine_averages: bool
) -> list[str]:
    """Write folder/dicom/ from folder/images.h5 and folder/report.json, and note it in the report.

    stated: the user's b-values, None for the header's. Returns lines for the screen. Maps or DICOM that cannot be
    made are a line on the screen and an entry in the report: the images stay. Raises BadInputError where the report
    cannot be written.
    """
    report_file = folder / "report.json"
    report = json.loads(report_file.read_text())
    run = {name: report.get(name) for name in _DECIDING} | {"combine_averages": combine_averages}
    if report.get("deadline") is not None:
        run["chosen"] = [[entry.get(name) for name in _CHOSEN] for entry in report["slices"]]
    digest = scan_digest(scan_file)
    with open_scan(scan_file) as scan:
        header = scan.header
    lines: list[str] = []
    weighting = None
    try:
        weighting = weighting_of(header, stated)
        if weighting is not None:
            lines += add_maps(folder / "images.h5", weighting)
            run["weighting"] = vars(weighting)
    except BadInputError as error:
        weighting = None
        lines.append(f"no trace and ADC: {error}")
    target = folder / "dicom"
    files: list[Path] = []
    try:
        files = write_dicom(folder / "images.h5", target, digest, run, options, weighting)
    except BadInputError as error:
        shutil.rmtree(target, ignore_errors=True)  # half a series looks like a whole one
        lines.append(f"no DICOM: {error}")
    report |= {"scan_sha256": digest, "dicom_files": len(files), "notes": lines}
    try:
        report_file.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise BadInputError(f"cannot write {report_file} ({error}): make room or choose another --out") from error
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dpmrecon replay` that concern DICOM alone."""
    parser.add_argument("--anonymize", action="store_true", help="no patient and study data in what is written")
    parser.add_argument("--conventional", action="store_true", help="the CG-SENSE image of every slice as well")
    parser.add_argument(
        "--image-type", metavar="TAG", default=DicomOptions.tag, help="last value of ImageType (default: DPM)"
    )
    parser.add_argument(
        "--b-values",
        metavar="COUNTER:B0,B1,...",
        help="s/mm^2 for each value of the counter that carries them (default: from the scan's header)",
    )


def from_arguments(args: argparse.Namespace) -> tuple[Outputs, DicomOptions, Weighting | None]:
    """What `replay` and `write_archive` need of a parsed command line. Raises BadInputError."""
    stated = None if args.b_values is None else weighting_from_text(args.b_values)
    return Outputs(args.conventional, args.anonymize), DicomOptions(args.anonymize, args.image_type), stated
