"""Who does the work of a bulk run: processes of this machine, or the nodes of a Ray cluster.

Both do calls of functions that lie in modules, one at a time each, and survive the end of whoever had one in hand. When
the driver ends, however it ends, so do its workers.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import connection
from typing import Any, Protocol

from ..errors import BadInputError, first_line

ATTEMPTS = 3  # so often a scan is begun whose worker ends
LOCAL = "local"  # in place of a cluster's address: one of this machine
MEGA = 1_000_000
_CONTEXT = multiprocessing.get_context("spawn")  # a fork would have torch's threads without what they hold

Call = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclass(frozen=True)
class Lost:
    """In place of an answer: the worker is no more, and why as far as it is known."""

    reason: str


class Engine(Protocol):
    """workers: calls in hand at a time; by_memory: it sees itself that what is in hand fits into memory."""

    workers: int
    by_memory: bool

    def submit(self, name: str, call: Call, megabytes: float) -> None:
        """Begin a call under this name; fewer than `workers` are in hand. megabytes: what it needs."""

    def finished(self) -> tuple[str, Any]:
        """Wait for the next answer, or Lost, and its name."""

    def ask(self, call: Call) -> Any:
        """The answer, or Lost, of a worker that has not worked before."""

    def close(self) -> None: ...


def answers(
    engine: Engine,
    calls: Mapping[str, Call],
    need: Callable[[str], float] = lambda name: 0.0,
    room: float = float("inf"),
) -> Iterator[tuple[str, Any]]:
    """Names and answers as they come. A call whose worker ended is made again, ATTEMPTS times; then Lost is its answer.

    need: of a call, in MB; room: for all that are in hand, where the engine does not see to it. A call that needs more
    is made alone.
    """
    waiting, lost = deque(calls), Counter[str]()
    running: dict[str, float] = {}
    while waiting or running:
        while waiting and len(running) < engine.workers:
            megabytes = need(waiting[0])
            if running and not engine.by_memory and sum(running.values()) + megabytes > room:
                break
            name = waiting.popleft()
            engine.submit(name, calls[name], megabytes)
            running[name] = megabytes
        name, answer = engine.finished()
        del running[name]
        if isinstance(answer, Lost):
            lost[name] += 1
            if lost[name] < ATTEMPTS:
                waiting.appendleft(name)
                continue
        yield name, answer


class Processes:
    """Processes of this machine, started as they are needed. gpus: that they share, as CUDA_VISIBLE_DEVICES has them;
    none where the device does not depend on the process."""

    by_memory = False

    def __init__(self, workers: int, gpus: tuple[str, ...] = ()):
        self.workers = workers
        self._environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))} | {
            name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ
        }
        self._gpus = gpus
        self._idle: list[_Process] = []
        self._busy: dict[str, _Process] = {}

    def submit(self, name: str, call: Call, megabytes: float) -> None:
        while self._idle:
            process = self._idle.pop()
            if process.begin(call):
                self._busy[name] = process
                return
            process.end()
        process = self._started()
        process.begin(call)  # whose end, if it has ended, `finished` sees
        self._busy[name] = process

    def finished(self) -> tuple[str, Any]:
        (pipe, *_) = connection.wait([process.pipe for process in self._busy.values()])
        name = next(name for name, process in self._busy.items() if process.pipe is pipe)
        process = self._busy.pop(name)
        answer = process.answer()
        if isinstance(answer, Lost):
            process.end()
        else:
            self._idle.append(process)
        return name, answer

    def ask(self, call: Call) -> Any:
        process = self._started()
        process.begin(call)
        answer = process.answer()
        process.end()
        return answer

    def close(self) -> None:
        for process in [*self._idle, *self._busy.values()]:
            process.end()

    def _started(self) -> "_Process":
        if not self._gpus:
            return _Process(self._environment)
        have = Counter(process.gpu for process in [*self._idle, *self._busy.values()])
        gpu = min(self._gpus, key=lambda gpu: have[gpu])
        return _Process({**self._environment, "CUDA_VISIBLE_DEVICES": gpu}, gpu)


class _Process:
    """One that does a call at a time, and ends with this one."""

    def __init__(self, environment: Mapping[str, str], gpu: str | None = None):
        self.gpu = gpu
        self.pipe, end = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_work, args=(end, dict(environment)), daemon=True)
        self._process.start()
        end.close()  # so that the pipe tells of the process's end

    def begin(self, call: Call) -> bool:
        """False where the process has ended."""
        try:
            self.pipe.send(call)
        except OSError:
            return False
        return True

    def answer(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            return Lost(f"signal {-code}" if code < 0 else f"exit code {code}")

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _work(pipe: connection.Connection, environment: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends its processes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)  # before torch is imported
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(function(*arguments))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # in the middle of a scan: a new driver may have it already


class Cluster:
    """Ray's workers: a task for each call, which asks for its memory, and for a GPU where there are any."""

    by_memory = True

    def __init__(self, address: str, workers: int | None):
        if find_spec("ray") is None:
            raise BadInputError("--ray needs Ray, which is not installed: pip install dpmrecon[bulk]")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of a hospital's is reported
        import ray

        started: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address == LOCAL else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **started)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BadInputError(
                f"the Ray cluster {address} cannot be reached ({first_line(error)}): give HOST:PORT, auto or {LOCAL}"
            ) from error
        self._ray = ray
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        self.workers = workers or gpus or int(resources.get("CPU", 1))
        self._largest = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
        # a worker stays, with its model, for the next call
        self._task = ray.remote(num_cpus=1, num_gpus=int(gpus > 0), max_calls=0, max_retries=0)(_called)
        self._busy: dict[Any, str] = {}

    def submit(self, name: str, call: Call, megabytes: float) -> None:
        memory = min(megabytes * MEGA, self._largest)  # what needs more than any node has waits for a whole one
        self._busy[self._task.options(memory=int(memory)).remote(*call)] = name

    def finished(self) -> tuple[str, Any]:
        (ready, *_), _ = self._ray.wait(list(self._busy), num_returns=1)
        return self._busy.pop(ready), self._answer(ready)

    def ask(self, call: Call) -> Any:
        return self._answer(self._task.remote(*call))

    def close(self) -> None:
        self._ray.shutdown()

    def _answer(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Lost(first_line(error))


def _called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)
