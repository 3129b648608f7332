"""The facts of an ISMRMRD (MRD) header: grid, limits, contrast, what is supported."""

import dataclasses
import math
import re
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, get_args, get_type_hints

import ismrmrd

from ..contrasts import label_of
from ..errors import BadInputError, UnsupportedScanError, first_line

Header: TypeAlias = ismrmrd.xsd.ismrmrdHeader

SMALLEST_VIEW_MM = 5.0  # a smaller field of view is one in metres
GE = r"\bge\b|general electric"  # in a vendor's name
FLAT = 0.25  # of the pixels, below which partitions have the depth of all divided by their number once too often
NAMESPACE = "http://www.ismrm.org/ISMRMRD"
ROUNDING = 1e-3  # that a whole number of a header may be off
WHOLE = 0.05  # of a pixel that a field of view of whole pixels may be off


@dataclass(frozen=True)
class Limits:
    """First, last and centre phase-encoding line, or partition, as announced."""

    minimum: int
    maximum: int
    center: int


def read_header(xml: bytes | str) -> Header:
    """An ISMRMRD XML header as an ismrmrd.xsd object; elements that are missing are None.

    ismrmrd 1.14 accepts headers without elements that the schema requires, 1.15 raises TypeError for them, and neither
    accepts unknown ones: here both read alike. MRD's namespace may be missing, as for readers in C++. Raises
    BadInputError for bad XML and for a header without needed sizes.
    """
    from xsdata.exceptions import ParserError
    from xsdata.formats.dataclass.parsers import XmlParser
    from xsdata.formats.dataclass.parsers.config import ParserConfig

    config = ParserConfig(fail_on_unknown_properties=False, class_factory=_create)
    text = _in_namespace(decoded(xml) if isinstance(xml, bytes) else str(xml))
    try:
        with warnings.catch_warnings():
            # a malformed value stays text; the ones that are needed are checked below
            warnings.simplefilter("ignore")
            parser = XmlParser(config=config, context=xml_context())
            header = parser.from_string(text.rstrip("\0"), ismrmrd.xsd.ismrmrdHeader)
    except (ParserError, SyntaxError, ValueError, TypeError) as error:
        raise BadInputError(
            f"the scan's XML header cannot be read ({first_line(error)}); an ISMRMRD header is needed"
        ) from error
    _check_numbers(header)
    return header


@cache
def xml_context() -> Any:
    """What the XML library knows of the header's classes: found out once, which takes longer than to read a header."""
    from xsdata.formats.dataclass.context import XmlContext

    return XmlContext()


def decoded(xml: bytes) -> str:
    """The text of a header: in the encoding that it declares, else UTF-8, else Latin-1, as some converters write."""
    declared = re.match(rb"""\s*<\?xml[^>]*encoding=["']([\w.-]+)["']""", xml)
    names = [*([declared[1].decode()] if declared else []), "utf-8", "latin-1"]
    for name in names:
        try:
            text = xml.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
        return re.sub(r"^\s*<\?xml.*?\?>", "", text)  # what it declares does not hold for text
    raise AssertionError("Latin-1 decodes all bytes")


def _in_namespace(text: str) -> str:
    """The header's text with MRD's namespace, which some converters leave out or misspell."""
    root = re.search(r"<ismrmrdHeader\b[^>]*>", text)
    if root is None or re.search(f"""xmlns=["']{NAMESPACE}["']""", root[0]):
        return text
    others = re.sub(r"""\sxmlns=["'][^"']*["']""", "", root[0]).removeprefix("<ismrmrdHeader")
    return text.replace(root[0], f'<ismrmrdHeader xmlns="{NAMESPACE}"{others}', 1)


def overridden(xml: bytes, changes: str | None) -> bytes:
    """The header with other values, as `path=value` with semicolons between.

    A path names elements from the root on with dots between them, as in encoding.reconSpace.fieldOfView_mm.x; NAME[1]
    is the second of several. What is missing is added. Raises BadInputError for a path that no header has, and for
    elements nested too deep to be written.
    """
    if not changes:
        return xml
    try:
        root = ElementTree.fromstring(decoded(xml.rstrip(b"\0")))
    except ElementTree.ParseError as error:
        raise BadInputError(f"the scan's XML header cannot be read ({error}); an ISMRMRD header is needed") from error
    namespace = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    for change in changes.split(";"):
        path, separator, value = change.partition("=")
        names = [re.fullmatch(r"(\w+)(?:\[(\d+)\])?", name) for name in path.strip().split(".")]
        if not separator or not all(names):
            raise BadInputError(
                f"header value '{change}' is not usable: give path=value, as in encoding.trajectory=epi"
            )
        kind, element = ismrmrd.xsd.ismrmrdHeader, root
        for name in names:
            assert name is not None
            kind = _field_type(kind, name[1], path)
            found, number = element.findall(namespace + name[1]), int(name[2] or 0)
            while len(found) <= number:
                found.append(ElementTree.SubElement(element, namespace + name[1]))
            element = found[number]
        element.text = value.strip()
    if namespace:
        ElementTree.register_namespace("", namespace.strip("{}"))
    try:
        return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    except RecursionError as error:
        raise BadInputError(
            "the scan's XML header nests its elements too deep for changes of its values; convert the scan again"
        ) from error


def _field_type(kind: Any, name: str, path: str) -> Any:
    """The type of a header's element, so that a misspelt path is noticed."""
    fields = {field.name: field for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    if name not in fields:
        valid = ", ".join(fields) or "none: it holds a value"
        raise BadInputError(f"the header has no '{path.strip()}': valid names in place of '{name}' are {valid}")
    hints = get_type_hints(kind, vars(ismrmrd.xsd.ismrmrdschema.ismrmrd))
    inner = hints[name]
    while args := [arg for arg in get_args(inner) if arg is not type(None)]:
        inner = args[0]
    return inner


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
    for each in header.encoding:
        _numbers_of(each)
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
            # a 2D scan's z is slice thickness alone, and may be left out
            z = element.z
            if z is None:
                element.z = 1 if part == "matrixSize" else 0.0
            elif not isinstance(z, int | float) or not 0 <= z < 1e6:
                raise BadInputError(f"the scan's header gives {space}.{part}.z as {z}; a number is needed")
        view = getattr(encoding, space).fieldOfView_mm
        if max(view.x, view.y) < SMALLEST_VIEW_MM:
            raise BadInputError(
                f"the scan's header gives {space}.fieldOfView_mm as {view.x:g} x {view.y:g}, which is written in "
                "metres: MRD has millimetres, correct the header (or --set its values)"
            )
    limits = getattr(encoding, "encodingLimits", None)
    for field in dataclasses.fields(limits) if limits else ():
        limit = getattr(limits, field.name)
        if limit is None:
            continue
        for name in ("minimum", "maximum", "center"):
            if not isinstance(getattr(limit, name, None), int):
                raise BadInputError(
                    f"the scan's header gives encodingLimits.{field.name} as {dataclasses.asdict(limit)}; whole "
                    "numbers are needed"
                )


def _numbers_of(encoding: Any) -> None:
    """Puts the numbers of an encoding's matrices, fields of view and limits there as such."""
    for space in (encoding.encodedSpace, encoding.reconSpace):
        for part in ("matrixSize", "fieldOfView_mm"):
            for axis in "xyz":
                _number(getattr(space, part, None), axis, whole=part == "matrixSize")
    limits = encoding.encodingLimits
    for field in dataclasses.fields(limits) if limits else ():
        for name in ("minimum", "maximum", "center"):
            _number(getattr(limits, field.name), name, whole=True)


def _number(element: Any, name: str, *, whole: bool) -> Any:
    """A header's number, put there as such: 128.0 is written by some converters where 128 is meant."""
    value = getattr(element, name, None)
    if isinstance(value, str) or (whole and isinstance(value, float)):
        try:
            number = float(value)
        except ValueError:
            return value
        near = round(number) if abs(number) < 1e9 else number
        value = near if whole and abs(number - near) <= ROUNDING else (value if whole else number)
        setattr(element, name, value)
    return value


def contrast_label(header: Header) -> str | None:
    """The contrast label (flair, t1, t2, dwi, swi) that the protocol's or else the sequence's name tells, or None."""
    measurement = header.measurementInformation
    return label_of(getattr(measurement, "protocolName", None), getattr(measurement, "sequenceName", None))


def check_supported(header: Header) -> None:
    """Raises UnsupportedScanError, in one sentence with the reason, for scans that cannot be reconstructed."""
    encoding = header.encoding[0]
    if n_partitions(header) > 1:
        _check_volume(header)
    trajectory = _trajectory(header, 0)
    if trajectory not in ("cartesian", "epi"):
        raise UnsupportedScanError(
            f"the scan's trajectory is '{trajectory}'; only Cartesian scans and EPI are reconstructed"
        )
    if trajectory == "epi" and n_partitions(header) > 1:
        raise UnsupportedScanError(
            f"the scan is 3D EPI ({n_partitions(header)} partitions); EPI is reconstructed slice by slice"
        )
    factor = _number(getattr(encoding.parallelImaging, "multiband", None), "multiband_factor", whole=True)
    if factor not in (None, 0, 1):
        raise UnsupportedScanError(f"the scan is multiband (factor {factor}); its slices cannot be separated here")


def is_epi(header: Header, space: int = 0) -> bool:
    """Whether the lines of an encoding space are echo trains, every other one reversed."""
    return _trajectory(header, space) == "epi"


def _trajectory(header: Header, space: int) -> str:
    trajectory = header.encoding[space].trajectory
    return word(trajectory) or "cartesian"


def word(value: Any) -> str:
    """An element's word; some converters write it with capitals, which no list of the schema has."""
    return str(getattr(value, "value", value) or "").strip().lower()


def _check_volume(header: Header) -> None:
    """What a 3D scan may not have."""
    encoding, partitions = header.encoding[0], n_partitions(header)
    if encoding.encodedSpace.matrixSize.z <= 1:
        raise BadInputError(
            f"the header's limits announce {partitions} partitions and its matrixSize.z is "
            f"{encoding.encodedSpace.matrixSize.z}: correct one of them (or --set its value)"
        )
    for space in ("encodedSpace", "reconSpace"):
        if getattr(encoding, space).fieldOfView_mm.z <= 0 or getattr(encoding, space).matrixSize.z < 1:
            raise BadInputError(
                f"the scan is 3D and its header gives {space} without z: a matrix size and a field of view are needed, "
                "correct the header (or --set its values)"
            )
    if encoding.reconSpace.matrixSize.z == 1:
        raise BadInputError(
            f"the scan is 3D with {partitions} partitions and its header asks for images of one: correct reconSpace "
            "(or --set encoding.reconSpace.matrixSize.z and encoding.reconSpace.fieldOfView_mm.z)"
        )
    slabs = getattr(encoding.encodingLimits, "slice", None)
    if slabs is not None and slabs.maximum > slabs.minimum:
        raise UnsupportedScanError(
            f"the scan is 3D with {slabs.maximum - slabs.minimum + 1} slabs; one is reconstructed: convert each slab "
            f"to a scan of its own (or --set encoding.encodingLimits.slice.maximum={slabs.minimum} if there is one)"
        )
    if calibration_is_interleaved(header):
        raise UnsupportedScanError(
            "the scan is 3D with interleaved calibration (TPAT), which is done for 2D scans alone: acquire it with "
            "calibration lines"
        )
    _check_depth(encoding)


def _check_depth(encoding: Any) -> None:
    """Some converters give the field of view of one partition: the volume would come out flat."""
    changes, told = [], ""
    for space in ("encodedSpace", "reconSpace"):
        view, matrix = getattr(encoding, space).fieldOfView_mm, getattr(encoding, space).matrixSize
        depth, pixel = view.z / matrix.z, min(view.x / matrix.x, view.y / matrix.y)
        if depth < FLAT * pixel:
            changes.append(f"encoding.{space}.fieldOfView_mm.z={matrix.z * view.z:g}")
            told = f"{matrix.z} partitions {view.z:g} mm together, {depth:.2g} mm each where pixels have {pixel:.2g} mm"
    if changes:
        raise BadInputError(
            f"the scan is 3D and its header gives {told}: if that is the thickness of one, give fieldOfView_mm.z of "
            f"all (--set '{';'.join(changes)}')"
        )


def n_partitions(header: Header) -> int:
    """Partitions (kspace_encode_step_2) of a 3D scan; 1 for a 2D scan, also where limits of one partition contradict
    the matrix, as some converters write it."""
    encoding = header.encoding[0]
    limit = getattr(encoding.encodingLimits, "kspace_encoding_step_2", None)
    size = max(1, encoding.encodedSpace.matrixSize.z)
    if limit is None:
        return size
    count = limit.maximum - limit.minimum + 1
    if count <= 1:  # 0 to -1 of no partitions, 1 to 1 of those that are counted from 1
        return 1
    return size if size > 1 else count


def acceleration(header: Header) -> int | None:
    """The announced R along the phase encoding, in 3D of both directions; None where none is announced."""
    factor = getattr(header.encoding[0].parallelImaging, "accelerationFactor", None)
    steps = ["kspace_encoding_step_1", *(["kspace_encoding_step_2"] if n_partitions(header) > 1 else [])]
    values = [_number(factor, step, whole=True) for step in steps]
    if not all(isinstance(value, int) for value in values) or values[0] == 0:
        return None  # 2.7 is a net factor, 0 nobody's: the lines tell R
    return math.prod(max(1, value) for value in values)


def calibration_is_separate(header: Header) -> bool:
    """Whether calibration lines are an acquisition of their own."""
    mode = getattr(header.encoding[0].parallelImaging, "calibrationMode", None)
    return word(mode) in ("separate", "external")


def calibration_is_interleaved(header: Header) -> bool:
    """Whether averages or repetitions bring each other's missing lines (TPAT)."""
    mode = getattr(header.encoding[0].parallelImaging, "calibrationMode", None)
    return word(mode) == "interleaved"


def receiver_channels(header: Header) -> int | None:
    """The number of channels that the header announces."""
    number = getattr(header.acquisitionSystemInformation, "receiverChannels", None)
    return number if isinstance(number, int) else None


def encoded_grid(header: Header) -> tuple[int, int]:
    """(rows, cols) of k-space once the readout oversampling is removed: the grid covers the recon FOV along cols.

    Along rows it covers the encoded FOV.
    """
    encoded, recon = header.encoding[0].encodedSpace, header.encoding[0].reconSpace
    size = _readout(header)
    return encoded.matrixSize.y, min(size, round(size * recon.fieldOfView_mm.x / encoded.fieldOfView_mm.x))


def whole_rows(header: Header) -> int:
    """Rows of the encoded field of view at the pixels of the images."""
    encoded, recon = header.encoding[0].encodedSpace, header.encoding[0].reconSpace
    return round(recon.matrixSize.y * encoded.fieldOfView_mm.y / recon.fieldOfView_mm.y)


def _readout(header: Header) -> int:
    """Pixels of the encoded field of view along the readout."""
    encoded, recon = header.encoding[0].encodedSpace, header.encoding[0].reconSpace
    size = encoded.matrixSize.x
    if size == 2 * recon.matrixSize.x and round(size * recon.fieldOfView_mm.x / encoded.fieldOfView_mm.x) >= size:
        return recon.matrixSize.x  # it was written without its oversampling
    return size


def view_pixels(header: Header) -> tuple[int, ...]:
    """Pixels of the encoded grid, in 3D partitions first, that the images' field of view is of; it may be the larger
    one."""
    encoded, recon = header.encoding[0].encodedSpace, header.encoding[0].reconSpace
    shares = {axis: getattr(recon.fieldOfView_mm, axis) / getattr(encoded.fieldOfView_mm, axis) for axis in "yx"}
    pixels = round(encoded.matrixSize.y * shares["y"]), round(encoded_grid(header)[1] * max(1, shares["x"]))
    if n_partitions(header) == 1:
        return pixels
    return round(encoded.matrixSize.z * recon.fieldOfView_mm.z / encoded.fieldOfView_mm.z), *pixels


def view_mm(header: Header) -> tuple[float, float, float]:
    """The images' field of view along x, y and z: the header's, or that of the whole encoded pixels next to it.

    z of a 2D scan is the header's slice thickness.
    """
    encoded, asked = header.encoding[0].encodedSpace, header.encoding[0].reconSpace.fieldOfView_mm
    view = [asked.x, asked.y, asked.z]
    sizes = _readout(header), encoded.matrixSize.y, encoded.matrixSize.z
    for number, (axis, kept) in enumerate(zip("xyz", reversed(view_pixels(header)))):
        pixel = getattr(encoded.fieldOfView_mm, axis) / sizes[number]
        if abs(kept * pixel - view[number]) > WHOLE * pixel:
            view[number] = kept * pixel
    return view[0], view[1], view[2]


def voxel_mm(header: Header) -> tuple[float, float, float]:
    """Of the encoded grid of a volume: along partitions, rows and columns."""
    encoded = header.encoding[0].encodedSpace
    view, rows = encoded.fieldOfView_mm, encoded.matrixSize.y
    return view.z / encoded.matrixSize.z, view.y / rows, view_mm(header)[0] / view_pixels(header)[-1]


def line_limits(header: Header, space: int = 0) -> Limits:
    """The announced phase-encoding lines of an encoding space; the whole matrix where the header says nothing."""
    return _limits(header, space, "kspace_encoding_step_1", header.encoding[space].encodedSpace.matrixSize.y)


def tells_line_limits(header: Header) -> bool:
    """Whether `line_limits` are the header's own."""
    return _told_limits(header, 0, "kspace_encoding_step_1") is not None


def partition_limits(header: Header, space: int = 0) -> Limits:
    """The announced partitions of an encoding space, as `line_limits`; partition 0 alone of a 2D scan."""
    if n_partitions(header) == 1:
        return Limits(0, 0, 0)
    return _limits(header, space, "kspace_encoding_step_2", header.encoding[space].encodedSpace.matrixSize.z)


def _limits(header: Header, space: int, name: str, size: int) -> Limits:
    return _told_limits(header, space, name) or Limits(0, size - 1, size // 2)


def _told_limits(header: Header, space: int, name: str) -> Limits | None:
    limit = getattr(header.encoding[space].encodingLimits, name, None)
    if limit is None or limit.maximum <= limit.minimum:
        return None
    return Limits(limit.minimum, limit.maximum, limit.center)
