"""Figures of the service: `python tests/commands/load_serve.py [RECORDED.gz] [--scans 50] [-- options of serve]`.

Prints seconds of one scan through the gadget that is started for it (cold) and through a running service (warm), what
of the warm scan is neither maps nor reconstruction, the service's memory with 4 peers at a time, and its resident
memory along many scans in a row. Without a recorded stream: a simulated scan of two small slices.

--peers N --minutes M: instead, N peers that send one scan after the other for so long, beside one that stalls within a
message, one that sends rubbish and one that floods: scans a minute, percentiles of a scan's seconds, the fewest and
most scans of a peer, resident memory at each fifth, and how far images are from those that the scan gave alone: a batch
holds what was there in time, which moves the last digits.
"""

import argparse
import contextlib
import gzip
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import ismrmrd
import numpy as np
from dpmrecon.tools.simulate import simulate
from dpmrecon.tools.simulation_settings import SimulationSettings

sys.path.insert(0, str(Path(__file__).parents[1]))  # where support lies

from support import fake_peer
from support.fake_peer import Child, config, parts_of
from support.results import by_place
from support.streams import edited_stream
from support.waiting import LIMIT


class Service:
    """`dpmrecon serve` in a process of its own."""

    def __init__(self, *given: str):
        command = [sys.executable, "-m", "dpmrecon.cli", "serve", "--port", "0", *given]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        line = self.process.stderr.readline()
        self.port = int(re.search(r"port (\d+)", line)[1])
        while "ready" not in line:
            line = self.process.stderr.readline()
        self.records: list[dict] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        for line in self.process.stderr:
            if " scan {" in line:
                self.records.append(json.loads(line.split(" scan ", 1)[1]))

    def scan(self, messages: list[bytes]) -> fake_peer.Answer:
        peer = fake_peer.Peer(socket.create_connection(("127.0.0.1", self.port)), timeout=3600)
        peer.send(*messages)
        return peer.answer()

    def memory(self) -> dict[str, float]:
        """Resident memory now and at its peak, MB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return {name: int(re.search(rf"{name}:\s+(\d+)", text)[1]) / 1024 for name in ("VmRSS", "VmHWM")}

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(LIMIT)
        self._listener.join()
        self.process.stderr.close()


def small_scan() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        settings = SimulationSettings(matrix=(64, 64), n_slices=2, n_coils=6, calibration_lines=16, acceleration=2)
        simulate(path, settings)
        return edited_stream(path)[1:]


def difference(one: ismrmrd.Image, other: ismrmrd.Image) -> float:
    """The norm of the difference as a share of the other's norm."""
    return float(np.linalg.norm(one.data - other.data) / np.linalg.norm(other.data))


class Load:
    """Peers that send scan after scan until `ends`, a reading of time.monotonic(). scans: of each, with a seed
    of its own, so that exchanged images are noticed; what came back first, alone, is what must come back."""

    def __init__(self, service: Service, scans: list[list[bytes]], ends: float):
        self.service, self.ends = service, ends
        self.scans, self.wanted = scans, [by_place(service.scan(scan).images) for scan in scans]
        self.seconds: list[list[float]] = [[] for _ in scans]
        self.differences: list[float] = []
        self.lost = 0
        self.threads = [threading.Thread(target=self._send, args=(number,)) for number in range(len(scans))]
        self.threads += [threading.Thread(target=one, daemon=True) for one in (self._stall, self._rubbish, self._flood)]

    def _peer(self) -> fake_peer.Peer:
        return fake_peer.Peer(socket.create_connection(("127.0.0.1", self.service.port)), timeout=3600)

    def _send(self, number: int) -> None:
        while time.monotonic() < self.ends:
            began = time.monotonic()
            images = by_place(self.service.scan(self.scans[number]).images)
            self.seconds[number].append(time.monotonic() - began)
            self.lost += images.keys() != self.wanted[number].keys()
            self.differences += [
                difference(images[key], self.wanted[number][key]) for key in images.keys() & self.wanted[number].keys()
            ]

    def _stall(self) -> None:
        """Takes a place, and holds it."""
        peer = self._peer()
        peer.send(*self.scans[0][:3], self.scans[0][3][:100])
        time.sleep(max(0.0, self.ends - time.monotonic()))
        peer.socket.close()

    def _rubbish(self) -> None:
        while time.monotonic() < self.ends:
            with contextlib.suppress(OSError), self._peer().socket as rude:
                rude.sendall(os.urandom(4096))
            time.sleep(1)

    def _flood(self) -> None:
        """Sends one slice again and again, and reads nothing."""
        while time.monotonic() < self.ends:
            with contextlib.suppress(OSError), self._peer().socket as greedy:
                greedy.settimeout(10)
                greedy.sendall(b"".join(self.scans[0][:2]))
                while time.monotonic() < self.ends:
                    greedy.sendall(self.scans[0][2])

    def run(self) -> None:
        began = time.monotonic()
        for thread in self.threads:
            thread.start()
        for fifth in range(1, 6):
            time.sleep(max(0.0, began + (self.ends - began) * fifth / 5 - time.monotonic()))
            print(f"after {time.monotonic() - began:.0f} s: {self.service.memory()['VmRSS']:.1f} MB resident")
        for thread in self.threads[: len(self.scans)]:
            thread.join()
        minutes = (time.monotonic() - began) / 60
        every, counts = sorted(sum(self.seconds, [])), [len(one) for one in self.seconds]
        marks = ", ".join(
            f"{mark} %: {every[min(len(every) - 1, len(every) * mark // 100)]:.2f}" for mark in (50, 90, 99)
        )
        print(f"{len(self.scans)} peers: {len(every)} scans, {len(every) / minutes:.0f} a minute; seconds {marks}")
        other = min(difference(self.wanted[-1][key], image) for key, image in self.wanted[0].items())
        print(f"scans of a peer: {min(counts)} to {max(counts)}; scans with images missing or too many: {self.lost}")
        print(
            f"images: {len(self.differences)}, at most {max(self.differences):.1e} from those that the scan gave alone"
        )
        print(f"images of another peer are {other:.1e} away")


def load(peers: int, minutes: float, options: list[str]) -> None:
    """Prints what the load shows. The stalled peer and the flood take two places more."""
    scans = [[config(contrast="flair", seed=number), *small_scan()] for number in range(peers)]
    service = Service("--peers", str(peers + 2), *options)
    try:
        Load(service, scans, time.monotonic() + 60 * minutes).run()
    finally:
        service.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recorded", type=Path, nargs="?", help="gzip of a recorded stream")
    parser.add_argument("--scans", type=int, default=50)
    parser.add_argument("--peers", type=int)
    parser.add_argument("--minutes", type=float, default=10.0)
    mark = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, options = parser.parse_args(sys.argv[1:mark]), sys.argv[mark + 1 :]
    if given.peers:
        load(given.peers, given.minutes, options)
        return
    properties = dict(zip([name.removeprefix("--") for name in options[::2]], options[1::2]))
    stream = list(parts_of(gzip.decompress(given.recorded.read_bytes()))[1:]) if given.recorded else small_scan()

    begun = time.perf_counter()
    child = Child()
    child.peer.send(config(contrast="flair", **properties), *stream)
    answer = child.peer.answer()
    child.process.wait(600)
    print(f"cold: {time.perf_counter() - begun:.2f} s for {len(answer.images)} images, by the gadget in a new process")
    child.output()

    service = Service(*options)
    messages = [config(contrast="flair"), *stream]
    service.scan(messages)
    print(f"service after its first scan: {service.memory()['VmRSS']:.0f} MB resident")
    begun = time.perf_counter()
    answer = service.scan(messages)
    print(f"warm: {time.perf_counter() - begun:.2f} s for {len(answer.images)} images, by the service")
    time.sleep(0.2)
    seconds = service.records[-1]["seconds"]
    print(f"warm, as the service saw it: {seconds}")
    rest = seconds["total"] - sum(seconds[name] for name in ("maps", "conventional", "sampling"))
    print(f"wire and bookkeeping: {rest:.3f} s (total less maps, CG-SENSE and sampling)")

    threads = [threading.Thread(target=service.scan, args=(messages,)) for _ in range(4)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    peak = service.memory()["VmHWM"]
    print(f"4 peers at a time: {time.perf_counter() - begun:.2f} s, {peak:.0f} MB resident at the peak")

    for number in range(1, given.scans + 1):
        service.scan(messages)
        if number % max(1, given.scans // 5) == 0:
            print(f"after {number} more scans: {service.memory()['VmRSS']:.1f} MB resident")
    service.stop()


if __name__ == "__main__":
    main()
