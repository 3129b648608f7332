"""The messages between a host and us, over any stream of bytes: framing, and nothing about what they mean.

Every message is an id (uint16) and a body, little-endian. A peer that vanishes is noticed (an empty read ends the
scan), a body that cannot be right is refused before memory is asked for.
"""

import contextlib
import ctypes
import math
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ismrmrd
import numpy as np

from ..errors import DpmreconError
from .byte_stream import ByteStream

CONFIG_NAME, CONFIG, HEADER, CLOSE, TEXT, ERROR = 1, 2, 3, 4, 5, 8
ACQUISITION, IMAGE, RECON_DATA, IMAGE_ARRAY, WAVEFORM, BUCKET = 1008, 1022, 1023, 1024, 1026, 1050

CONFIG_NAME_BYTES = 1024
LARGEST_TEXT = 64 << 20  # bytes: no header or configuration is longer
LARGEST_ARRAY = 8 << 30  # bytes: of one array of k-space
# Seconds of silence before a scan, within it, after an error; a Gadgetron says nothing until its buffers are full,
# which may be the end of the scan. A peer whose machine is gone is found by its connection
GREETING, SCAN, FAREWELL = 30.0, 7200.0, 60.0
WITHIN = 900.0  # a message
LOOK_AGAIN = 1.0  # seconds between two looks at the patience, which may change while we wait
FIRST_PIECE = 16 << 20  # bytes: room for most messages at once
SAMPLING_BYTES = 56  # 6 floats, 15 uint16, padding: the header says the same
DRAIN_IDLE = 2.0  # seconds of silence that end a stream which lost its framing


class WireError(DpmreconError):
    """The peer sent what is no message."""


class PeerGoneError(WireError):
    """The connection ended before the peer said CLOSE."""


class PeerSilentError(PeerGoneError):
    """The peer is there, as far as the connection tells, and said nothing for too long."""


@dataclass
class ReconBuffer:
    """data: [E0,E1,E2,CHA,N,S,LOC] complex64, Fortran order; headers: [E1,E2,N,S,LOC] of AcquisitionHeader."""

    data: np.ndarray
    headers: np.ndarray


@dataclass
class ReconBit:
    """The image lines of one encoding space, and its calibration lines, if any."""

    data: ReconBuffer
    ref: ReconBuffer | None


class Wire:
    """A byte stream that carries messages. clock: seconds that only grow, for the patience with a silent peer."""

    def __init__(self, stream: ByteStream, clock: Callable[[], float] = time.monotonic):
        self.stream, self.clock = stream, clock
        self.framed = True  # False once we no longer know where the next message begins
        self.closed = False  # the peer said CLOSE, or is gone
        self.patience = GREETING
        self.hash: Any = None  # of hashlib's kind: takes all that is read
        self.early: list[bytes] = []  # texts that came before the header
        self._ahead: int | None = None  # the id of a message whose body is still to come

    # reading

    def read(self, count: int) -> bytearray:
        """Exactly `count` bytes. Raises PeerGoneError at the end of the connection, where others would spin."""
        buffer, got = bytearray(), 0
        while got < count:
            self._wait()
            if got == len(buffer):  # memory grows with what has come, not with what was announced
                buffer += bytes(min(count - got, max(got, FIRST_PIECE)))
            try:
                with memoryview(buffer) as view:
                    received = self.stream.readinto(view[got:])
            except OSError as error:
                self._lost()
                raise PeerGoneError(
                    f"the connection broke ({error.strerror or 'reset'}): send the scan again"
                ) from error
            if received == 0:
                self._lost()
                raise PeerGoneError(
                    f"the connection ended within a message, after {got} of {count} bytes: send the scan again"
                )
            got += received
        if self.hash is not None:
            self.hash.update(buffer)
        return buffer

    def _wait(self) -> None:
        """Until there is something to read."""
        began = self.clock()
        while not self.stream.wait(LOOK_AGAIN):
            patience = self.patience if self.framed else min(self.patience, WITHIN)
            if self.closed or self.clock() - began > patience:
                self._lost()
                raise PeerSilentError(f"the peer said nothing for {patience:g} s: it is let go, send the scan again")

    def _lost(self) -> None:
        self.closed, self.framed = True, False

    def message_id(self) -> int:
        """The id of the next message. Raises PeerGoneError when the peer left without CLOSE."""
        if self._ahead is not None:
            number, self._ahead = self._ahead, None
            return number
        try:
            (number,) = struct.unpack("<H", self.read(2))
        except PeerSilentError:
            raise
        except PeerGoneError as error:
            raise PeerGoneError(
                "the connection ended without a CLOSE message: the scan is not complete, send it again"
            ) from error
        if number == CLOSE:
            self.closed = True
        return number

    def text(self) -> bytes:
        """The body of CONFIG, HEADER and TEXT: a uint32 length and as many bytes, which some peers end with zeros."""
        (length,) = struct.unpack("<I", self.read(4))
        if length > LARGEST_TEXT:
            raise WireError(f"a text of {length} bytes was announced: at most {LARGEST_TEXT} are taken")
        return bytes(self.read(length)).rstrip(b"\0")

    def texts_ahead(self) -> list[bytes]:
        """The texts up to the next message of another kind, which is not taken; the hash leaves them out."""
        hashed, self.hash = self.hash, None
        found = []
        try:
            while (number := self.message_id()) == TEXT:
                self.framed = False  # until the whole body is read
                found.append(self.text())
                self.framed = True
            self._ahead = number
            if hashed is not None:
                hashed.update(struct.pack("<H", number))
        except PeerGoneError:  # which whoever reads on is told, if nothing else is wrong with what came
            pass
        finally:
            self.hash = hashed
        return found

    def config_name(self) -> str:
        """The body of CONFIG_NAME: a file name in 1024 bytes, filled up with zeros."""
        return self.read(CONFIG_NAME_BYTES).split(b"\0")[0].decode("utf-8", "replace")

    def messages(self) -> Iterator[tuple[int, Any]]:
        """(id, item) until CLOSE: acquisitions, lists of ReconBit, texts; waveforms are skipped.

        Raises WireError for every other id, because the length of its body is unknown.
        """
        readers: dict[int, Callable[[], Any]] = {
            ACQUISITION: self._acquisition,
            RECON_DATA: self._recon_bits,
            TEXT: self.text,
            WAVEFORM: self._waveform,
        }
        while (number := self.message_id()) != CLOSE:
            self.framed = False  # until the whole body is read
            if number not in readers:
                raise WireError(refusal(number))
            item = readers[number]()
            self.framed = True
            if number != WAVEFORM:
                yield number, item

    def _acquisition(self) -> ismrmrd.Acquisition:
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(self.read(ctypes.sizeof(ismrmrd.AcquisitionHeader)))
        n_coils, n_samples, dimensions = head.active_channels, head.number_of_samples, head.trajectory_dimensions
        if head.version != 1 or 8 * n_coils * n_samples > LARGEST_ARRAY:
            raise WireError(
                f"an acquisition of version {head.version} with {n_coils} channels of {n_samples} samples came: "
                "version 1 and a size that fits the memory are needed"
            )
        trajectory = np.frombuffer(self.read(4 * n_samples * dimensions), np.float32)
        data = np.frombuffer(self.read(8 * n_coils * n_samples), np.complex64)
        return ismrmrd.Acquisition(
            head, data.reshape(n_coils, n_samples), trajectory.reshape(n_samples, dimensions) if dimensions else None
        )

    def _waveform(self) -> None:
        head = ismrmrd.WaveformHeader.from_buffer_copy(self.read(ctypes.sizeof(ismrmrd.WaveformHeader)))
        self.read(4 * head.channels * head.number_of_samples)

    def _recon_bits(self) -> list[ReconBit]:
        (count,) = struct.unpack("<Q", self.read(8))
        if count > 64:
            raise WireError(f"ReconData with {count} encoding spaces was announced: at most 64 are taken")
        bits = []
        for _ in range(count):
            data = self._recon_buffer()
            bits.append(ReconBit(data, self._recon_buffer() if self._present() else None))
        return bits

    def _recon_buffer(self) -> ReconBuffer:
        data = self._array(np.dtype(np.complex64))
        for _ in ("trajectory", "density"):
            if self._present():
                self._array(np.dtype(np.float32))
        shape = self._shape(ctypes.sizeof(ismrmrd.AcquisitionHeader))
        headers = np.empty(math.prod(shape), dtype=object)
        for index in range(len(headers)):
            headers[index] = ismrmrd.AcquisitionHeader.from_buffer_copy(
                self.read(ctypes.sizeof(ismrmrd.AcquisitionHeader))
            )
        self.read(SAMPLING_BYTES)
        return ReconBuffer(data, headers.reshape(shape, order="F"))

    def _present(self) -> bool:
        return self.read(1) != b"\0"

    def _shape(self, item_bytes: int) -> tuple[int, ...]:
        (dimensions,) = struct.unpack("<Q", self.read(8))
        if dimensions > 16:
            raise WireError(f"an array of {dimensions} dimensions was announced: at most 16 are taken")
        shape = struct.unpack(f"<{dimensions}Q", self.read(8 * dimensions))
        shape = shape or (0,)  # an empty array has no dimensions
        if math.prod(shape) * item_bytes > LARGEST_ARRAY:
            raise WireError(f"an array of shape {shape} was announced: at most {LARGEST_ARRAY >> 30} GB are taken")
        return shape

    def _array(self, dtype: np.dtype) -> np.ndarray:
        shape = self._shape(dtype.itemsize)
        data = np.frombuffer(self.read(math.prod(shape) * dtype.itemsize), dtype)
        return data.reshape(shape, order="F")

    # writing

    def send(self, data: bytes) -> None:
        try:
            self.stream.write(data)
        except OSError as error:
            self._lost()
            raise PeerGoneError("the peer took no more data: it is gone, its scan is given up") from error

    def send_image(self, image: ismrmrd.Image) -> None:
        parts = [struct.pack("<H", IMAGE)]
        image.serialize_into(lambda part: parts.append(bytes(part)))
        self.send(b"".join(parts))

    def send_error(self, message: str) -> None:
        """ERROR, which a Gadgetron passes on to its client: a uint64 length and UTF-8."""
        data = message.encode()
        self.send(struct.pack("<HQ", ERROR, len(data)) + data)

    def send_text(self, message: str) -> None:
        """TEXT, the log channel of MRD clients (it ends the stream of a Gadgetron): a uint32 length, UTF-8 and a 0."""
        data = message.encode() + b"\0"
        self.send(struct.pack("<HI", TEXT, len(data)) + data)

    def send_close(self) -> None:
        self.send(struct.pack("<H", CLOSE))

    def drain(self) -> None:
        """Take what the peer still sends, until it says CLOSE or leaves: leaving before can cost it our last words.

        Where messages cannot be told apart, until DRAIN_IDLE seconds of silence.
        """
        if self.closed:
            return
        with contextlib.suppress(DpmreconError, OSError):
            while self.framed and not self.closed:
                for _ in self.messages():
                    pass
        if not self.closed:
            scratch = memoryview(bytearray(1 << 16))
            with contextlib.suppress(OSError):
                while self.stream.wait(DRAIN_IDLE) and self.stream.readinto(scratch):
                    pass

    def shut(self) -> None:
        """Nothing more comes or goes: whoever reads now sees the end."""
        self.stream.shut()

    def close(self) -> None:
        """Give the stream back."""
        with contextlib.suppress(OSError):
            self.stream.close()


def refusal(number: int) -> str:
    """Why a message that is neither ReconData nor an acquisition cannot be used."""
    names = {
        **dict.fromkeys((CONFIG_NAME, CONFIG), "a second configuration: a connection carries one scan"),
        HEADER: "a second header: a connection carries one scan",
        ERROR: "an error of the peer's own: its log tells which",
        IMAGE: "an image",
        IMAGE_ARRAY: "an image array",
        BUCKET: "a bucket of acquisitions (the chain lacks BucketToBufferGadget)",
    }
    what = names.get(number, "unknown")
    return f"a message with id {number} came ({what}): ReconData (id 1023) or raw acquisitions (id 1008) are needed"
