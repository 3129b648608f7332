"""Does a bulk run lose or double a scan? `python tests/commands/bulk_proof.py [--scans 200] [--out REPORT.md]`.

Small simulated scans, ten of them broken, through `dpmrecon bulk` whose driver is killed (-9) twice and one of whose
workers is killed once; some of the images are compared with those of `replay`. `--rates`: scans a minute of `replay` in
a process for each scan, of one worker, of two, and of two of a Ray cluster where Ray is installed, each in turn, and
again, with medians; other work on the machine changes processor time least. The model is the tests' tiny one: what is
measured is all but the network. Exit code 1 where a scan is not in the report as it should be.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median

import h5py
import numpy as np
from dpmrecon.bulk.job import PARTS, ROW
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.simulate import simulate

sys.path.insert(0, str(Path(__file__).parents[1]))  # where support lies

from support.models import SAMPLING, TINY, saved_model

CONTRASTS = ("flair", "t1", "t2")
LOOKED_FOR = 0.02  # seconds between two looks at a run
FEW = 5  # scans that are replayed one by one


def good_scans(folder: Path, count: int) -> None:
    """Of different sizes and contents, in folders of ten."""
    for number in range(count):
        path = folder / f"patient{number // 10:02d}" / f"scan{number % 10}.h5"
        path.parent.mkdir(exist_ok=True, parents=True)
        settings = SimulationSettings(
            contrast=CONTRASTS[number % 3],
            matrix=(40 + 2 * (number % 4), 36 + 2 * (number % 5)),
            n_slices=1 + number % 2,
            n_coils=4,
            calibration_lines=16,
            acceleration=2,
            seed=number,
        )
        simulate(path, settings)
        path.with_name(f"{path.stem}_truth.npy").unlink(missing_ok=True)


def broken_scans(folder: Path, sound: Path) -> dict[str, Callable[[Path], object]]:
    """Ten ways for a scan to be none; each writes a file."""
    whole = sound.read_bytes()

    def edited(change: Callable[[h5py.File], object]) -> Callable[[Path], object]:
        def write(path: Path) -> None:
            path.write_bytes(whole)
            with h5py.File(path, "r+") as file:
                change(file)

        return write

    def with_xml(old: bytes, new: bytes) -> Callable[[h5py.File], object]:
        def change(file: h5py.File) -> None:
            xml = bytes(file["dataset/xml"][0])
            assert old in xml
            file["dataset/xml"][0] = xml.replace(old, new)

        return change

    def image_file(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file["dataset/image_0/data"] = np.zeros((1, 1, 1, 8, 8), np.uint16)
            file["dataset/image_0/header"] = np.zeros(1)

    ways = {
        "cut_early": lambda path: path.write_bytes(whole[:3000]),
        "cut_late": lambda path: path.write_bytes(whole[: len(whole) * 2 // 3]),
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_text("measured on a Monday"),
        "picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500)),
        "images": image_file,
        "no_lines": edited(lambda file: file["dataset"].__delitem__("data")),
        "no_header": edited(lambda file: file["dataset"].__delitem__("xml")),
        "no_xml": edited(with_xml(b"<ismrmrdHeader", b"<ismrmrdHaeder")),
        "radial": edited(with_xml(b"cartesian", b"radial")),
    }
    for name, write in ways.items():
        write(folder / f"{name}.h5")
    return ways


def command(scans: Path, out: Path, model: Path, *options: str) -> list[str]:
    given = ["bulk", str(scans), "--out", str(out), "--model", str(model), "--device", "cpu", *options]
    return [sys.executable, "-m", "dpmrecon.cli", *given]


def timed(arguments: list[str]) -> float:
    """Seconds of a run that nobody disturbs."""
    began = time.perf_counter()
    done = subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert done.returncode in (0, 2), done.stderr
    return time.perf_counter() - began


def disturbed(arguments: list[str], out: Path, count: int) -> list[str]:
    """The run, its driver killed twice and a worker once; what happened, in words."""
    told = []
    for share in (0.2, 0.5):
        driver = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda share=share: rows_in(out) >= share * count, driver)
        driver.kill()
        driver.wait()
        told.append(f"driver killed with {rows_in(out)} rows on disk")
    driver = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: rows_in(out) >= 0.7 * count and in_hand(out), driver)
    name, process = in_hand(out)[0]
    os.kill(process, signal.SIGKILL)
    told.append(f"worker killed with {rows_in(out)} rows on disk, {name} in its hand")
    assert driver.wait() == 2  # some are broken
    return told


def wait_for(condition: Callable[[], object], driver: subprocess.Popen) -> None:
    while not condition():
        assert driver.poll() is None, "the run ended before it was disturbed"
        time.sleep(LOOKED_FOR)


def rows_in(out: Path) -> int:
    return sum(1 for _ in out.glob(f"*/{ROW}"))


def in_hand(out: Path) -> list[tuple[str, int]]:
    """Names of scans and the processes that have them."""
    found = []
    for path in out.glob(f"{PARTS}/*"):
        _, process, name = path.name.removesuffix("-old").rsplit("-", 2)
        if Path(f"/proc/{process}").exists():
            found.append((name, int(process)))
    return found


def report_of(out: Path) -> list[dict[str, str]]:
    with (out / "bulk.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def images(folder: Path) -> np.ndarray:
    with h5py.File(folder / "images.h5") as file:
        return file["dataset/image_1/data"][:].astype(float)


def judged(found: list[dict[str, str]], names: list[str], broken: set[str]) -> list[str]:
    """What is wrong with a report, in words."""
    told = [row["name"] for row in found]
    wrong = [f"{name} is in the report {told.count(name)} times" for name in names if told.count(name) != 1]
    for row in found:
        if (row["outcome"] == "failed") != (row["name"] in broken) or (row["name"] in broken and not row["error"]):
            wrong.append(f"{row['name']} is {row['outcome']}: {row['error']}")
    return wrong


def rates(archive: Path, folder: Path, model: Path, rounds: int, count: int, say: Callable[[str], object]) -> None:
    """Scans a minute and processor time, each way in turn, so many rounds."""
    few, found = sorted(archive.glob("*/scan*.h5"))[:FEW], dict[str, list[tuple[float, float]]]()
    ways = ["--workers 1", "--workers 2"] + ["--workers 2 --ray local"] * (find_spec("ray") is not None)
    for number in range(rounds):
        one_by_one = [replaying(scan, folder / f"replay{number}", model) for scan in few]
        found.setdefault("`replay`, a process for each scan", []).append(measured(one_by_one, len(few)))
        for way in ways:
            run = command(archive, folder / f"{way.replace(' ', '')}{number}", model, *way.split())
            found.setdefault(f"`bulk {way}`", []).append(measured([run], count))
    say("| how | scans a minute, median (lowest to highest) | processor seconds a scan, median |\n|---|---|---|")
    for way, runs in found.items():
        rate, processor = [60 / seconds for seconds, _ in runs], median(own for _, own in runs)
        # Ray's workers are nobody's children
        told = "not known" if "ray" in way else f"{processor:.2f}"
        say(f"| {way} | {median(rate):.0f} ({min(rate):.0f} to {max(rate):.0f}) | {told} |")


def measured(commands: list[list[str]], count: int) -> tuple[float, float]:
    """Seconds, and those of a processor, for each of `count` scans."""
    before = getrusage(RUSAGE_CHILDREN)
    seconds = sum(map(timed, commands))
    after = getrusage(RUSAGE_CHILDREN)
    return seconds / count, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / count


def replaying(scan: Path, out: Path, model: Path) -> list[str]:
    replay = ["replay", str(scan), "--out", str(out / scan.stem), "--model", str(model), "--device", "cpu"]
    return [sys.executable, "-m", "dpmrecon.cli", *replay]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=200, help="ten of them broken")
    parser.add_argument("--rates", action="store_true", help="scans a minute, undisturbed, and nothing else")
    parser.add_argument("--rounds", type=int, default=3, help="of --rates")
    parser.add_argument("--out", type=Path, help="the report, beside what is printed")
    args = parser.parse_args()
    lines = []

    def say(text: str) -> None:
        print(text, flush=True)
        lines.append(text)
        if args.out is not None:
            args.out.write_text("\n".join(lines) + "\n")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive, model = folder / "archive", saved_model(folder / "tiny.safetensors", TINY, sampling=SAMPLING)
        good_scans(archive, args.scans - 10)
        broken = set(broken_scans(archive, archive / "patient00/scan0.h5"))
        names = ["__".join(path.relative_to(archive).with_suffix("").parts) for path in archive.rglob("*.h5")]
        asked = " ".join(["python tests/commands/bulk_proof.py", *sys.argv[1:]])
        say(
            f"# {'Scans a minute' if args.rates else 'A bulk run that is killed'}\n\n{len(names)} small scans, "
            f"{len(broken)} of them broken, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores that other work "
            f"shares; by `{asked}`.\n"
        )

        if args.rates:
            rates(archive, folder, model, args.rounds, len(names), say)
            return 0

        few = sorted(archive.glob("*/scan*.h5"))[:FEW]
        for scan in few:
            timed(replaying(scan, folder / "replay", model))
        out = folder / "disturbed"
        happened = disturbed(command(archive, out, model, "--workers", "2"), out, len(names))
        say("\nA run with two workers, disturbed; each time the same command went on:\n")
        for text in happened:
            say(f"- {text}")
        wrong = judged(report_of(out), names, broken)
        differences = []
        for scan in few:
            one, other = images(out / f"patient00__{scan.stem}"), images(folder / "replay" / scan.stem)
            differences.append(float(np.abs(one - other).max() / np.abs(other).max()))
        good = len(names) - len(broken)
        say(
            f"\nEach of the {good} good scans is in its report exactly once, and each broken one with its sentence: "
            f"{'NO' if wrong else 'yes'}."
        )
        for text in wrong:
            say(f"- {text}")
        say(
            f"Largest difference of the images of {len(few)} scans from those of `replay`, over their maximum: "
            f"{max(differences):.1e}."
        )
        say("\n| broken scan | its sentence |\n|---|---|")
        for entry in report_of(out):
            if entry["name"] in broken:
                say(f"| {entry['name']} | {entry['error'].replace(str(archive), 'archive')} |")
    return 1 if wrong or max(differences) > 1e-4 else 0


if __name__ == "__main__":
    sys.exit(main())
