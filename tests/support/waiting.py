"""Waiting for something to happen."""

import time
from collections.abc import Callable

LIMIT = 120  # seconds: of no test's business, so long that a busy machine does not reach it


def until(condition: Callable[[], object]) -> None:
    """Return when `condition` holds; the test fails where it never does."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
