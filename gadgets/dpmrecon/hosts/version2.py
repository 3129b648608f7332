"""MRD version 2 as a byte stream of version 1: what comes is turned into the messages of `wire.py`, and images that go
out are turned back."""

import io
import os
import struct
from collections.abc import Iterator
from typing import Any

import ismrmrd
import numpy as np

from ..mrd.version2 import COUNTERS, MAGIC, EndsEarlyError, header_of, items, package
from .byte_stream import PipeStream
from .wire import ACQUISITION, CLOSE, HEADER, IMAGE


def opened(incoming: int, outgoing: int, seconds: float) -> "PipeStream | Version2Stream":
    """Two pipes, of the version that the first bytes tell. seconds: to wait for them.

    Raises BadInputError where version 2 comes and mrd-python is missing.
    """
    stream, begins = PipeStream(incoming, outgoing), b""
    while MAGIC.startswith(begins) and len(begins) < len(MAGIC) and stream.wait(seconds):
        part = os.read(incoming, len(MAGIC) - len(begins))
        if not part:
            break
        begins += part
    stream.begins = begins
    return Version2Stream(stream) if begins == MAGIC else stream


class Version2Stream:
    """A byte stream (see `byte_stream.py`) over the pipes of another, which carry version 2."""

    def __init__(self, pipes: PipeStream):
        self._mrd, self._pipes = package(), pipes
        self._messages = self._read()
        self._left = memoryview(b"")
        self._writer: Any = None
        self._header: Any = None

    def wait(self, seconds: float) -> bool:
        """Nobody knows what mrd-python has read ahead: a read waits instead."""
        return True

    def readinto(self, view: memoryview) -> int:
        if not self._left:
            self._left = memoryview(next(self._messages, b""))
        count = min(len(view), len(self._left))
        view[:count], self._left = self._left[:count], self._left[count:]
        return count

    def write(self, data: bytes) -> None:
        """One message. Images and CLOSE alone have a place in version 2."""
        (number,) = struct.unpack_from("<H", data)
        if self._writer is None:
            self._writer = self._mrd.BinaryMrdWriter(_Writing(self._pipes))
            self._writer.write_header(self._header)
        if number == IMAGE:
            self._writer.write_data([self._image(ismrmrd.Image.deserialize_from(io.BytesIO(data[2:]).read))])
            self._writer._stream.flush()  # it keeps 64 KB, and a slice is to leave when it is done
        elif number == CLOSE:
            self._writer.write_data([])
            self._writer.close()

    def shut(self) -> None:
        self._pipes.shut()

    def close(self) -> None:
        self._pipes.close()

    def _read(self) -> Iterator[bytes]:
        """Messages of version 1. Where the stream ends early, so do they."""
        found = items(io.BufferedReader(_Reading(self._pipes)))
        self._header = next(found)
        xml = header_of(self._header)
        yield struct.pack("<HI", HEADER, len(xml)) + xml
        try:
            for line in found:
                parts = [struct.pack("<H", ACQUISITION)]
                line.serialize_into(lambda part, to=parts: to.append(bytes(part)))
                yield b"".join(parts)
        except EndsEarlyError:
            return
        yield struct.pack("<H", CLOSE)

    def _image(self, image: ismrmrd.Image) -> Any:
        """The same of version 2, as an item."""
        mrd, old = self._mrd, image.getHead()
        head = mrd.ImageHeader(
            flags=mrd.ImageFlags(old.flags),
            measurement_uid=old.measurement_uid,
            field_of_view=_vector(old.field_of_view),
            position=_vector(old.position),
            col_dir=_vector(old.read_dir),
            line_dir=_vector(old.phase_dir),
            slice_dir=_vector(old.slice_dir),
            patient_table_position=_vector(old.patient_table_position),
            physiology_time_stamp=list(old.physiology_time_stamp),
            image_type=mrd.ImageType(old.image_type),
            user_int=list(old.user_int),
            user_float=list(old.user_float),
            **{name: getattr(old, name) for name in (*COUNTERS[2:], "acquisition_time_stamp")},
            image_index=old.image_index,
            image_series_index=old.image_series_index,
        )
        text = mrd.ImageMetaValue.String
        meta = {
            name: [text(str(one)) for one in (value if isinstance(value, list) else [value])]
            for name, value in image.meta.items()
        }
        kind = {"u2": "ImageUint16", "f4": "ImageFloat", "c8": "ImageComplexFloat"}[image.data.dtype.str[1:]]
        return getattr(mrd.StreamItem, kind)(mrd.Image(head=head, data=image.data, meta=meta))


class _Reading(io.RawIOBase):
    def __init__(self, pipes: PipeStream):
        self._pipes = pipes

    def readable(self) -> bool:
        return True

    def readinto(self, view: Any) -> int:
        return self._pipes.readinto(memoryview(view).cast("B"))


class _Writing(io.RawIOBase):
    def __init__(self, pipes: PipeStream):
        self._pipes = pipes

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pipes.write(bytes(data))
        return len(data)


def _vector(values: Any) -> np.ndarray:
    return np.array(list(values), np.float32)
