"""A peer that says nothing, and one that takes nothing."""

import socket

import pytest
from dpmrecon.hosts import wire
from dpmrecon.hosts.wire import Wire

from support.fake_peer import config
from support.sessions import Here
from support.waiting import LIMIT


def test_a_silent_peer_is_let_go(engine, monkeypatch):
    monkeypatch.setattr("dpmrecon.hosts.wire.GREETING", 0.5)
    here = Here(engine)
    here.peer.send(config()[:3])
    here.thread.join(LIMIT)
    assert not here.thread.is_alive()
    here.peer.socket.close()


def test_a_peer_that_never_reads_is_given_up(monkeypatch):
    monkeypatch.setattr(wire, "STALL", 1)
    ours, theirs = socket.socketpair()
    peer = Wire(ours)
    with pytest.raises(wire.PeerGoneError, match="took no more data"):
        peer.send(bytes(50_000_000))
    ours.close()
    theirs.close()
