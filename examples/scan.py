"""From an ISMRMRD scan to images, slice by slice: `python examples/scan.py [SCAN.h5]`; without one it is simulated."""

import sys
import tempfile
from pathlib import Path

import dpmrecon
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.simulate import simulate

with tempfile.TemporaryDirectory() as folder:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder, "scan.h5")
    if len(sys.argv) == 1:
        simulate(path, SimulationSettings(matrix=(128, 128), n_slices=2))
    model = dpmrecon.load_model(device="cpu")
    with dpmrecon.open_scan(path) as scan:
        print(f"{path.name}: {scan.n_slices} slices, {scan.n_coils} coils")
        for result in dpmrecon.reconstruct_scan(scan, model=model):
            if result.missing:
                print(f"slice {result.key.slice} is missing: {result.missing}")
            else:
                made = "the model" if result.fallback is None else f"CG-SENSE, because {result.fallback}"
                print(f"slice {result.key.slice}: {result.image.shape} by {made}, residual {result.residual:.2f}")
