"""Seconds to read a scan's file: `python tests/commands/read_scan.py SCAN.h5 ... [--repeats N]`.

Prints, for each file, its size, its lines, and seconds: of the package ismrmrd line by line (once: it is slow), to open
it here (header and all heads), and then to read all its lines here, the least of so many repeats; and whether both gave
the same heads and samples to the last bit. To compare two checkouts, run it in each.
"""

import argparse
import time
from pathlib import Path

import ismrmrd
import numpy as np
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.flags import LAST_IN_SLICE, LAST_OF_ALL


def by_line(path: Path) -> list[ismrmrd.Acquisition]:
    dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=False)
    try:
        return [dataset.read_acquisition(number) for number in range(dataset.number_of_acquisitions())]
    finally:
        dataset.close()


def here(path: Path) -> tuple[float, float, list[ismrmrd.Acquisition]]:
    """(seconds to open, seconds to read, lines)."""
    began = time.perf_counter()
    with open_scan(path) as scan:
        opened = time.perf_counter()
        lines = list(scan.acquisitions())
    return opened - began, time.perf_counter() - opened, lines


def contents(lines: list[ismrmrd.Acquisition]) -> list[tuple[bytes, bytes]]:
    """Heads and samples, without the order and the flags of it, which `open_scan` gives anew."""
    found = []
    for line in lines:
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(line.getHead())
        head.flags &= ~(LAST_IN_SLICE | LAST_OF_ALL)
        found.append((bytes(head), np.ascontiguousarray(line.data).tobytes()))
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print("| scan | MB | lines | ismrmrd, s | open, s | read, s | equal |\n|---|---|---|---|---|---|---|")
    for path in args.scans:
        began = time.perf_counter()
        expected = by_line(path)
        slow = time.perf_counter() - began
        runs = [here(path) for _ in range(args.repeats)]
        opened, read = (min(run[part] for run in runs) for part in (0, 1))
        equal = contents(runs[0][2]) == contents(expected)
        size = path.stat().st_size / 1e6
        print(f"| {path.name} | {size:.1f} | {len(expected)} | {slow:.2f} | {opened:.3f} | {read:.3f} | {equal} |")


if __name__ == "__main__":
    main()
