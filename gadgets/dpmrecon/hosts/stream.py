"""`dpmrecon stream`: one scan from standard input to standard output, as batch runners chain their tools.

MRD messages come in: a configuration's name or the header first, lines, CLOSE. Images go out as soon as their slice is
done, then CLOSE. To MRD version 2 (`version2.py`) the answer is in version 2. Nothing else goes to standard output:
`ismrmrd_stream_to_hdf5` knows no texts, so that errors are said on standard error and by the exit code.

`replay -` takes the same messages (`received`): whole, as a file, because its folder needs the scan's digest and heads.
"""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import BAD_INPUT, BadInputError, DpmreconError
from ..mrd.file import nameless
from ..mrd.receiving import open_as
from ..mrd.scan import Scan
from ..options import Options, from_arguments
from . import wire
from .adapters import Host, MrdClient, greet, without_texts
from .engine import Engine
from .session import Session
from .version2 import opened
from .wire import PeerGoneError, Wire

STANDARD_INPUT = Path("standard input")  # instead of a scan's path
NOTHING = "nothing came on standard input: pipe a stream of MRD messages into it, as ismrmrd_hdf5_to_stream writes"


class Pipe(MrdClient):
    """The next tool in a pipe, which takes images alone."""

    name = "pipe"

    def fail(self, peer: Wire, message: str) -> None:
        """It is in the log and the exit code."""

    def remark(self, peer: Wire, message: str) -> None:
        """It is in the log."""


def greeting(peer: Wire) -> tuple[Host, bytes, bytes]:
    """A header that comes first is of a scan with the command line's options. Raises WireError."""
    peer.patience = wire.SCAN  # a tool before us may take its time
    found = greet(peer, host=Pipe(), header_first=True)
    if found is None:
        raise PeerGoneError(NOTHING)
    return found


@dataclass
class Received:
    """A scan that came as a stream. scan: open; options: the command line's with its configuration's over them.

    cut: why the stream ended early, None where it did not.
    """

    scan: Scan
    options: Options
    cut: str | None = None


@contextmanager
def received(engine: Engine) -> Iterator[Received]:
    """The scan on standard input. Of a stream that breaks off, the lines that came.

    They wait in a file without a name, which is gone with the process, however that ends.
    Raises WireError and BadInputError.
    """
    descriptor = os.dup(0)
    peer = Wire(opened(descriptor, descriptor, wire.SCAN))
    with contextlib.closing(peer), contextlib.closing(nameless()) as file:
        host, config, xml = greeting(peer)
        if not isinstance(host, Pipe):
            raise BadInputError("a Gadgetron's messages came: `replay -` takes raw acquisitions, `stream` takes these")
        options, cut = host.options(config, replace(engine, service=True), host.added(peer)), None
        remarks: list[str] = []
        file.write_xml_header(xml)
        try:
            for line in host.acquisitions(without_texts(peer.messages(), remarks.append)):
                file.append_acquisition(line)
        except PeerGoneError as gone:
            cut = str(gone)
        file._file.flush()
        with open_as(STANDARD_INPUT, options, file._file) as scan:
            for remark in remarks:
                scan.log.remark(remark)
            yield Received(scan, options, cut)


def exit_code(record: dict[str, Any], failure: int = BAD_INPUT) -> int:
    """As `replay` has it: 0 every slice by the model, 3 by the conventional fallback, 4 some are missing, 2 nothing
    came out. failure: of the error that broke the scan off."""
    if record["error"] is not None:
        return 4 if failure == BAD_INPUT and record.get("slices") else failure
    return 3 if record["fallbacks"] else 0


def run(args: argparse.Namespace) -> int:
    """The command."""
    logging.basicConfig(format="dpmrecon: %(message)s", level=logging.INFO, stream=sys.stderr)
    sys.stdout.flush()
    outgoing = os.dup(1)
    os.dup2(2, 1)  # whatever prints, here or in a library, would be bytes of a message
    peer = Wire(opened(os.dup(0), outgoing, wire.SCAN))
    session = Session(peer, lambda: replace(Engine.of(from_arguments(args)), service=True), Pipe())
    try:
        session.run(greeting)
        with contextlib.suppress(DpmreconError):
            peer.send_close()
    finally:
        peer.close()
    return exit_code(session.record, session.exit_code)
