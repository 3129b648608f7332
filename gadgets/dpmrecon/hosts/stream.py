"""`dpmrecon stream`: one scan from standard input to standard output, as batch runners chain their tools.

MRD messages come in: a configuration's name or the header first, lines, CLOSE. Images go out as soon as their slice is
done, then CLOSE. Nothing else goes to standard output: `ismrmrd_stream_to_hdf5` knows no texts, so that errors are said
on standard error and by the exit code.
"""

import argparse
import contextlib
import logging
import os
import sys
from dataclasses import replace
from typing import Any

from ..errors import DpmreconError
from ..options import from_arguments
from . import wire
from .adapters import Host, MrdClient, greet
from .byte_stream import PipeStream
from .engine import Engine
from .session import Session
from .wire import PeerGoneError, Wire

NOTHING = "nothing came on standard input: pipe a stream of MRD messages into it, as ismrmrd_hdf5_to_stream writes"


class Pipe(MrdClient):
    """The next tool in a pipe, which takes images alone."""

    name = "pipe"

    def fail(self, peer: Wire, message: str) -> None:
        """It is in the log and the exit code."""


def greeting(peer: Wire) -> tuple[Host, bytes, bytes]:
    """A header that comes first is of a scan whose options stand on the command line. Raises WireError."""
    peer.patience = wire.SCAN  # a tool before us may take its time
    found = greet(peer, host=Pipe(), header_first=True)
    if found is None:
        raise PeerGoneError(NOTHING)
    return found


def exit_code(record: dict[str, Any]) -> int:
    """As `replay` has it: 0 every slice by the model, 3 by the conventional fallback, 4 some are missing, 2 nothing
    came out."""
    if record["error"] is not None:
        return 4 if record.get("slices") else 2
    return 3 if record["fallbacks"] else 0


def run(args: argparse.Namespace) -> int:
    """The command."""
    logging.basicConfig(format="dpmrecon: %(message)s", level=logging.INFO, stream=sys.stderr)
    sys.stdout.flush()
    outgoing = os.dup(1)
    os.dup2(2, 1)  # whatever prints, here or in a library, would be bytes of a message
    peer = Wire(PipeStream(os.dup(0), outgoing))
    session = Session(peer, lambda: replace(Engine.of(from_arguments(args)), service=True), Pipe())
    try:
        session.run(greeting)
        with contextlib.suppress(DpmreconError):
            peer.send_close()
    finally:
        peer.close()
    return exit_code(session.record)
