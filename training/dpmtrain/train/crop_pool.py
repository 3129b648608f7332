"""Crops that stay on the device and are drawn again and again, while loader processes bring new ones.

A small network on a GPU is faster than processes cut crops: a crop takes about 10 ms of a core.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from dpmrecon.errors import DpmreconError
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..data.dataset import PreparedSlices

AT_ONCE = 8  # crops that a loader process hands over
RENEWED = 8  # draws from a full pool for AT_ONCE new crops, without loaders


class Crops(IterableDataset):
    """Without end: (images (AT_ONCE, crop, crop) complex64, contrasts); a DpmreconError in place of a bad slice."""

    def __init__(self, data: Path, settings: dict, seed: str):
        self.data, self.settings, self.seed = data, settings, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, list[str]] | DpmreconError]:
        worker = get_worker_info()
        text = f"{self.seed} {worker.id if worker else 0}"
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
        try:
            slices = PreparedSlices(self.data, self.settings["real_fraction"], self.settings["volumes"])
            while True:
                found = [slices.example(self.settings["crop"], generator) for _ in range(AT_ONCE)]
                yield torch.stack([example.image.to(torch.complex64) for example in found]), [e.contrast for e in found]
        except DpmreconError as error:
            yield error


class CropPool:
    """`size` crops on `device`; the oldest give way to new ones.

    seed: text that decides the crops; give another one to a run that goes on. workers: 0 cuts in this process, a few
    crops at each draw until the pool is full, then at every RENEWED-th.
    """

    def __init__(
        self, data: Path, settings: dict, labels: Sequence[str], device: torch.device, workers: int, seed: str
    ):
        side = settings["crop"]
        self.images = torch.zeros(settings["pool"], side, side, dtype=torch.complex64, device=device)
        self.classes = torch.full((settings["pool"],), len(labels), dtype=torch.int64, device=device)
        self.labels, self.device, self.workers = list(labels), device, workers
        self.taken = self.drawn = 0
        self.error: BaseException | None = None
        crops = Crops(data, settings, seed)
        if workers == 0:
            self.source: Iterator = iter(crops)
        else:
            self.source = iter(DataLoader(crops, batch_size=None, num_workers=workers, multiprocessing_context="spawn"))
        self.first = threading.Event()
        self.closed = False
        for _ in range(max(1, settings["batch"] // AT_ONCE)):
            self._take()
        self.thread = threading.Thread(target=self._refill, daemon=True)
        if workers:
            self.thread.start()

    def close(self) -> None:
        """No more crops; the loader processes end."""
        self.closed = True
        if self.workers:
            self.thread.join()
        del self.source

    def _refill(self) -> None:
        while not self.closed:
            try:
                self._take()
            except Exception as error:  # raised again where the crops are drawn
                self.error = error
                return

    def _take(self) -> None:
        found = next(self.source)
        if isinstance(found, DpmreconError):
            raise found
        images, contrasts = found
        known = {label: number for number, label in enumerate(self.labels)}
        where = torch.arange(self.taken, self.taken + len(images), device=self.device) % len(self.images)
        self.images[where] = images.to(self.device)
        self.classes[where] = torch.tensor([known.get(c, len(known)) for c in contrasts], device=self.device)
        self.taken += len(images)

    def draw(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(images (batch, crop, crop) complex64, classes (batch,) int64), all flipped and turned alike at random."""
        if self.error is not None:
            raise self.error
        if self.workers == 0 and (self.taken < len(self.images) or self.drawn % RENEWED == 0):
            self._take()
        self.drawn += 1
        which = torch.randint(min(self.taken, len(self.images)), (batch,), device=self.device)
        images, turn = self.images[which], int(torch.randint(8, ()))
        images = images.flip([axis for axis, bit in ((1, 1), (2, 2)) if turn & bit])
        return (images.mT if turn & 4 else images).contiguous(), self.classes[which]
