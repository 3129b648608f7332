"""`dpmtrain prepare`: scans, images and label maps to one prepared form."""

import argparse
import sys
from pathlib import Path

from dpmrecon.cli import add_command
from dpmrecon.contrasts import CONTRAST_LABELS

from ..arguments import at_least, cores
from .open_sets import HELD_OUT


def add_prepare(commands) -> None:
    parser = add_command(
        commands,
        "prepare",
        "Scans, images and label maps to prepared volumes: fastMRI, ISMRMRD, DICOM, NIfTI, label maps (NIfTI, named "
        "*seg* or *label*). Exit code 3: some inputs were left out, each is named; 2: none could be used. Run again "
        "after an interruption: what is done is kept.",
        "dpmtrain prepare scans/ more/patient7.h5 --out prepared --exclude patient3 patient5",
    )
    parser.add_argument(
        "inputs",
        type=Path,
        nargs="+",
        help="files and folders. The subject is the patient ID in the header (as a pseudonym); without one, or with a "
        "placeholder such as ANONYMOUS, the first folder below the input, else DICOM's study, else the file's name "
        "without its contrast. Folders that hold one DICOM study are one subject",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the prepared volumes")
    parser.add_argument(
        "--exclude",
        nargs="*",
        metavar="SUBJECT",
        default=[],
        help="subjects or patient IDs to leave out, all their scans and copies of these. Of the open sets "
        f"{', '.join(HELD_OUT)} are always left out: they are for validation and test",
    )
    parser.add_argument("--contrast", choices=CONTRAST_LABELS, help="of all inputs (default: what each says of itself)")
    parser.add_argument("--drop-last", type=int, default=5, help="slices at the end of a fastMRI volume to leave out")
    parser.add_argument("--volumes", type=int, default=1, help="volumes to simulate for a label map and sequence")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--source", default="own data", help="of inputs that are no known open set, for the card")
    parser.add_argument("--licence", default="not stated", help="of inputs that are no known open set, for the card")
    parser.add_argument("--jobs", type=int, default=cores(), help="processes (default: %(default)s, the cores here)")
    parser.set_defaults(run=_prepare)


def _prepare(args: argparse.Namespace) -> int:
    from .items import Settings
    from .prepare import prepare

    at_least(args, jobs=1, volumes=1, drop_last=0, seed=0)
    settings = Settings(args.contrast, args.drop_last, args.volumes, args.seed, args.source, args.licence)
    try:
        return prepare(args.inputs, args.out, settings, args.exclude, args.jobs)
    except KeyboardInterrupt:
        print("dpmtrain: interrupted; the volumes that are done stay: run the same command again", file=sys.stderr)
        return 130
