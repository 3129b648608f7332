"""What a header says that is doubtful, though the scan can be used: for the remarks."""

from .header import ROUNDING, Header, view_pixels

COARSER = 0.9  # share of the pixels that data must fill for full resolution
LEAST_VIEW_MM, LEAST_THICKNESS_MM = 60.0, 0.2  # of a head
LONGEST_TE, LONGEST_TR = 0.5, 30.0  # in milliseconds, below which both are in seconds
LONG = 1.8  # times as long as wide, of pixels whose field of view is that of the oversampling


def doubts(header: Header) -> list[str]:
    """Each in words, with the value to set."""
    return [*_coarser(header), *_units(header), *_long_pixels(header)]


def _coarser(header: Header) -> list[str]:
    """Where images are asked for with less resolution than the data have.

    Along phase encodings of one field of view any pixel less may be oversampling whose field of view was not told: the
    image is squeezed then.
    """
    encoded, recon, pixels = header.encoding[0].encodedSpace, header.encoding[0].reconSpace, view_pixels(header)
    told = []
    for axis, has in zip("yxz", (*pixels[-2:], *pixels[:-2])):
        asked = getattr(recon.matrixSize, axis)
        view, own = (getattr(space.fieldOfView_mm, axis) for space in (encoded, recon))
        alike = axis != "x" and abs(view - own) < ROUNDING * own
        if asked >= (has if alike else COARSER * has):
            continue
        text = (
            f"the header asks for images of {asked} pixels along {axis} where {has} are encoded in their field of "
            "view: they have less resolution than the data"
        )
        if alike:
            path = f"encoding.encodedSpace.fieldOfView_mm.{axis}={view * has / asked:g}"
            text += f"; if it is oversampling, the image is squeezed, give its field of view (--set {path})"
        told.append(text)
    return told


def _units(header: Header) -> list[str]:
    """Lengths that are far too short and times that are for a head."""
    recon, told = header.encoding[0].reconSpace, []
    view, matrix = recon.fieldOfView_mm, recon.matrixSize
    if max(view.x, view.y) < LEAST_VIEW_MM:
        told.append(
            f"the header gives images a field of view of {view.x:g} x {view.y:g} mm, too small for a head: if it is in "
            "centimetres, correct fieldOfView_mm of both spaces (or --set their values)"
        )
    thickness = view.z / max(1, matrix.z)
    if 0 < thickness < LEAST_THICKNESS_MM:
        told.append(
            f"the header gives slices a thickness of {thickness:g} mm: if it is in metres or centimetres, correct "
            "fieldOfView_mm.z of both spaces (or --set their values)"
        )
    lists = [getattr(header.sequenceParameters, name, None) or [] for name in ("TE", "TR")]
    times = [max((value for value in values if isinstance(value, int | float)), default=0.0) for values in lists]
    if 0 < times[0] < LONGEST_TE and times[1] < LONGEST_TR:
        told.append(
            f"the header gives a TE of {times[0]:g} ms and a TR of {times[1]:g} ms, as if they were in seconds: MRD "
            "has milliseconds, correct sequenceParameters (or --set their values)"
        )
    return told


def _long_pixels(header: Header) -> list[str]:
    """Where the images kept the field of view of a readout oversampling that their matrix has not."""
    encoded, recon = header.encoding[0].encodedSpace, header.encoding[0].reconSpace
    view, matrix = recon.fieldOfView_mm, recon.matrixSize
    along, across = view.x / matrix.x, view.y / matrix.y
    kept = abs(view.x - encoded.fieldOfView_mm.x) < ROUNDING * view.x and encoded.matrixSize.x == 2 * matrix.x
    if not kept or along < LONG * across:
        return []
    return [
        f"the header gives pixels {along:.3g} mm along the readout and {across:.3g} mm across it, and images the field "
        "of view of the oversampling: if they are twice as long as they should be, correct reconSpace.fieldOfView_mm.x "
        f"(or --set encoding.reconSpace.fieldOfView_mm.x={view.x / 2:g})"
    ]
