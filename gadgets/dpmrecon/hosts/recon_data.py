"""Gadgetron's ReconData to slices: the one place that knows its seven dimensions [E0,E1,E2,CHA,N,S,LOC].

E0 is the readout, E1 the phase-encoding lines (row i of the encoded matrix at index i), E2 the partitions of a volume;
N and S are free dimensions, LOC is the slice. In here a place is (partition, row), and all arrays have partitions. A
Gadgetron without our chains' other gadgets sends data that look alike: each piece that can be missing is noticed here
and named.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ismrmrd
import numpy as np
import torch

from ..data import ESTIMATED, LostSlice, Slice, SliceKey, Volume
from ..errors import BadInputError, UnsupportedScanError
from ..mrd.averages import may_be_weighted, tells_weightings
from ..mrd.completeness import (
    FEWEST_CALIBRATION_LINES,
    MOST_SLICES,
    announced_slices,
    central_block,
    completeness,
    missing_slices,
    within,
)
from ..mrd.epi import FIRST_CALIBRATES, UNCALIBRATED, ShotCounter, weighted_shots
from ..mrd.flags import CALIBRATION, CALIBRATION_AND_IMAGE, GHOST_CORRECTION, NOISE
from ..mrd.header import (
    Header,
    Limits,
    acceleration,
    calibration_is_separate,
    check_supported,
    encoded_grid,
    is_epi,
    line_limits,
    n_partitions,
    partition_limits,
    voxel_mm,
)
from ..mrd.lines import EDGE_MARGIN, LineHeader, LineHeaders, LostError
from ..mrd.volumes import central_box, on_matrix, volume_completeness
from ..physics.fourier import to_kspace, without_oversampling
from ..physics.noise import estimated_sigma, estimated_volume_sigma
from .wire import ReconBit, ReconBuffer

# Along the readout an image is so many times wider than its k-space
IMAGE_WIDTH = 2.0
# Noise is what the quietest samples hold: those below this quantile
QUIET = 0.1

# The last calibration of each slice number, (n_coils, partitions_cal, rows_cal, cols)
Kept = dict[int, torch.Tensor]
# Headers of lines by their place
Heads = dict[tuple[int, ...], ismrmrd.AcquisitionHeader]


def slices_of(
    bits: Iterable[ReconBit],
    header: Header,
    line_headers: LineHeaders | None = None,
    *,
    combine_averages: bool = False,
) -> Iterator[Slice | LostSlice]:
    """Every slice or volume of a stream of ReconBit: complete ones as Slice or Volume, others as LostSlice; last those
    that the header announces and that did not come. Averages are slices of their own; combine_averages: they are put
    together later, and a slice of which one came has come.

    line_headers: gets that of the line nearest each slice's k-space centre, before it leaves. Memory holds a
    calibration for each slice number, for images without one. Raises BadInputError and UnsupportedScanError, in one
    sentence, for data that cannot be used, and when no slice came.
    """
    epi = _check_supported(header)
    line_headers = {} if line_headers is None else line_headers
    kept: Kept = {}
    came: set[SliceKey] = set()
    for bit in bits:
        if bit.data.data.size == 0:  # calibration alone
            if bit.ref is not None and bit.ref.data.ndim == 7:
                for index in np.ndindex(bit.ref.data.shape[4:]):
                    _keep(bit.ref, index, header, kept)
            continue
        if bit.data.data.ndim != 7 or bit.data.headers.ndim != 5:
            raise BadInputError(
                f"ReconData with {bit.data.data.ndim} dimensions and {bit.data.headers.ndim} of headers came: 7 and 5 "
                "([E0,E1,E2,CHA,N,S,LOC]) are needed, as BucketToBufferGadget makes them"
            )
        for index in np.ndindex(bit.data.data.shape[4:]):
            item = _slice(bit, index, header, line_headers, epi, kept)
            if item is not None:
                came.add(item.key)
                yield item
    if not came:
        raise BadInputError(
            "no image lines came: the chain in front of this gadget lost them, or the scan holds none"
            + _noise_adjust_refuses(header)
        )
    # a scan that was cut ends like a whole one
    if announced_slices(header, combine_averages=combine_averages) <= MOST_SLICES:
        if combine_averages:
            came = {dataclasses.replace(key, average=0) for key in came}
        # a Gadgetron's header cannot be set
        yield from missing_slices(header, came, combine_averages=combine_averages, can_be_set=False)


def _noise_adjust_refuses(header: Header) -> str:
    """Why a Gadgetron may have ended the scan with "Unknown error.": it files the noise by these two."""
    patient = getattr(header.subjectInformation, "patientID", None)
    measurement = getattr(header.measurementInformation, "measurementID", None)
    if patient or re.fullmatch("_".join(["[^_]*"] * 4), str(measurement or "")):
        return ""
    return (
        "; the header has no patientID and no measurementID of the form A_B_C_D, and without one of them "
        'NoiseAdjustGadget ends every scan that has noise lines ("Unknown error."): give it one of the two'
    )


def _check_supported(header: Header) -> bool:
    """Refuse what we cannot reconstruct; whether the scan is EPI, which is fine after Gadgetron's EPI gadgets."""
    epi = is_epi(header)
    if epi:
        header = dataclasses.replace(
            header, encoding=[dataclasses.replace(header.encoding[0], trajectory=None), *header.encoding[1:]]
        )
    check_supported(header)
    return epi


def _slice(
    bit: ReconBit, index: tuple[int, ...], header: Header, line_headers: LineHeaders, epi: bool, kept: Kept
) -> Slice | LostSlice | None:
    """The slice at (n, s, loc) = index; None where nothing was acquired."""
    rows, cols = encoded_grid(header)
    shape = n_partitions(header), rows
    limits = partition_limits(header), line_limits(header)
    headers = _headers(bit.data, index)
    separate = calibration_is_separate(header)
    ref_headers: Heads = {}
    calibration = own = None
    if bit.ref is not None and bit.ref.data.size:
        ref_headers, calibration = _calibration_lines(bit.ref, index)
        if separate or not headers:
            own = _keep(bit.ref, index, header, kept)
    if not headers:
        return None
    _check_chain(bit, headers, header, epi)
    lines = _lines(bit.data, index, headers)
    # without parallel imaging only the announced lines have a place
    lines = _padded(lines, ((0, 0), *((0, max(0, size - n)) for size, n in zip(shape, lines.shape[1:])), (0, 0)))
    lines = _readout(lines, header, cols)
    acquired = np.logical_or.reduce([(coil != 0).any(-1) for coil in lines])
    if calibration is not None and not separate:
        missing = sum(not acquired[place] for place in _places(ref_headers, header) if _is_in(place, shape))
        if missing:
            raise BadInputError(
                f"{missing} calibration lines are not in the image's k-space: the chain lacks "
                "GenericReconCartesianReferencePrepGadget with ref_fill_into_data_embedded=true"
            )
        headers = {**ref_headers, **headers}
    line_header = min(headers.values(), key=lambda head: _distance(head, limits))
    counters = line_header.idx
    key = SliceKey(
        *(getattr(counters, name) for name in ("slice", "contrast", "phase", "set", "repetition", "average"))
    )
    line_headers[key] = LineHeader.of(line_header)
    factor, needed, gap = _completeness(acquired, limits, header)
    if not acquired.any():
        return LostSlice(key, "all samples of its lines are zero")
    if gap is not None:
        return LostSlice(key, gap)
    for part, name in ((lines, "lines"), (calibration, "calibration lines")):
        if part is not None and not all(np.isfinite(coil.view(np.float32)).all() for coil in part):
            return LostSlice(key, f"its {name} hold NaN or infinite values")
    columns = _columns(lines, oversampled=header.encoding[0].encodedSpace.matrixSize.x > cols)
    mask = torch.from_numpy((acquired[..., None] & columns).astype(np.float32))
    kspace = torch.from_numpy(lines).mul_(mask)
    shots = _shots(headers) if epi and shape[0] == 1 else {}
    weighted = bool(shots) and may_be_weighted(header, key)
    several = len(set().union(*shots.values())) > 1
    first = key.slice not in kept and not tells_weightings(header)
    apart = several and weighted and not first
    centre = _centre(kspace, _of_one_phase(acquired, shots) if apart else acquired)
    if several and not apart and centre is not None:
        kept.setdefault(key.slice, centre.clone())
    if calibration is not None and not separate and centre is not None:
        own, kept[key.slice] = centre, centre.clone()  # a view would keep the whole slice
    found = next((block for block in (own, kept.get(key.slice), centre) if block is not None), None)
    if found is not None and len(found) != len(kspace):
        return LostSlice(key, f"its calibration has {len(found)} channels, its image lines have {len(kspace)}")
    kind: Callable[..., Slice]
    if shape[0] > 1:
        kind = functools.partial(Volume, voxel_mm=voxel_mm(header))
        sigma_n = estimated_volume_sigma(kspace, mask)
    else:
        kspace, mask, found = kspace[:, 0], mask[0], None if found is None else found[:, 0]
        kind, sigma_n = Slice, estimated_sigma(kspace, mask)
        if weighted:
            try:
                kind = functools.partial(Slice, shots=weighted_shots(shots, rows))
            except LostError as lost:
                return LostSlice(key, str(lost))
            if found is None and _centre(kspace[:, None], acquired) is not None:
                return LostSlice(key, UNCALIBRATED)
    return kind(
        key=key,
        kspace=kspace,
        mask=mask,
        calibration=found,
        # measured: what noise adjustment leaves depends on the receiver's bandwidth
        sigma_n=sigma_n,
        noise_source=ESTIMATED,
        acceleration=float(factor),
        n_lines_got=int(acquired.sum()),
        n_lines_needed=needed,
        seed_key=key.seed_key,
        remarks=(FIRST_CALIBRATES,) if several and weighted and first and own is None and centre is not None else (),
    )


def _shots(headers: Heads) -> dict[int, set[int]]:
    """The shot of each row of EPI, by the order in which lines came: idx.segment may count directions, which the
    server's gadgets have taken off."""
    counter = ShotCounter()
    in_time = sorted(headers.items(), key=lambda found: found[1].scan_counter)
    return {row: {counter.of(row)} for (_, row), _ in in_time}


def _of_one_phase(acquired: np.ndarray, shots: dict[int, set[int]]) -> np.ndarray:
    """(1, rows) bool: those of the shot that has the k-space centre."""
    nearest = min(shots, key=lambda row: abs(row - acquired.shape[1] // 2))
    return acquired & [shots.get(row) == shots[nearest] for row in range(acquired.shape[1])]


def _completeness(acquired: np.ndarray, limits: tuple[Limits, Limits], header: Header) -> tuple[int, int, str | None]:
    """As that of slices and volumes, of places (partitions, rows)."""
    if len(acquired) > 1:
        inside = within(limits[0], acquired.shape[0]), within(limits[1], acquired.shape[1])
        return volume_completeness(acquired, inside, acceleration(header))
    numbers = np.flatnonzero(acquired) + limits[1].center - acquired.shape[1] // 2
    return completeness(numbers, limits[1], acceleration(header))


def _within(index: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """A calibration averaged over N or S has fewer than the image."""
    return tuple(min(number, size - 1) for number, size in zip(index, shape))


def _headers(buffer: ReconBuffer, index: tuple[int, ...]) -> Heads:
    """The headers of lines that were acquired, by their place in the buffer."""
    place: Any = (slice(None), slice(None), *_within(index, buffer.headers.shape[2:]))
    heads = buffer.headers[place].T
    return {where: heads[where] for where in np.ndindex(heads.shape) if heads[where].number_of_samples > 0}


def _places(headers: Heads, header: Header) -> list[tuple[int, int]]:
    """Places in the encoded matrix that the lines' own counters tell."""
    down = n_partitions(header) // 2 - partition_limits(header).center
    along = encoded_grid(header)[0] // 2 - line_limits(header).center
    counters = [head.idx for head in headers.values()]
    return sorted((idx.kspace_encode_step_2 + down, idx.kspace_encode_step_1 + along) for idx in counters)


def _is_in(place: tuple[int, int], shape: tuple[int, int]) -> bool:
    return 0 <= place[0] < shape[0] and 0 <= place[1] < shape[1]


def _distance(head: ismrmrd.AcquisitionHeader, limits: tuple[Limits, Limits]) -> float:
    """Of a line from the k-space centre."""
    down, along = (limit.center for limit in limits)
    return math.hypot(head.idx.kspace_encode_step_2 - down, head.idx.kspace_encode_step_1 - along)


def _lines(buffer: ReconBuffer, index: tuple[int, ...], headers: Heads) -> np.ndarray:
    """(n_coils, partitions, rows, n_samples) complex64, writable and in this order.

    A slice is a copy; a volume that lies like this is not, because memory holds few of them.
    """
    place: Any = (slice(None), slice(None), slice(None), slice(None), *_within(index, buffer.data.shape[4:]))
    lines = buffer.data[place].transpose(3, 2, 1, 0)
    missing = _cut(lines.shape[3], headers)
    lines = _padded(lines, ((0, 0), (0, 0), (0, 0), missing))
    if lines.shape[1] > 1:
        return np.require(lines, np.complex64, ["C", "W"])
    return lines.astype(np.complex64, order="C")


def _padded(lines: np.ndarray, widths: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.pad(lines, widths) if any(map(any, widths)) else lines


def _cut(n_samples: int, headers: Heads) -> tuple[int, int]:
    """Samples that buffers leave out before and after those of an asymmetric echo, where they leave them out."""
    for head in headers.values():
        if n_samples < head.number_of_samples == n_samples + head.discard_pre + head.discard_post:
            return head.discard_pre, head.discard_post
    return 0, 0


def _check_chain(bit: ReconBit, headers: Heads, header: Header, epi: bool) -> None:
    rows, cols = encoded_grid(header)
    n_samples, n_lines, partitions = bit.data.data.shape[:3]
    n_samples += sum(_cut(n_samples, headers))
    if n_partitions(header) == 1 < partitions:
        raise BadInputError(
            f"{partitions} partitions came and the header announces a 2D scan: correct its matrixSize.z and "
            "encodingLimits.kspace_encoding_step_2"
        )
    if n_partitions(header) > 1 and len({head.idx.slice for head in headers.values()}) > 1:
        raise UnsupportedScanError(
            "the scan is 3D with several slabs; one is reconstructed: send each slab as a scan of its own"
        )
    if any(head.encoding_space_ref for head in headers.values()):
        raise UnsupportedScanError("lines of a second encoding space came as image; only space 0 is reconstructed")
    encoded, recon = header.encoding[0].encodedSpace, header.encoding[0].reconSpace
    # where the header hides the oversampling, Gadgetron cannot remove it and we do
    hidden = n_samples == encoded.matrixSize.x and encoded.fieldOfView_mm.x == recon.fieldOfView_mm.x
    if n_samples != cols and not hidden:
        gadget = "EPIReconXGadget" if epi else "RemoveROOversamplingGadget"
        raise BadInputError(
            f"the lines have {n_samples} samples where {cols} are needed: the chain lacks {gadget} before this gadget"
        )
    misplaced = [one for one, head in headers.items() if _places({one: head}, header) != [one]]
    if misplaced or n_lines > rows or partitions > n_partitions(header):
        raise BadInputError(
            f"{n_lines} lines came, {len(misplaced)} of them not at the row of their own header, where {rows} rows in "
            "order are needed: use BucketToBufferGadget right before GenericReconCartesianReferencePrepGadget"
        )
    # the ghost correction has taken out phase-correction lines and turned the reversed ones
    if any(int(head.flags) & GHOST_CORRECTION for head in headers.values()):
        raise BadInputError(
            "phase-correction or reversed lines came, whose ghosts nobody has corrected: the chain lacks "
            "EPIReconXGadget and EPICorrGadget (dpm_dwi has them)"
        )
    if any(int(head.flags) & NOISE for head in headers.values()):
        raise BadInputError("noise measurements came among the image lines: the chain lacks NoiseAdjustGadget")
    if epi and _is_image(bit.data.data):
        raise BadInputError("the lines are images along the readout, not k-space: the chain lacks FFTXGadget")


def _is_image(data: np.ndarray) -> bool:
    """Whether lines [E0, ...] are images along the readout: their transform is the narrower of the two.

    The width of a readout is (sum p)^2 / sum p^2 of its power p once the noise is taken off, which is as strong before
    the transform as after it.
    """
    lines = torch.from_numpy(np.array(data.reshape(data.shape[0], -1, order="F").T, order="C"))
    powers = [part.abs().square().sum(0).double() for part in (lines, to_kspace(lines, axes=(-1,)))]
    noise = min(float(power.quantile(QUIET)) for power in powers)
    signals = [(power - noise).clamp(0) for power in powers]
    widths = [float(part.sum() ** 2 / part.square().sum().clamp(1e-30)) for part in signals]
    return widths[0] > IMAGE_WIDTH * widths[1]


def _readout(lines: np.ndarray, header: Header, cols: int) -> np.ndarray:
    """Lines (n_coils, partitions, rows, n_samples) on `cols` columns, the centre at cols//2."""
    if lines.shape[-1] != cols:
        return without_oversampling(torch.from_numpy(lines), cols).numpy()
    if cols % 2 and header.encoding[0].encodedSpace.matrixSize.x % 2 == 0 and not is_epi(header):
        # RemoveROOversamplingGadget crops an even readout to an odd one from (N - n)/2 on, rounded down: its image lies
        # one pixel too far along the readout
        phase = np.exp(2j * np.pi * (np.arange(cols) - cols // 2) / cols)
        lines = lines * phase.astype(np.complex64)
    return lines


def _columns(lines: np.ndarray, oversampled: bool) -> np.ndarray:
    """(cols,) bool: an echo's columns, without the inaccurate ones beside its cut edge."""
    held = np.flatnonzero(np.logical_or.reduce([coil.any((0, 1)) for coil in lines]))
    columns = np.zeros(lines.shape[-1], bool)
    margin = EDGE_MARGIN if oversampled else 0
    first = held[0] + (margin if held[0] > 0 else 0)
    last = held[-1] - (margin if held[-1] < len(columns) - 1 else 0)
    columns[first : last + 1] = True
    return columns


def _calibration_lines(ref: ReconBuffer, index: tuple[int, ...]) -> tuple[Heads, np.ndarray | None]:
    """Headers and lines of `ref`; ({}, None) for lines that no flag calls a calibration.

    Where none came the reference preparation puts a copy of the image lines there, undersampled as they are.
    """
    headers = _headers(ref, index)
    if not headers or not all(int(head.flags) & (CALIBRATION | CALIBRATION_AND_IMAGE) for head in headers.values()):
        return {}, None
    return headers, _lines(ref, index, headers)


def _keep(ref: ReconBuffer, index: tuple[int, ...], header: Header, kept: Kept) -> torch.Tensor | None:
    """A calibration of its own, which is kept for its slice; None where there is none, or it is too small.

    (n_coils, partitions_cal, rows_cal, cols) with the k-space centre at partitions_cal//2 and rows_cal//2.
    """
    headers, lines = _calibration_lines(ref, index)
    if lines is None or not np.isfinite(lines.view(np.float32)).all():
        return None
    rows, cols = encoded_grid(header)
    centre = n_partitions(header) // 2, rows // 2
    lines = _readout(lines, header, cols)
    told = _places(headers, header)
    # the reference preparation keeps the lines of the calibration region alone, in order
    numbers = [sorted({place[axis] for place in told}) for axis in (0, 1)]
    if [len(one) for one in numbers] != list(lines.shape[1:3]):
        numbers = [[n + c - size // 2 for n in range(size)] for c, size in zip(centre, lines.shape[1:3])]
    box = _box(lines, numbers, centre)
    if box is None:
        return None
    number = next(iter(headers.values())).idx.slice
    kept[number] = torch.from_numpy(lines[:, box[0]][:, :, box[1]])
    return kept[number]


def _box(lines: np.ndarray, numbers: list[list[int]], centre: tuple[int, int]) -> tuple[list[int], list[int]] | None:
    """Which partitions and rows of calibration lines are the fully sampled block around `centre`."""
    if lines.shape[1] == 1:
        block = central_block(numbers[1], centre[1])
        return ([0], [numbers[1].index(row) for row in block]) if len(block) >= FEWEST_CALIBRATION_LINES else None
    held = np.argwhere(np.logical_or.reduce([coil.any(-1) for coil in lines]))
    places = np.stack([np.array(numbers[axis])[held[:, axis]] for axis in (0, 1)], 1)
    box = central_box(on_matrix(places, (2 * centre[0] + 1, 2 * centre[1] + 1)))
    if box is None:
        return None
    down, along = ([one.index(n) for n in range(part.start, part.stop)] for one, part in zip(numbers, box))
    return down, along


def _centre(kspace: torch.Tensor, acquired: np.ndarray) -> torch.Tensor | None:
    """The fully sampled centre of the slice's own lines, as of `_keep`; None where it is too small."""
    if len(acquired) > 1:
        box = central_box(acquired)
        return None if box is None else kspace[:, box[0], box[1]]
    block = central_block(np.flatnonzero(acquired).tolist(), kspace.shape[2] // 2)
    return kspace[:, :, block.start : block.stop] if len(block) >= FEWEST_CALIBRATION_LINES else None
