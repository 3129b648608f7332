"""Work shared among processes, under a progress bar."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from dpmrecon.errors import DpmreconError
from tqdm import tqdm

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers:
    """`jobs` processes, or this one alone."""

    def __init__(self, jobs: int):
        self.pool = None
        if jobs > 1:
            spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
            self.pool = ProcessPoolExecutor(jobs, spawn, initializer=_begin_worker)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def run(
        self, function: Callable[[Task], Result], tasks: list[Task], title: str, done: int = 0
    ) -> Iterator[tuple[Task, Result]]:
        """(task, result) as they come, under a bar that begins at `done`."""
        with tqdm(total=done + len(tasks), initial=done, desc=title, disable=not tasks) as bar:
            for pair in self._results(function, tasks):
                yield pair
                bar.update()

    def _results(self, function: Callable[[Task], Result], tasks: list[Task]) -> Iterator[tuple[Task, Result]]:
        if self.pool is None:
            yield from ((task, function(task)) for task in tasks)
            return
        futures = {self.pool.submit(function, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise DpmreconError(
                "a process ended in the middle of its work, perhaps for want of memory: the volumes that are done "
                "stay; run the same command again with fewer --jobs"
            ) from error


def _begin_worker() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent takes it
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()


def _leave_with_the_parent() -> None:
    """The pool's processes wait for work for ever where their parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
