"""`python -m dpmrecon.health`: ready once the model is loaded, and not before; busy is ready too."""

import re
import socket
import subprocess
import sys
import threading

from dpmrecon import options
from dpmrecon.hosts import health
from dpmrecon.hosts.serve import STUCK, Server

from support.clock import Clock
from support.held_device import held
from support.sessions import FEW, connect
from support.streams import raw_stream
from support.waiting import LIMIT, until

PATIENT = ["--patience", str(LIMIT)]  # however busy this machine is


def test_ready_only_when_the_model_is_loaded(model, capsys):
    server = Server("127.0.0.1", 0)
    asked = ["--port", str(server.port)]
    assert health.main([*asked, "--patience", "0.3"]) == 1  # it listens, but has no model yet
    assert "the model loads still" in capsys.readouterr().out
    server.load(options.from_pairs({"model": str(model), **FEW}))
    thread = threading.Thread(target=server.serve)
    thread.start()
    assert health.main([*asked, *PATIENT]) == 0
    assert re.match(r"ready: model tiny-[0-9a-f]{12}, device cpu, scans 0, version ", capsys.readouterr().out)
    server.stop()
    thread.join(LIMIT)
    server.close()
    assert health.main(asked) == 1
    assert "nothing listens" in capsys.readouterr().out


def test_a_busy_service_is_ready_and_a_check_takes_no_scans_place(start, scan):
    server = start(peers=1)
    stream = raw_stream(scan)
    peer = connect(server)
    peer.send(*stream[:-1])
    peer.image()
    for _ in range(3):
        assert health.ask("127.0.0.1", server.port, LIMIT)["scans"] == 1
    peer.send(stream[-1])
    assert len(peer.answer().images) == 3
    until(lambda: health.ask("127.0.0.1", server.port, LIMIT)["scans"] == 0)


def test_a_device_that_hangs_is_not_ready(start, capsys):
    clock = Clock()
    server = start(clock=clock)
    asked = ["--port", str(server.port), *PATIENT]
    with held(server._device):
        clock.now += STUCK
        assert health.main(asked) == 0
        clock.now += 1
        assert health.main(asked) == 1
        assert f"stuck: {STUCK + 1:.0f} s with one piece of work: end the service" in capsys.readouterr().out
    until(lambda: health.main(asked) == 0)


def test_somebody_elses_port_is_not_ready(capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            connection.recv(2000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        assert health.main(["--port", str(listener.getsockname()[1]), *PATIENT]) == 1
        thread.join()
    assert "is no dpmrecon service" in capsys.readouterr().out


def test_the_check_is_light():
    code = "import sys, dpmrecon.health; print([m for m in ('torch', 'numpy', 'ismrmrd') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
