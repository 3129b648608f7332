"""Susceptibility-weighted images (SWI): filtered phase, SWI and minimum-intensity projection beside the magnitude.

After Haacke et al., Magnetic Resonance in Medicine 52:612, 2004: the complex image is divided by its low-pass; the
phase that is left weights the magnitude. So veins and iron get darker. Each echo has its own images.
"""

import re
from collections.abc import Callable
from typing import Any

import ismrmrd
import numpy as np
import torch

from ..data import LostSlice
from ..errors import BadInputError
from ..mrd.geometry import plane_of_mrd, slice_spacing
from ..mrd.header import GE, Header, view_pixels
from ..mrd.receiving import vendor_of
from ..physics.fourier import to_image, to_kspace
from ..recon.provenance import Provenance
from ..recon.types import Reconstruction
from .mrd_images import (
    COUNTERS,
    RECONSTRUCTION,
    THICKNESS,
    bright_window,
    derived_meta,
    image_of,
    radians_meta,
    remarks_meta,
    remarks_of,
    to_recon_space,
    with_sources,
)

CONTRAST = "swi"  # the label whose scans get these series
FILTERED_PHASE, SWI, MINIP = 8, 9, 10  # series index: image_8 and so on in images.h5
LOW_PASS = 64 / 256  # of the acquired matrix: width of the Hann window
VEIN_PHASE = "dpmrecon_vein_phase"  # in the images' meta: its sign, and how that was chosen
POWER = 4  # of the phase mask
SLAB_MM = 16.0  # that a projection is thick, about: 8 partitions of 2 mm

# Sign of the phase of veins along the field in vendors' own images: with the field it rises, for GE it falls (MEDI's
# Read_DICOM conjugates Philips and not GE; ukat issue 33 has GE against Siemens). Ours have the same sign where k-space
# is taken as it stands, and the other one where it is conjugated. No raw file with its SWI was seen.
VEINS = (
    ("Siemens", r"siemens", 1),
    ("Philips", r"philips", 1),
    ("GE", GE, -1),
    ("simulate", r"simulated", -1),
)
SIGNS = {"positive": 1, "negative": -1}


def filtered_phase(image: torch.Tensor, widths: tuple[int, int]) -> torch.Tensor:
    """Phase in radians (..., rows, cols) float32 of an image over its in-plane low-pass.

    widths: of the Hann window about the k-space centre, rows and columns. The phase of nothing is 0.
    """
    rows, cols = (_hann(size, width, image.device) for size, width in zip(image.shape[-2:], widths))
    low = to_image(to_kspace(image) * rows[:, None] * cols)
    quotient = image * low.conj()  # but for its modulus
    return torch.where(quotient == 0, 0, quotient.angle())


def _hann(size: int, width: int, device: torch.device) -> torch.Tensor:
    place = torch.arange(size, device=device) - size // 2
    return torch.cos(torch.pi * place / width).square() * (place.abs() < width / 2)


def phase_mask(phase: np.ndarray, veins: int) -> np.ndarray:
    """1 where the phase (radians) has not the sign `veins`, 1 or -1, falling linearly to 0 at a half turn of it."""
    return np.clip(1 - veins * phase / np.float32(np.pi), 0, 1)


def weighted(magnitude: np.ndarray, phase: np.ndarray, veins: int) -> np.ndarray:
    """SWI from magnitude and filtered phase of equal shape."""
    return magnitude * phase_mask(phase, veins) ** POWER


def minimum_projection(stack: np.ndarray, count: int) -> np.ndarray:
    """The lowest of `count` neighbours along the first axis, sliding: (n, ...) to (n - count + 1, ...)."""
    return np.lib.stride_tricks.sliding_window_view(stack, count, axis=0).min(-1)


def slab_count(spacing_mm: float, available: int) -> int:
    """How many slices of this distance a projection takes, of those that there are: about SLAB_MM, two at least."""
    return min(available, max(2, round(SLAB_MM / spacing_mm)))


def sign_of_veins(asked: str, header: Header, *, conjugated: bool) -> tuple[int, str, str | None]:
    """1 or -1, how it was chosen, and a remark where that is doubtful.

    asked: positive, negative, or auto for the vendor's; conjugated: whether k-space was.
    """
    if asked in SIGNS:
        return SIGNS[asked], f"veins {asked}, as asked", None
    vendor = vendor_of(header)
    for name, pattern, sign in VEINS:
        if re.search(pattern, vendor, re.IGNORECASE):
            sign = -sign if conjugated else sign
            return sign, f"veins {_word(sign)}, by the vendor {name}", None
    remark = "the vendor is not known: SWI takes the phase of veins as negative, --vein-phase positive is the other"
    return -1, "veins negative, vendor not known", remark


def _word(sign: int) -> str:
    return next(word for word, value in SIGNS.items() if value == sign)


class SwiSeries:
    """A writer that makes filtered phase, SWI and minimum-intensity projection of a SWI scan, and hands them to `put`.

    Phase and SWI follow each slice or volume, and a volume's projection does; that of slices follows at the scan's end,
    until which memory holds their SWI. asked: see `sign_of_veins`; note: gets a line where something is missing.
    """

    def __init__(
        self,
        header: Header,
        provenance: Provenance,
        asked: str,
        put: Callable[[ismrmrd.Image], None],
        note: Callable[[str], None],
    ):
        self.header, self.put, self.note = header, put, note
        self.wanted = provenance.contrast == CONTRAST
        self.stacks: dict[tuple[int, ...], list[ismrmrd.Image]] = {}  # of 2D scans, by counters
        self.lacks_magnitudes = False
        self.widths = _widths(header)
        self.veins, self.chosen, remark = sign_of_veins(asked, header, conjugated=provenance.conjugated)
        if self.wanted and remark is not None:
            note(remark)

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None:
        if not self.wanted or isinstance(item, LostSlice):
            return
        magnitude = next((image for image in images if image.image_series_index == RECONSTRUCTION), None)
        if magnitude is None:
            self.lacks_magnitudes = True
            return
        whole = to_recon_space(item.image * item.mapped.phase, self.header)
        phase = filtered_phase(whole, self.widths).cpu().numpy()
        pixels = weighted(magnitude.data[0], phase.reshape(magnitude.data[0].shape), self.veins)
        swi = self._image(magnitude, pixels, SWI, "SWI", "SWI", "M\\SWI")
        try:
            self.put(self._image(magnitude, phase, FILTERED_PHASE, "FilteredPhase", "PHASE HP", "P\\SWI"))
            self.put(swi)
            if len(pixels) > 1:
                self.put(self._of_volume(swi))
            else:
                counters = tuple(int(getattr(item.key, name)) for name in COUNTERS)
                self.stacks.setdefault(counters, []).append(swi)
        except BadInputError as error:
            self._give_up(error)

    def close(self, failure: BaseException | None) -> None:
        if failure is not None or not self.wanted:
            return
        if self.lacks_magnitudes:
            self.note("no SWI: there are no magnitude images")
        try:
            for _, stack in sorted(self.stacks.items()):
                for image in self._of_slices(stack):
                    self.put(image)
        except BadInputError as error:
            self._give_up(error)

    def _give_up(self, error: BadInputError) -> None:
        self.note(f"no more SWI: {error}")
        self.wanted = False
        self.stacks.clear()

    def _image(
        self, source: ismrmrd.Image, pixels: np.ndarray, series: int, role: str, title: str, kind: str
    ) -> ismrmrd.Image:
        """An image at the place of `source`. title: in the series' description; kind: in ImageType."""
        meta = derived_meta(source.meta, role, title, f"DERIVED\\PRIMARY\\{kind}", f"{title} ({self.chosen})")
        meta[VEIN_PHASE] = self.chosen
        meta |= radians_meta() if series == FILTERED_PHASE else bright_window(pixels)
        head = ismrmrd.ImageHeader.from_buffer_copy(source.getHead())
        head.image_series_index = series
        head.image_type = ismrmrd.IMTYPE_PHASE if series == FILTERED_PHASE else ismrmrd.IMTYPE_MAGNITUDE
        return image_of(np.asarray(pixels, np.float32), head, meta)

    def _projection(self, source: ismrmrd.Image, pixels: np.ndarray, count: int, thickness: float) -> ismrmrd.Image:
        image = self._image(source, pixels, MINIP, "MinIP", f"MINIP {count} SLICES", "MNIP\\SWI")
        image.attribute_string = ismrmrd.Meta({**image.meta, THICKNESS: f"{thickness:.6g}"}).serialize()
        return image

    def _of_volume(self, swi: ismrmrd.Image) -> ismrmrd.Image:
        """The projection of a volume: its partitions have the volume's distance, and overlap."""
        before, head = len(swi.data[0]), swi.getHead()
        spacing = head.field_of_view[2] / before
        count = slab_count(spacing, before)
        pixels = minimum_projection(swi.data[0], count)
        image = self._projection(swi, pixels, count, count * spacing)
        # partition N//2 is at `position`: of the slabs, the one whose middle lies there
        shift = (len(pixels) // 2 + (count - 1) / 2 - before // 2) * spacing
        return _moved(image, np.array(head.position) + shift * np.array(head.slice_dir), len(pixels) * spacing)

    def _of_slices(self, stack: list[ismrmrd.Image]) -> list[ismrmrd.Image]:
        """The projections of the slices of one setting of the counters, along their normal."""
        if len(stack) < 2:
            self.note("no minimum-intensity projection: there is one slice")
            return []
        planes = [plane_of_mrd(image.getHead(), image.data.shape[-2:]) for image in stack]
        spacing = slice_spacing(planes)
        if spacing is None or len({image.data.shape for image in stack}) > 1:
            self.note(f"no minimum-intensity projection: the {len(stack)} slices do not lie evenly in one stack")
            return []
        order = np.argsort([plane.first @ planes[0].normal for plane in planes], kind="stable")
        slices = [stack[index] for index in order]
        count = slab_count(spacing, len(slices))
        pixels = minimum_projection(np.stack([image.data[0] for image in slices]), count)
        images = []
        for number, lowest in enumerate(pixels):
            part = slices[number : number + count]
            thickness = (count - 1) * spacing + part[0].getHead().field_of_view[2]
            image = self._projection(part[0], lowest, count, thickness)
            image.attribute_string = ismrmrd.Meta(with_sources(image.meta, _told(part))).serialize()
            middle = np.mean([image.getHead().position[:] for image in part], 0)
            images.append(_moved(image, middle, thickness))
        return images


def _widths(header: Header) -> tuple[int, int]:
    """Of the Hann window: a share of the acquired matrix, however it is zero-filled."""
    rows, cols = view_pixels(header)[-2:]
    return max(2, round(LOW_PASS * rows)), max(2, round(LOW_PASS * cols))


def _moved(image: ismrmrd.Image, position: np.ndarray, depth_mm: float) -> ismrmrd.Image:
    """The image at another place and field of view along its normal."""
    head = image.getHead()
    head.position[:] = position
    head.field_of_view[2] = depth_mm
    image.setHead(head)
    view = [float(value) for value in head.field_of_view]
    values = {"PatientPosition": position, "recon_FOV": view, "recon_matrix": image.data.shape[:0:-1]}
    told = {name: [f"{value:.6g}" for value in found] for name, found in values.items()}
    image.attribute_string = ismrmrd.Meta({**image.meta, **told}).serialize()
    return image


def _told(images: list[ismrmrd.Image]) -> dict[str, Any]:
    """Fallback, remarks and distrust of all of them, as meta."""
    metas = [image.meta for image in images]
    remarks = list(dict.fromkeys(remark for meta in metas for remark in remarks_of(meta)))
    told = remarks_meta(remarks, trusted=not any("dpmrecon_trusted" in meta for meta in metas))
    fallbacks = [str(meta["dpmrecon_fallback"]) for meta in metas if "dpmrecon_fallback" in meta]
    return {**told, "dpmrecon_fallback": fallbacks[0]} if fallbacks else told
