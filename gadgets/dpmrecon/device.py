"""The device that computes: its name, what it can do, and when it is done."""

from pathlib import Path

import torch

from .errors import BadInputError, first_line

# What a device raises that cannot compute; all else is our fault
DEVICE_ERRORS = (RuntimeError, MemoryError)


def device_of(name: str | torch.device | None) -> torch.device:
    """The device of this name, usable; None is cuda where there is one, else cpu. Raises BadInputError."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name is None else name
    try:
        if not isinstance(name, str | torch.device):  # torch takes 0 for a GPU
            raise TypeError
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise BadInputError(f"device {name!r} is unknown: give cpu, cuda, or cuda:1 and so on") from error
    try:
        torch.zeros(1, device=device).cpu()  # some, as meta, can make it and not compute
    except (RuntimeError, AssertionError) as error:
        raise BadInputError(
            f"device '{name}' cannot be used ({first_line(error)}): leave --device out or name another"
        ) from error
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than those of float32, in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        found = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    return cpu_gains_by_bfloat16(found)


def cpu_gains_by_bfloat16(cpuinfo: str) -> bool:
    """cpuinfo: what Linux tells of the processor, as /proc/cpuinfo. By avx512_bf16 without AMX, which virtual machines
    may hide, networks are slower than in float32 on Intel's processors, and faster on AMD's."""
    return "amx_bf16" in cpuinfo or ("avx512_bf16" in cpuinfo and "GenuineIntel" not in cpuinfo)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all that it was asked for, so that a clock tells what it took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def why_lost(device: torch.device) -> str | None:
    """A sentence for a GPU that has failed, other than by a lack of memory: in this process it fails in all that
    follows. None for a device that works."""
    try:
        synchronize(device)
    except RuntimeError as error:
        return f"device {device} is lost ({first_line(error)}): start again, a new process has it again"
    return None
