"""Scans as a tool of MRD version 2 writes them, by mrd-python."""

import io
import re
import typing
from enum import Enum

import ismrmrd
import mrd

from .acquisitions import read


def plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def header(old) -> mrd.Header:
    """Of a header of version 1: the same fields."""
    return _converted(old, mrd.Header)


def _converted(old, kind):
    if typing.get_origin(kind) is typing.Union:
        (kind,) = (one for one in typing.get_args(kind) if one is not type(None))
    if isinstance(old, list):
        return [_converted(one, typing.get_args(kind)[0]) for one in old]
    if hasattr(old, "__dataclass_fields__"):
        names = {plain(name): name for name in old.__dataclass_fields__}
        given = {}
        for name, hint in typing.get_type_hints(kind).items():
            value = getattr(old, names.get(plain(name), ""), None)
            if value is not None:
                given[name] = _converted(value, hint)
        return kind(**given)
    if hasattr(old, "to_date"):
        return old.to_date()
    if hasattr(old, "to_time"):
        time = old.to_time()
        return mrd.Time.from_components(time.hour, time.minute, time.second, 1000 * time.microsecond)
    if isinstance(old, Enum):
        return next(one for one in kind if plain(one.name) == plain(old.name))
    if hasattr(kind, "__members__"):
        return kind[old]
    return old


def acquisition(old: ismrmrd.Acquisition) -> mrd.Acquisition:
    counters = ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast", "phase", "repetition")
    head = mrd.AcquisitionHeader(
        flags=mrd.AcquisitionFlags(old.flags),
        idx=mrd.EncodingCounters(
            **{name: getattr(old.idx, name) for name in (*counters, "set", "segment")}, user=list(old.idx.user)
        ),
        measurement_uid=old.measurement_uid,
        scan_counter=old.scan_counter,
        acquisition_time_stamp=old.acquisition_time_stamp,
        physiology_time_stamp=list(old.physiology_time_stamp),
        channel_order=[number for number in range(1024) if old.isChannelActive(number)],
        discard_pre=old.discard_pre,
        discard_post=old.discard_post,
        center_sample=old.center_sample,
        encoding_space_ref=old.encoding_space_ref,
        sample_time_us=old.sample_time_us,
        user_int=list(old.user_int),
        user_float=list(old.user_float),
    )
    for name in ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position"):
        getattr(head, name)[:] = getattr(old, name)
    return mrd.Acquisition(head=head, data=old.data)


def stream(scan, more=()) -> bytes:
    """A scan's file as a stream; more: items after the lines."""
    old, lines = read(scan)
    target = io.BytesIO()
    with mrd.BinaryMrdWriter(target) as writer:
        writer.write_header(header(old))
        writer.write_data([mrd.StreamItem.Acquisition(acquisition(line)) for line in lines])
        writer.write_data(more)
    return target.getvalue()


def images(data: bytes) -> list[mrd.Image]:
    with mrd.BinaryMrdReader(io.BytesIO(data)) as reader:
        assert reader.read_header() is not None
        return [item.value for item in reader.read_data()]
