"""How a slice is undersampled, and its scores against the reference."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from dpmrecon.data import Volume
from dpmrecon.physics.coil_maps import estimate_coil_maps
from dpmrecon.physics.volume_maps import estimate_volume_maps
from dpmrecon.recon.types import MappedSlice

from .metrics import Moments, psnr, scan_factor, ssim, variance_and_error
from .plan import Condition
from .references import ReferenceSlice, standard_of_care
from .undersampling import CALIBRATION_LINES, sampling_mask, undersampled, with_maps


class Undersampled:
    """A slice in one condition; coil maps are made when a method first asks for them."""

    def __init__(self, full: ReferenceSlice, condition: Condition, device: torch.device):
        self.full, self.condition, self.device = full, condition, device

    @cached_property
    def reference(self) -> ReferenceSlice:
        """The slice that is undersampled: the full one, or that of a scan with a low R."""
        further = self.condition.scan_R > 1 and round(self.full.data.acceleration) == 1
        return standard_of_care(self.full, self.condition.scan_R, CALIBRATION_LINES) if further else self.full

    @cached_property
    def mapped(self) -> MappedSlice:
        data, condition = self.reference.data, self.condition
        chosen = (condition.R, condition.calibration_lines)
        data_here = undersampled(data, sampling_mask(condition.mask, data.mask, *chosen, self.full.number), *chosen)
        maps = None
        if not condition.calibration_lines:
            assert data.calibration is not None
            calibration = data.calibration.to(self.device)
            if isinstance(data, Volume):
                partitions, rows, cols = data.mask.shape
                maps = estimate_volume_maps(calibration, (partitions, rows, cols))
            else:
                rows, cols = data.mask.shape
                maps = estimate_coil_maps(calibration, (rows, cols))
        return with_maps(data_here, self.device, maps)

    def score(self, image: torch.Tensor, draws: torch.Tensor | None = None) -> dict[str, Any]:
        """Moments, PSNR and SSIM of an image. V and B of its samples, complex and of their magnitudes, where a complex
        truth is known and draws (samples, ...) are several."""
        full = self.reference
        picture = full.picture(image)
        found: dict[str, Any] = dataclasses.asdict(Moments.of(picture, full.truth, full.mask))
        found |= {"psnr": psnr(picture, full.truth, full.mask), "ssim": ssim(picture, full.truth, full.mask)}
        if draws is not None and len(draws) > 1 and full.coil_images is not None:
            maps = self.mapped.model.coil_maps.cpu()
            truth = (maps.conj() * full.coil_images).sum(0).numpy()
            head = self.mapped.model.support.cpu().numpy() > 0
            drawn = draws.cpu().numpy()
            found["V"], found["B"] = variance_and_error(drawn, truth, head)
            found["V_magnitude"], found["B_magnitude"] = variance_and_error(np.abs(drawn), np.abs(truth), head)
        return found


@dataclass(frozen=True)
class Row:
    """Scores of one method in one condition: a value for each slice, in the order of `slices`.

    nrmse: with one least-squares factor a scan; nrmse_paper: without any; variance_ratio: V/B over all slices, None
    where no noise-free complex truth is known; fallbacks: slices that came out as CG-SENSE.
    """

    contrast: str
    condition: Condition
    method: str
    slices: list[tuple[str, int]]
    nrmse: list[float]
    nrmse_paper: list[float]
    psnr: list[float]
    ssim: list[float]
    variance_ratio: float | None
    samples: int
    fallbacks: int
    seconds: float
    setting: str

    @classmethod
    def of(
        cls, contrast: str, condition: Condition, method: str, scores: list[tuple[ReferenceSlice, dict, str]]
    ) -> "Row":
        """The scores of a method's slices; each scan has a least-squares factor of its own."""
        moments = [Moments(score["cross"], score["image"], score["truth"]) for _, score, _ in scores]
        scans = [full.scan for full, _, _ in scores]
        factors = {scan: scan_factor([m for m, s in zip(moments, scans) if s == scan]) for scan in scans}
        calibrated = [score for _, score, _ in scores if "V" in score]
        error = sum(score["B"] for score in calibrated)
        return cls(
            contrast,
            condition,
            method,
            [(full.scan, full.number) for full, _, _ in scores],
            [m.nrmse(factors[scan]) for m, scan in zip(moments, scans)],
            [m.nrmse() for m in moments],
            [score["psnr"] for _, score, _ in scores],
            [score["ssim"] for _, score, _ in scores],
            sum(score["V"] for score in calibrated) / error if error > 0 else None,
            scores[0][1].get("samples", 1),
            sum(score.get("fallback") is not None for _, score, _ in scores),
            sum(score.get("seconds", 0.0) for _, score, _ in scores) / len(scores),
            scores[0][2],
        )
