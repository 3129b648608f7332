"""The command line. `dpmrecon COMMAND --help` shows an example of each command."""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import WORST, DpmreconError
from .version import __version__

if TYPE_CHECKING:
    from .mrd.scan import Scan
    from .options import Options
    from .output.report import Report
    from .prior.checkpoint import Checkpoint
    from .results import Wanted


KEPT = {"replay": "slices", "protocol": "scans", "bulk": "scans"}  # what is there of a command that was interrupted


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 1 the device failed (one line) or something unexpected did, 2 bad input (one
    line, no traceback), 3 some slices by the conventional fallback, 4 some slices missing."""
    started = time.monotonic()  # a deadline counts what is loaded as well
    parser = argparse.ArgumentParser("dpmrecon", description="Accelerated brain MRI with a diffusion prior")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_replay(commands)
    _add_protocol(commands)
    _add_bulk(commands)
    _add_simulate(commands)
    _add_send(commands)
    _add_selftest(commands)
    _add_serve(commands)
    _add_stream(commands)
    _add_estimate(commands)
    _add_doctor(commands)
    _add_audit(commands)
    _add_compare(commands)
    args = parser.parse_args(arguments)
    args.started = started
    try:
        with _reporting_at_sigterm(args.command):
            code = args.run(args)
        sys.stdout.flush()  # what cannot be written is found here, not at the interpreter's end
        return code
    except DpmreconError as error:
        print(f"dpmrecon: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read our output, `head` for one, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        kept = KEPT.get(args.command)
        print("dpmrecon: interrupted" + (f"; the {kept} finished so far are kept" if kept else ""), file=sys.stderr)
        return 130


@contextmanager
def _reporting_at_sigterm(command: str) -> Iterator[None]:
    """A scheduler or a container ends a command by SIGTERM: one that keeps something ends as at Ctrl-C."""
    if command not in KEPT or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def add_command(commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """A command's parser, with an example under its help."""
    return commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_replay(commands) -> None:
    from .options import add_arguments, out_folder

    parser = add_command(
        commands,
        "replay",
        "Reconstruct an ISMRMRD file into images.h5, dicom/, preview.png and report.json",
        "dpmrecon replay scan.h5 --out results --mode uncertainty",
    )
    parser.add_argument(
        "scan", type=Path, help="ISMRMRD file with raw acquisitions, or MRD version 2; - takes a stream, see `stream`"
    )
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the results")
    add_arguments(parser)
    _add_writing(parser)
    parser.add_argument(
        "--truth",
        type=Path,
        help=".npy (slices or partitions, rows, cols) of the first echo or b-value, from the scan's first slice on, to "
        "score and show errors against",
    )
    parser.add_argument("--mask", type=Path, help=".npy, where to score")
    parser.set_defaults(run=_replay)


def _add_writing(parser: argparse.ArgumentParser) -> None:
    """What is written of a scan, and how."""
    parser.add_argument("--anonymize", action="store_true", help="no patient and study data in what is written")
    parser.add_argument("--conventional", action="store_true", help="the CG-SENSE image of every slice as well")
    parser.add_argument("--nifti", action="store_true", help="nifti/ as well, a file for each series (needs nibabel)")
    parser.add_argument("--image-type", metavar="TAG", default="DPM", help="last value of ImageType (default: DPM)")


def _wanted(args: argparse.Namespace, options: "Options") -> "Wanted":
    from .dicom.write import DicomOptions
    from .output.images_file import Outputs
    from .output.weighting import weighting_from_text
    from .results import Wanted

    return Wanted(
        Outputs(options.outputs, args.conventional, args.anonymize, args.nifti),
        DicomOptions(args.anonymize, args.image_type, options.reformat),
        None if options.b_values is None else weighting_from_text(options.b_values),
        getattr(args, "truth", None),
        getattr(args, "mask", None),
        options.vein_phase,
    )


def _replay(args: argparse.Namespace) -> int:
    from .mrd.receiving import open_as
    from .options import from_arguments

    options = from_arguments(args)
    if args.scan == Path("-"):
        return _replay_stream(args, options)
    with open_as(args.scan, options) as scan:
        scan.read_ahead()  # while torch is imported
        from .recon.plan import load

        wanted = _wanted(args, options)
        checkpoint, _ = load(options, final=True)
        return _replay_scan(scan, args.out, options, wanted, checkpoint, args.started).exit_code


def _replay_stream(args: argparse.Namespace, options: "Options") -> int:
    """`replay` of standard input. A stream that breaks off ends with 4 at best."""
    from .hosts.engine import Engine
    from .hosts.stream import received

    engine = Engine.of(options)
    with received(engine) as came:
        wanted = _wanted(args, came.options)
        report = _replay_scan(came.scan, args.out, came.options, wanted, engine.checkpoint, args.started)
    if came.cut is None:
        return report.exit_code
    print(f"dpmrecon: {came.cut}", file=sys.stderr)
    return max(4, report.exit_code, key=WORST.index)


def _replay_scan(
    scan: "Scan", out: Path, options: "Options", wanted: "Wanted", checkpoint: "Checkpoint", started: float
) -> "Report":
    """`replay` with a bar, and what is to be said of the scan. started: see `main`."""
    from tqdm import tqdm

    from .mrd.header import n_partitions
    from .mrd.receiving import CONJUGATION, Receiving
    from .output.folder import alone
    from .output.names import Names
    from .output.report import described
    from .recon.agreement import SLICES, VOLUMES, without_limits
    from .recon.plan import asked
    from .replay import Progress, replay

    checkpoint, contrast, sampling = asked(options, checkpoint, scan.header)
    if contrast is None:
        print("dpmrecon: the protocol names no known contrast: the unlabelled prior is used", file=sys.stderr)
    if sampling.adapt:
        print("dpmrecon: the prior is fitted to the scan's first slice, before that is sampled", file=sys.stderr)
    receiving = Receiving.of(options, scan.header)
    if receiving.conjugate:
        print(CONJUGATION)
    keys = scan.keys(options.combine_averages)
    names, evaluations = Names.of(keys, scan.header), len(keys) * sampling.evaluations
    total = None if sampling.deadline else evaluations
    with alone(out), tqdm(total=total, unit="eval", smoothing=0.05) as bar:
        report = replay(
            scan,
            out,
            checkpoint,
            contrast,
            sampling,
            checkpoint.model.device,
            wanted=wanted,
            receiving=receiving,
            combine_averages=options.combine_averages,
            progress=Progress(bar.update, lambda item: bar.write(described(item, names))),
            started=started,
        )
    if report.nrmse is not None:
        print("NRMSE:", ", ".join(f"{name} {found['mean']:.4f}" for name, found in report.nrmse.items()))
    if report.weighting is not None:
        print(report.weighting.text)
    for note in [*report.remarks, *report.notes]:
        print(f"dpmrecon: {note}", file=sys.stderr)
    if sampling.gate != "off":
        reason = without_limits(checkpoint, VOLUMES if n_partitions(scan.header) > 1 else SLICES)
        if reason is not None:
            print(f"dpmrecon: whether prior and data agree was not asked: {reason}", file=sys.stderr)
    files = ("images.h5", "dicom/", "nifti/", "preview.png", "report.json")
    written = [name for name in files if (out / name).exists()]
    print(f"{out}/{', '.join(written)}")
    if sampling.deadline is not None:
        seconds = time.monotonic() - started
        word = "kept" if seconds <= sampling.deadline else "MISSED"
        print(f"deadline of {sampling.deadline:g} s {word}: {seconds:.1f} s", file=sys.stderr)
    return report


def _add_protocol(commands) -> None:
    from .options import add_arguments, out_folder

    parser = add_command(
        commands,
        "protocol",
        "Reconstruct all scans of a patient into one study, with one report and one picture",
        "dpmrecon protocol patient/ --out results\n"
        "Options are for every scan; a deadline is each scan's own. The same command goes on where it was broken off.\n"
        "exit code: 0 all well; else the worst of the scans', 3 < 4 < 2 < 1 (docs/results.md has their list)",
    )
    parser.add_argument("scans", type=Path, nargs="+", metavar="FOLDER|SCAN", help="ISMRMRD files, or folders of them")
    parser.add_argument(
        "--out", type=out_folder, required=True, help="folder for the results, one for each scan inside"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        nargs="+",
        metavar="FOLDER|SCAN",
        help="the same protocol as the standard of care has it: the picture shows both",
    )
    parser.add_argument(
        "--same-patient",
        action="store_true",
        help="scans whose headers do not tell are of the same patient as the others",
    )
    add_arguments(parser, without=("contrast", "group"))
    _add_writing(parser)
    parser.set_defaults(run=_protocol)


def _protocol(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from .mrd.receiving import open_as
    from .options import from_arguments
    from .protocol import Steps, files_of, protocol
    from .recon.plan import contrast_of, load
    from .results import made_by

    options = from_arguments(args)
    wanted = _wanted(args, options)
    sets = {"accelerated": files_of(args.scans), "reference": files_of(args.reference or [])}
    checkpoint, _ = load(options, final=True)

    def reconstruct(path, out, study, contrast):
        started = time.monotonic()
        assert wanted.dicom is not None
        weighting = wanted.weighting if contrast == "dwi" else None
        own = replace(wanted, dicom=replace(wanted.dicom, study=study), weighting=weighting)
        with open_as(path, options) as scan:
            return _replay_scan(scan, out, options, own, checkpoint, started)

    steps = Steps(
        open=lambda path: open_as(path, options),
        label=lambda scan: contrast_of(options, checkpoint, scan.header),
        reconstruct=reconstruct,
        made_by=made_by(checkpoint, options, wanted),
    )
    return protocol(sets, args.out, steps, anonymize=args.anonymize, same_patient=args.same_patient)


def _add_bulk(commands) -> None:
    from .options import OPTIONS, add_arguments, out_folder

    parser = add_command(
        commands,
        "bulk",
        "Reconstruct thousands of scans over processes, GPUs or a Ray cluster, with one report",
        "dpmrecon bulk archive/ --out results --workers 4\n"
        "Options are for every scan; a deadline is each scan's own. The same command goes on where it was broken off.\n"
        "exit code: 0 all well; else the worst of the scans', 3 < 4 < 2 < 1 (docs/results.md has their list)",
    )
    parser.add_argument(
        "scans", nargs="+", metavar="FOLDER", help="of ISMRMRD files, at any depth; a file; an address as s3://bucket/x"
    )
    parser.add_argument(
        "--out", type=out_folder, required=True, help="folder for the results, one for each scan inside"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="scans at a time (default: one for each GPU or 4 cores)"
    )
    parser.add_argument("--memory", type=float, metavar="GB", help="for all of them (default: 80 %% of what is free)")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="of a Ray cluster whose nodes share --out, or `local` (needs ray)"
    )
    parser.add_argument("--dry-run", action="store_true", help="what `doctor` says of each scan; nothing is written")
    add_arguments(parser, without=("model",))
    parser.add_argument("--model", help=f"{OPTIONS['model'].help}; an address too")
    _add_writing(parser)
    parser.set_defaults(run=_bulk)


def _bulk(args: argparse.Namespace) -> int:
    from .bulk.command import run

    return run(args, _wanted)


def _add_simulate(commands) -> None:
    from .simulation.simulate import add_arguments, run

    parser = add_command(
        commands,
        "simulate",
        "Write an accelerated scan of a head phantom, and the truth beside it",
        "dpmrecon simulate scan.h5 --contrast flair --R 4",
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def _add_send(commands) -> None:
    from .dicom.send import add_arguments, run

    summary = "Send DICOM files to an archive (C-STORE)"
    parser = add_command(commands, "send", summary, "dpmrecon send results/dicom --to ORTHANC@localhost:4242")
    add_arguments(parser)
    parser.set_defaults(run=run)


def _add_selftest(commands) -> None:
    from .tools.selftest import add_arguments, run

    summary = "Check that images lie where they belong in the patient, through every output"
    parser = add_command(commands, "selftest", summary, "dpmrecon selftest --out selftest")
    add_arguments(parser)
    parser.set_defaults(run=run)


def _add_estimate(commands) -> None:
    from .tools.estimate import add_arguments

    summary = "What a scan will cost in seconds and memory, from a short measurement on this machine"
    parser = add_command(commands, "estimate", summary, "dpmrecon estimate scan.h5 --mode uncertainty --deadline 60")
    add_arguments(parser)


def _add_doctor(commands) -> None:
    from .options import add_arguments

    parser = add_command(
        commands,
        "doctor",
        "What a scan's file holds, what would be done with it and why, and what to change at the scanner",
        "dpmrecon doctor scan.h5 --page scan.html\n"
        "exit code: as `replay` would have it: 0 every slice by the model, 3 by the conventional fallback, 4 some are "
        "missing, 2 refused",
    )
    parser.add_argument("scan", type=Path, help="ISMRMRD file with raw acquisitions, or MRD version 2")
    parser.add_argument("--json", action="store_true", help="everything as JSON instead of text")
    parser.add_argument("--page", type=Path, metavar="FILE.html", help="coil maps, cost and pictures too, as a page")
    add_arguments(parser)
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    import json

    from .options import from_arguments
    from .tools.doctor import doctor

    found = doctor(args.scan, from_arguments(args), page=args.page is not None)
    if args.page is not None:
        from .tools.doctor_page import write

        write(found, args.page)
    print(json.dumps(found.as_json(), indent=1) if args.json else found.text())
    return found.exit_code


def _add_audit(commands) -> None:
    parser = add_command(
        commands,
        "audit",
        "Fallbacks, cautions, residuals and seconds of the audit lines by protocol and week",
        "dpmrecon audit audit.jsonl",
    )
    parser.add_argument("logs", type=Path, nargs="+", metavar="FILE", help="of --audit; what it put aside is read too")
    parser.add_argument("--json", action="store_true", help="as JSON instead of a table")
    parser.set_defaults(run=_audit)


def _audit(args: argparse.Namespace) -> int:
    import json

    from .hosts.audit_summary import drifts, told, weeks_of

    weeks = weeks_of(args.logs, lambda text: print(f"dpmrecon: {text}", file=sys.stderr))
    found = {"weeks": [week.as_json() for week in weeks], "drift": drifts(weeks)}
    print(json.dumps(found, indent=1) if args.json else told(weeks))
    return 0


def _add_compare(commands) -> None:
    parser = add_command(
        commands,
        "compare",
        "Result folders side by side on one HTML page, which opens without a network",
        "dpmrecon compare results_prox results_one_step --out compare.html\n"
        "A DIR is of one scan, or has such below it, as that of `protocol` has: equal names stand side by side.\n"
        "The page holds the images: it is as confidential as they are.",
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="result folders")
    parser.add_argument("--out", type=Path, required=True, metavar="PAGE.html", help="the page")
    parser.set_defaults(run=_compare)


def _compare(args: argparse.Namespace) -> int:
    from .tools.compare import write

    write(args.folders, args.out)
    print(f"Open {args.out} in a browser: {args.out.stat().st_size / 1e6:.1f} MB with the images in it.")
    return 0


def _add_serve(commands) -> None:
    from .hosts.audit import VARIABLE
    from .options import add_arguments

    parser = add_command(
        commands,
        "serve",
        "Keep the model loaded and reconstruct what Gadgetrons and MRD clients send",
        "dpmrecon serve --port 9020 --device cuda",
    )
    parser.add_argument("--port", type=int, required=True, help="to listen on; 0 takes a free one and names it")
    parser.add_argument("--address", default="127.0.0.1", help="to listen on (default: this machine alone)")
    parser.add_argument("--peers", type=int, default=8, help="scans at a time; one more is refused (default: 8)")
    audit = os.environ.get(VARIABLE)
    parser.add_argument(
        "--audit",
        type=Path,
        default=audit and Path(audit),
        metavar="FILE",
        help=f"a line of JSON for each scan, without patient data (default: ${VARIABLE}, else none)",
    )
    parser.add_argument("--dicom", type=Path, metavar="DIR", help="write each scan's DICOM series there too")
    parser.add_argument(
        "--send", metavar="AET@host:port", help="and send them to this archive, as soon as it takes them"
    )
    parser.add_argument(
        "--metrics",
        metavar="[ADDRESS:]PORT",
        help="counts for Prometheus at http://ADDRESS:PORT/metrics (default: none; ADDRESS is 127.0.0.1 unless given)",
    )
    add_arguments(parser)
    parser.set_defaults(run=_serve)


def _add_stream(commands) -> None:
    from .options import add_arguments

    parser = add_command(
        commands,
        "stream",
        "One scan as MRD messages on standard input to images on standard output; logs go to standard error",
        "ismrmrd_hdf5_to_stream -i scan.h5 --use-stdout | dpmrecon stream --contrast t1 | "
        "ismrmrd_stream_to_hdf5 --use-stdin -o images.h5\n\n"
        "exit code: 0 every slice by the model, 3 by the conventional fallback, 4 some are missing, 2 nothing came out",
    )
    add_arguments(parser)
    parser.set_defaults(run=_stream)


def _stream(args: argparse.Namespace) -> int:
    from .hosts.stream import run

    return run(args)


def _serve(args: argparse.Namespace) -> int:
    from .hosts.serve import run

    return run(args)


if __name__ == "__main__":
    sys.exit(main())
