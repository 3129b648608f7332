"""Gadgetron's ReconData to slices: the one place that knows its seven dimensions [E0,E1,E2,CHA,N,S,LOC].

E0 is the readout, E1 the phase-encoding lines (row i of the encoded matrix at index i), E2 the partitions; N and S
are free dimensions, LOC is the slice. A Gadgetron without the gadgets that our chains put before us sends data that
look alike: each piece that can be missing is noticed here and named.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import ismrmrd
import numpy as np
import torch

from ..data import LostSlice, Slice, SliceKey
from ..errors import BadInputError, UnsupportedScanError
from ..mrd.completeness import FEWEST_CALIBRATION_LINES, central_block, completeness
from ..mrd.flags import GHOST_CORRECTION, NOISE
from ..mrd.header import (
    Header,
    acceleration,
    calibration_is_separate,
    check_supported,
    encoded_grid,
    line_limits,
)
from ..mrd.lines import EDGE_MARGIN, LineHeader, LineHeaders
from ..physics.fourier import without_oversampling
from ..physics.noise import estimated_sigma
from .wire import ReconBit, ReconBuffer

# k-space holds nearly all of its energy in the middle half of a readout, an image's line does not
KSPACE_SHARE = 0.75


def slices_of(
    bits: Iterable[ReconBit], header: Header, line_headers: LineHeaders | None = None
) -> Iterator[Slice | LostSlice]:
    """Every slice of a stream of ReconBit, complete ones as Slice, others as LostSlice with the lines got and needed.

    line_headers: gets that of the line nearest the k-space centre of each slice, before the slice leaves. Raises
    BadInputError and UnsupportedScanError, in one sentence, for data that cannot be used, and when no slice came.
    """
    epi = _check_supported(header)
    line_headers = {} if line_headers is None else line_headers
    came = False
    for bit in bits:
        if bit.data.data.size == 0:  # calibration alone
            continue
        if bit.data.data.ndim != 7 or bit.data.headers.ndim != 5:
            raise BadInputError(
                f"ReconData with {bit.data.data.ndim} dimensions and {bit.data.headers.ndim} of headers came: 7 and 5 "
                "([E0,E1,E2,CHA,N,S,LOC]) are needed, as BucketToBufferGadget makes them"
            )
        for index in np.ndindex(bit.data.data.shape[4:]):
            item = _slice(bit, index, header, line_headers, epi)
            if item is not None:
                came = True
                yield item
    if not came:
        raise BadInputError("no image lines came: the chain in front of this gadget lost them, or the scan holds none")


def _check_supported(header: Header) -> bool:
    """Refuse what we cannot reconstruct; whether the scan is EPI, which is fine after Gadgetron's EPI gadgets."""
    trajectory = header.encoding[0].trajectory
    epi = str(getattr(trajectory, "value", trajectory)) == "epi"
    if epi:
        header = dataclasses.replace(
            header, encoding=[dataclasses.replace(header.encoding[0], trajectory=None), *header.encoding[1:]]
        )
    check_supported(header)
    return epi


def _slice(
    bit: ReconBit, index: tuple[int, ...], header: Header, line_headers: LineHeaders, epi: bool
) -> Slice | LostSlice | None:
    """The slice at (n, s, loc) = index; None where nothing was acquired."""
    rows, cols = encoded_grid(header)
    limits = line_limits(header)
    headers = _headers(bit.data, index)
    if not headers:
        return None
    _check_chain(bit, headers, header, epi)
    lines = _lines(bit.data, index, headers)
    if lines.shape[1] < rows:  # without parallel imaging only the announced lines have a place
        lines = np.pad(lines, ((0, 0), (0, rows - lines.shape[1]), (0, 0)))
    separate = calibration_is_separate(header)
    calibration, ref_headers = None, {}
    if bit.ref is not None and bit.ref.data.size:
        ref_headers = _headers(bit.ref, index)
        calibration = _lines(bit.ref, index, ref_headers)
    lines = _readout(lines, header, cols)
    acquired: np.ndarray = np.asarray((lines != 0).any((0, 2)))
    if calibration is not None and not separate:
        filled = {row for row in _rows(ref_headers, header) if 0 <= row < rows}
        if missing := filled - set(np.flatnonzero(acquired).tolist()):
            raise BadInputError(
                f"{len(missing)} calibration lines are not in the image's k-space: the chain lacks "
                "GenericReconCartesianReferencePrepGadget with ref_fill_into_data_embedded=true"
            )
        headers = {**ref_headers, **headers}
    line_header = min(headers.values(), key=lambda head: abs(head.idx.kspace_encode_step_1 - limits.center))
    counters = line_header.idx
    key = SliceKey(
        *(getattr(counters, name) for name in ("slice", "contrast", "phase", "set", "repetition", "average"))
    )
    line_headers[key] = LineHeader.of(line_header)
    numbers = np.flatnonzero(acquired) + limits.center - rows // 2
    factor, needed, gap = completeness(numbers, limits, acceleration(header))
    if not acquired.any():
        return LostSlice(key, "all samples of its lines are zero")
    if gap is not None:
        return LostSlice(key, gap)
    for part, name in ((lines, "lines"), (calibration, "calibration lines")):
        if part is not None and not np.isfinite(part.view(np.float32)).all():
            return LostSlice(key, f"its {name} hold NaN or infinite values")
    columns = _columns(lines, oversampled=header.encoding[0].encodedSpace.matrixSize.x > cols)
    mask = torch.from_numpy(np.outer(acquired, columns).astype(np.float32))
    kspace = torch.from_numpy(lines) * mask
    return Slice(
        key=key,
        kspace=kspace,
        mask=mask,
        calibration=_calibration(kspace, acquired, calibration, separate, header, bit, index),
        # noise adjustment leaves a level that depends on the receiver's bandwidth: it is measured, not assumed
        sigma_n=estimated_sigma(kspace, mask),
        noise_source="k-space periphery",
        acceleration=float(factor),
        n_lines_got=int(acquired.sum()),
        n_lines_needed=needed,
        seed_key=key.seed_key,
    )


def _within(index: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """A calibration that was averaged over N or S has fewer of them than the image."""
    return tuple(min(number, size - 1) for number, size in zip(index, shape))


def _headers(buffer: ReconBuffer, index: tuple[int, ...]) -> dict[int, ismrmrd.AcquisitionHeader]:
    """The headers of lines that were acquired, by their position along E1."""
    place: Any = (slice(None), 0, *_within(index, buffer.headers.shape[2:]))
    return {position: head for position, head in enumerate(buffer.headers[place]) if head.number_of_samples > 0}


def _rows(headers: dict[int, ismrmrd.AcquisitionHeader], header: Header) -> list[int]:
    """Rows of the encoded matrix that the lines' own counters tell."""
    offset = encoded_grid(header)[0] // 2 - line_limits(header).center
    return sorted(head.idx.kspace_encode_step_1 + offset for head in headers.values())


def _lines(buffer: ReconBuffer, index: tuple[int, ...], headers: dict[int, ismrmrd.AcquisitionHeader]) -> np.ndarray:
    """(n_coils, rows, n_samples) complex64, a copy of our own: what the wire gives is read-only and Fortran-ordered."""
    place: Any = (slice(None), slice(None), 0, slice(None), *_within(index, buffer.data.shape[4:]))
    lines = buffer.data[place].transpose(2, 1, 0)
    missing = _cut(lines.shape[2], headers)
    return np.pad(lines, ((0, 0), (0, 0), missing)).astype(np.complex64, order="C")


def _cut(n_samples: int, headers: dict[int, ismrmrd.AcquisitionHeader]) -> tuple[int, int]:
    """Samples that buffers leave out before and after those of an asymmetric echo, where they leave them out."""
    for head in headers.values():
        if n_samples < head.number_of_samples == n_samples + head.discard_pre + head.discard_post:
            return head.discard_pre, head.discard_post
    return 0, 0


def _check_chain(bit: ReconBit, headers: dict[int, ismrmrd.AcquisitionHeader], header: Header, epi: bool) -> None:
    rows, cols = encoded_grid(header)
    n_samples, n_lines, partitions = bit.data.data.shape[:3]
    n_samples += sum(_cut(n_samples, headers))
    if partitions > 1:
        raise UnsupportedScanError(
            f"the scan is 3D ({partitions} partitions); only 2D multi-slice scans are reconstructed"
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
    offset = rows // 2 - line_limits(header).center
    misplaced = [place for place, head in headers.items() if head.idx.kspace_encode_step_1 + offset != place]
    if misplaced or n_lines > rows:
        raise BadInputError(
            f"{n_lines} lines came, {len(misplaced)} of them not at the row of their own header, where {rows} rows in "
            "order are needed: use BucketToBufferGadget right before GenericReconCartesianReferencePrepGadget"
        )
    # the ghost correction takes phase-correction lines out and clears the flag of the reversed lines it has turned
    if any(int(head.flags) & GHOST_CORRECTION for head in headers.values()):
        raise BadInputError(
            "phase-correction or reversed lines came, whose ghosts nobody has corrected: the chain lacks "
            "EPIReconXGadget and EPICorrGadget (dpm_dwi has them)"
        )
    if any(int(head.flags) & NOISE for head in headers.values()):
        raise BadInputError("noise measurements came among the image lines: the chain lacks NoiseAdjustGadget")
    if epi:
        energy = np.square(np.abs(bit.data.data)).sum((1, 2, 3, 4, 5, 6))
        middle = energy[n_samples // 4 : n_samples - n_samples // 4]
        if middle.sum() < KSPACE_SHARE * energy.sum():
            raise BadInputError("the lines are images along the readout, not k-space: the chain lacks FFTXGadget")


def _readout(lines: np.ndarray, header: Header, cols: int) -> np.ndarray:
    if lines.shape[2] == cols:
        return lines
    return without_oversampling(torch.from_numpy(lines), cols).numpy()


def _columns(lines: np.ndarray, oversampled: bool) -> np.ndarray:
    """(cols,) bool: the columns that an echo covers, without those that lost accuracy beside its cut edge."""
    held = np.flatnonzero(lines.any((0, 1)))
    columns = np.zeros(lines.shape[2], bool)
    margin = EDGE_MARGIN if oversampled else 0
    first = held[0] + (margin if held[0] > 0 else 0)
    last = held[-1] - (margin if held[-1] < len(columns) - 1 else 0)
    columns[first : last + 1] = True
    return columns


def _calibration(
    kspace: torch.Tensor,
    acquired: np.ndarray,
    ref: np.ndarray | None,
    separate: bool,
    header: Header,
    bit: ReconBit,
    index: tuple[int, ...],
) -> torch.Tensor | None:
    """(n_coils, rows_cal, cols), the k-space centre at rows_cal//2: separate lines, else the image's own centre."""
    center = kspace.shape[1] // 2
    if ref is not None and separate:
        assert bit.ref is not None
        ref = _readout(ref, header, kspace.shape[2])
        rows = _rows(_headers(bit.ref, index), header)
        # the reference preparation keeps the rows of the calibration region alone, in order
        if len(rows) != ref.shape[1]:
            rows = [row + center - ref.shape[1] // 2 for row in range(ref.shape[1])]
        block = central_block(rows, center)
        if len(block) >= FEWEST_CALIBRATION_LINES:
            return torch.from_numpy(ref[:, [rows.index(row) for row in block]])
    block = central_block(np.flatnonzero(acquired).tolist(), center)
    return kspace[:, block.start : block.stop] if len(block) >= FEWEST_CALIBRATION_LINES else None
