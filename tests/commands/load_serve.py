"""Figures of the service: `python tests/commands/load_serve.py [RECORDED.gz] [--scans 50] [-- options of serve]`.

Prints seconds of one scan through the gadget that is started for it (cold) and through a running service (warm), what
of the warm scan is neither maps nor reconstruction, the service's memory with 4 peers at a time, and its resident
memory along many scans in a row. Without a recorded stream: a simulated scan of two small slices.

--peers N ... --minutes M ... [--out REPORT.md]: instead, so many peers for so long, one number after the other, that
send one scan after the other, beside one that stalls within a message, one that sends rubbish and one that floods.
Prints a row for each: scans a minute, percentiles of a scan's seconds, the fewest and most scans of a peer, scans that
were refused (in words), lost (images missing or too many) or exchanged (an image nearer to another peer's), resident
memory at each fifth, how far images are from those that the scan gave alone (a batch holds what was there in time,
which moves the last digits), and what limits: the share of the time in which the device had work, and the service's
processor time over the time. Exit code 1 where a scan is lost or exchanged.

--batch N ...: images at once of each row; 2 are the slices of one scan, more are those of several.

--batches: milliseconds of an evaluation of the network for each image, by the images at once: what slices of several
scans in one batch can gain here.
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
from collections.abc import Callable
from pathlib import Path

import ismrmrd
import numpy as np
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.simulate import simulate

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
        began = time.monotonic()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        line = self.process.stderr.readline()
        self.port = int(re.search(r"port (\d+)", line)[1])
        while "ready" not in line:
            line = self.process.stderr.readline()
        self.start = time.monotonic() - began
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

    def processor(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(LIMIT)
        self._listener.join()
        self.process.stderr.close()


def small_scan(seed: int = 0) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        settings = SimulationSettings(
            matrix=(64, 64), n_slices=2, n_coils=6, calibration_lines=16, acceleration=2, seed=seed
        )
        simulate(path, settings)
        return edited_stream(path)[1:]


def difference(one: ismrmrd.Image, other: ismrmrd.Image) -> float:
    """The norm of the difference as a share of the other's norm."""
    return float(np.linalg.norm(one.data - other.data) / np.linalg.norm(other.data))


class Load:
    """Peers that send scan after scan for so many seconds. scans: of each, with noise of its own, so that exchanged
    images are noticed; what came back first, alone, is what must come back."""

    def __init__(self, service: Service, scans: list[list[bytes]], seconds: float):
        self.service, self.long = service, seconds
        self.ends = 0.0  # a reading of time.monotonic()
        self.scans, self.wanted = scans, [by_place(service.scan(scan).images) for scan in scans]
        self.seconds: list[list[float]] = [[] for _ in scans]
        self.differences: list[float] = []
        self.reasons: set[str] = set()
        self.lost = self.exchanged = self.refused = 0
        self.threads = [threading.Thread(target=self._send, args=(number,)) for number in range(len(scans))]
        self.threads += [threading.Thread(target=one, daemon=True) for one in (self._stall, self._rubbish, self._flood)]

    def _peer(self) -> fake_peer.Peer:
        return fake_peer.Peer(socket.create_connection(("127.0.0.1", self.service.port)), timeout=3600)

    def _send(self, number: int) -> None:
        while time.monotonic() < self.ends:
            began = time.monotonic()
            answer = self.service.scan(self.scans[number])
            if answer.errors and not answer.images:
                self.refused += 1
                self.reasons.update(answer.errors)
                time.sleep(1)
                continue
            images = by_place(answer.images)
            self.seconds[number].append(time.monotonic() - began)
            self.lost += images.keys() != self.wanted[number].keys()
            for key in images.keys() & self.wanted[number].keys():
                apart = [difference(images[key], other[key]) for other in self.wanted]
                self.differences.append(apart[number])
                self.exchanged += min(apart) < apart[number]

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

    def run(self) -> list[str]:
        """Of the table: what is in a row, see COLUMNS."""
        began, processor, done = time.monotonic(), self.service.processor(), len(self.service.records)
        self.ends = began + self.long
        for thread in self.threads:
            thread.start()
        memory = []
        for fifth in range(1, 6):
            time.sleep(max(0.0, began + (self.ends - began) * fifth / 5 - time.monotonic()))
            memory.append(self.service.memory()["VmRSS"])
        for thread in self.threads[: len(self.scans)]:
            thread.join()
        seconds = time.monotonic() - began
        worked = sum(record["seconds"].get(name, 0.0) for record in self.service.records[done:] for name in DEVICE)
        every, counts = sorted(sum(self.seconds, [])), [len(one) for one in self.seconds]
        marks = [every[min(len(every) - 1, len(every) * mark // 100)] for mark in (50, 90, 99)]
        return [
            f"{len(self.scans)}",
            f"{seconds / 60:.1f}",
            f"{len(every)}",
            f"{60 * len(every) / seconds:.0f}",
            " / ".join(f"{mark:.2f}" for mark in marks),
            f"{min(counts)} to {max(counts)}",
            f"{self.refused} / {self.lost} / {self.exchanged}",
            f"{max(self.differences):.0e}",
            " ".join(f"{value:.0f}" for value in memory),
            f"{100 * worked / seconds:.0f} %",
            f"{(self.service.processor() - processor) / seconds:.2f}",
        ]


DEVICE = ("maps", "conventional", "sampling", "gate")  # stages that have the device
COLUMNS = (
    *(
        "peers",
        "images at once",
        "minutes",
        "scans",
        "a minute",
        "seconds of a scan, 50 / 90 / 99 %",
        "scans of a peer",
    ),
    *("scans refused / lost / exchanged", "furthest image", "MB at each fifth", "device at work", "processors"),
)


def load(
    peers: list[int], minutes: list[float], batch: list[str], options: list[str], say: Callable[[str], object]
) -> int:
    """What the load shows; the exit code. The stalled peer takes a place, the flood two when it
    comes again."""
    asked = " ".join(["python tests/commands/load_serve.py", *sys.argv[1:]])
    say(
        f"# The service under load\n\nBy `{asked}` on {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores that "
        "other work shares.\nA scan is two slices of 64 x 64 with 6 coils. Beside the peers one stalls within a "
        "message,\none sends rubbish each second, and one floods and reads nothing.\n"
    )
    say(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    scans = [[config(contrast="flair"), *small_scan(seed)] for seed in range(max(peers))]
    starts, alone = [], []
    bad, reasons = 0, set[str]()
    for count, long, images in zip(peers, minutes, batch, strict=True):
        service = Service("--peers", str(count + 3), *(["--batch", images] if images else []), *options)
        try:
            running = Load(service, scans[:count], 60 * long)
            peers_column, *rest = running.run()
            say(f"| {' | '.join([peers_column, images or 'by default', *rest])} |")
        finally:
            service.stop()
        starts.append(service.start)
        bad += running.lost + running.exchanged
        reasons |= running.reasons
        first, *_, last = running.wanted if count > 1 else [*running.wanted, running.wanted[0]]
        alone.append(min(difference(last[key], image) for key, image in first.items()))
    say(
        f"\nFrom its start to ready the service took {min(starts):.1f} to {max(starts):.1f} s. Images of another peer, "
        f"whose\nnoise is another, are {max(alone):.0e} away."
    )
    for reason in sorted(reasons):
        say(f"Refused: {reason}.")
    return 1 if bad else 0


def batches(say: Callable[[str], object]) -> None:
    """Milliseconds of processor time for each image."""
    import torch
    from dpmrecon.prior.checkpoint import load_checkpoint

    model, at_once = load_checkpoint().model.of_contrast(None), (1, 2, 4, 8, 16)
    say(
        "\n## Images at once\n\nMilliseconds of processor time for each image of an evaluation of the network, "
        f"{torch.get_num_threads()} thread.\nThe service takes slices of several scans at once where its batch has "
        "room; on a CPU it is of 4 images.\n"
    )
    say(f"| matrix | {' | '.join(f'{count} at once' for count in at_once)} |\n|---|{'---|' * len(at_once)}")
    for size in (64, 128, 256):
        found = []
        for count in at_once:
            images, sigma = torch.randn(count, size, size, dtype=torch.complex64), torch.ones(count)
            with torch.no_grad():
                model(images, sigma)  # the first evaluation of a size pays for its start
                began = time.process_time()
                model(images, sigma)
            found.append(1000 * (time.process_time() - began) / count)
        say(f"| {size} | {' | '.join(f'{value:.1f}' for value in found)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recorded", type=Path, nargs="?", help="gzip of a recorded stream")
    parser.add_argument("--scans", type=int, default=50)
    parser.add_argument("--peers", type=int, nargs="+")
    parser.add_argument("--minutes", type=float, nargs="+", help="for each number of peers")
    parser.add_argument("--batch", nargs="+", help="images at once, for each number of peers")
    parser.add_argument("--batches", action="store_true")
    parser.add_argument("--out", type=Path, help="of --peers and --batches: the report, beside what is printed")
    mark = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, options = parser.parse_args(sys.argv[1:mark]), sys.argv[mark + 1 :]
    lines: list[str] = []

    def say(text: str) -> None:
        print(text, flush=True)
        lines.append(text)
        if given.out is not None:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text("\n".join(lines) + "\n")

    if given.peers:
        count = len(given.peers)
        code = load(given.peers, given.minutes or [10.0] * count, given.batch or [""] * count, options, say)
    if given.batches:
        batches(say)
    if given.peers or given.batches:
        return code if given.peers else 0
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
