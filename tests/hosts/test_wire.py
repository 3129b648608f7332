"""A peer that says nothing, and one that takes nothing."""

import os
import socket
import threading

import pytest
from dpmrecon.hosts import byte_stream, wire
from dpmrecon.hosts.wire import PeerGoneError, Wire

from support import fake_peer
from support.fake_peer import close


class Silent:
    """A stream that says nothing, and a clock that goes on while it is waited for."""

    now = 0.0

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False


@pytest.mark.parametrize("patience", [wire.GREETING, wire.SCAN])
def test_a_silent_peer_is_let_go(patience):
    silent = Silent()
    peer = Wire(silent, silent.clock)
    peer.patience = patience
    with pytest.raises(PeerGoneError, match=f"the peer said nothing for {patience:g} s"):
        peer.message_id()
    assert patience < silent.now <= patience + 2 * wire.LOOK_AGAIN and peer.closed


def test_a_peer_that_falls_silent_within_a_message_is_let_go_sooner():
    silent = Silent()
    peer = Wire(silent, silent.clock)
    peer.patience, peer.framed = wire.SCAN, False
    with pytest.raises(PeerGoneError, match=f"the peer said nothing for {wire.WITHIN:g} s"):
        peer.read(1)
    assert wire.WITHIN < silent.now < wire.SCAN


def test_a_peer_that_never_reads_is_given_up(monkeypatch):
    monkeypatch.setattr(byte_stream, "STALL", 1)  # the kernel counts it, and here nobody ever reads
    ours, theirs = socket.socketpair()
    peer = Wire(byte_stream.SocketStream(ours))
    with pytest.raises(wire.PeerGoneError, match="took no more data"):
        peer.send(bytes(50_000_000))
    ours.close()
    theirs.close()


def test_pipes_carry_the_same_messages(stream):
    header, messages = stream
    incoming, outgoing = os.pipe(), os.pipe()
    sent = b"".join([header, *messages, close()])
    writer = threading.Thread(target=lambda: (os.write(incoming[1], sent), os.close(incoming[1])))
    with open(outgoing[0], "rb") as answer:
        peer = Wire(byte_stream.PipeStream(incoming[0], outgoing[1]))
        writer.start()
        assert peer.message_id() == wire.HEADER and peer.text() == header[6:]
        kinds = [number for number, _ in peer.messages()]
        assert kinds == [wire.RECON_DATA] * len(messages) and peer.closed
        peer.send_error("no room")
        peer.send_close()
        peer.close()
        writer.join()
        assert answer.read() == fake_peer.error("no room") + close()


def test_pipes_that_end_early_are_noticed():
    incoming, outgoing = os.pipe(), os.pipe()
    os.write(incoming[1], b"\3\0\5")
    os.close(incoming[1])
    peer = Wire(byte_stream.PipeStream(incoming[0], outgoing[1]))
    assert peer.message_id() == wire.HEADER
    with pytest.raises(PeerGoneError, match="after 1 of 4 bytes"):
        peer.text()
    peer.close()
    os.close(outgoing[0])
