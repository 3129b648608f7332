"""The memory that is left."""

import contextlib
import math
import re
from pathlib import Path

SHARE = 0.8  # of the memory that is free, or held by what is kept


def free_memory() -> float:
    """Bytes that this machine has free, or this container may still take; infinite where the system does not say."""
    found: list[float] = [math.inf]
    with contextlib.suppress(OSError):  # not Linux
        told = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        found += [int(told[1]) * 1024] if told else []
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit
        most, used, held = (Path("/sys/fs/cgroup", f"memory.{name}").read_text() for name in ("max", "current", "stat"))
        cached = re.findall(r"^(?:in)?active_file (\d+)", held, re.MULTILINE)  # of files, given back when it is needed
        found.append(int(most) - int(used) + sum(map(int, cached)))
    return min(found)


def nearly_full_of(held: float) -> bool:
    """Whether so many bytes leave too little: the system would end the process."""
    return held > SHARE * (free_memory() + held)
