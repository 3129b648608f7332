"""Trace, apparent diffusion coefficient (ADC) and exponential map of scans of several b-values.

Images of one weighting are put together by their mean magnitude; where another counter of DIRECTIONS tells them apart
they are its directions. The directions of one nominal b-value have their geometric mean: the trace-weighted image,
whose ADC is the mean of theirs, at the mean of their b. ADC is the slope of ln S = ln S0 - b ADC, by least squares with
the weights S^2 that make the noise of ln S even. The exponential map is exp(-b ADC) at the largest b: what diffusion
alone leaves of the signal without T2. A voxel that one of the images lacks is 0 in all maps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ismrmrd
import numpy as np

from ..data import LostSlice
from ..errors import BadInputError
from ..mrd.diffusion import COUNTERS
from ..mrd.header import Header, contrast_label
from ..recon.types import Reconstruction
from .mrd_images import RECONSTRUCTION, derived_meta, image_of, remarks_meta, remarks_of, window, with_sources
from .weighting import NONE, Weighted, Weighting, weighting_comment, weighting_of, without_b_values, without_weighting

TRACE, ADC, EXPONENTIAL = 4, 5, 11  # series index: image_4 and so on in images.h5
ADC_SLOPE = 1e-6  # mm^2/s for one unit where ADC is a whole number
EXPONENTIAL_SLOPE = 1e-4  # for one unit where the exponential map is one
ADC_WINDOW = 2.5e-3  # mm^2/s: from 0 to that of half free water, half tissue
# ADC is 0 below this share of the lowest b's 99th percentile
AIR = 0.05
DIRECTIONS = ("contrast", "set", "phase")  # counters of images that are no averages of each other
UNEVEN = 0.05  # of the mean of g g^T, whose diagonal is 1/3


def adc_map(signals: np.ndarray, b_values: np.ndarray) -> np.ndarray:
    """ADC (..., rows, cols) float32 in mm^2/s, not negative, from magnitudes (n_b, ..., rows, cols) at b-values (n_b,)
    s/mm^2."""
    signals = np.asarray(signals, float)
    floor = 1e-6 * max(float(signals.max()), 1e-30)
    logs, weights = np.log(signals.clip(floor)), signals.clip(floor) ** 2
    b = np.asarray(b_values, float).reshape(-1, *[1] * (signals.ndim - 1))
    total = weights.sum(0)
    mean_b, mean_log = (weights * b).sum(0) / total, (weights * logs).sum(0) / total
    covariance = (weights * (b - mean_b) * (logs - mean_log)).sum(0)
    spread = (weights * (b - mean_b) ** 2).sum(0)
    # one image alone may hold all the weight: its slope is not known
    adc = np.where(spread > 0, -covariance / np.where(spread > 0, spread, 1), 0)
    adc[~measured(signals, b_values)] = 0
    return adc.clip(0).astype(np.float32)


def measured(signals: np.ndarray, b_values: np.ndarray) -> np.ndarray:
    """Where there is an ADC, (..., rows, cols) bool: no image is 0 and that of the lowest b is no air."""
    lowest = signals[int(np.argmin(b_values))]
    return (lowest >= AIR * np.percentile(lowest, 99)) & (signals > 0).all(0)


def exponential_map(adc: np.ndarray, b: float, where: np.ndarray) -> np.ndarray:
    """exp(-b ADC) float32 of ADC in mm^2/s and b in s/mm^2, 0 outside `where`."""
    return np.where(where, np.exp(-b * adc), 0).astype(np.float32)


Key = tuple[int, tuple[int, ...]]


@dataclass
class _Slice:
    """What came of a slice. By place of the weighting and the other counters of DIRECTIONS: the sum of its magnitudes
    (partitions, rows, cols) float64; how many they are; header and meta of the first; the first reason for a
    conventional one. remarks: all, each once; trusted: whether all are; came: images, lost ones too."""

    sums: dict[Key, np.ndarray] = field(default_factory=dict)
    counts: dict[Key, int] = field(default_factory=dict)
    firsts: dict[Key, tuple[ismrmrd.ImageHeader, dict[str, Any]]] = field(default_factory=dict)
    fallbacks: dict[Key, str] = field(default_factory=dict)
    remarks: dict[str, None] = field(default_factory=dict)
    trusted: bool = True
    came: int = 0

    def take(self, key: Key, image: ismrmrd.Image) -> None:
        pixels, meta = image.data[0], dict(image.meta)
        self.sums[key] = self.sums[key] + pixels if key in self.sums else pixels.astype(float)
        self.counts[key] = self.counts.get(key, 0) + 1
        self.firsts.setdefault(key, (ismrmrd.ImageHeader.from_buffer_copy(image.getHead()), meta))
        if "dpmrecon_fallback" in meta:
            self.fallbacks.setdefault(key, str(meta["dpmrecon_fallback"]))
        self.remarks |= dict.fromkeys(remarks_of(meta))
        self.trusted = self.trusted and "dpmrecon_trusted" not in meta

    def gap(self, weighting: Weighting) -> str | None:
        """Which b-values lack images, in words."""
        parts, there = [], {number for number, _ in self.sums}
        for b in sorted(set(weighting.nominal)):
            numbers = [number for number, value in enumerate(weighting.nominal) if value == b]
            lost = sum(number not in there for number in numbers)
            if lost:
                what = f"{lost} of {len(numbers)} directions of " if lost < len(numbers) else ""
                parts.append(f"{what}b = {b:g} s/mm^2 {'are' if what and lost > 1 else 'is'} missing")
        return ", ".join(parts) or None

    def on_directions(self, weighting: Weighting) -> list[str]:
        """What to say of them: that another counter tells them apart, that they make no trace."""
        told = []
        if len(self.sums) > len({number for number, _ in self.sums}):
            others = " or ".join(name for name in DIRECTIONS if name != weighting.counter)
            told.append(
                f"images of one weighting differ in {others}: they are taken as directions, trace and ADC are those of "
                "their geometric mean, which is a trace where they are three at right angles"
            )
        if odd := without_trace(weighting):
            told.append(
                f"the directions of b = {', '.join(f'{b:g}' for b in odd)} s/mm^2 do not make a trace: ADC and the "
                "image that is named trace are those of these directions"
            )
        return told

    def maps(self, weighting: Weighting) -> list[ismrmrd.Image]:
        """Trace images, one for each nominal b above 0, ADC and exponential map."""
        keys: dict[float, list[Key]] = {}
        for key in sorted(self.sums):
            keys.setdefault(weighting.nominal[key[0]], []).append(key)
        traces = {
            b: trace_of(np.stack([self.sums[key] / self.counts[key] for key in found])) for b, found in keys.items()
        }
        signals = np.stack(list(traces.values()))
        # of a geometric mean, whose nominal b is rounded
        b_values = np.array([np.mean([weighting.b_values[number] for number, _ in found]) for found in keys.values()])
        lowest, highest = min(traces), max(traces)
        adc, where = adc_map(signals, b_values), measured(signals, b_values)
        remarks = [*self.remarks, *self.on_directions(weighting)]
        lacking = int(((traces[lowest] >= AIR * np.percentile(traces[lowest], 99)) & ~where).sum())
        if lacking:
            remarks.append(
                f"{lacking} voxels lack a direction or b-value: they are 0 in trace, ADC and exponential map"
            )
        odd = without_trace(weighting)
        told = remarks_meta(remarks, trusted=self.trusted)
        if self.fallbacks:
            told["dpmrecon_fallback"] = self.fallbacks[min(self.fallbacks)]

        def derived(
            b: float, pixels: np.ndarray, series: int, role: str, text: str, weighted: Weighted | None = None
        ) -> ismrmrd.Image:
            source, meta = self.firsts[keys[b][0]]
            return _derived(
                source, meta, pixels.astype(np.float32), series, role, text, weighted, weighting.counter, told
            )

        images = [
            derived(b, traces[b], TRACE, "Trace", f"trace b={b:g}", Weighted(b, None if b in odd else NONE))
            for b in sorted(traces)
            if b > 0
        ]
        images.append(derived(lowest, adc, ADC, "ADC", "ADC mm2/s"))
        exponential = exponential_map(adc, highest, where)
        return [*images, derived(lowest, exponential, EXPONENTIAL, "Exponential", f"eADC b={highest:g}")]


def trace_of(directions: np.ndarray) -> np.ndarray:
    """The geometric mean (..., rows, cols) of magnitudes (directions, ..., rows, cols); 0 where one of them is."""
    with np.errstate(divide="ignore"):
        return np.exp(np.log(directions).mean(0))


def makes_trace(directions: list[tuple[float, float, float] | None]) -> bool:
    """Whether the mean over these unit vectors is the same for any tensor of a given trace, to UNEVEN: sum g g^T is
    isotropic. Trace-weighted images (direction 0) count as such where they are alone; what is not known is believed."""
    if any(direction is None for direction in directions):
        return True
    vectors = np.array(directions, float)
    if not vectors.any():
        return True
    return bool(vectors.any(1).all() and np.abs(vectors.T @ vectors / len(vectors) - np.eye(3) / 3).max() <= UNEVEN)


def without_trace(weighting: Weighting) -> list[float]:
    """The nominal b-values above 0 whose directions make none."""
    return [b for b in sorted(set(weighting.nominal)) if b > 0 and not makes_trace(weighting.directions_of(b))]


class Maps:
    """A writer that makes trace, ADC and exponential map of the images that pass, and hands them to `put` when the scan
    is done.

    stated: the user's b-values, None for the header's. note: gets a line for each slice without maps, or why none has.
    weighting: None where it is not known. last: the largest value of a counter, where lines are known. Memory holds
    what `_Slice` says of the slices that are not complete, and the maps of the others.
    """

    def __init__(
        self,
        header: Header,
        stated: Weighting | None,
        put: Callable[[ismrmrd.Image], None],
        note: Callable[[str], None],
        *,
        combine_averages: bool = False,
        last: Callable[[str], int] = lambda counter: 0,
    ):
        self.put, self.note = put, note
        self.weighting: Weighting | None = None
        self.open: dict[int, _Slice] = {}
        self.done: dict[int, list[ismrmrd.Image] | str] = {}  # maps, or why there are none
        self.lacks_magnitudes = False
        self.said: set[str] = set()
        try:
            self.weighting = weighting_of(header, stated)
            if self.weighting is None and contrast_label(header) == "dwi":
                self.note(f"no diffusion maps: {without_b_values(header)}")
            if stated is None and self.weighting is not None:
                _check_reach(self.weighting, last(self.weighting.counter))
        except BadInputError as error:
            self._give_up(error)
        if combine_averages and self.weighting is not None and self.weighting.counter == "average":
            raise BadInputError(
                "the averages are to be combined, and the counter average tells the b-values: leave --combine-averages "
                "out"
            )
        self.announced = self.weighting and _images_a_slice(header, self.weighting, combine_averages)

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None:
        weighting, number = self.weighting, item.key.slice
        if weighting is None or not weighting.has_several:
            return
        try:
            if images:
                weighting.of(item.key)
        except BadInputError as error:
            self._give_up(error)
            return
        magnitudes = [image for image in images if image.image_series_index == RECONSTRUCTION]
        self.lacks_magnitudes = self.lacks_magnitudes or bool(images and not magnitudes)
        images = magnitudes
        if number in self.done:
            if images:
                self.done[number] = "more images came than the header's limits announce"
            return
        found = self.open.setdefault(number, _Slice())
        found.came += 1
        if images:
            others = tuple(getattr(item.key, name) for name in DIRECTIONS if name != weighting.counter)
            found.take((weighting.number(item.key), others), images[0])
        if found.came == self.announced:
            self._finish(number, weighting)

    def close(self, failure: BaseException | None) -> None:
        if failure is not None or self.weighting is None:
            return
        if self.lacks_magnitudes:
            self.note("no diffusion maps: there are no magnitude images")
        for number in list(self.open):
            self._finish(number, self.weighting)
        try:
            for number, maps in sorted(self.done.items()):
                if isinstance(maps, str):
                    self.note(f"slice {number}: no diffusion maps, {maps}")
                    continue
                for image in maps:
                    self.put(image)
        except BadInputError as error:
            self._give_up(error)

    def _finish(self, number: int, weighting: Weighting) -> None:
        found = self.open.pop(number)
        if not found.sums:  # all of it is missing, which is said elsewhere
            return
        gap = found.gap(weighting)
        self.done[number] = gap or found.maps(weighting)
        for told in [] if gap else found.on_directions(weighting):
            if told not in self.said:
                self.note(f"diffusion maps: {told}")
                self.said.add(told)

    def _give_up(self, error: BadInputError) -> None:
        self.note(f"no diffusion maps: {error}")
        self.weighting = None
        self.open.clear()
        self.done.clear()


def _check_reach(weighting: Weighting, last: int) -> None:
    """Raises BadInputError where images run past the header's list, so that nobody knows which of them it is of."""
    if last - weighting.first >= len(weighting.weighted):
        raise BadInputError(
            f"images have {weighting.counter} {last} and the header lists b-values of {weighting.values}, so no image "
            f"gets one: state those of all images from {weighting.counter} 0 on, --b-values "
            f"{weighting.counter}:B0,B1,..."
        )


def _images_a_slice(header: Header, weighting: Weighting, combine_averages: bool) -> int | None:
    """How many images a slice has by the header's limits; None where they do not tell."""
    count = len(weighting.b_values)
    for name in COUNTERS:
        limit = getattr(header.encoding[0].encodingLimits, name, None)
        if name == weighting.counter or (combine_averages and name == "average"):
            continue
        if limit is None:
            return None
        count *= max(1, limit.maximum - limit.minimum + 1)
    return count


def _derived(
    source: ismrmrd.ImageHeader,
    meta: dict[str, Any],
    pixels: np.ndarray,
    series: int,
    role: str,
    text: str,
    weighted: Weighted | None,
    counter: str,
    told: dict[str, Any],
) -> ismrmrd.Image:
    """An image at the place of the one with header `source`, with its provenance.

    meta: of that one; weighted: None of what is of no weighting; counter: that tells weightings apart; told: fallback
    and remarks of all its sources, as meta.
    """
    head = ismrmrd.ImageHeader.from_buffer_copy(source)
    head.image_series_index = series
    for name in {"average", "repetition"} - {counter}:  # all of them are in it
        setattr(head, name, 0)
    largest = float(np.percentile(pixels, 99.5))
    title = text.split(" ")[0].upper()
    meta = {
        **derived_meta(without_weighting(meta), role, title, f"DERIVED\\PRIMARY\\OTHER\\{role.upper()}", text),
        "RescaleSlope": "1",
        **window(f"{largest / 2:.6g}", f"{largest:.6g}"),
    }
    if weighted is not None:
        meta |= weighted.meta
        for name in ("ImageComments", "GADGETRON_ImageComment"):
            meta[name] = f"{meta.get(name, '')}{weighting_comment(meta)}"
    return image_of(pixels, head, with_sources(meta, told))


def in_whole_numbers(image: ismrmrd.Image) -> ismrmrd.Image:
    """A map for peers who round to whole numbers; its meta tells units: ADC_SLOPE, EXPONENTIAL_SLOPE; trace as it
    is."""
    scales = {ADC: (ADC_SLOPE, ADC_WINDOW, " mm2/s"), EXPONENTIAL: (EXPONENTIAL_SLOPE, 1.0, "")}
    if image.image_series_index not in scales:
        return image
    slope, width, unit = scales[image.image_series_index]
    wide = round(width / slope)
    meta = {
        **image.meta,
        **window(wide // 2, wide),
        "RescaleSlope": f"{slope:g}",
        "GADGETRON_ScaleRatio": f"{1 / slope:.9g}",
        "dpmrecon_map": f"{image.meta['dpmrecon_map'].removesuffix(' mm2/s')} {slope:g}{unit}",
    }
    return image_of(image.data[0] / np.float32(slope), image.getHead(), meta)
