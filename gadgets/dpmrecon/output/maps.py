"""Trace and apparent diffusion coefficient (ADC) from a reconstructed diffusion scan with several b-values.

The images of a slice are put together from images.h5: averages and repetitions of one weighting by their mean
magnitude, the directions of one b-value by their geometric mean (the trace-weighted image). ADC is the slope of
ln S = ln S0 - b ADC, by least squares with the weights S^2 that make the noise of ln S even.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np

from ..errors import BadInputError, UnsupportedScanError
from ..mrd.header import Header
from .images_file import store
from .mrd_images import commented, image_of, remarks_meta, remarks_of

TRACE, ADC = 4, 5  # series index: image_4 and image_5 in images.h5
# counters that slices are kept apart by, and MRD's names for what may carry the weighting
COUNTERS = ("average", "contrast", "phase", "repetition", "set")
# ADC is 0 where the image of the lowest b is below this share of its 99th percentile: a ratio of noise says nothing
AIR = 0.05


@dataclass(frozen=True)
class Weighting:
    """Which counter tells the diffusion weighting, and the b-value in s/mm^2 of each of its values from 0 on."""

    counter: str
    b_values: tuple[float, ...]

    def of(self, head: ismrmrd.ImageHeader) -> float:
        """The b-value of an MRD image. Raises BadInputError where the counter runs past the list."""
        number = int(getattr(head, self.counter))
        if number >= len(self.b_values):
            raise BadInputError(
                f"an image has {self.counter} {number} and b-values are known for 0 to {len(self.b_values) - 1}: "
                f"give one for each, --b-values {self.counter}:B0,B1,..."
            )
        return self.b_values[number]


def weighting_from_text(text: str) -> Weighting:
    """`contrast:0,500,1000` as on the command line. Raises BadInputError."""
    match = re.fullmatch(r"(\w+):([\d.,eE+-]+)", text)
    try:
        values = tuple(float(value) for value in match[2].split(",")) if match else ()
    except ValueError:
        values = ()
    if not match or match[1] not in COUNTERS or not values or not all(0 <= b < np.inf for b in values):
        raise BadInputError(
            f"b-values '{text}' are not usable: give COUNTER:B0,B1,... in s/mm^2, one for each value of the counter, "
            f"which is one of {', '.join(COUNTERS)}"
        )
    return Weighting(match[1], values)


def weighting_of(header: Header, stated: Weighting | None = None) -> Weighting | None:
    """The weighting that the user states, else the header's; None where there are not several b-values.

    Raises BadInputError where an entry of the header has no usable b-value, UnsupportedScanError where its weighting
    is on a counter that slices are not kept apart by.
    """
    if stated is None:
        sequence = header.sequenceParameters
        entries = getattr(sequence, "diffusion", None) or []
        dimension = getattr(sequence, "diffusionDimension", None)
        numbers = [entry.bvalue for entry in entries]
        if not all(isinstance(number, int | float) and 0 <= number < np.inf for number in numbers):
            raise BadInputError(
                f"the header lists diffusion weightings with the b-values {', '.join(map(str, numbers))}, and each "
                "must be a number of s/mm^2: state them, --b-values COUNTER:B0,B1,..."
            )
        values = tuple(float(number) for number in numbers)
        if len(set(values)) < 2:
            return None
        counter = getattr(dimension, "value", dimension)
        if counter not in COUNTERS:
            raise UnsupportedScanError(
                f"the header lists {len(values)} diffusion weightings on the counter '{counter or 'none'}', and images "
                f"are kept apart by {', '.join(COUNTERS)}: say which of them it is, --b-values COUNTER:B0,B1,..."
            )
        stated = Weighting(counter, values)
    return stated if len(set(stated.b_values)) > 1 else None


def adc_map(signals: np.ndarray, b_values: np.ndarray) -> np.ndarray:
    """ADC (rows, cols) float32 in mm^2/s, not negative, from magnitudes (n_b, rows, cols) at b-values (n_b,) s/mm^2."""
    signals = np.asarray(signals, float)
    floor = 1e-6 * max(float(signals.max()), 1e-30)
    logs, weights = np.log(signals.clip(floor)), signals.clip(floor) ** 2
    b = np.asarray(b_values, float)[:, None, None]
    total = weights.sum(0)
    mean_b, mean_log = (weights * b).sum(0) / total, (weights * logs).sum(0) / total
    covariance = (weights * (b - mean_b) * (logs - mean_log)).sum(0)
    spread = (weights * (b - mean_b) ** 2).sum(0)
    # one image alone may hold all the weight: its slope is not known
    adc = np.where(spread > 0, -covariance / np.where(spread > 0, spread, 1), 0)
    lowest = signals[int(np.argmin(b_values))]
    adc[lowest < AIR * np.percentile(lowest, 99)] = 0
    return adc.clip(0).astype(np.float32)


def add_maps(images: Path, weighting: Weighting) -> list[str]:
    """Add trace images (image_4, one for each b above 0) and ADC (image_5) to images.h5.

    Returns a line for each slice that has no map because some of its b-values are missing. Memory holds the images
    of one slice. Raises BadInputError.
    """
    dataset = ismrmrd.Dataset(str(images), "dataset", create_if_needed=False)
    try:
        places: dict[int, dict[int, list[int]]] = {}
        heads = [dataset.read_image("image_1", index).getHead() for index in range(_count(dataset, "image_1"))]
        for index, head in enumerate(heads):
            weighting.of(head)
            number = int(getattr(head, weighting.counter))
            places.setdefault(int(head.slice), {}).setdefault(number, []).append(index)
        wanted = set(weighting.b_values)
        complaints = []
        for slice_number, numbers in sorted(places.items()):
            found = {weighting.b_values[number] for number in numbers}
            if found != wanted:
                missing = ", ".join(f"{b:g}" for b in sorted(wanted - found))
                complaints.append(f"slice {slice_number}: no ADC, b = {missing} s/mm^2 is missing")
                continue
            _add_slice(dataset, weighting, numbers, heads)
        return complaints
    except (OSError, RuntimeError) as error:
        raise BadInputError(f"cannot write to {images} ({error}): make room or choose another --out") from error
    finally:
        dataset.close()


def _count(dataset: ismrmrd.Dataset, name: str) -> int:
    try:
        return dataset.number_of_images(name)
    except LookupError:  # no slice came out
        return 0


def _add_slice(
    dataset: ismrmrd.Dataset, weighting: Weighting, numbers: dict[int, list[int]], heads: list[ismrmrd.ImageHeader]
) -> None:
    directions: dict[float, list[np.ndarray]] = {}
    example: dict[float, ismrmrd.Image] = {}
    fallbacks, trusted = [], True
    remarks: dict[str, None] = {}
    for number, indices in sorted(numbers.items()):
        images = [dataset.read_image("image_1", index) for index in indices]
        fallbacks += [image.meta["dpmrecon_fallback"] for image in images if "dpmrecon_fallback" in image.meta]
        for image in images:
            remarks |= dict.fromkeys(remarks_of(image.meta))
            trusted &= "dpmrecon_trusted" not in image.meta
        b = weighting.b_values[number]
        directions.setdefault(b, []).append(np.mean([image.data[0, 0] for image in images], 0, dtype=float))
        example.setdefault(b, images[0])
    told = remarks_meta(list(remarks), trusted=trusted)
    if fallbacks:
        told["dpmrecon_fallback"] = str(fallbacks[0])
    traces = {b: np.exp(np.mean([np.log(image.clip(1e-30)) for image in found], 0)) for b, found in directions.items()}
    for b in sorted(traces):
        if b > 0:
            text = f"trace b={b:g}"
            image = _derived(example[b], traces[b].astype(np.float32), TRACE, "Trace", text, told)
            store(dataset, image)
    adc = adc_map(np.stack(list(traces.values())), np.array(list(traces)))
    image = _derived(example[min(traces)], adc, ADC, "ADC", "ADC mm2/s", told)
    store(dataset, image)


def _derived(
    source: ismrmrd.Image, pixels: np.ndarray, series: int, role: str, text: str, told: dict[str, Any]
) -> ismrmrd.Image:
    """An image at the place of `source` with its provenance; told: fallback and remarks of all its sources, as meta."""
    head = ismrmrd.ImageHeader.from_buffer_copy(source.getHead())
    head.image_series_index = series
    head.average = head.repetition = 0
    meta = dict(source.meta)
    protocol = str(meta.get("SeriesDescription", "")).split(" ")[0]
    largest = float(np.percentile(pixels, 99.5))
    meta |= {
        "DataRole": role,
        "GADGETRON_DataRole": role,
        "SeriesDescription": f"{protocol} {text.split(' ')[0].upper()} RESEARCH".strip(),
        "GADGETRON_SeqDescription": f"_{role}",
        "ImageType": f"DERIVED\\PRIMARY\\OTHER\\{role.upper()}",
        "ImageProcessingHistory": f"{meta.get('ImageProcessingHistory', 'dpmrecon')} {text}",
        "RescaleSlope": "1",
        "WindowCenter": f"{largest / 2:.6g}",
        "WindowWidth": f"{largest:.6g}",
        "dpmrecon_map": text,
    }
    meta |= told
    for name in ("ImageComments", "GADGETRON_ImageComment"):
        if name in meta:
            meta[name] = commented(str(meta[name]), remarks_of(told))
    return image_of(pixels, head, meta)
