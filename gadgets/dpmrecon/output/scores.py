"""How far images are from a truth: NRMSE with one least-squares factor a scan.

A volume is scored whole, as a slice of a 2D scan is.
"""

from pathlib import Path

import ismrmrd
import numpy as np

from ..data import LostSlice, SliceKey
from ..errors import BadInputError
from ..mrd.header import Header
from ..recon.types import Reconstruction
from .mrd_images import recon_shape, to_recon_space
from .report import Report
from .weighting import Weighting

METHODS = ("zero-filled", "CG-SENSE", "DPM")


def pictures_of(item: Reconstruction, header: Header) -> dict[str, np.ndarray]:
    """Magnitudes ([partitions,] rows, cols) on the recon space, by METHODS."""
    combined = item.mapped.model.combined
    images = (combined(item.mapped.zero_filled), combined(item.mapped.conventional), item.image)
    return {name: to_recon_space(image, header).abs().cpu().numpy() for name, image in zip(METHODS, images)}


def is_first(key: SliceKey, weighting: Weighting | None) -> bool:
    """Whether an image is of the first echo or b-value, which a truth is of."""
    return key.contrast == 0 and (weighting is None or weighting.number(key) == 0)


class Truth:
    """What a scan's images should be. truth, mask: .npy files (slices, rows, cols) of the recon space; one slice may
    be (rows, cols), a volume is (partitions, rows, cols), and a mask of one slice serves all; first: the number of the
    scan's first slice, which theirs are of; weighting: the scan's, where it is known. Raises BadInputError for files
    that do not fit the scan."""

    weighting: Weighting | None = None

    def __init__(self, truth: Path | None, mask: Path | None, header: Header, first: int = 0):
        self.first = first
        shape = recon_shape(header)
        self.slices = None if truth is None else load_pictures(truth, shape)
        self.masks = None if mask is None else load_pictures(mask, shape) > 0
        if self.masks is not None and (self.slices is None or len(self.masks) not in (1, len(self.slices))):
            raise BadInputError(f"mask {mask} needs a truth of as many slices: give --truth as well, or a mask of one")

    def place(self, key: SliceKey) -> int | None:
        """Of an image's truth among `slices`; None where there is none."""
        place = key.slice - self.first
        if self.slices is None or not 0 <= place < len(self.slices) or not is_first(key, self.weighting):
            return None
        return place

    def of(self, key: SliceKey) -> np.ndarray | None:
        """The truth of an image, None where there is none."""
        place = self.place(key)
        return None if self.slices is None or place is None else self.slices[place]

    def mask_of(self, place: int) -> np.ndarray:
        """Where the slice of a truth is scored."""
        assert self.slices is not None
        if self.masks is None:
            return np.ones(self.slices.shape[1:], dtype=bool)
        return self.masks[place if len(self.masks) > 1 else 0]


class Scores:
    """A writer that scores every slice that has a truth; the report gets the NRMSE of each method."""

    def __init__(self, truth: Truth, header: Header, report: Report):
        self.truth, self.header, self.report = truth, header, report
        self.found: list[tuple[int, dict[str, np.ndarray]]] = []

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None:
        if not isinstance(item, LostSlice) and (place := self.truth.place(item.key)) is not None:
            self.found.append((place, pictures_of(item, self.header)))

    def close(self, failure: BaseException | None) -> None:
        if self.found:
            self.report.nrmse = {name: self._nrmse(name) for name in METHODS}

    def _nrmse(self, method: str) -> dict:
        assert self.truth.slices is not None
        per_slice = nrmse(
            np.stack([pictures[method] for _, pictures in self.found]),
            self.truth.slices[[place for place, _ in self.found]],
            np.stack([self.truth.mask_of(place) for place, _ in self.found]),
        )
        return {"mean": float(np.mean(per_slice)), "slices": [float(value) for value in per_slice]}


def nrmse(found: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """||a |found| - truth|| / ||truth|| inside the mask for each slice, one least-squares factor a for the scan."""
    factor = fitting_factor(np.abs(found)[mask], truth[mask])
    errors = [(factor * np.abs(f) - t)[m] for f, t, m in zip(found, truth, mask)]
    return np.array([np.linalg.norm(e) / np.linalg.norm(t[m]) for e, t, m in zip(errors, truth, mask)])


def fitting_factor(image: np.ndarray, target: np.ndarray) -> float:
    """The least-squares factor that takes `image` to `target`."""
    return float((image * target).sum() / max((image * image).sum(), 1e-30))


def load_pictures(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A .npy file of real numbers as (slices, *shape); one slice, or volume, may be without the first axis."""
    axes = "(slices, rows, cols)" if len(shape) == 2 else "(partitions, rows, cols)"
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:  # numpy's words advise to trust pickled files
        why = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise BadInputError(f"{path} is not a readable .npy file{why}: give one {axes} of numbers") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        raise BadInputError(f"{path} holds no single array of real numbers: a .npy file {axes} is needed")
    array = found[None] if found.ndim == len(shape) else found
    if array.shape[1:] != shape:
        raise BadInputError(f"{path} is {found.shape} and the scan's images are {shape}: give {axes} of that matrix")
    return array
