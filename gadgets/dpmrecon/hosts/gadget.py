"""The gadget: Gadgetron starts it as `python -m gadgetron PORT dpmrecon.gadget reconstruct`, once for each scan.

One external node makes coil maps and samples: two would send maps as large as the k-space through another process and
pay a second start, and a chain with one of the two alone would have to be told apart from a whole one.

The host package has read configuration and header before it calls us. All that follows goes through our own framing,
because its reader spins where the server has died, and it cannot write an ERROR.
"""

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any


def reconstruct(connection: Any) -> None:
    """Serve one scan on `connection`, a gadgetron.external.Connection, which says CLOSE once we return."""
    from ..options import from_properties
    from .adapters import Gadgetron
    from .audit import VARIABLE, AuditLog
    from .byte_stream import SocketStream
    from .engine import Engine
    from .session import Session
    from .wire import Wire

    host, peer = Gadgetron(), Wire(SocketStream(connection.socket.socket))
    config, header = bytes(connection.raw_bytes.config), bytes(connection.raw_bytes.header)

    def load() -> Engine:
        return Engine.of(from_properties(config))

    audit = AuditLog(Path(os.environ[VARIABLE])) if os.environ.get(VARIABLE) else None
    Session(peer, load, host, audit).run(lambda peer: (host, config, header))
    if getattr(sys.modules["__main__"].__spec__, "name", None) == "gadgetron.__main__":
        _leave(peer)


def _leave(peer: Any) -> None:
    """End the process at once: the client waits for that, and an orderly end takes torch a second."""
    from ..errors import DpmreconError

    with contextlib.suppress(DpmreconError, OSError):
        peer.send_close()
        peer.close()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
