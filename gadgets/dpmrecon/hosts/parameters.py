"""Parameters that come with a scan, in a text after its header: of OpenRecon's card at the scanner, whose fields
docker/openrecon/label.json describes, and of MRD clients of that kind.

The text is JSON, {"parameters": {id: value}}; an id is the name of an option without hyphens. An option whose default
is that model or scan decide has a value for that, because a field cannot be empty: `auto`, 0, or no text.
"""

import dataclasses

from ..files import from_json
from ..options import OPTIONS, Options

CONFIG = "config"  # the id of the parameter that names a configuration, in place of the one that came before the header
AUTO = "auto"
IDS = {name.replace("-", ""): name for name in OPTIONS}
OPEN = frozenset(field.name.replace("_", "-") for field in dataclasses.fields(Options) if field.default is None)
UNDECIDED = ("", AUTO, "0", "0.0")


def parameters_of(text: bytes) -> tuple[str | None, dict[str, str]]:
    """The name of a configuration, None where none is given, and options as text. Neither from a text that is no such
    JSON: that is of a log."""
    try:
        given = from_json(text.rstrip(b"\0"))["parameters"]
        pairs = {IDS.get(identifier, identifier): str(value) for identifier, value in given.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, {}
    config = pairs.pop(CONFIG, None)
    return config or None, {
        name: value for name, value in pairs.items() if not (name in OPEN and value.strip() in UNDECIDED)
    }
