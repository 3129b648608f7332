"""fastMRI files (multi-coil, Zbontar et al., arXiv 1811.08839) as scans: their k-space array becomes lines.

They hold `kspace` (slices, n_coils, readout, lines) complex64, zero where not acquired, and `ismrmrd_header`, the XML;
no positions, no noise measurement, no flags. No real file was seen here: the layout is that of its description.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import ismrmrd
import numpy as np

from ..errors import BadInputError
from .header import overridden, read_header
from .scan import Scan
from .scan_log import ScanLog


def is_fastmri(file: h5py.File) -> bool:
    """Whether an HDF5 file is of this kind."""
    return "kspace" in file and "ismrmrd_header" in file


@dataclass
class FastMriScan(Scan):
    """Line i of slice s has the index s * n_lines + i; lines that hold nothing are not among the heads' groups."""

    @classmethod
    def of(cls, file: h5py.File, path: Path, changes: str | None) -> "FastMriScan":
        """Raises BadInputError for files whose k-space is not as described."""
        kspace = file["kspace"]
        if kspace.ndim != 4 or kspace.dtype.kind != "c":
            raise BadInputError(
                f"{path}: a fastMRI file of shape {kspace.shape} and type {kspace.dtype}: multi-coil k-space (slices, "
                "n_coils, readout, lines) is needed"
            )
        n_slices, n_coils, n_samples, n_lines = kspace.shape
        xml = np.ravel(file["ismrmrd_header"][()])[0]
        xml = overridden(xml.encode() if isinstance(xml, str) else bytes(xml), changes)
        try:
            header = read_header(xml)
        except BadInputError as error:
            raise BadInputError(f"{path}: {error}") from error.__cause__
        encoding = header.encoding[0]
        log = ScanLog()
        log.remark("a fastMRI file holds no positions: its images have no place in the patient")
        if encoding.encodedSpace.matrixSize.y != n_lines:
            log.remark(
                f"its k-space has {n_lines} lines, the header {encoding.encodedSpace.matrixSize.y}: the array is taken"
            )
            encoding.encodedSpace.matrixSize.y = n_lines
        whole = _limit(n_lines - 1, n_lines // 2)
        encoding.encodingLimits = ismrmrd.xsd.encodingLimitsType(
            kspace_encoding_step_1=whole, kspace_encoding_step_2=_limit(0), slice=_limit(n_slices - 1)
        )
        encoding.parallelImaging = None  # the lines tell R
        encoding.encodedSpace.matrixSize.z = 1
        heads = np.zeros(n_slices * n_lines, ismrmrd.hdf5.acquisition_header_dtype)
        heads["version"], heads["number_of_samples"], heads["center_sample"] = 1, n_samples, n_samples // 2
        heads["active_channels"] = heads["available_channels"] = n_coils
        heads["idx"]["slice"] = np.repeat(np.arange(n_slices), n_lines)
        heads["idx"]["kspace_encode_step_1"] = np.tile(np.arange(n_lines), n_slices)
        # one coil and one sample tell: the centre's are never zero
        held = kspace[:, 0, n_samples // 2, :] != 0
        groups = [number * n_lines + np.flatnonzero(lines) for number, lines in enumerate(held) if lines.any()]
        if not groups:
            raise BadInputError(f"{path}: its k-space is zero everywhere; copy the file again")
        first, end = np.flatnonzero(held.any(0))[[0, -1]]
        whole.minimum, whole.maximum = int(first), int(end)
        return cls(path, xml, header, heads, groups, kspace, log)

    def _samples(self, group: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """A slice is read at once: its lines lie across the file."""
        if not len(group):
            return
        self._must_be_open()
        n_lines = self._lines.shape[3]
        kspace = self._lines[int(group[0]) // n_lines]
        for index in group:
            self._must_be_open()
            line = np.ascontiguousarray(kspace[:, :, index % n_lines], np.complex64)
            yield int(index), line.view(np.float32).ravel()


def _limit(maximum: int, center: int = 0) -> ismrmrd.xsd.limitType:
    return ismrmrd.xsd.limitType(minimum=0, maximum=maximum, center=center)
