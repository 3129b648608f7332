"""MRD version 2 as version 1, so that nothing behind it knows the difference.

The package mrd-python reads and writes version 2; its names are those of version 1 in another spelling.
"""

import dataclasses
import io
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


class EndsEarlyError(BadInputError):
    """What came is whole lines, and no end."""


def package() -> Any:
    """mrd-python. Raises BadInputError where it is missing."""
    try:
        import mrd
    except ImportError as error:
        raise BadInputError("MRD version 2 came, which mrd-python reads: pip install dpmrecon[mrd2]") from error
    return mrd


def items(source: io.BufferedReader) -> Iterator[Any]:
    """The header of version 2, then the lines as those of version 1.

    mrd-python reads 64 KB at a time and waits for them: what comes before a pause is seen after it, and of what breaks
    off the last 64 KB are lost. Raises BadInputError, and EndsEarlyError where it breaks off within the lines.
    """
    header = None
    try:
        reader = package().BinaryMrdReader(source)
        header = reader.read_header()
        if header is None:
            raise BadInputError("the stream of MRD version 2 has no header: write the scan again with one")
        yield header
        for item in reader.read_data():
            if item.tag == "Acquisition":
                yield acquisition_of(item.value)
            elif not item.tag.startswith("Waveform"):
                raise BadInputError(f"an item {item.tag} came in MRD version 2: raw acquisitions are needed")
    except (EOFError, BufferError):  # mrd-python moves a byte too many of a buffer that is not full
        if header is None:
            raise BadInputError("MRD version 2 ends within its header: send the scan again") from None
        raise EndsEarlyError("MRD version 2 ends within its lines: send the scan again") from None
    except (RuntimeError, ValueError, struct.error, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise BadInputError(f"MRD version 2 cannot be read ({type(error).__name__}): write the scan again") from error


def acquisition_of(new: Any) -> ismrmrd.Acquisition:
    """A line of version 2 as one of version 1. Raises BadInputError for numbers that version 1 cannot hold."""
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
        raise BadInputError(f"a line of MRD version 2 has the number {largest}: below {1 << 16} are taken")
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
