"""`make image-test`: the images are built for real, that of OpenRecon too, run, and treated badly. It takes minutes, so
that it is no part of `make test`."""

import base64
import contextlib
import json
import os
import re
import runpy
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.simulate import simulate
from dpmrecon.version import __version__

from support import fake_peer, openrecon
from support.fake_peer import Peer, config_name
from support.image_engine import Engine, engine, run
from support.paths import ROOT
from support.results import by_place, images_of
from support.streams import edited_stream, raw_stream
from support.waiting import LIMIT

FEW = ["--mode", "uncertainty", "--steps", "4", "--samples", "2"]  # with image_2
# the same number in here and out there: it decides the order of sums, and the sampler makes the difference larger
THREADS = {"OMP_NUM_THREADS": "1"}
SERVE = ["serve", "--address", "0.0.0.0", "--port", "9020", *FEW]
LABELS = runpy.run_path(str(ROOT / "docker/labels.py"))["labels"]()
CARD = json.loads((ROOT / "gadgets/dpmrecon/checkpoints/default.json").read_text())
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the docker package's sockets


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    began = time.monotonic()
    with engine(folder) as found:
        print(f"\nengine: {type(found).__name__}, ready after {time.monotonic() - began:.0f} s")
        yield found


def built(running: Engine, dockerfile: str, tag: str, **arguments: str) -> str:
    began = time.monotonic()
    running.build(dockerfile, tag, **(arguments or LABELS))
    size = running.client.images.get(tag).attrs["Size"] / 1e6
    print(f"\nimage by docker/{dockerfile}: {size:.0f} MB, built in {time.monotonic() - began:.0f} s")
    return tag


@pytest.fixture(scope="module")
def image(running) -> str:
    return built(running, "Dockerfile", "localhost/dpmrecon-test")


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    simulate(path, SimulationSettings(matrix=(64, 80), n_slices=2, n_coils=6, calibration_lines=16, acceleration=2))
    path.parent.chmod(0o755)  # the container has a user of its own
    return path


def replayed(scan: Path, out: Path) -> dict:
    """The images of a replay out here."""
    command = [sys.executable, "-m", "dpmrecon.cli", "replay", str(scan), "--out", str(out), *FEW]
    run(*command, env={**os.environ, **THREADS})
    return images_of(out)


class Service:
    """A container of the image, restricted as in compose.yaml. folder: the volume of the audit log; command: None for
    the image's own, which listens on `port`."""

    def __init__(
        self, running: Engine, image: str, folder: Path, command: list[str] | None = SERVE, port: str = "9020/tcp"
    ):
        folder.chmod(0o777)  # whoever runs the engine, the service's user may write
        self.began, self.inner = time.monotonic(), port
        self.container = running.start(
            image,
            command,
            environment=THREADS,
            ports={port: ("127.0.0.1", None)},
            volumes={str(folder): {"bind": "/audit", "mode": "rw"}},
            restart_policy={"Name": "always"},
            read_only=True,
            tmpfs={"/tmp": ""},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            mem_limit="4g",
        )
        self.refresh()

    def refresh(self) -> None:
        self.container.reload()
        found = self.container.ports.get(self.inner)
        self.port = int(found[0]["HostPort"]) if found else None

    def health(self) -> tuple[int, str]:
        """Exit code and words of the image's own HEALTHCHECK."""
        import docker

        kind, *command = self.container.attrs["Config"]["Healthcheck"]["Test"]
        assert kind == "CMD"
        try:
            done = self.container.exec_run(command)
        except docker.errors.APIError:  # it is between two lives
            return 1, "does not run"
        return done.exit_code, done.output.decode()

    def log(self) -> str:
        return self.container.logs().decode()

    def until_healthy(self, seconds: float = LIMIT) -> list[tuple[int, str]]:
        """What the health checks said on the way."""
        end, found = time.monotonic() + seconds, []
        while not found or found[-1][0] != 0:
            assert time.monotonic() < end, (found[-1:], self.log())
            found.append(self.health())
            time.sleep(0.4)
        self.refresh()
        return found

    def connect(self) -> Peer:
        return Peer(socket.create_connection(("127.0.0.1", self.port)), timeout=LIMIT)

    def take(self, messages: list[bytes]) -> list:
        peer = self.connect()
        peer.send(*messages)
        answer = peer.answer()
        assert (answer.texts, answer.errors) == ([], []), self.log()
        return answer.images

    def kill(self) -> None:
        """As when the kernel runs out of memory: the engine is not asked."""
        others = "int(p) for p in os.listdir('/proc') if p.isdigit() and int(p) not in (1, os.getpid())"
        code = f"import os; [os.kill(p, 9) for p in ({others})]"
        with contextlib.suppress(Exception):
            self.container.exec_run(["python3", "-c", code])


@pytest.fixture
def service(running, image, tmp_path):
    """service(folder) -> a running Service."""
    begun = []

    def begin(folder: Path = tmp_path) -> Service:
        begun.append(Service(running, image, folder))
        return begun[-1]

    yield begin
    for each in begun:
        each.container.remove(force=True)


def test_labels_user_and_contents(running, image):
    attributes = running.client.images.get(image).attrs
    labels = attributes["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["dpmrecon.model.sha256"] == CARD["checksum_sha256"]
    assert attributes["Config"]["User"] == "dpmrecon"
    code = "import os, importlib.util as u; print(os.getuid(), u.find_spec('dpmtrain'), u.find_spec('pip'))"
    container = running.start(image, ["-c", code], entrypoint="python3")
    container.wait()
    assert container.logs().decode().splitlines()[-1] == "10001 None None"
    container.remove()


def test_healthy_once_the_model_is_loaded_and_scans_as_replay_does(service, scan, tmp_path):
    begun = service()
    checks = begun.until_healthy()
    print(f"\ncold start to healthy: {time.monotonic() - begun.began:.1f} s")
    assert checks[0][0] == 1  # it was asked before
    assert "ready" in begun.log()
    assert checks[-1][1].startswith(f"ready: model {CARD['name']}-{CARD['checksum_sha256'][:12]}, device cpu")
    compare(by_place(begun.take(raw_stream(scan))), replayed(scan, tmp_path / "host"))
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert json.loads(line)["images"] == 4


def compare(found: dict, expected: dict) -> None:
    """What a client got with what a replay wrote."""
    assert set(found) == set(expected) == {(1, 0), (1, 1), (2, 0), (2, 1)}
    for place, image in found.items():
        slope = float(image.meta["RescaleSlope"])
        true = expected[place].data * float(expected[place].meta["RescaleSlope"])
        # clients of this kind get whole numbers: what is left beside their rounding is ours
        rest = np.abs(image.data * slope - true).max() - 0.5 * slope
        print(f"series {place[0]} slice {place[1]}: {max(rest, 0) / true.max():.1e} of the maximum beside rounding")
        assert rest <= 1e-4 * true.max()


def test_replay_in_the_container_gives_the_same_floats(running, image, scan, tmp_path):
    tmp_path.chmod(0o777)
    container = running.start(
        image,
        ["replay", "/scan/scan.h5", "--out", "/out/in", *FEW],
        environment=THREADS,
        volumes={str(scan.parent): {"bind": "/scan", "mode": "ro"}, str(tmp_path): {"bind": "/out", "mode": "rw"}},
    )
    assert container.wait()["StatusCode"] == 0, container.logs().decode()
    container.remove()
    inside, outside = images_of(tmp_path / "in"), replayed(scan, tmp_path / "host")
    assert len(inside) == len(outside) == 4
    worst = max(np.abs(inside[p].data - outside[p].data).max() / outside[p].data.max() for p in outside)
    print(f"\nreplay in the container and outside: {worst:.1e} of the maximum apart")
    assert worst <= 1e-4


@pytest.fixture(scope="module")
def openrecon_image(running, image) -> str:
    """As `make image-openrecon` builds it, on the service's."""
    tag, value = (printed("label.py", option) for option in ("--tag", "--base64"))
    return built(running, "openrecon/Dockerfile", f"localhost/{tag}", BASE=image, OPENRECON=value)


def printed(script: str, *options: str) -> str:
    return run(sys.executable, str(ROOT / "docker/openrecon" / script), *options).strip()


def test_openrecons_image_honours_the_card_and_scans_as_replay_does(running, openrecon_image, scan, tmp_path):
    begun = Service(running, openrecon_image, tmp_path, None, "9002/tcp")  # nothing but what the platform gives
    try:
        begun.until_healthy()
        assert begun.container.exec_run(["id", "-u"]).output.strip() == b"0"  # as public recipes want it
        _, header, *lines = raw_stream(scan)
        values = openrecon.card(mode="uncertainty", steps=4, samples=2, contrast="flair")
        found = begun.take([config_name("openrecon"), header, values, *lines])
        compare(by_place(found), replayed(scan, tmp_path / "host"))
        assert {image.meta["dpmrecon_steps"] for image in found} == {"4"}
    finally:
        begun.container.remove(force=True)


def test_openrecons_package_holds_the_image_and_its_manual(running, openrecon_image, tmp_path):
    tar = tmp_path / "image.tar"
    with tar.open("wb") as file:
        for part in running.client.images.get(openrecon_image).save(named=True):
            file.write(part)
    began = time.monotonic()
    package = Path(printed("package.py", str(tar), "--out", str(tmp_path / "build")))
    print(f"\n{package.name}: {package.stat().st_size / 1e6:.0f} MB, packed in {time.monotonic() - began:.0f} s")
    tar.unlink()  # pytest keeps what its last runs wrote
    name = printed("label.py", "--name")
    with zipfile.ZipFile(package) as archive:
        assert sorted(archive.namelist()) == [f"{name}.pdf", f"{name}.tar"]
        assert archive.read(f"{name}.pdf").startswith(b"%PDF")
        with archive.open(f"{name}.tar") as inner, tarfile.open(fileobj=inner, mode="r|") as image:
            texts = {}
            for member in image:  # one pass, because it is packed
                if member.isfile() and member.size < 100_000:
                    texts[member.name] = image.extractfile(member).read()
    package.unlink()
    (manifest,) = json.loads(texts["manifest.json"])
    assert [tag.removeprefix("localhost/") for tag in manifest["RepoTags"]] == [printed("label.py", "--tag")]
    config = json.loads(texts[manifest["Config"]])["config"]
    (value,) = (value for key, value in config["Labels"].items() if key.endswith("openrecon.metadata:1.1.0"))
    assert json.loads(base64.b64decode(value)) == openrecon.LABEL
    assert "9002/tcp" in config["ExposedPorts"] and config["Cmd"][0] == "serve"


def test_a_killed_service_comes_back(service, scan):
    begun = service()
    begun.until_healthy()
    peer = begun.connect()
    peer.send(*raw_stream(scan)[:10])
    begun.kill()
    peer.answer()  # it ends: nobody waits for ever
    killed = time.monotonic()
    while begun.log().count("ready") < 2:
        assert time.monotonic() < killed + LIMIT, begun.log()
        time.sleep(0.2)
    begun.until_healthy()
    print(f"\nkilled, healthy again after {time.monotonic() - killed:.1f} s")
    assert len(begun.take(raw_stream(scan))) == 4


def test_sigterm_finishes_the_scan_in_hand(service, scan):
    begun = service()
    begun.until_healthy()
    stream = raw_stream(scan)
    peer = begun.connect()
    peer.send(*stream[:-20])
    peer.image()  # of the first slice
    asked = time.monotonic()
    stopping = threading.Thread(target=begun.container.stop, kwargs={"timeout": 60})
    stopping.start()
    time.sleep(1)
    peer.send(*stream[-20:])
    answer = peer.answer()
    stopping.join()
    seconds = time.monotonic() - asked
    begun.container.reload()
    print(f"\nSIGTERM with a scan in hand: {seconds:.1f} s, of which the peer took 1 s")
    assert seconds < 10
    assert (answer.ids[-1], answer.texts, begun.container.attrs["State"]["ExitCode"]) == (fake_peer.CLOSE, [], 0)
    assert '"images": 4' in begun.log()


@pytest.fixture
def small_disk(tmp_path):
    """A volume of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be made here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_nothing_and_is_said(service, scan, small_disk):
    begun = service(small_disk)
    begun.until_healthy()
    with contextlib.suppress(OSError), open(small_disk / "filling", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert len(begun.take(raw_stream(scan))) == 4
    assert re.search("audit.*No space left on device", begun.log())
    assert "No space left on device" in begun.health()[1]
    begun.kill()
    while begun.log().count("ready") < 2:
        time.sleep(0.2)
    begun.until_healthy()  # a full disk at its start is no reason either
    assert len(begun.take(raw_stream(scan))) == 4
    os.unlink(small_disk / "filling")
    assert len(begun.take(raw_stream(scan))) == 4
    (line,) = (small_disk / "audit.jsonl").read_text().splitlines()
    assert json.loads(line)["images"] == 4


def test_gadgetrons_image_starts_the_gadget(running, scan, tmp_path):
    tag = built(running, "Dockerfile.gadgetron", "localhost/dpmrecon-test-gadgetron")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(LIMIT)
    tmp_path.chmod(0o777)
    container = running.start(
        tag,
        ["-m", "gadgetron", str(listener.getsockname()[1]), "dpmrecon.gadget", "reconstruct"],
        entrypoint=running.gadgetron_python,
        network_mode="host",  # as beside the Gadgetron that starts it
        volumes={str(tmp_path): {"bind": "/audit", "mode": "rw"}},
    )
    try:
        peer = Peer(listener.accept()[0])
        peer.send(fake_peer.config(contrast="flair", steps=4, samples=1), *edited_stream(scan)[1:])
        answer = peer.answer()
        assert (len(answer.images), answer.errors) == (2, [])
        assert container.wait()["StatusCode"] == 0
    finally:
        container.remove(force=True)
        listener.close()
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    versions = json.loads(line)["versions"]
    assert (versions["numpy"], versions["ismrmrd"]) == ("1.26.4", "1.14.0")  # as Gadgetron's image has them
    code = "import os, sys; print(sorted(os.listdir(sys.prefix + '/share/gadgetron/config')))"
    container = running.start(tag, ["-c", code], entrypoint=running.gadgetron_python)
    container.wait()
    assert "'dpm_flair.xml'" in container.logs().decode()
    container.remove()
