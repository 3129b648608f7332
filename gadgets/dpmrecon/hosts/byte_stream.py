"""Streams of bytes that carry messages: a socket, or a pair of pipes."""

import contextlib
import logging
import os
import select
import socket
import struct
import time
from typing import Protocol

log = logging.getLogger("dpmrecon")

STALL = 60  # seconds, whole, that a peer may leave our images unread
SILENCE = 0.5  # seconds after which no more comes of what is not taken


class ByteStream(Protocol):
    """Both ends of a connection. Reads and writes raise OSError where it is broken."""

    def wait(self, seconds: float) -> bool:
        """Whether something comes within so many seconds, the stream's end included."""

    def readinto(self, view: memoryview) -> int:
        """Bytes read, as many as are there and fit; 0 at the end."""

    def write(self, data: bytes) -> None:
        """All of it."""

    def shut(self) -> None:
        """End it in both directions, so that a read that waits returns."""

    def close(self) -> None:
        """Give it back."""


class SocketStream:
    """A connected socket."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", STALL, 0))
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def wait(self, seconds: float) -> bool:
        return bool(self._poll.poll(1000 * seconds))

    def readinto(self, view: memoryview) -> int:
        return self.socket.recv_into(view)

    def write(self, data: bytes) -> None:
        self.socket.sendall(data)

    def shut(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
            self._take_rest()
        self.socket.close()

    def _take_rest(self) -> None:
        """What came that nobody has read: over that a close is a reset, which costs the peer images on their way."""
        if not self.wait(0) or not self.socket.recv(1):
            return
        log.warning("a peer sent more after its CLOSE, which is not taken: a connection carries one scan")
        ends = time.monotonic() + STALL
        while self.wait(SILENCE) and self.socket.recv(1 << 16) and time.monotonic() < ends:
            pass


class PipeStream:
    """Two pipes, or files, by their descriptors: what comes, and what goes. begins: what was read of it already."""

    begins = b""

    def __init__(self, incoming: int, outgoing: int):
        self.incoming, self.outgoing = incoming, outgoing
        self._poll = select.poll()
        self._poll.register(incoming, select.POLLIN)

    def wait(self, seconds: float) -> bool:
        return bool(self.begins) or bool(self._poll.poll(1000 * seconds))

    def readinto(self, view: memoryview) -> int:
        if self.begins:
            count = min(len(view), len(self.begins))
            view[:count], self.begins = self.begins[:count], self.begins[count:]
            return count
        return os.readv(self.incoming, [view])

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self.outgoing, left) :]

    def shut(self) -> None:
        """Pipes have no such end: a read that waits goes on until the other side closes."""

    def close(self) -> None:
        for end in {self.incoming, self.outgoing}:
            os.close(end)
