"""`dpmrecon serve`: one loaded model for many scans, of Gadgetrons and MRD clients, on one port.

A peer has a thread that talks to it and one that reads ahead; the device has one thread, which takes a few slices of
each scan in the order they came, of several scans at once where its batch has room. Memory is bounded by `peers` times
the slices in hand of one: those read ahead, those of the group that is worked on, and the one that is filling; 4 peers
with slices of 256 x 256 and 8 channels stay under 1 GB on a CPU (`python tests/commands/load_serve.py` prints it).
"""

import argparse
import contextlib
import logging
import math
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UNEXPECTED, BadInputError, DpmreconError, first_line
from ..options import Options, from_arguments
from ..version import __version__
from .audit import AuditLog
from .device_queue import DeviceQueue

if TYPE_CHECKING:
    from .adapters import Host
    from .dicom_queue import DicomQueue
    from .metrics import Metrics
    from .session import Session
    from .wire import Wire

log = logging.getLogger("dpmrecon")

STUCK = 600.0  # seconds: no slice takes so long on a device that works
FAREWELL = 10.0  # seconds for each scan to tell its peer that the device is lost
PEERS = 8  # scans in hand at a time; who comes then is told so
KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))  # seconds, seconds, times


class Server:
    """Listens from the start, so that early peers wait instead of failing; serves once `load` has the model.

    clock: seconds that only grow, for how long the device has had a job.
    """

    def __init__(
        self,
        address: str,
        port: int,
        peers: int = PEERS,
        audit: AuditLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if peers < 1 or not 0 <= port < 2**16:
            raise BadInputError(f"--peers is {peers} and --port {port}: give 1 peer or more and a port up to 65535")
        try:
            self.listener = socket.create_server((address, port), backlog=peers)
        except OSError as error:
            raise BadInputError(f"cannot listen on {address} port {port} ({error.strerror}): choose others") from error
        self.port = self.listener.getsockname()[1]
        self._peers, self._audit = peers, audit
        self._sessions: dict[threading.Thread, Session] = {}
        self._places = threading.Lock()
        self._device = DeviceQueue(self._check_device, clock)
        self.metrics: Metrics | None = None
        self.dicom: DicomQueue | None = None
        self.lost: str | None = None  # why the device can be used no more
        self._stopping = threading.Event()
        self._wake, self._woken = socket.socketpair()

    def load(self, options: Options) -> str:
        """The model onto its device; returns its id. Raises DpmreconError: a service without a model is none."""
        from ..recon.agreement import SLICES, VOLUMES, without_limits
        from ..recon.plan import contrast_of, sampling_of
        from .engine import Engine

        engine = Engine.of(options, self._device.run)
        checkpoint, device = engine.checkpoint, engine.device
        for kind in (SLICES, VOLUMES) if options.gate != "off" else ():
            if (reason := without_limits(checkpoint.of_scan(volume=kind == VOLUMES), kind)) is not None:
                log.warning("whether prior and data agree is not asked: %s", reason)
        sampling_of(options, checkpoint, device)  # what cannot be sampled is said now, not at the first scan
        if options.contrast is not None:
            contrast_of(options, checkpoint, None)
        try:
            checkpoint.model.warm_up()
        except RuntimeError as error:
            reason = first_line(error)
            raise DpmreconError(f"the model cannot run on {device} ({reason}): name another with --device") from error
        self._engine = engine
        return checkpoint.model_id

    def status(self) -> dict[str, Any]:
        """What a health check is told. audit, dicom, stuck: what is wrong with the audit log, the DICOM and the device,
        else None."""
        busy = self._device.busy()
        stuck = f"{busy:.0f} s with one piece of work" if busy > STUCK else self.lost
        found = {"model": self._engine.checkpoint.model_id, "device": str(self._engine.device), "scans": self._begun()}
        problems = {"audit": self._audit and self._audit.problem, "dicom": self.dicom and self.dicom.problem}
        return {**found, "version": __version__, **problems, "stuck": stuck}

    def measure(self, listen: str) -> int:
        """Serve metrics at [ADDRESS:]PORT, once the model is there; returns the port. Raises BadInputError."""
        from .metrics import Metrics

        model = self._engine.checkpoint.model_id
        self.metrics = Metrics(listen, model, self._device.waiting, self._begun, self._dicom_waiting)
        return self.metrics.port

    def _dicom_waiting(self) -> float:
        try:
            return 0 if self.dicom is None else len(self.dicom.jobs())
        except OSError:  # the folder is gone: the other metrics are not to go with it
            return math.nan

    def write_dicom(self, folder: Path, archive: str | None) -> None:
        """Write each scan's DICOM into the folder from now on, and send it. archive: AET@host:port. Raises
        BadInputError."""
        from ..dicom.send import archive_from_text
        from .dicom_queue import DicomQueue

        self.dicom = DicomQueue(folder, None if archive is None else archive_from_text(archive))
        self.dicom.start()

    def _begun(self) -> int:
        """Scans in hand."""
        return sum(session.begun and not session.done for session in list(self._sessions.values()))

    def _check_device(self) -> None:
        """A GPU that has failed, other than by a lack of memory, fails in all that follows: only a new process has it
        again. Its scans end with an error, and so does `serve`."""
        from ..device import why_lost

        self.lost = why_lost(self._engine.device)
        if self.lost is not None:
            self.stop()

    def stop(self) -> None:
        """Take no new peers; `serve` returns when the scans in hand are done. Safe in a signal handler."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")

    def serve(self) -> None:
        """Accept peers until `stop`."""
        poll = select.poll()
        for waiting in (self.listener, self._woken):
            poll.register(waiting, select.POLLIN)
        while not self._stopping.is_set():
            poll.poll()
            if self._stopping.is_set():
                break
            try:
                connection, _ = self.listener.accept()
            except OSError as error:  # a peer that left at once, or no file descriptors left
                log.error("a peer could not be accepted (%s)", error.strerror)
                self._stopping.wait(0.1)
                continue
            self._start(connection)
        self.listener.close()
        sessions = list(self._sessions.items())
        for _, session in sessions:
            if not session.begun:  # connected, but no scan in hand
                session.peer.shut()
        for thread, _ in sessions:
            thread.join(None if self.lost is None else FAREWELL)

    def close(self) -> None:
        """Give the port and the device back."""
        self._device.close()
        if self.metrics is not None:
            self.metrics.stop()
        if self.dicom is not None:
            self.dicom.stop()
        for end in (self.listener, self._wake, self._woken):
            end.close()

    def _start(self, connection: socket.socket) -> None:
        from .byte_stream import SocketStream
        from .session import Session
        from .wire import Wire

        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session = Session(
            Wire(SocketStream(connection)),
            lambda: self._engine,
            audit=self._audit,
            metrics=self.metrics,
            dicom=self.dicom,
        )
        thread = threading.Thread(target=self._serve_one, args=(session,), daemon=True)
        self._sessions[thread] = session
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no more threads
            log.error("a peer could not be served (%s)", first_line(error))
            del self._sessions[thread]
            connection.close()

    def _serve_one(self, session: "Session") -> None:
        from .adapters import greet

        def greeting(peer: "Wire") -> "tuple[Host, bytes, bytes] | None":
            found = greet(peer, self.status)
            if found is not None:
                with self._places:  # who has only connected takes none
                    if self._begun() >= self._peers:
                        raise Busy(found[0], self._peers)
                    session.begun = True
            return found

        try:
            session.run(greeting)
            session.done = True  # a peer that sends its next scan at once finds its place free
            with contextlib.suppress(DpmreconError):
                session.peer.send_close()
        finally:
            session.peer.close()
            self._sessions.pop(threading.current_thread(), None)


class Busy(DpmreconError):
    """One peer too many; host: how to tell it."""

    def __init__(self, host: "Host", peers: int):
        super().__init__(f"{peers} scans are in hand and no more are taken at a time: send this one again later")
        self.host = host


def run(args: argparse.Namespace) -> int:
    """The command `dpmrecon serve`."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    options = from_arguments(args)
    if args.send is not None and args.dicom is None:
        raise BadInputError("--send needs --dicom DIR, where what is to be sent waits")
    audit = AuditLog(args.audit) if args.audit else None
    if audit is not None:
        audit.check()
    server = Server(args.address, args.port, args.peers, audit)
    log.info("listening on %s port %d, loading the model", args.address, server.port)

    def stop(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends at once
        server.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with contextlib.closing(server):
            model = server.load(options)
            if args.dicom is not None:
                server.write_dicom(args.dicom, args.send)
            if args.metrics is not None:
                log.info("metrics at port %d", server.measure(args.metrics))
            log.info("model %s: ready", model)
            server.serve()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if server.lost is not None:
        log.error("stopped: %s", server.lost)
        return UNEXPECTED
    log.info("stopped")
    return 0
