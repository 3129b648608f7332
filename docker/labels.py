"""Build arguments that state what an image of this tree holds: its version and its model's checksum."""

import json
import runpy
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "gadgets/dpmrecon"


def labels() -> dict[str, str]:
    card = json.loads((PACKAGE / "checkpoints/default.json").read_text())
    version = runpy.run_path(str(PACKAGE / "version.py"))["__version__"]
    return {"VERSION": version, "MODEL_SHA256": card["checksum_sha256"]}


if __name__ == "__main__":
    print(" ".join(f"--build-arg {name}={value}" for name, value in labels().items()))
