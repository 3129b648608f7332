"""`dpmrecon stream`, between the tools of a pipe: recorded bytes in, images out, and what breaks on the way."""

import contextlib
import gzip
import io
import os
import subprocess
import sys
from pathlib import Path

import ismrmrd
import numpy as np
import pydicom
import pytest
from dpmrecon.cli import main
from dpmrecon.hosts import wire
from dpmrecon.hosts.adapters import LATE
from dpmrecon.hosts.stream import exit_code
from dpmrecon.hosts.wire import Wire
from dpmrecon.tools.doctor import foreign

from support.fake_peer import text_message
from support.forked import forked
from support.paths import shared
from support.recorded import _Bytes
from support.results import images, report
from support.streams import raw_stream
from support.waiting import until

FEW = ["--steps", "2", "--samples", "1", "--device", "cpu"]


def stream(data: bytes, *options: str) -> subprocess.CompletedProcess:
    return forked(main, "stream", *FEW, *options, given=data)


def of(data: bytes) -> list[ismrmrd.Image]:
    """The images of a stream that holds nothing else and ends with CLOSE."""
    source, found = io.BytesIO(data), []
    while (number := int.from_bytes(source.read(2), "little")) == wire.IMAGE:
        found.append(ismrmrd.Image.deserialize_from(source.read))
    assert number == wire.CLOSE and not source.read()
    return found


def test_the_recorded_stream_is_what_replay_makes_of_its_scan(model, tmp_path):
    """ismrmrd_hdf5_to_stream's bytes, without a configuration and with its name."""
    scan = shared("ismrmrd/t1_brain_r4.h5")
    out = tmp_path / "out"
    assert main(["replay", str(scan), "--out", str(out), "--model", str(model), "--contrast", "t1", *FEW]) in (
        0,
        3,
    )
    (expected,) = images(out)
    for name, options in (("t1_brain_r4", ["--contrast", "t1"]), ("t1_brain_r4_config", [])):
        answer = stream(gzip.decompress(shared(f"wire/{name}.stream.gz").read_bytes()), "--model", str(model), *options)
        assert answer.returncode in (0, 3), answer.stderr
        (found,) = of(answer.stdout)
        scale = float((found.data * expected.data).sum() / (found.data.astype(float) ** 2).sum())
        error = np.linalg.norm(scale * found.data - expected.data) / np.linalg.norm(expected.data)
        assert error < 1e-3  # whole numbers
        assert b"slice 0" in answer.stderr


def test_what_comes_out_of_half_a_scan(model, simulated_scan):
    """Images that are done are out, the rest is named, and the exit code tells."""
    messages = raw_stream(simulated_scan(n_slices=2, contrast="flair"))
    named = ("--model", str(model))
    whole = stream(b"".join(messages), *named)
    assert whole.returncode in (0, 3) and len(of(whole.stdout)) == 2
    half = stream(b"".join(messages[: 3 * len(messages) // 4]), *named)
    assert (half.returncode, len(of(half.stdout))) == (4, 1)
    assert b"connection ended" in half.stderr and b"Traceback" not in half.stderr


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", b"nothing came on standard input"),
        (b"GIF89a and more", b"came first: a configuration"),
        (text_message(wire.HEADER, b"<xml>"), b"header"),
        (
            text_message(wire.CONFIG, b'{"model": "x"}') + text_message(wire.HEADER, b"<xml>"),
            b"property 'model' belongs to the command line",
        ),
    ],
)
def test_rubbish_is_named_and_the_stream_is_closed(model, data, words):
    answer = stream(data, "--model", str(model))
    assert answer.returncode == 2 and of(answer.stdout) == []
    assert words in answer.stderr and b"Traceback" not in answer.stderr


def test_a_next_tool_that_leaves_is_no_traceback(model, simulated_scan):
    data = b"".join(raw_stream(simulated_scan(n_slices=2, contrast="flair")))
    reading, writing = os.pipe()
    os.close(reading)
    answer = forked(main, "stream", *FEW, "--model", str(model), given=data, before=lambda: os.dup2(writing, 1))
    os.close(writing)
    assert answer.returncode == 2 and b"it is gone" in answer.stderr and b"Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ({"error": None, "fallbacks": 0, "slices": 3, "missing": 0}, 0),
        ({"error": None, "fallbacks": 1, "slices": 3, "missing": 0}, 3),
        ({"error": "1 of 3 slices are missing", "fallbacks": 1, "slices": 2, "missing": 1}, 4),
        ({"error": "the connection ended", "fallbacks": 0, "slices": 1, "missing": 0}, 4),
        ({"error": "the connection ended", "fallbacks": 0, "slices": 0, "missing": 0}, 2),
        ({"error": "no model"}, 2),
    ],
)
def test_exit_codes_are_replays(record, code):
    assert exit_code(record) == code


def test_a_device_that_fails_is_no_bad_input():
    assert exit_code({"error": "device cuda is lost", "fallbacks": 0, "slices": 1, "missing": 0}, failure=1) == 1


def test_the_recorded_bytes_begin_as_announced():
    for name, first in (("t1_brain_r4", wire.HEADER), ("t1_brain_r4_config", wire.CONFIG_NAME)):
        peer = Wire(_Bytes(gzip.decompress(shared(f"wire/{name}.stream.gz").read_bytes())))
        assert peer.message_id() == first


def replay_of(data: bytes, out, *options: str) -> subprocess.CompletedProcess:
    return forked(main, "replay", "-", "--out", str(out), *FEW, *options, given=data)


def test_replay_of_a_stream_is_the_replay_of_its_scan(model, simulated_scan, tmp_path):
    """Odd and unequal matrix; the label is that of the configuration's name, the header's protocol says another."""
    scan = simulated_scan(matrix=(45, 64), n_slices=2, contrast="flair")
    named = ("--model", str(model))
    assert main(["replay", str(scan), "--out", str(tmp_path / "file"), *named, "--contrast", "t1", *FEW]) == 0
    data = b"".join(raw_stream(scan, "dpm_t1"))
    answer = replay_of(data, tmp_path / "stream", *named)
    assert answer.returncode == 0, answer.stderr
    for one, other in zip(images(tmp_path / "file"), images(tmp_path / "stream"), strict=True):
        assert np.array_equal(one.data, other.data) and bytes(one.getHead()) == bytes(other.getHead())
    assert report(tmp_path / "stream")["contrast"] == report(tmp_path / "file")["contrast"] == "t1"
    assert list((tmp_path / "stream").glob("dicom/**/*.dcm"))


def test_replay_of_a_stream_takes_its_parameters_and_names_late_ones(model, simulated_scan, tmp_path):
    messages = raw_stream(simulated_scan())
    given, late = (text_message(wire.TEXT, b'{"parameters": {"seed": %d}}' % seed) for seed in (3, 4))
    data = b"".join([*messages[:2], given, *messages[2:5], late, *messages[5:]])
    assert replay_of(data, tmp_path, "--model", str(model)).returncode in (0, 3)
    assert report(tmp_path)["seed"] == 3 and any(LATE in remark for remark in report(tmp_path)["remarks"])


@pytest.mark.parametrize(
    ("kept", "code", "n_images"),
    [
        (slice(None, -1), 4, 2),  # all lines, no CLOSE
        (slice(None, -20), 4, 1),
        (slice(None, 2), 2, 0),
    ],
)
def test_replay_of_a_stream_that_breaks_off(model, simulated_scan, tmp_path, kept, code, n_images):
    out = tmp_path / "out"
    answer = replay_of(b"".join(raw_stream(simulated_scan(n_slices=2))[kept]), out, "--model", str(model))
    assert answer.returncode == code, answer.stderr
    assert b"Traceback" not in answer.stderr
    if n_images:
        assert len(images(out)) == n_images and b"connection ended" in answer.stderr
    else:
        assert not (out / "images.h5").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", b"nothing came on standard input"),
        (text_message(wire.CONFIG, b"<configuration/>") + text_message(wire.HEADER, b"<x/>"), b"`stream` takes these"),
    ],
)
def test_replay_names_what_is_no_stream_of_lines(model, tmp_path, data, words):
    answer = replay_of(data, tmp_path / "out", "--model", str(model))
    assert answer.returncode == 2 and words in answer.stderr and b"Traceback" not in answer.stderr
    assert not (tmp_path / "out").exists()


def test_a_process_that_is_killed_leaves_nothing_of_the_scan(model, simulated_scan, tmp_path):
    """Its temporary files would hold the patient's header."""
    room, out = tmp_path / "temporary", tmp_path / "out"
    room.mkdir()
    command = [sys.executable, "-m", "dpmrecon.cli", "replay", "-", "--out", str(out), "--model", str(model), *FEW]
    environment = {**os.environ, "TMPDIR": str(room)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        for message in raw_stream(simulated_scan(n_slices=2))[:-1]:
            process.stdin.write(message)
        process.stdin.flush()

        def holds_lines() -> bool:
            found = 0
            for file in Path(f"/proc/{process.pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
                    found += str(room) in os.readlink(file) and os.stat(file).st_size > 1 << 16
            return found > 0

        until(holds_lines)
        assert list(room.iterdir()) == []
        process.kill()
    assert list(room.iterdir()) == [] and not out.exists()


def test_equal_streams_give_equal_identifiers(model, simulated_scan, tmp_path):
    """An archive that gets a scan twice has it once."""
    data = b"".join(raw_stream(simulated_scan(matrix=(45, 64))))
    names = []
    for out in (tmp_path / "one", tmp_path / "two"):
        assert replay_of(data, out, "--model", str(model)).returncode == 0
        names.append([pydicom.dcmread(file).SOPInstanceUID for file in sorted(out.glob("dicom/**/*.dcm"))])
    assert names[0] == names[1] != []


def test_the_doctor_says_what_takes_a_recorded_stream(model):
    """A header first, a configuration's name first, a Gadgetron's configuration first."""
    for name in ("t1_brain_r4.stream", "t1_brain_r4_config.stream", "t1_brain_r4.recondata.bin"):
        path = shared(f"wire/{name}.gz")
        assert "which `dpmrecon stream` takes on standard input" in str(foreign(path))
        answer = stream(gzip.decompress(path.read_bytes()), "--model", str(model), "--contrast", "t1")
        assert answer.returncode in (0, 3) and len(of(answer.stdout)) == 1, answer.stderr
