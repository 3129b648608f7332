"""The command line. `dpmrecon COMMAND --help` shows an example of each command."""

import argparse
import sys
from pathlib import Path

from . import __version__
from .errors import BadInputError, DpmreconError


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 2 bad input (one line, no traceback), 3 some slices by the conventional
    fallback, 4 some slices missing."""
    parser = argparse.ArgumentParser("dpmrecon", description="Accelerated brain MRI with a diffusion prior")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_replay(commands)
    _add_simulate(commands)
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except DpmreconError as error:
        print(f"dpmrecon: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dpmrecon: interrupted; the slices finished so far are kept", file=sys.stderr)
        return 130


def _command(commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_replay(commands) -> None:
    parser = _command(
        commands,
        "replay",
        "Reconstruct an ISMRMRD file into images.h5, preview.png and report.json",
        "dpmrecon replay scan.h5 --out results --samples 8",
    )
    parser.add_argument("scan", type=Path, help="ISMRMRD file with raw acquisitions")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--contrast", help="flair, t1, t2, dwi or swi (default: from the scan's protocol name)")
    parser.add_argument("--model", type=Path, help="checkpoint .safetensors (default: the one that ships)")
    parser.add_argument("--sampler", choices=("prox", "dps"), default="prox")
    parser.add_argument("--steps", type=int, help="evaluations of the network per sample (default: the model's)")
    parser.add_argument("--samples", type=int, help="posterior samples per slice; their mean is the image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fallback", choices=("on", "off"), default="on", help="CG-SENSE where the model fails")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="slices after it come out as CG-SENSE")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    parser.add_argument("--batch", type=int, help="images the network sees at once (default: 4 on a CPU, 32 on a GPU)")
    parser.add_argument("--combine-averages", action="store_true", help="one image of all averages")
    parser.add_argument("--truth", type=Path, help=".npy (slices, rows, cols) to score and show errors against")
    parser.add_argument("--mask", type=Path, help=".npy, where to score")
    parser.set_defaults(run=_replay)


def _replay(args: argparse.Namespace) -> int:
    import dataclasses

    from .checkpoint import load_checkpoint
    from .mrd import contrast_label, open_scan
    from .reconstruct import Sampling
    from .replay import replay
    from .samplers import settings_from

    for name in ("steps", "samples", "batch"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise BadInputError(f"--{name} is {getattr(args, name)}: give 1 or more")
    device = _device(args.device)
    checkpoint = load_checkpoint(args.model, device)
    labels = [label for label in checkpoint.denoiser.labels if not label.startswith("spare")]
    with open_scan(args.scan) as scan:
        contrast = args.contrast or contrast_label(scan.header)
    if args.contrast is not None and args.contrast not in labels:
        raise BadInputError(f"contrast '{args.contrast}' is unknown to the model: valid ones are {', '.join(labels)}")
    if contrast is None:
        print("dpmrecon: the protocol names no known contrast: the unlabelled prior is used", file=sys.stderr)
    defaults = checkpoint.card["sampling"]
    settings = settings_from(defaults[args.sampler])
    if args.steps is not None:
        settings = dataclasses.replace(settings, steps=args.steps)
    sampling = Sampling(
        sampler=args.sampler,
        settings=settings,
        samples=args.samples or defaults["samples"],
        seed=args.seed,
        batch=args.batch or (4 if device.type == "cpu" else 32),
        fallback=args.fallback == "on",
        deadline=args.deadline,
    )
    code = replay(
        args.scan,
        args.out,
        checkpoint,
        contrast,
        sampling,
        device,
        combine_averages=args.combine_averages,
        truth=args.truth,
        mask=args.mask,
    )
    print(f"{args.out}/images.h5, preview.png, report.json")
    return code


def _device(name: str | None):
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInputError(f"device '{name}' cannot be used ({reason}): leave --device out or name another") from error
    return device


def _add_simulate(commands) -> None:
    from .simulate import add_arguments, run

    parser = _command(
        commands,
        "simulate",
        "Write an accelerated scan of a head phantom, and the truth beside it",
        "dpmrecon simulate scan.h5 --contrast flair --R 4",
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


if __name__ == "__main__":
    sys.exit(main())
