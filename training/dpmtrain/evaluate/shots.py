"""EPI of several shots with a phase each: `python -m dpmtrain.evaluate.shots`.

One slice of `dpmrecon simulate --epi`, of one to four interleaved shots: 6/8 partial Fourier, three directions of b =
1000, motion and eddy phases, 12 coils. NRMSE over the three directions with the factor of each image that fits best: of
images whose shots have a phase each (`recon/phases.py`), and of the same lines as if they were one shot's; by CG-SENSE
and the posterior.
"""

from dataclasses import replace

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.data import Slice
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.simulation.epi_settings import EpiSettings

from ..arguments import exit_code, module_parser
from .methods import by_card
from .metrics import nrmse
from .references import CPU, simulated
from .tables import show
from .undersampling import with_maps

NOISE = (0.012, 0.021)  # over the 99th percentile at b = 0; b = 1000 has a third
SCAN = {"n_slices": 1, "n_coils": 12, "partial_fourier": 0.75}
HEADS = ["noise", "R", "shots", "CG-SENSE, as one", "CG-SENSE, a phase each", "ours, as one", "ours, a phase each"]


def _nrmse(found: list[torch.Tensor], truths: list[np.ndarray]) -> float:
    return float(np.mean([nrmse(image.numpy(), truth) for image, truth in zip(found, truths)]))


def row(settings: EpiSettings, checkpoint: Checkpoint) -> list[str]:
    """Of one scan, as HEADS."""
    scanned, truth = simulated(settings, "truth_b")
    weighted = [item for item in scanned if isinstance(item, Slice) and item.key.contrast > 0]
    truths, found = [truth[item.key.contrast, item.key.slice] for item in weighted], {}
    for name, parts in (("one", [replace(item, shots=None) for item in weighted]), ("each", weighted)):
        mapped = [with_maps(item, CPU) for item in parts]
        images = [by_card(item, checkpoint, "dwi").image for item in mapped]
        found["CG-SENSE", name] = _nrmse([item.model.combined(item.conventional) for item in mapped], truths)
        found["ours", name] = _nrmse(images, truths)
    return [f"{settings.noise:g}", str(settings.acceleration), str(settings.shots)] + [
        f"{found[method, name]:.3f}" for method in ("CG-SENSE", "ours") for name in ("one", "each")
    ]


def main() -> None:
    args = module_parser(__doc__, "model").parse_args()
    checkpoint = load_model(args.model, "cpu")
    print(f"# EPI of several shots at b = 1000, {checkpoint.model_id}\n")
    show(
        HEADS,
        (
            row(EpiSettings(acceleration=R, shots=shots, noise=noise, **SCAN), checkpoint)  # type: ignore[arg-type]
            for noise in NOISE
            for R, shots in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 3))
        ),
    )


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
