"""A device that is at work until it is let go."""

import contextlib
import threading
from collections.abc import Iterator

from dpmrecon.hosts.device_queue import DeviceQueue

from support.waiting import LIMIT


class Held:
    """A request without results, which joins none."""

    items: list = []

    def __init__(self):
        self.begun, self.over = threading.Event(), threading.Event()

    def __call__(self):
        self.begun.set()
        self.over.wait(LIMIT)
        return iter(())

    def joined(self, other):
        return None


@contextlib.contextmanager
def held(device: DeviceQueue) -> Iterator[None]:
    """The device works while the block runs; what is asked of it there waits."""
    request = Held()
    thread = threading.Thread(target=lambda: list(device.run(request)), daemon=True)
    thread.start()
    assert request.begun.wait(LIMIT)
    try:
        yield
    finally:
        request.over.set()
        thread.join(LIMIT)
