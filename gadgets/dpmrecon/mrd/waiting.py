"""Images whose lines came, and which wait for a calibration that may come later."""

from collections.abc import Iterator

from ..data import LostSlice, SliceKey
from ..memory import nearly_full_of
from .lines import Lines


class Waiting:
    """The lines of images, by slice number, in the order in which they came."""

    def __init__(self) -> None:
        self._images: dict[int, list[tuple[SliceKey, Lines]]] = {}
        self._bytes = 0

    def __iter__(self) -> Iterator[int]:
        """The slice numbers."""
        return iter(list(self._images))

    def add(self, key: SliceKey, image: Lines) -> Iterator[LostSlice]:
        """Keep an image. Where memory is nearly full of them, all are lost: the process would be."""
        self._images.setdefault(key.slice, []).append((key, image))
        self._bytes += image.nbytes
        if nearly_full_of(self._bytes):
            found = [key for number in self for key, _ in self.pop(number)]
            reason = (
                f"memory is full of images that wait for calibration lines ({len(found)}): send those before the images"
            )
            yield from (LostSlice(key, reason) for key in found)

    def pop(self, number: int) -> list[tuple[SliceKey, Lines]]:
        """The images of a slice number, which wait no more."""
        found = self._images.pop(number, [])
        self._bytes -= sum(image.nbytes for _, image in found)
        return found
