"""What tests share beside the fixtures in conftest.py: peers, streams, hand-made scans, the tiny model, paths."""

from pathlib import Path

import pytest

# a helper that fails shows its values, as a test does
pytest.register_assert_rewrite(*(f"support.{path.stem}" for path in Path(__file__).parent.glob("[a-z]*.py")))
