"""Our side of a socket: a session in a thread, and the way to a running service."""

import socket
import threading

from dpmrecon.hosts.adapters import greet
from dpmrecon.hosts.byte_stream import SocketStream
from dpmrecon.hosts.serve import Server
from dpmrecon.hosts.session import Session
from dpmrecon.hosts.wire import Wire

from . import fake_peer
from .waiting import LIMIT

FEW = {"steps": "4", "samples": "2", "device": "cpu"}


def connect(server: Server) -> fake_peer.Peer:
    return fake_peer.Peer(socket.create_connection(("127.0.0.1", server.port)), timeout=LIMIT)


def exchange(server: Server, *messages: bytes) -> fake_peer.Answer:
    peer = connect(server)
    peer.send(*messages)
    return peer.answer()


class Here:
    """A session in a thread, with the tiny model; `peer` is the other end of its socket."""

    def __init__(self, engine, greeting=greet):
        ours, theirs = socket.socketpair()
        self.peer = fake_peer.Peer(theirs, timeout=LIMIT)
        self.session = Session(Wire(SocketStream(ours)), lambda: engine)
        self.thread = threading.Thread(target=self._run, args=(greeting,))
        self.thread.start()

    def _run(self, greeting):
        self.session.run(greeting)
        self.session.peer.close()

    def exchange(self, *messages: bytes) -> fake_peer.Answer:
        """Send, say no more, and read to the end; the session must end too: one that spins stays for ever."""
        self.peer.send(*messages)
        self.peer.end_of_sending()
        answer = self.peer.answer()
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()
        return answer
