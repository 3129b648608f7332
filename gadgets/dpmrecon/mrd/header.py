"""The facts of an ISMRMRD (MRD) header: grid, limits, contrast, what is supported."""

import dataclasses
import math
import warnings
from dataclasses import dataclass
from typing import Any, TypeAlias

import ismrmrd

from ..contrasts import label_of
from ..errors import BadInputError, UnsupportedScanError, first_line

Header: TypeAlias = ismrmrd.xsd.ismrmrdHeader


@dataclass(frozen=True)
class Limits:
    """First, last and centre phase-encoding line as announced."""

    minimum: int
    maximum: int
    center: int


def read_header(xml: bytes | str) -> Header:
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


def _check_numbers(header: Header) -> None:
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


def contrast_label(header: Header) -> str | None:
    """The contrast label (flair, t1, t2, dwi, swi) that the protocol's or else the sequence's name tells, or None."""
    measurement = header.measurementInformation
    return label_of(getattr(measurement, "protocolName", None), getattr(measurement, "sequenceName", None))


def check_supported(header: Header) -> None:
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


def acceleration(header: Header) -> int | None:
    """The announced acceleration R along the phase encoding; None where none is announced."""
    factor = getattr(header.encoding[0].parallelImaging, "accelerationFactor", None)
    value = getattr(factor, "kspace_encoding_step_1", None)
    return max(1, value) if isinstance(value, int) else None


def calibration_is_separate(header: Header) -> bool:
    """Whether calibration lines are an acquisition of their own and no part of the image."""
    mode = getattr(header.encoding[0].parallelImaging, "calibrationMode", None)
    return getattr(mode, "value", mode) in ("separate", "external")


def encoded_grid(header: Header) -> tuple[int, int]:
    """(rows, cols) of k-space once the readout oversampling is removed: the grid covers the recon FOV along cols.

    Along rows it covers the encoded FOV.
    """
    encoded, recon = header.encoding[0].encodedSpace, header.encoding[0].reconSpace
    cols = min(encoded.matrixSize.x, round(encoded.matrixSize.x * recon.fieldOfView_mm.x / encoded.fieldOfView_mm.x))
    if cols == encoded.matrixSize.x == 2 * recon.matrixSize.x:
        # no scanner throws half of the resolution away: the encoded FOV was written without its oversampling
        cols = recon.matrixSize.x
    return encoded.matrixSize.y, cols


def line_limits(header: Header, space: int = 0) -> Limits:
    """The announced phase-encoding lines of an encoding space; the whole matrix where the header says nothing."""
    rows = header.encoding[space].encodedSpace.matrixSize.y
    limit = getattr(header.encoding[space].encodingLimits, "kspace_encoding_step_1", None)
    if limit is None or limit.maximum <= limit.minimum:
        return Limits(0, rows - 1, rows // 2)
    return Limits(limit.minimum, limit.maximum, limit.center)


def announced_slices(header: Header, *, combine_averages: bool) -> int:
    """Slices that the limits announce, each contrast, phase, set, repetition and average counted."""
    names = ["slice", "contrast", "phase", "set", "repetition", *([] if combine_averages else ["average"])]
    limits = [getattr(header.encoding[0].encodingLimits, name, None) for name in names]
    return math.prod(max(1, limit.maximum - limit.minimum + 1) for limit in limits if limit is not None)
