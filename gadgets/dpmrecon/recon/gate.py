"""Reasons not to trust a reconstruction: a list of checks, each a sentence's end or None."""

import math
from collections.abc import Callable

from .types import Reconstruction

Check = Callable[[Reconstruction], str | None]

# A data residual (1 is what the noise alone leaves) above this, and above twice that of CG-SENSE, does not fit the data
LARGEST_RESIDUAL = 3.0


def not_finite(item: Reconstruction) -> str | None:
    """The network broke down."""
    return None if math.isfinite(item.residual) else "the model's image is not finite"


def misses_data(item: Reconstruction) -> str | None:
    """The image contradicts what was measured, and CG-SENSE's does not."""
    if item.residual <= LARGEST_RESIDUAL or item.residual <= 2 * item.mapped.residual(item.mapped.conventional):
        return None
    return f"the model's image misses the data by {item.residual:.1f} times the noise"


CHECKS: tuple[Check, ...] = (not_finite, misses_data)


def distrust(item: Reconstruction) -> str | None:
    """The first reason that a check gives, None where all of them pass."""
    return next((reason for check in CHECKS if (reason := check(item)) is not None), None)
