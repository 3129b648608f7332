"""Which image is meant, in words: its slice, and the counters in which the scan's images differ."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..data import SliceKey
from ..mrd.header import Header
from .mrd_images import COUNTERS


@dataclass(frozen=True)
class Names:
    """values: that the images' counters have; words: for counters, where these have others."""

    values: Mapping[str, set[int]] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, keys: Iterable[SliceKey], header: Header) -> "Names":
        """keys: of the scan's images."""
        keys = list(keys)
        times = getattr(header.sequenceParameters, "TE", None) or []
        words = {"slice": "slab", "contrast": "echo" if len(times) > 1 else "contrast"}
        return cls({name: {getattr(key, name) for key in keys} for name in ("slice", *COUNTERS)}, words)

    def image(self, key: SliceKey, volume: str | None = None) -> str:
        """volume: what is said of one, or of a plane of it, in place of the slice."""
        names = COUNTERS if volume is None else ("slice", *COUNTERS)
        return ", ".join([volume or f"slice {key.slice}", *self._told(key, names)])

    def counters(self, key: SliceKey) -> str:
        """What tells an image from the others of its slice; nothing where there is one of each."""
        return ", ".join(self._told(key, COUNTERS))

    def _told(self, key: SliceKey, names: Sequence[str]) -> list[str]:
        values = [(name, getattr(key, name)) for name in names]
        return [f"{self.words.get(name, name)} {n}" for name, n in values if self.values.get(name, {n}) != {n}]

    def images(self, keys: Iterable[SliceKey], others: Iterable[SliceKey]) -> str:
        """Several at once; a slice that has no image among the others is told without counters."""
        apart = {key.slice for key in others}
        whole = dict.fromkeys(key.slice for key in keys if key.slice not in apart)
        told = [f"slice{'s' * (len(whole) > 1)} {', '.join(map(str, whole))}"] if whole else []
        return "; ".join([*told, *(self.image(key) for key in keys if key.slice in apart)])
