"""The command `dpmrecon bulk`."""

import argparse
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from .. import options as schema
from ..errors import WORST, BadInputError
from ..options import Options
from .engines import Cluster, Engine, Lost, Processes, answers
from .sources import Source, anonymous, fetch, files_at, listed

if TYPE_CHECKING:
    from ..output.protocol_report import Row
    from ..results import Wanted

CORES = 4  # of a CPU for a process: more add little to one scan
KEY = "bulk.key"  # of the names of anonymous scans: with it names can be tried
MB_IN_GB = 1000


def run(args: argparse.Namespace, wanted: Callable[[argparse.Namespace, Options], "Wanted"]) -> int:
    """`dpmrecon bulk`; the exit code. wanted: what is to be written. Raises BadInputError."""
    for name in ("workers", "memory"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise BadInputError(f"--{name} is {value}: give a number above 0")
    if args.ray is not None and args.memory is not None:
        raise BadInputError("--memory is of this machine, and Ray's nodes know their own: leave it out")
    sources = listed(args.scans, args.out)
    if args.dry_run:
        args.model = None
        return _looked_at(sources, args)
    args.model = _model(args.model, args.out)
    options = schema.from_arguments(args)
    if args.anonymize:
        sources = anonymous(sources, _key(args.out))
    return _reconstructed(sources, args, options, wanted(args, options))


def _reconstructed(sources: Mapping[str, Source], args: argparse.Namespace, options: Options, wanted: "Wanted") -> int:
    from ..output.protocol_report import key_of
    from ..recon.plan import contrast_of, load, sampling_of
    from ..results import made_by
    from .run import Progress, bulk

    checkpoint, device = load(options)
    # what the model cannot have is said now, not by each scan
    sampling_of(options, checkpoint, device, contrast_of(options, checkpoint, None))
    gpus = _gpus(options) if device.type == "cuda" else ()
    digest = key_of(made_by(checkpoint, options, wanted))
    total = sum(source.size for source in sources.values())
    with closing(_engine(args, gpus)) as engine, tqdm(total=total, unit="B", unit_scale=True, smoothing=0) as bar:
        counted = 0

        def count(name: str) -> None:
            nonlocal counted
            counted += 1
            bar.set_postfix_str(f"{counted} of {len(sources)} scans", refresh=False)
            bar.update(sources[name].size)

        def before(name: str) -> None:
            bar.initial += sources[name].size  # what was done before tells nothing of the time that is left
            count(name)

        def add(name: str, row: "Row") -> None:
            if row["error"] is not None:
                bar.write(f"{name}: FAILED: {row['error']}")
            count(name)

        megabytes = None if args.memory is None else MB_IN_GB * args.memory
        progress = Progress(before, add, bar.write)
        return bulk(
            sources,
            args.out,
            engine,
            checkpoint,
            options,
            wanted,
            digest,
            megabytes=megabytes,
            devices=max(1, len(set(gpus))),
            progress=progress,
        )


def _looked_at(sources: Mapping[str, Source], args: argparse.Namespace) -> int:
    from .dry_run import diagnosed

    options = schema.from_arguments(args)
    calls = {name: (diagnosed, (source, options)) for name, source in sources.items()}
    codes: list[int] = []
    verdicts: dict[str, int] = {}
    with closing(_engine(args, ())) as engine:
        for name, found in answers(engine, calls):
            if isinstance(found, Lost):
                found = {
                    "verdict": "refused",
                    "reasons": [f"the doctor's process ended ({found.reason})"],
                    "exit_code": 2,
                }
            print(f"{name}: {found['verdict']}: {'; '.join(found['reasons'])}")
            codes.append(found["exit_code"])
            verdicts[found["verdict"]] = verdicts.get(found["verdict"], 0) + 1
    told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    print(f"{len(sources)} scans of {sum(source.size for source in sources.values()) / 1e9:.2f} GB: {told}")
    return max(codes, key=WORST.index)


def _engine(args: argparse.Namespace, gpus: tuple[str, ...]) -> Engine:
    if args.ray is not None:
        return Cluster(args.ray, args.workers)
    return Processes(args.workers or len(gpus) or max(1, (os.cpu_count() or 1) // CORES), gpus)


def _gpus(options: Options) -> tuple[str, ...]:
    """Those that processes share, by what CUDA_VISIBLE_DEVICES calls them; none where an option names one."""
    if options.device not in (None, "cuda"):
        return ()
    import torch

    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(seen.split(",")) if seen else tuple(map(str, range(torch.cuda.device_count())))


def _model(given: str | None, out: Path) -> Path | None:
    """The model's file: that of an address is fetched into the results' folder, where all workers see it."""
    if given is None or "://" not in given:
        return None if given is None else Path(given)
    files, inner = files_at(given)
    path = out / ".model" / Path(inner).name
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".safetensors", ".json"):
        fetch(files, str(Path(inner).with_suffix(suffix)), path.with_suffix(suffix))
    return path


def _key(out: Path) -> bytes:
    path = out / KEY
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
    return path.read_bytes()
