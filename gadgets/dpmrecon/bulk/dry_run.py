"""A bulk run that only looks: what the doctor says of each scan. Without torch."""

from typing import Any

from ..errors import UNEXPECTED, DpmreconError
from ..options import Options
from ..tools.doctor import doctor
from .sources import Source


def diagnosed(source: Source, options: Options) -> dict[str, Any]:
    """What the doctor says of a scan: verdict, reasons and the exit code that its reconstruction would have."""
    try:
        with source.local() as path:
            found = doctor(path, options)
    except DpmreconError as error:
        return {"verdict": "refused", "reasons": [str(error)], "exit_code": 2}
    except Exception as error:
        return {"verdict": "refused", "reasons": [f"unexpected: {error}"], "exit_code": UNEXPECTED}
    return {"verdict": found.verdict, "reasons": found.reasons, "exit_code": found.exit_code}
