"""What to say of a reconstruction, or to do about it: a list of checks, each a verdict or None."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from ..data import ESTIMATED, MEASURED, Slice
from ..mrd.completeness import is_regular
from ..mrd.volumes import is_lattice
from .agreement import HELD_BACK
from .held_back import can_be_held_back
from .types import DISTRUSTED, MappedSlice, Reconstruction

# Chosen from training/reports/residuals, which `dpmtrain residuals` measured on simulated scans. A residual is compared
# with what is expected of a sound scan; from this many times as much on, an image is said to contradict its data
REMARKED = 1.3
# from this on CG-SENSE's is used if smaller, else none is trusted
LARGEST_RESIDUAL = 3.0
# Share of the data, as root mean square, that the coil maps of a sound scan fail to explain at most; more in proportion
# where the matrix has fewer lines or columns than this, for which the kernel of the maps is long
MAP_ERROR = 0.04
MAP_ERROR_FROM = 64
# A row or a channel contradicts the others from this many times what is expected of it on. Rows at the edge of k-space
# are not asked: what coil maps would mix into them lies beyond it
ROW, CHANNEL = 1.8, 1.25
EDGE = 3
# and where no noise was measured, so that channels are not white: from this many times the middle one on
UNWHITENED = 1.5
# and a channel is quieter than its noise measurement where the image misses it by less than this
QUIET = 0.7
TOLD = 4  # rows that a remark names
TOGETHER = 2.0  # standard deviations, within which each number alone is usual
FAR = 2.0  # times the distance that few sound scans exceed: not to be trusted

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
    return math.sqrt(1 + (_map_error(mapped) * mapped.energy.residual) ** 2)


def expected_by_part(mapped: MappedSlice) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for every row (rows,), a volume's lines, and every channel (n_coils,). A row gets the map error of all
    others too."""
    error, by_row = _map_error(mapped), mapped.energy.by_row.square()
    return (
        (1 + error**2 * (by_row + by_row[by_row.isfinite()].mean())).sqrt(),
        (1 + (error * mapped.energy.by_channel).square()).sqrt(),
    )


def _map_error(mapped: MappedSlice) -> float:
    return MAP_ERROR * max(1.0, MAP_ERROR_FROM / min(mapped.data.mask.shape[-2:]))  # slabs are thin


def over(item: Reconstruction) -> dict[str, float]:
    """What the checks measure, by name: about 0 in a sound scan, 1 from where each speaks on."""
    found = {} if item.agreement is None else {"agreement": item.agreement.distance}
    if item.misfit is None or not math.isfinite(item.residual):
        return found
    return {
        **found,
        "residual": (item.residual / expected_residual(item.mapped) - 1) / (REMARKED - 1),
        "rows": (float(rows_over(item).max()) - 1 / ROW) / (1 - 1 / ROW),
        "channels": (float(channels_over(item).max()) - 1 / CHANNEL) / (1 - 1 / CHANNEL),
    }


def not_finite(item: Reconstruction) -> Verdict | None:
    """The network broke down."""
    if math.isfinite(item.residual):
        return None
    if item.fallback is not None:
        return Verdict("distrust", f"{DISTRUSTED}the image is not finite: check the scan's samples")
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
    return Verdict("distrust", f"{DISTRUSTED}the image {misses}, and no other fits better; {CHECK}")


def rows_over(item: Reconstruction) -> torch.Tensor:
    """How far each row, of a volume each line, misses its data, over what contradicts the others; 0 at the edge."""
    assert item.misfit is not None
    excess = item.misfit.by_row / expected_by_part(item.mapped)[0]
    limit = (1 + 3 / item.mapped.counts[0].cpu().sqrt()).clamp_min(ROW)  # few samples vary
    inside = tuple(slice(EDGE, size - EDGE) for size in limit.shape)
    over = torch.zeros_like(limit)
    over[inside] = (excess / limit)[inside].nan_to_num(0.0)
    return over


def rows_contradict(item: Reconstruction) -> Verdict | None:
    """Single rows of k-space do not fit the others: few of them hide in the residual of all."""
    if item.misfit is None or not math.isfinite(item.residual):
        return None
    excess = item.misfit.by_row / expected_by_part(item.mapped)[0]
    contradicts = rows_over(item) > 1
    found = torch.nonzero(contradicts)
    if not len(found):
        return None
    unit, place_of = ("row", "") if excess.ndim == 1 else ("line", " (partition, row)")
    names = [str(place[0]) if len(place) == 1 else str(tuple(place)) for place in found.tolist()]
    rows = ", ".join(names[:TOLD]) + (f" and {len(names) - TOLD} more" if len(names) > TOLD else "")
    rows = f"{unit}{place_of} {rows} contradicts" if len(names) == 1 else f"{unit}s{place_of} {rows} contradict"
    matrix = " x ".join(map(str, excess.shape))
    return Verdict(
        "remark",
        f"{rows} the others of the k-space of {matrix} {unit}s by up to "
        f"{float(excess[contradicts].max()):.1f} times what "
        "noise leaves: see whether labels are right, samples lie in their places, and the head lay still",
    )


def channels_over(item: Reconstruction) -> torch.Tensor:
    """How far each channel misses its data, over what contradicts the others, (n_coils,)."""
    assert item.misfit is not None
    excess = item.misfit.by_channel / expected_by_part(item.mapped)[1]
    if item.mapped.data.noise_source == ESTIMATED:
        return excess / (UNWHITENED * excess.median().clamp_min(1))
    return excess / CHANNEL


def channels_contradict(item: Reconstruction) -> Verdict | None:
    """A channel does not fit the others, or its noise measurement."""
    if item.misfit is None or not math.isfinite(item.residual):
        return None
    by_channel, measured = item.misfit.by_channel, item.mapped.data.noise_source == MEASURED
    quiet = (by_channel < QUIET * by_channel.median().clamp_max(1)) & measured
    found = torch.nonzero((channels_over(item) > 1) | quiet).flatten().tolist()
    if not found or len(found) == len(by_channel):
        return None
    values = ", ".join(f"{by_channel[place]:.2f}" for place in found)
    return Verdict(
        "remark",
        f"channel{'s' * (len(found) > 1)} {', '.join(map(str, found))} of {len(by_channel)} miss"
        f"{'es' * (len(found) == 1)} the image by {values} times the noise, the middle one by "
        f"{float(by_channel.median()):.2f}: see whether gains changed during the scan"
        f"{' or since the noise measurement' * measured}",
    )


def unfamiliar(item: Reconstruction) -> Verdict | None:
    """Prior and data do not agree as they do in sound scans of this contrast, R and noise."""
    found = item.agreement
    if found is None:
        return None
    if found.beyond is not None:
        return Verdict("remark", found.beyond)
    if not found.distance > 1:
        return None
    name, deviation = max(found.deviations.items(), key=lambda entry: abs(entry[1]))
    if name == HELD_BACK:
        what = f"acquired lines that were held back are foretold {'worse' if deviation > 0 else 'better'}"
    else:
        what = f"the image has {'more' if deviation > 0 else 'less'} detail"
    what += f" than in sound scans of this contrast, by {abs(deviation):.1f} of their standard deviations"
    if abs(deviation) < TOGETHER:
        what = "the detail of the image at different levels of noise does not go together as in sound scans"
    text = f"{what}: see whether it is the head and contrast that the prior knows, and whether it lay still"
    if item.adaptation is None and item.mapped.n_sets == 1 and can_be_held_back(item.mapped):
        text += "; where the object is another, --adapt fits the prior to it"
    if found.distance > FAR:
        return Verdict("distrust", f"{DISTRUSTED}{text}")
    return Verdict("remark", text)


def too_few_coils(item: Reconstruction) -> Verdict | None:
    """More is folded onto each other than there are coils to tell it apart: any image fits the data."""
    n_coils, fold = item.mapped.n_coils or len(item.mapped.data.kspace), round(item.mapped.data.acceleration)
    if fold <= n_coils or not _folds(item.mapped.data, fold):
        return None
    coils = f"{n_coils} coil{'s' * (n_coils > 1)}"
    return Verdict(
        "remark",
        f"R = {fold} is more than {coils} can unfold, so that ghosts fit the data too: use more coils or a lower R",
    )


def _folds(data: Slice, fold: int) -> bool:
    """Whether the lines fold the image `fold` times; those of a full scan do not, and those by chance make noise."""
    came = data.mask.amax(-1).cpu().numpy() > 0
    if came.ndim == 2:
        return is_lattice(came, fold)
    return is_regular(np.flatnonzero(came), len(came) // 2, fold)


CHECKS: tuple[Check, ...] = (
    not_finite,
    misses_data,
    unfamiliar,
    too_few_coils,
    rows_contradict,
    channels_contradict,
)


def judged(item: Reconstruction, gate: str = "warn") -> tuple[Reconstruction, str | None]:
    """The reconstruction with its remarks, and why it should be replaced, or None. gate: fallback wants that too of an
    image that is not to be trusted."""
    found = [verdict for check in CHECKS if (verdict := check(item)) is not None]
    reason = next((verdict.text for verdict in found if verdict.kind == "fallback"), None)
    if gate == "fallback" and reason is None and item.fallback is None:
        doubts = (verdict.text for verdict in found if verdict.kind == "distrust")
        reason = next((text.removeprefix(DISTRUSTED) for text in doubts), None)
    kinds = {verdict.kind for verdict in found}
    own = [verdict.text for kind in ("distrust", "remark") for verdict in found if verdict.kind == kind]
    remarks = (*own, *item.mapped.data.remarks)
    return replace(item, remarks=remarks, trusted="distrust" not in kinds), reason
