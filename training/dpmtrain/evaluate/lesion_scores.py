"""What a reconstruction keeps of small lesions: painted lesions, their contrast, an observer, invented ones, bands.

Images are (rows, cols) magnitudes on the truth's scale; sizes are in pixels unless a name says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

FINER = 5  # points of a pixel along either axis
RING = (2.0, 4.0)  # from a lesion's rim: where its surroundings lie
TISSUE = 0.25  # of the scale: where lesions lie, and are invented
SEARCHED = 1.5  # radius of the disc with which invented lesions are looked for
BANDS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of max(|kx|, |ky|) over Nyquist


@dataclass(frozen=True)
class Lesion:
    """A disc; height: what it adds to the tissue's signal, as a share of that; negative where it is dark."""

    row: float
    col: float
    radius: float
    height: float

    def fraction(self, shape: tuple[int, ...]) -> np.ndarray:
        """(rows, cols): how much of each pixel it covers, 0 to 1."""
        return _covered(self.row, self.col, self.radius, shape)[0]

    def ring(self, shape: tuple[int, ...]) -> np.ndarray:
        """(rows, cols) bool: its surroundings."""
        return _covered(self.row, self.col, self.radius, shape)[1]


@lru_cache(maxsize=64)  # every method and draw asks for the same lesions
def _covered(row: float, col: float, radius: float, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """`fraction` and `ring` of a lesion."""

    def distance(finer: int) -> np.ndarray:
        down, along = ((np.arange(size * finer) + 0.5) / finer - 0.5 for size in shape)
        return np.hypot(down[:, None] - row, along - col)

    inside, beyond = distance(FINER) <= radius, distance(1) - radius
    rows, cols = shape
    fraction = inside.reshape(rows, FINER, cols, FINER).mean((1, 3), dtype=np.float32)
    return fraction, (beyond >= RING[0]) & (beyond <= RING[1])


def painted(tissue: np.ndarray, lesions: Sequence[Lesion]) -> np.ndarray:
    """The image with lesions."""
    change = sum((lesion.height * lesion.fraction(tissue.shape) for lesion in lesions), np.zeros_like(tissue))
    return np.asarray(tissue * (1 + change), np.float32)


def places(tissue: np.ndarray, count: int, largest: float) -> np.ndarray:
    """(count or fewer, 2) rows and columns for lesions of radius `largest` at most, the evenest surroundings first.

    The surroundings of none touch another's lesion.
    """
    reach = int(np.ceil(largest + RING[1]))
    window = 2 * reach + 1
    mean = ndimage.uniform_filter(tissue, window)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(tissue**2, window) - mean**2, 0)) / np.maximum(mean, 1e-6)
    inside = ndimage.binary_erosion(tissue > TISSUE, iterations=int(largest))
    candidates = np.argwhere(inside)
    found: list[np.ndarray] = []
    for place in candidates[np.argsort(spread[inside], kind="stable")]:
        if len(found) == count:
            break
        if all(np.hypot(*(place - other)) > 2 * largest + RING[1] for other in found):
            found.append(place)
    return np.array(found).reshape(-1, 2)


def contrast(image: np.ndarray, lesion: Lesion) -> float:
    """Mean of the lesion's pixels, weighted by cover, less the ring's median."""
    fraction = lesion.fraction(image.shape)
    return float((image * fraction).sum() / fraction.sum() - np.median(image[lesion.ring(image.shape)]))


def observed(image: np.ndarray, tissue: np.ndarray, lesion: Lesion) -> float:
    """What a matched filter makes of the image: such a lesion's height in what differs from the known tissue; 0 where
    the image is the tissue, the whole height where all is there."""
    signal = tissue * lesion.fraction(image.shape)
    signal = signal - lesion.ring(image.shape) * signal.sum() / max(lesion.ring(image.shape).sum(), 1)
    return float(((image - tissue) * signal).sum() / (signal * tissue * lesion.fraction(image.shape)).sum())


def lesion_scores(
    images: tuple[np.ndarray, np.ndarray], truths: tuple[np.ndarray, np.ndarray], lesions: Sequence[Lesion]
) -> list[dict[str, float]]:
    """Of each lesion: the contrast kept, over the truth's, and what the observer sees with it and without, over what
    is there.

    images, truths: the pair with all lesions and without any. The contrast is that of what the lesions change: anatomy
    and noise, equal in both, would hide a small lesion.
    """
    return [
        {
            "contrast": contrast(images[0] - images[1], lesion) / contrast(truths[0] - truths[1], lesion),
            "present": observed(images[0], truths[1], lesion) / lesion.height,
            "absent": observed(images[1], truths[1], lesion) / lesion.height,
        }
        for lesion in lesions
    ]


def order(present: Sequence[float], absent: Sequence[float]) -> np.ndarray:
    """(present, absent): 1 where the observer's score with the lesion is higher, 0.5 where equal, else 0.

    Its mean is the AUC: the share of pairs in the right order (Mann and Whitney).
    """
    return (np.sign(np.subtract.outer(np.asarray(present), np.asarray(absent))) + 1) / 2


def auc(present: Sequence[float], absent: Sequence[float]) -> float:
    """Area under an observer's ROC curve."""
    return float(order(present, absent).mean())


def half_interval(order: np.ndarray) -> float:
    """Half the 95 % interval of the mean of an `order`, or of the difference of two, whose n-th row and column are of
    one draw (DeLong et al., Biometrics 1988). It is 0, and says nothing, where all pairs are in the right order."""
    return float(1.96 * (order.mean(0) + order.mean(1)).std(ddof=1) / len(order) ** 0.5)


def invented(image: np.ndarray, truth: np.ndarray, height: float) -> int:
    """Lesions of at least this height, bright or dark, that the truth lacks.

    Local maxima and minima within 3 x 3 of the error, where the truth is tissue. They are seen by the matched filter of
    a disc of SEARCHED pixels' radius; as a share of the truth's signal there.
    """
    reach = int(np.ceil(SEARCHED + RING[1]))
    shape = (2 * reach + 1,) * 2
    disc = Lesion(reach, reach, SEARCHED, 1.0)
    fraction, ring = disc.fraction(shape), disc.ring(shape)
    seen = ndimage.correlate(image - truth, fraction - ring * fraction.sum() / ring.sum())
    seen = np.abs(seen / np.square(fraction).sum())
    peak = seen == ndimage.maximum_filter(seen, 3)
    return int((peak & (truth > TISSUE) & (seen >= height * truth)).sum())


def bands(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(bands, 3): of each band of k-space Re <r, t>, <t, t> and <r - t, r - t>, r being the image and t the truth."""
    spectra = [np.fft.fft2(array.astype(np.float64), norm="ortho") for array in (image, truth)]
    down, along = (np.abs(np.fft.fftfreq(size)) * 2 for size in truth.shape)
    band = np.clip(np.digitize(np.maximum(down[:, None], along), BANDS) - 1, 0, len(BANDS) - 2)
    r, t = spectra
    sums = ((r * t.conj()).real, np.square(np.abs(t)), np.square(np.abs(r - t)))
    return np.stack([ndimage.sum(part, band, range(len(BANDS) - 1)) for part in sums], -1)


def gain_and_nrmse(sums: np.ndarray) -> list[tuple[float, float]]:
    """Coherent gain and NRMSE of each band, from summed `bands`."""
    return [(float(cross / truth), float(np.sqrt(error / truth))) for cross, truth, error in sums]
