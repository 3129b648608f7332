"""The audit log: what a line holds and does not hold, that files rotate, and what a full disk costs."""

import hashlib
import hmac
import json
import logging
import os
import re
import threading

import pytest
from dpmrecon.cli import main
from dpmrecon.errors import BadInputError
from dpmrecon.hosts import audit
from dpmrecon.hosts.audit import AuditLog
from dpmrecon.recon.gate import Verdict

from support import fake_peer
from support.edited import with_spike
from support.fake_peer import ForkedChild
from support.sessions import exchange
from support.streams import IDENTIFIER, edited_stream, planted, raw_stream
from support.waiting import until


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_tells_what_was_done_and_names_nobody(start, scan, tmp_path, model):
    log = AuditLog(tmp_path / "audit.jsonl")
    server = start(audit=log, seed="7")
    named, plain = raw_stream(scan, xml=planted), raw_stream(scan)
    exchange(server, *named)
    exchange(server, *plain)
    exchange(server, *named[:-20], fake_peer.close())
    whole, other, broken = lines_of(log.path)
    key = (tmp_path / "audit.key").read_bytes()
    assert whole["input"] == hmac.new(key, named[1][6:] + b"".join(named[2:]), hashlib.sha256).hexdigest()
    assert whole["input"] != other["input"]
    assert whole["header"] == other["header"]  # the patient's data are no part of it
    assert whole["header"]["encodedSpace"]["matrixSize"]["y"] == 48
    card = json.loads(model.with_suffix(".json").read_text())
    assert whole["model_sha256"] == card["checksum_sha256"]
    assert (whole["device"], whole["contrast"], whole["images"], whole["error"]) == ("cpu", "flair", 4, None)
    assert (whole["parameters"]["seed"], whole["parameters"]["settings"]["steps"]) == (7, 4)
    assert len(whole["residuals"]) == whole["slices"] == 2
    assert {"maps", "sampling", "total"} <= set(whole["seconds"])
    assert {"dpmrecon", "torch", "numpy", "ismrmrd", "python"} <= set(whole["versions"])
    assert broken["missing"] == broken["slices"] == len(broken["decisions"]) == 1
    assert broken["decisions"][0].startswith("missing: slice ")
    assert "slices are missing" in broken["error"]
    assert IDENTIFIER not in log.path.read_bytes()


def test_remarks_are_kept_and_the_peer_gets_them_too(start, scan, tmp_path, monkeypatch):
    text = "NOT TO BE TRUSTED: the image misses the data by 4.0 times the noise"
    monkeypatch.setattr("dpmrecon.recon.gate.CHECKS", (lambda item: Verdict("distrust", text),))
    log = AuditLog(tmp_path / "audit.jsonl")
    answer = exchange(start(audit=log), *raw_stream(with_spike(scan, tmp_path)))
    (line,) = lines_of(log.path)
    remarks = [decision for decision in line["decisions"] if decision.startswith("remark: slice 0: ")]
    assert len(remarks) == 2 and text in remarks[0] and "1 spike in k-space (coil 2" in remarks[1]
    assert all(text in image.meta["ImageComments"] for image in answer.images)


def test_decisions_of_a_deadline_and_of_an_unknown_contrast_are_kept(start, scan, tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    server = start(audit=log, deadline="0")
    name = re.compile(rb"((?:protocol|sequence)Name>)([^<]+)(</)")
    unknown = raw_stream(
        scan, "dpm", lambda xml: name.sub(lambda found: found[1] + b"?" * len(found[2]) + found[3], xml)
    )
    assert len(exchange(server, *unknown).images) == 2
    (line,) = lines_of(log.path)
    assert "the unlabelled prior is used" in line["decisions"][0]
    assert [text.split(": ")[0] for text in line["decisions"][1:]] == ["fallback", "fallback"]
    assert "the deadline of 0 s had passed" in line["decisions"][1]


def test_a_sampling_that_the_deadline_stops_is_a_decision(start, scan, tmp_path, monkeypatch):
    from dpmrecon.recon.deadline import Deadline

    # its plan finds time for all 4 steps of the 2 samples, but when the first step is done there is none left
    monkeypatch.setattr(Deadline, "until", lambda self, seconds: lambda: True)
    log = AuditLog(tmp_path / "audit.jsonl")
    answer = exchange(start(audit=log, deadline="1e6"), *raw_stream(scan))
    assert {image.meta["dpmrecon_evaluations"] for image in answer.images} == {"2"}
    (line,) = lines_of(log.path)
    told = "2 x 4 steps, stopped after 2 evaluations"
    assert sorted(line["decisions"]) == [f"deadline: slice {number}: {told}" for number in (0, 1)]


def test_full_files_are_put_aside_and_the_oldest_go(tmp_path):
    logs = [AuditLog(tmp_path / "audit.jsonl", largest=400, kept=3) for _ in range(3)]

    def write(worker):
        for number in range(20):
            logs[worker].write({"worker": worker, "number": number, "filling": "x" * 60})

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    kept = [lines_of(tmp_path / name) for name in reversed(names)]
    assert all(300 < (tmp_path / name).stat().st_size <= 400 for name in names[1:])
    for worker in range(3):  # each one's lines in order, none lost between
        numbers = [line["number"] for part in kept for line in part if line["worker"] == worker]
        assert numbers == list(range(20))[20 - len(numbers) :]


@pytest.fixture
def full_disk(monkeypatch):
    """From now on the disk takes 10 bytes of a line and no more."""
    write = os.write
    left = {}

    def short(file, data):
        room = left.setdefault(file, 10)
        if room == 0:
            raise OSError(28, "No space left on device")
        left[file] = 0
        return write(file, bytes(data)[:room])

    def fill():
        monkeypatch.setattr(audit.os, "write", short)

    return fill


def test_a_full_disk_costs_no_scan_and_is_said(start, scan, tmp_path, full_disk, caplog):
    log = AuditLog(tmp_path / "audit.jsonl")
    server = start(audit=log)
    with caplog.at_level(logging.INFO, "dpmrecon"):
        log.write({"before": 1})
        full_disk()
        assert len(exchange(server, *raw_stream(scan)).images) == 4
        until(lambda: not server._sessions)
    assert lines_of(log.path) == [{"before": 1}]  # not half a line either
    assert "No space left on device" in caplog.text
    assert '"images": 4' in caplog.text
    assert "No space left on device" in server.status()["audit"]
    assert [path.name for path in tmp_path.iterdir()] == ["audit.jsonl"]  # no half a key


def test_a_damaged_key_is_said_until_it_is_whole_again(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    assert log.hash() is not None and log.problem is None
    key = (tmp_path / "audit.key").read_bytes()
    (tmp_path / "audit.key").write_bytes(key[:-1])
    assert log.hash() is None
    log.write({"after": 1})  # a good line mends no key
    assert "audit.key holds no key of 32 bytes" in log.problem
    (tmp_path / "audit.key").write_bytes(key)
    assert log.hash() is not None and log.problem is None


def test_a_started_gadget_writes_its_line_too(tmp_path, model, scan, monkeypatch):
    monkeypatch.setenv(audit.VARIABLE, str(tmp_path / "audit.jsonl"))
    child = ForkedChild()
    child.peer.send(fake_peer.config(model=model, steps=4, samples=1), *edited_stream(scan)[1:])
    assert len(child.peer.answer().images) == 2
    child.output()
    (line,) = lines_of(tmp_path / "audit.jsonl")
    assert (line["peer"], line["images"], len(line["input"])) == ("Gadgetron", 2, 64)


def test_a_folder_that_is_not_there_is_said_at_the_start(tmp_path, capsys):
    path = tmp_path / "none" / "audit.jsonl"
    with pytest.raises(BadInputError, match="cannot be written"):
        AuditLog(path).check()
    assert main(["serve", "--port", "0", "--audit", str(path)]) == 2
    assert "audit log" in capsys.readouterr().err
