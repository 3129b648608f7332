"""Where things lie: the repository, and the shared data beside it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"


def shared(name: str) -> Path:
    """DATA/name; where it is not there the test is skipped, and the reason names it."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} of the shared data is not there ({path})")
    return path
