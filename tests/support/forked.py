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


def forked(
    main: Callable[[list[str]], int],
    *arguments: str,
    given: bytes = b"",
    folder: Path | None = None,
    before: Callable[[], None] | None = None,
) -> CompletedProcess[bytes]:
    """What `main` of these arguments prints, and its exit code, negative of a signal.

    given: its standard input; folder: where it runs; before: what the child does first.
    """
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as errors:
        source.write(given)
        source.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the child does not need
            process = os.fork()
        if process == 0:
            signal.alarm(10 * LIMIT)  # one that hangs ends, by a signal
            for number, file in enumerate((source, printed, errors)):
                os.dup2(file.fileno(), number)
            os._exit(_code(main, list(arguments), folder, before))
        _, status = os.waitpid(process, 0)
        printed.seek(0)
        errors.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return CompletedProcess(list(arguments), code, printed.read(), errors.read())


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
