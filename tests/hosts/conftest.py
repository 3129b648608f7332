"""A small scan, what a peer sends of it, and who takes it."""

import threading
import time

import pytest
from dpmrecon import options
from dpmrecon.hosts.engine import Engine
from dpmrecon.hosts.serve import Server
from dpmrecon.mrd.file import open_scan

from support import fake_peer
from support.sessions import FEW
from support.streams import recon_messages
from support.waiting import LIMIT


@pytest.fixture(scope="module")
def scan(simulated_scan):
    return simulated_scan(matrix=(48, 64), n_slices=2)


@pytest.fixture
def start(model):
    """start(**options) -> a running Server; it is stopped at the end of the test, and must then end."""
    running = []

    def begin(peers: int = 8, audit=None, clock=time.monotonic, **given) -> Server:
        server = Server("127.0.0.1", 0, peers, audit, clock)
        server.load(options.from_pairs({"model": str(model), **FEW, **given}))
        thread = threading.Thread(target=server.serve)
        thread.start()
        running.append((server, thread))
        return server

    yield begin
    for server, thread in running:
        server.stop()
        thread.join(LIMIT)
        assert not thread.is_alive()
        server.close()


@pytest.fixture(scope="module")
def stream(scan):
    """(HEADER message, one RECON_DATA message a slice) as the gadgets before ours would make them of the scan."""
    with open_scan(scan) as opened:
        header = fake_peer.text_message(fake_peer.HEADER, opened.xml)
        return header, list(recon_messages(opened))


@pytest.fixture(scope="module")
def engine(model):
    return Engine.of(options.from_pairs({"model": str(model), "device": "cpu", "steps": "4", "samples": "1"}))
