"""Do two checkouts make the same images? `python tests/commands/compare_checkouts.py OLD NEW [--data ../shared/data]`.

Each checkout replays the accelerated scans of DATA/ismrmrd, and its service gets a recorded stream of DATA/wire. Pixels
must be equal to the last bit, and DICOM UIDs too; exit code 1 where they are not. Both run by this Python, one after
the other, on one thread.
"""

import argparse
import gzip
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
from pydicom import dcmread

sys.path.insert(0, str(Path(__file__).parents[1]))  # where support lies

from support import fake_peer
from support.paths import DATA

UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
Results = dict[str, np.ndarray | str]


def environment(checkout: Path) -> dict[str, str]:
    """Where Python finds this checkout's packages before those that are installed."""
    path = os.pathsep.join(str(checkout.resolve() / part) for part in ("gadgets", "training"))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def replayed(checkout: Path, scan: Path, out: Path, options: list[str]) -> Results:
    """Pixels of images.h5 by series and number, pixels and UIDs of the DICOM files by path."""
    command = [sys.executable, "-m", "dpmrecon.cli", "replay", str(scan), "--out", str(out), *options]
    subprocess.run(command, check=True, env=environment(checkout), capture_output=True)
    found: Results = {}
    with h5py.File(out / "images.h5") as file:
        for name in sorted(file["dataset"]):
            if name.startswith("image_"):
                found[name] = file[f"dataset/{name}/data"][:]
                found[f"{name} heads"] = file[f"dataset/{name}/header"][:].view(np.uint8)
    for path in sorted((out / "dicom").rglob("*.dcm")):
        image = dcmread(path)
        found[f"{path.relative_to(out)} pixels"] = image.pixel_array
        found |= {f"{path.relative_to(out)} {name}": str(image[name].value) for name in UIDS}
    return found


def served(checkout: Path, stream: Path) -> Results:
    """Pixels of the images that `dpmrecon serve` sends back for a recorded stream."""
    command = [sys.executable, "-m", "dpmrecon.cli", "serve", "--port", "0", "--device", "cpu"]
    service = subprocess.Popen(command, env=environment(checkout), stderr=subprocess.PIPE, text=True)
    assert service.stderr is not None
    try:
        port = int(service.stderr.readline().split(" port ")[1].split(",")[0])
        peer = fake_peer.Peer(socket.create_connection(("127.0.0.1", port)), timeout=600)
        peer.send(gzip.decompress(stream.read_bytes()))
        answer = peer.answer()
    finally:
        service.terminate()
        service.communicate()
    assert not answer.errors, answer.errors
    return {f"image {number}": image.data for number, image in enumerate(answer.images)}


def differences(old: Results, new: Results) -> list[str]:
    """What is not equal, in words."""
    found = [f"{name} is in one of them alone" for name in sorted(old.keys() ^ new.keys())]
    for name in sorted(old.keys() & new.keys()):
        if not np.array_equal(old[name], new[name]):
            found.append(f"{name} differs")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--data", type=Path, default=DATA)
    args, options = parser.parse_known_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for scan in sorted((args.data / "ismrmrd").glob("*_r4*.h5")):
            outs = [Path(folder) / scan.stem / name for name in ("old", "new")]
            results = [replayed(checkout, scan, out, options) for checkout, out in zip((args.old, args.new), outs)]
            failed |= told(f"replay of {scan.stem}", *results)
        for name in ("t1_brain_r4", "flair_3slices_r4_separate_acs"):
            stream = args.data / "wire" / f"{name}.recondata.bin.gz"
            failed |= told(f"stream {name}", *(served(checkout, stream) for checkout in (args.old, args.new)))
    return int(failed)


def told(what: str, old: Results, new: Results) -> bool:
    found = differences(old, new)
    print(f"{what}: {len(old)} arrays and UIDs, {'all equal' if not found else '; '.join(found)}", flush=True)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
