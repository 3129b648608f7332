"""A stream that is read ahead in a thread of its own: what comes next is there when it is asked for."""

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Reads a stream ahead, from now on: at most `size` items wait, so that a fast one cannot fill the memory."""

    def __init__(self, stream: Iterator[T], size: int):
        self._items: queue.Queue[Any] = queue.Queue(size)
        self._size = size
        self._dropping = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: Iterator[T]) -> None:
        try:
            for item in stream:
                self._put(item)
        except BaseException as error:  # the other thread raises it
            self._put(error)
        else:
            self._put(None)

    def _put(self, item: object) -> None:
        while not self._dropping.is_set():
            with contextlib.suppress(queue.Full):
                self._items.put(item, timeout=0.2)
                return

    def __iter__(self) -> Iterator[T]:
        for group in self.groups():
            yield from group

    def groups(self) -> Iterator[list[T]]:
        """Lists of the items that are there, at least one, at most `size`."""
        end: object = self
        while end is self:
            group = []
            item = self._items.get()
            while True:
                if item is None or isinstance(item, BaseException):
                    end = item
                    break
                group.append(item)
                if len(group) == self._size or self._items.empty():
                    break
                item = self._items.get()
            if group:
                yield group
        if isinstance(end, BaseException):
            raise end

    def close(self) -> None:
        """Let the thread read on to the end of the stream, keeping nothing, and wait for it."""
        self._dropping.set()
        self._thread.join()
