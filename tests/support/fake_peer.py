"""A peer for the tests: what a Gadgetron, or an MRD client, does on its side of the socket. Bytes are its own, so
that a mistake in dpmrecon.hosts.wire does not cancel out."""

import os
import runpy
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import ismrmrd
import numpy as np

from .forked import Forked
from .waiting import LIMIT

CONFIG_NAME, CONFIG, HEADER, CLOSE, TEXT, ERROR, ACQUISITION, IMAGE, RECON_DATA = 1, 2, 3, 4, 5, 8, 1008, 1022, 1023


def config(**properties: object) -> bytes:
    """What a Gadgetron forwards to an external node."""
    lines = "".join(f'<property name="{name}" value="{value}"/>' for name, value in properties.items())
    return text_message(CONFIG, f'<?xml version="1.0"?>\n<configuration>{lines}</configuration>\n'.encode())


def text_message(number: int, text: bytes) -> bytes:
    return struct.pack("<HI", number, len(text)) + text


def config_name(name: str) -> bytes:
    return struct.pack("<H", CONFIG_NAME) + name.encode().ljust(1024, b"\0")


def recon_data(kspace: np.ndarray, heads: dict[int, ismrmrd.AcquisitionHeader], *, calibration: bool = True) -> bytes:
    """One RECON_DATA message of one slice. kspace: (n_coils, rows, cols); heads: of the lines acquired, by row.

    As after the reference preparation with embedded calibration: `ref` holds the lines around the centre.
    """
    n_coils, rows, cols = kspace.shape
    message = struct.pack("<HQ", RECON_DATA, 1) + _buffer(kspace, heads, rows)
    if not calibration:
        return message + b"\0"
    block = range(rows // 2 - 4, rows // 2 + 4)
    inside = {row: head for row, head in heads.items() if row in block}
    return message + b"\1" + _buffer(kspace[:, block.start : block.stop], inside, rows)


def _buffer(kspace: np.ndarray, heads: dict[int, ismrmrd.AcquisitionHeader], rows: int) -> bytes:
    n_coils, n_lines, cols = kspace.shape
    parts = [struct.pack("<8Q", 7, cols, n_lines, 1, n_coils, 1, 1, 1), kspace.astype(np.complex64).tobytes(), b"\0\0"]
    parts.append(struct.pack("<6Q", 5, rows, 1, 1, 1, 1))
    parts += [bytes(heads.get(row, ismrmrd.AcquisitionHeader())) for row in range(rows)]
    return b"".join([*parts, bytes(56)])


def close() -> bytes:
    return struct.pack("<H", CLOSE)


def acquisition(line: ismrmrd.Acquisition) -> bytes:
    parts = [struct.pack("<H", ACQUISITION)]
    line.serialize_into(lambda part: parts.append(bytes(part)))
    return b"".join(parts)


def error(message: str) -> bytes:
    """The bytes of an ERROR frame."""
    return struct.pack("<HQ", ERROR, len(message.encode())) + message.encode()


def parts_of(stream: bytes) -> tuple[bytes, bytes, bytes]:
    """A recorded stream as (CONFIG message, HEADER message, all that follows)."""
    ends, position = [], 0
    for number in (CONFIG, HEADER):
        found, length = struct.unpack_from("<HI", stream, position)
        assert found == number
        position += 6 + length
        ends.append(position)
    return stream[: ends[0]], stream[ends[0] : ends[1]], stream[ends[1] :]


@dataclass
class Answer:
    """All that came back: images, ERROR and TEXT messages, the ids in order, the bytes as they were."""

    images: list[ismrmrd.Image]
    errors: list[str]
    texts: list[bytes]
    ids: list[int]
    raw: bytes


class Peer:
    """One connection to the module under test."""

    def __init__(self, connection: socket.socket, timeout: float = LIMIT):
        self.socket = connection
        connection.settimeout(timeout)
        self.raw = bytearray()

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self.socket.sendall(message)

    def end_of_sending(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        self.raw += data
        return bytes(data)

    def image(self) -> ismrmrd.Image:
        """The next message, which must be an image."""
        assert struct.unpack("<H", self._read(2)) == (IMAGE,)
        return ismrmrd.Image.deserialize_from(self._read)

    def answer(self) -> Answer:
        """Read until the module has left."""
        found = Answer([], [], [], [], b"")
        while True:
            try:
                (number,) = struct.unpack("<H", self._read(2))
            except EOFError:
                break
            found.ids.append(number)
            if number == IMAGE:
                found.images.append(ismrmrd.Image.deserialize_from(self._read))
            elif number == ERROR:
                found.errors.append(self._read(struct.unpack("<Q", self._read(8))[0]).decode())
            elif number == TEXT:
                found.texts.append(self._read(struct.unpack("<I", self._read(4))[0]))
            else:
                assert number == CLOSE, f"message {number}"
        found.raw = bytes(self.raw)
        self.socket.close()
        return found


class Child:
    """The gadget as Gadgetron starts it: a child process that connects to us."""

    def __init__(self):
        listener = socket.create_server(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gadgetron", port, "dpmrecon.gadget", "reconstruct"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        listener.settimeout(1)
        while True:
            try:
                connection, _ = listener.accept()
                break
            except TimeoutError:
                assert self.process.poll() is None, self.output()
        listener.close()
        self.peer = Peer(connection)

    def output(self) -> str:
        """What the child wrote, once it has left."""
        return self.process.communicate(timeout=LIMIT)[0].decode()


class ForkedChild(Forked):
    """The same, as a fork of this process. before: see `Forked`, to break something on purpose."""

    def __init__(self, before: Callable[[], None] | None = None):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(LIMIT)
            port = str(listener.getsockname()[1])
            super().__init__(_gadgetron, port, "dpmrecon.gadget", "reconstruct", before=before)
            self.peer = Peer(listener.accept()[0])

    def output(self) -> str:
        done = self.end()
        return (done.stdout + done.stderr).decode()


def _gadgetron(arguments: list[str]) -> int:
    sys.argv = ["gadgetron", *arguments]
    runpy.run_module("gadgetron", run_name="__main__")
    return 0
