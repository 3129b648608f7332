"""The same scan through every way in: `python tests/commands/hosts_table.py [SCAN.h5] [--recorded RECONDATA.gz]
[--out REPORT.md] [-- options]`.

Prints a table: images, the greatest and mean difference of an image from that of `dpmrecon replay`, as a share of its
norm, and the greatest of a pixel in steps of the whole numbers that MRD clients and pipes get. float32 images are equal
within 1e-4. In whole numbers rounding alone makes a difference of several 1e-4, so these are equal within 0.6 of a
step, of which rounding is half. Exit code 1 where an image differs by more. Images are compared after one least-squares
factor, because each way has its own units. The network computes in float32: bfloat16 makes some 1e-4 of the rounding of
k-space in other units (`-- --precision auto` shows it where the device has bfloat16).

recorded: what a Gadgetron sent of the scan; without it our own k-space is sent as a Gadgetron would, louder. Without a
scan: a simulated one, with unequal sizes and without a noise measurement, which a Gadgetron does not pass on. Options
are those that both a command line and a chain take, in pairs. For OpenRecon those that are on its card come with the
scan, to a service that does not have them. bulk has the scan twice, for two workers; Ray takes part where it is
installed.
"""

import argparse
import gzip
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import ismrmrd
import numpy as np
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.simulate import simulate

sys.path.insert(0, str(Path(__file__).parents[1]))  # where support lies

from load_serve import Service

from support.fake_peer import IMAGE, config, config_name, parts_of
from support.openrecon import DEFAULTS, card
from support.results import images
from support.streams import edited_stream, raw_stream

SHARE, STEPS = 1e-4, 0.6  # within which images are equal: of float32, and of whole numbers
Images = dict[tuple[int, ...], np.ndarray]


def placed(found: list[ismrmrd.Image]) -> Images:
    """Magnitudes of the first series by their counters."""
    heads = [(image.getHead(), image) for image in found]
    return {
        (head.contrast, head.phase, head.set, head.repetition, head.average, head.slice): _values(image)
        for head, image in heads
        if head.image_series_index == 1
    }


def _values(image: ismrmrd.Image) -> np.ndarray:
    slope, intercept = (
        float(image.meta.get(f"Rescale{name}", other)) for name, other in (("Slope", 1), ("Intercept", 0))
    )
    return slope * image.data.astype(float) + intercept


def first(found: list[ismrmrd.Image]) -> ismrmrd.Image:
    """Of the first series."""
    return next(image for image in found if image.getHead().image_series_index == 1)


def from_stream(data: bytes) -> list[ismrmrd.Image]:
    source, found = io.BytesIO(data), []
    while int.from_bytes(source.read(2), "little") == IMAGE:
        found.append(ismrmrd.Image.deserialize_from(source.read))
    return found


def command(name: str, *given: object, data: bytes | None = None) -> bytes:
    """What a command prints; what it says of a failure is shown."""
    line = [sys.executable, "-m", "dpmrecon.cli", name, *map(str, given)]
    done = subprocess.run(line, input=data, capture_output=True)
    if done.returncode not in (0, 3):
        sys.exit(done.stderr.decode())
    return done.stdout


def difference(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """(share of the norm, of the greatest pixel in the units of `found`)."""
    factor = np.vdot(found, wanted) / np.vdot(found, found)
    rest = factor * found - wanted
    return float(np.linalg.norm(rest) / np.linalg.norm(wanted)), float(np.abs(rest).max() / factor)


def by_bulk(scan: Path, folder: Path, *options: str) -> dict[str, list[ismrmrd.Image]]:
    """Two workers have a scan each, the same."""
    scans, out = folder / "scans", folder / f"bulk{''.join(options[:2])}"
    if not scans.exists():
        scans.mkdir()
        for name in ("one", "other"):
            shutil.copy(scan, scans / f"{name}.h5")
    command("bulk", scans, "--out", out, "--workers", "2", *options)
    return {name: images(out / name) for name in ("one", "other")}


def on_card(options: list[str]) -> tuple[dict[str, str], list[str]]:
    """Values of OpenRecon's card, and the options that it has no field for."""
    values, others = {}, []
    for name, value in zip(options[::2], options[1::2]):
        if (field := name.removeprefix("--").replace("-", "")) in DEFAULTS:
            values[field] = value
        else:
            others += [name, value]
    return values, others


def served(options: list[str], *streams: list[bytes]) -> list[list[ismrmrd.Image]]:
    """What a service of these options answers to each."""
    service = Service(*options)
    try:
        return [service.scan(messages).images for messages in streams]
    finally:
        service.stop()


def table(wanted: Images, ways: dict[str, list[ismrmrd.Image]], say: Callable[[str], object]) -> bool:
    """Whether all are equal."""
    say("| way | images | greatest difference | mean | pixel, steps | equal |\n|---|---|---|---|---|---|")
    say(f"| replay | {len(wanted)} | | | | |")
    equal = True
    for name, found in ways.items():
        own = placed(found)
        if own.keys() != wanted.keys():
            say(f"| {name} | {len(own)} | other images: {sorted(own)} | | | no |")
            equal = False
            continue
        each, pixels = zip(*(difference(own[key], wanted[key]) for key in wanted))
        image = first(found)
        whole, steps = image.data.dtype.kind == "u", max(pixels) / float(image.meta.get("RescaleSlope", 1))
        close = steps <= STEPS if whole else max(each) <= SHARE
        equal &= close
        told = f"{steps:.2f} | {'yes' if close else 'no'}" if whole else f" | {'yes' if close else 'no'}"
        say(f"| {name} | {len(own)} | {max(each):.1e} | {np.mean(each):.1e} | {told} |")
    return equal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, nargs="?")
    parser.add_argument("--contrast", default="flair")
    parser.add_argument("--recorded", type=Path, help="gzip of the ReconData of the same scan")
    parser.add_argument("--out", type=Path, help="the report, beside what is printed")
    mark = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, options = parser.parse_args(sys.argv[1:mark]), ["--precision", "float32", *sys.argv[mark + 1 :]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan, file, piped = args.scan or folder / "scan.h5", folder / "file", folder / "piped"
        if args.scan is None:
            simulate(scan, SimulationSettings(matrix=(90, 72), n_slices=3, n_coils=6, acceleration=2, noise_scan=False))
        messages = raw_stream(scan, f"dpm_{args.contrast}")
        data = b"".join(messages)
        command("replay", scan, "--out", file, "--contrast", args.contrast, *options)
        command("replay", "-", "--out", piped, *options, data=data)
        ways = {
            "`replay -`": images(piped),
            "`stream`, configuration first": from_stream(command("stream", *options, data=data)),
            "`stream`, header first": from_stream(
                command("stream", "--contrast", args.contrast, *options, data=b"".join(messages[1:]))
            ),
        }
        if args.recorded:
            sent = parts_of(gzip.decompress(args.recorded.read_bytes()))[1:]
        else:
            sent = edited_stream(scan, calibration=False)[1:]  # it is in the lines
        ways["`serve`, an MRD client"], ways["`serve`, a Gadgetron's node"] = served(
            options, messages, [config(contrast=args.contrast), *sent]
        )
        values, others = on_card(["--contrast", args.contrast, *options])
        (ways["`serve`, OpenRecon's card"],) = served(
            others, [config_name("openrecon"), messages[1], card(**values), *messages[2:]]
        )
        engines = {"processes": []} | ({"Ray": ["--ray", "local"]} if find_spec("ray") else {})
        for engine, chosen in engines.items():
            found = by_bulk(scan, folder, *chosen, "--contrast", args.contrast, *options)
            ways |= {f"`bulk`, 2 workers ({engine}), {which} scan": own for which, own in found.items()}
        wanted = placed(images(file))
    asked = " ".join(["python tests/commands/hosts_table.py", *sys.argv[1:]])
    lines = [f"# The same scan by every way in\n\nBy `{asked}`: differences from `dpmrecon replay`.\n"]

    def say(text: str) -> None:
        print(text)
        lines.append(text)

    equal = table(wanted, ways, say)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
