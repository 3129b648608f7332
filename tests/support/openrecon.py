"""What a scanner's OpenRecon sends between header and lines: the values of its card, in a text."""

import json

from .fake_peer import TEXT, text_message
from .paths import ROOT

LABEL = json.loads((ROOT / "docker/openrecon/label.json").read_text())
DEFAULTS = {field["id"]: field["default"] for field in LABEL["parameters"]}


def card(**values: object) -> bytes:
    """The message; of a field that is not named its default."""
    told = {name: str(value) for name, value in {**DEFAULTS, **values}.items()}
    return text_message(TEXT, json.dumps({"version": "1.1.0", "parameters": told}).encode() + b"\0")
