"""The exception tree: every error raised on purpose is one of these, in one sentence."""

BAD_INPUT = 2  # the exit code of a command that cannot use what it is given
UNEXPECTED = 1  # of one that breaks off with a traceback, or whose device fails
WORST = (0, 3, 4, BAD_INPUT, UNEXPECTED)  # exit codes of a scan, each worse than those before


class DpmreconError(Exception):
    """Base class: the message says what came, what is needed and what to do. exit_code: of a command that it ends."""

    exit_code = BAD_INPUT


class BadInputError(DpmreconError):
    """The scan, the file or an option cannot be used as it is."""


class UnsupportedScanError(BadInputError):
    """The scan is valid, but of a kind that this version does not reconstruct."""


class CheckpointError(BadInputError):
    """The model file is missing, corrupt or of another format."""


class DeviceError(DpmreconError):
    """The device that computes, a GPU for one, fails: no fault of the scan."""

    exit_code = UNEXPECTED


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none: what fits into one sentence."""
    lines = str(error).splitlines()
    return lines[0].strip() if lines else type(error).__name__
