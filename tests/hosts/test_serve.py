"""`dpmrecon serve`: both kinds of peers on one port, several at a time, its start and its end."""

import contextlib
import os
import re
import signal
import socket
import struct
import threading
from types import SimpleNamespace

import ismrmrd
import numpy as np
import pytest
from dpmrecon.cli import main
from dpmrecon.hosts.serve import Server
from dpmrecon.hosts.wire import Wire

from support import fake_peer
from support.fake_peer import close, config_name
from support.forked import Forked
from support.results import by_place, images_of
from support.sessions import FEW, connect, exchange
from support.streams import IDENTIFIER, edited_stream, planted, raw_stream
from support.waiting import LIMIT, until


def replayed(scan, out, model, *more: str) -> dict[tuple[int, int], ismrmrd.Image]:
    """The images of `dpmrecon replay` by (series, slice)."""
    few = [text for name, value in FEW.items() for text in (f"--{name}", value)]
    assert main(["replay", str(scan), "--out", str(out), "--model", str(model), *few, *more]) == 0
    return images_of(out)


def test_an_mrd_client_gets_the_images_of_replay_in_whole_numbers(start, scan, model, tmp_path):
    expected = replayed(scan, tmp_path, model)
    answer = exchange(start(), *raw_stream(scan))
    assert answer.texts == answer.errors == []
    assert answer.ids[-1] == fake_peer.CLOSE
    found = by_place(answer.images)
    assert set(found) == set(expected) == {(1, 0), (1, 1), (2, 0), (2, 1)}
    # slices come in the order of acquisition, which is interleaved: a series' scale is that of its first slice
    slopes = {(place[0], float(image.meta["RescaleSlope"])) for place, image in found.items()}
    assert len(slopes) == 2  # one a series: the spread's is finer
    for place, image in found.items():
        assert image.data.dtype == np.uint16
        true = expected[place].data * float(expected[place].meta["RescaleSlope"])
        slope = float(image.meta["RescaleSlope"])
        ours = image.data * slope + float(image.meta["RescaleIntercept"])
        assert np.abs(ours - true).max() <= 0.51 * slope + 1e-4 * true.max()
        assert image.getHead().image_index == expected[place].getHead().image_index
        assert "not for diagnostic use" in image.meta["ImageComments"]
    assert 900 < np.percentile(answer.images[0].data, 99) < 1100
    assert 1000 <= np.percentile(answer.images[1].data, 99) <= 2500


def test_a_gadgetron_gets_floats_and_the_same_numbers_each_time(start, scan):
    server = start()
    first, second = (exchange(server, *edited_stream(scan)) for _ in range(2))
    assert [image.data.dtype for image in first.images] == [np.float32] * 4
    assert first.raw == second.raw  # headers, meta and all


def test_several_peers_at_a_time_get_what_one_at_a_time_gets(start, scan):
    server = start()
    streams = [edited_stream(scan), raw_stream(scan), edited_stream(scan), raw_stream(scan, "dpm_t1_connect.xml")]
    alone = [exchange(server, *stream) for stream in streams]
    together = [None] * 4
    threads = [
        threading.Thread(target=lambda i=i: together.__setitem__(i, exchange(server, *streams[i]))) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    for one, other in zip(alone, together):
        assert len(one.images) == 4
        for image, same in zip(one.images, other.images, strict=True):
            assert np.array_equal(bytes(image.getHead()), bytes(same.getHead()))
            wanted = image.data.astype(float)
            assert np.abs(wanted - same.data).max() <= 1e-4 * wanted.max()


def test_one_peer_too_many_is_told_and_the_others_are_served(start, scan):
    server = start(peers=1)
    silent = connect(server)  # has no scan, and takes no place
    until(lambda: server._sessions)
    stream = raw_stream(scan)
    first = connect(server)
    first.send(*stream[:3])
    until(lambda: any(session.begun for session in list(server._sessions.values())))
    refused = exchange(server, *edited_stream(scan))
    expected = "1 scans are in hand and no more are taken at a time: send this one again later"
    assert refused.raw == fake_peer.error(expected) + close()
    first.send(*stream[3:])
    assert len(first.answer().images) == 4
    silent.socket.close()


def test_a_peer_that_sends_again_at_once_finds_its_place_free(start, scan, monkeypatch):
    server, stream, waited, send_close = start(peers=1), edited_stream(scan), threading.Event(), Wire.send_close

    def dawdling(peer: Wire) -> None:
        send_close(peer)
        waited.wait(LIMIT)

    monkeypatch.setattr(Wire, "send_close", dawdling)
    for _ in range(2):
        peer = connect(server)
        peer.send(*stream)
        for _ in range(4):
            peer.image()  # and not that the place is taken
        assert peer._read(2) == close()
        peer.socket.close()
    waited.set()


def test_a_peer_without_a_thread_is_let_go_and_the_others_are_served(start, scan, monkeypatch, caplog):
    server, begin = start(), threading.Thread.start

    def refuse(thread):
        if thread._target == server._serve_one:
            raise RuntimeError("can't start new thread")
        begin(thread)

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        with connect(server).socket as refused:
            assert refused.recv(1) == b""
    assert "a peer could not be served (can't start new thread)" in caplog.text
    assert not server._sessions
    assert len(exchange(server, *edited_stream(scan)).images) == 4


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (
            lambda s: [config_name("invertcontrast"), *s[1:]],
            "config 'invertcontrast' is unknown: valid ones are dpm, dpm_flair, dpm_t1, dpm_t2, dpm_dwi, dpm_swi, "
            "dpm_mprage, with _3d after a label or without it",
        ),
        (
            lambda s: [*s[:2], close()],
            "no image lines came, only noise measurements, navigators or nothing; send raw k-space",
        ),
        (lambda s: [s[0], s[2]], "a message with id 1008 came after the configuration: the header (id 3) is needed"),
        (
            lambda s: [fake_peer.text_message(2, b'{"parameters": {"model": "x"}}'), *s[1:]],
            "property 'model' belongs to the command line: valid ones here are contrast, sampler, "
            "mode, steps, samples, seed, fallback, gate, adapt, deadline, combine-averages, "
            "conjugate, noise, coils, ignore-flags, group, set, output, b-values, "
            "vein-phase, reformat",
        ),
        (
            lambda s: [fake_peer.text_message(2, b"<gadgetronStreamConfiguration/>"), *s[1:]],
            "the configuration is a chain with 0 external nodes for dpmrecon: one is needed",
        ),
    ],
)  # fmt: skip
def test_an_mrd_client_reads_errors_in_its_log_channel(start, scan, messages, expected):
    peer = connect(start())
    peer.send(*messages(raw_stream(scan)))
    peer.end_of_sending()
    text = f"ERROR: {expected}".encode() + b"\0"
    assert peer.answer().raw == fake_peer.text_message(fake_peer.TEXT, text) + close()


def test_a_chain_in_full_and_json_configure_an_mrd_client(start, scan):
    chain = (
        '<configuration><version>2</version><stream><external><connect port="1"/><configuration>'
        '<property name="samples" value="1"/><property name="seed" value="3"/></configuration></external></stream>'
        "</configuration>"
    )
    server = start()
    beside = '{"version": "1.1.0", "seed": 3, "parameters": {"samples": 1}}'
    for text in (chain, '{"parameters": {"samples": 1, "seed": 3}}', beside):
        answer = exchange(server, fake_peer.text_message(2, text.encode() + b"\0"), *raw_stream(scan)[1:])
        assert len(answer.images) == 2
        assert answer.images[0].meta["dpmrecon_seed"] == "3"


def test_a_peer_that_says_nothing_or_nonsense_does_not_disturb(start, scan):
    server = start()
    silent, rude = connect(server), connect(server)
    rude.send(b"GET / HTTP/1.1\r\n\r\n")
    rude.end_of_sending()
    answer = rude.answer()
    assert answer.raw.startswith(
        fake_peer.error("a message with id 17735 came first: a configuration (id 1 or 2) is needed")
    )
    connect(server).socket.close()
    assert len(exchange(server, *edited_stream(scan)).images) == 4
    silent.socket.close()


def test_a_peer_that_dies_in_mid_scan_costs_nothing(start, scan):
    server = start(peers=1)
    stream = edited_stream(scan)
    peer = connect(server)
    peer.send(*stream[:3], stream[3][:5000])
    peer.image()
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no orderly end
    peer.socket.close()
    until(lambda: len(exchange(server, *stream).images) == 4)  # its place is free again
    until(lambda: not server._sessions)  # and nobody is left to spin


def test_a_second_scan_on_a_connection_costs_the_first_nothing(start, scan, caplog):
    server, messages = start(), raw_stream(scan)
    answer = exchange(server, *messages, *messages)
    assert len(answer.images) == 4 and not answer.texts
    until(lambda: "a connection carries one scan" in caplog.text)
    until(lambda: not server._sessions)


def test_a_lost_device_is_told_and_ends_the_service_with_1(model, scan, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("dpmrecon.recon.prepare.with_maps", fail)
    monkeypatch.setattr("dpmrecon.device.synchronize", fail)  # a device that is well lets itself be waited for
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    answers = []

    def peer():
        with contextlib.suppress(ConnectionRefusedError):
            answers.append(exchange(SimpleNamespace(port=port), *raw_stream(scan)))

    client = threading.Thread(target=lambda: until(lambda: peer() or answers))
    client.start()
    guard = threading.Timer(LIMIT, os.kill, (os.getpid(), signal.SIGTERM))  # a service that goes on ends with 0
    guard.start()
    assert main(["serve", "--port", str(port), "--model", str(model), "--device", "cpu"]) == 1
    guard.cancel()
    client.join()
    assert b"device cpu is lost (CUDA error: an illegal memory access was encountered)" in answers[0].texts[0]
    assert "stopped: device cpu is lost (CUDA error: an illegal memory access was encountered)" in caplog.text


# The command itself, in a process of its own


def command(model, **options) -> Forked:
    start = ["serve", "--port", "0", "--model", str(model), "--device", "cpu", "--steps", "4", "--samples", "1"]
    return Forked(main, *start, **options)


def test_the_service_is_bound_at_once_finishes_its_scan_and_leaves_no_names(scan, model, tmp_path):
    connected, load = tmp_path / "connected", Server.load

    def when_connected(self, given):
        until(connected.exists)
        return load(self, given)

    process = command(model, before=lambda: setattr(Server, "load", when_connected))
    until(lambda: b"loading the model" in process.errors())
    port = int(re.search(rb"port (\d+), loading the model", process.errors())[1])
    stream = raw_stream(scan, xml=planted)
    peer = fake_peer.Peer(socket.create_connection(("127.0.0.1", port)))  # before the model is there
    connected.touch()
    peer.send(*stream[:-20])  # all of the first slice, most of the second
    idle = fake_peer.Peer(socket.create_connection(("127.0.0.1", port)))
    until(lambda: b"ready" in process.errors())
    peer.image()  # the scan is in hand
    os.kill(process.pid, signal.SIGTERM)
    assert idle.answer().raw in (b"", close())  # it has no scan in hand
    peer.send(*stream[-20:])
    answer = peer.answer()
    assert (len(answer.images), answer.ids[-1], answer.texts) == (1, fake_peer.CLOSE, [])
    done = process.end()
    assert done.returncode == 0
    assert b'"images": 2' in done.stderr
    assert IDENTIFIER not in done.stderr


def test_a_model_that_cannot_load_is_said_at_the_start(tmp_path):
    done = command(tmp_path / "none.safetensors").end()
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(b"dpmrecon: model file")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--contrast", "pd"], "contrast 'pd' is unknown"),
        (["--peers", "0"], "--peers is 0"),
        (["--port", "70000"], "--port 70000"),
        (["--address", "256.0.0.1"], "cannot listen on 256.0.0.1"),
    ],
)
def test_what_cannot_be_served_is_said_at_the_start(model, capsys, more, words):
    assert main(["serve", "--port", "0", "--model", str(model), "--device", "cpu", *more]) == 2
    assert words in capsys.readouterr().err


def test_a_port_in_use_is_one_line(model, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port, "--model", str(model)]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err
