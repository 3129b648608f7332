"""`serve --metrics`: a real endpoint, read during and after a real scan."""

import sys
import urllib.request

import pytest
from dpmrecon.errors import BadInputError
from dpmrecon.hosts.metrics import address_of, kind_of

from support.sessions import connect, exchange
from support.streams import IDENTIFIER, planted, raw_stream
from support.waiting import until

parser = pytest.importorskip("prometheus_client.parser")


def scraped(server) -> dict[tuple[str, tuple[str, ...]], float]:
    """Values by name and labels' values, in the order of the labels' names."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics.port}/metrics") as answer:
        text = answer.read().decode()
    assert IDENTIFIER.decode() not in text
    return {
        (sample.name, tuple(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_a_scan_counts(start, scan):
    server = start(peers=2)
    server.measure("0")
    before = scraped(server)
    model = server._engine.checkpoint.model_id
    assert before["dpmrecon_model_info", (model,)] == 1
    assert before["dpmrecon_scans_in_hand", ()] == before["dpmrecon_queue", ()] == 0
    stream = raw_stream(scan)
    stream[1] = planted(stream[1])
    peer = connect(server)
    peer.send(*stream[:-1])
    until(lambda: scraped(server).get(("dpmrecon_slices_total", ("model",))) == 2)
    during = scraped(server)
    assert during["dpmrecon_scans_in_hand", ()] == 1
    assert ("dpmrecon_scans_total", ("complete", "MRD client")) not in during
    peer.send(stream[-1])
    assert len(peer.answer().images) == 4
    exchange(server, *stream[:2], stream[-1])  # a scan of no lines
    half = exchange(server, *stream[: 3 * len(stream) // 4], stream[-1])
    assert len(half.images) == 2
    until(lambda: scraped(server)["dpmrecon_scans_in_hand", ()] == 0)
    after = scraped(server)
    assert after["dpmrecon_scans_total", ("complete", "MRD client")] == 1
    assert after["dpmrecon_scans_total", ("failed", "MRD client")] == 1
    assert after["dpmrecon_scans_total", ("incomplete", "MRD client")] == 1
    assert after["dpmrecon_slices_total", ("missing",)] == 1
    assert after["dpmrecon_slices_total", ("model",)] == 3
    assert after["dpmrecon_scan_seconds_count", ()] == 3
    for stage in ("maps", "sampling"):
        assert after["dpmrecon_stage_seconds_count", (stage,)] == 3
        assert 0 < after["dpmrecon_stage_seconds_sum", (stage,)] <= after["dpmrecon_scan_seconds_sum", ()]
    assert after["process_resident_memory_bytes", ()] > 1e7


def test_fallbacks_are_counted_by_reason(start, scan):
    server = start(deadline="0")
    server.measure("127.0.0.1:0")
    assert exchange(server, *raw_stream(scan)).images
    until(lambda: server.metrics and scraped(server)["dpmrecon_scans_in_hand", ()] == 0)
    counts = {key: value for key, value in scraped(server).items() if key[0] == "dpmrecon_fallbacks_total"}
    ((_, (reason,)),) = counts
    assert "deadline" in reason and sum(counts.values()) == 2


def test_a_reason_is_one_series_whatever_its_numbers():
    one = kind_of("the residual is 3.21 (4.5 times that of a sound scan): lines 3, 17 and 40 differ")
    assert one == kind_of("the residual is 1e-5 (7 times that of a sound scan): lines 8 differ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("9021", ("127.0.0.1", 9021)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::1]:9021", ("::1", 9021))],
)
def test_where_metrics_are(text, expected):
    assert address_of(text) == expected


@pytest.mark.parametrize("text", ["", "x", "70000", "1.2.3.4:", "-1"])
def test_what_is_no_port_is_named(text):
    with pytest.raises(BadInputError, match="--metrics is"):
        address_of(text)


def test_a_port_that_is_taken_is_named(start):
    server = start()
    with pytest.raises(BadInputError, match=f"cannot listen on 127.0.0.1 port {server.port}"):
        server.measure(str(server.port))


def test_without_the_package_it_says_what_to_install(start, monkeypatch):
    server = start()
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(BadInputError, match=r"pip install dpmrecon\[metrics\]"):
        server.measure("0")
