"""A real archive: Orthanc on the loopback."""

import contextlib
import json
import random
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dpmrecon.dicom.send import Archive

from support.waiting import LIMIT

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")


def free_port() -> int:
    """Not one of those that clients are given, of which a connection could take it before it is listened at."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port


def rest(address: str, path: str) -> bytes:
    with urllib.request.urlopen(address + path, timeout=LIMIT) as answer:
        return answer.read()


@contextmanager
def started(folder: Path) -> Iterator[tuple[Archive, str]]:
    """(peer, REST address) of an Orthanc of our own, started on free ports; skips where it is not installed."""
    if ORTHANC is None:
        pytest.skip("Orthanc is not installed (Debian package orthanc): nothing is sent to a real archive")
    dicom, http = free_port(), free_port()
    config = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "SyncStorageArea": False,
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomPort": dicom,
        "DicomAet": "ARCHIVE",
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowStore": True,
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([ORTHANC, str(folder / "orthanc.json")], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{http}"
    try:
        for _ in range(10 * LIMIT):
            try:
                rest(address, "/system")
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        else:
            pytest.fail((folder / "log").read_text())
        yield Archive("ARCHIVE", "127.0.0.1", dicom), address
    finally:
        process.kill()  # it takes seconds to end, and what it stores is no longer wanted
        process.wait(LIMIT)
