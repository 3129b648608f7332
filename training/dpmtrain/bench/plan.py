"""What the bench runs."""

from dataclasses import dataclass
from pathlib import Path

# deepinv whole, or its DPS alone, whose sigma of 152 no network of ours knows
LEFT_OUT = ("deepinv", "deepinv-dps")


@dataclass(frozen=True)
class BenchPlan:
    """What to run. slices: of each scan at most; patient_slices: of each volume of the test patient;
    tuning_slices: validation slices of each contrast; prox_steps, dps_steps, diffpir_steps: evaluations of the network;
    grappa: folder of a Gadgetron's images; matrix: of the phantoms where there are no scans; without: some of
    LEFT_OUT."""

    accelerations: tuple[int, ...] = (4,)
    contrasts: tuple[str, ...] = ("flair", "t1", "t2")
    slices: int = 3
    patient_slices: int = 1
    tuning_slices: int = 1
    prox_steps: tuple[int, ...] = (10, 20, 50)
    dps_steps: int = 300
    diffpir_steps: int = 100
    seed: int = 0
    grappa: Path | None = None
    matrix: int = 256
    without: tuple[str, ...] = ()
