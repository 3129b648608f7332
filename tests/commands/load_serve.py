"""Figures of the service: `python tests/commands/load_serve.py [RECORDED.gz] [--scans 50] [-- options of serve]`.

Prints seconds of one scan through the gadget that is started for it (cold) and through a running service (warm), what
of the warm scan is neither maps nor reconstruction, the service's memory with 4 peers at a time, and its resident
memory along many scans in a row. Without a recorded stream: a simulated scan of two small slices.
"""

import argparse
import gzip
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from dpmrecon.tools.simulate import simulate
from dpmrecon.tools.simulation_settings import SimulationSettings

sys.path.insert(0, str(Path(__file__).parents[1]))  # where support lies

from support import fake_peer
from support.fake_peer import Child, config, parts_of
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
        threading.Thread(target=self._listen, daemon=True).start()

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


def small_scan() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        settings = SimulationSettings(matrix=(64, 64), n_slices=2, n_coils=6, calibration_lines=16, acceleration=2)
        simulate(path, settings)
        return edited_stream(path)[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recorded", type=Path, nargs="?", help="gzip of a recorded stream")
    parser.add_argument("--scans", type=int, default=50)
    mark = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, options = parser.parse_args(sys.argv[1:mark]), sys.argv[mark + 1 :]
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
