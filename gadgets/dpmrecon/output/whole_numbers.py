"""Images in whole numbers, for peers and archives that take no others."""

import math

import ismrmrd
import numpy as np

from .mrd_images import BRIGHT, SPREAD, bright_window, commented, image_of, remarks_of, window

LARGEST = 32767  # of a magnitude: Gadgetron's own tail stops there, and int16 readers too
PHASE_STEPS = 4096  # of a turn, as vendors store phase
MRAD_PER_STEP, FIRST_MRAD = 2000 * math.pi / PHASE_STEPS, -1000 * math.pi


def phase_steps(radians: np.ndarray) -> np.ndarray:
    """Phase as uint16, 0 to PHASE_STEPS - 1: FIRST_MRAD is 0, and a turn further on it is 0 again."""
    return (np.rint((radians / np.pi + 1) * (PHASE_STEPS // 2)) % PHASE_STEPS).astype(np.uint16)


def to_uint16(image: ismrmrd.Image) -> ismrmrd.Image:
    """The same image in whole numbers: a magnitude in its scale, 0 to LARGEST, phase in steps; complex ones stay."""
    pixels, meta = image.data[0], dict(image.meta)
    kind = image.getHead().image_type
    if kind == ismrmrd.IMTYPE_COMPLEX:
        return image
    if kind == ismrmrd.IMTYPE_PHASE:
        meta |= window(PHASE_STEPS // 2, PHASE_STEPS)
        meta |= {"RescaleSlope": f"{MRAD_PER_STEP:.9g}", "RescaleIntercept": f"{FIRST_MRAD:.9g}"}
        meta["GADGETRON_ScaleRatio"] = f"{PHASE_STEPS / (2 * math.pi):.9g}"
        return image_like(image, phase_steps(pixels), meta)
    told = with_saturation(image)
    return image_like(told, np.clip(np.rint(pixels), 0, LARGEST).astype(np.uint16), dict(told.meta))


def with_saturation(image: ismrmrd.Image) -> ismrmrd.Image:
    """The same magnitude with a remark where pixels are above LARGEST, at which whole numbers stop."""
    above, meta = int((np.rint(image.data) > LARGEST).sum()), dict(image.meta)
    if not above:
        return image
    remark = f"{above} pixels are brighter than {LARGEST}, the largest value, and have that value"
    meta["dpmrecon_remarks"] = [*remarks_of(meta), remark]
    for name in ("ImageComments", "GADGETRON_ImageComment"):
        if name in meta:
            meta[name] = commented(str(meta[name]), [remark])
    return image_like(image, image.data[0], meta)


def image_like(image: ismrmrd.Image, pixels: np.ndarray, meta: dict) -> ismrmrd.Image:
    """Other pixels ([partitions,] rows, cols) and meta at the place of an image."""
    return image_of(pixels, ismrmrd.ImageHeader.from_buffer_copy(image.getHead()), meta)


class SpreadScale:
    """Gives the spread of a scan's samples a scale of its own; other images stay as they are.

    In that of the reconstruction its whole numbers would be about ten grey levels. One factor serves the scan: 1, 2 or
    5 times a power of ten, such that the 99th percentile of the first slice's spread has BRIGHT levels or more.
    """

    def __init__(self) -> None:
        self.factor: float | None = None

    def __call__(self, image: ismrmrd.Image) -> ismrmrd.Image:
        if image.getHead().image_series_index != SPREAD:
            return image
        pixels, meta = image.data[0], dict(image.meta)
        self.factor = self.factor or _factor(pixels)
        pixels = pixels * np.float32(self.factor)
        meta |= bright_window(pixels)
        meta["RescaleSlope"] = f"{float(meta['RescaleSlope']) / self.factor:.9g}"
        meta["GADGETRON_ScaleRatio"] = f"{float(meta['GADGETRON_ScaleRatio']) * self.factor:.9g}"
        return image_like(image, pixels, meta)


def _factor(spread: np.ndarray) -> float:
    bright = float(np.percentile(spread, 99) or spread.max())
    if bright <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(BRIGHT / bright))
    return next(step * unit for step in (1, 2, 5, 10) if step * unit * bright >= BRIGHT)
