"""What to say of a reconstruction, or to do about it: a list of checks, each a verdict or None."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from .types import MappedSlice, Reconstruction

# Chosen from training/reports/residuals, which `dpmtrain residuals` measured on simulated scans. A residual is compared
# with what is expected of a sound scan; from this many times as much on, an image is said to contradict its data
REMARKED = 1.3
# and from this on it is not used where CG-SENSE's is smaller, and not to be trusted where that is as large
LARGEST_RESIDUAL = 3.0
# Share of the data, as root mean square, that the coil maps of a sound scan fail to explain at most; more in proportion
# where the matrix has fewer lines or columns than this, for which the kernel of the maps is long
MAP_ERROR = 0.04
MAP_ERROR_FROM = 64


CHECK = (
    "see whether the head is wider than the field of view or has moved, and whether header, calibration (16 lines or "
    "more) and noise scan are right"
)


@dataclass(frozen=True)
class Verdict:
    """remark: the text goes with the image; fallback: the conventional image takes its place, the text says why;
    distrust: the image goes out, marked as not to be trusted."""

    kind: Literal["remark", "fallback", "distrust"]
    text: str


Check = Callable[[Reconstruction], Verdict | None]


def expected_residual(mapped: MappedSlice) -> float:
    """Of a sound scan: 1 for the noise, and more where there is so little of it that the error of coil maps shows.

    The number of samples does not enter: the few hundred of the smallest matrix already tell 1 to a few percent.
    """
    data = mapped.data
    noise = 2 * float(data.mask.sum()) * len(data.kspace) * data.sigma_n**2
    energy = float(torch.view_as_real(data.kspace).square().sum())
    error = MAP_ERROR * max(1.0, MAP_ERROR_FROM / min(data.mask.shape))
    return math.sqrt(1 + error**2 * energy / noise)


def not_finite(item: Reconstruction) -> Verdict | None:
    """The network broke down."""
    if math.isfinite(item.residual):
        return None
    if item.fallback is not None:
        return Verdict("distrust", "NOT TO BE TRUSTED: the image is not finite: check the scan's samples")
    return Verdict("fallback", "the model's image is not finite")


def misses_data(item: Reconstruction) -> Verdict | None:
    """The image contradicts what was measured."""
    residual, expected = item.residual, expected_residual(item.mapped)
    if not residual > REMARKED * expected:
        return None
    misses = f"misses the data by {residual:.1f} times the noise"
    if expected > REMARKED:
        misses += f", {residual / expected:.1f} times what a scan of so little noise leaves"
    if residual <= LARGEST_RESIDUAL * expected:
        return Verdict("remark", f"the image {misses}: parts of it may be false; {CHECK}")
    if item.fallback is None and item.mapped.residual(item.mapped.conventional) < residual:
        return Verdict("fallback", f"the model's image {misses}")
    return Verdict("distrust", f"NOT TO BE TRUSTED: the image {misses}, and no other fits better; {CHECK}")


CHECKS: tuple[Check, ...] = (not_finite, misses_data)


def judged(item: Reconstruction) -> tuple[Reconstruction, str | None]:
    """The reconstruction with its remarks, and why the conventional image should take its place, or None."""
    found = [verdict for check in CHECKS if (verdict := check(item)) is not None]
    reason = next((verdict.text for verdict in found if verdict.kind == "fallback"), None)
    kinds = {verdict.kind for verdict in found}
    own = [verdict.text for kind in ("distrust", "remark") for verdict in found if verdict.kind == kind]
    remarks = (*own, *item.mapped.data.remarks)
    return replace(item, remarks=remarks, trusted="distrust" not in kinds), reason
