"""What to say of a reconstruction, or to do about it: a list of checks, each a verdict or None."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from .types import Reconstruction

# A data residual (1 is what the noise alone leaves) from which on an image is said to contradict its data
REMARKED = 1.3
# and from which on it is not used where CG-SENSE's is smaller, and not to be trusted where that is as large
LARGEST_RESIDUAL = 3.0


@dataclass(frozen=True)
class Verdict:
    """remark: the text goes with the image; fallback: the conventional image takes its place, the text says why;
    distrust: the image goes out, marked as not to be trusted."""

    kind: Literal["remark", "fallback", "distrust"]
    text: str


Check = Callable[[Reconstruction], Verdict | None]


def not_finite(item: Reconstruction) -> Verdict | None:
    """The network broke down."""
    if math.isfinite(item.residual):
        return None
    if item.fallback is not None:
        return Verdict("distrust", "NOT TO BE TRUSTED: the image is not finite: check the scan's samples")
    return Verdict("fallback", "the model's image is not finite")


def misses_data(item: Reconstruction) -> Verdict | None:
    """The image contradicts what was measured."""
    residual = item.residual
    if not residual > REMARKED:
        return None
    misses = f"misses the data by {residual:.1f} times the noise"
    if residual <= LARGEST_RESIDUAL:
        return Verdict(
            "remark",
            f"the image {misses}: part of it may be false; see whether the head is wider than the field of view or has "
            "moved, and whether header, noise scan and coils are right",
        )
    if item.fallback is None and item.mapped.residual(item.mapped.conventional) < residual:
        return Verdict("fallback", f"the model's image {misses}")
    return Verdict(
        "distrust",
        f"NOT TO BE TRUSTED: the image {misses}, and no other does better: the head may be wider than the field of "
        "view or have moved, or header, calibration or coils are wrong; correct that, or scan again",
    )


CHECKS: tuple[Check, ...] = (not_finite, misses_data)


def judged(item: Reconstruction) -> tuple[Reconstruction, str | None]:
    """The reconstruction with its remarks, and why the conventional image should take its place, or None."""
    found = [verdict for check in CHECKS if (verdict := check(item)) is not None]
    reason = next((verdict.text for verdict in found if verdict.kind == "fallback"), None)
    kinds = {verdict.kind for verdict in found}
    own = [verdict.text for kind in ("distrust", "remark") for verdict in found if verdict.kind == kind]
    remarks = (*own, *item.mapped.data.remarks)
    return replace(item, remarks=remarks, trusted="distrust" not in kinds), reason
