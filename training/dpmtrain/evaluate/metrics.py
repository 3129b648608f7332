"""What a reconstruction is worth: errors against a truth, calibration of the samples, and paired comparisons.

Images are (rows, cols) magnitudes unless a function says otherwise; `mask` is where they are scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 5000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Moments:
    """Inner products of one slice inside the mask, from which both forms of NRMSE follow without the image:
    of the image with the truth, with itself, and of the truth with itself."""

    cross: float
    image: float
    truth: float

    @classmethod
    def of(cls, image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> "Moments":
        found, wanted = (np.abs(array).astype(np.float64)[mask] for array in (image, truth))
        return cls(float(found @ wanted), float(found @ found), float(wanted @ wanted))

    def nrmse(self, factor: float = 1.0) -> float:
        """|| factor |image| - |truth| || / ||truth||; with factor 1 the paper's form."""
        squared = factor**2 * self.image - 2 * factor * self.cross + self.truth
        return float(np.sqrt(max(squared, 0.0) / max(self.truth, 1e-30)))


def scan_factor(slices: Sequence[Moments]) -> float:
    """The one least-squares factor that takes a scan's images to its truth."""
    return sum(m.cross for m in slices) / max(sum(m.image for m in slices), 1e-30)


def nrmse(found: np.ndarray, truth: np.ndarray) -> float:
    """Over the whole image, with the one least-squares factor that fits best."""
    moments = Moments.of(found, truth, np.ones(truth.shape, bool))
    return moments.nrmse(scan_factor([moments]))


def on_scale(found: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Magnitudes on their truth's scale, by the one factor that fits best, inside the mask where there is one."""
    where = np.ones(truth.shape, bool) if mask is None else mask
    return found * np.float32(scan_factor([Moments.of(found, truth, where)]))


def psnr(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB inside the mask; the peak is the truth's range, max - min. No factor."""
    from skimage.metrics import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(truth[mask], image[mask], data_range=_range(truth)))


def ssim(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Mean structural similarity inside the mask (Wang et al., IEEE TIP 2004; 7x7 windows); range max - min of the
    truth, as in the paper. No factor."""
    from skimage.metrics import structural_similarity

    _, local = structural_similarity(truth, image, data_range=_range(truth), full=True)
    return float(local[mask].mean())


def _range(truth: np.ndarray) -> float:
    return float(truth.max() - truth.min())


def high_band_energy(image: np.ndarray, truth: np.ndarray, head: np.ndarray, axis: int) -> float:
    """Energy of a volume in the upper third of |k| along one axis, inside the head, over the truth's."""

    def energy(volume: np.ndarray) -> float:
        spectrum = np.fft.fft(volume, axis=axis)
        high = np.abs(np.fft.fftfreq(volume.shape[axis])) > 1 / 3
        band = np.fft.ifft(spectrum * np.expand_dims(high, tuple(a for a in range(3) if a != axis)), axis=axis)
        return float(np.square(np.abs(band[head])).sum())

    return energy(image) / energy(truth)


def variance_and_error(
    draws: np.ndarray, image: np.ndarray, truth: np.ndarray, head: np.ndarray
) -> tuple[float, float]:
    """(V, B) of K posterior samples, summed over the head; V/B is 1 where their spread tells the image's error.

    draws: (K, ...), K > 1, complex or magnitudes; image, truth: the same of one; head: bool. V is the variance of the
    samples, with 1/(K-1); B is the squared error of the image, which need not be their mean.
    """
    variance = float((np.abs(draws - draws.mean(0))[:, head].astype(np.float64) ** 2).sum()) / (len(draws) - 1)
    return variance, float((np.abs(image - truth)[head].astype(np.float64) ** 2).sum())


def paired_difference(
    here: Sequence[float], reference: Sequence[float], subjects: Sequence[str] = ()
) -> tuple[float, float, float]:
    """Mean of here - reference over slices, and its 95 % bootstrap interval (percentiles; resampled with one seed).

    subjects: of each slice. Two or more are resampled, with all their slices; else slices are. With fewer than two
    slices there is no interval: low and high are nan.
    """
    gaps = np.asarray(here, float) - np.asarray(reference, float)
    if len(gaps) < 2:
        return float(gaps.mean()), float("nan"), float("nan")
    whose = np.unique(subjects, return_inverse=True)[1] if len(set(subjects)) > 1 else np.arange(len(gaps))
    sums, counts = np.bincount(whose, gaps), np.bincount(whose)
    drawn = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [tail, 100 - tail])
    return float(gaps.mean()), float(low), float(high)
