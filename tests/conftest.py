"""Scans that tests share: made once per session, small by default."""

from pathlib import Path

import pytest
from dpmrecon.tools.simulate import SimulationSettings, simulate

_SMALL = {"matrix": (64, 64), "n_slices": 1, "n_coils": 6, "calibration_lines": 16, "acceleration": 2}


@pytest.fixture(scope="session")
def simulated_scan(tmp_path_factory):
    """simulated_scan(**settings) -> Path of the scan; its truth lies at dpmrecon.tools.simulate.truth_path(path).

    Settings are those of SimulationSettings; what is not given is small: one slice of 64x64, 6 coils, R=2 with 16
    calibration lines. Equal settings give the same file: tests must not write to it.
    """
    folder = tmp_path_factory.mktemp("scans")
    made: dict[SimulationSettings, Path] = {}

    def make(**settings) -> Path:
        chosen = SimulationSettings(**{**_SMALL, **settings})
        if chosen not in made:
            path = folder / f"scan{len(made)}.h5"
            simulate(path, chosen)
            made[chosen] = path
        return made[chosen]

    return make
