"""What a real Gadgetron sent to its external node: the recorded streams of the shared data."""

import gzip
import io
import re
from pathlib import Path

import ismrmrd
import numpy as np
from dpmrecon.hosts import wire
from dpmrecon.hosts.wire import ReconBit, ReconBuffer, Wire

from .acquisitions import write_lines
from .paths import shared

ALONE = 1 << (ismrmrd.ACQ_IS_PARALLEL_CALIBRATION - 1)
SPACES = (b"encoded", b"recon")


def recorded(name: str) -> bytes:
    """The bytes of a stream; the test is skipped where it is not there."""
    return gzip.decompress(shared(f"wire/{name}.recondata.bin.gz").read_bytes())


class _Bytes:
    """A byte stream that has all it will ever have."""

    def __init__(self, data: bytes):
        self.data = io.BytesIO(data)

    def wait(self, seconds: float) -> bool:
        return True

    def readinto(self, view: memoryview) -> int:
        return self.data.readinto(view)


def parsed(stream: bytes) -> tuple[bytes, list[ReconBit]]:
    """The XML header and the ReconData of a stream."""
    peer = Wire(_Bytes(stream))
    assert peer.message_id() == wire.CONFIG
    peer.text()
    assert peer.message_id() == wire.HEADER
    return peer.text(), [bit for _, bits in peer.messages() for bit in bits]


def as_scan(path: Path, xml: bytes, bits: list[ReconBit]) -> Path:
    """A Cartesian file with the lines that came, each image of which brings a calibration of its own.

    An image that came without one has a copy of its slice's last. The lines have lost their oversampling.
    """
    xml = xml.replace(b"<trajectory>epi", b"<trajectory>cartesian")
    encoded, recon = (re.search(b"<%sSpace>(.*?)</%sSpace>" % (name, name), xml, re.DOTALL)[1] for name in SPACES)
    last: dict[int, list[tuple[ismrmrd.AcquisitionHeader, np.ndarray]]] = {}
    found = []
    for bit in bits:
        image = [(head, bit.data.data[:, row, 0, :, 0, 0, 0]) for row, head in _heads(bit.data)]
        counters = image[0][0].idx
        lines = [bit.ref.data[:, row, 0, :, 0, 0, 0] for row in range(bit.ref.data.shape[1])]
        apart = [pair for pair in zip((head for _, head in _heads(bit.ref)), lines) if int(pair[0].flags) & ALONE]
        last[counters.slice] = apart or last[counters.slice]
        for head, line in [*last[counters.slice], *image]:
            own = ismrmrd.AcquisitionHeader.from_buffer_copy(head)
            own.idx.contrast, own.idx.repetition = counters.contrast, counters.repetition
            found.append(ismrmrd.Acquisition(own, np.ascontiguousarray(line.T)))
    return write_lines(path, xml.replace(encoded, recon), found)


def _heads(buffer: ReconBuffer) -> list[tuple[int, ismrmrd.AcquisitionHeader]]:
    """(row, header) of the lines that came."""
    return [(row, head) for row, head in enumerate(buffer.headers[:, 0, 0, 0, 0]) if head.number_of_samples]
