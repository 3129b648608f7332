"""How a slice is undersampled, and its scores against the reference."""

import dataclasses
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from dpmrecon.data import Slice, Volume
from dpmrecon.errors import BadInputError
from dpmrecon.physics.coil_maps import estimate_coil_maps
from dpmrecon.physics.volume_maps import estimate_volume_maps
from dpmrecon.recon.types import MappedSlice

from .metrics import Moments, paired_difference, psnr, scan_factor, ssim, variance_and_error
from .plan import CALIBRATION_LINES, Condition
from .references import ReferenceSlice, standard_of_care
from .undersampling import sampling_mask, undersampled, with_maps

FEWEST = 5  # subjects, or slices of one, that make an interval worth a verdict


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
    def data(self) -> Slice:
        """What is left of the reference's lines. Raises BadInputError where that is all."""
        data, condition = self.reference.data, self.condition
        chosen = (condition.R, condition.calibration_lines)
        mask = sampling_mask(condition.mask, data.mask, *chosen, self.full.number)
        if torch.equal(mask, data.mask):
            raise BadInputError(
                f"R = {condition.R} with {condition.calibration_lines} calibration lines is all that {self.full.scan} "
                "has: give fewer (--acs)"
            )
        return undersampled(data, mask, *chosen)

    @cached_property
    def mapped(self) -> MappedSlice:
        data, condition = self.reference.data, self.condition
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
        return with_maps(self.data, self.device, maps, self.full.contrast)

    @cached_property
    def left_out(self) -> MappedSlice:
        """The other lines of the reference, which no reconstruction has seen. With calibration lines alone."""
        whole = with_maps(
            replace(self.reference.data, calibration=self.data.calibration), self.device, contrast=self.full.contrast
        )  # in the same virtual coils
        mapped, lines = self.mapped, 1 - self.mapped.data.mask.amax(-1, keepdim=True)
        data = replace(whole.data, kspace=whole.data.kspace * lines, mask=whole.data.mask * lines)
        return replace(mapped, data=data, model=replace(mapped.model, mask=whole.model.mask * lines))

    def missed(self, image: torch.Tensor) -> float:
        """What an image misses of the lines left out, rms over the noise's. Their noise is new to it: what keeps noise
        gains nothing, as it does by NRMSE where the reference is noisy. Of several sets of maps, each has the share of
        the image that it has of CG-SENSE's."""
        mapped = self.mapped
        if mapped.n_sets > 1:
            combined = mapped.model.combined(mapped.conventional)
            image = image * mapped.conventional / torch.where(combined == 0, 1, combined)
        return self.left_out.residual(image)

    def score(self, image: torch.Tensor, draws: torch.Tensor | None = None) -> dict[str, Any]:
        """Moments, PSNR and SSIM of an image. V and B of its samples, complex and of their magnitudes, where a complex
        truth is known and draws (samples, ...) are several."""
        full = self.reference
        picture = full.picture(image)
        found: dict[str, Any] = dataclasses.asdict(Moments.of(picture, full.truth, full.mask))
        found |= {"psnr": psnr(picture, full.truth, full.mask), "ssim": ssim(picture, full.truth, full.mask)}
        if draws is not None and len(draws) > 1 and full.coil_images is not None:
            model = self.mapped.model
            truth = model.combined(true_image(self.mapped, full.coil_images)).numpy()
            head = model.support.reshape(-1, *truth.shape).amax(0).cpu().numpy() > 0
            drawn, shown = draws.cpu().numpy(), image.cpu().numpy()
            found["V"], found["B"] = variance_and_error(drawn, shown, truth, head)
            found["V_magnitude"], found["B_magnitude"] = variance_and_error(
                np.abs(drawn), np.abs(shown), np.abs(truth), head
            )
        return found


def true_image(mapped: MappedSlice, coil_images: torch.Tensor) -> torch.Tensor:
    """What the maps make of coil images without noise, (rows, cols) complex64; of several sets (n_sets, rows, cols)."""
    return (mapped.model.coil_maps.cpu().conj() * coil_images).sum(-3)


@dataclass(frozen=True)
class Row:
    """One method in one condition: a score for each of `slices`, (scan, number), and the subject that it is of.

    contrast: None where there are several.
    """

    contrast: str | None
    condition: Condition
    method: str
    setting: str
    slices: list[tuple[str, int]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)

    @property
    def n_subjects(self) -> int:
        return len(set(self.subjects))

    def less(self, other: "Row | None") -> tuple[float, float, float]:
        """NRMSE less that of another method on the same slices, None for nothing; see `paired_difference`."""
        return paired_difference(self.nrmse, other.nrmse if other else [0.0] * len(self.slices), self.subjects)

    @property
    def sampled(self) -> str:
        """What intervals are of, in words."""
        return f"of {self.n_subjects} subjects" if self.n_subjects > 1 else "of slices of one subject"

    @property
    def enough(self) -> bool:
        """Whether an interval is worth a verdict: of FEWEST subjects, or of as many slices of one."""
        return (self.n_subjects if self.n_subjects > 1 else len(self.slices)) >= FEWEST

    @property
    def _moments(self) -> list[Moments]:
        return [Moments(score["cross"], score["image"], score["truth"]) for score in self.scores]

    @property
    def nrmse(self) -> list[float]:
        """With one least-squares factor a scan."""
        moments, scans = self._moments, [scan for scan, _ in self.slices]
        factors = {scan: scan_factor([m for m, s in zip(moments, scans) if s == scan]) for scan in scans}
        return [m.nrmse(factors[scan]) for m, scan in zip(moments, scans)]

    @property
    def nrmse_paper(self) -> list[float]:
        """Without a factor."""
        return [m.nrmse() for m in self._moments]

    def values(self, name: str) -> list[Any]:
        """Of the slices that have it."""
        return [score[name] for score in self.scores if score.get(name) is not None]

    def mean(self, name: str) -> float:
        """nan where no slice has it."""
        values = self.values(name)
        return float(np.mean(values)) if values else float("nan")

    def seconds(self, *stages: str) -> float:
        """Mean over slices, of the stages or of all; nan where they were not measured."""
        found = self.values("seconds")
        return float(np.mean([sum(s.get(n, 0.0) for n in stages or s) for s in found])) if found else float("nan")

    @property
    def variance_ratio(self) -> float | None:
        """V/B over the slices whose complex truth is known without noise; None without."""
        error = sum(self.values("B"))
        return sum(self.values("V")) / error if error > 0 else None

    @property
    def fallbacks(self) -> int:
        """Slices that came out as CG-SENSE."""
        return len(self.values("fallback"))
