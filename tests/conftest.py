"""Fixtures of all tests: simulated scans, the tiny model, the world whose posterior is known in closed form.

What is only imported lies in support/. Each is made once per session.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# before torch is imported, and for the processes that tests start: threads that spin wait long on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")

from dpmrecon.prior.checkpoint import load_checkpoint
from dpmrecon.simulation.epi_settings import EpiSettings
from dpmrecon.simulation.settings import SimulationSettings, VolumeSettings
from dpmrecon.simulation.simulate import simulate

from support.gaussian import GaussianWorld
from support.models import SAMPLING, TINY, saved_model

_SMALL_VOLUME = {"matrix": (26, 24), "n_coils": 5, "calibration_lines": 12, "slice_thickness_mm": 8.0}
_SMALL = {"matrix": (64, 64), "n_slices": 1, "n_coils": 6, "calibration_lines": 16, "acceleration": 2}


def _simulated(settings: SimulationSettings, folder: Path, made: dict[SimulationSettings, Path]) -> Path:
    """The scan of these settings, made where there is none yet."""
    if settings not in made:
        path = folder / f"scan{len(made)}.h5"
        simulate(path, settings)
        made[settings] = path
    return made[settings]


@pytest.fixture(scope="session")
def simulated_scan(tmp_path_factory):
    """simulated_scan(**settings) -> Path of the scan; its truth lies at dpmrecon.simulation.simulate.truth_path(path).

    Settings are those of SimulationSettings, with `partitions` those of VolumeSettings; what is not given is small: one
    slice of 64x64, 6 coils, R=2 with 16 calibration lines, or a volume of 26x24 with R=2x2 and a block of 12x12. Equal
    settings give the same file: tests must not write to it.
    """
    folder = tmp_path_factory.mktemp("scans")
    made: dict[SimulationSettings, Path] = {}

    def make(**settings) -> Path:
        kind, small = (VolumeSettings, _SMALL_VOLUME) if "partitions" in settings else (SimulationSettings, _SMALL)
        return _simulated(kind(**{**small, **settings}), folder, made)

    return make


@pytest.fixture(scope="session")
def simulated_epi(tmp_path_factory):
    """simulated_epi(**settings) -> Path of an EPI scan; settings are those of EpiSettings, and what is not given is
    small: one slice of 48x44, 6 coils, R=2 with 16 calibration lines. Equal settings give the same file: tests must not
    write to it."""
    folder = tmp_path_factory.mktemp("epi")
    made: dict[SimulationSettings, Path] = {}

    def make(**settings) -> Path:
        return _simulated(EpiSettings(**{**_SMALL, "matrix": (48, 44), **settings}), folder, made)

    return make


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """tiny_model(network={...}, **sampling) -> Path of an untrained model, tiny.safetensors, with its card.

    network: what differs from TINY; sampling: what differs from SAMPLING in the card, both in support/models.py. Tests
    must not write to it: `saved_model` gives one of their own.
    """

    def make(network: dict[str, Any] | None = None, **sampling: Any) -> Path:
        path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
        return saved_model(path, {**TINY, **(network or {})}, sampling={**SAMPLING, **sampling})

    return make


@pytest.fixture(scope="session")
def model(tiny_model) -> Path:
    """The tiny model with 2 samples of 4 steps."""
    return tiny_model()


@pytest.fixture
def short_kernel(monkeypatch):
    """Coil maps of volumes are made with a kernel of 4 or 5: its eigenvectors take a fifth of the time and less."""
    monkeypatch.setattr("dpmrecon.physics.volume_maps.MATRIX", 600)


@pytest.fixture(scope="module")
def short_kernel_throughout():
    """`short_kernel` for all tests of a module and for what they share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpmrecon.physics.volume_maps.MATRIX", 600)
        yield


@pytest.fixture(scope="module")
def loaded_once():
    """The commands of a module load each model once: reading the one that ships takes longer than a small slice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpmrecon.recon.plan.load_checkpoint", cache(load_checkpoint))
        yield


@pytest.fixture(scope="session")
def world() -> GaussianWorld:
    return GaussianWorld()
