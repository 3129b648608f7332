"""The machine a figure was measured on: its name, what it can do, and a computation's peak memory."""

import ctypes
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dpmrecon.device import synchronize
from dpmrecon.prior.denoiser import ContrastDenoiser, Denoiser
from torch.utils.flop_counter import FlopCounterMode


def device_name(device: torch.device) -> str:
    """Such as "AMD EPYC 9V74, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    found = None
    if Path("/proc/cpuinfo").is_file():
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name} (CPU), {threads} thread{'s' * (threads > 1)}"


class PeakMemory:
    """The highest memory since its making, in bytes: of a GPU's tensors, or of this process (Linux alone)."""

    def __init__(self, device: torch.device):
        self.device, self.known = device, True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what earlier computations have left
            Path("/proc/self/clear_refs").write_text("5")
        except (AttributeError, OSError):  # another system, or a container that does not let it
            self.known = False

    def read(self) -> int | None:
        """None where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        found = self.known and re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None


class TimedDenoiser:
    """A denoiser that adds up the seconds of its forward passes, by events on a GPU so that nothing has to wait."""

    def __init__(self, denoiser: Any):
        self.denoiser = denoiser
        self.spans: list[tuple[Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def of_contrast(self, label: str | None, count: Callable[[int], object]) -> ContrastDenoiser:
        return ContrastDenoiser(self, self.denoiser.one_hot([label]), count)  # type: ignore[arg-type]

    def __call__(self, *arguments: torch.Tensor) -> torch.Tensor:
        started = self._now()
        image = self.denoiser(*arguments)
        self.spans.append((started, self._now()))
        return image

    def _now(self) -> Any:
        if self.denoiser.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.denoiser.device))
        return event

    def seconds(self) -> float:
        """Of all passes so far; the device must have finished them."""
        if self.denoiser.device.type != "cuda":
            return sum(end - start for start, end in self.spans)
        return sum(start.elapsed_time(end) for start, end in self.spans) / 1000


def network_work(config: dict, shape: tuple[int, int], gradient: bool = False) -> tuple[int, int]:
    """(floating-point operations, bytes) of one evaluation for an image of `shape`, without computing anything.

    gradient: with that of the input, as DPS needs it. bytes: weights and each layer's input and output, moved once, in
    float32: what a network whose layers run one after the other cannot do without.
    """
    moved = 0

    def count(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal moved
        moved += sum(t.numel() * t.element_size() for t in (*inputs, output, *layer.parameters()))

    with torch.device("meta"):
        model = Denoiser(config).requires_grad_(False)
        for layer in model.modules():
            if not list(layer.children()):
                layer.register_forward_hook(count)
        x = torch.empty(1, *shape, dtype=torch.complex64, requires_grad=gradient)
        with FlopCounterMode(display=False) as counted:
            image = model(x, torch.ones(1), torch.zeros(1, len(model.labels)))
            if gradient:
                torch.view_as_real(image).sum().backward()
    return counted.get_total_flops(), moved


def attainable(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(FLOP/s of a large matrix product in `dtype`, bytes/s of a copy): the device's peaks as they can be measured.

    float32 products may be rounded to TF32 on a GPU that has it, as its convolutions are by default.
    """
    size, repeats = (8192, 10) if device.type == "cuda" else (1536, 3)
    matrix = torch.randn(size, size, device=device).to(dtype)
    usual = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else usual)
    product = _best_seconds(lambda: matrix @ matrix, device, repeats)
    torch.set_float32_matmul_precision(usual)
    source = torch.zeros(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    copy = _best_seconds(lambda: target.copy_(source), device, repeats)
    return 2 * size**3 / product, 2 * source.numel() * source.element_size() / copy


def _best_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    found = []
    for _ in range(repeats + 1):  # the first one is slower
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found)
