"""From an array of k-space to an image: `python examples/arrays.py`. Prints how far it is from the truth."""

import dpmrecon
import numpy as np
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.slices import simulated_kspace

# any (n_coils, rows, cols) complex array, zero where not acquired, does in its place
kspace, truth = simulated_kspace(SimulationSettings(contrast="flair", matrix=(192, 192), acceleration=4))

result = dpmrecon.reconstruct(kspace, contrast="flair")

print(f"image {result.image.shape} {result.image.dtype}, data residual {result.residual:.2f}")
for name, image in (("CG-SENSE", result.conventional), ("dpmrecon", result.image)):
    print(f"NRMSE {name}: {np.linalg.norm(abs(image) - truth) / np.linalg.norm(truth):.3f}")
