"""`serve --dicom --send`: what replay writes, sent to a real SCP, through kills of the process and of the archive."""

import contextlib
import logging
import os
import re
import signal
import socket
import urllib.request

import numpy as np
import pydicom
import pytest
from dpmrecon.cli import main
from dpmrecon.dicom.send import archive_from_text, dicom_files
from dpmrecon.errors import BadInputError
from dpmrecon.hosts.dicom_queue import FAILURES, DicomQueue
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage

from support import fake_peer
from support.edited import edited
from support.forked import Forked
from support.orthanc import free_port
from support.results import replay
from support.sessions import FEW, exchange
from support.streams import edited_stream, raw_stream
from support.waiting import LIMIT, until


@contextlib.contextmanager
def archive(port: int, statuses=lambda n: 0x0000, never=lambda uid: False):
    """An SCP; yields the UIDs that it took. statuses: of the n-th image; never: whether it lacks resources for one."""
    taken, seen = [], []

    def store(event):
        status = 0xA700 if never(event.dataset.SOPInstanceUID) else statuses(len(seen))
        seen.append(status)
        if status == 0x0000:
            taken.append(event.dataset.SOPInstanceUID)
        return status

    entity = AE("SCP")
    entity.add_supported_context(MRImageStorage)
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield taken
    finally:
        server.shutdown()


def uids(folder) -> list[str]:
    return sorted(pydicom.dcmread(path).SOPInstanceUID for path in folder.glob("*/*/*.dcm"))


def jobs(folder) -> list[str]:
    return sorted(path.name for path in (folder / "queue").iterdir() if path.is_dir())


class Service(Forked):
    """`dpmrecon serve` as a process that can be killed."""

    def __init__(self, model, folder, to: str):
        few = [text for name, value in FEW.items() for text in (f"--{name}", value)]
        options = ["--port", "0", "--model", str(model), *few, "--dicom", str(folder), "--send", to]
        super().__init__(main, "serve", *options)
        until(lambda: b"ready" in self.errors())
        self.port = int(re.search(rb"port (\d+)", self.errors())[1])

    def exchange(self, *messages: bytes) -> fake_peer.Answer:
        peer = fake_peer.Peer(socket.create_connection(("127.0.0.1", self.port)), timeout=LIMIT)
        peer.send(*messages)
        return peer.answer()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self.end().returncode == -signal.SIGKILL


def test_files_of_an_incomplete_scan_say_what_is_missing(start, simulated_scan, tmp_path):
    def cut(number, line):
        return None if line.idx.slice == 1 and line.idx.kspace_encode_step_1 >= 20 else line

    scan = edited(simulated_scan(n_slices=2), tmp_path, cut)
    server = start()
    server.write_dicom(tmp_path / "dicom", None)
    assert len(exchange(server, *raw_stream(scan)).images) == 2  # and its spread
    until(lambda: jobs(tmp_path / "dicom") == [])
    for path in dicom_files(tmp_path / "dicom"):
        assert pydicom.dcmread(path).ImageComments.startswith("INCOMPLETE SCAN: 1 of 2 images missing: slice 1; RES")


@pytest.mark.parametrize("sent", [raw_stream, edited_stream])
def test_the_files_are_those_of_replay(start, scan, model, tmp_path, sent):
    few = [text for name, value in FEW.items() for text in (f"--{name}", value)]
    assert replay(scan, tmp_path / "replay", model, *few) == 0
    server = start()
    server.write_dicom(tmp_path / "dicom", None)
    assert len(exchange(server, *sent(scan)).images) == 4
    until(lambda: jobs(tmp_path / "dicom") == [])
    found = sorted((tmp_path / "dicom").glob("*/*/*.dcm"))
    expected = dicom_files(tmp_path / "replay/dicom")
    assert [path.parts[-2:] for path in found] == [path.parts[-2:] for path in expected]
    for one, other in zip(map(pydicom.dcmread, found), map(pydicom.dcmread, expected), strict=True):
        assert [element.tag for element in one] == [element.tag for element in other]
        for name in (
            "PatientName",
            "ImageType",
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "SeriesDescription",
        ):
            assert one.get(name) == other.get(name)
        ours, theirs = (file.pixel_array * float(file.RescaleSlope) for file in (one, other))
        ours, theirs = ours / np.linalg.norm(ours), theirs / np.linalg.norm(theirs)
        limit = 2e-3 if sent is raw_stream else 2e-2  # of a Gadgetron, the noise is estimated
        assert np.linalg.norm(ours - theirs) < limit


def test_a_header_that_ends_with_a_zero_has_its_dicom(start, scan, tmp_path):
    """As clients of python-ismrmrd-server send it."""
    server = start()
    server.write_dicom(tmp_path, None)
    name, header, *lines = raw_stream(
        scan, xml=lambda message: fake_peer.text_message(fake_peer.HEADER, message[6:] + b"\0")
    )
    assert len(exchange(server, name, header, *lines).images) == 4
    until(lambda: jobs(tmp_path) == [])
    assert len(dicom_files(tmp_path)) == 4


def test_equal_scans_have_equal_identifiers_and_others_have_others(start, scan, tmp_path):
    server = start()
    for name, seed in (("one", "1"), ("two", "1"), ("three", "2")):
        server.write_dicom(tmp_path / name, None)
        assert exchange(
            server, fake_peer.text_message(2, f'{{"seed": "{seed}"}}'.encode()), *raw_stream(scan)[1:]
        ).images
        until(lambda name=name: jobs(tmp_path / name) == [])
        server.dicom.stop()
    one, two, three = (uids(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two and len(set(one)) == 4 and not set(one) & set(three)


def test_a_scan_that_breaks_off_has_no_dicom(start, scan, tmp_path):
    server = start()
    server.write_dicom(tmp_path, None)
    peer = fake_peer.Peer(socket.create_connection(("127.0.0.1", server.port)), timeout=LIMIT)
    peer.send(*raw_stream(scan)[:-20])
    peer.end_of_sending()
    assert peer.answer().texts
    assert jobs(tmp_path) == uids(tmp_path) == []


def test_a_disk_that_takes_nothing_costs_the_dicom_and_not_the_scan(start, scan, tmp_path, caplog):
    server = start()
    server.write_dicom(tmp_path, None)
    (tmp_path / "queue/lock").unlink()
    (tmp_path / "queue").rmdir()
    (tmp_path / "queue").write_text("no folder")
    assert len(exchange(server, *raw_stream(scan)).images) == 4
    assert "no DICOM: cannot write to" in caplog.text
    (tmp_path / "queue").unlink()
    (tmp_path / "queue").mkdir()


def test_an_image_that_cannot_be_kept_costs_the_dicom_and_not_the_scan(start, scan, tmp_path, monkeypatch, caplog):
    def fails(self, *given):
        raise ValueError("Anna Example")

    server = start()
    server.write_dicom(tmp_path, None)
    monkeypatch.setattr("dpmrecon.hosts.dicom_queue.ImagesFile.add", fails)
    answer = exchange(server, *raw_stream(scan))
    assert len(answer.images) == 4 and not answer.texts
    assert caplog.text.count("no DICOM: internal error: ValueError") == 1 and "Anna" not in caplog.text
    assert server.status()["dicom"] == "a scan was not taken, internal error: ValueError"
    assert list((tmp_path / "queue").glob("*-*")) == []


def test_a_disk_without_room_for_the_files_is_told_in_words_of_the_service(start, scan, tmp_path, monkeypatch):
    def full(*given):
        raise BadInputError("cannot write to x: make room or choose another --out") from OSError(28, "No space left")

    server = start()
    monkeypatch.setattr("dpmrecon.hosts.dicom_queue.write_dicom", full)
    server.write_dicom(tmp_path, None)
    assert len(exchange(server, *raw_stream(scan)).images) == 4
    until(lambda: server.status()["dicom"])
    assert server.status()["dicom"] == f"cannot write to {tmp_path} ([Errno 28] No space left): make room"
    assert len(jobs(tmp_path)) == 1
    server.dicom.stop()


def test_a_folder_that_is_gone_costs_the_dicom_until_it_is_back(start, scan, tmp_path, caplog):
    folder = tmp_path / "dicom"
    server = start()
    server.write_dicom(folder, None)
    server.measure("0")
    assert server.status()["dicom"] is None
    folder.rename(tmp_path / "away")
    assert len(exchange(server, *raw_stream(scan)).images) == 4
    told = server.status()["dicom"]
    assert told.startswith("a scan was not taken, cannot write to") and told.endswith(": mend that")
    assert "--out" not in caplog.text
    assert b"dicom_waiting NaN" in urllib.request.urlopen(f"http://127.0.0.1:{server.metrics.port}/metrics").read()
    folder.mkdir()
    assert len(exchange(server, *raw_stream(scan)).images) == 4
    until(lambda: len(uids(folder)) == 4 and not jobs(folder))
    assert server.status()["dicom"] is None


def test_a_folder_that_cannot_be_read_is_tried_again(tmp_path, caplog):
    queue = DicomQueue(tmp_path, None, pauses=(0.01,))
    (tmp_path / "queue").rename(tmp_path / "away")
    queue.start()
    until(lambda: "cannot read" in caplog.text)
    (tmp_path / "away").rename(tmp_path / "queue")
    job = tmp_path / "queue" / "20260101T000000-0"
    job.mkdir()
    (job / "job.json").write_text("{}")
    until(lambda: "the DICOM of 20260101T000000-0 failed" in caplog.text)
    queue.stop()


def test_a_scan_of_which_no_dicom_can_be_made_holds_up_no_other(start, scan, tmp_path):
    server = start()
    server.write_dicom(tmp_path, None)
    asked = fake_peer.text_message(2, b'{"output": "complex", "samples": "1"}')
    assert len(exchange(server, asked, *raw_stream(scan)[1:]).images) == 2
    assert exchange(server, *raw_stream(scan)).images
    until(lambda: not jobs(tmp_path))
    (told,) = (tmp_path / "refused").iterdir()
    assert "no DICOM: its images are complex alone" in told.read_text()
    assert len(uids(tmp_path)) == 4


def test_a_scan_that_fails_again_and_again_is_given_up_and_one_that_comes_ends_the_pause(tmp_path, caplog):
    queue = DicomQueue(tmp_path, None, pauses=(1e6,))
    job = tmp_path / "queue" / "20260101T000000-0"
    job.mkdir()
    (job / "job.json").write_text("{}")
    queue.start()
    until(lambda: queue.wake() or not jobs(tmp_path))
    queue.stop()
    assert caplog.text.count("failed (KeyError)") == FAILURES
    assert f"failed {FAILURES} times" in (tmp_path / "refused/20260101T000000-0.json").read_text()


def test_a_scan_whose_files_were_taken_away_holds_up_no_other(tmp_path):
    queue = DicomQueue(tmp_path, archive_from_text("SCP@127.0.0.1:104"), pauses=(1e6,))
    for name in ("queue/20260101T000000-0", "20260101T000000-0"):
        (tmp_path / name).mkdir()
    queue.start()
    until(lambda: not jobs(tmp_path))
    queue.stop()
    assert "holds no .dcm files" in (tmp_path / "refused/20260101T000000-0.json").read_text()


def test_a_stop_right_before_a_round_is_seen(tmp_path, monkeypatch):
    queue, waits = DicomQueue(tmp_path, None), []
    clear = queue._woken.clear

    def stopped():
        queue.stop()
        clear()

    monkeypatch.setattr(queue._woken, "clear", stopped)
    monkeypatch.setattr(queue._woken, "wait", lambda *given: waits.append(given))
    queue._work()
    assert waits == []


def test_nothing_is_lost_on_kills(model, scan, tmp_path):
    """First while the archive is away, then while it takes the second image of a scan."""
    port = free_port()
    folder, to = tmp_path / "dicom", f"SCP@127.0.0.1:{port}"
    service = Service(model, folder, to)
    for contrast in ("dpm_flair", "dpm_t1"):
        answer = service.exchange(*raw_stream(scan, contrast))
        assert len(answer.images) == 4 and answer.ids[-1] == fake_peer.CLOSE
    service.kill()
    assert len(jobs(folder)) == 2

    service = Service(model, folder, to)  # tries, and pauses
    victim = service.pid

    def statuses(n: int) -> int:
        if n == 1:
            os.kill(victim, signal.SIGKILL)
            return 0xA700
        return 0x0000

    with archive(port, statuses) as taken:
        assert service.end().returncode == -signal.SIGKILL
        assert len(taken) == 1 and len(jobs(folder)) == 2
        service = Service(model, folder, to)
        until(lambda: not jobs(folder))
        assert sorted(set(taken)) == uids(folder) and len(set(taken)) == 8
    os.kill(service.pid, signal.SIGTERM)
    assert service.end().returncode == 0
    assert not (folder / "refused").exists()


def test_an_archive_is_tried_again_and_a_refusal_is_told(start, scan, tmp_path, caplog):
    """Short of resources first; then it refuses one image for good, which holds up nothing."""
    server, port = start(), free_port()
    server.write_dicom(tmp_path, f"SCP@127.0.0.1:{port}")
    server.dicom._pauses = (0.01,)
    with archive(port, lambda n: {0: 0xA700, 4: 0xC000}.get(n, 0x0000)) as taken, caplog.at_level(logging.INFO):
        assert exchange(server, *raw_stream(scan)).images
        until(lambda: not jobs(tmp_path))
        assert "out of resources" in caplog.text and "tried again" in caplog.text
    (told,) = (tmp_path / "refused").iterdir()
    assert "cannot understand" in told.read_text()
    assert len(set(taken)) == 3 and len(uids(tmp_path)) == 4


def test_a_scan_that_the_archive_does_not_take_holds_up_no_other(start, scan, tmp_path, caplog):
    server, port, first = start(), free_port(), []

    def of_the_first(uid: str) -> bool:
        first[:] = first or jobs(tmp_path)[:1]
        return uid in {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / first[0]).rglob("*.dcm")}

    server.write_dicom(tmp_path, f"SCP@127.0.0.1:{port}")
    server.dicom._pauses = (0.01,)
    with archive(port, never=of_the_first) as taken:
        assert exchange(server, *raw_stream(scan)).images
        until(lambda: first)
        assert exchange(server, *raw_stream(scan, "dpm_t1")).images
        until(lambda: len(taken) == 4)
        until(lambda: jobs(tmp_path) == first)
        until(lambda: f"{first[0]}: archive" in caplog.text)
        server.dicom.stop()
    assert not any(map(of_the_first, taken))


def test_what_cannot_be_used_is_named(tmp_path):
    queue = DicomQueue(tmp_path, None)
    try:
        with pytest.raises(BadInputError, match="is another service's"):
            DicomQueue(tmp_path, archive_from_text("SCP@127.0.0.1:104"))
    finally:
        queue.stop()
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="choose another --dicom"):
        DicomQueue(tmp_path / "file", None)


def test_a_title_that_no_archive_has_is_refused_at_the_start(start, tmp_path):
    with pytest.raises(BadInputError, match="archive 'RÖNTGEN@127.0.0.1:104' is not usable"):
        start().write_dicom(tmp_path, "RÖNTGEN@127.0.0.1:104")


def test_sending_needs_a_place_to_wait(capsys):
    assert main(["serve", "--port", "0", "--send", "SCP@127.0.0.1:104"]) == 2
    assert "--send needs --dicom DIR" in capsys.readouterr().err
