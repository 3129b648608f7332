"""What is evaluated: ways to undersample a slice, and what to compare in each of them."""

from dataclasses import dataclass

VOLUME_MASKS = {"regular": "caipirinha", "poisson": "poisson 3D"}  # what volumes have in place of those of slices
OF_ACCELERATED = ("regular", "random", "gaussian", "caipirinha")  # the others need fully sampled data
CONVENTIONAL = ("zero-filled", "CG-SENSE", "L1-wavelet")


CALIBRATION_LINES = 24  # as the shared scans have them, wherever none are asked for


@dataclass(frozen=True)
class Condition:
    """One way to undersample. mask: of undersampling.MASKS; R: the nominal one; calibration_lines: 0 takes the coil
    maps from the full data; scan_R: of the data that are undersampled (further), 1 where they are fully sampled."""

    mask: str
    R: int
    calibration_lines: int = CALIBRATION_LINES
    scan_R: int = 1

    @property
    def is_volume(self) -> bool:
        return self.mask in VOLUME_MASKS.values()

    def sampling(self) -> str:
        """All but R, in words."""
        text = {
            "regular": "1D regular",
            "random": "1D random",
            "gaussian": "1D Gaussian",
            "poisson": "2D Poisson",
            "gaussian 2D": "2D Gaussian",
            "caipirinha": "volumes, 2D regular (CAIPIRINHA)",
            "poisson 3D": "volumes, 2D Poisson",
        }[self.mask]
        text += f", ACS {self.calibration_lines}" if self.calibration_lines else ", no ACS (maps from the full data)"
        return text + (f", of an R={self.scan_R} scan" if self.scan_R > 1 else "")


@dataclass(frozen=True)
class Plan:
    """What to evaluate. calibration, scan_Rs: see Condition; samplers: of the models; samples: None is the card's
    number; tuning_slices: validation slices of each contrast that weights are tuned on."""

    accelerations: tuple[int, ...] = (4, 8)
    masks: tuple[str, ...] = ("regular", "poisson")
    calibration: tuple[int, ...] = (CALIBRATION_LINES,)
    scan_Rs: tuple[int, ...] = (1,)
    conventional: tuple[str, ...] = CONVENTIONAL
    samplers: tuple[str, ...] = ("prox",)
    samples: int | None = None
    seed: int = 0
    tuning_slices: int = 2

    def conditions(self, own_R: int, volume: bool = False) -> list[Condition]:
        """Those that data with R = own_R can be undersampled to. Where they are not fully sampled: in whole multiples,
        along the rows alone. Volumes have masks of their own, and no random ones."""
        masks = [VOLUME_MASKS[mask] for mask in self.masks if mask in VOLUME_MASKS] if volume else self.masks
        return [
            Condition(mask, acceleration, lines, scan_R)
            for scan_R in (self.scan_Rs if own_R == 1 else (own_R,))
            for mask in masks
            for lines in self.calibration
            for acceleration in self.accelerations
            if scan_R == 1 or (mask in OF_ACCELERATED and acceleration > scan_R and acceleration % scan_R == 0)
        ]
