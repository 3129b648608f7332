"""Reading ISMRMRD (MRD) raw files, and the facts of their headers: grid, limits, contrast, what is supported."""

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np

from ..errors import BadInputError, UnsupportedScanError, first_line


def flags(*names: int) -> int:
    """The bit mask of ISMRMRD acquisition flags, which count from 1."""
    return sum(1 << (name - 1) for name in names)


NOISE = flags(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
CALIBRATION = flags(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
LAST_IN_SLICE = flags(ismrmrd.ACQ_LAST_IN_SLICE)
GHOST_CORRECTION = flags(ismrmrd.ACQ_IS_PHASECORR_DATA, ismrmrd.ACQ_IS_REVERSE)
LINES = 64  # that are read at once for their heads
# lines that are neither image, calibration nor noise
IGNORED = flags(
    ismrmrd.ACQ_IS_NAVIGATION_DATA,
    ismrmrd.ACQ_IS_HPFEEDBACK_DATA,
    ismrmrd.ACQ_IS_RTFEEDBACK_DATA,
    ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
    ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,
    ismrmrd.ACQ_IS_PHASE_STABILIZATION_REFERENCE,
    ismrmrd.ACQ_IS_PHASE_STABILIZATION,
)

# The one table from protocol and sequence names to contrast labels; the first pattern that matches wins.
# A letter before the short names would make them part of another word, a digit after them another number.
CONTRASTS = (
    (r"t1.*flair|flair.*t1", "t1"),
    (r"flair|tirm.*dark|dark.*fluid", "flair"),
    (r"(?<![a-z])(dwi|dti)|diff", "dwi"),
    (r"(?<![a-z])(swi|swan)(?![a-z])", "swi"),
    (r"t2[ _-]?(\*|star)", None),
    (r"(?<![a-z])(ax|sag|cor|tra)?t1(?!\d)|mprage|mp2rage|bravo", "t1"),
    (r"(?<![a-z])(ax|sag|cor|tra)?t2(?!\d)", "t2"),
)


@dataclass(frozen=True)
class Limits:
    """First, last and centre phase-encoding line as announced."""

    minimum: int
    maximum: int
    center: int


@dataclass
class Scan:
    """An open scan. xml: its header as it stands in the file; header: the same as ismrmrd.xsd object; heads: every
    acquisition's head as a structured array.

    groups: one index array per slice key (contrast, phase, set, repetition, slice, average), in that order;
    lines: the samples of line i as lines[i], float32, real and imaginary parts in turn.
    """

    path: Path
    xml: bytes
    header: Any
    heads: np.ndarray
    groups: list[np.ndarray]
    lines: Any

    @property
    def n_slices(self) -> int:
        """Slices in the file, each contrast, phase, set, repetition and average counted."""
        return sum(bool(np.any(~self._calibration_only(group))) for group in self.groups)

    def n_images(self, combine_averages: bool) -> int:
        """Slices that are reconstructed: those of the file, or one for all of its averages."""
        averages = int(self.heads["idx"]["average"].max()) + 1 if combine_averages else 1
        return -(-self.n_slices // averages)

    def _calibration_only(self, index: np.ndarray) -> np.ndarray:
        separate = calibration_is_separate(self.header)
        return (self.heads["flags"][index] & np.uint64(CALIBRATION) != 0) & separate

    def acquisitions(self) -> Iterator[ismrmrd.Acquisition]:
        """The lines: noise measurements first, then slice by slice, each slice's last one flagged LAST_IN_SLICE.

        Lines are read one by one, so that memory grows with what the receiver keeps. Lines that are neither noise,
        calibration nor image are left out. Raises BadInputError when a line cannot be read.
        """
        for index in np.flatnonzero(self.heads["flags"] & np.uint64(NOISE)):
            yield self._read(int(index))
        # slices that hold nothing but calibration serve others, which may come anywhere
        for group in sorted(self.groups, key=lambda group: bool(np.any(~self._calibration_only(group)))):
            for index in group:
                acquisition = self._read(int(index))
                acquisition.flags &= ~LAST_IN_SLICE
                if index == group[-1]:
                    acquisition.flags |= LAST_IN_SLICE
                yield acquisition

    def _read(self, index: int) -> ismrmrd.Acquisition:
        # bytes, because ctypes takes no strided buffer
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(self.heads[index].tobytes())
        try:
            samples = self.lines[index]
        except (OSError, RuntimeError) as error:
            raise BadInputError(
                f"{self.path}: line {index + 1} of {len(self.heads)} cannot be read, the file is damaged; copy it again"
            ) from error
        shape = (head.active_channels, head.number_of_samples)
        data = np.ascontiguousarray(samples, np.float32)
        if data.size != 2 * shape[0] * shape[1]:
            raise BadInputError(
                f"{self.path}: line {index + 1} holds {data.size // 2} samples where its header announces "
                f"{shape[0]} channels of {shape[1]}; the file is damaged, convert the scan again"
            )
        return ismrmrd.Acquisition(head, data.view(np.complex64).reshape(shape))


@contextmanager
def open_scan(path: str | Path) -> Iterator[Scan]:
    """Open an ISMRMRD HDF5 file for reading and read its header and all acquisition heads (340 bytes a line).

    Raises BadInputError, in one sentence, for anything that is not a readable scan.
    """
    path = Path(path)
    with _open_hdf5(path) as file:
        group = file.get("dataset")
        if not isinstance(group, h5py.Group):
            found = ", ".join(file) or "nothing"
            raise BadInputError(f"{path}: an ISMRMRD scan has a group 'dataset', this file holds: {found}")
        if "xml" not in group:
            raise BadInputError(f"{path}: the group 'dataset' has no 'xml' header; convert the scan again")
        lines = group.get("data")
        if not isinstance(lines, h5py.Dataset) or lines.size == 0:
            raise BadInputError(
                f"{path}: the scan holds no acquisitions ('dataset/data' is empty or missing); raw k-space is needed"
            )
        try:
            xml = np.ravel(group["xml"][()])[0]
            heads = _heads(lines).astype(ismrmrd.hdf5.acquisition_header_dtype)
        except (OSError, RuntimeError, KeyError, IndexError, ValueError, TypeError) as error:
            raise BadInputError(
                f"{path}: the header or the lines' heads cannot be read as ISMRMRD ({first_line(error)}); the file is "
                "damaged or of another format"
            ) from error
        try:
            header = read_header(xml)
        except BadInputError as error:
            raise BadInputError(f"{path}: {error}") from error.__cause__
        _correct_averages(header, heads)
        yield Scan(
            path,
            xml.encode() if isinstance(xml, str) else bytes(xml),
            header,
            heads,
            _grouped(heads),
            lines.fields("data"),
        )


def _heads(lines: h5py.Dataset) -> np.ndarray:
    """The heads of all lines. Asked for them alone, HDF5 reads the samples as well and never frees them (h5py issue
    1721), so whole lines are read, some at a time."""
    parts = [lines[first : first + LINES]["head"].copy() for first in range(0, len(lines), LINES)]
    return np.concatenate(parts)


def _open_hdf5(path: Path) -> h5py.File:
    if not path.exists():
        raise BadInputError(f"{path} does not exist; give the path of an ISMRMRD (.h5) scan")
    if path.is_dir():
        raise BadInputError(f"{path} is a folder; give the path of an ISMRMRD (.h5) scan")
    try:
        return h5py.File(path, "r")
    except BlockingIOError as error:
        raise BadInputError(f"{path} is open for writing in another program; wait for it or close it there") from error
    except PermissionError as error:
        raise BadInputError(f"{path} may not be read by this user; change its permissions") from error
    except OSError as error:
        if path.stat().st_size == 0:
            raise BadInputError(f"{path} is empty; copy the scan again") from error
        if h5py.is_hdf5(path):
            raise BadInputError(
                f"{path} is a truncated or damaged HDF5 file ({first_line(error)}); copy the scan again"
            ) from error
        raise BadInputError(f"{path} is not an HDF5 file; an ISMRMRD (.h5) scan is needed") from error


def _correct_averages(header: Any, heads: np.ndarray) -> None:
    """Headers are wrong about the number of averages; the image lines of a file know it."""
    limits = header.encoding[0].encodingLimits
    image = heads["flags"] & np.uint64(NOISE | IGNORED | CALIBRATION) == 0
    if limits is not None and image.any():
        limits.average = ismrmrd.xsd.limitType(minimum=0, maximum=int(heads["idx"]["average"][image].max()), center=0)


def _grouped(heads: np.ndarray) -> list[np.ndarray]:
    """Indices of the lines of each slice key in the order they were acquired, sorted by key."""
    wanted = np.flatnonzero((heads["flags"] & np.uint64(NOISE | IGNORED)) == 0)
    counters = heads["idx"][wanted]
    fields = ("average", "slice", "repetition", "set", "phase", "contrast")  # the last sorts first
    order = np.lexsort([counters[name] for name in fields])  # stable
    columns = np.stack([counters[name] for name in fields], 1)[order]
    starts = 1 + np.flatnonzero(np.any(columns[1:] != columns[:-1], 1))
    return [group for group in np.split(wanted[order], starts) if len(group)]


def read_header(xml: bytes | str) -> Any:
    """An ISMRMRD XML header as an ismrmrd.xsd object; elements that are missing are None.

    ismrmrd 1.14 accepts headers without elements that the schema requires, 1.15 raises TypeError for them, and
    neither accepts unknown ones: here both read alike. Raises BadInputError for bad XML and for a header without the
    sizes that a reconstruction needs.
    """
    from xsdata.exceptions import ParserError
    from xsdata.formats.dataclass.parsers import XmlParser
    from xsdata.formats.dataclass.parsers.config import ParserConfig

    config = ParserConfig(fail_on_unknown_properties=False, class_factory=_create)
    text = xml.decode("utf-8", "replace") if isinstance(xml, bytes) else str(xml)
    try:
        with warnings.catch_warnings():
            # a malformed value stays text; the ones that are needed are checked below
            warnings.simplefilter("ignore")
            header = XmlParser(config=config).from_string(text.rstrip("\0"), ismrmrd.xsd.ismrmrdHeader)
    except (ParserError, SyntaxError, ValueError, TypeError) as error:
        raise BadInputError(
            f"the scan's XML header cannot be read ({first_line(error)}); an ISMRMRD header is needed"
        ) from error
    _check_numbers(header)
    return header


def _create(kind: type, values: dict[str, Any]) -> Any:
    """A header element with None for what the XML lacks."""
    absent = {
        field.name: None
        for field in dataclasses.fields(kind)
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    }
    return kind(**absent, **values)


def _check_numbers(header: Any) -> None:
    encoding = header.encoding[0] if header.encoding else None
    for space in ("encodedSpace", "reconSpace"):
        for part in ("matrixSize", "fieldOfView_mm"):
            element = getattr(getattr(encoding, space, None), part, None)
            for axis in "xy":
                value = getattr(element, axis, None)
                if not isinstance(value, int | float) or not 0 < value < 1e6:
                    raise BadInputError(
                        f"the scan's header gives {space}.{part}.{axis} as {value}; a positive number is needed"
                    )
            assert element is not None
            # a 2D scan's z is of no use but as slice thickness, and some writers leave it out
            if element.z is None:
                element.z = 1 if part == "matrixSize" else 0.0
            elif not isinstance(element.z, int | float) or not 0 <= element.z < 1e6:
                raise BadInputError(f"the scan's header gives {space}.{part}.z as {element.z}; a number is needed")
    limits = getattr(encoding, "encodingLimits", None)
    for name, value in dataclasses.asdict(limits).items() if limits else ():
        if value is not None and not all(isinstance(number, int) for number in value.values()):
            raise BadInputError(f"the scan's header gives encodingLimits.{name} as {value}; whole numbers are needed")


def contrast_label(header: Any) -> str | None:
    """The contrast label (flair, t1, t2, dwi, swi) that the protocol's or else the sequence's name tells, or None."""
    measurement = header.measurementInformation
    for name in (getattr(measurement, "protocolName", None), getattr(measurement, "sequenceName", None)):
        for pattern, label in CONTRASTS:
            if re.search(pattern, str(name or "").lower()):
                return label
    return None


def check_supported(header: Any) -> None:
    """Raises UnsupportedScanError, in one sentence with the reason, for scans that cannot be reconstructed."""
    encoding = header.encoding[0]
    partitions = encoding.encodedSpace.matrixSize.z or 1
    step_2 = getattr(encoding.encodingLimits, "kspace_encoding_step_2", None)
    if partitions > 1 or (step_2 is not None and step_2.maximum > 0):
        raise UnsupportedScanError(
            f"the scan is 3D ({max(partitions, step_2.maximum + 1 if step_2 else 1)} partitions); only 2D multi-slice "
            "scans are reconstructed"
        )
    trajectory = str(getattr(encoding.trajectory, "value", encoding.trajectory) or "cartesian")
    if trajectory == "epi":
        raise UnsupportedScanError("the scan is EPI (trajectory 'epi'), whose ghost correction is not done here")
    if trajectory != "cartesian":
        raise UnsupportedScanError(f"the scan's trajectory is '{trajectory}'; only Cartesian scans are reconstructed")
    multiband = getattr(encoding.parallelImaging, "multiband", None)
    if multiband is not None and (multiband.multiband_factor or 1) > 1:
        raise UnsupportedScanError(
            f"the scan is multiband (factor {multiband.multiband_factor}); its slices cannot be separated here"
        )


def acceleration(header: Any) -> int | None:
    """The announced acceleration R along the phase encoding; None where none is announced."""
    factor = getattr(header.encoding[0].parallelImaging, "accelerationFactor", None)
    value = getattr(factor, "kspace_encoding_step_1", None)
    return max(1, value) if isinstance(value, int) else None


def calibration_is_separate(header: Any) -> bool:
    """Whether calibration lines are an acquisition of their own and no part of the image."""
    mode = getattr(header.encoding[0].parallelImaging, "calibrationMode", None)
    return getattr(mode, "value", mode) in ("separate", "external")


def encoded_grid(header: Any) -> tuple[int, int]:
    """(rows, cols) of k-space once the readout oversampling is removed: the grid covers the recon FOV along cols.

    Along rows it covers the encoded FOV.
    """
    encoded, recon = header.encoding[0].encodedSpace, header.encoding[0].reconSpace
    cols = min(encoded.matrixSize.x, round(encoded.matrixSize.x * recon.fieldOfView_mm.x / encoded.fieldOfView_mm.x))
    if cols == encoded.matrixSize.x == 2 * recon.matrixSize.x:
        # no scanner throws half of the resolution away: the encoded FOV was written without its oversampling
        cols = recon.matrixSize.x
    return encoded.matrixSize.y, cols


def line_limits(header: Any, space: int = 0) -> Limits:
    """The announced phase-encoding lines of an encoding space; the whole matrix where the header says nothing."""
    rows = header.encoding[space].encodedSpace.matrixSize.y
    limit = getattr(header.encoding[space].encodingLimits, "kspace_encoding_step_1", None)
    if limit is None or limit.maximum <= limit.minimum:
        return Limits(0, rows - 1, rows // 2)
    return Limits(limit.minimum, limit.maximum, limit.center)


def announced_slices(header: Any, *, combine_averages: bool) -> int:
    """Slices that the limits announce, each contrast, phase, set, repetition and average counted."""
    names = ["slice", "contrast", "phase", "set", "repetition", *([] if combine_averages else ["average"])]
    limits = [getattr(header.encoding[0].encodingLimits, name, None) for name in names]
    return math.prod(max(1, limit.maximum - limit.minimum + 1) for limit in limits if limit is not None)
