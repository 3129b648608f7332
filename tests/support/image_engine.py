"""An engine for check_image.py: Docker where one runs, else podman behind the same API, with images built by buildah.

Without Docker there are no images to start from either: the base is a Debian that debootstrap makes, and packages come
in a folder of wheels that pip fetches out here.
"""

import configparser
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from .paths import ROOT

BASE = "localhost/dpmrecon-test-base"
GADGETRON_BASE = "localhost/dpmrecon-test-gadgetron-base"
TOOLS = ("buildah", "podman", "runc", "debootstrap", "iptables")
PYTHON = "3.11"  # of Debian 12
# no systemd is needed; what watched a command in a container leaves soon after it, not after 5 minutes
CONFIGURATION = '[engine]\ncgroup_manager = "cgroupfs"\nruntime = "runc"\nexit_command_delay = 3\n'


def run(*command: str, **options) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}"
    return done.stdout


def as_options(arguments: dict[str, str]) -> list[str]:
    return [text for name, value in arguments.items() for text in ("--build-arg", f"{name}={value}")]


class Engine:
    """client: the engine as the docker package sees it. Builds with `docker build`, from the images that the
    Dockerfiles name. gadgetron_python: what Gadgetron's image starts its gadgets with."""

    gadgetron_python = "/opt/conda/envs/gadgetron/bin/python"

    def __init__(self, client: docker.DockerClient):
        self.client = client

    def build(self, dockerfile: str, tag: str, **arguments: str) -> None:
        given = as_options(arguments)
        run("docker", "build", "--file", f"docker/{dockerfile}", "--tag", tag, *given, ".", cwd=ROOT)

    def start(self, image: str, command: list[str] | None = None, **options):
        """A running container. Low limits: an engine's own may be above what this machine may give."""
        limits = [docker.types.Ulimit(name=name, soft=4096, hard=4096) for name in ("nofile", "nproc")]
        return self.client.containers.run(image, command, detach=True, ulimits=limits, **options)


class Podman(Engine):
    """buildah and podman on a storage of their own under `folder`."""

    gadgetron_python = "/opt/gadgetron/bin/python"

    def __init__(self, folder: Path):
        self._storage = ["--root", str(folder / "storage"), "--runroot", str(folder / "run")]
        driver = "overlay" if self._works("overlay") else "vfs"
        self._storage += ["--storage-driver", driver]
        socket = folder / "podman.sock"
        self._log = open(folder / "podman.log", "w")  # noqa: SIM115
        (folder / "containers.conf").write_text(CONFIGURATION)
        self._service = subprocess.Popen(
            ["podman", *self._storage, "system", "service", "--time", "0", f"unix://{socket}"],
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")},
        )
        for _ in range(100):
            if socket.exists():
                break
            time.sleep(0.1)
        super().__init__(docker.DockerClient(base_url=f"unix://{socket}", timeout=120))
        self._context = folder / "context"
        self._make_base()
        self._make_context()
        self._make_gadgetron_base()

    def _works(self, driver: str) -> bool:
        command = ["buildah", *self._storage, "--storage-driver", driver, "from", "scratch"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            run("buildah", *self._storage, "--storage-driver", driver, "rm", done.stdout.strip())
        return done.returncode == 0

    def _buildah(self, *command: str) -> str:
        return run("buildah", *self._storage, *command).strip()

    def _make_base(self) -> None:
        container = self._buildah("from", "scratch")
        root = self._buildah("mount", container)
        packages = "ca-certificates,python3,python3-venv,python3-pip"
        run("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", root)
        shutil.rmtree(f"{root}/var/cache/apt/archives")
        self._buildah("umount", container)
        self._buildah("commit", "--quiet", "--rm", container, BASE)

    def _make_context(self) -> None:
        files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
        for name in files:
            if (ROOT / name).is_file():  # and not deleted from the tree
                (self._context / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self._context / name)
        config = configparser.ConfigParser(interpolation=None)
        config.read(ROOT / "setup.cfg")
        needed = ["setuptools", "wheel", *config["options"]["install_requires"].split()]
        metrics = config["options.extras_require"]["metrics"].split()
        self._download("constraints.txt", *needed, *metrics)
        self._download("docker/constraints.gadgetron.txt", "gadgetron", *needed)

    def _download(self, constraints: str, *packages: str) -> None:
        """Wheels for the base's Python into the folder of wheels."""
        where = ["--python-version", PYTHON, "--only-binary", ":all:", "--dest", str(self._context / "docker/wheels")]
        run(sys.executable, "-m", "pip", "download", "-c", str(ROOT / constraints), *where, *packages)

    def _make_gadgetron_base(self) -> None:
        """A stand-in for Gadgetron's image: its Python packages in an environment of their own, and no Gadgetron."""
        container = self._buildah("from", BASE)
        inside = ["run", "--isolation", "chroot", "--volume", f"{self._context}:/context:ro", container, "--"]
        self._buildah(*inside, "python3", "-m", "venv", "/opt/gadgetron")
        pip = [self.gadgetron_python, "-m", "pip", "install", "--no-index", "--find-links", "/context/docker/wheels"]
        self._buildah(*inside, *pip, "-c", "/context/docker/constraints.gadgetron.txt", "gadgetron")
        self._buildah("commit", "--quiet", "--rm", container, GADGETRON_BASE)

    def build(self, dockerfile: str, tag: str, **arguments: str) -> None:
        gadgetron = {"BASE": GADGETRON_BASE, "PYTHON": self.gadgetron_python}
        base = gadgetron if dockerfile.endswith("gadgetron") else {"BASE": BASE}
        given = as_options({**base, "PIP_NO_INDEX": "1", **arguments})
        # docker's format, or HEALTHCHECK is lost; chroot, because a builder in a container may start no other
        self._buildah(
            *("build", "--format", "docker", "--isolation", "chroot", "--file", f"{self._context}/docker/{dockerfile}"),
            *("--tag", tag, *given, str(self._context)),
        )

    def close(self) -> None:
        time.sleep(5)  # see CONFIGURATION
        self.client.close()
        self._service.terminate()
        self._service.wait(30)
        self._log.close()
        subprocess.run(["buildah", *self._storage, "rm", "--all"], capture_output=True)
        subprocess.run(["buildah", *self._storage, "rmi", "--all", "--force"], capture_output=True)
        subprocess.run(["umount", "--lazy", self._storage[1] + "/overlay"], capture_output=True)


@contextlib.contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """Docker's engine, else podman. Skips the tests, with the reason, where there is neither."""
    with contextlib.suppress(docker.errors.DockerException):
        client = docker.from_env()
        client.ping()
        yield Engine(client)
        client.close()
        return
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.getuid() != 0:
        pytest.skip(f"no Docker engine answers, and podman needs root and {', '.join(missing) or 'its tools'}")
    podman = Podman(folder)
    try:
        yield podman
    finally:
        podman.close()
