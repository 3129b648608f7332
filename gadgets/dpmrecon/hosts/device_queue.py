"""The thread of the device, and what the scans of a service ask of it."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

END = object()  # of an answer


class Request(Protocol):
    """Items of a scan that wait for the device; called, it gives one result for each, in order."""

    @property
    def items(self) -> list[Any]: ...

    def __call__(self) -> Iterator[Any]: ...

    def with_items(self, items: list[Any]) -> "Request":
        """The same of other items."""

    def joined(self, other: Any) -> "Request | None":
        """The items of both in one request, None where they cannot be worked on at once."""


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request, and where its results go: END or an exception is the last."""

    request: Request
    answer: queue.SimpleQueue


class DeviceQueue:
    """Works on requests in a thread of its own, in the order they came. Those that can be joined with the first go with
    it: a device with room takes the slices of several scans at once, and none waits for company.

    failed: called after a request that raised; clock: seconds that only grow.
    """

    def __init__(self, failed: Callable[[], object] = lambda: None, clock: Callable[[], float] = time.monotonic):
        self._waiting: deque[Waiting | None] = deque()
        self._changed = threading.Condition()
        self._failed, self._clock = failed, clock
        self._began: float | None = None
        threading.Thread(target=self._work, daemon=True, name="device").start()

    def run(self, request: Request) -> Iterator[Any]:
        """The results of a request, as they are done. Raises what it raises."""
        answer: queue.SimpleQueue = queue.SimpleQueue()
        self._put(Waiting(request, answer))
        while (item := answer.get()) is not END:
            if isinstance(item, BaseException):
                raise item
            yield item

    def busy(self) -> float:
        """Seconds since the work in hand began, 0 where there is none."""
        began = self._began
        return 0.0 if began is None else self._clock() - began

    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiting)

    def close(self) -> None:
        """End the thread, once what waits is done."""
        self._put(None)

    def _put(self, entry: Waiting | None) -> None:
        with self._changed:
            self._waiting.append(entry)
            self._changed.notify()

    def _work(self) -> None:
        while self._next():
            self._began = None

    def _next(self) -> bool:
        """Answer the first, with those that join it; False at the end. Of its own, so that between requests no name
        keeps a scan's slices."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            first = self._waiting.popleft()
            if first is None:
                return False
            self._began = self._clock()
            request, together = self._with_others(first)
        if len(together) == 1:
            self._answer(first)
        else:
            self._answer_together(request, together)
        return True

    def _with_others(self, first: Waiting) -> tuple[Request, list[Waiting]]:
        """What is worked on at once, taken from what waits."""
        request, together = first.request, [first]
        for entry in [entry for entry in self._waiting if entry is not None]:
            if (more := request.joined(entry.request)) is not None:
                request = more
                together.append(entry)
                self._waiting.remove(entry)
        return request, together

    def _answer(self, entry: Waiting) -> None:
        try:
            for item in entry.request():
                entry.answer.put(item)
            entry.answer.put(END)
        except BaseException as error:  # the thread that waits raises it
            entry.answer.put(error)
            self._failed()

    def _answer_together(self, request: Request, entries: list[Waiting]) -> None:
        """The results of a joint request, each to its own. What has none when it fails is tried request by request, so
        that one scan's failure is no other's."""
        results, done = request(), 0
        try:
            for entry in entries:
                for _ in entry.request.items:
                    entry.answer.put(next(results))
                    done += 1
                entry.answer.put(END)
        except BaseException:
            self._failed()
            for entry in entries:
                left, done = entry.request.items[done:], max(0, done - len(entry.request.items))
                if left:
                    self._answer(Waiting(entry.request.with_items(left), entry.answer))
