"""Averages of a diffusion scan: each has its own phase: the head moves while it is weighted.

Their lines cannot be added. A slice gets its averages beside each other, and is reconstructed from all of them at once
(`recon/phases.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..data import LostSlice, Slice, SliceKey
from .diffusion import LOW, counted_elsewhere, first_value, images_counter, weightings_of
from .header import Header, contrast_label, is_epi, n_partitions
from .lines import LineHeaders


def have_phases(header: Header) -> bool:
    """Whether averages of the scan have a phase each: of 2D diffusion, by its header or its protocol's name, and of
    EPI."""
    return n_partitions(header) == 1 and (
        bool(weightings_of(header)) or contrast_label(header) == "dwi" or is_epi(header)
    )


def tells_weightings(header: Header) -> bool:
    """Whether the header's table of diffusion tells which images are weighted."""
    return bool(weightings_of(header)) and images_counter(header) is not None and not counted_elsewhere(header)


def may_be_weighted(header: Header, key: SliceKey) -> bool:
    """Whether the image may have a b-value above LOW: the header's table of diffusion says so, or there is none."""
    entries = weightings_of(header)
    if not tells_weightings(header):
        return any(map(_is_weighted, entries)) if entries else contrast_label(header) == "dwi"
    counter = images_counter(header)
    number = getattr(key, str(counter), 0) - first_value(header, counter, len(entries))
    return not 0 <= number < len(entries) or _is_weighted(entries[number])


def _is_weighted(entry: Any) -> bool:
    """An entry of the table without a b-value may be."""
    return entry.bvalue is None or entry.bvalue > LOW


def together(
    apart: Iterable[Slice | LostSlice], header: Header, line_headers: LineHeaders
) -> Iterator[Slice | LostSlice]:
    """Averages of one place and weighting as one slice, which leaves with the last that is announced, or at the end.

    It is the first of them that came, with the average 0 in its key as where none is lost, and in `line_headers` too;
    the others are in `others`. Lost averages are remarks, or the slice is lost where all are; so are fewer than the
    header announces, which may be the scan's plan. Memory holds the averages of slices that are not complete.
    """
    limit = getattr(header.encoding[0].encodingLimits, "average", None)
    announced = None if limit is None else limit.maximum - limit.minimum + 1
    open_: dict[SliceKey, list[Slice | LostSlice]] = {}
    left: set[SliceKey] = set()
    for item in apart:
        key = replace(item.key, average=0)
        if key in left:
            yield LostSlice(
                item.key, f"more averages came than the header announces ({announced}), its image lacks them"
            )
            continue
        open_.setdefault(key, []).append(item)
        if len(open_[key]) == announced:
            left.add(key)
            yield _joined(open_.pop(key), announced, line_headers)
    for key, items in open_.items():  # of b = 0 fewer averages are planned than the header can say
        yield _joined(items, announced if may_be_weighted(header, key) else None, line_headers)


def _joined(items: list[Slice | LostSlice], announced: int | None, line_headers: LineHeaders) -> Slice | LostSlice:
    items = sorted(items, key=lambda item: item.key)
    found = [item for item in items if isinstance(item, Slice)]
    if not found:
        return items[0]
    lost = [item for item in items if isinstance(item, LostSlice)]
    remarks = [f"average {item.key.average} is missing: {item.reason}" for item in lost]
    if announced is not None and len(items) < announced:  # and none of them is known to be lost
        remarks.append(
            f"{announced - len(items)} of the {announced} averages that the header announces never came: fewer were "
            "planned of this weighting, or they are lost"
        )
    import torch

    first, *others = found
    if any(not torch.equal(item.mask, first.mask) for item in others):
        return LostSlice(
            first.key, "its averages hold different lines: they are not put together, reconstruct them apart"
        )
    other = next((item for item in others if _channels(item) != _channels(first)), None)
    if other is not None:
        return LostSlice(
            first.key,
            f"its averages {first.key.average} and {other.key.average} have different channels that work, "
            f"{_told(first)} and {_told(other)}: they are not put together, reconstruct them apart or without the "
            "channels that one of them lacks (--coils)",
        )
    key = replace(first.key, average=0)
    if first.key in line_headers:
        line_headers[key] = line_headers[first.key]
    return replace(first, key=key, others=tuple(others), remarks=(*first.remarks, *remarks))


def _channels(item: Slice) -> tuple[int, ...]:
    return item.channels or tuple(range(len(item.kspace)))


def _told(item: Slice) -> str:
    return ", ".join(map(str, _channels(item)))
