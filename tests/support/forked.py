"""Commands in a child of the test process, which has loaded torch already: with streams, limits and an exit of its own.

What is trained there needs a process of its own: torch cannot go back in a child where its parent has.
"""

import logging
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from .waiting import LIMIT


class Forked:
    """A child at work, in which `main` is called with these arguments."""

    def __init__(
        self,
        main: Callable[[list[str]], int],
        *arguments: str,
        given: bytes = b"",
        folder: Path | None = None,
        before: Callable[[], None] | None = None,
    ):
        """given: its standard input; folder: where it runs; before: what the child does first."""
        self._arguments = list(arguments)
        source, self._printed, self._errors = (tempfile.TemporaryFile() for _ in range(3))  # noqa: SIM115
        source.write(given)
        source.seek(0)
        with source, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the child does not need
            self.pid = os.fork()
            if self.pid == 0:
                signal.alarm(10 * LIMIT)  # one that hangs ends, by a signal
                for number, file in enumerate((source, self._printed, self._errors)):
                    os.dup2(file.fileno(), number)
                os._exit(_code(main, self._arguments, folder, before))

    def errors(self) -> bytes:
        """What it has said so far."""
        return os.pread(self._errors.fileno(), 1 << 20, 0)

    def end(self) -> CompletedProcess[bytes]:
        """Wait for its end: what it printed, and its exit code, negative of a signal."""
        _, status = os.waitpid(self.pid, 0)
        with self._printed as printed, self._errors as errors:
            printed.seek(0)
            errors.seek(0)
            code = os.waitstatus_to_exitcode(status)
            return CompletedProcess(self._arguments, code, printed.read(), errors.read())


def forked(main: Callable[[list[str]], int], *arguments: str, **options) -> CompletedProcess[bytes]:
    """What `main` prints in a child, and its exit code; options: of `Forked`."""
    return Forked(main, *arguments, **options).end()


def _code(main: Callable, arguments: list[str], folder: Path | None, before: Callable[[], None] | None) -> int:
    """Of the child, whose streams are those of no test."""
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    warnings.resetwarnings()
    for logger in (logging.root, *map(logging.getLogger, logging.root.manager.loggerDict)):
        logger.handlers.clear()
    try:
        if folder is not None:
            os.chdir(folder)
        if before is not None:
            before()
        code = main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code
