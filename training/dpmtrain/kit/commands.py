"""`dpmtrain kit`: a model fine-tuned on a hospital's own scans."""

import argparse
import sys
from pathlib import Path

from dpmrecon.cli import add_command

from ..arguments import add_usual, at_least, cores


def add_kit(commands) -> None:
    parser = add_command(
        commands,
        "kit",
        "Fine-tune a model on the images that it makes of a hospital's own ISMRMRD scans (one contrast, fully sampled "
        "or R up to about 2), choose the length on validation patients, compare with CG-SENSE and L1-wavelet on test "
        "patients. Exit code 3: done, but some files could not be used, each is named; 2 as well where the tuned model "
        "foretells the test patients' data worse than the one it began with, and is not written. Run again after an "
        "interruption: what is done is kept.",
        "dpmtrain kit scans/ --out kit_flair --contrast flair --check   (then the same without --check)",
    )
    parser.add_argument(
        "scans",
        type=Path,
        nargs="+",
        help="folders or files. A patient is the patient ID in the header; without one the first folder, else the file",
    )
    parser.add_argument(
        "--patients",
        choices=("folder", "id", "measurement"),
        help="what tells patients apart: the first folder, the header's patient ID, or serial number and patient of "
        "its measurementID (default: the ID, where it is no placeholder such as xxxxxxxx, else the folder)",
    )
    parser.add_argument("--contrast", help="label to fine-tune for (default: the one that all scans have)")
    parser.add_argument("--check", action="store_true", help="look at the files and stop before anything is prepared")
    parser.add_argument("--start", type=Path, help="model, or folder of a run (default: the model that ships)")
    parser.add_argument(
        "--recipe", type=Path, help="of `finetune`; its volumes and target are not used (default: ours)"
    )
    parser.add_argument("--R", default="4", help="accelerations to choose and to compare at (default: 4)")
    parser.add_argument("--acs", type=int, default=24, help="calibration lines kept in the comparison (default: 24)")
    parser.add_argument("--slices", type=int, default=5, help="of each validation and test scan (default: 5)")
    parser.add_argument("--jobs", type=int, default=cores(), help="processes that read scans (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add_usual(parser, "out", "threads")
    parser.set_defaults(run=_kit)


def _kit(args: argparse.Namespace) -> int:
    from ..train.train import Stopped
    from .kit import kit

    at_least(args, acs=8, slices=1, jobs=1, threads=1)
    try:
        return kit(args)
    except (Stopped, KeyboardInterrupt):
        print("dpmtrain: interrupted; what is done stays: run the same command again", file=sys.stderr)
        return 130
