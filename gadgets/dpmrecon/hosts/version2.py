"""MRD version 2 as a byte stream of version 1, so that nothing behind it knows the difference.

What comes (header, acquisitions) is turned into the messages of `wire.py`, and images that go out are turned back.
The package mrd-python reads and writes version 2; its names are those of version 1 in another spelling.
"""

import dataclasses
import io
import os
import re
import struct
import types
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

import ismrmrd
import numpy as np
from xsdata.models.datatype import XmlDate, XmlTime

from ..errors import BadInputError
from .byte_stream import PipeStream
from .wire import ACQUISITION, CLOSE, HEADER, IMAGE, WireError

MAGIC = b"yardl"  # a file or stream of version 2 begins with it
COUNTERS = (
    "kspace_encode_step_1",
    "kspace_encode_step_2",
    "average",
    "slice",
    "contrast",
    "phase",
    "repetition",
    "set",
)
NUMBERS = ("scan_counter", "acquisition_time_stamp", "discard_pre", "discard_post", "center_sample")
VECTORS = ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position")
LISTS = ("physiology_time_stamp", "user_int", "user_float")


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
    """A byte stream (see `byte_stream.py`) over the pipes of another, which carry version 2.

    mrd-python reads 64 KB at a time and waits for them: what comes before a pause is seen after it, and of a stream
    that breaks off the last 64 KB are lost.
    """

    def __init__(self, pipes: PipeStream):
        try:
            import mrd
        except ImportError as error:
            raise BadInputError("MRD version 2 came, which mrd-python reads: pip install dpmrecon[mrd2]") from error
        self._mrd, self._pipes = mrd, pipes
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
        mrd = self._mrd
        try:
            reader = mrd.BinaryMrdReader(io.BufferedReader(_Reading(self._pipes)))
            self._header = reader.read_header()
            if self._header is None:
                raise WireError("the stream of MRD version 2 has no header: write the scan again with one")
            xml = header_of(self._header)
            yield struct.pack("<HI", HEADER, len(xml)) + xml
            for item in reader.read_data():
                if item.tag == "Acquisition":
                    parts = [struct.pack("<H", ACQUISITION)]
                    acquisition_of(item.value).serialize_into(lambda part, to=parts: to.append(bytes(part)))
                    yield b"".join(parts)
                elif not item.tag.startswith("Waveform"):
                    raise WireError(f"an item {item.tag} came in MRD version 2: raw acquisitions are needed")
            yield struct.pack("<H", CLOSE)
        except (EOFError, BufferError):  # mrd-python moves a byte too many of a buffer that is not full
            if self._header is None:
                raise WireError("MRD version 2 ends within its header: send the scan again") from None
        except (RuntimeError, ValueError, struct.error, TypeError, KeyError, OverflowError, MemoryError) as error:
            raise WireError(f"MRD version 2 cannot be read ({type(error).__name__}): write the scan again") from error

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


def acquisition_of(new: Any) -> ismrmrd.Acquisition:
    """A line of version 2 as one of version 1. Raises WireError for numbers that version 1 cannot hold."""
    head, old = new.head, ismrmrd.AcquisitionHeader()
    n_coils, n_samples = new.data.shape
    old.version, old.flags, old.measurement_uid = 1, int(head.flags), head.measurement_uid
    old.number_of_samples, old.active_channels, old.available_channels = n_samples, n_coils, n_coils
    old.sample_time_us, old.encoding_space_ref = head.sample_time_us or 0.0, head.encoding_space_ref or 0
    for name in NUMBERS:
        setattr(old, name, getattr(head, name) or 0)
    for name in COUNTERS:
        setattr(old.idx, name, getattr(head.idx, name) or 0)
    old.idx.segment = head.idx.segment or 0
    if head.center_sample is None:
        old.center_sample = n_samples // 2
    for name in VECTORS:
        getattr(old, name)[:] = [float(value) for value in getattr(head, name)]
    for values, place in (
        *((getattr(head, name), getattr(old, name)) for name in LISTS),
        (head.idx.user, old.idx.user),
    ):
        for number, value in enumerate(values[: len(place)]):
            place[number] = value
    for number in head.channel_order:
        old.channel_mask[number // 64] |= 1 << number % 64
    largest = max(n_coils, n_samples, *(getattr(head.idx, name) or 0 for name in COUNTERS), head.center_sample or 0)
    if largest >= 1 << 16:
        raise WireError(f"a line of MRD version 2 has the number {largest}: below {1 << 16} are taken")
    basis = new.trajectory.shape[0] if new.trajectory.size else 0
    old.trajectory_dimensions = basis
    trajectory = np.ascontiguousarray(new.trajectory.T, np.float32) if basis else None
    return ismrmrd.Acquisition(old, np.ascontiguousarray(new.data, np.complex64), trajectory)


def header_of(new: Any) -> bytes:
    """The XML of version 1 of a header of version 2."""
    xml = ismrmrd.xsd.ToXML(_converted(new, ismrmrd.xsd.ismrmrdHeader))
    return xml.encode("ascii", "xmlcharrefreplace")  # as it declares


def _converted(new: Any, kind: Any) -> Any:
    """A value of version 2 as one of a type of version 1."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        names = {_plain(name): name for name in vars(new)}
        hints = typing.get_type_hints(kind)
        given = {}
        for field in dataclasses.fields(kind):
            value = getattr(new, names.get(_plain(field.name), ""), None)
            if value is not None and not (isinstance(value, list) and not value):
                given[field.name] = _converted(value, hints[field.name])
        return kind(**given)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = (one for one in typing.get_args(kind) if one is not type(None))
        return _converted(new, kind)
    if isinstance(new, list):
        if typing.get_origin(kind) is not list:  # as TR, where versions of the package differ
            return [_converted(one, kind) for one in new]
        return [_converted(one, typing.get_args(kind)[0]) for one in new]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(one for one in kind if _plain(one.name) == _plain(new.name))
    if isinstance(new, Enum):  # patientGender, which version 1 has as a text
        return new.name
    if kind is XmlDate:
        return XmlDate.from_date(new)
    if kind is XmlTime:
        nanoseconds = int(new.numpy_value.astype("timedelta64[ns]").astype(np.int64))
        seconds, rest = divmod(nanoseconds, 10**9)
        return XmlTime(seconds // 3600, seconds // 60 % 60, seconds % 60, rest)
    return kind(new) if kind in (int, float, str) else new


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _vector(values: Any) -> np.ndarray:
    return np.array(list(values), np.float32)
